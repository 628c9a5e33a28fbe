// The SIMD kernels, written once over a vector type `Vec` and the integer dot product `dot4`.
// Included by avx2.cc and avx512.cc inside their namespace, after the header that defines those;
// hence no include guard and no namespace here. Each translation unit is compiled for its own ISA.

// ---- elementwise ------------------------------------------------------------------------------------------------

// exp(x) to about 1 ulp for x <= 88; exactly 0 below -87.3, so that a masked score weighs nothing.
inline Vec exp(Vec x) {
  const Vec lowest = Vec::set(-87.3f);
  const Vec clamped = Vec::min(Vec::max(x, lowest), Vec::set(88.0f));
  const Vec n = Vec::round(clamped * Vec::set(1.44269504f));
  // ln 2 in two parts keeps the reduced argument exact.
  Vec r = Vec::fma(n, Vec::set(-0.693359375f), clamped);
  r = Vec::fma(n, Vec::set(2.12194440e-4f), r);
  Vec p = Vec::set(1.0f / 5040);  // Taylor terms on |r| <= ln(2)/2
  p = Vec::fma(p, r, Vec::set(1.0f / 720));
  p = Vec::fma(p, r, Vec::set(1.0f / 120));
  p = Vec::fma(p, r, Vec::set(1.0f / 24));
  p = Vec::fma(p, r, Vec::set(1.0f / 6));
  p = Vec::fma(p, r, Vec::set(0.5f));
  p = Vec::fma(p, r, Vec::set(1.0f));
  p = Vec::fma(p, r, Vec::set(1.0f));
  return Vec::keep_ge(x, lowest, p * Vec::exp2i(n));
}

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

// ---- attention --------------------------------------------------------------------------------------------------

inline void assign(float& to, float v) { to = v; }
inline void assign(uint16_t& to, float v) { to = f32_to_bf16(v); }

template <class T>
void store_kv(const float* k, const float* v, int64_t head_dim, int64_t slot, void* k_page, void* v_page) noexcept {
  auto* keys = static_cast<T*>(k_page) + slot / 16 * head_dim * 16 + slot % 16;
  auto* values = static_cast<T*>(v_page) + slot * padded_head_dim(head_dim);
  for (int64_t d = 0; d < head_dim; ++d) assign(keys[d * 16], k[d]);
  for (int64_t d = 0; d < head_dim; ++d) assign(values[d], v[d]);
}

// Vectors per row whose sums a block of R rows keeps in registers, beside the operands.
template <int R>
inline constexpr int kVecsPerRow = Vec::kWidth == 16 ? 4
                                                     : (R == 1   ? 8
                                                        : R == 2 ? 4
                                                                 : 2);

