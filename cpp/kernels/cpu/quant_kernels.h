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
  static constexpr int64_t kAhead = 0, kFetchFrom = 3 / kPanelVecs;
  static void load(const uint8_t* p, ByteVec (&quads)[1]) { quads[0] = ByteVec::load(p); }
  static IntVec start(const int32_t* sum) { return kDotIncludesOffset ? IntVec::set(*sum) : IntVec::set(0); }
  static IntVec dot(IntVec acc, ByteVec w, int32_t quad) { return dot4_q8(acc, w, quad); }
};

template <bool Mins>
struct Q4Format {
  static constexpr int64_t kBytes = kPanel * kGroup / 2;
  static constexpr bool kMins = Mins;
  static constexpr int64_t kQuadsPerLoad = 2;
  // So much work for each byte leaves too few loads in flight by themselves: a single row prefetches so many bytes
  // ahead, and from so many rows on the next panels are fetched.
  static constexpr int64_t kAhead = 4544, kFetchFrom = 2;
  static void load(const uint8_t* p, ByteVec (&quads)[2]) {
    const ByteVec both = ByteVec::load(p);
    quads[0] = both.low_halves(), quads[1] = both.high_halves();
  }
  static IntVec start(const int32_t* sum) { return Mins ? IntVec::set(0) : IntVec::set(*sum); }
  static IntVec dot(IntVec acc, ByteVec w, int32_t quad) { return dot4_q4(acc, w, quad); }
};

// R rows of x times P panels. Rows are addressed as three offsets of few base pointers, or they would not fit in
// registers.
template <class Format, int R, int P>
inline void quant_tile(const Q8Rows& x, int64_t row, int64_t groups, const QuantPanels& w, int64_t panel,
                       int64_t features, float* y, int64_t ldy, bool accumulate, Ahead ahead) noexcept {
  constexpr bool kStreams = R * P == 1 && Format::kAhead > 0;  // one row, or what is left of several
  constexpr int kBases = (R + 2) / 3;
  constexpr int64_t kQuads = Format::kQuadsPerLoad;
  const int64_t ld = groups * kGroup;
  const int8_t* base[kBases];
  for (int b = 0; b < kBases; ++b) base[b] = x.values + (row + 3 * b) * ld;
  const float* x_scales = x.scales + row;
  const int32_t* sums = x.sums + row;
  const uint8_t* values = w.values + panel * groups * Format::kBytes;
  const int64_t first_scale = panel * groups * kPanel;
  const uint16_t* scales = w.scales + first_scale;
  // The sums are written a row apart, mostly in pages of their own: let the lines arrive meanwhile.
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) prefetch_write(y + r * ldy + p * kPanel);
  Vec sum[R][P][kPanelVecs];
  for (auto& r : sum)
    for (auto& p : r)
      for (Vec& v : p) v = Vec::zero();
  for (int64_t g = 0; g < groups; ++g) {
    IntVec dot[R][P][kPanelVecs];
    for (int r = 0; r < R; ++r)
      for (auto& p : dot[r])
        for (IntVec& d : p) d = Format::start(sums + r);
#pragma GCC unroll 8
    for (int64_t j = 0; j < kGroup / 4; j += kQuads) {
      ByteVec quads[P][kPanelVecs][kQuads];
      for (int p = 0; p < P; ++p)
        for (int i = 0; i < kPanelVecs; ++i) {
          const uint8_t* at = values + p * groups * Format::kBytes + (j / kQuads * kPanel + i * Vec::kWidth) * 4;
          if constexpr (kStreams) __builtin_prefetch(at + Format::kAhead);
          Format::load(at, quads[p][i]);
        }
#pragma GCC unroll 2
      for (int64_t q = 0; q < kQuads; ++q) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          int32_t quad;
          std::memcpy(&quad, base[r / 3] + r % 3 * ld + (j + q) * 4, sizeof(quad));
          for (int p = 0; p < P; ++p)
            for (int i = 0; i < kPanelVecs; ++i) dot[r][p][i] = Format::dot(dot[r][p][i], quads[p][i][q], quad);
        }
      }
    }
    for (int p = 0; p < P; ++p)
      for (int i = 0; i < kPanelVecs; ++i) {
        const int64_t lane = p * groups * kPanel + i * Vec::kWidth;
        const Vec scale = Vec::load_f16(scales + lane);
        for (int r = 0; r < R; ++r) {
          sum[r][p][i] = Vec::fma(dot[r][p][i].to_float(), scale * Vec::set(x_scales[r]), sum[r][p][i]);
        }
        if constexpr (Format::kMins) {
          const Vec min = Vec::load_f16(w.mins + first_scale + g * kPanel + lane);
          for (int r = 0; r < R; ++r) {
            sum[r][p][i] = Vec::fma(Vec::set(static_cast<float>(sums[r]) * x_scales[r]), min, sum[r][p][i]);
          }
        }
      }
    if constexpr (!kStreams) ahead.turn<2>();
    for (const int8_t*& b : base) b += kGroup;
    x_scales += x.stride, sums += x.stride, values += Format::kBytes, scales += kPanel;
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) {
      write_panel(sum[r][p], y + r * ldy + p * kPanel, features - p * kPanel, accumulate);
    }
}

