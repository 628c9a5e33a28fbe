// Few rows (decoding) times weights in oneDNN's blocked layouts, written once over `Vec` and a product policy.
// Included by the AVX-512 translation units inside their namespace; hence no include guard and no namespace here.

struct F32Product {
  using X = float;
  using W = float;
  static constexpr int64_t kStep = 1;  // inputs of one step
  static Vec broadcast(const X* x) { return Vec::set(*x); }
  static Vec add(Vec x, const W* w, Vec sum) { return Vec::fma(x, Vec::load(w), sum); }
};

template <class Product, int R>
inline void blocked_tile(const typename Product::X* x, int64_t ldx, int64_t k, int64_t k_chunk,
                         const typename Product::W* panel, int64_t features, float* y, int64_t ldy, bool accumulate,
                         Ahead ahead) noexcept {
  constexpr int kVecs = kBlock / Vec::kWidth;
  Vec total[R][kVecs];
  for (int64_t begin = 0; begin < k; begin += k_chunk) {
    Vec sum[R][kVecs];
    for (auto& row : sum)
      for (Vec& v : row) v = Vec::zero();
    const int64_t end = std::min(k, begin + k_chunk);
    for (int64_t i = begin; i < end; i += Product::kStep) {
      const auto* w = panel + i * kBlock;
      ahead.turn<2>();
      for (int r = 0; r < R; ++r) {
        const auto xs = Product::broadcast(x + r * ldx + i);
        for (int v = 0; v < kVecs; ++v) sum[r][v] = Product::add(xs, w + v * Vec::kWidth * Product::kStep, sum[r][v]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kVecs; ++v) total[r][v] = begin == 0 ? sum[r][v] : total[r][v] + sum[r][v];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVecs; ++v) {
      const int64_t n = std::min<int64_t>(Vec::kWidth, features - v * Vec::kWidth);
      if (n <= 0) break;
      float* out = y + r * ldy + v * Vec::kWidth;
      store_n(accumulate ? load_n(out, n) + total[r][v] : total[r][v], out, n);
    }
}

// `rows` rows, at most R of them, in one tile.
template <class Product, int R>
inline void blocked_tile_of(int64_t rows, const typename Product::X* x, int64_t ldx, int64_t k, int64_t k_chunk,
                            const typename Product::W* panel, int64_t features, float* y, int64_t ldy, bool accumulate,
                            Ahead ahead) noexcept {
  if constexpr (R > 1) {
    if (rows < R) {
      return blocked_tile_of<Product, R - 1>(rows, x, ldx, k, k_chunk, panel, features, y, ldy, accumulate, ahead);
    }
  }
  blocked_tile<Product, R>(x, ldx, k, k_chunk, panel, features, y, ldy, accumulate, ahead);
}

template <class Product>
void blocked(const typename Product::X* x, int64_t ldx, int64_t rows, int64_t k, int64_t k_chunk,
             const typename Product::W* panel, int64_t features, float* y, int64_t ldy, bool accumulate) noexcept {
  constexpr int kRows = 6;  // as many sums as registers allow
  constexpr int64_t kLines = kBlock * Product::kStep * sizeof(typename Product::W) / kLine;  // of weights in a step
  const int64_t tiles = (rows + kRows - 1) / kRows, steps = k / Product::kStep;
  // Several tiles read the block from cache, and meanwhile each fetches its share of the next one.
  const int64_t share = tiles > 1 ? (kLines + tiles - 1) / tiles * kLine : 0;
  Ahead ahead = {reinterpret_cast<const char*>(panel + k * kBlock), share};
  for (int64_t t = 0; t < tiles; ++t, ahead.next += steps * share) {
    const int64_t row = rows * t / tiles, count = rows * (t + 1) / tiles - row;
    blocked_tile_of<Product, kRows>(count, x + row * ldx, ldx, k, k_chunk, panel, features, y + row * ldy, ldy,
                                    accumulate, ahead);
  }
}
