// The kernels of int8, 6-bit and int4 weights, as kernels_test.cc does it. Integers are exact and fp32 runs in a fixed
// order with fma: every table must give the reference's bits.
#include <algorithm>

#include "base/dtype.h"
#include "kernels/kernels.h"
#include "testing.h"

namespace lfm::testing {
namespace {

class QuantKernelsTest : public ::testing::TestWithParam<Isa> {
 protected:
  const Kernels& kernels = kernels_for(GetParam());
  const Kernels& reference = kReferenceKernels;
  Rng rng{17};
};

INSTANTIATE_TEST_SUITE_P(Isas, QuantKernelsTest, ::testing::ValuesIn(isas_up_to(detected_isa())),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

constexpr Q8Kind kKinds[] = {kQ8Kind, kQ6Kind, kQ4Kind, kMinsKind};

struct Quantized {
  Quantized(const Kernels& kernels, const std::vector<float>& x, Q8Kind kind, int64_t row_stride)
      : groups((static_cast<int64_t>(x.size()) + 31) / 32),
        stride(row_stride),
        values(groups * 32),
        scales(groups * stride),
        sums(groups * kind.per_group * stride) {
    kernels.quantize_q8(x.data(), static_cast<int64_t>(x.size()), kind, values.data(), scales.data(), sums.data(),
                        stride, row_scale.data());
  }
  int64_t groups, stride;
  Guarded<int8_t> values;
  Guarded<float> scales;
  Guarded<int32_t> sums;
  Guarded<float> row_scale{1};
};

TEST_P(QuantKernelsTest, QuantizeQ8) {
  for (const int64_t n : {1, 5, 31, 32, 33, 40, 64, 100, 129, 300}) {
    // Zero, the smallest numbers (1 / scale is infinite), ordinary ones, the largest.
    for (const float size : {0.0f, 1e-44f, 1e-39f, 1e-37f, 1e-27f, 1e-26f, 1.0f, 1e5f, 3e37f}) {
      std::vector<float> x = rng.normals(n, size);
      for (int64_t i = 64; i < n; ++i) x[i] *= i < 96 ? 0.0f : i < 128 ? 1e-4f : 1e-12f;
      for (const Q8Kind kind : kKinds) {
        for (const int64_t stride : {1, 3}) {
          const Quantized got(kernels, x, kind, stride), want(reference, x, kind, stride);
          const auto& [groups, row_stride, values, scales, sums, row_scale] = got;
          ASSERT_TRUE(same_bits(values.values(), want.values.values())) << n << " of size " << size;
          ASSERT_TRUE(values.intact() && scales.intact() && sums.intact() && row_scale.intact());
          ASSERT_EQ(row_scale.untouched(0), !kind.powers);
          for (int64_t g = 0; g < groups; ++g) {
            const float scale = scales[g * stride];
            ASSERT_EQ(scale, want.scales[g * stride]) << n << " of size " << size;
            for (int64_t gap = 1; gap < stride; ++gap) ASSERT_TRUE(scales.untouched(g * stride + gap));
            if (kind.powers) {
              int exponent;
              ASSERT_EQ(std::frexp(scale, &exponent), 0.5f);
              ASSERT_TRUE(scale >= kLeastPower && scale <= 1.0f);
            }
            const double whole = kind.powers ? double{scale} * row_scale[0] : scale;
            int32_t total[2] = {0, 0};
            for (int64_t i = g * 32; i < (g + 1) * 32; ++i) {
              total[i % 32 * kind.per_group / 32] += values[i] * kind.factor;
              ASSERT_LE(std::abs(int{values[i]}), 127) << n << " of size " << size;
              const double v = i < n ? x[static_cast<size_t>(i)] : 0.0;
              // Half a step, and what a scale or its inverse in fp32 loses near the ends of the range.
              ASSERT_NEAR(whole * values[i], v, 0.5001 * whole + (kind.powers ? 1e-27 : 1e-36)) << n << " of " << size;
            }
            for (int64_t part = 0; part < kind.per_group; ++part) {
              const int64_t at = (g * kind.per_group + part) * stride;
              ASSERT_EQ(sums[at], total[part]) << n << " of size " << size;
              for (int64_t gap = 1; gap < stride; ++gap) ASSERT_TRUE(sums.untouched(at + gap));
            }
          }
          ASSERT_EQ(row_scale[0], want.row_scale[0]);
        }
      }
    }
  }
}

TEST_P(QuantKernelsTest, WhatIsNotFiniteHasValuesOfZero) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const Q8Kind kind : kKinds) {
    for (const float bad : {inf, -inf, nan, -nan}) {
      for (const size_t at : {0, 40, 130}) {
        std::vector<float> x = rng.normals(131);
        x[at] = bad;
        for (const Kernels* table : {&kernels, &reference}) {
          const Quantized q(*table, x, kind, 1);
          const int64_t group = static_cast<int64_t>(at) / 32;  // of powers it is the whole row
          for (int64_t g = kind.powers ? 0 : group; g < (kind.powers ? q.groups : group + 1); ++g) {
            for (int64_t i = 0; i < 32; ++i) ASSERT_EQ(q.values[g * 32 + i], 0);
            for (int64_t i = 0; i < kind.per_group; ++i) ASSERT_EQ(q.sums[g * kind.per_group + i], 0);
            ASSERT_TRUE(kind.powers ? q.scales[g] == 1.0f : std::isnan(q.scales[g]));
          }
          if (kind.powers) ASSERT_TRUE(std::isnan(q.row_scale[0]));
        }
      }
    }
  }
}

TEST_P(QuantKernelsTest, PowersAreAsFineAsTheyMayBe) {
  std::vector<float> x(5 * 32, 0.0f);
  const float maxima[] = {8.0f, 4.0f, 4.001f, 3.0f, 1e-5f};
  for (size_t g = 0; g < 5; ++g) x[g * 32 + g] = -maxima[g];
  const Quantized q(kernels, x, kQ4Kind, 1);
  EXPECT_EQ(q.row_scale[0], 8.0f / 127.0f);
  const float want[] = {1.0f, 0.5f, 1.0f, 0.5f, 0x1p-19f};
  for (int64_t g = 0; g < 5; ++g) EXPECT_EQ(q.scales[g], want[g]) << g;
  EXPECT_EQ(q.values[0], -127);
  EXPECT_EQ(q.values[33], -127);
}

struct QuantCase {
  const char* name;
  decltype(Kernels::gemm_q8) Kernels::* gemm;
  int64_t group_bytes;  // of a panel
  bool mins;
  Q8Kind kind;
};
constexpr QuantCase kQuantCases[] = {{"q8", &Kernels::gemm_q8, 512, false, kQ8Kind},
                                     {"q4", &Kernels::gemm_q4, 256, false, kQ4Kind},
                                     {"q4 with mins", &Kernels::gemm_q4, 256, true, kMinsKind},
                                     {"q6", &Kernels::gemm_q6, 384, false, kQ6Kind}};
constexpr const QuantCase& kQ6Case = kQuantCases[3];

// Weight i of a group from its definition in kernels.h. scale: of 6 bits times the step.
double quant_weight(const QuantCase& c, const std::vector<uint8_t>& values, float scale, float min, int64_t block,
                    int64_t lane, int64_t i) {
  if (c.group_bytes == 384) {
    const uint8_t* at = &values[(block * 2 + i / 16) * 192 + lane * 4 + i % 4];
    const int quad = i % 16 / 4, last = (at[0] >> 6) * 16 + (at[64] >> 6) * 4 + (at[128] >> 6);
    return double{scale} * ((quad < 3 ? at[quad * 64] % 64 : last) - 32);
  }
  if (c.group_bytes == 512) return double{scale} * (values[block * 512 + (i / 4 * 16 + lane) * 4 + i % 4] - 128);
  const int byte = values[block * 256 + (i / 8 * 16 + lane) * 4 + i % 4], q = i % 8 < 4 ? byte & 15 : byte >> 4;
  return c.mins ? double{scale} * q + min : double{scale} * (q - 8);
}

TEST_P(QuantKernelsTest, QuantizedProductsAreExact) {
  for (const QuantCase& c : kQuantCases) {
    for (const auto& [features, groups] :
         {std::pair<int64_t, int64_t>{1, 1}, {16, 2}, {17, 3}, {40, 1}, {65, 5}, {33, 19}, {150, 9}}) {
      const int64_t panels = (features + 15) / 16, ldy = features + 3;
      std::vector<uint8_t> values(static_cast<size_t>(panels * groups * c.group_bytes));
      std::vector<uint16_t> scales(static_cast<size_t>(panels * groups * 16)), mins(scales.size());
      // Where activations have powers of two no scale is zero; subnormal ones are.
      for (uint16_t& s : scales) {
        s = f32_to_f16(rng.below(5) == 0 ? (c.kind.powers ? 0x1p-24f : 0.0f) : rng.normal() * 0.01f);
        if (c.kind.powers && f16_to_f32(s) == 0.0f) s = 1;
      }
      for (uint16_t& m : mins) m = f32_to_f16(rng.normal() * 0.1f);
      const bool q6 = c.group_bytes == 384;
      std::vector<int8_t> steps(scales.size() * 2);
      for (int8_t& s : steps) {
        s = static_cast<int8_t>(rng.below(4) == 0 ? -128 + 255 * rng.below(2) : rng.below(255) + 1);
      }
      if (q6) scales.resize(static_cast<size_t>(panels * super_groups(groups) * 16));
      const QuantPanels w = {values.data(), scales.data(), c.mins ? mins.data() : nullptr, q6 ? steps.data() : nullptr};
      for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 17, 20, 24, 31, 48, 97}) {
        if (rows > 31 && features < 150) continue;
        for (const int kind : {0, 1, 2, 3}) {  // random; the lowest; random extremes; the highest
          std::vector<int8_t> x(static_cast<size_t>(rows * groups * 32));
          for (uint8_t& v : values)
            v = static_cast<uint8_t>(kind == 0 ? rng.below(256) : kind == 2 ? rng.below(2) * 255 : kind / 2 * 255);
          for (int8_t& v : x) v = static_cast<int8_t>(kind == 0 ? rng.below(255) - 127 : rng.below(2) * 254 - 127);
          if (kind % 2 == 1) std::fill(x.begin(), x.end(), rng.below(2) == 0 ? int8_t{127} : int8_t{-127});
          const int64_t stride = rows + 2;
          std::vector<float> x_scales = rng.normals(groups * stride);
          if (c.kind.powers) {
            for (float& s : x_scales) s = std::ldexp(1.0f, -static_cast<int>(rng.below(4) == 0 ? 30 : rng.below(8)));
          }
          const std::vector<float> row_scales = c.kind.powers ? rng.normals(rows) : std::vector<float>(rows, 1.0f);
          const int64_t parts = groups * c.kind.per_group, part = 32 / c.kind.per_group;
          std::vector<int32_t> sums(static_cast<size_t>(parts * stride));
          for (int64_t i = 0; i < rows * groups * 32; ++i) {
            sums[i / part % parts * stride + i / part / parts] += x[i] * c.kind.factor;
          }
          const Q8Rows q = {x.data(), x_scales.data(), sums.data(), c.kind.powers ? row_scales.data() : nullptr,
                            stride};
          const std::vector<float> before = rng.normals(rows * ldy);
          for (const bool accumulate : {false, true}) {
            Guarded<float> got(before), want(before);
            (kernels.*c.gemm)(q, rows, groups, w, features, got.data(), ldy, accumulate);
            (reference.*c.gemm)(q, rows, groups, w, features, want.data(), ldy, accumulate);
            ASSERT_TRUE(same_bits(got.values(), want.values()))
                << c.name << " " << features << " x " << groups << ", rows " << rows;
            ASSERT_TRUE(got.intact());
          }
          // One element from the definition, so that the reference is tested as well.
          const int64_t n = features - 1, m = rows - 1;
          double sum = 0, size = 0;
          for (int64_t i = 0; i < groups * 32; ++i) {
            const int64_t g = i / 32, block = n / 16 * groups + g, lane = block * 16 + n % 16;
            float scale = f16_to_f32(scales[q6 ? (n / 16 * super_groups(groups) + g / 8) * 16 + n % 16 : lane]);
            if (q6) scale *= static_cast<float>(steps[(block * 2 + i % 32 / 16) * 16 + n % 16]);
            const double weight = quant_weight(c, values, scale, f16_to_f32(mins[lane]), block, n % 16, i % 32);
            const double v = double{x_scales[g * stride + m]} * row_scales[m] * x[m * groups * 32 + i];
            sum += weight * v;
            size += std::fabs(weight * v);
          }
          Guarded<float> y(rows * ldy);
          (kernels.*c.gemm)(q, rows, groups, w, features, y.data(), ldy, false);
          ASSERT_NEAR(y[m * ldy + n], sum, 1e-6 * size + 1e-6) << c.name;
          for (int64_t gap = features; gap < ldy; ++gap) ASSERT_TRUE(y.untouched(m * ldy + gap));
        }
      }
    }
  }
}

