// Rows times weights in oneDNN's blocked layouts, written once over `Vec` and a product policy.
// Included by the AVX-512 translation units inside their namespace; hence no include guard and no namespace here.

struct F32Product {
  using X = float;
  using W = float;
  static constexpr int64_t kStep = 1;  // inputs of one step
  static Vec broadcast(const X* x) { return Vec::set(*x); }
  static Vec add(Vec x, const W* w, Vec sum) { return Vec::fma(x, Vec::load(w), sum); }
};

// The inputs [begin, end) of one chunk, all of `k`, and where the totals of its tile's rows wait for the next chunk.
struct KRange {
  int64_t begin, end, k;
  float* totals;  // [rows, kBlock]
};

template <class Product, int R>
inline void blocked_tile(const typename Product::X* x, int64_t ldx, KRange range, const typename Product::W* panel,
                         int64_t features, float* y, int64_t ldy, bool accumulate, Ahead ahead) noexcept {
  constexpr int kVecs = kBlock / Vec::kWidth;
  Vec sum[R][kVecs];
  for (auto& row : sum)
    for (Vec& v : row) v = Vec::zero();
  for (int64_t i = range.begin; i < range.end; i += Product::kStep) {
    const auto* w = panel + i * kBlock;
    ahead.turn<2>();
    for (int r = 0; r < R; ++r) {
      const auto xs = Product::broadcast(x + r * ldx + i);
      for (int v = 0; v < kVecs; ++v) sum[r][v] = Product::add(xs, w + v * Vec::kWidth * Product::kStep, sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVecs; ++v) {
      float* waiting = range.totals + r * kBlock + v * Vec::kWidth;
      const Vec total = range.begin == 0 ? sum[r][v] : Vec::load(waiting) + sum[r][v];
      if (range.end < range.k) {
        total.store(waiting);
        continue;
      }
      const int64_t n = std::min<int64_t>(Vec::kWidth, features - v * Vec::kWidth);
      if (n <= 0) break;
      float* out = y + r * ldy + v * Vec::kWidth;
      store_n(accumulate ? load_n(out, n) + total : total, out, n);
    }
}

// `rows` rows, at most R of them, in one tile.
template <class Product, int R>
inline void blocked_tile_of(int64_t rows, const typename Product::X* x, int64_t ldx, KRange range,
                            const typename Product::W* panel, int64_t features, float* y, int64_t ldy, bool accumulate,
                            Ahead ahead) noexcept {
  if constexpr (R > 1) {
    if (rows < R) {
      return blocked_tile_of<Product, R - 1>(rows, x, ldx, range, panel, features, y, ldy, accumulate, ahead);
    }
  }
  blocked_tile<Product, R>(x, ldx, range, panel, features, y, ldy, accumulate, ahead);
}

template <class Product>
inline void blocked_rows(const typename Product::X* x, int64_t ldx, int64_t rows, int64_t k, int64_t k_chunk,
                         const typename Product::W* panel, int64_t features, float* y, int64_t ldy,
                         bool accumulate) noexcept {
  constexpr int kRows = 6;  // as many sums as registers allow
  constexpr int64_t kLines = kBlock * Product::kStep * sizeof(typename Product::W) / kLine;  // of weights in a step
  const int64_t tiles = (rows + kRows - 1) / kRows;
  alignas(64) float totals[kMostRows * kBlock];
  for (int64_t begin = 0; begin < k; begin += k_chunk) {
    const int64_t end = std::min(k, begin + k_chunk);
    // Several tiles read a chunk from cache, and meanwhile each fetches its share of the next one, which lies behind
    // it.
    const int64_t after = end < k ? std::min(k, end + k_chunk) - end : std::min(k, k_chunk);
    const int64_t turns = tiles * (end - begin);
    const int64_t share = tiles > 1 ? (kLines * after + turns - 1) / turns * kLine : 0;
    const auto* next = reinterpret_cast<const char*>(panel + end * kBlock);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = rows * t / tiles, count = rows * (t + 1) / tiles - row;
      const KRange range = {begin, end, k, totals + row * kBlock};
      const Ahead ahead = {next + t * ((end - begin) / Product::kStep) * share, share};
      blocked_tile_of<Product, kRows>(count, x + row * ldx, ldx, range, panel, features, y + row * ldy, ldy, accumulate,
                                      ahead);
    }
  }
}

template <class Product>
void blocked(const typename Product::X* x, int64_t ldx, int64_t rows, int64_t k, int64_t k_chunk,
             const typename Product::W* panel, int64_t features, float* y, int64_t ldy, bool accumulate) noexcept {
  for (int64_t r = 0; r < rows; r += kMostRows) {
    blocked_rows<Product>(x + r * ldx, ldx, std::min(kMostRows, rows - r), k, k_chunk, panel, features, y + r * ldy,
                          ldy, accumulate);
  }
}
