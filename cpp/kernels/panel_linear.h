// fp32 and bf16 linear layers on our own kernels: weights in panels of 16 output rows, lanes hold rows. Also how all
// panel layers split their work.
#pragma once

#include <algorithm>

#include "base/parallel.h"
#include "kernels/linear.h"

namespace lfm {

// fp32 and bf16 weights times fp32 activations.
std::unique_ptr<Linear> make_panel_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels);

inline int64_t stacked_rows(std::span<const TensorView> parts) {
  int64_t rows = 0;
  for (const TensorView& part : parts) rows += part.rows();
  return rows;
}

// task(row, rows, panel, panels) over blocks of rows and groups of panels, one task after the other on each thread.
template <class Task>
void for_panel_tasks(int64_t rows, int64_t panels, const Task& task) {
  constexpr int64_t kRowBlock = 96;   // rows of x that stay in cache while panels stream past them
  constexpr int64_t kPanelGrain = 4;  // panels of one task
  const int64_t groups = (panels + kPanelGrain - 1) / kPanelGrain, blocks = (rows + kRowBlock - 1) / kRowBlock;
  parallel_for(blocks * groups, [&](int64_t i) {
    const int64_t row = i / groups * kRowBlock, panel = i % groups * kPanelGrain;
    task(row, std::min(kRowBlock, rows - row), panel, std::min(kPanelGrain, panels - panel));
  });
}

}  // namespace lfm