// `rows` rows, at most R of them, in one tile.
template <class Format, int R, int P>
inline void quant_tile_of(int64_t rows, const Q8Rows& x, int64_t row, int64_t groups, const QuantPanels& w,
                          int64_t panel, int64_t features, float* y, int64_t ldy, bool accumulate,
                          Ahead ahead) noexcept {
  if constexpr (R > 1) {
    if (rows < R) {
      return quant_tile_of<Format, R - 1, P>(rows, x, row, groups, w, panel, features, y, ldy, accumulate, ahead);
    }
  }
  quant_tile<Format, R, P>(x, row, groups, w, panel, features, y, ldy, accumulate, ahead);
}

// All rows times P panels at a time, from the panel `first` on. While its tiles compute, they fetch the next P panels
// into the L2 cache, each its share: else memory would wait for the arithmetic and the arithmetic for memory.
template <class Format, int R, int P>
inline void quant_rows(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& w, int64_t first,
                       int64_t features, float* y, int64_t ldy, bool accumulate) noexcept {
  constexpr int64_t kBytes = P * Format::kBytes, kScaleBytes = P * kPanel * sizeof(uint16_t);  // of a group
  const int64_t tiles = (rows + R - 1) / R;
  const auto share = [&](int64_t bytes) { return (bytes / kLine + tiles - 1) / tiles * kLine; };
  const bool fetch = rows >= std::max<int64_t>(2, Format::kFetchFrom);
  const int64_t of_group = fetch ? share(kBytes) : 0, scales_of_tile = fetch ? share(groups * kScaleBytes) : 0;
  int64_t n = first * kPanel;
  for (; n + (P - 1) * kPanel < features; n += P * kPanel) {
    const int64_t next = (n / kPanel + P) * groups;
    Ahead values = {reinterpret_cast<const char*>(w.values + next * Format::kBytes), of_group};
    Ahead scales = {reinterpret_cast<const char*>(w.scales + next * kPanel), scales_of_tile};
    for (int64_t r = 0; r < rows; r += R, values.next += groups * of_group) {
      scales.turn<2>();
      quant_tile_of<Format, R, P>(rows - r, x, r, groups, w, n / kPanel, features - n, y + r * ldy + n, ldy, accumulate,
                                  values);
    }
  }
  if constexpr (P > 1) {
    if (n < features) {
      quant_rows<Format, R, P - 1>(x, rows, groups, w, n / kPanel, features, y, ldy, accumulate);
    }
  }
}

template <class Format>
void gemm_quant(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& panels, int64_t features, float* y,
                int64_t ldy, bool accumulate) noexcept {
  // As many sums, integer and fp32, as registers allow, and few loads for each: Zen 4 has one 64-byte load a cycle.
  constexpr int kRows = Vec::kWidth == 16 ? 4 : 2, kPanels = Vec::kWidth == 16 ? 3 : 1;
  // Few rows panel by panel, where memory is the limit: one sequential stream is what the prefetchers follow best.
  const auto product = rows < kRows ? quant_rows<Format, kRows - 1, 1> : quant_rows<Format, kRows, kPanels>;
  product(x, rows, groups, panels, 0, features, y, ldy, accumulate);
}

void gemm_q4(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& panels, int64_t features, float* y,
             int64_t ldy, bool accumulate) noexcept {
  const auto gemm = panels.mins != nullptr ? gemm_quant<Q4Format<true>> : gemm_quant<Q4Format<false>>;
  gemm(x, rows, groups, panels, features, y, ldy, accumulate);
}
