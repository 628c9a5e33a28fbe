// Every kernel of every table that this CPU can run, against the scalar reference. Inputs are exactly as long as the
// contract says (the sanitizers see reads beyond), outputs stand between canaries.
#include "kernels/kernels.h"

#include <algorithm>
#include <limits>
#include <utility>

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
    std::vector<float> gate_up = gate;
    gate_up.insert(gate_up.end(), up.begin(), up.end());
    Guarded<float> out(n);
    kernels.silu_mul(gate_up.data(), 1, n, out.data(), n);
    // Below -88 the true value vanishes; what is left there is under |gate| * exp(-88).
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_TRUE(close(&out[i], &want[i], 1, std::fabs(double{gate[i]}) * 3e-38, 1e-6)) << "silu of " << gate[i];
    }
    EXPECT_TRUE(out.intact());
  }
}

TEST_P(KernelsTest, RowsToTiles) {
  if (kernels.to_tiles == nullptr) GTEST_SKIP() << "no tiles";
  // Of x in tiles: what row r has at input i.
  const auto at = [](const auto& x, int64_t steps, int64_t r, int64_t i) {
    return x[((r / 16 * steps + i / 32) * 16 + r % 16) * 32 + i % 32];
  };
  for (const int64_t n : {1, 15, 16, 17, 31, 32, 33, 48, 100}) {
    const int64_t steps = (n + 31) / 32;
    Guarded<uint16_t> tiles(std::vector<uint16_t>(static_cast<size_t>(16 * steps * 32), 7));
    for (const int64_t r : {0, 5, 15}) {
      std::vector<float> x = rng.normals(n);
      x[n / 2] = 1e-39f;  // zero to products of tiles
      kernels.to_tiles(x.data(), n, &tiles[r * 32]);
      for (int64_t i = 0; i < steps * 32; ++i) {
        ASSERT_EQ(at(tiles, steps, r, i), i < n && i != n / 2 ? f32_to_bf16(x[i]) : 0) << n << " " << i;
      }
    }
    EXPECT_EQ(at(tiles, steps, 6, 0), 7);
    EXPECT_TRUE(tiles.intact());
  }
  constexpr int64_t kSteps = 3;
  for (const auto& [first, n] : {std::pair<int64_t, int64_t>{0, 96}, {0, 16}, {16, 16}, {16, 64}, {32, 48}, {80, 16}}) {
    for (const int64_t rows : {1, 15, 16, 17, 40}) {
      const std::vector<float> x = rng.normals(rows * 2 * n);
      std::vector<float> gated(static_cast<size_t>(rows * n));
      kernels.silu_mul(x.data(), rows, n, gated.data(), n);
      const std::vector<uint16_t> before(static_cast<size_t>((rows + 15) / 16 * 16 * kSteps * 32), 7);
      Guarded<uint16_t> tiles(before);
      kernels.silu_mul_to_tiles(x.data(), rows, n, first, kSteps, tiles.data());
      for (int64_t r = 0; r < (rows + 15) / 16 * 16; ++r) {
        for (int64_t i = 0; i < kSteps * 32; ++i) {
          const bool written = r < rows && i >= first && i < first + n;
          ASSERT_EQ(at(tiles, kSteps, r, i), written ? f32_to_bf16(gated[r * n + i - first]) : 7) << r << " " << i;
        }
      }
      EXPECT_TRUE(tiles.intact());
    }
  }
}