// scores[R rows][kPage] = q k^T for one page; lanes are keys, so each score is one sum over head_dim in order.
template <int R, class T>
inline void page_scores(const float* q, const T* keys, int64_t head_dim, float* scores) noexcept {
  constexpr int kVecs = kVecsPerRow<R>;
  constexpr int kPerGroup = 16 / Vec::kWidth;
  for (int64_t first = 0; first < kPage; first += kVecs * Vec::kWidth) {
    Vec sum[R][kVecs];
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kVecs; ++i) sum[r][i] = Vec::zero();
    for (int64_t d = 0; d < head_dim; ++d) {
      Vec key[kVecs];
      for (int i = 0; i < kVecs; ++i) {
        key[i] = Vec::load(keys + ((first / 16 + i / kPerGroup) * head_dim + d) * 16 + i % kPerGroup * Vec::kWidth);
      }
      for (int r = 0; r < R; ++r) {
        const Vec x = Vec::set(q[r * head_dim + d]);
        for (int i = 0; i < kVecs; ++i) sum[r][i] = Vec::fma(x, key[i], sum[r][i]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < kVecs; ++i) sum[r][i].store(scores + r * kPage + first + i * Vec::kWidth);
  }
}

// V vectors [d, d + kVecs) of page_values.
template <int R, int kVecs, class T>
inline void page_values_at(int64_t d, const float* weights, const float* scale, const T* values, int64_t keys,
                           int64_t padded, float* acc) noexcept {
  Vec sum[R][kVecs];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < kVecs; ++i) {
      sum[r][i] = Vec::load(acc + r * padded + d + i * Vec::kWidth) * Vec::set(scale[r]);
    }
  for (int64_t s = 0; s < keys; ++s) {
    Vec value[kVecs];
    for (int i = 0; i < kVecs; ++i) value[i] = Vec::load(values + s * padded + d + i * Vec::kWidth);
    for (int r = 0; r < R; ++r) {
      const Vec w = Vec::set(weights[r * kPage + s]);
      for (int i = 0; i < kVecs; ++i) sum[r][i] = Vec::fma(w, value[i], sum[r][i]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < kVecs; ++i) sum[r][i].store(acc + r * padded + d + i * Vec::kWidth);
}

// acc[R rows] = acc * scale[row] + weights[R rows][kPage] V for one page; `keys` values of V are used.
template <int R, class T>
inline void page_values(const float* weights, const float* scale, const T* values, int64_t keys, int64_t padded,
                        float* acc) noexcept {
  constexpr int kVecs = kVecsPerRow<R>;
  int64_t d = 0;
  for (; d + kVecs * Vec::kWidth <= padded; d += kVecs * Vec::kWidth) {
    page_values_at<R, kVecs>(d, weights, scale, values, keys, padded, acc);
  }
  for (; d < padded; d += Vec::kWidth) page_values_at<R, 1>(d, weights, scale, values, keys, padded, acc);
}

// body(row, integral_constant R) over `rows` in blocks of kMost, then 2, then 1.
template <class Body>
inline void for_row_blocks(int64_t rows, const Body& body) {
  constexpr int kMost = Vec::kWidth == 16 ? 6 : 4;
  int64_t r = 0;
  for (; r + kMost <= rows; r += kMost) body(r, std::integral_constant<int, kMost>{});
  for (; r + 2 <= rows; r += 2) body(r, std::integral_constant<int, 2>{});
  for (; r < rows; ++r) body(r, std::integral_constant<int, 1>{});
}

// One row of scores to softmax weights in place, with the running max and sum; returns the factor for older sums.
inline float softmax_page(float* scores, int64_t visible, float& max, float& sum) noexcept {
  constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  if (visible <= 0) {
    std::fill(scores, scores + kPage, 0.0f);
    return 1.0f;
  }
  if (visible < kPage) std::fill(scores + visible, scores + kPage, kMinusInf);
  Vec top = Vec::load(scores);
  for (int64_t i = Vec::kWidth; i < kPage; i += Vec::kWidth) top = Vec::max(top, Vec::load(scores + i));
  const float new_max = std::fmax(max, top.max());
  const Vec shift = Vec::set(new_max);
  Vec total = Vec::zero();
  for (int64_t i = 0; i < kPage; i += Vec::kWidth) {
    const Vec w = exp(Vec::load(scores + i) - shift);
    total = total + w;
    w.store(scores + i);
  }
  const float scale = std::exp(max - new_max);  // max = -inf at first: 0
  sum = sum * scale + total.sum();
  max = new_max;
  return scale;
}

template <class T>
void attention(const AttentionTile& tile, const AttentionPartial& out, float* scratch) noexcept {
  const int64_t hd = tile.head_dim, padded = padded_head_dim(hd), rows = tile.rows;
  float* scores = scratch;                // [rows, kPage]
  float* scale = scratch + rows * kPage;  // [rows]
  int64_t most = 0;
  for (int64_t r = 0; r < rows; ++r) {
    out.max[r] = -std::numeric_limits<float>::infinity();
    out.sum[r] = 0.0f;
    most = std::max(most, tile.visible[r]);
  }
  std::fill(out.acc, out.acc + rows * padded, 0.0f);
  for (int64_t p = tile.page_begin; p < tile.page_end && p * kPage < most; ++p) {
    const auto* keys = reinterpret_cast<const T*>(tile.pages[p] + tile.k_offset);
    const auto* values = reinterpret_cast<const T*>(tile.pages[p] + tile.v_offset);
    for_row_blocks(rows,
                   [&](int64_t r, auto block) { page_scores<block()>(tile.q + r * hd, keys, hd, scores + r * kPage); });
    for (int64_t r = 0; r < rows; ++r) {
      scale[r] = softmax_page(scores + r * kPage, tile.visible[r] - p * kPage, out.max[r], out.sum[r]);
    }
    // A weight of 0 adds nothing, so rows that see fewer keys may share the loop.
    const int64_t count = std::min(kPage, most - p * kPage);
    for_row_blocks(rows, [&](int64_t r, auto block) {
      page_values<block()>(scores + r * kPage, scale + r, values, count, padded, out.acc + r * padded);
    });
  }
}

void attention_merge(int64_t rows, int64_t head_dim, const AttentionPartial& total,
                     const AttentionPartial& part) noexcept {
  const int64_t padded = padded_head_dim(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    if (part.max[r] == -std::numeric_limits<float>::infinity()) continue;
    const float max = std::fmax(total.max[r], part.max[r]);
    const float a = std::exp(total.max[r] - max), b = std::exp(part.max[r] - max);
    float* acc = total.acc + r * padded;
    for (int64_t d = 0; d < padded; d += Vec::kWidth) {
      Vec::fma(Vec::load(acc + d), Vec::set(a), Vec::load(part.acc + r * padded + d) * Vec::set(b)).store(acc + d);
    }
    total.sum[r] = total.sum[r] * a + part.sum[r] * b;
    total.max[r] = max;
  }
}

constexpr Kernels kSimdKernels = {
    .rms_norm = rms_norm,
    .silu_mul = silu_mul,
    .head_norm_rope = head_norm_rope,
    .short_conv = short_conv,
    .store_kv_f32 = store_kv<float>,
    .store_kv_bf16 = store_kv<uint16_t>,
    .attention_f32 = attention<float>,
    .attention_bf16 = attention<uint16_t>,
    .attention_merge = attention_merge,
    .gemm_f32 = gemm<float>,
    .gemm_bf16 = gemm<uint16_t>,
    .quantize_q8 = quantize_q8,
    .gemm_q8 = gemm_quant<Q8Format>,
    .gemm_q4 = gemm_q4,
    .blocked_f32 = nullptr,
    .blocked_bf16 = nullptr,
    .to_bf16 = to_bf16,
};
