// The SIMD kernels, written once over a vector type `Vec` and the integer dot product `dot4`.
// Included by avx2.cc and avx512.cc inside their namespace, after the header that defines those;
// hence no include guard and no namespace here. Each translation unit is compiled for its own ISA.

// ---- elementwise ------------------------------------------------------------------------------------------------

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) noexcept {
  Vec sum = Vec::zero();
  for_lanes(0, n, [&](int64_t i, int64_t k) {
    const Vec v = load_n(x + i, k);
    sum = Vec::fma(v, v, sum);
  });
  const Vec scale = Vec::set(1.0f / std::sqrt(sum.sum() / static_cast<float>(n) + eps));
  for_lanes(0, n, [&](int64_t i, int64_t k) { store_n(load_n(x + i, k) * scale * load_n(weight + i, k), out + i, k); });
}

void silu_mul(const float* gate, const float* up, int64_t n, float* out) noexcept {
  for_lanes(0, n, [&](int64_t i, int64_t k) {
    const Vec g = load_n(gate + i, k);
    const Vec silu = g / (Vec::set(1.0f) + exp(Vec::zero() - g));
    store_n(silu * load_n(up + i, k), out + i, k);
  });
}

void head_norm_rope(float* x, const float* norm_weight, float eps, const float* cos, const float* sin, float scale,
                    int64_t head_dim) noexcept {
  if (norm_weight != nullptr) rms_norm(x, norm_weight, eps, head_dim, x);
  const int64_t half = head_dim / 2;
  const Vec s = Vec::set(scale);
  for_lanes(0, half, [&](int64_t i, int64_t k) {
    const Vec a = load_n(x + i, k), b = load_n(x + half + i, k);
    const Vec c = load_n(cos + i, k), d = load_n(sin + i, k);
    store_n(Vec::fma(a, c, Vec::zero() - b * d) * s, x + i, k);
    store_n(Vec::fma(b, c, a * d) * s, x + half + i, k);
  });
}

void short_conv(const float* bcx, int64_t tokens, int64_t hidden, int64_t begin, int64_t end, const float* weight,
                const float* bias, int64_t taps, float* state, float* y) noexcept {
  const int64_t past = taps - 1;
  for_lanes(begin, end, [&](int64_t c, int64_t n) {
    const Vec offset = bias != nullptr ? load_n(bias + c, n) : Vec::zero();
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = bcx + t * 3 * hidden + c;
      const Vec bx = load_n(row, n) * load_n(row + 2 * hidden, n);
      Vec sum = offset;
      for (int64_t j = 0; j < past; ++j) {
        const Vec old = load_n(state + j * hidden + c, n);
        sum = Vec::fma(load_n(weight + j * hidden + c, n), old, sum);
        if (j > 0) store_n(old, state + (j - 1) * hidden + c, n);
      }
      if (past > 0) store_n(bx, state + (past - 1) * hidden + c, n);
      sum = Vec::fma(load_n(weight + past * hidden + c, n), bx, sum);
      store_n(load_n(row + hidden, n) * sum, y + t * hidden + c, n);
    }
  });
}

void to_bf16(const float* x, int64_t n, uint16_t* out) noexcept {
  int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) Vec::load(x + i).store(out + i);
  for (; i < n; ++i) out[i] = f32_to_bf16(x[i]);
}

// ---- matrix products over 16-row panels -----------------------------------------------------------------------------
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

void quantize_q8(const float* x, int64_t n, int8_t* values, float* scales, int32_t* sums) noexcept {
  for (int64_t g = 0; g * kGroup < n; ++g) {
    const int64_t begin = g * kGroup, end = std::min(n, begin + kGroup);
    Vec top = Vec::zero();
    for_lanes(begin, end, [&](int64_t i, int64_t k) {
      const Vec v = load_n(x + i, k);
      top = Vec::max(top, Vec::max(v, Vec::zero() - v));
    });
    const float max = top.max();
    const float inverse = max > kSmallestQ8Max ? 127.0f / max : 0.0f;
    int32_t sum = 0;
    for (int64_t i = begin; i < begin + kGroup; i += Vec::kWidth) {
      const Vec v = i >= end ? Vec::zero() : load_n(x + i, std::min<int64_t>(Vec::kWidth, end - i));
      round_to_i8(v * Vec::set(inverse), values + i, sum);
    }
    scales[g] = max / 127.0f;
    sums[g] = sum;
  }
}

