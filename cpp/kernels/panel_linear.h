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

inline constexpr int64_t kMostPanelRows = 96;  // rows of x that stay in cache while panels stream past them

// task(row, rows, panel, panels) over blocks of rows and ranges of panels: the (block, panel) pairs, block after block,
// are shared out to threads, the panels of one tile together unless rows are so few that memory is the limit.
template <class Task>
void for_panel_tasks(int64_t rows, int64_t panels, const Task& task) {
  constexpr int64_t kRowGrain = 4, kPanelGrain = 3;  // of the widest tiles
  const int64_t blocks = (rows + kMostPanelRows - 1) / kMostPanelRows;
  const int64_t block = ((rows + blocks - 1) / blocks + kRowGrain - 1) / kRowGrain * kRowGrain;
  parallel_ranges_balanced(blocks * panels, rows < kRowGrain ? 1 : kPanelGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / panels * block, panel = begin % panels;
      const int64_t count = std::min(end - begin, panels - panel);
      if (row < rows) task(row, std::min(block, rows - row), panel, count);
      begin += count;
    }
  });
}

}  // namespace lfm
