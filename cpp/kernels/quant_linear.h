// int8 and int4 linear layers: weights in panels of 16 output rows, in groups of 32 inputs with an fp16 scale (and,
// for int4 with offsets, an fp16 minimum), times activations quantized to int8 per row and group.
#pragma once

#include "kernels/linear.h"

namespace lfm {

// Quantized sources keep their integers in the smallest format that has room for them: q4_0 as int4; q4_1 and q4_k as
// int4 with minima; q8_0 and q5_0 as int8. q5_1, q5_k and q6_k are rounded to int8, and so is any type next to parts of
// another one that need it. Float sources become `type`: int8 by the largest magnitude of a group, int4 by
// quantize_q4_block.
std::unique_ptr<Linear> make_quant_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels,
                                          std::span<const float> importance);

std::unique_ptr<Linear> make_quant_linear(const PackedWeights& weights, const Kernels& kernels);

}  // namespace lfm
