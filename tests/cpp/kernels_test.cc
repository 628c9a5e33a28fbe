// Every kernel of every table that this CPU can run, against the scalar reference. Inputs are exactly as long as the
// contract says (the sanitizers see reads beyond), outputs stand between canaries.
#include "kernels/kernels.h"

#include <algorithm>

#include "base/dtype.h"
#include "testing.h"

namespace lfm::testing {
namespace {

class KernelsTest : public ::testing::TestWithParam<Isa> {
 protected:
  const Kernels& kernels = kernels_for(GetParam());
  const Kernels& reference = kReferenceKernels;
  Rng rng{17};
};

INSTANTIATE_TEST_SUITE_P(Isas, KernelsTest, ::testing::ValuesIn(isas_up_to(detected_isa())),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

TEST_P(KernelsTest, RmsNorm) {
  for (const int64_t n : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 40, 1001}) {
    for (const float size : {0.0f, 1e-3f, 1.0f, 1e4f}) {
      const std::vector<float> x = rng.normals(n, size), w = rng.normals(n);
      double squares = 0;
      for (const float v : x) squares += double{v} * v;
      std::vector<double> want(x.size());
      for (size_t i = 0; i < x.size(); ++i) want[i] = x[i] / std::sqrt(squares / static_cast<double>(n) + 1e-5) * w[i];
      Guarded<float> out(n), in_place(x);
      kernels.rms_norm(x.data(), w.data(), 1e-5f, n, out.data());
      EXPECT_TRUE(close(out.data(), want.data(), n, 0, 2e-6)) << n << " of size " << size;
      kernels.rms_norm(in_place.data(), w.data(), 1e-5f, n, in_place.data());
      EXPECT_TRUE(same_bits(out.data(), in_place.data(), n));
      EXPECT_TRUE(out.intact() && in_place.intact()) << n;
    }
  }
}

TEST_P(KernelsTest, SiluMul) {
  const std::vector<float> edges = {0.0f,  -0.0f,  1e-30f, -1e-4f, 0.5f,   -1.0f,   5.0f, -20.0f, 60.0f,  -87.0f, 87.0f,
                                    88.0f, -88.0f, 89.0f,  -89.0f, 100.0f, -104.0f, 1e4f, -1e4f,  -1e30f, 1e30f};
  for (const int64_t n : {1, 7, 8, 9, 16, 21, 33, 100}) {
    std::vector<float> gate = rng.normals(n, 8.0f), up = rng.normals(n);
    for (int64_t i = 0; i < n && n != 100; ++i) gate[i] = edges[static_cast<size_t>(rng.below(21))];
    std::vector<double> want(gate.size());
    for (size_t i = 0; i < gate.size(); ++i) want[i] = gate[i] / (1 + std::exp(-double{gate[i]})) * up[i];
    Guarded<float> out(n);
    kernels.silu_mul(gate.data(), up.data(), n, out.data());
    // Below -88 the true value vanishes; what is left there is under |gate| * exp(-88).
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_TRUE(close(&out[i], &want[i], 1, std::fabs(double{gate[i]}) * 3e-38, 1e-6)) << "silu of " << gate[i];
    }
    EXPECT_TRUE(out.intact());
  }
}

TEST_P(KernelsTest, HeadNormRope) {
  for (const int64_t head_dim : {2, 6, 24, 32, 34, 64, 80, 128}) {
    const std::vector<float> norm = rng.normals(head_dim), angles = rng.normals(head_dim / 2, 3.0f);
    std::vector<float> cos, sin;
    for (const float a : angles) cos.push_back(std::cos(a)), sin.push_back(std::sin(a));
    const std::vector<float> x = rng.normals(head_dim, 2.0f);
    for (const float* w : {static_cast<const float*>(nullptr), norm.data()}) {
      Guarded<float> got(x), want(x);
      kernels.head_norm_rope(got.data(), w, 1e-5f, cos.data(), sin.data(), 0.3f, head_dim);
      reference.head_norm_rope(want.data(), w, 1e-5f, cos.data(), sin.data(), 0.3f, head_dim);
      EXPECT_TRUE(close(got.data(), want.data(), head_dim, 3e-6)) << head_dim;
      EXPECT_TRUE(got.intact() && want.intact()) << head_dim;
    }
  }
}

TEST_P(KernelsTest, ShortConv) {
  constexpr int64_t kTokens = 9;
  for (const int64_t taps : {1, 2, 3, 4}) {
    for (const auto& [hidden, begin, end] :
         {std::array<int64_t, 3>{5, 0, 5}, {16, 0, 16}, {50, 0, 50}, {50, 3, 21}, {50, 16, 49}, {23, 22, 23}}) {
      const std::vector<float> bcx = rng.normals(kTokens * 3 * hidden), w = rng.normals(taps * hidden),
                               bias = rng.normals(hidden), past = rng.normals((taps - 1) * hidden);
      for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
        Guarded<float> state(past), want_state(past), y(kTokens * hidden), want(kTokens * hidden);
        kernels.short_conv(bcx.data(), kTokens, hidden, begin, end, w.data(), b, taps, state.data(), y.data());
        reference.short_conv(bcx.data(), kTokens, hidden, begin, end, w.data(), b, taps, want_state.data(),
                             want.data());
        EXPECT_TRUE(close(y.data(), want.data(), kTokens * hidden, 1e-5)) << taps << " taps, " << hidden;
        EXPECT_TRUE(same_bits(state.values(), want_state.values())) << taps << " taps, " << hidden;
        for (int64_t i = 0; i < kTokens * hidden; ++i) {
          if (i % hidden < begin || i % hidden >= end) ASSERT_TRUE(y.untouched(i)) << i;
        }
        for (int64_t i = 0; i < state.size(); ++i) {
          if (i % hidden < begin || i % hidden >= end) ASSERT_EQ(state[i], past[static_cast<size_t>(i)]) << i;
        }
        EXPECT_TRUE(y.intact() && state.intact());
        // In pieces, tokens and channels cut elsewhere: the same bits.
        Guarded<float> cut_state(past), cut(kTokens * hidden);
        const int64_t middle = (begin + end) / 2;
        for (int64_t t = 0, count = 1; t < kTokens; t += count, count = std::min<int64_t>(count + 1, kTokens - t)) {
          for (const auto& [from, to] : {std::pair{begin, middle}, {middle, end}}) {
            kernels.short_conv(bcx.data() + t * 3 * hidden, count, hidden, from, to, w.data(), b, taps,
                               cut_state.data(), cut.data() + t * hidden);
          }
        }
        EXPECT_TRUE(same_bits(y.values(), cut.values())) << taps << " taps, " << hidden;
        EXPECT_TRUE(same_bits(state.values(), cut_state.values())) << taps << " taps, " << hidden;
      }
    }
  }
}

