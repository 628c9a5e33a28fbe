// Linear layers: what make_linear builds for each type on each ISA that is in use or below it.
#include "kernels/linear.h"

#include <algorithm>

#include "base/parallel.h"
#include "testing.h"

namespace lfm::testing {
namespace {

constexpr ComputeType kTypes[] = {ComputeType::f32, ComputeType::bf16, ComputeType::int8, ComputeType::int4};

// A type, and the bits that float weights keep at least.
struct Kind {
  ComputeType type;
  int least_bits = 4;
};
constexpr Kind kKinds[] = {
    {ComputeType::f32}, {ComputeType::bf16}, {ComputeType::int8}, {ComputeType::int4}, {ComputeType::int4, 6}};

bool is_integer(ComputeType type) { return type == ComputeType::int8 || type == ComputeType::int4; }

// oneDNN is limited to active_isa() once per process, so higher levels are not asked for.
class LinearTest : public ::testing::TestWithParam<Isa> {
 protected:
  std::unique_ptr<Linear> make(const std::vector<TensorView>& parts, ComputeType type) const {
    auto linear = make_linear(parts, type, GetParam());
    const std::string name(linear->implementation());
    // oneDNN's other matmuls are slow references or give a row other bits in another batch.
    const bool tiles = GetParam() >= Isa::amx && type == ComputeType::bf16;
    if (tiles) EXPECT_EQ(name, "tiles:bf16");
    EXPECT_TRUE(tiles || name.starts_with("onednn:brg:") || name.starts_with("panels:")) << name;
    if (GetParam() < Isa::avx512 || is_integer(type)) EXPECT_TRUE(name.starts_with("panels:")) << name;
    return linear;
  }
  std::unique_ptr<Linear> make(std::vector<TensorView> parts, const Kind& kind) const {
    for (TensorView& part : parts) part.least_bits = kind.least_bits;
    auto linear = make(parts, kind.type);
    EXPECT_EQ(linear->implementation() == "panels:q6", kind.least_bits == 6);
    return linear;
  }
  Rng rng{5};
};

INSTANTIATE_TEST_SUITE_P(Isas, LinearTest, ::testing::ValuesIn(isas_up_to(active_isa())),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

std::vector<float> apply(const Linear& linear, const std::vector<float>& x, int64_t rows) {
  LinearScratch scratch;
  Guarded<float> y(std::vector<float>(static_cast<size_t>(rows * linear.out_features()), NAN));
  linear.forward(x.data(), rows, y.data(), false, scratch);
  EXPECT_TRUE(y.intact());
  return y.values();
}

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

TEST_P(LinearTest, NotFiniteWeightsNameTheTensor) {
  const std::vector<float> good(40 * 20, 1.0f);
  for (const ComputeType type : kTypes) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> w = good;
      w[777] = bad;
      const std::vector<TensorView> parts = {view_of("a.weight", good, {20, 40}), view_of("b.weight", w, {20, 40})};
      EXPECT_TRUE(throws_naming("'b.weight'", [&] { make_linear(parts, type, GetParam()); }))
          << compute_type_name(type) << " " << bad;
    }
  }
}

TEST_P(LinearTest, ValuesTooLargeForTheTypeNameTheTensor) {
  std::vector<float> w(40 * 20, 1.0f);
  w[3] = -std::numeric_limits<float>::max();
  const std::vector<TensorView> parts = {view_of("big.weight", w, {20, 40})};
  EXPECT_NO_THROW(make_linear(parts, ComputeType::f32, GetParam()));
  for (const ComputeType type :
       {ComputeType::bf16, ComputeType::int8, ComputeType::int4}) {  // infinite as bf16, and as an fp16 scale
    EXPECT_TRUE(throws_naming("'big.weight'", [&] { make_linear(parts, type, GetParam()); }))
        << compute_type_name(type);
  }
}

TEST_P(LinearTest, StoredTypesAndQ8WithoutASecondRounding) {
  constexpr int64_t kRows = 21, kCols = 96;
  std::vector<uint16_t> half(kRows * kCols), brain(half.size());
  for (uint16_t& h : half) h = f32_to_f16(rng.normal());
  for (uint16_t& b : brain) b = f32_to_bf16(rng.normal());
  std::vector<uint8_t> blocks(kRows * kCols / 32 * block_bytes(DType::q8_0));
  std::vector<float> q8(half.size());
  for (size_t b = 0; b < blocks.size() / block_bytes(DType::q8_0); ++b) {
    const uint16_t scale = f32_to_f16(rng.normal() * 0.02f);
    std::memcpy(&blocks[b * block_bytes(DType::q8_0)], &scale, 2);
    for (size_t i = 0; i < 32; ++i) {
      const int64_t q = rng.below(256) - 128;  // -128 too: other writers of GGUF use it
      blocks[b * block_bytes(DType::q8_0) + 2 + i] = static_cast<uint8_t>(q);
      q8[b * 32 + i] = f16_to_f32(scale) * static_cast<float>(q);
    }
  }
  std::vector<float> row(kCols);
  const auto from_q8 = make({{"w", blocks.data(), DType::q8_0, {kRows, kCols}}}, ComputeType::int8);
  const auto from_half = make({{"w", half.data(), DType::f16, {kRows, kCols}}}, ComputeType::f32);
  const auto from_brain = make({{"w", brain.data(), DType::bf16, {kRows, kCols}}}, ComputeType::bf16);
  const auto wide_q8 = make({{"w", blocks.data(), DType::q8_0, {kRows, kCols}}}, ComputeType::f32);
  for (int64_t r = 0; r < kRows; ++r) {
    from_q8->weight_row(r, row.data());
    for (int64_t i = 0; i < kCols; ++i) ASSERT_EQ(row[i], q8[r * kCols + i]);
    wide_q8->weight_row(r, row.data());
    for (int64_t i = 0; i < kCols; ++i) ASSERT_EQ(row[i], q8[r * kCols + i]);
    from_half->weight_row(r, row.data());
    for (int64_t i = 0; i < kCols; ++i) ASSERT_EQ(row[i], f16_to_f32(half[r * kCols + i]));
    from_brain->weight_row(r, row.data());
    for (int64_t i = 0; i < kCols; ++i) ASSERT_EQ(row[i], bf16_to_f32(brain[r * kCols + i]));
  }
  // Integers up to 127 with a 127 in each group quantize to themselves: the product is that of the stored values.
  std::vector<float> x(2 * kCols);
  for (size_t i = 0; i < x.size(); ++i) x[i] = i % 32 == 0 ? 127.0f : static_cast<float>(rng.below(255) - 127);
  const std::vector<float> y = apply(*from_q8, x, 2);
  for (int64_t m = 0; m < 2; ++m) {
    for (int64_t n = 0; n < kRows; ++n) {
      double sum = 0, size = 0;
      for (int64_t i = 0; i < kCols; ++i) {
        sum += double{x[m * kCols + i]} * q8[n * kCols + i];
        size += std::fabs(double{x[m * kCols + i]} * q8[n * kCols + i]);
      }
      ASSERT_NEAR(y[m * kRows + n], sum, 1e-6 * size);
    }
  }
  const uint16_t infinite = 0x7c00;
  std::memcpy(&blocks[5 * block_bytes(DType::q8_0)], &infinite, 2);
  for (const ComputeType type : kTypes) {
    EXPECT_TRUE(throws_naming("'w'", [&] { make({{"w", blocks.data(), DType::q8_0, {kRows, kCols}}}, type); }));
  }
}

// Rows of random blocks; every fp16 among them (their offsets in a block: halves) is `scale` times a random number.
struct Blocks {
  Blocks(Rng& rng, DType dtype, int64_t rows, int64_t cols, float scale = 0.02f)
      : bytes(static_cast<size_t>(rows * row_bytes(dtype, cols))),
        halves(dtype == DType::q6_k                                                   ? std::vector{208}
               : dtype == DType::q8_0 || dtype == DType::q4_0 || dtype == DType::q5_0 ? std::vector{0}
                                                                                      : std::vector{0, 2}),
        view{"w", bytes.data(), dtype, {rows, cols}} {
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng.below(256));
    for (int64_t b = 0; b < rows * cols / block_values(dtype); ++b) {
      for (size_t i = 0; i < halves.size(); ++i) set_half(b, i, f32_to_f16(rng.normal() * scale));
    }
  }
  void set_half(int64_t block, size_t which, uint16_t bits) {
    std::memcpy(&bytes[block * block_bytes(view.dtype) + halves[which]], &bits, 2);
  }

