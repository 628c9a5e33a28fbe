// Products of many rows with int8 and int4 weights: dot products over a group in tiles, which go through memory
// to vectors of fp32 sums. Each product has the bits of quant_kernels.h. Included like amx_tiles.h, after it.

inline constexpr int64_t kLeastTileRows = 24;  // fewer are faster without tiles
inline constexpr int64_t kStrip = 8;           // panels whose weights are taken apart together
inline constexpr int64_t kUnits = 3;           // groups of a tile of x that are in registers together

// What a format adds: kBytes of a group of a panel, which unpack writes as a tile of signed bytes.
struct TileFormat {
  static constexpr bool kMins = false, kPowers = true;
};

template <bool Mins>
struct TileQ4 : TileFormat {
  static constexpr bool kMins = Mins;
  static constexpr int64_t kBytes = kPanel * kGroup / 2;
  using FewRows = Q4Format<Mins>;
  static void unpack(const uint8_t* p, uint8_t* out) {
    const __m512i zero = _mm512_set1_epi8(Mins ? 0 : 8);
    for (int64_t j = 0; j < kGroup / 8; ++j, p += kTileLine, out += 2 * kTileLine) {
      const ByteVec v = ByteVec::load(p);
      _mm512_store_si512(out, _mm512_sub_epi8(v.low_halves().v, zero));
      _mm512_store_si512(out + kTileLine, _mm512_sub_epi8(v.high_halves().v, zero));
    }
  }
};

struct TileQ8 : TileFormat {
  static constexpr bool kPowers = false;
  static constexpr int64_t kBytes = kPanel * kGroup;
  using FewRows = Q8Format;
  static void unpack(const uint8_t* p, uint8_t* out) {
    const __m512i sign = _mm512_set1_epi8(-128);
    for (int64_t i = 0; i < kBytes; i += kTileLine) {
      _mm512_store_si512(out + i, _mm512_xor_si512(_mm512_loadu_si512(p + i), sign));
    }
  }
};

// Rows times a strip of panels, whose sums wait in memory between the chunks of kUnits groups.
template <class Format>
class QuantTiles {
 public:
  QuantTiles(int64_t groups, const QuantPanels& w) : groups_(groups), w_(w) {}

  // At most kMostRows rows times the panels from `first` on; y: their first one.
  void multiply(const Q8Rows& x, int64_t rows, int64_t first, int64_t features, float* y, int64_t ldy,
                bool accumulate) noexcept {
    x_ = x, rows_ = rows;
    const int64_t panels = std::min(kStrip, (features + kPanel - 1) / kPanel);
    for (int64_t g = 0; g < groups_; g += kUnits) {
      unpack(first, panels, g);
      for (int64_t row = 0; row < rows; row += kTileRows) {
        load_x(row, g);
        const Output out = {y + row * ldy, ldy, features, accumulate};
        step<true, false>(row, 0, g, out);
        for (int64_t p = 1; p < panels; ++p) step<true, true>(row, p, g, out);
        step<false, true>(row, panels, g, out);
      }
    }
  }

  static TileScope tiles() {
    const auto is_weights = [](int t) { return t >= kWeightTile && t < kXTile; };
    return {[&](int t) { return is_weights(t) ? kGroup / 4 : kTileRows; },
            [](int t) { return t >= kXTile ? kGroup : kTileLine; }};
  }

 private:
  // Registers: sums from 0 on, then two for weights, then x.
  static constexpr int kWeightTile = kUnits, kXTile = kUnits + 2;

  struct Output {
    float* y;  // of the tile's first row and the strip's first panel
    int64_t ldy, features;
    bool accumulate;
  };