TEST_P(KernelsTest, ToBf16) {
  std::vector<float> x = rng.normals(200);
  for (int64_t i = 0; i < 4000; ++i) x.push_back(std::bit_cast<float>(static_cast<uint32_t>(rng.next())));
  for (const uint32_t bits : {0u, 0x80000000u, 1u, 0x7f7fffffu, 0x7f800000u, 0xff800000u, 0x7f800001u, 0xffc12345u,
                              0x3f808000u, 0x3f818000u, 0x3f807fffu, 0x3f808001u, 0x7f7f8000u}) {
    x.push_back(std::bit_cast<float>(bits));
  }
  for (const int64_t n :
       {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{16}, int64_t{17}, int64_t{31}, static_cast<int64_t>(x.size())}) {
    const std::vector<float> tail(x.end() - n, x.end());
    Guarded<uint16_t> out(n);
    kernels.to_bf16(tail.data(), n, out.data());
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(out[i], f32_to_bf16(tail[static_cast<size_t>(i)])) << tail[static_cast<size_t>(i)];
    }
    EXPECT_TRUE(out.intact());
  }
}

TEST_P(KernelsTest, QuantizeQ8) {
  for (const int64_t n : {1, 5, 31, 32, 33, 40, 64, 100}) {
    // Zero, the smallest numbers (1 / scale is infinite), ordinary ones, the largest.
    for (const float size : {0.0f, 1e-44f, 1e-39f, 1e-37f, 1e-30f, 1.0f, 1e5f, 3e37f}) {
      const std::vector<float> x = rng.normals(n, size);
      const int64_t groups = (n + 31) / 32;
      Guarded<int8_t> values(groups * 32);
      Guarded<float> scales(groups);
      Guarded<int32_t> sums(groups);
      kernels.quantize_q8(x.data(), n, 1, values.data(), scales.data(), sums.data(), 1);
      Guarded<int8_t> want_values(groups * 32);
      Guarded<float> want_scales(groups);
      Guarded<int32_t> want_sums(groups);
      reference.quantize_q8(x.data(), n, 1, want_values.data(), want_scales.data(), want_sums.data(), 1);
      EXPECT_TRUE(same_bits(values.values(), want_values.values())) << n << " of size " << size;
      EXPECT_TRUE(same_bits(scales.values(), want_scales.values())) << n << " of size " << size;
      EXPECT_TRUE(values.intact() && scales.intact() && sums.intact());
      for (int64_t g = 0; g < groups; ++g) {
        int32_t sum = 0;
        for (int64_t i = g * 32; i < (g + 1) * 32; ++i) {
          sum += values[i];
          ASSERT_LE(std::abs(int{values[i]}), 127) << n << " of size " << size;
          const double v = i < n ? x[static_cast<size_t>(i)] : 0.0;
          // Half a step, and what a scale or its inverse in fp32 loses near the ends of the range.
          ASSERT_NEAR(double{scales[g]} * values[i], v, 0.5001 * scales[g] + 1e-36) << n << " of size " << size;
        }
        ASSERT_EQ(sums[g], sum) << n << " of size " << size;
      }
    }
  }
}