struct Panel {
  Panel(int64_t groups, int64_t group_bytes) : values(groups * group_bytes), scales(groups * kPanel) {}
  Guarded<uint8_t> values;
  Guarded<uint16_t> scales;
};

// Sixteen rows of one kind of values each.
std::vector<float> rows_to_pack(Rng& rng, int64_t ldx, int64_t groups) {
  std::vector<float> x = rng.normals(kPanel * ldx, 0.05f);
  for (int64_t r = 0; r < kPanel; ++r) {
    for (int64_t i = 0; i < groups * kGroup; ++i) {
      float& v = x[r * ldx + i];
      if (r == 1) v = 0.0f;
      if (r == 2) v *= 1e-6f;                                          // scales are subnormal fp16
      if (r == 3) v *= 1e-38f;                                         // and here zero
      if (r == 4) v *= 1e6f;                                           // large, but within fp16
      if (r == 5) v *= 1e30f;                                          // too large
      if (r == 6 && i % kGroup == 7) v = 3.0f;                         // outliers
      if (r == 7) v = 0.125f * static_cast<float>(rng.below(16) - 8);  // exact in int4 and, with the next, int8
      if (r == 7 && i % kGroup == 0) v = -1.0f;
      if (r == 8) v = -0.125f * static_cast<float>(rng.below(16) - 8);
      if (r == 8 && i % kGroup == 0) v = 1.0f;
      if (r == 9) v = -std::fabs(v);
      if (r == 10) v = 0.01f;
    }
  }
  return x;
}

