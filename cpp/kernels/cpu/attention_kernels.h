// Softmax attention over one block of KV pages, written once over `Vec` and a policy for each type of K and V.
// Included like simd_kernels.h, before it and after vec_math.h and attention_<isa>.h.
//
// Both products, q K and weights V, are outer products over steps: of head_dim, and of tokens. A row's sums run over
// the steps in order, whatever rows share the tile, and tokens that it does not see weigh exactly 0.

// ---- storing ----------------------------------------------------------------------------------------------------

// The scale of int8 values: at least max / 127 and a bf16 number.
inline uint16_t int8_scale(float max) {
  const uint32_t bits = std::bit_cast<uint32_t>(max / 127.0f);
  return max > kSmallestQ8Max ? static_cast<uint16_t>((bits + 0xffffu) >> 16) : uint16_t{0};
}

// x[n] to int8 and writes value i to out[index(i)]; returns the scale.
template <class Index>
inline uint16_t store_int8(const float* x, int64_t n, int8_t* out, const Index& index) {
  Vec top = Vec::zero();
  for_lanes(0, n, [&](int64_t i, int64_t k) {
    const Vec v = load_n(x + i, k);
    top = Vec::max(top, Vec::max(v, Vec::zero() - v));
  });
  const uint16_t scale = int8_scale(top.max());
  const Vec inverse = Vec::set(scale == 0 ? 0.0f : 1.0f / bf16_to_f32(scale));
  for_lanes(0, n, [&](int64_t i, int64_t k) {
    int16_t q[Vec::kWidth];
    store_int16(load_n(x + i, k) * inverse, q);
    for (int64_t j = 0; j < k; ++j) out[index(i + j)] = static_cast<int8_t>(q[j]);
  });
  return scale;
}

template <KvType type>
void store_kv(const float* k, const float* v, int64_t head_dim, int64_t slot, std::byte* k_page,
              std::byte* v_page) noexcept {
  const auto k_at = [&](int64_t d) { return k_index(type, slot, d); };
  const auto v_at = [&](int64_t d) { return v_index(type, head_dim, slot, d); };
  if constexpr (type == KvType::int8) {
    auto* k_scales = reinterpret_cast<uint16_t*>(k_page + k_elements(head_dim));
    auto* v_scales = reinterpret_cast<uint16_t*>(v_page + v_elements(head_dim));
    k_scales[slot] = store_int8(k, head_dim, reinterpret_cast<int8_t*>(k_page), k_at);
    v_scales[slot] = store_int8(v, head_dim, reinterpret_cast<int8_t*>(v_page), v_at);
  } else if constexpr (type == KvType::bf16) {
    for (int64_t d = 0; d < head_dim; ++d) reinterpret_cast<uint16_t*>(k_page)[k_at(d)] = f32_to_bf16(k[d]);
    for (int64_t d = 0; d < head_dim; ++d) reinterpret_cast<uint16_t*>(v_page)[v_at(d)] = f32_to_bf16(v[d]);
  } else {
    for (int64_t d = 0; d < head_dim; ++d) reinterpret_cast<float*>(k_page)[k_at(d)] = k[d];
    for (int64_t d = 0; d < head_dim; ++d) reinterpret_cast<float*>(v_page)[v_at(d)] = v[d];
  }
}

// ---- softmax of one row -----------------------------------------------------------------------------------------

// Larger than any difference of scores that matters, and finite: it survives arithmetic.
inline constexpr float kMasked = -1e30f;

// 2^x for x <= 0 to 3e-6 of its value: finer than the weights that it makes are rounded.
inline Vec exp2(Vec x) {
  const Vec n = Vec::round(x), r = x - n;
  Vec p = Vec::set(0.009570102f);  // minimax on |r| <= 1/2
  p = Vec::fma(p, r, Vec::set(0.05591786f));
  p = Vec::fma(p, r, Vec::set(0.24024744f));
  p = Vec::fma(p, r, Vec::set(0.6931218f));
  p = Vec::fma(p, r, Vec::set(0.9999993f));
  return scale2(p, n);
}

inline constexpr float kLog2E = 1.44269504f;

// Scores of whole pages, four independent chains each.
inline constexpr int kChains = 4;

