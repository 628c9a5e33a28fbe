// int8, 6-bit and int4 linear layers: weights in panels of 16 output rows, in groups of 32 inputs with an fp16 scale
// (for int4 with offsets also an fp16 minimum; for 6 bits an int8 scale for each 16 inputs and an fp16 one for 256),
// times activations quantized to int8 per row and group.
#pragma once

#include "kernels/linear.h"

namespace lfm {

// Quantized sources keep their integers in the smallest format that has room for them: q4_0 as int4; q4_1 and q4_k as
// int4 with minima; q6_k as 6 bits; q8_0 and q5_0 as int8. q5_1 and q5_k are rounded to int8, and so is any type next
// to parts of another one that need it. Float sources become `type`, or more bits where they ask for them, by the
// scales of least squared error. ComputeType::int8 keeps all in int8.
std::unique_ptr<Linear> make_quant_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels,
                                          Arena& arena, std::span<const float> importance);

std::unique_ptr<Linear> make_quant_linear(const PackedWeights& weights, const Kernels& kernels);

}  // namespace lfm
