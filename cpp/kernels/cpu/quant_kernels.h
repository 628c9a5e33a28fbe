// Activations to int8, and matrix products over 16-row panels of int8, 6-bit and int4 weights, written once over `Vec`,
// `IntVec` and the byte products of a format. Included like panel_kernels.h, whose write_tile it uses, by translation
// units that define kAheadOfBytes and kAheadOfBits: how many bytes ahead a single row prefetches int8 weights, and
// those of 6 and 4 bits, 0 for not at all; and kStreamedPanels: how many panels it reads together; several, also for
// few rows.

// Bits of magnitudes are in the order of the numbers, infinity above all of them and NaN above that.
inline IntVec magnitude_bits(Vec v) { return IntVec::bits_of(v) & IntVec::set(0x7fffffff); }

// The largest magnitude of x[n]; NaN where there is one.
inline float largest_or_nan(const float* x, int64_t n) {
  IntVec tops[4];
  for (IntVec& top : tops) top = IntVec::set(0);
  int64_t i = 0;
  for (; i + 4 * Vec::kWidth <= n; i += 4 * Vec::kWidth) {
    for (int64_t v = 0; v < 4; ++v) tops[v] = IntVec::max(tops[v], magnitude_bits(Vec::load(x + i + v * Vec::kWidth)));
  }
  for_lanes(i, n,
            [&](int64_t at, int64_t count) { tops[0] = IntVec::max(tops[0], magnitude_bits(load_n(x + at, count))); });
  for (int v = 1; v < 4; ++v) tops[0] = IntVec::max(tops[0], tops[v]);
  return std::bit_cast<float>(tops[0].max());
}

// Four groups side by side: maxima and sums across the lanes of all cost little more than those of one.
void quantize_q8(const float* x, int64_t n, Q8Kind kind, int8_t* values, float* scales, int32_t* sums, int64_t stride,
                 float* row_scale) noexcept {
  constexpr int kSide = 4, kVecs = kGroup / Vec::kWidth;
  constexpr float kLargest = std::numeric_limits<float>::max(), kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr int32_t kOne = std::bit_cast<int32_t>(1.0f), kLeast = std::bit_cast<int32_t>(kLeastPower);
  const int64_t groups = (n + kGroup - 1) / kGroup;
  const float row_top = kind.powers ? largest_or_nan(x, n) : 0.0f;
  const float row_inverse = row_top > kSmallestRowMax ? 127.0f / row_top : 0.0f;
  const bool finite = row_top <= kLargest;
  if (kind.powers) *row_scale = finite ? row_top / 127.0f : kNan;
  for (int64_t first = 0; first < groups; first += kSide, x += kSide * kGroup, values += kSide * kGroup) {
    const int64_t valid = finite ? n - first * kGroup : 0, count = std::min<int64_t>(kSide, groups - first);
    const auto load = [&](int64_t i) {
      if (i + Vec::kWidth <= valid) return Vec::load(x + i);
      return i < valid ? Vec::load(x + i, valid - i) : Vec::zero();
    };
    Vec v[kSide][kVecs];
    IntVec tops[kSide];
    for (int g = 0; g < kSide; ++g) {
      tops[g] = IntVec::set(0);
      for (int i = 0; i < kVecs; ++i) {
        v[g][i] = load(g * kGroup + i * Vec::kWidth);
        tops[g] = IntVec::max(tops[g], magnitude_bits(v[g][i]));
      }
    }
    int32_t top_bits[kSide];
    IntVec::reduce_each(tops, [](IntVec a, IntVec b) { return IntVec::max(a, b); }, top_bits);
    IntVec halves[2][kSide];
    float own_scales[kSide];
    for (int g = 0; g < kSide; ++g) {
      const float top = std::bit_cast<float>(top_bits[g]);
      float inverse = row_inverse;
      if (kind.powers) {
        // So often may row_top be halved.
        constexpr int32_t kExponent = 1 << 23, kMost = kOne - kLeast;
        const int32_t distance = (std::bit_cast<int32_t>(row_top) - top_bits[g]) & -kExponent;
        const int32_t halvings = row_inverse > 0.0f ? std::min(distance, kMost) : 0;
        own_scales[g] = std::bit_cast<float>(kOne - halvings);
        inverse = std::bit_cast<float>(std::bit_cast<int32_t>(row_inverse) + halvings);
      } else {
        own_scales[g] = top / 127.0f;
        inverse = top > kSmallestQ8Max ? 127.0f / top : 0.0f;
        if (!(top <= kLargest)) {
          own_scales[g] = kNan;
          for (Vec& value : v[g]) value = Vec::zero();
        }
      }
      for (int half = 0; half < 2; ++half) {
        halves[half][g] = IntVec::set(0);
        for (int i = half * kVecs / 2; i < (half + 1) * kVecs / 2; ++i) {
          const IntVec q = IntVec::of(v[g][i] * Vec::set(inverse));
          if (g < count) q.store_i8(values + g * kGroup + i * Vec::kWidth);
          halves[half][g] = halves[half][g] + q;
        }
      }
    }
    const auto add = [](IntVec a, IntVec b) { return a + b; };
    int32_t totals[2][kSide];
    if (kind.per_group == 1) {
      for (int g = 0; g < kSide; ++g) halves[0][g] = halves[0][g] + halves[1][g];
    } else {
      IntVec::reduce_each(halves[1], add, totals[1]);
    }
    IntVec::reduce_each(halves[0], add, totals[0]);
    for (int64_t g = 0; g < count; ++g, scales += stride) {
      *scales = own_scales[g];
      for (int64_t half = 0; half < kind.per_group; ++half, sums += stride) *sums = totals[half][g] * kind.factor;
    }
  }
}

