// Activations to int8, and matrix products over 16-row panels of int8 and int4 weights, written once over `Vec`,
// `IntVec` and the byte products of a format. Included like panel_kernels.h, whose write_panel it uses.

void quantize_q8(const float* x, int64_t n, int32_t sum_factor, int8_t* values, float* scales, int32_t* sums,
                 int64_t stride) noexcept {
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
    scales[g * stride] = max / 127.0f;
    sums[g * stride] = sum * sum_factor;
  }
}

// A format says what a group of a panel looks like: kBytes of it, and how quad j (inputs 4j .. 4j+3) of vector i is
// read; dot4 adds its products with four activations to a sum that began at start(sums).
struct Q8Format {
  static constexpr int64_t kBytes = kPanel * kGroup;
  static constexpr bool kMins = false;
  static constexpr int64_t kQuadsPerLoad = 1;
  static void load(const uint8_t* p, ByteVec (&quads)[1]) { quads[0] = ByteVec::load(p); }
  static IntVec start(const int32_t* sum) { return kDotIncludesOffset ? IntVec::set(*sum) : IntVec::set(0); }
  static IntVec dot(IntVec acc, ByteVec w, int32_t quad) { return dot4_q8(acc, w, quad); }
};

template <bool Mins>
struct Q4Format {
  static constexpr int64_t kBytes = kPanel * kGroup / 2;
  static constexpr bool kMins = Mins;
  static constexpr int64_t kQuadsPerLoad = 2;
  static void load(const uint8_t* p, ByteVec (&quads)[2]) {
    const ByteVec both = ByteVec::load(p);
    quads[0] = both.low_halves(), quads[1] = both.high_halves();
  }
  static IntVec start(const int32_t* sum) { return Mins ? IntVec::set(0) : IntVec::set(*sum); }
  static IntVec dot(IntVec acc, ByteVec w, int32_t quad) { return dot4_q4(acc, w, quad); }
};

// R rows of x times one panel. Rows are addressed as three offsets of few base pointers, or they would not fit in
// registers.
template <class Format, int R>
inline void quant_tile(const Q8Rows& x, int64_t row, int64_t groups, const QuantPanels& w, int64_t panel,
                       int64_t features, float* y, int64_t ldy, bool accumulate) noexcept {
  constexpr int kBases = (R + 2) / 3;
  const int64_t ld = groups * kGroup;
  const int8_t* base[kBases];
  for (int b = 0; b < kBases; ++b) base[b] = x.values + (row + 3 * b) * ld;
  const float* x_scales = x.scales + row;
  const int32_t* sums = x.sums + row;
  const uint8_t* values = w.values + panel * groups * Format::kBytes;
  const int64_t first_scale = panel * groups * kPanel;
  const uint16_t* scales = w.scales + first_scale;
  Vec sum[R][kPanelVecs];
  for (auto& r : sum)
    for (Vec& v : r) v = Vec::zero();
  for (int64_t g = 0; g < groups; ++g) {
    IntVec dot[R][kPanelVecs];
    for (int r = 0; r < R; ++r)
      for (IntVec& d : dot[r]) d = Format::start(sums + r);
    constexpr int64_t kQuads = Format::kQuadsPerLoad;
#pragma GCC unroll 8
    for (int64_t j = 0; j < kGroup / 4; j += kQuads) {
      ByteVec quads[kPanelVecs][kQuads];
      for (int i = 0; i < kPanelVecs; ++i) {
        Format::load(values + (j / kQuads * kPanel + i * Vec::kWidth) * 4, quads[i]);
      }
#pragma GCC unroll 2
      for (int64_t q = 0; q < kQuads; ++q) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          int32_t quad;
          std::memcpy(&quad, base[r / 3] + r % 3 * ld + (j + q) * 4, sizeof(quad));
          for (int i = 0; i < kPanelVecs; ++i) dot[r][i] = Format::dot(dot[r][i], quads[i][q], quad);
        }
      }
    }
    for (int i = 0; i < kPanelVecs; ++i) {
      const Vec scale = Vec::load_f16(scales + i * Vec::kWidth);
      for (int r = 0; r < R; ++r) {
        sum[r][i] = Vec::fma(dot[r][i].to_float(), scale * Vec::set(x_scales[r]), sum[r][i]);
      }
      if constexpr (Format::kMins) {
        const Vec min = Vec::load_f16(w.mins + first_scale + g * kPanel + i * Vec::kWidth);
        for (int r = 0; r < R; ++r) {
          sum[r][i] = Vec::fma(Vec::set(static_cast<float>(sums[r]) * x_scales[r]), min, sum[r][i]);
        }
      }
    }
    for (const int8_t*& b : base) b += kGroup;
    x_scales += x.stride, sums += x.stride, values += Format::kBytes, scales += kPanel;
  }
  for (int r = 0; r < R; ++r) write_panel(sum[r], y + r * ldy, features, accumulate);
}

template <class Format, int R>
inline void quant_rows(const Q8Rows& x, int64_t row, int64_t end, int64_t groups, const QuantPanels& w,
                       int64_t features, float* y, int64_t ldy, bool accumulate) noexcept {
  // Panel by panel: weights arrive as one sequential stream, which is what the prefetchers follow best.
  for (int64_t n = 0; n < features; n += kPanel) {
    for (int64_t r = row; r < end; r += R) {
      quant_tile<Format, R>(x, r, groups, w, n / kPanel, features - n, y + r * ldy + n, ldy, accumulate);
    }
  }
}

// The rows that are left, fewer than R, in one tile: every size has its own code.
template <class Format, int R>
inline void quant_rest(const Q8Rows& x, int64_t row, int64_t end, int64_t groups, const QuantPanels& w,
                       int64_t features, float* y, int64_t ldy, bool accumulate) noexcept {
  if constexpr (R > 1) {
    if (end - row != R - 1) return quant_rest<Format, R - 1>(x, row, end, groups, w, features, y, ldy, accumulate);
    quant_rows<Format, R - 1>(x, row, end, groups, w, features, y, ldy, accumulate);
  }
}

template <class Format>
void gemm_quant(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& panels, int64_t features, float* y,
                int64_t ldy, bool accumulate) noexcept {
  constexpr int kRows = Vec::kWidth == 16 ? 12 : 3;  // as many sums, integer and fp32, as registers allow
  const int64_t whole = rows / kRows * kRows;
  if (whole > 0) quant_rows<Format, kRows>(x, 0, whole, groups, panels, features, y, ldy, accumulate);
  quant_rest<Format, kRows>(x, whole, rows, groups, panels, features, y, ldy, accumulate);
}

void gemm_q4(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& panels, int64_t features, float* y,
             int64_t ldy, bool accumulate) noexcept {
  const auto gemm = panels.mins != nullptr ? gemm_quant<Q4Format<true>> : gemm_quant<Q4Format<false>>;
  gemm(x, rows, groups, panels, features, y, ldy, accumulate);
}
