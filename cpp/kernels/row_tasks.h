// How products of many rows are split over threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/buffer.h"
#include "base/parallel.h"
#include "kernels/kernels.h"

namespace lfm {

// Memory of each thread in `buffer`.
class ThreadFloats {
 public:
  ThreadFloats(Buffer<float>& buffer, int64_t each)
      : all_(buffer.ensure(static_cast<size_t>(max_threads() * each))), each_(each) {}
  float* of_this() const { return all_ + thread_id() * each_; }

 private:
  float* all_;
  int64_t each_;
};

// What a kernel computes together at most, and rows of x that stay in cache meanwhile.
struct TileShape {
  int64_t rows, panels, most_rows = kMostRows;
};

// Of `rows` rows, those that are computed together: blocks of equal size, in whole tiles.
inline int64_t block_rows(TileShape tile, int64_t rows) {
  const int64_t blocks = (rows + tile.most_rows - 1) / tile.most_rows;
  return ((rows + blocks - 1) / blocks + tile.rows - 1) / tile.rows * tile.rows;
}

// task(row, rows, panel, panels) over blocks of rows and ranges of panels: the (block, panel) pairs, block after block,
// are shared out to threads, the panels of one tile together unless rows are so few that memory is the limit.
template <class Task>
void for_panel_tasks(TileShape tile, int64_t rows, int64_t panels, const Task& task) {
  const int64_t blocks = (rows + tile.most_rows - 1) / tile.most_rows, block = block_rows(tile, rows);
  parallel_ranges_balanced(blocks * panels, rows < tile.rows ? 1 : tile.panels, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / panels * block, panel = begin % panels;
      const int64_t count = std::min(end - begin, panels - panel);
      if (row < rows) task(row, std::min(block, rows - row), panel, count);
      begin += count;
    }
  });
}

// For W = [W1; W3] in panels of kWidth outputs, n of each: product(row, count, panel, panels, out, ldo) writes the
// outputs of some panels of W for `count` rows, next to each other those of W1 and of W3; and take(row, count, first,
// width, strips) has strips[count, 2, width] of them, from the output `first` of each on. tile: see above.
template <int64_t kWidth, class Product, class Take>
void multiply_gated_panels(TileShape tile, int64_t rows, int64_t n, Buffer<float>& tiles, const Product& product,
                           const Take& take) {
  const int64_t most_rows = std::max(tile.most_rows, block_rows(tile, rows));
  const int64_t most_floats = std::max(kMostRows * 128, most_rows * tile.panels * 2 * kWidth);  // of a thread
  const ThreadFloats all(tiles, most_floats);
  const int64_t half = n / kWidth;
  for_panel_tasks(tile, rows, half, [&](int64_t row, int64_t count, int64_t panel, int64_t panels) {
    float* strips = all.of_this();
    const int64_t most = most_floats / (2 * kWidth * count) / tile.panels * tile.panels;
    for (const int64_t end = panel + panels; panel < end;) {
      const int64_t strip = std::min(most, end - panel), width = strip * kWidth;
      product(row, count, panel, strip, strips, 2 * width);
      product(row, count, half + panel, strip, strips + width, 2 * width);
      take(row, count, panel * kWidth, width, strips);
      panel += strip;
    }
  });
}

}  // namespace lfm