// A format says what a group of a panel looks like: kBytes of it in loads of kQuadsPerLoad quads (inputs 4j .. 4j+3),
// and how the quads of one are read; Dot sums products with activations, from start(sums) on. kSteps: see QuantPanels.
// kPowers: see Q8Kind. kRows, kPanels: the largest tile.
struct PlainFormat {
  static constexpr bool kMins = false, kSteps = false, kPowers = true;
  using Unpacked = void;
  // As many sums, integer and fp32, as registers allow, and few loads for each: Zen 4 has one 64-byte load a cycle.
  // With eight lanes the fp32 sums wait on the stack: they are touched once a group.
  static constexpr int kRows = 4, kPanels = Vec::kWidth == 16 ? 3 : 1;
};

struct Q8Format : PlainFormat {
  static constexpr bool kPowers = false;
  static constexpr int64_t kBytes = kPanel * kGroup, kQuadsPerLoad = 1;
  static constexpr int64_t kAhead = kAheadOfBytes, kFetchFrom = 3 / kPanelVecs;
  static void load(const uint8_t* p, ByteVec (&quads)[1]) { quads[0] = ByteVec::load(p); }
  using Dot = DotQ8;
  static IntVec start(const int32_t* sum) { return IntVec::set(*sum); }
};

// Six-bit weights a byte each.
struct Q6BytesFormat : PlainFormat {
  static constexpr int64_t kBytes = kPanel * kGroup, kQuadsPerLoad = 1, kAhead = 0;
  static constexpr bool kSteps = true;
  static void load(const uint8_t* p, ByteVec (&quads)[1]) { quads[0] = ByteVec::load(p); }
  using Dot = DotQ6;
  static IntVec start(const int32_t* sum) { return IntVec::set(*sum); }
};

