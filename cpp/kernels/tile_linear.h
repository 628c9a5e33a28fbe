// bf16 linear layers on AMX: weights and activations in tiles of 32 inputs.
#pragma once

#include "kernels/linear.h"

namespace lfm {

// Only where kernels.gemm_tiles exists.
std::unique_ptr<Linear> make_tile_linear(std::span<const TensorView> parts, const Kernels& kernels, Arena& arena);

}  // namespace lfm
