// Matrix products of fp32 activations over 16-row panels of fp32 or bf16 weights, written once over `Vec`.
// Included by the translation units of each ISA inside their namespace; hence no include guard and no namespace here.
// A tile is R rows of x by P panels. Every output is one chain of sums over k in order, whatever R and P.

inline constexpr int kPanelVecs = kPanel / Vec::kWidth;

inline void write_panel(const Vec* sum, float* y, int64_t valid, bool accumulate) {
  for (int i = 0; i < kPanelVecs; ++i) {
    const int64_t n = std::min<int64_t>(Vec::kWidth, valid - i * Vec::kWidth);
    if (n <= 0) return;
    float* out = y + i * Vec::kWidth;
    store_n(accumulate ? load_n(out, n) + sum[i] : sum[i], out, n);
  }
}

template <int R, int P, class T>
inline void gemm_tile(const float* x, int64_t ldx, int64_t k, const T* panels, int64_t features, float* y, int64_t ldy,
                      bool accumulate) noexcept {
  Vec sum[R][P][kPanelVecs];
  for (auto& row : sum)
    for (auto& panel : row)
      for (Vec& v : panel) v = Vec::zero();
  for (int64_t i = 0; i < k; ++i) {
    Vec xs[R];
    for (int r = 0; r < R; ++r) xs[r] = Vec::set(x[r * ldx + i]);
    for (int p = 0; p < P; ++p) {
      for (int j = 0; j < kPanelVecs; ++j) {
        const Vec w = Vec::load(panels + (p * k + i) * kPanel + j * Vec::kWidth);
        for (int r = 0; r < R; ++r) sum[r][p][j] = Vec::fma(xs[r], w, sum[r][p][j]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) {
      write_panel(sum[r][p], y + r * ldy + p * kPanel, features - p * kPanel, accumulate);
    }
}

template <int R, int P, class T>
inline void gemm_rows(const float* x, int64_t ldx, int64_t rows, int64_t k, const T* panels, int64_t features, float* y,
                      int64_t ldy, bool accumulate) noexcept {
  int64_t n = 0;
  for (; n + (P - 1) * kPanel < features; n += P * kPanel) {
    for (int64_t r = 0; r < rows; r += R) {
      gemm_tile<R, P>(x + r * ldx, ldx, k, panels + n * k, features - n, y + r * ldy + n, ldy, accumulate);
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
  constexpr int64_t kRows = Vec::kWidth == 16 ? 12 : 6;  // with P panels: as many sums as registers allow
  constexpr int kPanels = Vec::kWidth == 16 ? 2 : 1;
  const int64_t whole = rows / kRows * kRows;
  if (whole > 0) gemm_rows<kRows, kPanels>(x, ldx, whole, k, panels, features, y, ldy, accumulate);
  x += whole * ldx, y += whole * ldy, rows -= whole;
  const int64_t pairs = rows / 2 * 2;
  if (pairs > 0) gemm_rows<2, 2>(x, ldx, pairs, k, panels, features, y, ldy, accumulate);
  if (rows > pairs) gemm_rows<1, 4>(x + pairs * ldx, ldx, 1, k, panels, features, y + pairs * ldy, ldy, accumulate);
}