// Panels [k, 16] of `w` [features, k]; rows beyond `features` are zero.
template <class T, class Convert>
std::vector<T> pack(const std::vector<float>& w, int64_t features, int64_t k, const Convert& convert) {
  std::vector<T> panels(static_cast<size_t>((features + 15) / 16 * 16 * k));
  for (int64_t n = 0; n < features; ++n) {
    for (int64_t i = 0; i < k; ++i) panels[(n / 16 * k + i) * 16 + n % 16] = convert(w[n * k + i]);
  }
  return panels;
}

// gemm against a plain double sum over the weights `w` as the panels hold them.
template <class T, class Gemm>
void check_gemm(Gemm gemm, const std::vector<float>& w, const std::vector<T>& panels, int64_t features, int64_t k,
                Rng& rng) {
  const int64_t ldx = k + 3, ldy = features + 5;
  for (const int64_t rows : {1, 2, 3, 5, 7, 12, 13, 25, 30}) {
    const std::vector<float> x = rng.normals((rows - 1) * ldx + k), before = rng.normals(rows * ldy);
    for (const bool accumulate : {false, true}) {
      Guarded<float> y(accumulate ? before : std::vector<float>(before.size(), NAN));  // NaN: old values are not read
      gemm(x.data(), ldx, rows, k, panels.data(), features, y.data(), ldy, accumulate);
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < features; ++n) {
          double sum = accumulate ? before[m * ldy + n] : 0.0;
          for (int64_t i = 0; i < k; ++i) sum += double{x[m * ldx + i]} * w[n * k + i];
          ASSERT_NEAR(y[m * ldy + n], sum, 1e-5) << rows << " rows, k " << k << ", features " << features;
        }
        for (int64_t n = features; n < ldy; ++n) {
          ASSERT_TRUE(accumulate ? y[m * ldy + n] == before[m * ldy + n] : std::isnan(y[m * ldy + n])) << "gap";
        }
        // The row alone has the same bits.
        Guarded<float> alone(accumulate ? std::vector<float>(&before[m * ldy], &before[m * ldy] + features)
                                        : std::vector<float>(static_cast<size_t>(features), NAN));
        gemm(x.data() + m * ldx, ldx, 1, k, panels.data(), features, alone.data(), ldy, accumulate);
        ASSERT_TRUE(same_bits(alone.data(), &y[m * ldy], features)) << "row " << m << " of " << rows;
        ASSERT_TRUE(alone.intact());
      }
      ASSERT_TRUE(y.intact());
    }
  }
}