  std::vector<uint8_t> bytes;
  std::vector<int> halves;
  TensorView view;
};

constexpr DType kBlockTypes[] = {DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0,
                                 DType::q5_1, DType::q4_k, DType::q5_k, DType::q6_k};

// Largest |a - b| of all groups of 32, as a fraction of the largest |b| of its group.
float worst_in_group(const Linear& linear, int64_t row, const float* want) {
  std::vector<float> found(static_cast<size_t>(linear.in_features()));
  linear.weight_row(row, found.data());
  float worst = 0.0f;
  for (int64_t g = 0; g < linear.in_features(); g += kGroup) {
    float error = 0.0f, top = 0.0f;
    for (int64_t i = g; i < std::min(linear.in_features(), g + kGroup); ++i) {
      error = std::max(error, std::fabs(found[i] - want[i]));
      top = std::max(top, std::fabs(want[i]));
    }
    worst = std::max(worst, error == 0.0f ? 0.0f : error / top);
  }
  return worst;
}

TEST_P(LinearTest, BlocksOfGgufKeepTheirIntegers) {
  constexpr int64_t kRows = 21, kCols = 512;
  std::vector<float> want(kCols);
  for (const DType dtype : kBlockTypes) {
    Blocks blocks(rng, dtype, kRows, kCols);
    for (const ComputeType type : kTypes) {
      const auto linear = make({blocks.view}, type);
      const bool four_bits = type == ComputeType::int4 && dtype != DType::q8_0 && dtype != DType::q5_0 &&
                             dtype != DType::q5_1 && dtype != DType::q5_k && dtype != DType::q6_k;
      if (is_integer(type)) {
        const bool six_bits = type == ComputeType::int4 && dtype == DType::q6_k;
        EXPECT_EQ(linear->implementation(), six_bits               ? "panels:q6"
                                            : !four_bits           ? "panels:q8"
                                            : dtype == DType::q4_0 ? "panels:q4"
                                                                   : "panels:q4_mins");
      }
      float bound = 0.0f;                                 // of types that are taken over as they are
      if (type == ComputeType::bf16) bound = 1.0f / 256;  // half a step
      if (type == ComputeType::int8 && dtype != DType::q8_0 && dtype != DType::q4_0 && dtype != DType::q5_0) {
        bound = 1.0f / 238;
      }
      if (type == ComputeType::int4 && (dtype == DType::q5_1 || dtype == DType::q5_k)) bound = 1.0f / 238;
      if (type == ComputeType::int4 && dtype == DType::q4_k) bound = 3e-3f;  // scale and minimum may nearly cancel
      for (int64_t r = 0; r < kRows; ++r) {
        ASSERT_TRUE(read_row(blocks.view, r, want.data()));
        ASSERT_LE(worst_in_group(*linear, r, want.data()), bound)
            << dtype_name(dtype) << " as " << compute_type_name(type) << ", row " << r;
      }
    }
  }
}

