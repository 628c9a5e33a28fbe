// Rounding groups of 32 weights to integers with an fp16 scale.
#pragma once

#include "base/tensor.h"

namespace lfm {

inline bool is_finite_f16(uint16_t bits) { return (bits & 0x7c00u) != 0x7c00u; }

// 32 values as integers: value i = scale * q[i].
struct IntGroup {
  uint16_t scale;  // fp16
  int8_t q[kGroup];
};

// x[32] as int8 of -127 to 127, scale = max|x| / 127. A scale that overflows fp16 is returned as infinity.
IntGroup quantize_q8_block(const float* x);

// The first n of x[32] as int4 of -8 to 7: of many candidate scales the one with the least squared error, the errors
// weighted by importance[n] if that is not null; every candidate is refined by least squares. Values past n become 0.
IntGroup quantize_q4_block(const float* x, const float* importance, int64_t n);

}  // namespace lfm