template <class Value>
inline Vec max_of(int64_t keys, const Value& value) {
  Vec top[kChains];
  for (int j = 0; j < kChains; ++j) top[j] = value(j * Vec::kWidth);
  for (int64_t i = kChains * Vec::kWidth; i < keys; i += kChains * Vec::kWidth) {
    for (int j = 0; j < kChains; ++j) top[j] = Vec::max(top[j], value(i + j * Vec::kWidth));
  }
  return Vec::max(Vec::max(top[0], top[1]), Vec::max(top[2], top[3]));
}

// The sum of value(i) over vectors i.
template <class Value>
inline float sum_of(int64_t keys, const Value& value) {
  Vec sum[kChains] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  for (int64_t i = 0; i < keys; i += kChains * Vec::kWidth) {
    for (int j = 0; j < kChains; ++j) sum[j] = sum[j] + value(i + j * Vec::kWidth);
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])).sum();
}

// One row's scores over whole pages, and what they need to become weights. Scores beyond `visible` are masked already
// unless they are integers.
struct ScoreRow {
  float* scores;                     // [keys]; weights are written over them
  int64_t visible, keys;             // keys: whole pages
  float q_scale;                     // int8: the query's
  const float *k_scales, *v_scales;  // int8: [keys]
  float *max, *sum;                  // results
};

// fp32 weights.
inline float softmax_f32(const ScoreRow& row) {
  float* s = row.scores;
  std::fill(s + row.visible, s + row.keys, kMasked);
  *row.max = max_of(row.keys, [&](int64_t i) { return Vec::load(s + i); }).max();
  const Vec shift = Vec::set(*row.max);
  *row.sum = sum_of(row.keys, [&](int64_t i) {
    const Vec w = exp(Vec::load(s + i) - shift);
    w.store(s + i);
    return w;
  });
  return 1.0f;
}

// ---- policies ---------------------------------------------------------------------------------------------------

struct F32Kv {
  static constexpr KvType kType = KvType::f32;
  static constexpr int kMostRows = Vec::kWidth == 16 ? 6 : 4;
  using Element = float;  // of K and V
  using Operand = float;  // of queries and weights
  using Sum = Vec;
  static Vec load(const Element* p) { return Vec::load(p); }
  static Vec broadcast(const Operand* x) { return Vec::set(*x); }
  static Vec add(Vec sum, Vec x, Vec values) { return Vec::fma(x, values, sum); }
  // A query to operands; returns its scale.
  static float query(const float* q, int64_t n, Operand* out) {
    std::copy(q, q + n, out);
    return 1.0f;
  }
  // Returns the scale of the weights.
  static float softmax(const ScoreRow& row) { return softmax_f32(row); }
};

// bf16 pairs widened to fp32.
struct Bf16Kv : F32Kv {
  static constexpr KvType kType = KvType::bf16;
  using Element = uint16_t;
  static VecPair load(const Element* p) { return load_pairs(p); }
  static VecPair broadcast(const Operand* x) { return {Vec::set(x[0]), Vec::set(x[1])}; }
  static Vec add(Vec sum, VecPair x, VecPair values) {
    return Vec::fma(x.second, values.second, Vec::fma(x.first, values.first, sum));
  }
};

