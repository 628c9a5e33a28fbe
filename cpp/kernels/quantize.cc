#include "kernels/quantize.h"

#include <algorithm>
#include <cmath>

namespace lfm {
namespace {

float round_clamped(float v, float low, float high) { return std::min(std::max(std::nearbyint(v), low), high); }

// Squared error of x rounded to multiples of `scale`, and in `refit` the scale that fits these integers best.
float q4_error(const float* x, const float* weight, float scale, float& refit) {
  const float inverse = 1.0f / scale;
  float error = 0.0f, xq = 0.0f, qq = 0.0f;
  for (int64_t i = 0; i < kGroup; ++i) {
    const float q = round_clamped(x[i] * inverse, -8.0f, 7.0f), d = x[i] - scale * q;
    error += weight[i] * d * d;
    xq += weight[i] * x[i] * q;
    qq += weight[i] * q * q;
  }
  refit = qq > 0.0f ? xq / qq : 0.0f;
  return error;
}

}  // namespace

IntGroup quantize_q8_block(const float* x) {
  float max = 0.0f;
  for (int64_t i = 0; i < kGroup; ++i) max = std::max(max, std::fabs(x[i]));
  IntGroup block = {};
  block.scale = f32_to_f16(max / 127.0f);
  const float scale = f16_to_f32(block.scale);  // divide by the scale that is stored, not by the exact one
  const float inverse = scale > 0.0f && std::isfinite(scale) ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < kGroup; ++i) {
    block.q[i] = static_cast<int8_t>(round_clamped(x[i] * inverse, -127.0f, 127.0f));
  }
  return block;
}

IntGroup quantize_q4_block(const float* x, const float* importance, int64_t n) {
  float values[kGroup] = {}, weight[kGroup] = {};
  float max = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    values[i] = x[i];
    // A trace of plain squared error keeps inputs of importance 0 sensible.
    weight[i] = importance != nullptr ? importance[i] + 1e-20f : 1.0f;
    max = std::max(max, std::fabs(x[i]));
  }
  IntGroup block = {};
  // The integers reach from -8 to 7, so the sign of the scale matters.
  float best_error = std::numeric_limits<float>::infinity();
  const auto consider = [&](float scale) {
    const uint16_t bits = f32_to_f16(scale);
    const float stored = f16_to_f32(bits);
    if (stored == 0.0f || !std::isfinite(1.0f / stored)) return 0.0f;
    float refit;
    const float error = q4_error(values, weight, stored, refit);
    if (error < best_error) best_error = error, block.scale = bits;
    return refit;
  };
  for (const float sign : {1.0f, -1.0f}) {
    for (int step = 0; step < 16; ++step) {
      const float scale = sign * max / (5.5f + 0.25f * static_cast<float>(step));
      const float refit = consider(scale);
      if (refit != 0.0f) consider(refit);
    }
  }
  if (std::isinf(best_error)) {
    block.scale = f32_to_f16(max / 8.0f);  // too small to divide by: zeros; too large for fp16: infinity, an error
    return block;
  }
  const float inverse = 1.0f / f16_to_f32(block.scale);
  for (int64_t i = 0; i < kGroup; ++i) {
    block.q[i] = static_cast<int8_t>(round_clamped(values[i] * inverse, -8.0f, 7.0f));
  }
  return block;
}

}  // namespace lfm
