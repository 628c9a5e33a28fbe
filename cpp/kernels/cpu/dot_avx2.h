// Products of bytes where there is no dot product instruction. Included like quant_kernels.h, before it.
// Sums of products of weights and activations, four inputs at a time, per lane: start(from), add(w, quad) with the
// activations of each quad packed in an int32, total(from): from + the sum.

// Here integer additions are what products of bytes take turns with.
inline constexpr bool kDotsTakeMultipliers = false;

// Of weights w as they are stored, plus 128, each with the sum of w - 128: `from` is not of use.
struct DotQ8 {
  __m256i sum;
  static DotQ8 start(IntVec) { return {_mm256_setzero_si256()}; }
  template <int kQuad>
  void add(ByteVec w, int32_t quad) {
    const __m256i weights = _mm256_xor_si256(w.v, _mm256_set1_epi8(static_cast<char>(0x80)));
    // |w| <= 128 unsigned times sign(w) * a in [-127, 127]: pairs stay within int16.
    const __m256i pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(_mm256_set1_epi32(quad), weights));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  IntVec total(IntVec) const { return {sum}; }
};

// Of weights in 0..63, of at most four quads. Pairs reach 2 * 63 * 127 = 16002, so int16 has room for two.
struct DotQ6 {
  __m256i first, second;
  static DotQ6 start(IntVec) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  template <int kQuad>
  void add(ByteVec w, int32_t quad) {
    const __m256i pairs = _mm256_maddubs_epi16(w.v, _mm256_set1_epi32(quad));
    if constexpr (kQuad == 0) first = pairs;
    if constexpr (kQuad == 1) first = _mm256_add_epi16(first, pairs);
    if constexpr (kQuad == 2) second = pairs;
    if constexpr (kQuad == 3) second = _mm256_add_epi16(second, pairs);
  }
  IntVec total(IntVec from) const {
    const __m256i one = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(_mm256_add_epi32(_mm256_madd_epi16(first, one), _mm256_madd_epi16(second, one)), from.v)};
  }
};

// Of weights in 0..15, of at most eight quads: pairs reach 2 * 15 * 127 = 3810, eight of them fit in int16.
struct DotQ4 {
  __m256i pairs;
  static DotQ4 start(IntVec) { return {_mm256_setzero_si256()}; }
  template <int kQuad>
  void add(ByteVec w, int32_t quad) {
    const __m256i more = _mm256_maddubs_epi16(w.v, _mm256_set1_epi32(quad));
    pairs = kQuad == 0 ? more : _mm256_add_epi16(pairs, more);
  }
  IntVec total(IntVec from) const { return {_mm256_add_epi32(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)), from.v)}; }
};