TEST_P(QuantKernelsTest, PackQ8FindsAScaleOfSmallError) {
  for (const auto& [groups, gap] : {std::pair<int64_t, int64_t>{1, 0}, {2, 5}, {5, 1}}) {
    const int64_t ldx = groups * kGroup + gap;
    const std::vector<float> x = rows_to_pack(rng, ldx, groups);
    Panel got(groups, 512), want(groups, 512);
    kernels.pack_q8(x.data(), ldx, groups, got.values.data(), got.scales.data());
    reference.pack_q8(x.data(), ldx, groups, want.values.data(), want.scales.data());
    ASSERT_TRUE(same_bits(got.values.values(), want.values.values()));
    ASSERT_TRUE(same_bits(got.scales.values(), want.scales.values()));
    ASSERT_TRUE(got.values.intact() && got.scales.intact());
    double error = 0, plain = 0;
    for (int64_t r = 0; r < kPanel; ++r) {
      for (int64_t i = 0; i < groups * kGroup; ++i) {
        const int64_t g = i / kGroup;
        const float scale = f16_to_f32(got.scales[g * kPanel + r]), v = x[r * ldx + i];
        if (r == 5) ASSERT_TRUE(std::isinf(scale));
        if (r == 5) continue;
        const double found = quant_weight(kQuantCases[0], got.values.values(), scale, 0, g, r, i % kGroup);
        float top = 0.0f;
        for (int64_t j = g * kGroup; j < (g + 1) * kGroup; ++j) top = std::max(top, std::fabs(x[r * ldx + j]));
        // Half a step; the stored scale is off by 2^-11, or by 2^-25 where it is subnormal.
        ASSERT_NEAR(found, v, 0.5 * top / 121 + top / 2048 + 127 * 0x1p-25) << r;
        if (r > 10) {
          const double step = top / 127.0, nearest = step * std::nearbyint(v / step);
          error += (found - v) * (found - v), plain += (nearest - v) * (nearest - v);
        }
      }
    }
    EXPECT_LE(error, 0.9 * plain);
  }
}