TEST_P(KernelsTest, Gemm) {
  for (const auto& [features, k] : {std::pair<int64_t, int64_t>{1, 1},
                                    {5, 3},
                                    {16, 33},
                                    {17, 16},
                                    {31, 20},
                                    {32, 7},
                                    {40, 70},
                                    {64, 32},
                                    {65, 33},
                                    {100, 2}}) {
    const std::vector<float> w = rng.normals(features * k, 1.0f / std::sqrt(static_cast<float>(k)));
    check_gemm(kernels.gemm_f32, w, pack<float>(w, features, k, [](float v) { return v; }), features, k, rng);
    std::vector<float> rounded = w;
    for (float& v : rounded) v = bf16_to_f32(f32_to_bf16(v));
    check_gemm(kernels.gemm_bf16, rounded, pack<uint16_t>(w, features, k, f32_to_bf16), features, k, rng);
  }
}

// Blocks of 64 features: [k, 64] fp32 or [k / 2, 64, 2] bf16; the tail of a block's features is not written.
template <class T, class Kernel>
void check_blocked(Kernel kernel, int64_t pair, Rng& rng) {
  const auto convert = [](T& to, float v) {
    if constexpr (sizeof(T) == 4) {
      to = v;
    } else {
      to = f32_to_bf16(v);
    }
  };
  const auto wide = [](T v) {
    if constexpr (sizeof(T) == 4) {
      return v;
    } else {
      return bf16_to_f32(v);
    }
  };
  for (const auto& [k, chunk] : {std::pair<int64_t, int64_t>{2, 2}, {34, 34}, {96, 32}, {100, 32}, {520, 256}}) {
    std::vector<T> panel(static_cast<size_t>(k * 64));
    for (T& w : panel) convert(w, rng.normal() / std::sqrt(static_cast<float>(k)));
    for (const int64_t features : {1, 15, 16, 33, 63, 64, 100}) {  // more than 64: the block is not the last
      const int64_t valid = std::min<int64_t>(64, features), ldx = k + 2, ldy = valid + 3;
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 9, 13}) {
        std::vector<T> x(static_cast<size_t>((rows - 1) * ldx + k));
        for (T& v : x) convert(v, rng.normal());
        for (const bool accumulate : {false, true}) {
          const std::vector<float> before = accumulate ? rng.normals(rows * ldy) : std::vector<float>(rows * ldy, NAN);
          Guarded<float> y(before);
          kernel(x.data(), ldx, rows, k, chunk, panel.data(), features, y.data(), ldy, accumulate);
          for (int64_t m = 0; m < rows; ++m) {
            for (int64_t n = 0; n < valid; ++n) {
              double sum = accumulate ? before[m * ldy + n] : 0.0;
              for (int64_t i = 0; i < k; ++i) {
                sum += double{wide(x[m * ldx + i])} * wide(panel[(i / pair * 64 + n) * pair + i % pair]);
              }
              ASSERT_NEAR(y[m * ldy + n], sum, 1e-5) << rows << " rows, k " << k << ", features " << features;
            }
            ASSERT_TRUE(same_bits(&y[m * ldy + valid], &before[m * ldy + valid], 3)) << "gap";
            Guarded<float> alone(std::vector<float>(&before[m * ldy], &before[m * ldy] + valid));
            kernel(x.data() + m * ldx, ldx, 1, k, chunk, panel.data(), features, alone.data(), ldy, accumulate);
            ASSERT_TRUE(same_bits(alone.data(), &y[m * ldy], valid)) << "row " << m << " of " << rows;
            ASSERT_TRUE(alone.intact());
          }
          ASSERT_TRUE(y.intact());
        }
      }
    }
  }
}