// int8 K and V times 16-bit queries and weights, in exact integer sums.
struct Int8Kv {
  static constexpr KvType kType = KvType::int8;
  static constexpr int kMostRows = F32Kv::kMostRows;
  using Element = int8_t;
  using Operand = int16_t;
  using Sum = PairSum;
  static PairSum load(const Element* p) { return PairSum::load_values(p); }
  static PairSum broadcast(const Operand* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof(pair));
    return PairSum::set_pair(pair);
  }
  static PairSum add(PairSum sum, PairSum x, PairSum values) { return PairSum::add(sum, x, values); }

  static float query(const float* q, int64_t n, Operand* out) {
    Vec top = Vec::zero();
    for_lanes(0, n, [&](int64_t i, int64_t k) {
      const Vec v = load_n(q + i, k);
      top = Vec::max(top, Vec::max(v, Vec::zero() - v));
    });
    // The floor keeps kMasked * scale below everything.
    const float scale = std::max(top.max() / static_cast<float>(int8_operand_max(n)), 1e-20f);
    const Vec inverse = Vec::set(1.0f / scale);
    for_lanes(0, n, [&](int64_t i, int64_t k) {
      int16_t values[Vec::kWidth];
      store_int16(load_n(q + i, k) * inverse, values);
      std::copy(values, values + k, out + i);
    });
    return scale;
  }

  static float softmax(const ScoreRow& row) {
    float* s = row.scores;
    for (int64_t i = 0; i < row.keys; i += Vec::kWidth) {
      (load_int32(s + i) * Vec::load(row.k_scales + i)).store(s + i);
    }
    std::fill(s + row.visible, s + row.keys, kMasked);
    const float max = max_of(row.keys, [&](int64_t i) { return Vec::load(s + i); }).max();
    *row.max = max * row.q_scale;
    const Vec scale = Vec::set(row.q_scale * kLog2E), shift = Vec::set(-max * (row.q_scale * kLog2E));
    *row.sum = sum_of(row.keys, [&](int64_t i) {
      const Vec w = exp2(Vec::fma(Vec::load(s + i), scale, shift));
      (w * Vec::load(row.v_scales + i)).store(s + i);
      return w;
    });
    const float top = max_of(row.keys, [&](int64_t i) { return Vec::load(s + i); }).max();
    constexpr auto kMost = static_cast<float>(int8_operand_max(kAttentionBlock));
    const Vec inverse = Vec::set(top > kSmallestQ8Max ? kMost / top : 0.0f);
    auto* weights = reinterpret_cast<int16_t*>(s);
    for (int64_t i = 0; i < row.keys; i += Vec::kWidth) store_int16(Vec::load(s + i) * inverse, weights + i);
    return top / kMost;
  }
};

// ---- products ---------------------------------------------------------------------------------------------------

inline void store_scores(Vec sum, float* out) { sum.store(out); }
inline void store_scores(PairSum sum, float* out) { sum.store(out); }
// + 0: a sum may be -0 or +0 depending on whether zero weights follow.
inline Vec weighted(Vec sum, float /*scale*/) { return sum + Vec::zero(); }
inline Vec weighted(PairSum sum, float scale) { return sum.to_float() * Vec::set(scale); }

// Vectors per row whose sums a block of R rows keeps in registers, beside the operands.
template <int R>
inline constexpr int kVecsPerRow = Vec::kWidth == 16 ? 4
                                                     : (R == 1   ? 8
                                                        : R == 2 ? 4
                                                                 : 2);

// What to ask for while values are read: as much from `first` on, and from `second` on; null: nothing. Hints only.
template <class Element>
struct Fetch {
  const Element *first = nullptr, *second = nullptr;
  Fetch from(int64_t i) const {
    return {first != nullptr ? first + i : nullptr, second != nullptr ? second + i : nullptr};
  }
};

// sum[r][i] += x[r] times the vectors i of `values`, over `steps`. kFetches: how many there are.
template <class Kv, int kFetches, int R, int V>
inline void add_steps(const typename Kv::Operand* x, int64_t ldx, const typename Kv::Element* values, int64_t stride,
                      int64_t steps, const Fetch<typename Kv::Element>& fetch, typename Kv::Sum (&sum)[R][V]) noexcept {
  constexpr int64_t kPair = kv_pair(Kv::kType);
  for (int64_t s = 0; s < steps; ++s) {
    const auto value = [&](int i) {
      const int64_t at = s * stride + i * Vec::kWidth * kPair;
      if constexpr (kFetches > 0) _mm_prefetch(reinterpret_cast<const char*>(fetch.first + at), _MM_HINT_T1);
      if constexpr (kFetches > 1) _mm_prefetch(reinterpret_cast<const char*>(fetch.second + at), _MM_HINT_T1);
      return Kv::load(values + at);
    };
    const auto operand = [&](int r) { return Kv::broadcast(x + r * ldx + s * kPair); };
    // The fewer of both stay in registers.
    if constexpr (V > R) {
      decltype(operand(0)) xs[R];
      for (int r = 0; r < R; ++r) xs[r] = operand(r);
      for (int i = 0; i < V; ++i) {
        const auto v = value(i);
        for (int r = 0; r < R; ++r) sum[r][i] = Kv::add(sum[r][i], xs[r], v);
      }
    } else {
      decltype(value(0)) v[V];
      for (int i = 0; i < V; ++i) v[i] = value(i);
      for (int r = 0; r < R; ++r) {
        const auto xs = operand(r);
        for (int i = 0; i < V; ++i) sum[r][i] = Kv::add(sum[r][i], xs, v[i]);
      }
    }
  }
}