struct Q6Format : PlainFormat {
  using Unpacked = Q6BytesFormat;
  static constexpr int64_t kBytes = kPanel * kGroup / 4 * 3, kQuadsPerLoad = 4;
  static constexpr bool kSteps = true;
  // Each activation that is loaded serves two products; there are three sums for each output.
  static constexpr int kRows = 4, kPanels = Vec::kWidth == 16 ? 2 : 1;
  static constexpr int64_t kAhead = kAheadOfBits, kFetchFrom = 2;
  static void load(const uint8_t* p, ByteVec (&quads)[4]) {
    split_q6(ByteVec::load(p), ByteVec::load(p + 64), ByteVec::load(p + 128), quads);
  }
  using Dot = DotQ6;
  static IntVec start(const int32_t* sum) { return IntVec::set(*sum); }
};

template <bool Mins>
struct Q4Format : PlainFormat {
  static constexpr int64_t kBytes = kPanel * kGroup / 2, kQuadsPerLoad = 2;
  static constexpr bool kMins = Mins;
  // So much work for each byte leaves too few loads in flight by themselves: a single row prefetches so many bytes
  // ahead, and from so many rows on the next panels are fetched.
  static constexpr int64_t kAhead = kAheadOfBits, kFetchFrom = 2;
  static void load(const uint8_t* p, ByteVec (&quads)[2]) {
    const ByteVec both = ByteVec::load(p);
    quads[0] = both.low_halves(), quads[1] = both.high_halves();
  }
  using Dot = DotQ4;
  static IntVec start(const int32_t* sum) { return IntVec::set(Mins ? 0 : *sum); }
};

template <int R, int P, class T = IntVec>
using Dots = T[R][P][kPanelVecs];

// A tile that asks for its own memory. Several panels together fetch their scales too: so many streams are more than
// the prefetchers follow.
inline constexpr int kStreamedRows = kStreamedPanels > 1 ? 4 : 1;
template <class Format, int R, int P>
constexpr bool kStreams = R <= kStreamedRows && P <= kStreamedPanels && Format::kAhead > 0;

// `ahead` bytes after group g of a panel; where P panels end before that, as far into those that are read next.
template <int P>
inline int64_t bytes_ahead(int64_t ahead, int64_t group_bytes, int64_t g, int64_t groups) {
  if (P == 1) return ahead;
  const int64_t whole = (ahead + group_bytes - 1) / group_bytes;
  return (whole + (g + whole >= groups ? (P - 1) * groups : 0)) * group_bytes;
}

// Asks for scales, steps or mins of P panels, of which group g is at `lanes`.
template <int P>
inline void fetch_lanes(const void* lanes, int64_t g, int64_t groups) {
  constexpr int64_t kBytes = kPanel * 2, kAhead = 16 * kBytes;  // of a group
  const int64_t ahead = bytes_ahead<P>(kAhead, kBytes, g, groups);
  for (int p = 0; p < P; ++p) __builtin_prefetch(static_cast<const char*>(lanes) + p * groups * kBytes + ahead);
}

// The integer sums of R rows and P panels over a whole or half group, of Count quads. base: see quant_tile.
// Always inline: the sums are in registers then.
template <class Format, int64_t Count, int R, int P>
[[gnu::always_inline]] inline void add_quads(const int8_t* const* base, int64_t ld, const uint8_t* values,
                                             int64_t panel_bytes, int64_t ahead, const int32_t* sums,
                                             Dots<R, P>& total) {
  constexpr int64_t kQuads = Format::kQuadsPerLoad, kLoad = Format::kBytes / (kGroup / 4) * kQuads;
  Dots<R, P, typename Format::Dot> dot;
  for (int r = 0; r < R; ++r)
    for (auto& p : dot[r])
      for (auto& d : p) d = Format::Dot::start(Format::start(sums + r));
  for_constants<Count / kQuads>([&](auto load) __attribute__((always_inline)) {
    ByteVec quads[P][kPanelVecs][kQuads];
    for (int p = 0; p < P; ++p) {
      const uint8_t* at = values + p * panel_bytes + load() * kLoad;
      if (kStreams<Format, R, P> && ahead != 0) {
        for (int64_t line = 0; line < kLoad; line += kLine) __builtin_prefetch(at + ahead + line);
      }
      for (int i = 0; i < kPanelVecs; ++i) Format::load(at + i * Vec::kWidth * 4, quads[p][i]);
    }
    for_constants<kQuads>([&](auto q) __attribute__((always_inline)) {
      constexpr int64_t kQuad = load() * kQuads + q();
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        int32_t quad;
        std::memcpy(&quad, base[r / 3] + r % 3 * ld + kQuad * 4, sizeof(quad));
        for (int p = 0; p < P; ++p)
          for (int i = 0; i < kPanelVecs; ++i) dot[r][p][i].template add<kQuad>(quads[p][i][q()], quad);
      }
    });
  });
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p)
      for (int i = 0; i < kPanelVecs; ++i) total[r][p][i] = dot[r][p][i].total(Format::start(sums + r));
}

