// fp32 and bf16 linear layers on our own kernels: weights in panels of 16 output rows, lanes hold rows.
#pragma once

#include "kernels/linear.h"

namespace lfm {

// fp32 and bf16 weights times fp32 activations.
std::unique_ptr<Linear> make_panel_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels,
                                          Arena& arena);

inline int64_t stacked_rows(std::span<const TensorView> parts) {
  int64_t rows = 0;
  for (const TensorView& part : parts) rows += part.rows();
  return rows;
}

}  // namespace lfm