double squared_error(const float* x, const float* importance, double scale) {
  double error = 0;
  for (int64_t i = 0; i < kGroup; ++i) {
    const double q = scale == 0 ? 0.0 : std::clamp(std::nearbyint(x[i] / scale), -8.0, 7.0);
    error += importance[i] * (x[i] - scale * q) * (x[i] - scale * q);
  }
  return error;
}

TEST_P(QuantKernelsTest, PackQ4FindsTheScaleOfLeastError) {
  for (const auto& [groups, gap] : {std::pair<int64_t, int64_t>{1, 0}, {2, 5}, {5, 1}}) {
    for (const bool weighted : {false, true}) {
      const int64_t ldx = groups * kGroup + gap;
      const std::vector<float> x = rows_to_pack(rng, ldx, groups);
      std::vector<float> importance(static_cast<size_t>(groups * kGroup), 1.0f);
      if (weighted) {
        for (float& w : importance) w = std::exp(rng.normal());
      }
      Panel got(groups, 256), want(groups, 256);
      kernels.pack_q4(x.data(), ldx, groups, importance.data(), got.values.data(), got.scales.data());
      reference.pack_q4(x.data(), ldx, groups, importance.data(), want.values.data(), want.scales.data());
      ASSERT_TRUE(same_bits(got.values.values(), want.values.values()));
      ASSERT_TRUE(same_bits(got.scales.values(), want.scales.values()));
      ASSERT_TRUE(got.values.intact() && got.scales.intact());
      double total = 0, least = 0;
      for (int64_t r = 0; r < kPanel; ++r) {
        for (int64_t g = 0; g < groups; ++g) {
          const float scale = f16_to_f32(got.scales[g * kPanel + r]), *group = &x[r * ldx + g * kGroup];
          if (r == 5) ASSERT_TRUE(std::isinf(scale));
          if (r == 5) continue;
          double error = 0, top = 0, size = 0;
          for (int64_t i = 0; i < kGroup; ++i) {
            const double found = quant_weight(kQuantCases[1], got.values.values(), scale, 0, g, r, i);
            if (r == 7 || r == 8) ASSERT_EQ(found, group[i]);
            error += importance[g * kGroup + i] * (group[i] - found) * (group[i] - found);
            size += importance[g * kGroup + i] * group[i] * group[i];
            top = std::max(top, double{std::fabs(group[i])});
          }
          if (r == 2 || r == 3) continue;  // limited by fp16
          double best = squared_error(group, &importance[g * kGroup], 0.0);
          for (double k = 3; k < 20; k += 0.01) {
            for (const double s : {top / k, -top / k}) {
              best = std::min(best, squared_error(group, &importance[g * kGroup], s));
            }
          }
          EXPECT_LE(error, 1.3 * best + 1e-6 * size) << "row " << r << " group " << g;
          if (r > 10) total += error, least += best;
        }
      }
      EXPECT_LE(total, 1.02 * least) << weighted;
    }
  }
}