template <class Kv, int R, int V>
inline void add_products(const typename Kv::Operand* x, int64_t ldx, const typename Kv::Element* values, int64_t stride,
                         int64_t steps, const Fetch<typename Kv::Element>& fetch,
                         typename Kv::Sum (&sum)[R][V]) noexcept {
  if (fetch.second != nullptr) {
    add_steps<Kv, 2>(x, ldx, values, stride, steps, fetch, sum);
  } else if (fetch.first != nullptr) {
    add_steps<Kv, 1>(x, ldx, values, stride, steps, fetch, sum);
  } else {
    add_steps<Kv, 0>(x, ldx, values, stride, steps, fetch, sum);
  }
}

template <class Sum, int R, int V>
inline void clear(Sum (&sum)[R][V]) {
  for (auto& row : sum)
    for (Sum& s : row) s = Sum::zero();
}

// body(row, integral_constant R) over `rows` in blocks of kMost, 4, 2 and 1.
template <int kMost, class Body>
inline void for_row_blocks(int64_t rows, const Body& body) {
  int64_t r = 0;
  for (; r + kMost <= rows; r += kMost) body(r, std::integral_constant<int, kMost>{});
  for (; r + 4 <= rows; r += 4) body(r, std::integral_constant<int, 4>{});
  for (; r + 2 <= rows; r += 2) body(r, std::integral_constant<int, 2>{});
  for (; r < rows; ++r) body(r, std::integral_constant<int, 1>{});
}

// One kernel call: a tile's rows and the pages of its block.
template <class Kv>
struct AttentionBlock {
  using Element = typename Kv::Element;
  using Operand = typename Kv::Operand;
  static constexpr int64_t kPair = kv_pair(Kv::kType);
  static constexpr int64_t kStride = kAttentionBlock + 16;  // floats: rows start in different cache sets

  const AttentionTile& tile;
  const AttentionPartial& out;
  int64_t pages, keys;  // of the block that some row sees
  int64_t padded;
  float* scores;                    // [rows, kStride]; a row's weights lie at its start later
  Operand* q;                       // [rows, head_dim]
  float *q_scales, *weight_scales;  // [rows]
  float *k_scales, *v_scales;       // int8: [keys]

  const Operand* weights() const { return reinterpret_cast<const Operand*>(scores); }
  static constexpr int64_t kWeightStride = kStride * 4 / static_cast<int64_t>(sizeof(Operand));
  const std::byte* page(int64_t p) const { return tile.pages[tile.block * (kAttentionBlock / kPage) + p]; }
  const Element* k_page(int64_t p) const { return reinterpret_cast<const Element*>(page(p) + tile.k_offset); }
  const Element* v_page(int64_t p) const { return reinterpret_cast<const Element*>(page(p) + tile.v_offset); }

  AttentionBlock(const AttentionTile& t, const AttentionPartial& o, std::byte* scratch) : tile(t), out(o) {
    const int64_t last = tile.visible + (tile.rows - 1) / tile.group - tile.block * kAttentionBlock;
    keys = std::clamp<int64_t>(last, 0, kAttentionBlock);
    pages = (keys + kPage - 1) / kPage;
    padded = padded_head_dim(tile.head_dim);
    scores = reinterpret_cast<float*>(scratch);
    const int64_t rows = tiled_rows(tile.rows);
    k_scales = scores + rows * kStride;
    v_scales = k_scales + kAttentionBlock;
    q_scales = v_scales + kAttentionBlock;
    weight_scales = q_scales + rows;
    q = reinterpret_cast<Operand*>(weight_scales + rows);
  }

