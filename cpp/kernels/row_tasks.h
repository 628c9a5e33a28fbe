// How products of many rows are split over threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/buffer.h"
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

// For W = [W1; W3] in panels of kWidth outputs, n of each: y[rows, n] = silu(x W1^T) * (x W3^T). Strips of both go to a
// small tile, and from there to y. product(row, count, panel, panels, out, ldo) writes the outputs of some panels of W
// for `count` rows. kTileRows, kTilePanels: see above.
template <int64_t kTileRows, int64_t kTilePanels, int64_t kWidth, class Product>
void multiply_gated_panels(const Kernels& kernels, int64_t rows, int64_t n, Buffer<float>& tiles, float* y,
                           const Product& product) {
  constexpr int64_t kTile = kMostRows * 128;  // floats of a thread, 48 KB
  static_assert(2 * kTilePanels * kWidth <= 128);
  float* all = tiles.ensure(static_cast<size_t>(max_threads() * kTile));
  const int64_t half = n / kWidth;
  for_panel_tasks<kTileRows, kTilePanels>(rows, half, [&](int64_t row, int64_t count, int64_t panel, int64_t panels) {
    float* tile = all + thread_id() * kTile;
    const int64_t most = kTile / (2 * kWidth * count) / kTilePanels * kTilePanels;
    for (const int64_t end = panel + panels; panel < end;) {
      const int64_t strip = std::min(most, end - panel), width = strip * kWidth;
      product(row, count, panel, strip, tile, 2 * width);
      product(row, count, half + panel, strip, tile + width, 2 * width);
      for (int64_t r = 0; r < count; ++r) {
        const float* gate = tile + r * 2 * width;
        kernels.silu_mul(gate, gate + width, width, y + (row + r) * n + panel * kWidth);
      }
      panel += strip;
    }
  });
}

}  // namespace lfm
