// Plain scalar kernels: the formula, nothing else. Sums run in double, so that this is an oracle for the others.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include "base/dtype.h"
#include "kernels/kernels.h"

namespace lfm {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

float to_float(float v) { return v; }
float to_float(uint16_t v) { return bf16_to_f32(v); }
void assign(float& to, float v) { to = v; }
void assign(uint16_t& to, float v) { to = f32_to_bf16(v); }

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) noexcept {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double{x[i]} * x[i];
  const float scale = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + eps));
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void silu_mul(const float* x, int64_t rows, int64_t n, float* y, int64_t ldy) noexcept {
  for (int64_t r = 0; r < rows; ++r, x += 2 * n, y += ldy) {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] / (1.0f + std::exp(-x[i])) * x[n + i];
  }
}

bool block_max(const float* x, int64_t n, float* maxima) noexcept {
  bool valid = true;
  for (int64_t i = 0; i < n; ++i) {
    float& max = maxima[i / kLogitBlock];
    max = i % kLogitBlock == 0 ? x[i] : std::max(max, x[i]);
    valid = valid && x[i] <= std::numeric_limits<float>::max();
  }
  return valid;
}

void head_norm_rope(float* x, const float* norm_weight, float eps, const float* cos, const float* sin, float scale,
                    int64_t head_dim) noexcept {
  if (norm_weight != nullptr) rms_norm(x, norm_weight, eps, head_dim, x);
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = (a * cos[i] - b * sin[i]) * scale;
    x[i + half] = (b * cos[i] + a * sin[i]) * scale;
  }
}

void short_conv(const float* bcx, int64_t tokens, int64_t hidden, int64_t begin, int64_t end, const float* weight,
                const float* bias, int64_t taps, const float* before, float* after, float* y) noexcept {
  const int64_t past = taps - 1;
  const float* state = before;
  for (int64_t t = 0; t < tokens; ++t, state = after) {
    const float* row = bcx + t * 3 * hidden;
    for (int64_t c = begin; c < end; ++c) {
      const float bx = row[c] * row[2 * hidden + c];
      float sum = bias != nullptr ? bias[c] : 0.0f;
      for (int64_t j = 0; j < past; ++j) sum = std::fma(weight[j * hidden + c], state[j * hidden + c], sum);
      sum = std::fma(weight[past * hidden + c], bx, sum);
      y[t * hidden + c] = row[hidden + c] * sum;
      for (int64_t j = 0; j + 1 < past; ++j) after[j * hidden + c] = state[(j + 1) * hidden + c];
      if (past > 0) after[(past - 1) * hidden + c] = bx;
    }
  }
}

// The scale of int8 values: at least max / 127 and a bf16 number.
uint16_t int8_scale(const float* x, int64_t n) {
  float max = 0.0f;
  for (int64_t i = 0; i < n; ++i) max = std::max(max, std::fabs(x[i]));
  if (!(max > kSmallestQ8Max)) return 0;
  const uint16_t nearest = f32_to_bf16(max / 127.0f);
  return bf16_to_f32(nearest) < max / 127.0f ? static_cast<uint16_t>(nearest + 1) : nearest;
}

// One token's K or V: value d goes to element index(d) of the page's `elements`.
template <KvType type, class Index>
void store_row(const float* x, int64_t n, std::byte* page, int64_t elements, int64_t slot, const Index& index) {
  if constexpr (type == KvType::int8) {
    uint16_t& scale = reinterpret_cast<uint16_t*>(page + elements)[slot];
    scale = int8_scale(x, n);
    const float inverse = scale == 0 ? 0.0f : 1.0f / bf16_to_f32(scale);
    for (int64_t d = 0; d < n; ++d) {
      reinterpret_cast<int8_t*>(page)[index(d)] = static_cast<int8_t>(std::nearbyint(x[d] * inverse));
    }
  } else {
    using T = std::conditional_t<type == KvType::f32, float, uint16_t>;
    for (int64_t d = 0; d < n; ++d) assign(reinterpret_cast<T*>(page)[index(d)], x[d]);
  }
}

