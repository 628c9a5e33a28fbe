// int8 and int4 linear layers: weights in panels of 16 output rows, in groups of 32 inputs with an fp16 scale (and,
// for int4 with offsets, an fp16 minimum), times activations quantized to int8 per row and group.
#pragma once

#include "kernels/linear.h"

namespace lfm {

// Sources of the same kind (q8_0; q4_0 as int4 or int8; q4_1 as int4) are taken over exactly, others rounded: to int8
// by the largest magnitude of a group, to int4 by quantize_q4.
std::unique_ptr<Linear> make_quant_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels,
                                          std::span<const float> importance);

std::unique_ptr<Linear> make_quant_linear(const PackedWeights& weights, const Kernels& kernels);

}  // namespace lfm
