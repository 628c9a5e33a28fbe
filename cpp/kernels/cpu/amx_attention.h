// Attention over bf16 K and V by tiles, for one row as for many, so that both have the same bits. A page of K holds the
// tiles of 16 tokens and 32 features as they are loaded, and one of V those of 16 features and 32 tokens. Included
// after attention_bf16.h and amx_tiles.h.

struct TileAttention : AttentionBlock<Bf16DotKv> {
  using AttentionBlock::AttentionBlock;
  static constexpr int64_t kStep = 32;      // products of a sum that a tile adds up
  static constexpr int64_t kMostTiles = 4;  // of sums, beside each other: 64 tokens or features
  // Registers: 0 to 3 for sums, then x and values of a whole step and of the last one, which has fewer products.
  static constexpr int kX = 4, kValues = 5, kLastX = 6, kLastValues = 7;

  bool few() const { return tile.rows <= kTileRows; }
  static constexpr int64_t even(int64_t n) { return (n + 1) / 2 * 2; }

  TileScope shape(int64_t last_products) const {
    const int64_t rows = std::min(tile.rows, kTileRows), pairs = std::max<int64_t>(last_products / 2, 1);
    return {[=](int t) { return t == kValues       ? kTileRows
                                : t == kLastValues ? pairs
                                                   : rows; },
            [=](int t) { return t == kLastX ? pairs * 4 : kTileLine; }};
  }

  // Sums of V tiles += 16 rows of x, x_bytes apart, times values [products / 2, stride / 2, 2]. Few rows
  // wait for memory: they ask for the values of the next step meanwhile, in its order, and at last for those at `next`.
  template <int V>
  static void add_tiles(const uint16_t* x, int64_t x_bytes, const uint16_t* values, int64_t stride, int64_t products,
                        bool few, const uint16_t* next) {
    constexpr int64_t kPairs = kStep / 2, kElements = kLine / 2;
    const auto add = [&](auto operand, auto value) __attribute__((always_inline)) {
      tile_load<operand()>(x, x_bytes);
      for_constants<V>([&](auto v) __attribute__((always_inline)) {
        tile_load<value()>(values + v() * kElements, stride * 2);
        tile_multiply<v(), operand(), value()>();
      });
    };
    for (; products > 0; products -= kStep, x += kStep, values += kPairs * stride) {
      const uint16_t* ahead = !few ? nullptr : products > kStep ? values + kPairs * stride : next;
      for (int64_t i = 0; ahead != nullptr && i < kPairs; ++i) {
        for (int v = 0; v < V; ++v) _mm_prefetch(ahead + i * stride + v * kElements, _MM_HINT_T0);
      }
      if (products >= kStep) {
        add(std::integral_constant<int, kX>{}, std::integral_constant<int, kValues>{});
      } else {
        add(std::integral_constant<int, kLastX>{}, std::integral_constant<int, kLastValues>{});
      }
    }
  }

  // body(integral_constant V) for V = tiles, at most kMostTiles.
  template <int V = kMostTiles, class Body>
  static void with_tiles(int64_t tiles, const Body& body) {
    if constexpr (V > 1) {
      if (tiles < V) return with_tiles<V - 1>(tiles, body);
    }
    for_constants<V>([](auto v) __attribute__((always_inline)) { tile_zero<v()>(); });
    body(std::integral_constant<int, V>{});
  }

  void read_keys() const {
    const TileScope scope = shape(tile.head_dim % kStep);
    for (int64_t p = 0; p < pages; ++p) {
      const int64_t tokens = std::min(kPage, keys - p * kPage);
      for (int64_t r = 0; r < tile.rows; r += kTileRows) {
        with_tiles((tokens + Vec::kWidth - 1) / Vec::kWidth, [&](auto v) {
          add_tiles<v()>(q + r * tile.head_dim, tile.head_dim * 2, k_page(p), kPage * kPair, tile.head_dim, few(),
                         p + 1 < pages ? k_page(p + 1) : v_page(0));
          for_constants<v()>([&](auto i) __attribute__((always_inline)) {
            tile_store<i()>(scores + r * kStride + p * kPage + i() * Vec::kWidth, kStride * 4);
          });
        });
      }
    }
  }

  void read_values() const {
    const TileScope scope = shape(even(keys % kStep));
    for (int64_t r = 0; r < tile.rows; r += kTileRows) {
      for (int64_t d = 0; d < padded; d += kMostTiles * Vec::kWidth) {
        with_tiles((padded - d) / Vec::kWidth, [&](auto v) {
          for (int64_t p = 0; p < pages; ++p) {
            const uint16_t* next = p + 1 < pages ? v_page(p + 1) : of_next_head(0, 0);
            add_tiles<v()>(weights() + r * kWeightStride + p * kPage, kWeightStride * 2, v_page(p) + d * kPair,
                           padded * kPair, even(std::min(kPage, keys - p * kPage)), few(),
                           next != nullptr ? next + d * kPair : next);
          }
          alignas(64) float sums[v()][kTileLanes];
          for_constants<v()>([&](auto i) __attribute__((always_inline)) { tile_store<i()>(sums[i()]); });
          for (int64_t i = 0; i < std::min(kTileRows, tile.rows - r); ++i) {
            for (int j = 0; j < v(); ++j) {
              weighted(Vec::load(sums[j] + i * Vec::kWidth), 1.0f)
                  .store(out.acc + (r + i) * padded + d + j * Vec::kWidth);
            }
          }
        });
      }
    }
  }
};
