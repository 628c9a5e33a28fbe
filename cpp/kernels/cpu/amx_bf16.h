// Products of bf16 activations and weights, both in tiles. Included like amx_tiles.h, after it.

inline constexpr int64_t kChunkSteps = 8;  // tiles of weights whose panels stay in the L1 cache

// R tiles of rows times P panels over some steps; sums wait in `sums` between chunks. ahead: turned at each step. One
// tile of rows waits for memory: it asks for the next tile of each panel, in the order of memory, nearer than hardware
// would, and so gets more of it.
// Registers: 0 to 3 for sums, 4 and 5 for x, 6 and 7 for weights.
template <int R, int P>
inline void tile_chunk(const uint16_t* x, int64_t x_tiles, const uint16_t* w, int64_t w_tiles, int64_t begin,
                       int64_t end, float* sums, Ahead ahead) {
  constexpr int kX = 4, kW = 6;
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
      tile_load<kW + p() % 2>(w + (p() * w_tiles + s) * kElements, kTileLine);
      for_constants<R>([&](auto r)
                           __attribute__((always_inline)) { tile_multiply<r() * P + p(), kX + r(), kW + p() % 2>(); });
    });
    if constexpr (R == 1) {
      for (int p = 0; p < P; ++p) {
        Ahead{reinterpret_cast<const char*>(w + (p * w_tiles + s + 1) * kElements), kTileBytes}.template turn<3>();
      }
    }
    ahead.turn<2>();
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

// What block b of `blocks` asks for while `steps` steps of P panels are computed with: its share of those P panels that
// come next. Few blocks wait for memory anyway.
template <int P>
inline Ahead share_of_next(const uint16_t* next, int64_t w_tiles, int64_t steps, int64_t b, int64_t blocks) {
  const int64_t sharers = blocks / P;  // of a panel
  if (sharers < 2) return {nullptr, 0};
  const int64_t lines = (steps * kTileBytes / kLine + sharers * steps - 1) / (sharers * steps);  // at a step
  const int64_t panel = std::min<int64_t>(b / sharers, P - 1), share = b - panel * sharers;
  const uint16_t* w = next + panel * w_tiles * kTileBytes / static_cast<int64_t>(sizeof(uint16_t));
  return {reinterpret_cast<const char*>(w) + share * lines * steps * kLine, lines * kLine};
}

// All rows, at most kMostTiledRows, times P panels at a time, over as many steps at a time as x stays in the L2 cache.
template <int R, int P>
inline void tile_rows(const uint16_t* x, int64_t rows, int64_t steps, const uint16_t* w, int64_t features, float* y,
                      int64_t ldy, bool accumulate, float* sums) {
  constexpr int64_t kElements = kTileBytes / sizeof(uint16_t);
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows, blocks = (tiles + R - 1) / R;
  const int64_t most = tile_steps(rows, steps), whole = features + kPanel - 1 - (features + kPanel - 1) % (P * kPanel);
  const int64_t chunk = blocks == 1 ? steps : kChunkSteps;
  for (int64_t first = 0; first < steps; first += most) {
    const int64_t last = std::min(steps, first + most);
    const uint16_t* panels = w;
    float* kept = sums;
    for (int64_t n = 0; n < whole; n += P * kPanel, panels += P * steps * kElements) {
      for (int64_t begin = first; begin < last; begin += chunk) {
        const int64_t end = std::min(last, begin + chunk);
        const uint16_t* next = panels + (end < last ? end : P * steps + first) * kElements;
        for (int64_t b = 0; b < blocks; ++b) {
          const auto run = [&](auto r) __attribute__((always_inline)) {
            constexpr int kR = r();
            const int64_t row = b * R * kTileRows;
            float* block = kept + b * R * P * kTileLanes;
            tile_chunk<kR, P>(x + b * R * steps * kElements, steps, panels, steps, begin, end, block,
                              share_of_next<P>(next, steps, end - begin, b, blocks));
            if (end == steps) {
              write_tiles<kR, P>(block, rows - row, features - n, y + row * ldy + n, ldy, accumulate);
            }
          };
          if (R > 1 && tiles - b * R < R) {
            run(std::integral_constant<int, 1>{});
          } else {
            run(std::integral_constant<int, R>{});
          }
        }
      }
      if (most < steps) kept += blocks * R * P * kTileLanes;
    }
  }
  if constexpr (P > 1) {
    if (whole < features) {
      tile_rows<R, P - 1>(x, rows, steps, w + whole / kPanel * steps * kElements, features - whole, y + whole, ldy,
                          accumulate, sums);
    }
  }
}

void gemm_tiles(const uint16_t* x, int64_t rows, int64_t steps, const uint16_t* panels, int64_t features, float* y,
                int64_t ldy, bool accumulate, float* sums) noexcept {
  for (int64_t r = 0; r < rows; r += kMostTiledRows) {
    const int64_t count = std::min(kMostTiledRows, rows - r);
    const TileScope scope([&](int t) { return t < 6 ? std::min(kTileRows, count) : kTileRows; },
                          [](int) { return kTileLine; });
    const auto product = count <= kTileRows ? tile_rows<1, 4> : tile_rows<2, 2>;
    for (int64_t n = 0; n < features; n += kMostTiledFeatures) {
      product(x + r * steps * kGroup, count, steps, panels + n * steps * kGroup,
              std::min(kMostTiledFeatures, features - n), y + r * ldy + n, ldy, accumulate, sums);
    }
  }
}

// 32 inputs of a row, in bf16.
inline void store_step(Vec low, Vec high, uint16_t* to) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v));
}

void to_tiles(const float* x, int64_t n, uint16_t* row) noexcept {
  constexpr int64_t kStep = 2 * Vec::kWidth;
  for (int64_t i = 0; i < n; i += kStep, row += kTileRows * kStep) {
    const int64_t rest = n - i - Vec::kWidth;
    store_step(load_n(x + i, std::min(Vec::kWidth, n - i)),
               rest > 0 ? load_n(x + i + Vec::kWidth, std::min(Vec::kWidth, rest)) : Vec::zero(), row);
  }
}

void silu_mul_to_tiles(const float* gate_up, int64_t rows, int64_t n, int64_t first, int64_t steps,
                       uint16_t* x) noexcept {
  constexpr int64_t kWidth = Vec::kWidth, kStep = 2 * kWidth;
  for (int64_t r = 0; r < rows; ++r, gate_up += 2 * n) {
    const auto value = [&](int64_t i) { return silu(Vec::load(gate_up + i)) * Vec::load(gate_up + n + i); };
    for (int64_t i = 0; i < n;) {
      const int64_t step = (first + i) / kStep, half = (first + i) % kStep;
      uint16_t* to = x + ((r / kTileRows * steps + step) * kTileRows + r % kTileRows) * kStep + half;
      if (half == 0 && i + kStep <= n) {
        store_step(value(i), value(i + kWidth), to);
        i += kStep;
      } else {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(value(i).v));
        i += kWidth;
      }
    }
  }
}