  // What to ask for while page p of K, or of V, is read. What lies right behind comes by itself, and faster, unless
  // there is as much work for each byte as in int8. In a block that is not full yet runs are too short for that; while
  // they are read, those of the next head come in. Requests that come faster than memory takes them are dropped: its
  // values are asked for once with these keys, and twice with these values.
  Fetch<Element> with_keys(int64_t p) const {
    if (asks_for_next_head()) return {of_next_head(p, 0), of_next_head(p, tile.v_offset - tile.k_offset)};
    return unless_behind(k_page(p), p + 1 < pages ? k_page(p + 1) : v_page(0));
  }
  Fetch<Element> with_values(int64_t p) const {
    if (asks_for_next_head()) {
      const Element* values = of_next_head(p, tile.v_offset - tile.k_offset);
      return {values, values};
    }
    return unless_behind(v_page(p), p + 1 < pages ? v_page(p + 1) : of_next_head(0, 0));
  }
  bool asks_for_next_head() const { return !kScaled && pages < kAttentionBlock / kPage && tile.next != nullptr; }
  const Element* of_next_head(int64_t p, size_t offset) const {
    if (tile.next == nullptr) return nullptr;
    return reinterpret_cast<const Element*>(tile.next + static_cast<size_t>(p) * chunk_bytes() + offset);
  }
  Fetch<Element> unless_behind(const Element* now, const Element* next) const {
    const bool behind =
        reinterpret_cast<const std::byte*>(now) + chunk_bytes() == reinterpret_cast<const std::byte*>(next);
    return {behind && !kScaled ? nullptr : next};
  }
  size_t chunk_bytes() const { return static_cast<size_t>(kv_bytes(Kv::kType, v_elements(tile.head_dim))); }

  static constexpr bool kScaled = Kv::kType == KvType::int8;
  const uint16_t* k_scales_of(int64_t p) const {
    return reinterpret_cast<const uint16_t*>(k_page(p) + k_elements(tile.head_dim));
  }
  const uint16_t* v_scales_of(int64_t p) const {
    return reinterpret_cast<const uint16_t*>(v_page(p) + v_elements(tile.head_dim));
  }
  static void read_scales(const uint16_t* from, float* to) {
    for (int64_t i = 0; i < kPage; i += Vec::kWidth) Vec::load(from + i).store(to + i);
  }

  // scores[R rows] of page p, of as many tokens as some row sees.
  template <int R>
  void row_scores(int64_t r, int64_t p) const {
    const Element* k = k_page(p);
    const Fetch<Element> fetch = with_keys(p);
    const int64_t end = std::min(kPage, keys - p * kPage);
    for (int64_t first = 0; first < end; first += kVecsPerRow<R> * Vec::kWidth) {
      scores_of<R, kVecsPerRow<R>>(r, p, first, end - first, k, fetch);
    }
  }

