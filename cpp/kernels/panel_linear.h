// Linear layers on our own kernels: weights in panels of 16 output rows, lanes hold rows.
#pragma once

#include "kernels/linear.h"

namespace lfm {

// fp32 and bf16 weights times fp32 activations; int8 weights (groups of 32, fp16 scales: Q8_0's arithmetic) times
// activations quantized per row and group. A q8_0 source is taken over without a second rounding.
std::unique_ptr<Linear> make_panel_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels);

}  // namespace lfm