// sum += dot * scale(p, lane) * x_scale
template <class Scale, int R, int P, class Load>
[[gnu::always_inline]] inline void add_scaled(const Dots<R, P>& dot, const Load& scale, const float* x_scales,
                                              Sums<R, P>& sum) {
  for_constants<P * kPanelVecs>([&](auto at) __attribute__((always_inline)) {
    constexpr int64_t p = at() / kPanelVecs, i = at() % kPanelVecs;
    const Scale own = Scale::of(scale(p, i * Vec::kWidth));
    for_constants<R>([&](auto r) __attribute__((always_inline)) {
      Vec& out = sum[r()][p][i];
      out = Vec::fma(dot[r()][p][i].to_float(), own.times(x_scales[r()]), out);
    });
  });
}

// sum += part * scale, where the groups that share a scale end, and part = 0.
template <int R, int P>
inline void add_part(Sums<R, P>& part, const uint16_t* scales, int64_t panel_scales, Sums<R, P>& sum) {
  for (int p = 0; p < P; ++p)
    for (int i = 0; i < kPanelVecs; ++i) {
      const Vec scale = Vec::load_f16(scales + p * panel_scales + i * Vec::kWidth);
      for (int r = 0; r < R; ++r) sum[r][p][i] = Vec::fma(part[r][p][i], scale, sum[r][p][i]);
    }
  set_zero<R, P>(part);
}

// The fp16 scales of a panel.
template <class Format>
constexpr int64_t scale_lanes(int64_t groups) {
  return (Format::kSteps ? super_groups(groups) : groups) * kPanel;
}