TEST_P(KernelsTest, BlockMax) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const int64_t n : {1, 63, 64, 65, 255, 256, 257, 600, 1024}) {
    std::vector<float> x = rng.normals(n, 3.0f);
    for (int64_t i = 0; i < n; i += 5) x[i] = -kInf;
    std::vector<float> want;
    for (int64_t i = 0; i < n; i += kLogitBlock) {
      want.push_back(*std::max_element(x.begin() + i, x.begin() + std::min(n, i + kLogitBlock)));
    }
    Guarded<float> maxima(static_cast<int64_t>(want.size()));
    EXPECT_TRUE(kernels.block_max(x.data(), n, maxima.data())) << n;
    EXPECT_TRUE(same_bits(maxima.data(), want.data(), static_cast<int64_t>(want.size()))) << n;
    EXPECT_TRUE(maxima.intact()) << n;
    for (const float bad : {kInf, std::numeric_limits<float>::quiet_NaN()}) {
      for (const int64_t at : {int64_t{0}, n / 2, n - 1}) {
        const float was = std::exchange(x[at], bad);
        EXPECT_FALSE(kernels.block_max(x.data(), n, maxima.data())) << bad << " at " << at << " of " << n;
        x[at] = was;
      }
    }
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
        const int64_t size = (taps - 1) * hidden;
        Guarded<float> state(size), want_state(size), y(kTokens * hidden), want(kTokens * hidden);
        kernels.short_conv(bcx.data(), kTokens, hidden, begin, end, w.data(), b, taps, past.data(), state.data(),
                           y.data());
        reference.short_conv(bcx.data(), kTokens, hidden, begin, end, w.data(), b, taps, past.data(), want_state.data(),
                             want.data());
        EXPECT_TRUE(close(y.data(), want.data(), kTokens * hidden, 1e-5)) << taps << " taps, " << hidden;
        EXPECT_TRUE(same_bits(state.values(), want_state.values())) << taps << " taps, " << hidden;
        for (int64_t i = 0; i < kTokens * hidden; ++i) {
          if (i % hidden < begin || i % hidden >= end) ASSERT_TRUE(y.untouched(i)) << i;
        }
        for (int64_t i = 0; i < size; ++i) {
          if (i % hidden < begin || i % hidden >= end) ASSERT_TRUE(state.untouched(i)) << i;
        }
        EXPECT_TRUE(y.intact() && state.intact());
        // In pieces, tokens and channels cut elsewhere, later ones in place: the same bits.
        Guarded<float> cut_state(size), cut(kTokens * hidden);
        const int64_t middle = (begin + end) / 2;
        for (int64_t t = 0, count = 1; t < kTokens; t += count, count = std::min<int64_t>(count + 1, kTokens - t)) {
          for (const auto& [from, to] : {std::pair{begin, middle}, {middle, end}}) {
            kernels.short_conv(bcx.data() + t * 3 * hidden, count, hidden, from, to, w.data(), b, taps,
                               t == 0 ? past.data() : cut_state.data(), cut_state.data(), cut.data() + t * hidden);
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

// What Kernels::gemm_tiles says, element by element.
TEST_P(KernelsTest, TiledProducts) {
  if (kernels.gemm_tiles == nullptr) GTEST_SKIP() << "no tiles on this ISA";
  for (const auto& [features, steps] :
       {std::pair<int64_t, int64_t>{1, 1}, {16, 3}, {33, 8}, {70, 9}, {32, 20}, {35, 45}, {1050, 2}}) {
    const int64_t panels = (features + 15) / 16, k = steps * 32, ldy = features + 3;
    std::vector<uint16_t> w(static_cast<size_t>(panels * 16 * k));
    for (uint16_t& v : w) v = f32_to_bf16(rng.normal());
    for (const int64_t rows : {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 65, 100, 550}) {
      if (rows > kMostTiledRows && tile_steps(rows, steps) == steps) continue;  // 550: only those added up in parts
      const int64_t tiles = (rows + 15) / 16;
      // Rows behind the last one: not a number.
      std::vector<uint16_t> x(static_cast<size_t>(tiles * 16 * k), 0x7fc0);
      const auto x_at = [&](int64_t m, int64_t i) -> uint16_t& {
        return x[static_cast<size_t>(((m / 16 * steps + i / 32) * 16 + m % 16) * 32 + i % 32)];
      };
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t i = 0; i < k; ++i) x_at(m, i) = f32_to_bf16(rng.normal());
      }
      const auto w_at = [&](int64_t n, int64_t i) {
        return bf16_to_f32(
            w[static_cast<size_t>((((n / 16 * steps + i / 32) * 16 + i % 32 / 2) * 16 + n % 16) * 2 + i % 2)]);
      };
      const std::vector<float> before = rng.normals(rows * ldy);
      for (const bool accumulate : {false, true}) {
        Guarded<float> got(before), sums(tile_sums(rows, steps, features));
        kernels.gemm_tiles(x.data(), rows, steps, w.data(), features, got.data(), ldy, accumulate, sums.data());
        std::vector<float> want = before;
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t n = 0; n < features; ++n) {
            float sum = 0;
            for (int64_t s = 0; s < k; s += 32) {
              float parts[2] = {0, 0};
              for (int64_t i = s; i < s + 32; ++i) {
                parts[i % 2] = std::fma(bf16_to_f32(x_at(m, i)), w_at(n, i), parts[i % 2]);
              }
              sum += parts[0] + parts[1];
            }
            float& y = want[static_cast<size_t>(m * ldy + n)];
            y = accumulate ? y + sum : sum;
          }
        }
        ASSERT_TRUE(same_bits(got.values(), want)) << features << " x " << steps << ", rows " << rows;
        ASSERT_TRUE(got.intact() && sums.intact());
      }
    }
  }
}

}  // namespace
}  // namespace lfm::testing
