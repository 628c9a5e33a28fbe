// Products of linear layers: what make_linear builds for each type on each ISA that is in use or below it.
#include "kernels/linear.h"

#include <algorithm>

#include "base/parallel.h"
#include "linear_testing.h"

namespace lfm::testing {
namespace {

INSTANTIATE_TEST_SUITE_P(Isas, LinearTest, ::testing::ValuesIn(isas_up_to(active_isa())),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

// Small integers: every product and sum is exact in fp32, in bf16 and on the way through oneDNN.
TEST_P(LinearTest, StackedPartsBiasAndAccumulateExactly) {
  for (const auto& [k, sizes] : {std::pair<int64_t, std::vector<int64_t>>{1, {1}},
                                 {33, {17}},
                                 {40, {5, 16, 3}},
                                 {64, {64, 32, 32}},
                                 {96, {1100, 30}}}) {  // more rows than one packing chunk
    std::vector<std::vector<float>> values;
    std::vector<TensorView> parts;
    int64_t n = 0;
    for (const int64_t rows : sizes) {
      std::vector<float>& w = values.emplace_back(static_cast<size_t>(rows * k));
      for (float& v : w) v = static_cast<float>(rng.below(9) - 4);
      n += rows;
    }
    for (size_t i = 0; i < sizes.size(); ++i) parts.push_back(view_of("w", values[i], {sizes[i], k}));
    std::vector<float> stacked, bias, x(static_cast<size_t>(7 * k));
    for (const auto& w : values) stacked.insert(stacked.end(), w.begin(), w.end());
    for (int64_t i = 0; i < n; ++i) bias.push_back(static_cast<float>(rng.below(100)));
    for (float& v : x) v = static_cast<float>(rng.below(17) - 8);
    for (const ComputeType type : {ComputeType::f32, ComputeType::bf16}) {
      const auto linear = make(parts, type);
      ASSERT_EQ(linear->in_features(), k);
      ASSERT_EQ(linear->out_features(), n);
      EXPECT_GE(linear->nbytes(), static_cast<size_t>(n * k) * (type == ComputeType::f32 ? 4 : 2));
      std::vector<float> row(static_cast<size_t>(k));
      for (int64_t r = 0; r < n; ++r) {
        linear->weight_row(r, row.data());
        ASSERT_TRUE(same_bits(row.data(), &stacked[r * k], k)) << "row " << r << " of " << linear->implementation();
      }
      for (const bool biased : {false, true}) {
        if (biased) linear->set_bias(bias);
        std::vector<float> want(static_cast<size_t>(7 * n));
        for (int64_t m = 0; m < 7; ++m) {
          for (int64_t j = 0; j < n; ++j) {
            for (int64_t i = 0; i < k; ++i) want[m * n + j] += x[m * k + i] * stacked[j * k + i];
            if (biased) want[m * n + j] += bias[j];
          }
        }
        for (const int64_t rows : {1, 7}) {
          const std::vector<float> y = apply(*linear, x, rows);
          ASSERT_TRUE(same_bits(y.data(), want.data(), rows * n)) << linear->implementation() << " " << k << "x" << n;
          LinearScratch scratch;
          Guarded<float> sum(std::vector<float>(static_cast<size_t>(rows * n), 1000.0f));
          linear->forward(x.data(), rows, sum.data(), true, scratch);
          for (int64_t i = 0; i < rows * n; ++i) ASSERT_EQ(sum[i], want[i] + 1000.0f) << linear->implementation();
          ASSERT_TRUE(sum.intact());
        }
      }
    }
  }
}

// Against a double sum over weight_row, within what rounding the activations can cost at most.
TEST_P(LinearTest, RandomValuesWithinTheBoundOfTheirType) {
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{20, 33}, {128, 80}, {200, 48}}) {
    const std::vector<float> w = rng.normals(n * k, 0.1f);
    const std::vector<TensorView> parts = {view_of("w", w, {n, k})};
    for (const Kind& kind : kKinds) {
      const auto linear = make(parts, kind);
      const std::vector<float> x = rng.normals(3 * k), y = apply(*linear, x, 3);
      std::vector<float> row(static_cast<size_t>(k));
      for (int64_t j = 0; j < n; ++j) {
        linear->weight_row(j, row.data());
        for (int64_t m = 0; m < 3; ++m) {
          double sum = 0, bound = 0;
          for (int64_t i = 0; i < k; ++i) {
            float step = kind.type == ComputeType::bf16 ? std::fabs(x[m * k + i]) / 256 : 0.0f;
            for (int64_t g = i / 32 * 32; g < std::min(k, (i / 32 + 1) * 32) && is_integer(kind.type); ++g) {
              step = std::max(step, std::fabs(x[m * k + g]) / 254);
            }
            sum += double{x[m * k + i]} * row[i];
            bound += double{step} * std::fabs(row[i]);
          }
          ASSERT_NEAR(y[m * n + j], sum, 1.001 * bound + 1e-5) << linear->implementation();
        }
        for (int64_t i = 0; i < k; ++i) {  // the weights themselves: exact, or half a step of bf16 or int8
          float step = kind.type == ComputeType::bf16 ? std::fabs(w[j * k + i]) / 256 : 0.0f;
          for (int64_t g = i / 32 * 32; g < std::min(k, (i / 32 + 1) * 32) && is_integer(kind.type); ++g) {
            // int4 clips what is far above the rest of its group, if that makes the squared error smaller.
            const float steps = kind.type == ComputeType::int8 ? 238 : kind.least_bits == 6 ? 40 : 5;
            step = std::max(step, std::fabs(w[j * k + g]) / steps);
          }
          ASSERT_LE(std::fabs(row[i] - w[j * k + i]), step) << linear->implementation();
        }
      }
    }
  }
}

TEST_P(LinearTest, ARowHasTheSameBitsInAnyBatchAndOnAnyThreads) {
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{33, 50}, {64, 160}, {200, 97}, {2600, 72}}) {
    if (k > 1000 && GetParam() < Isa::avx512) continue;  // long sums are cut where oneDNN is used
    const std::vector<float> w = rng.normals(n * k), x = rng.normals(200 * k);
    const std::vector<TensorView> parts = {view_of("w", w, {n, k})};
    for (const Kind& kind : kKinds) {
      const auto linear = make(parts, kind);
      std::vector<float> want;
      for (const int64_t rows : {200, 1, 2, 3, 4, 5, 8, 17, 64, 65}) {
        for (const int threads : {1, 2, 3}) {
          const ThreadScope scope(threads);
          const std::vector<float> y = apply(*linear, x, rows);
          if (want.empty()) want = y;
          ASSERT_TRUE(same_bits(y.data(), want.data(), rows * n))
              << linear->implementation() << " " << k << "x" << n << ", " << rows << " rows, " << threads << " threads";
        }
      }
      // The last row of the batch as the only one, added to zero.
      LinearScratch scratch;
      std::vector<float> last(static_cast<size_t>(n));
      linear->forward(&x[199 * k], 1, last.data(), true, scratch);
      EXPECT_TRUE(same_bits(last.data(), &want[199 * n], n)) << linear->implementation();
    }
  }
}