template <KvType type>
void store_kv(const float* k, const float* v, int64_t head_dim, int64_t slot, std::byte* k_page,
              std::byte* v_page) noexcept {
  store_row<type>(k, head_dim, k_page, k_elements(head_dim), slot, [&](int64_t d) { return k_index(type, slot, d); });
  store_row<type>(v, head_dim, v_page, v_elements(head_dim), slot,
                  [&](int64_t d) { return v_index(type, head_dim, slot, d); });
}

// Element i of a page's K or V, of the token at `slot`.
template <KvType type>
float kv_value(const std::byte* page, int64_t elements, int64_t slot, int64_t i) {
  if constexpr (type == KvType::int8) {
    return static_cast<float>(reinterpret_cast<const int8_t*>(page)[i]) *
           bf16_to_f32(reinterpret_cast<const uint16_t*>(page + elements)[slot]);
  } else {
    using T = std::conditional_t<type == KvType::f32, float, uint16_t>;
    return to_float(reinterpret_cast<const T*>(page)[i]);
  }
}

template <KvType type>
void attention(const AttentionTile& tile, const AttentionPartial& out, std::byte* /*scratch*/) noexcept {
  const int64_t hd = tile.head_dim, padded = padded_head_dim(hd), begin = tile.block * kAttentionBlock;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float* q = tile.q + r / tile.group * tile.q_stride + r % tile.group * hd;
    float* acc = out.acc + r * padded;
    std::fill(acc, acc + padded, 0.0f);
    float max = kMinusInf, sum = 0.0f;
    const int64_t end = std::min(begin + kAttentionBlock, tile.visible + r / tile.group);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t slot = t % kPage;
      const std::byte* k = tile.pages[t / kPage] + tile.k_offset;
      const std::byte* v = tile.pages[t / kPage] + tile.v_offset;
      double dot = 0;
      for (int64_t d = 0; d < hd; ++d) {
        dot += double{q[d]} * kv_value<type>(k, k_elements(hd), slot, k_index(type, slot, d));
      }
      const float score = static_cast<float>(dot);
      const float new_max = std::max(max, score);
      const float old = std::exp(max - new_max), weight = std::exp(score - new_max);
      for (int64_t d = 0; d < hd; ++d) {
        acc[d] = acc[d] * old + weight * kv_value<type>(v, v_elements(hd), slot, v_index(type, hd, slot, d));
      }
      sum = sum * old + weight;
      max = new_max;
    }
    out.max[r] = max;
    out.sum[r] = sum;
  }
}

void attention_merge(int64_t rows, int64_t head_dim, const AttentionPartial& total,
                     const AttentionPartial& part) noexcept {
  const int64_t padded = padded_head_dim(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    if (part.max[r] == kMinusInf) continue;
    const float max = std::max(total.max[r], part.max[r]);
    const float a = std::exp(total.max[r] - max), b = std::exp(part.max[r] - max);
    for (int64_t d = 0; d < padded; ++d) {
      total.acc[r * padded + d] = total.acc[r * padded + d] * a + part.acc[r * padded + d] * b;
    }
    total.sum[r] = total.sum[r] * a + part.sum[r] * b;
    total.max[r] = max;
  }
}

template <class T>
void gemm(const float* x, int64_t ldx, int64_t rows, int64_t k, const T* panels, int64_t features, float* y,
          int64_t ldy, bool accumulate) noexcept {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < features; ++n) {
      const T* column = panels + n / kPanel * k * kPanel + n % kPanel;
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += double{x[m * ldx + i]} * to_float(column[i * kPanel]);
      float& out = y[m * ldy + n];
      out = static_cast<float>(sum) + (accumulate ? out : 0.0f);
    }
  }
}

// The largest magnitude; NaN where there is one.
float largest_or_nan(const float* x, int64_t n) {
  float max = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    if (std::isnan(x[i])) return x[i];
    max = std::max(max, std::fabs(x[i]));
  }
  return max;
}