  void unpack(int64_t first, int64_t panels, int64_t g) {
    const int64_t count = std::min(kUnits, groups_ - g);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t at = (first + p) * groups_ + g;
      for (int64_t i = 0; i < count; ++i) {
        Format::unpack(w_.values + (at + i) * Format::kBytes, weights_[p][i]);
        Vec::load_f16(w_.scales + (at + i) * kPanel).store(scales_[p][i]);
        if constexpr (Format::kMins) Vec::load_f16(w_.mins + (at + i) * kPanel).store(mins_[p][i]);
      }
      // Where a chunk is not full, nothing is added.
      for (int64_t u = count; u < kUnits; ++u) {
        std::memset(weights_[p][u], 0, sizeof(weights_[p][u]));
        Vec::set(1.0f).store(scales_[p][u]);
        if constexpr (Format::kMins) Vec::zero().store(mins_[p][u]);
      }
    }
  }

  // Rows of a last tile that is not full, and inputs of a last chunk that is not, are copied: what lies behind them is
  // not ours to read.
  void load_x(int64_t row, int64_t g) {
    const int64_t rows = std::min(kTileRows, rows_ - row), count = std::min(kUnits, groups_ - g);
    const int8_t* values = x_.values + row * groups_ * kGroup + g * kGroup;
    int64_t stride = groups_ * kGroup;
    if (rows < kTileRows || count < kUnits) {
      for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(x_copy_[r], values + r * stride, static_cast<size_t>(count * kGroup));
      }
      values = x_copy_[0], stride = kUnits * kGroup;
    }
    for_constants<kUnits>(
        [&](auto u) __attribute__((always_inline)) { tile_load<kXTile + u()>(values + u() * kGroup, stride); });
    for (int64_t i = 0; i < kUnits; ++i) {
      if (i >= count) {  // what is left from other rows may be NaN
        Vec::zero().store(x_scales_[i]);
        continue;
      }
      const int64_t at = (g + i) * x_.stride + row;
      load_n(x_.scales + at, rows).store(x_scales_[i]);
      if constexpr (Format::kMins) {
        for (int64_t r = 0; r < rows; ++r) x_mins_[i][r] = static_cast<float>(x_.sums[at + r]) * x_.scales[at + r];
      }
    }
  }

  // Multiplies the tile that begins at `row` with panel p, and adds up what came out of the panel before.
  template <bool kMultiplies, bool kAdds>
  void step(int64_t row, int64_t p, int64_t g, const Output& out) {
    const bool starts = g == 0, ends = g + kUnits >= groups_;
    float* waiting = waiting_[row / kTileRows][kAdds ? p - 1 : 0];
    Vec sum[kTileRows];
    if (kAdds && !starts) {
      for_constants<kTileRows>([&](auto r)
                                   __attribute__((always_inline)) { sum[r()] = Vec::load(waiting + r() * kPanel); });
    } else {
      for (Vec& s : sum) s = Vec::zero();
    }
    // First all tiles, then all vectors: taking turns, they would wait for each other.
    for_constants<kUnits>([&](auto unit) __attribute__((always_inline)) {
      constexpr int u = unit();
      if constexpr (kAdds) tile_store<u>(dots_[u]);
      if constexpr (kMultiplies) {
        constexpr int kW = kWeightTile + u % 2;
        tile_load<kW>(weights_[p][u], kTileLine);
        tile_zero<u>();
        tile_multiply_bytes<u, kXTile + u, kW>();
      }
    });
    if constexpr (!kAdds) return;
    for_constants<kUnits>([&](auto u) __attribute__((always_inline)) { add_unit(u(), p - 1, sum); });
    if (!ends) {
      for_constants<kTileRows>([&](auto r) __attribute__((always_inline)) { sum[r()].store(waiting + r() * kPanel); });
      return;
    }
    write(row, (p - 1) * kPanel, out, sum);
  }

  // sum += dots * scale * x scale, and mins.
  [[gnu::always_inline]] void add_unit(int64_t u, int64_t p, Vec (&sum)[kTileRows]) const {
    using Scale = std::conditional_t<Format::kPowers, ScaleExponent, PlainScale>;
    const Scale scale = Scale::of(Vec::load(scales_[p][u]));
    const int32_t* dots = dots_[u];
    const float* x_scales = x_scales_[u];
    for_constants<kTileRows>([&](auto r) __attribute__((always_inline)) {
      const IntVec dot = {_mm512_load_si512(dots + r() * kPanel)};
      sum[r()] = Vec::fma(dot.to_float(), scale.times(x_scales[r()]), sum[r()]);
    });
    if constexpr (Format::kMins) {
      const Vec min = Vec::load(mins_[p][u]);
      for_constants<kTileRows>([&](auto r) __attribute__((always_inline)) {
        sum[r()] = Vec::fma(Vec::set(x_mins_[u][r()]), min, sum[r()]);
      });
    }
  }

  void write(int64_t row, int64_t feature, const Output& out, const Vec (&sum)[kTileRows]) const {
    const int64_t n = std::min(kPanel, out.features - feature);
    for_constants<kTileRows>([&](auto r) __attribute__((always_inline)) {
      if (row + r() >= rows_) return;
      const Vec v = Format::kPowers ? sum[r()] * Vec::set(x_.row_scales[row + r()]) : sum[r()];
      float* at = out.y + r() * out.ldy + feature;
      store_n(out.accumulate ? load_n(at, n) + v : v, at, n);
    });
  }

  Q8Rows x_;
  int64_t rows_, groups_;
  const QuantPanels& w_;
  static constexpr int64_t kMostTiles = kMostRows / kTileRows;
  alignas(64) uint8_t weights_[kStrip][kUnits][kGroup / 4 * kTileLine];
  alignas(64) float scales_[kStrip][kUnits][kPanel];
  alignas(64) float mins_[Format::kMins ? kStrip : 1][kUnits][kPanel];
  alignas(64) int8_t x_copy_[kTileRows][kUnits * kGroup] = {};
  alignas(64) float x_scales_[kUnits][kTileRows] = {};
  alignas(64) float x_mins_[kUnits][kTileRows] = {};
  alignas(64) int32_t dots_[kUnits][kTileLanes];
  alignas(64) float waiting_[kMostTiles][kStrip][kTileLanes];
};

template <class Format>
void gemm_quant_tiles(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& w, int64_t features, float* y,
                      int64_t ldy, bool accumulate) noexcept {
  if (rows < kLeastTileRows) {
    return gemm_quant<typename Format::FewRows>(x, rows, groups, w, features, y, ldy, accumulate);
  }
  const TileScope scope = QuantTiles<Format>::tiles();
  QuantTiles<Format> tiles(groups, w);
  // Strip by strip: weights come from memory once, and for more blocks of rows from the L2 cache.
  for (int64_t first = 0; first * kPanel < features; first += kStrip) {
    for (int64_t r = 0; r < rows; r += kMostRows) {
      Q8Rows block = x;
      block.values += r * groups * kGroup;
      block.scales += r, block.sums += r;
      if (Format::kPowers) block.row_scales += r;
      tiles.multiply(block, std::min(kMostRows, rows - r), first, features - first * kPanel,
                     y + r * ldy + first * kPanel, ldy, accumulate);
    }
  }
}

void gemm_q4_tiles(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& w, int64_t features, float* y,
                   int64_t ldy, bool accumulate) noexcept {
  const auto gemm = w.mins != nullptr ? gemm_quant_tiles<TileQ4<true>> : gemm_quant_tiles<TileQ4<false>>;
  gemm(x, rows, groups, w, features, y, ldy, accumulate);
}