TEST_P(LinearTest, ARowThatIsNotFiniteLeavesTheOthersAlone) {
  constexpr int64_t kRows = 70, kBad = 66, k = 160, n = 50;
  const std::vector<float> w = rng.normals(n * k);
  std::vector<float> x = rng.normals(kRows * k);
  const std::vector<TensorView> parts = {view_of("w", w, {n, k})};
  for (const Kind& kind : kKinds) {
    const auto linear = make(parts, kind);
    const std::vector<float> want = apply(*linear, x, kRows);
    std::vector<float> bad = x;
    for (int64_t i = 0; i < k; ++i) bad[kBad * k + i] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> y = apply(*linear, bad, kRows);
    EXPECT_TRUE(same_bits(y.data(), want.data(), kBad * n)) << linear->implementation();
    EXPECT_TRUE(same_bits(&y[(kBad + 1) * n], &want[(kBad + 1) * n], (kRows - kBad - 1) * n))
        << linear->implementation();
    for (int64_t i = 0; i < n; ++i) EXPECT_TRUE(std::isnan(y[kBad * n + i])) << linear->implementation();
  }
}

TEST_P(LinearTest, GatedEqualsTheProductThroughSilu) {
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{33, 32}, {64, 160}, {96, 1248}}) {
    const std::vector<float> w = rng.normals(n * k), x = rng.normals(200 * k);
    const std::vector<TensorView> parts = {view_of("w1", w, {n / 2, k}),
                                           {"w3", &w[static_cast<size_t>(n / 2 * k)], DType::f32, {n / 2, k}}};
    for (const Kind& kind : kKinds) {
      const auto linear = make(parts, kind);
      ASSERT_EQ(linear->gates(), !linear->implementation().starts_with("onednn:"));
      if (!linear->gates()) continue;
      const std::vector<float> product = apply(*linear, x, 200);
      std::vector<float> want(static_cast<size_t>(200 * n / 2));
      kernels_for(GetParam()).silu_mul(product.data(), 200, n / 2, want.data(), n / 2);
      for (const int64_t rows : {200, 1, 3, 97}) {
        const ThreadScope scope(rows % 2 == 0 ? 2 : 3);
        LinearScratch scratch;
        Guarded<float> y(std::vector<float>(static_cast<size_t>(rows * n / 2), NAN));
        const auto row = [&](int64_t m, float* out) { std::copy_n(&x[m * k], k, out); };
        linear->forward_gated(row, rows, y.data(), scratch);
        EXPECT_TRUE(y.intact());
        EXPECT_TRUE(same_bits(y.data(), want.data(), rows * n / 2)) << linear->implementation() << " " << rows;
      }
    }
  }
  const std::vector<float> w = rng.normals(48 * 32);  // panels that hold rows of both halves
  EXPECT_FALSE(make({view_of("w", w, {48, 32})}, ComputeType::int8)->gates());
}