void quantize_q8(const float* x, int64_t n, Q8Kind kind, int8_t* values, float* scales, int32_t* sums, int64_t stride,
                 float* row_scale) noexcept {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const float row_top = kind.powers ? largest_or_nan(x, n) : 0.0f;
  if (kind.powers) *row_scale = std::isfinite(row_top) ? row_top / 127.0f : kNan;
  for (int64_t g = 0; g * kGroup < n; ++g) {
    const int64_t count = std::min(kGroup, n - g * kGroup);
    const float max = largest_or_nan(x + g * kGroup, count);
    const bool finite = std::isfinite(kind.powers ? row_top : max);
    float scale = 1.0f, inverse = 0.0f;
    if (!kind.powers) {
      scale = finite ? max / 127.0f : kNan;
      inverse = max > kSmallestQ8Max ? 127.0f / max : 0.0f;
    } else if (finite && row_top > kSmallestRowMax) {
      while (scale > kLeastPower && max <= row_top * (scale / 2)) scale /= 2;
      inverse = 127.0f / row_top / scale;
    }
    int32_t* sum = sums + g * kind.per_group * stride;
    for (int64_t part = 0; part < kind.per_group; ++part) sum[part * stride] = 0;
    for (int64_t i = 0; i < kGroup; ++i) {
      const float v = finite && i < count ? x[g * kGroup + i] : 0.0f;
      const auto q = static_cast<int32_t>(std::nearbyint(v * inverse));
      values[g * kGroup + i] = static_cast<int8_t>(q);
      sum[i * kind.per_group / kGroup * stride] += q * kind.factor;
    }
    scales[g * stride] = scale;
  }
}

// Weight i of a group as an integer, its zero point subtracted unless there are mins.
int q8_weight(const QuantPanels& w, int64_t block, int64_t lane, int64_t i) {
  return int{w.values[block * kPanel * kGroup + (i / 4 * kPanel + lane) * 4 + i % 4]} - 128;
}
int q4_weight(const QuantPanels& w, int64_t block, int64_t lane, int64_t i) {
  const int both = w.values[block * kPanel * kGroup / 2 + (i / 8 * kPanel + lane) * 4 + i % 4];
  return (i % 8 < 4 ? both & 15 : both >> 4) - (w.mins != nullptr ? 0 : 8);
}

int q6_weight(const QuantPanels& w, int64_t block, int64_t lane, int64_t i) {
  const int64_t half = block * 2 + i / 16, j = i % 16 / 4;
  const uint8_t* bytes = w.values + (half * 3 * kPanel + lane) * 4 + i % 4;
  const int a = bytes[0], b = bytes[kPanel * 4], c = bytes[kPanel * 8];
  return (j == 0 ? a & 63 : j == 1 ? b & 63 : j == 2 ? c & 63 : (a >> 6) << 4 | (b >> 6) << 2 | c >> 6) - 32;
}

template <int (*weight)(const QuantPanels&, int64_t, int64_t, int64_t)>
void gemm_quant(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& panels, int64_t features, float* y,
                int64_t ldy, bool accumulate) noexcept {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < features; ++n) {
      float total = 0.0f, part = 0.0f;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t block = n / kPanel * groups + g, lane = n % kPanel;
        const int8_t* a = x.values + (m * groups + g) * kGroup;
        const auto dot = [&](int64_t begin, int64_t end) {
          int32_t sum = 0;
          for (int64_t i = begin; i < end; ++i) sum += weight(panels, block, lane, i) * a[i];
          return static_cast<float>(sum);
        };
        const float x_scale = x.scales[g * x.stride + m];
        if (panels.steps != nullptr) {
          for (int64_t half = 0; half < 2; ++half) {
            const float step = panels.steps[(block * 2 + half) * kPanel + lane];
            part = std::fma(dot(half * kGroup / 2, (half + 1) * kGroup / 2), step * x_scale, part);
          }
          if ((g + 1) % kSuperGroups != 0 && g + 1 < groups) continue;
          const int64_t super = n / kPanel * super_groups(groups) + g / kSuperGroups;
          total = std::fma(part, f16_to_f32(panels.scales[super * kPanel + lane]), total);
          part = 0.0f;
          continue;
        }
        total = std::fma(dot(0, kGroup), f16_to_f32(panels.scales[block * kPanel + lane]) * x_scale, total);
        if (panels.mins != nullptr) {
          const auto sum = static_cast<float>(std::accumulate(a, a + kGroup, 0));
          total = std::fma(sum * x_scale, f16_to_f32(panels.mins[block * kPanel + lane]), total);
        }
      }
      if (weight != q8_weight) total *= x.row_scales[m];
      float& out = y[m * ldy + n];
      out = accumulate ? out + total : total;
    }
  }
}