TEST_P(LinearTest, PartsOfSeveralTypesTakeTheWidest) {
  constexpr int64_t kCols = 256;
  Blocks q4_0(rng, DType::q4_0, 5, kCols), q4_1(rng, DType::q4_1, 7, kCols), q4_k(rng, DType::q4_k, 3, kCols),
      q6_k(rng, DType::q6_k, 9, kCols), q5_0(rng, DType::q5_0, 2, kCols);
  const std::vector<float> floats = rng.normals(4 * kCols);
  TensorView wide = view_of("w", floats, {4, kCols});
  wide.least_bits = 8;
  const TensorView narrow = view_of("w", floats, {4, kCols});
  TensorView six_bits = narrow;
  six_bits.least_bits = 6;
  struct Case {
    std::vector<TensorView> parts;
    const char* implementation;
    float bound;
  };
  for (const Case& c : {Case{{q4_0.view, q4_0.view}, "panels:q4", 0.0f},
                        {{q4_0.view, q4_1.view}, "panels:q4_mins", 1e-6f},  // sums of scale and minimum round once
                        {{q4_k.view, q4_0.view, q4_1.view}, "panels:q4_mins", 3e-3f},
                        {{q4_k.view, q4_k.view, q6_k.view}, "panels:q8", 1.0f / 238},
                        {{q5_0.view, q4_0.view}, "panels:q8", 0.0f},
                        {{q6_k.view, q6_k.view}, "panels:q6", 0.0f},
                        {{six_bits, six_bits}, "panels:q6", 0.03f},
                        {{six_bits, q4_0.view}, "panels:q8", 1.0f / 238},
                        {{wide, q4_1.view}, "panels:q8", 1.0f / 238},
                        {{narrow, q4_0.view}, "panels:q4", 0.2f}}) {
    const auto linear = make(c.parts, ComputeType::int4);
    EXPECT_EQ(linear->implementation(), c.implementation);
    int64_t row = 0;
    std::vector<float> want(kCols);
    for (const TensorView& part : c.parts) {
      for (int64_t r = 0; r < part.rows(); ++r, ++row) {
        ASSERT_TRUE(read_row(part, r, want.data()));
        ASSERT_LE(worst_in_group(*linear, row, want.data()), c.bound)
            << dtype_name(part.dtype) << " in " << c.implementation << ", row " << row;
      }
    }
  }
}