TEST_P(KernelsTest, BlockedProducts) {
  if (kernels.blocked_f32 != nullptr) check_blocked<float>(kernels.blocked_f32, 1, rng);
  if (kernels.blocked_bf16 != nullptr) check_blocked<uint16_t>(kernels.blocked_bf16, 2, rng);
}

// Integer sums are exact and fp32 runs over groups in order with fma: every table must give the same bits.
struct QuantCase {
  const char* name;
  decltype(Kernels::gemm_q8) Kernels::* gemm;
  int64_t group_bytes;  // of a panel
  bool mins;
  int32_t sum_factor;
};
constexpr QuantCase kQuantCases[] = {{"q8", &Kernels::gemm_q8, 512, false, -128},
                                     {"q4", &Kernels::gemm_q4, 256, false, -8},
                                     {"q4 with mins", &Kernels::gemm_q4, 256, true, 1}};

// Weight i of a group from its definition in kernels.h.
double quant_weight(const QuantCase& c, const std::vector<uint8_t>& values, float scale, float min, int64_t block,
                    int64_t lane, int64_t i) {
  if (c.group_bytes == 512) return double{scale} * (values[block * 512 + (i / 4 * 16 + lane) * 4 + i % 4] - 128);
  const int byte = values[block * 256 + (i / 8 * 16 + lane) * 4 + i % 4], q = i % 8 < 4 ? byte & 15 : byte >> 4;
  return c.mins ? double{scale} * q + min : double{scale} * (q - 8);
}

TEST_P(KernelsTest, QuantizedProductsAreExact) {
  for (const QuantCase& c : kQuantCases) {
    for (const auto& [features, groups] : {std::pair<int64_t, int64_t>{1, 1}, {16, 2}, {17, 3}, {40, 1}, {65, 5}}) {
      const int64_t panels = (features + 15) / 16, ldy = features + 3;
      std::vector<uint8_t> values(static_cast<size_t>(panels * groups * c.group_bytes));
      std::vector<uint16_t> scales(static_cast<size_t>(panels * groups * 16)), mins(scales.size());
      for (uint16_t& s : scales) s = f32_to_f16(rng.below(5) == 0 ? 0.0f : rng.normal() * 0.01f);
      for (uint16_t& m : mins) m = f32_to_f16(rng.normal() * 0.1f);
      const QuantPanels w = {values.data(), scales.data(), c.mins ? mins.data() : nullptr};
      for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 17, 20, 24, 31}) {
        for (const int kind : {0, 1, 2}) {  // random; the extremes of equal sign; random extremes
          std::vector<int8_t> x(static_cast<size_t>(rows * groups * 32));
          for (uint8_t& v : values)
            v = static_cast<uint8_t>(kind == 0 ? rng.below(256) : kind == 1 ? 0 : rng.below(2) * 255);
          for (int8_t& v : x) v = static_cast<int8_t>(kind == 0 ? rng.below(255) - 127 : rng.below(2) * 254 - 127);
          if (kind == 1) std::fill(x.begin(), x.end(), rng.below(2) == 0 ? int8_t{127} : int8_t{-127});
          const int64_t stride = rows + 2;
          const std::vector<float> x_scales = rng.normals(groups * stride);
          std::vector<int32_t> sums(x_scales.size());
          for (int64_t i = 0; i < rows * groups * 32; ++i) {
            sums[i / 32 % groups * stride + i / 32 / groups] += x[i] * c.sum_factor;
          }
          const Q8Rows q = {x.data(), x_scales.data(), sums.data(), stride};
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
            const double weight =
                quant_weight(c, values, f16_to_f32(scales[lane]), f16_to_f32(mins[lane]), block, n % 16, i % 32);
            sum += weight * x_scales[g * stride + m] * x[m * groups * 32 + i];
            size += std::fabs(weight * x_scales[g * stride + m] * x[m * groups * 32 + i]);
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

TEST_P(KernelsTest, PackQ8FindsAScaleOfSmallError) {
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

TEST_P(KernelsTest, PackQ4FindsTheScaleOfLeastError) {
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

}  // namespace
}  // namespace lfm::testing