void to_bf16(const float* x, int64_t n, uint16_t* out) noexcept {
  for (int64_t i = 0; i < n; ++i) out[i] = f32_to_bf16(x[i]);
}

float clamped_round(float v, float low, float high) { return std::min(std::max(std::nearbyint(v), low), high); }
float inverse_or_zero(float v) { return std::fabs(v) > kSmallestQ8Max ? 1.0f / v : 0.0f; }

float largest_magnitude(const float* x, int64_t n) {
  float top = 0.0f;
  for (int64_t i = 0; i < n; ++i) top = std::max(top, std::fabs(x[i]));
  return top;
}

// The scale of least squared error, in units of `top`, the largest magnitude.
float best_q8_scale(const float* x, float top) {
  float least = std::numeric_limits<float>::max(), scale = 0.0f;
  for (int step = 0; step < kQ8Candidates; ++step) {
    const float own = 1.0f / q8_candidate(step);
    float error = 0.0f;
    for (int64_t i = 0; i < kGroup; ++i) {
      const float y = x[i] * inverse_or_zero(top), off = y - std::nearbyint(y * q8_candidate(step)) * own;
      error = std::fma(off, off, error);
    }
    if (error < least) least = error, scale = own;
  }
  return scale;
}

void pack_q8(const float* x, int64_t ldx, int64_t groups, uint8_t* values, uint16_t* scales) noexcept {
  for (int64_t r = 0; r < kPanel; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const float* group = x + r * ldx + g * kGroup;
      uint16_t& scale = scales[g * kPanel + r];
      const float top = largest_magnitude(group, kGroup);
      scale = f32_to_f16(best_q8_scale(group, top) * top);
      const float inverse = inverse_or_zero(f16_to_f32(scale));  // of the scale that is stored, not of the exact one
      for (int64_t i = 0; i < kGroup; ++i) {
        const float q = clamped_round(group[i] * inverse, -127.0f, 127.0f);
        values[((g * kGroup / 4 + i / 4) * kPanel + r) * 4 + i % 4] = static_cast<uint8_t>(q + 128.0f);
      }
    }
  }
}

// The same for n values and integers from -limit to limit - 1, weighted by importance.
float best_scale(const float* x, int64_t n, float top, const float* importance, float limit, int candidates,
                 float (*candidate)(int)) {
  float best = 0.0f, scale = 0.0f;
  const auto consider = [&](float inverse) {
    float yq = 0.0f, qq = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
      const float y = x[i] * inverse_or_zero(top), q = clamped_round(y * inverse, -limit, limit - 1.0f);
      yq = std::fma(importance[i] * y, q, yq);
      qq = std::fma(importance[i] * q, q, qq);
    }
    const float own = yq / qq, gain = yq * own;
    if (gain > best) best = gain, scale = own;
  };
  for (int step = 0; step < candidates; ++step) {
    consider(candidate(step));
    consider(-candidate(step));
  }
  consider(inverse_or_zero(scale));
  return scale;
}

void pack_q4(const float* x, int64_t ldx, int64_t groups, const float* importance, uint8_t* values,
             uint16_t* scales) noexcept {
  for (int64_t r = 0; r < kPanel; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const float* group = x + r * ldx + g * kGroup;
      const float top = largest_magnitude(group, kGroup);
      uint16_t& scale = scales[g * kPanel + r];
      scale =
          f32_to_f16(best_scale(group, kGroup, top, importance + g * kGroup, 8.0f, kQ4Candidates, q4_candidate) * top);
      const float inverse = inverse_or_zero(f16_to_f32(scale));
      for (int64_t i = 0; i < kGroup; ++i) {
        const auto q = static_cast<int>(clamped_round(group[i] * inverse, -8.0f, 7.0f)) + 8;
        uint8_t& byte = values[((g * kGroup / 8 + i / 8) * kPanel + r) * 4 + i % 4];
        byte = static_cast<uint8_t>(i % 8 < 4 ? q : byte | q << 4);
      }
    }
  }
}

