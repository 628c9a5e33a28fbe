// Weights of linear layers: what becomes of each stored type, and of values and scales at the edges.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "linear_testing.h"

namespace lfm::testing {
namespace {

class LinearWeightsTest : public LinearTest {};

INSTANTIATE_TEST_SUITE_P(Isas, LinearWeightsTest, ::testing::ValuesIn(isas_up_to(active_isa())),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

TEST_P(LinearWeightsTest, NotFiniteWeightsNameTheTensor) {
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

TEST_P(LinearWeightsTest, ValuesTooLargeForTheTypeNameTheTensor) {
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

TEST_P(LinearWeightsTest, StoredTypesAndQ8WithoutASecondRounding) {
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

TEST_P(LinearWeightsTest, BlocksOfGgufKeepTheirIntegers) {
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

TEST_P(LinearWeightsTest, PartsOfSeveralTypesTakeTheWidest) {
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

TEST_P(LinearWeightsTest, ExtremeScalesOfBlocks) {
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
TEST_P(LinearWeightsTest, ZeroScalesOfBlocksMultiplyToZero) {
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

TEST_P(LinearWeightsTest, PackedWeightsMakeTheSameLayer) {
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
TEST_P(LinearWeightsTest, SixBitsOfGgufMultiplyExactly) {
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

}  // namespace
}  // namespace lfm::testing
