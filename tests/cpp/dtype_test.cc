// bf16 and fp16 conversions against their definition, over all bit patterns and all rounding borders.
#include "base/dtype.h"

#include <cmath>
#include <limits>

#include "base/tensor.h"
#include "testing.h"

namespace lfm::testing {
namespace {

// A binary float of 1 sign, `exponent` and `mantissa` bits, from its definition.
double decode(uint32_t bits, int exponent, int mantissa) {
  const int bias = (1 << (exponent - 1)) - 1;
  const double sign = bits >> (exponent + mantissa) != 0 ? -1 : 1;
  const int e = static_cast<int>(bits >> mantissa) & ((1 << exponent) - 1);
  const double fraction = std::ldexp(bits & ((1u << mantissa) - 1), -mantissa);
  if (e == (1 << exponent) - 1) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * (e == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, e - bias));
}

struct Format {
  const char* name;
  int exponent, mantissa;
  float (*widen)(uint16_t);
  uint16_t (*narrow)(float);
};
const Format kFormats[] = {{"bf16", 8, 7, bf16_to_f32, f32_to_bf16}, {"f16", 5, 10, f16_to_f32, f32_to_f16}};

TEST(DType, WidensEveryBitPattern) {
  for (const Format& f : kFormats) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const float got = f.widen(static_cast<uint16_t>(bits));
      const double want = decode(bits, f.exponent, f.mantissa);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(got)) << f.name << " " << bits;
      } else {
        ASSERT_EQ(got, want) << f.name << " " << bits;
        ASSERT_EQ(std::signbit(got), std::signbit(want)) << f.name << " " << bits;
      }
    }
  }
}

TEST(DType, RoundTripsEveryBitPattern) {
  for (const Format& f : kFormats) {
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const float wide = f.widen(static_cast<uint16_t>(bits));
      const uint16_t back = f.narrow(wide);
      if (std::isnan(wide)) {
        ASSERT_TRUE(std::isnan(f.widen(back))) << f.name << " " << bits;
      } else {
        ASSERT_EQ(back, bits) << f.name;
      }
    }
  }
}

// Between each two neighbours a < b: the middle goes to the even one, anything nearer to a or b goes there.
// The upper neighbour of the largest finite value is infinity, whose border is half a step above it.
TEST(DType, RoundsToNearestEven) {
  for (const Format& f : kFormats) {
    const uint32_t infinity = ((1u << f.exponent) - 1) << f.mantissa;
    for (uint32_t low = 0; low < infinity; ++low) {
      const uint32_t high = low + 1;
      const double a = decode(low, f.exponent, f.mantissa);
      const double step = a - (low == 0 ? 0 : decode(low - 1, f.exponent, f.mantissa));
      const double b = high == infinity ? a + step : decode(high, f.exponent, f.mantissa);
      const float middle = static_cast<float>((a + b) / 2);
      ASSERT_EQ(middle, (a + b) / 2) << f.name << " " << low;
      for (const uint32_t sign : {0u, 0x8000u}) {
        const float s = sign != 0 ? -1.0f : 1.0f;
        ASSERT_EQ(f.narrow(s * middle), sign | (low % 2 == 0 ? low : high)) << f.name << " " << low;
        ASSERT_EQ(f.narrow(s * std::nextafter(middle, 0.0f)), sign | low) << f.name << " " << low;
        ASSERT_EQ(f.narrow(s * std::nextafter(middle, INFINITY)), sign | high) << f.name << " " << low;
      }
    }
  }
}

TEST(DType, OverflowTinyAndNaN) {
  constexpr float kMax = std::numeric_limits<float>::max(), kTiny = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(f32_to_bf16(kMax), 0x7f80);
  EXPECT_EQ(f32_to_bf16(-kMax), 0xff80);
  EXPECT_EQ(f32_to_f16(kMax), 0x7c00);
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-INFINITY), 0xfc00);
  EXPECT_EQ(f32_to_f16(kTiny), 0);
  EXPECT_EQ(f32_to_f16(-kTiny), 0x8000);
  EXPECT_EQ(f32_to_bf16(kTiny), 0);
  // NaN whose payload lies only in the bits that are cut off must not become infinity.
  for (const uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0x7fc00000u}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(nan)))) << bits;
    EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(nan)))) << bits;
  }
}

TEST(DType, ReadsRowsOfEveryStoredType) {
  constexpr int64_t kCols = 64;
  const std::vector<float> wide = Rng(1).normals(3 * kCols);
  std::vector<uint16_t> half(wide.size()), brain(wide.size());
  for (size_t i = 0; i < wide.size(); ++i) half[i] = f32_to_f16(wide[i]), brain[i] = f32_to_bf16(wide[i]);
  std::vector<uint8_t> blocks(static_cast<size_t>(3 * row_bytes(DType::q8_0, kCols)));
  for (size_t b = 0; b < blocks.size() / block_bytes(DType::q8_0); ++b) {
    const uint16_t scale = f32_to_f16(0.25f * static_cast<float>(b + 1));
    std::memcpy(&blocks[b * block_bytes(DType::q8_0)], &scale, 2);
    for (size_t i = 0; i < 32; ++i) blocks[b * block_bytes(DType::q8_0) + 2 + i] = static_cast<uint8_t>(4 * i + b);
  }
  std::vector<float> row(kCols);
  for (int64_t r = 0; r < 3; ++r) {
    ASSERT_TRUE(read_row({"w", wide.data(), DType::f32, {3, kCols}}, r, row.data()));
    EXPECT_TRUE(same_bits(row.data(), wide.data() + r * kCols, kCols));
    ASSERT_TRUE(read_row({"w", half.data(), DType::f16, {3, kCols}}, r, row.data()));
    for (int64_t i = 0; i < kCols; ++i) EXPECT_EQ(row[i], f16_to_f32(half[r * kCols + i]));
    ASSERT_TRUE(read_row({"w", brain.data(), DType::bf16, {3, kCols}}, r, row.data()));
    for (int64_t i = 0; i < kCols; ++i) EXPECT_EQ(row[i], bf16_to_f32(brain[r * kCols + i]));
    ASSERT_TRUE(read_row({"w", blocks.data(), DType::q8_0, {3, kCols}}, r, row.data()));
    for (int64_t i = 0; i < kCols; ++i) {
      const int64_t b = r * 2 + i / 32;
      const auto q = static_cast<int8_t>(static_cast<uint8_t>(4 * (i % 32) + b));
      EXPECT_EQ(row[i], 0.25f * static_cast<float>(b + 1) * static_cast<float>(q));
    }
  }
}

TEST(DType, ReadAllNamesATensorThatIsNotFinite) {
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    for (const size_t at : {0u, 5u, 11u}) {
      std::vector<float> values(12, 1.0f);
      values[at] = bad;
      EXPECT_TRUE(throws_naming("'norm.weight'", [&] { read_all(view_of("norm.weight", values, {3, 4})); }));
    }
  }
}

}  // namespace
}  // namespace lfm::testing
