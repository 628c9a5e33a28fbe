// Matrix products of fp32 activations over 16-row panels of fp32 or bf16 weights, written once over `Vec`.
// Included by the translation units of each ISA inside their namespace; hence no include guard and no namespace here.
// A tile is R rows of x by P panels. Every output is one chain of sums over k in order, whatever R and P.

inline constexpr int kPanelVecs = kPanel / Vec::kWidth;
inline constexpr int64_t kFetchSteps = 16;  // inputs between two requests for memory

template <int R, int P>
using Sums = Vec[R][P][kPanelVecs];

template <int R, int P>
inline void set_zero(Sums<R, P>& sums) {
  for (auto& r : sums)
    for (auto& p : r)
      for (Vec& v : p) v = Vec::zero();
}

// y[r][p * kPanel ...] = scaled(sum, r) (+ y), of which the first `features` outputs exist.
template <int R, int P, class Scaled>
[[gnu::always_inline]] inline void write_tile(const Sums<R, P>& sum, float* y, int64_t ldy, int64_t features,
                                              bool accumulate, const Scaled& scaled) noexcept {
  constexpr int64_t kVecs = P * kPanelVecs;  // of a row
  const auto visit = [&](int64_t at, const auto& body) __attribute__((always_inline)) {
    const int64_t r = at / kVecs, v = at % kVecs;
    body(scaled(sum[r][v / kPanelVecs][v % kPanelVecs], r), y + r * ldy + v * Vec::kWidth, v * Vec::kWidth);
  };
  const auto part = [&](Vec v, float* out, int64_t first) {
    const int64_t n = std::min<int64_t>(Vec::kWidth, features - first);
    if (n > 0) store_n(accumulate ? load_n(out, n) + v : v, out, n);
  };
  const auto whole = [&](Vec v, float* out, int64_t) { (accumulate ? Vec::load(out) + v : v).store(out); };
  // With constant indices sums stay in registers, of which eight lanes have too few.
  if constexpr (Vec::kWidth == 8) {
    for (int64_t at = 0; at < R * kVecs; ++at) visit(at, part);
  } else if (features < P * kPanel) {
    for_constants<R * kVecs>([&](auto at) __attribute__((always_inline)) { visit(at(), part); });
  } else {
    for_constants<R * kVecs>([&](auto at) __attribute__((always_inline)) { visit(at(), whole); });
  }
}

template <int R, int P, class T>
inline void gemm_tile(const float* x, int64_t ldx, int64_t k, const T* panels, int64_t features, float* y, int64_t ldy,
                      bool accumulate, Ahead ahead) noexcept {
  Sums<R, P> sum;
  set_zero<R, P>(sum);
  for (int64_t begin = 0; begin < k; begin += kFetchSteps) {
    const int64_t end = std::min(k, begin + kFetchSteps);
    for (int64_t i = begin; i < end; ++i) {
      // All weights of a step before the rows: one register serves all broadcasts.
      Vec w[P][kPanelVecs];
      for (int p = 0; p < P; ++p)
        for (int j = 0; j < kPanelVecs; ++j) w[p][j] = Vec::load(panels + (p * k + i) * kPanel + j * Vec::kWidth);
      for (int r = 0; r < R; ++r) {
        const Vec xs = Vec::set(x[r * ldx + i]);
        for (int p = 0; p < P; ++p)
          for (int j = 0; j < kPanelVecs; ++j) sum[r][p][j] = Vec::fma(xs, w[p][j], sum[r][p][j]);
      }
    }
    ahead.turn<2>();
  }
  write_tile<R, P>(sum, y, ldy, features, accumulate, [](Vec v, int64_t) { return v; });
}

// `rows` rows, at most R of them, in one tile.
template <int R, int P, class T>
inline void gemm_tile_of(int64_t rows, const float* x, int64_t ldx, int64_t k, const T* panels, int64_t features,
                         float* y, int64_t ldy, bool accumulate, Ahead ahead) noexcept {
  if constexpr (R > 1) {
    if (rows < R) return gemm_tile_of<R - 1, P>(rows, x, ldx, k, panels, features, y, ldy, accumulate, ahead);
  }
  gemm_tile<R, P>(x, ldx, k, panels, features, y, ldy, accumulate, ahead);
}

// All rows times P panels at a time, in tiles of at most R rows; several tiles fetch the next panels, each its share.
template <int R, int P, class T>
inline void gemm_rows(const float* x, int64_t ldx, int64_t rows, int64_t k, const T* panels, int64_t features, float* y,
                      int64_t ldy, bool accumulate) noexcept {
  const int64_t tiles = (rows + R - 1) / R, turns = (k + kFetchSteps - 1) / kFetchSteps;
  constexpr int64_t kLines = P * kFetchSteps * kPanel * sizeof(T) / kLine;  // of weights between two turns
  const int64_t share = tiles > 1 ? (kLines + tiles - 1) / tiles * kLine : 0;
  int64_t n = 0;
  for (; n + (P - 1) * kPanel < features; n += P * kPanel) {
    const auto* next = reinterpret_cast<const char*>(panels + (n + P * kPanel) * k);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t r = rows * t / tiles, count = rows * (t + 1) / tiles - r;
      gemm_tile_of<R, P>(count, x + r * ldx, ldx, k, panels + n * k, features - n, y + r * ldy + n, ldy, accumulate,
                         {next + t * turns * share, share});
    }
  }
  if constexpr (P > 1) {
    if (n < features) {
      gemm_rows<R, 1>(x, ldx, rows, k, panels + n * k, features - n, y + n, ldy, accumulate);
    }
  }
}

template <class T>
void gemm(const float* x, int64_t ldx, int64_t rows, int64_t k, const T* panels, int64_t features, float* y,
          int64_t ldy, bool accumulate) noexcept {
  constexpr int kRows = Vec::kWidth == 16 ? 12 : 6;  // with P panels: as many sums as registers allow
  constexpr int kPanels = Vec::kWidth == 16 ? 2 : 1;
  const auto product = rows == 1 ? gemm_rows<1, 4, T> : gemm_rows<kRows, kPanels, T>;
  product(x, ldx, rows, k, panels, features, y, ldy, accumulate);
}