TEST_P(QuantKernelsTest, PackQ6FindsScalesOfSmallError) {
  for (const auto& [groups, gap] : {std::pair<int64_t, int64_t>{1, 0}, {8, 5}, {11, 1}, {16, 3}}) {
    const int64_t ldx = groups * kGroup + gap, supers = super_groups(groups);
    const std::vector<float> x = rows_to_pack(rng, ldx, groups);
    std::vector<float> importance(static_cast<size_t>(groups * kGroup), 1.0f);
    if (groups == 16) {
      for (float& w : importance) w = std::exp(rng.normal());
    }
    Guarded<uint8_t> values(groups * 384), want_values(groups * 384);
    Guarded<int8_t> steps(groups * 2 * kPanel), want_steps(groups * 2 * kPanel);
    Guarded<uint16_t> scales(supers * kPanel), want_scales(supers * kPanel);
    kernels.pack_q6(x.data(), ldx, groups, importance.data(), values.data(), steps.data(), scales.data());
    reference.pack_q6(x.data(), ldx, groups, importance.data(), want_values.data(), want_steps.data(),
                      want_scales.data());
    ASSERT_TRUE(same_bits(values.values(), want_values.values()));
    ASSERT_TRUE(same_bits(steps.values(), want_steps.values()));
    ASSERT_TRUE(same_bits(scales.values(), want_scales.values()));
    ASSERT_TRUE(values.intact() && steps.intact() && scales.intact());
    double error = 0, plain = 0;
    for (int64_t r = 0; r < kPanel; ++r) {
      for (int64_t h = 0; h < groups * 2; ++h) {
        const float super = f16_to_f32(scales[h / 16 * kPanel + r]), *half = &x[r * ldx + h * 16];
        if (r == 5) ASSERT_TRUE(std::isinf(super));
        if (r == 5) continue;
        const float scale = super * static_cast<float>(steps[h * kPanel + r]);
        float top = 0.0f;
        for (int64_t i = 0; i < 16; ++i) top = std::max(top, std::fabs(half[i]));
        for (int64_t i = 0; i < 16; ++i) {
          const double v = half[i];
          const double found = quant_weight(kQ6Case, values.values(), scale, 0, h / 2, r, h % 2 * 16 + i);
          // Half a step of the widest scale, half a step of the scale, and what fp16 loses where it is subnormal.
          ASSERT_NEAR(found, v, 1.01 * top / 54 + 32 * (0.5 * super) + 127 * 32 * 0x1p-25) << r << " of " << groups;
          if (r > 10) {
            const double step = top / 31.0, nearest = step * std::nearbyint(v / step), w = importance[h * 16 + i];
            error += w * (found - v) * (found - v), plain += w * (nearest - v) * (nearest - v);
          }
        }
      }
    }
    EXPECT_LE(error, 0.85 * plain) << groups;
  }
}

}  // namespace
}  // namespace lfm::testing
