// Softmax attention over KV pages, written once over `Vec`. Included like simd_kernels.h, before it and after vec_math.h.

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