// The 16 values of half a group as integers in their places.
void store_q6(const float* x, float inverse, uint8_t* values) {
  for (int64_t i = 0; i < 16; ++i) {
    const int q = static_cast<int>(clamped_round(x[i] * inverse, -32.0f, 31.0f)) + 32;
    uint8_t* bytes = values + i % 4;
    if (i < 12) {
      bytes[i / 4 * kPanel * 4] = static_cast<uint8_t>(q);
    } else {
      for (int64_t j = 0; j < 3; ++j) bytes[j * kPanel * 4] |= static_cast<uint8_t>((q >> (4 - 2 * j) & 3) << 6);
    }
  }
}

void pack_q6(const float* x, int64_t ldx, int64_t groups, const float* importance, uint8_t* values, int8_t* steps,
             uint16_t* scales) noexcept {
  constexpr int64_t kHalf = kGroup / 2, kHalves = kSuperGroups * 2;
  for (int64_t r = 0; r < kPanel; ++r) {
    for (int64_t first = 0; first < groups * 2; first += kHalves) {
      const int64_t count = std::min(kHalves, groups * 2 - first);
      float own[kHalves];
      for (int64_t h = 0; h < count; ++h) {
        const int64_t i = (first + h) * kHalf;
        const float* half = x + r * ldx + i;
        const float top = largest_magnitude(half, kHalf);
        own[h] = best_scale(half, kHalf, top, importance + i, 32.0f, kQ6Candidates, q6_candidate) * top;
      }
      uint16_t& scale = scales[first / kHalves * kPanel + r];
      scale = f32_to_f16(largest_magnitude(own, count) / 127.0f);
      const float stored = f16_to_f32(scale), inverse = inverse_or_zero(stored);
      for (int64_t h = 0; h < count; ++h) {
        const float step = clamped_round(own[h] * inverse, -127.0f, 127.0f);
        const int64_t half = first + h;
        steps[half * kPanel + r] = static_cast<int8_t>(step);
        store_q6(x + r * ldx + half * kHalf, inverse_or_zero(stored * step), values + (half * 3 * kPanel + r) * 4);
      }
    }
  }
}

// One weight of a [k, 64] fp32 or [k / 2, 64, 2] bf16 block.
float block_weight(const float* panel, int64_t k, int64_t n) { return panel[k * kBlock + n]; }
float block_weight(const uint16_t* panel, int64_t k, int64_t n) {
  return bf16_to_f32(panel[(k / 2 * kBlock + n) * 2 + k % 2]);
}

template <class T>
void blocked(const T* x, int64_t ldx, int64_t rows, int64_t k, int64_t /*k_chunk*/, const T* panel, int64_t features,
             float* y, int64_t ldy, bool accumulate) noexcept {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < std::min(features, kBlock); ++n) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += double{to_float(x[m * ldx + i])} * block_weight(panel, i, n);
      float& out = y[m * ldy + n];
      out = static_cast<float>(sum) + (accumulate ? out : 0.0f);
    }
  }
}

}  // namespace

const Kernels kReferenceKernels = {
    .rms_norm = rms_norm,
    .silu_mul = silu_mul,
    .block_max = block_max,
    .head_norm_rope = head_norm_rope,
    .short_conv = short_conv,
    .store_kv = {store_kv<KvType::f32>, store_kv<KvType::bf16>, store_kv<KvType::int8>},
    .attention = {attention<KvType::f32>, attention<KvType::bf16>, attention<KvType::int8>},
    .attention_merge = attention_merge,
    .gemm_f32 = gemm<float>,
    .gemm_bf16 = gemm<uint16_t>,
    .quantize_q8 = quantize_q8,
    .gemm_q8 = gemm_quant<q8_weight>,
    .gemm_q6 = gemm_quant<q6_weight>,
    .gemm_q4 = gemm_quant<q4_weight>,
    .blocked_f32 = blocked<float>,
    .blocked_bf16 = blocked<uint16_t>,
    .to_bf16 = to_bf16,
    .pack_q8 = pack_q8,
    .pack_q4 = pack_q4,
    .pack_q6 = pack_q6,
};

}  // namespace lfm