// R rows of x times P panels. Rows are addressed as three offsets of few base pointers, or they would not fit in
// registers.
template <class Format, int R, int P>
inline void quant_tile(const Q8Rows& x, int64_t row, int64_t groups, const QuantPanels& w, int64_t panel,
                       int64_t features, float* y, int64_t ldy, bool accumulate, Ahead ahead) noexcept {
  using Scale = std::conditional_t<Format::kPowers && kDotsTakeMultipliers, ScaleExponent, PlainScale>;
  constexpr int kBases = (R + 2) / 3;
  const int64_t ld = groups * kGroup;
  const int8_t* base[kBases];
  for (int b = 0; b < kBases; ++b) base[b] = x.values + (row + 3 * b) * ld;
  const float* x_scales = x.scales + row;
  const int32_t* sums = x.sums + row;
  const uint8_t* values = w.values + panel * groups * Format::kBytes;
  const int64_t panel_bytes = groups * Format::kBytes, panel_lanes = groups * kPanel;
  const int64_t panel_scales = scale_lanes<Format>(groups);
  const uint16_t* scales = w.scales + panel * panel_scales;
  // The sums are written a row apart, mostly in pages of their own: let the lines arrive meanwhile.
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p) prefetch_write(y + r * ldy + p * kPanel);
  Sums<R, P> sum, part;
  set_zero<R, P>(sum);
  set_zero<R, P>(part);
  const bool first_rows = row == 0;  // which fetch for all
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t values_ahead = P == 1 || first_rows ? bytes_ahead<P>(Format::kAhead, Format::kBytes, g, groups) : 0;
    if (kStreams<Format, R, P> && P > 1 && first_rows) {
      const int64_t lane = (panel * groups + g) * kPanel;
      if constexpr (Format::kSteps) fetch_lanes<P>(w.steps + 2 * lane, g, groups);
      if constexpr (!Format::kSteps) fetch_lanes<P>(w.scales + lane, g, groups);
      if constexpr (Format::kMins) fetch_lanes<P>(w.mins + lane, g, groups);
    }
    Dots<R, P> dot;
    if constexpr (Format::kSteps) {
      for_constants<2>([&](auto half) __attribute__((always_inline)) {
        const int8_t* steps = w.steps + ((panel * groups + g) * 2 + half()) * kPanel;
        const int8_t* bases[kBases];
        for (int b = 0; b < kBases; ++b) bases[b] = base[b] + half() * kGroup / 2;
        add_quads<Format, kGroup / 8, R, P>(bases, ld, values + half() * Format::kBytes / 2, panel_bytes, values_ahead,
                                            sums + half() * x.stride, dot);
        const auto step = [&](int64_t p, int64_t lane) {
          return IntVec::load_i8(steps + p * panel_lanes * 2 + lane).to_float();
        };
        add_scaled<Scale, R, P>(dot, step, x_scales, part);
      });
      if ((g + 1) % kSuperGroups == 0 || g + 1 == groups) {
        add_part<R, P>(part, scales, panel_scales, sum);
        scales += kPanel;
      }
      sums += 2 * x.stride;
    } else {
      add_quads<Format, kGroup / 4, R, P>(base, ld, values, panel_bytes, values_ahead, sums, dot);
      const auto scale = [&](int64_t p, int64_t lane) { return Vec::load_f16(scales + p * panel_lanes + lane); };
      add_scaled<Scale, R, P>(dot, scale, x_scales, sum);
      if constexpr (Format::kMins) {
        for (int p = 0; p < P; ++p)
          for (int i = 0; i < kPanelVecs; ++i) {
            const int64_t lane = p * panel_lanes + i * Vec::kWidth;
            const Vec min = Vec::load_f16(w.mins + (panel * groups + g) * kPanel + lane);
            for (int r = 0; r < R; ++r) {
              sum[r][p][i] = Vec::fma(Vec::set(static_cast<float>(sums[r]) * x_scales[r]), min, sum[r][p][i]);
            }
          }
      }
      scales += kPanel, sums += x.stride;
    }
    if constexpr (!kStreams<Format, R, P>) ahead.turn<2>();
    for (const int8_t*& b : base) b += kGroup;
    x_scales += x.stride, values += Format::kBytes;
  }
  write_tile<R, P>(sum, y, ldy, features, accumulate, [&](Vec v, int64_t r) __attribute__((always_inline)) {
    return Format::kPowers ? v * Vec::set(x.row_scales[row + r]) : v;
  });
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

// Groups of one row whose panels, taken apart, stay close to the core.
inline constexpr int64_t kMostUnpackedGroups = 64;

// `count` groups taken apart.
template <class Format>
inline void unpack(const uint8_t* packed, int64_t count, uint8_t* out) {
  constexpr int64_t kQuads = Format::kQuadsPerLoad, kVec = Vec::kWidth * 4,
                    kLoad = Format::kBytes / (kGroup / 4) * kQuads;
  for (int64_t i = 0; i < count * (kGroup / 4) / kQuads; ++i) {
    for (int v = 0; v < kPanelVecs; ++v) {
      ByteVec quads[kQuads];
      Format::load(packed + i * kLoad + v * kVec, quads);
      for (int64_t q = 0; q < kQuads; ++q) quads[q].store(out + (i * kQuads + q) * kPanel * 4 + v * kVec);
    }
  }
}