TEST_P(LinearTest, ExtremeScalesOfBlocks) {
  constexpr int64_t kRows = 3, kCols = 256;
  std::vector<float> want(kCols);
  for (const DType dtype : kBlockTypes) {
    for (const uint16_t bits : {uint16_t{0}, uint16_t{1}, uint16_t{0x8001}, uint16_t{0x03ff}, uint16_t{0x7bff}}) {
      Blocks blocks(rng, dtype, kRows, kCols);
      for (size_t i = 0; i < blocks.halves.size(); ++i) blocks.set_half(0, i, bits);
      ASSERT_TRUE(read_row(blocks.view, 0, want.data()));
      const bool products = dtype == DType::q4_k || dtype == DType::q5_k || dtype == DType::q6_k;
      const bool fits = !(products && bits == 0x7bff);  // 63 times the largest half is none
      if (!fits) continue;
      for (const ComputeType type : {ComputeType::int8, ComputeType::int4}) {
        const auto linear = make({blocks.view}, type);
        std::vector<float> found(kCols);
        linear->weight_row(0, found.data());
        float top = 0.0f;
        for (const float v : want) top = std::max(top, std::fabs(v));
        for (int64_t i = 0; i < kCols; ++i) {  // scales below 2^-24 are rounded to that grid or to zero
          ASSERT_NEAR(found[i], want[i], std::max(top / 238, 128 * 0x1p-24f)) << dtype_name(dtype);
        }
      }
    }
    for (const uint16_t bits : {uint16_t{0x7c00}, uint16_t{0xfc00}, uint16_t{0x7e00}}) {
      for (size_t which = 0; which < Blocks(rng, dtype, 1, kCols).halves.size(); ++which) {
        Blocks blocks(rng, dtype, kRows, kCols);
        blocks.set_half(kRows * kCols / block_values(dtype) - 1, which, bits);
        for (const ComputeType type : kTypes) {
          EXPECT_TRUE(throws_naming("'w'", [&] { make({blocks.view}, type); }))
              << dtype_name(dtype) << " as " << compute_type_name(type) << ", half " << which;
        }
      }
    }
  }
}

