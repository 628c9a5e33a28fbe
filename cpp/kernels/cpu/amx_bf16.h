// Products of bf16 activations and weights, both in tiles. Included like amx_tiles.h, after it.

inline constexpr int64_t kChunkSteps = 8;  // tiles of weights whose panels stay in the L1 cache

// R tiles of rows times P panels over some steps; sums wait in `sums` between chunks.
// Registers: R * P for sums, R for x, P for weights.
template <int R, int P>
inline void tile_chunk(const uint16_t* x, int64_t x_tiles, const uint16_t* w, int64_t w_tiles, int64_t begin,
                       int64_t end, float* sums) {
  constexpr int kX = R * P, kW = kX + R;
  constexpr int64_t kElements = kTileBytes / sizeof(uint16_t);
  for_constants<R * P>([&](auto c) __attribute__((always_inline)) {
    if (begin == 0) {
      tile_zero<c()>();
    } else {
      tile_load<c()>(sums + c() * kTileLanes, kTileLine);
    }
  });
  for (int64_t s = begin; s < end; ++s) {
    for_constants<R>([&](auto r) __attribute__((always_inline)) {
      tile_load<kX + r()>(x + (r() * x_tiles + s) * kElements, kTileLine);
    });
    for_constants<P>([&](auto p) __attribute__((always_inline)) {
      tile_load<kW + p()>(w + (p() * w_tiles + s) * kElements, kTileLine);
      for_constants<R>([&](auto r)
                           __attribute__((always_inline)) { tile_multiply<r() * P + p(), kX + r(), kW + p()>(); });
    });
  }
  for_constants<R * P>([&](auto c) __attribute__((always_inline)) { tile_store<c()>(sums + c() * kTileLanes); });
}

// The sums of R tiles of rows and P panels to the first `rows` rows and `features` features of y.
template <int R, int P>
inline void write_tiles(const float* sums, int64_t rows, int64_t features, float* y, int64_t ldy, bool accumulate) {
  for (int64_t m = 0; m < std::min<int64_t>(rows, R * kTileRows); ++m) {
    for (int64_t p = 0; p < P && p * kPanel < features; ++p) {
      const int64_t n = std::min(kPanel, features - p * kPanel);
      const Vec v = Vec::load(sums + (m / kTileRows * P + p) * kTileLanes + m % kTileRows * kPanel);
      float* at = y + m * ldy + p * kPanel;
      store_n(accumulate ? load_n(at, n) + v : v, at, n);
    }
  }
}

// All rows, at most kMostTiledRows, times P panels at a time. Hardware fetches ahead as well as prefetches would, and
// those take the line fill buffers that tile loads need.
template <int R, int P>
inline void tile_rows(const uint16_t* x, int64_t rows, int64_t steps, const uint16_t* w, int64_t features, float* y,
                      int64_t ldy, bool accumulate) {
  constexpr int64_t kElements = kTileBytes / sizeof(uint16_t);
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows, blocks = (tiles + R - 1) / R;
  alignas(64) float sums[(kMostTiledRows / kTileRows + R - 1) / R][R * P * kTileLanes];
  int64_t n = 0;
  for (; n + (P - 1) * kPanel < features; n += P * kPanel, w += P * steps * kElements) {
    for (int64_t begin = 0; begin < steps; begin += kChunkSteps) {
      const int64_t end = std::min(steps, begin + kChunkSteps);
      for (int64_t b = 0; b < blocks; ++b) {
        const auto run = [&](auto r) __attribute__((always_inline)) {
          constexpr int kR = r();
          const int64_t row = b * R * kTileRows;
          tile_chunk<kR, P>(x + b * R * steps * kElements, steps, w, steps, begin, end, sums[b]);
          if (end == steps) {
            write_tiles<kR, P>(sums[b], rows - row, features - n, y + row * ldy + n, ldy, accumulate);
          }
        };
        if (R > 1 && tiles - b * R < R) {
          run(std::integral_constant<int, 1>{});
        } else {
          run(std::integral_constant<int, R>{});
        }
      }
    }
  }
  if constexpr (P > 1) {
    if (n < features) tile_rows<R, P - 1>(x, rows, steps, w, features - n, y + n, ldy, accumulate);
  }
}

void gemm_tiles(const uint16_t* x, int64_t rows, int64_t steps, const uint16_t* panels, int64_t features, float* y,
                int64_t ldy, bool accumulate) noexcept {
  for (int64_t r = 0; r < rows; r += kMostTiledRows) {
    const int64_t count = std::min(kMostTiledRows, rows - r);
    // Registers 0 and 1 of few rows: sums and x.
    const TileScope scope([&](int t) { return t < 2 ? std::min(kTileRows, count) : kTileRows; },
                          [](int) { return kTileLine; });
    const auto product = count <= kTileRows ? tile_rows<1, 1> : tile_rows<2, 2>;
    product(x + r * steps * kGroup, count, steps, panels, features, y + r * ldy, ldy, accumulate);
  }
}