template <int R, int P>
inline void q8_tile(const Q8Rows& x, int64_t row, int64_t groups, const Q8Panels& w, int64_t panel, int64_t features,
                    float* y, int64_t ldy, bool accumulate) noexcept {
  Vec sum[R][P][kPanelVecs];
  for (auto& r : sum)
    for (auto& p : r)
      for (Vec& v : p) v = Vec::zero();
  for (int64_t g = 0; g < groups; ++g) {
    for (int p = 0; p < P; ++p) {
      const int64_t block = (panel + p) * groups + g;
      const uint8_t* values = w.values + block * kPanel * kGroup;
      IntVec dot[R][kPanelVecs];
      for (int r = 0; r < R; ++r) {
        const int32_t start = kDotIncludesOffset ? -128 * x.sums[(row + r) * groups + g] : 0;
        for (IntVec& d : dot[r]) d = IntVec::set(start);
      }
      for (int64_t j = 0; j < kGroup / 4; ++j) {
        for (int r = 0; r < R; ++r) {
          int32_t quad;
          std::memcpy(&quad, x.values + ((row + r) * groups + g) * kGroup + j * 4, sizeof(quad));
          for (int i = 0; i < kPanelVecs; ++i) {
            dot[r][i] = dot4(dot[r][i], values + j * kPanel * 4 + i * Vec::kWidth * 4, quad);
          }
        }
      }
      for (int i = 0; i < kPanelVecs; ++i) {
        const Vec scale = Vec::load_f16(w.scales + block * kPanel + i * Vec::kWidth);
        for (int r = 0; r < R; ++r) {
          const Vec both = scale * Vec::set(x.scales[(row + r) * groups + g]);
          sum[r][p][i] = Vec::fma(dot[r][i].to_float(), both, sum[r][p][i]);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) {
      write_panel(sum[r][p], y + (row + r) * ldy + p * kPanel, features - p * kPanel, accumulate);
    }
}

template <int R, int P>
inline void q8_rows(const Q8Rows& x, int64_t row, int64_t end, int64_t groups, const Q8Panels& w, int64_t first,
                    int64_t features, float* y, int64_t ldy, bool accumulate) noexcept {
  int64_t n = first * kPanel;
  for (; n + (P - 1) * kPanel < features; n += P * kPanel) {
    for (int64_t r = row; r < end; r += R) {
      q8_tile<R, P>(x, r, groups, w, n / kPanel, features - n, y + n, ldy, accumulate);
    }
  }
  if constexpr (P > 1) {
    if (n < features) q8_rows<R, 1>(x, row, end, groups, w, n / kPanel, features, y, ldy, accumulate);
  }
}

void gemm_q8(const Q8Rows& x, int64_t rows, int64_t groups, const Q8Panels& panels, int64_t features, float* y,
             int64_t ldy, bool accumulate) noexcept {
  constexpr int64_t kRows = Vec::kWidth == 16 ? 8 : 2;
  const int64_t whole = rows / kRows * kRows;
  if (whole > 0) q8_rows<kRows, 1>(x, 0, whole, groups, panels, 0, features, y, ldy, accumulate);
  // One panel at a time: weights arrive as one sequential stream, which is what the prefetchers follow best.
  if (rows > whole) q8_rows<1, 1>(x, whole, rows, groups, panels, 0, features, y, ldy, accumulate);
}

constexpr Kernels kSimdKernels = {
    .rms_norm = rms_norm,
    .silu_mul = silu_mul,
    .head_norm_rope = head_norm_rope,
    .short_conv = short_conv,
    .store_kv = {store_kv<KvType::f32>, store_kv<KvType::bf16>, store_kv<KvType::int8>},
    .attention = {attention<F32Kv>, attention<Bf16Kv>, attention<Int8Kv>},
    .attention_merge = attention_merge,
    .gemm_f32 = gemm<float>,
    .gemm_bf16 = gemm<uint16_t>,
    .quantize_q8 = quantize_q8,
    .gemm_q8 = gemm_q8,
    .blocked_f32 = nullptr,
    .blocked_bf16 = nullptr,
    .to_bf16 = to_bf16,
};