// All rows times P panels at a time, from the panel `first` on. While its tiles compute, they fetch the next P panels
// into the L2 cache, each its share: else memory would wait for the arithmetic and the arithmetic for memory.
template <class Format, int R, int P>
inline void quant_rows(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& w, int64_t first,
                       int64_t features, float* y, int64_t ldy, bool accumulate) noexcept {
  constexpr int64_t kBytes = P * Format::kBytes;  // of a group
  const int64_t tiles = (rows + R - 1) / R;
  const auto share = [&](int64_t bytes) { return (bytes / kLine + tiles - 1) / tiles * kLine; };
  // Several panels that stream bring their scales too.
  const bool fetch = rows >= std::max<int64_t>(2, Format::kFetchFrom) && !(P > 1 && kStreams<Format, R, P>);
  const int64_t lanes = scale_lanes<Format>(groups);
  const int64_t of_group = fetch ? share(kBytes) : 0, scales_of_tile = fetch ? share(P * lanes * 2) : 0;
  const int64_t steps_of_tile = fetch && Format::kSteps ? share(P * groups * kPanel * 2) : 0;
  // Bits that are taken apart with some work are so once for many tiles.
  constexpr bool kUnpacks = !std::is_void_v<typename Format::Unpacked>;
  const bool unpacks = kUnpacks && tiles > 4 && groups <= kMostUnpackedGroups;
  alignas(64) uint8_t bytes[kUnpacks ? P * kMostUnpackedGroups * kPanel * kGroup : 1];
  int64_t n = first * kPanel;
  for (; n + (P - 1) * kPanel < features; n += P * kPanel) {
    const int64_t next = n / kPanel + P;
    Ahead values = {reinterpret_cast<const char*>(w.values + next * groups * Format::kBytes), of_group};
    Ahead scales = {reinterpret_cast<const char*>(w.scales + next * lanes), scales_of_tile};
    Ahead steps = {nullptr, steps_of_tile};
    if constexpr (Format::kSteps) steps.next = reinterpret_cast<const char*>(w.steps + next * groups * 2 * kPanel);
    if constexpr (kUnpacks) {
      if (unpacks) unpack<Format>(w.values + n / kPanel * groups * Format::kBytes, P * groups, bytes);
    }
    for (int64_t r = 0; r < rows; r += R, values.next += groups * of_group) {
      scales.turn<2>(), steps.turn<2>();
      if constexpr (kUnpacks) {
        if (unpacks) {
          const QuantPanels panels = {bytes, w.scales + n / kPanel * lanes, nullptr, w.steps + n * groups * 2};
          quant_tile_of<typename Format::Unpacked, R, P>(rows - r, x, r, groups, panels, 0, features - n,
                                                         y + r * ldy + n, ldy, accumulate, values);
          continue;
        }
      }
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
  constexpr int kRows = Format::kRows, kPanels = Format::kPanels;
  if constexpr (kStreamedPanels > 1) {
    if (rows <= 2 * kStreamedRows) {
      return quant_rows<Format, kStreamedRows, kStreamedPanels>(x, rows, groups, panels, 0, features, y, ldy,
                                                                accumulate);
    }
  }
  // Few rows panel by panel, where memory is the limit: one sequential stream is what the prefetchers follow best.
  const auto product = rows < kRows ? quant_rows<Format, kRows - 1, 1> : quant_rows<Format, kRows, kPanels>;
  product(x, rows, groups, panels, 0, features, y, ldy, accumulate);
}

inline void gemm_q4(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& panels, int64_t features,
                    float* y, int64_t ldy, bool accumulate) noexcept {
  const auto gemm = panels.mins != nullptr ? gemm_quant<Q4Format<true>> : gemm_quant<Q4Format<false>>;
  gemm(x, rows, groups, panels, features, y, ldy, accumulate);
}