  // Of the `count` tokens from `first` on, V vectors at most. Few rows wait for memory: half as many where that is
  // enough, but for int8, which fetches all of V meanwhile.
  template <int R, int V>
  void scores_of(int64_t r, int64_t p, int64_t first, int64_t count, const Element* k,
                 const Fetch<Element>& fetch) const {
    if constexpr (R <= 2 && V > 1 && !kScaled) {
      if (count <= V / 2 * Vec::kWidth) return scores_of<R, V / 2>(r, p, first, count, k, fetch);
    }
    typename Kv::Sum sum[R][V];
    clear(sum);
    add_products<Kv>(q + r * tile.head_dim, tile.head_dim, k + first * kPair, kPage * kPair, tile.head_dim / kPair,
                     fetch.from(first * kPair), sum);
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < V; ++j) {
        store_scores(sum[i][j], scores + (r + i) * kStride + p * kPage + first + j * Vec::kWidth);
      }
  }

  void row_weights(int64_t r) const {
    const int64_t first = tile.block * kAttentionBlock;
    const int64_t visible = std::min<int64_t>(keys, tile.visible + r / tile.group - first);
    float* row = scores + r * kStride;
    int64_t used = 0;
    if (visible > 0) {
      used = (visible + kPage - 1) / kPage * kPage;
      weight_scales[r] = Kv::softmax({row, visible, used, q_scales[r], k_scales, v_scales, out.max + r, out.sum + r});
    } else {
      out.max[r] = -std::numeric_limits<float>::infinity();
      out.sum[r] = 0.0f;
      weight_scales[r] = 0.0f;
    }
    auto* weights = reinterpret_cast<Operand*>(row);
    std::fill(weights + used, weights + pages * kPage, Operand{0});
  }

  // acc[R rows][d, d + V vectors) = weights V.
  template <int R, int V>
  void row_values(int64_t r, int64_t d) const {
    typename Kv::Sum sum[R][V];
    clear(sum);
    for (int64_t p = 0; p < pages; ++p) {
      const Element* v = v_page(p);
      const Fetch<Element> fetch = with_values(p);
      const int64_t steps = (std::min(kPage, keys - p * kPage) + kPair - 1) / kPair;
      add_products<Kv>(weights() + r * kWeightStride + p * kPage, kWeightStride, v + d * kPair, padded * kPair, steps,
                       fetch.from(d * kPair), sum);
    }
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < V; ++j) {
        weighted(sum[i][j], weight_scales[r + i]).store(out.acc + (r + i) * padded + d + j * Vec::kWidth);
      }
  }

  void read_queries() const {
    for (int64_t r = 0; r < tile.rows; ++r) {
      q_scales[r] = Kv::query(tile.q + r / tile.group * tile.q_stride + r % tile.group * tile.head_dim, tile.head_dim,
                              q + r * tile.head_dim);
    }
  }

  void read_keys() const {
    if constexpr (kScaled) {
      for (int64_t p = 0; p < pages; ++p) {
        for (int64_t i = 0; i < kPage; i += kLine / 2) _mm_prefetch(v_scales_of(p) + i, _MM_HINT_T0);
      }
    }
    for (int64_t p = 0; p < pages; ++p) {
      for_row_blocks<Kv::kMostRows>(tile.rows, [&](int64_t r, auto rows) { row_scores<rows()>(r, p); });
      if constexpr (kScaled) read_scales(k_scales_of(p), k_scales + p * kPage);  // they lie behind the keys
    }
    for (int64_t p = 0; kScaled && p < pages; ++p) read_scales(v_scales_of(p), v_scales + p * kPage);
  }

  void read_values() const {
    for_row_blocks<Kv::kMostRows>(tile.rows, [&](int64_t r, auto rows) {
      constexpr int V = kVecsPerRow<rows()>;
      int64_t d = 0;
      for (; d + V * Vec::kWidth <= padded; d += V * Vec::kWidth) row_values<rows(), V>(r, d);
      for (; d + 2 * Vec::kWidth <= padded; d += 2 * Vec::kWidth) row_values<rows(), 2>(r, d);
      for (; d < padded; d += Vec::kWidth) row_values<rows(), 1>(r, d);
    });
  }
};

template <class Block>
void run_attention(const AttentionTile& tile, const AttentionPartial& out, std::byte* scratch) noexcept {
  const Block block(tile, out, scratch);
  block.read_queries();
  block.read_keys();
  for (int64_t r = 0; r < tile.rows; ++r) block.row_weights(r);
  block.read_values();
}
template <class Kv>
void attention(const AttentionTile& tile, const AttentionPartial& out, std::byte* scratch) noexcept {
  run_attention<AttentionBlock<Kv>>(tile, out, scratch);
}

[[maybe_unused]] void attention_merge(int64_t rows, int64_t head_dim, const AttentionPartial& total,
                                      const AttentionPartial& part) noexcept {
  const int64_t padded = padded_head_dim(head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    if (part.max[r] == -std::numeric_limits<float>::infinity()) continue;
    // One of the two factors is 1.
    const float difference = part.max[r] - total.max[r], small = std::exp(-std::fabs(difference));
    const float a = difference > 0 ? small : 1.0f, b = difference > 0 ? 1.0f : small;
    float* acc = total.acc + r * padded;
    for (int64_t d = 0; d < padded; d += Vec::kWidth) {
      Vec::fma(Vec::load(acc + d), Vec::set(a), Vec::load(part.acc + r * padded + d) * Vec::set(b)).store(acc + d);
    }
    total.sum[r] = total.sum[r] * a + part.sum[r] * b;
    total.max[r] = std::fmax(total.max[r], part.max[r]);
  }
}