// Groups of zero scale, and halves of zero step, with other integers beside them.
TEST_P(LinearTest, ZeroScalesOfBlocksMultiplyToZero) {
  constexpr int64_t kRows = 20, kCols = 512, kInputs = 5;
  std::vector<float> want(kCols);
  for (const DType dtype : kBlockTypes) {
    Blocks blocks(rng, dtype, kRows, kCols);
    const int64_t count = kRows * kCols / block_values(dtype), bytes = block_bytes(dtype);
    for (int64_t b = 0; b < count; b += 2) {
      if (dtype == DType::q6_k) {
        for (int64_t i = 192; i < 208; i += 1 + rng.below(3)) blocks.bytes[static_cast<size_t>(b * bytes + i)] = 0;
      } else {
        blocks.set_half(b, 0, b % 4 == 0 ? 0 : 0x8000);
      }
    }
    // Of many sizes: exponents of activations differ.
    std::vector<float> x = rng.normals(kInputs * kCols);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= std::ldexp(1.0f, -static_cast<int>(i / 32 % 7));
    for (const ComputeType type : {ComputeType::int8, ComputeType::int4}) {
      const auto linear = make({blocks.view}, type);
      const std::vector<float> y = apply(*linear, x, kInputs);
      for (int64_t n = 0; n < kRows; ++n) {
        ASSERT_TRUE(read_row(blocks.view, n, want.data()));
        for (int64_t m = 0; m < kInputs; ++m) {
          double sum = 0, size = 0;
          for (int64_t i = 0; i < kCols; ++i) {
            sum += double{x[m * kCols + i]} * want[i];
            size += std::fabs(double{x[m * kCols + i]} * want[i]);
          }
          ASSERT_NEAR(y[m * kRows + n], sum, 0.02 * size) << dtype_name(dtype) << " as " << compute_type_name(type);
        }
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

TEST_P(LinearTest, PackedWeightsMakeTheSameLayer) {
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{33, 50}, {256, 16}, {600, 97}}) {
    const std::vector<float> w = rng.normals(n * k), x = rng.normals(9 * k);
    for (const Kind& kind : kKinds) {
      if (!is_integer(kind.type)) continue;
      const auto linear = make({view_of("w", w, {n, k})}, kind);
      const std::optional<PackedWeights> packed = linear->packed();
      ASSERT_TRUE(packed.has_value());
      size_t bytes = 0;
      for (const auto& part : packed->parts) bytes += part.size();
      EXPECT_EQ(bytes, linear->nbytes());
      const auto again = make_linear(*packed, GetParam());
      EXPECT_EQ(again->implementation(), linear->implementation());
      const std::vector<float> want = apply(*linear, x, 9), got = apply(*again, x, 9);
      EXPECT_TRUE(same_bits(got, want)) << linear->implementation();
      PackedWeights wrong = *packed;
      wrong.parts.back() = wrong.parts.back().first(wrong.parts.back().size() - 2);
      EXPECT_TRUE(throws_naming("bytes instead of", [&] { make_linear(wrong, GetParam()); }));
      wrong.parts.pop_back();
      EXPECT_TRUE(throws_naming("parts instead of", [&] { make_linear(wrong, GetParam()); }));
    }
  }
}

// The values of a file times activations that int8 holds exactly.
TEST_P(LinearTest, SixBitsOfGgufMultiplyExactly) {
  constexpr int64_t kRows = 21, kCols = 768, kInputs = 11;
  Blocks blocks(rng, DType::q6_k, kRows, kCols);
  const auto linear = make({blocks.view}, ComputeType::int4);
  std::vector<float> x(kInputs * kCols), row(kCols), stored(kCols);
  for (size_t i = 0; i < x.size(); ++i) x[i] = i % 32 == 0 ? 127.0f : static_cast<float>(rng.below(255) - 127);
  const std::vector<float> y = apply(*linear, x, kInputs);
  for (int64_t n = 0; n < kRows; ++n) {
    ASSERT_TRUE(read_row(blocks.view, n, stored.data()));
    linear->weight_row(n, row.data());
    ASSERT_EQ(row, stored);  // where a step is zero, signs of zeros may differ
    for (int64_t m = 0; m < kInputs; ++m) {
      double sum = 0, size = 0;
      for (int64_t i = 0; i < kCols; ++i) {
        sum += double{x[m * kCols + i]} * stored[i];
        size += std::fabs(double{x[m * kCols + i]} * stored[i]);
      }
      ASSERT_NEAR(y[m * kRows + n], sum, 1e-6 * size);
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