TEST_P(LinearTest, GatedForTheNextEqualsBothInTurn) {
  constexpr int64_t kOut = 40;
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{33, 32}, {64, 96}, {96, 608}, {64, 48}}) {
    const std::vector<float> w = rng.normals(2 * n * k), w2 = rng.normals(n * kOut), x = rng.normals(1000 * k);
    const auto row = [&](int64_t m, float* out) { std::copy_n(&x[m * k], k, out); };
    for (const Kind& kind : kKinds) {
      const auto gates = make({view_of("w13", w, {2 * n, k})}, kind), next = make({view_of("w2", w2, {kOut, n})}, kind);
      ASSERT_EQ(gates->gates_for(*next), gates->implementation() == "tiles:bf16" && n % 32 == 0);
      EXPECT_FALSE(gates->gates_for(*make({view_of("w2", w2, {kOut / 2, 2 * n})}, kind)));
      if (!gates->gates_for(*next)) continue;
      for (const int64_t rows : {1000, 200, 1, 3, 97}) {
        const ThreadScope scope(rows % 2 == 0 ? 2 : 3);
        LinearScratch scratch;
        std::vector<float> gated(static_cast<size_t>(rows * n)), want = rng.normals(rows * kOut);
        Guarded<float> y(want);
        gates->forward_gated(row, rows, gated.data(), scratch);
        next->forward(gated.data(), rows, want.data(), true, scratch);
        gates->forward_gated(row, rows, *next, y.data(), true, scratch);
        EXPECT_TRUE(y.intact());
        EXPECT_TRUE(same_bits(y.data(), want.data(), rows * kOut)) << rows << " rows of " << n;
      }
    }
  }
}

TEST_P(LinearTest, SomeOutputsHaveTheBitsOfAll) {
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{33, 50}, {64, 160}, {200, 97}, {64, 1030}}) {
    const std::vector<float> w = rng.normals(n * k), x = rng.normals(k);
    for (const Kind& kind : kKinds) {
      const auto linear = make({view_of("w", w, {n, k})}, kind);
      const std::vector<float> all = apply(*linear, x, 1);
      const auto row = [&](int64_t, float* out) { std::copy_n(x.data(), k, out); };
      for (const int64_t every : {int64_t{1}, int64_t{3}, int64_t{90}, n - 1, n}) {
        std::vector<uint32_t> wanted(static_cast<size_t>((n + 31) / 32));
        for (int64_t i = every - 1; i < n; i += every) wanted[static_cast<size_t>(i / 32)] |= 1u << (i % 32);
        const ThreadScope scope(every % 2 == 0 ? 1 : 3);
        LinearScratch scratch;
        Guarded<float> y(std::vector<float>(static_cast<size_t>(n), NAN));
        linear->forward_some(row, wanted.data(), y.data(), scratch);
        EXPECT_TRUE(y.intact());
        for (int64_t i = 0; i < n; ++i) {
          const float got = y.values()[static_cast<size_t>(i)], want = all[static_cast<size_t>(i)];
          if (i % every == every - 1 || !std::isnan(got)) {
            ASSERT_TRUE(same_bits(&got, &want, 1)) << linear->implementation() << " " << n << " every " << every;
          }
        }
        // What it is for: far fewer products than all.
        if (every == n && n > 1000) EXPECT_TRUE(std::isnan(y.values()[0])) << linear->implementation();
      }
    }
  }
}

TEST_P(LinearTest, ProductsWithWhatIsNotFiniteAreNotFinite) {
  constexpr int64_t kRows = 20, kCols = 100, kInputs = 6;
  const std::vector<float> w = rng.normals(kRows * kCols);
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const Kind& kind : kKinds) {
    const auto linear = make({view_of("w", w, {kRows, kCols})}, kind);
    const std::vector<float> x = rng.normals(kInputs * kCols), clean = apply(*linear, x, kInputs);
    for (const float bad : {inf, -inf, nan, -nan}) {
      for (const int64_t at : {0, 31, 63, 64, 99}) {
        std::vector<float> spoilt = x;
        spoilt[2 * kCols + at] = bad;
        const std::vector<float> y = apply(*linear, spoilt, kInputs);
        for (int64_t i = 0; i < kInputs * kRows; ++i) {
          if (i / kRows == 2) {
            ASSERT_FALSE(std::isfinite(y[i])) << linear->implementation() << " " << bad << " at " << at;
          } else {
            ASSERT_EQ(y[i], clean[i]) << linear->implementation();
          }
        }
      }
    }
  }
}

TEST(Linear, BiasOfAnotherLengthAndUnknownNames) {
  const std::vector<float> w(6, 1.0f);
  const std::vector<TensorView> parts = {view_of("w", w, {2, 3})};
  const auto linear = make_linear(parts, ComputeType::f32, Isa::reference);
  EXPECT_TRUE(throws_naming("bias has 3 values, expected 2", [&] { linear->set_bias({1, 2, 3}); }));
  LinearScratch scratch;
  linear->forward(nullptr, 0, nullptr, false, scratch);  // no rows: nothing is touched
  for (const ComputeType type : kTypes) EXPECT_EQ(compute_type_from_name(compute_type_name(type)), type);
  EXPECT_TRUE(throws_naming("'float8'", [] { compute_type_from_name("float8"); }));
}

}  // namespace
}  // namespace lfm::testing
