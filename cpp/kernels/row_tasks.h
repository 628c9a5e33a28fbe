// How products of many rows are split over threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/parallel.h"
#include "kernels/kernels.h"

namespace lfm {

// task(row, rows, panel, panels) over blocks of rows and ranges of panels: the (block, panel) pairs, block after block,
// are shared out to threads, the panels of one tile together unless rows are so few that memory is the limit. The
// widest tiles have kTileRows rows and kTilePanels panels.
template <int64_t kTileRows, int64_t kTilePanels, class Task>
void for_panel_tasks(int64_t rows, int64_t panels, const Task& task) {
  const int64_t blocks = (rows + kMostRows - 1) / kMostRows;
  const int64_t block = ((rows + blocks - 1) / blocks + kTileRows - 1) / kTileRows * kTileRows;
  parallel_ranges_balanced(blocks * panels, rows < kTileRows ? 1 : kTilePanels, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / panels * block, panel = begin % panels;
      const int64_t count = std::min(end - begin, panels - panel);
      if (row < rows) task(row, std::min(block, rows - row), panel, count);
      begin += count;
    }
  });
}

}  // namespace lfm
