// Eight fp32 lanes: what simd_kernels.h needs of AVX2 + FMA + F16C. Only for translation units built for it.
// Included inside the namespace of such a unit, so that no code built for one ISA can be linked into another; hence no
// include guard, no #include and no namespace here.

struct Vec {
  static constexpr int64_t kWidth = 8;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const uint16_t* p) {  // bf16
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static Vec load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  void store_f16(uint16_t* p) const {  // nearest even
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  // The first n (0 < n < kWidth) lanes, the rest zero.
  static Vec load(const float* p, int64_t n) { return {_mm256_maskload_ps(p, mask(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, int64_t n) const { _mm256_maskstore_ps(p, mask(n), v); }
  void store(uint16_t* p) const {  // bf16, nearest even; NaN stays NaN
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  // 2^n for integral n in [-126, 127].
  static Vec exp2i(Vec n) {
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(e, 23))};
  }
  // a where x >= y, else 0.
  static Vec keep_ge(Vec x, Vec y, Vec a) { return {_mm256_and_ps(a.v, _mm256_cmp_ps(x.v, y.v, _CMP_GE_OQ))}; }
  // a where x > y, else b.
  static Vec select_gt(Vec x, Vec y, Vec a, Vec b) {
    return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, y.v, _CMP_GT_OQ))};
  }
  float sum() const {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  float max() const {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }

 private:
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

// Integer lanes for q8: one int32 sum per weight row.
struct IntVec {
  __m256i v;
  static IntVec set(int32_t x) { return {_mm256_set1_epi32(x)}; }
  static IntVec of(Vec x) { return {_mm256_cvtps_epi32(x.v)}; }  // nearest even
  static IntVec load_i8(const int8_t* p) {
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
  }
  static IntVec bits_of(Vec x) { return {_mm256_castps_si256(x.v)}; }
  Vec as_bits() const { return {_mm256_castsi256_ps(v)}; }
  Vec to_float() const { return {_mm256_cvtepi32_ps(v)}; }
  void store(uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  void store_i8(int8_t* p) const {  // the low bytes
    const __m256i low = _mm256_shuffle_epi8(v, _mm256_set1_epi32(0x0c080400));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                     _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
  }
  int32_t max() const {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
  }
  static IntVec max(IntVec a, IntVec b) { return {_mm256_max_epi32(a.v, b.v)}; }
  // out[i] = the lanes of v[i] combined, by a sum or a maximum
  template <class Combine>
  static void reduce_each(const IntVec (&v)[4], const Combine& combine, int32_t* out) {
    const auto halves = [&](IntVec a, IntVec b) {
      return combine(IntVec{_mm256_unpacklo_epi32(a.v, b.v)}, IntVec{_mm256_unpackhi_epi32(a.v, b.v)});
    };
    const IntVec all = halves(halves(v[0], v[2]), halves(v[1], v[3]));
    const IntVec both = combine(all, IntVec{_mm256_permute2x128_si256(all.v, all.v, 1)});
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(both.v));
  }
  friend IntVec operator+(IntVec a, IntVec b) { return {_mm256_add_epi32(a.v, b.v)}; }
  friend IntVec operator-(IntVec a, IntVec b) { return {_mm256_sub_epi32(a.v, b.v)}; }
  friend IntVec operator&(IntVec a, IntVec b) { return {_mm256_and_si256(a.v, b.v)}; }
  friend IntVec operator|(IntVec a, IntVec b) { return {_mm256_or_si256(a.v, b.v)}; }
  template <int kBits>
  IntVec shifted() const {
    return {_mm256_slli_epi32(v, kBits)};
  }
};

// Four bytes (a quad of inputs) per lane.
struct ByteVec {
  __m256i v;
  static ByteVec load(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  void store(uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  ByteVec low_halves() const { return {_mm256_and_si256(v, _mm256_set1_epi8(15))}; }
  ByteVec high_halves() const { return {_mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15))}; }
};

// Three quads of 6 bits, and a fourth from the high 2 bits of each; see QuantPanels.
inline void split_q6(ByteVec a, ByteVec b, ByteVec c, ByteVec (&quads)[4]) {
  const __m256i low = _mm256_set1_epi8(0x3f);
  quads[0] = {_mm256_and_si256(a.v, low)};
  quads[1] = {_mm256_and_si256(b.v, low)};
  quads[2] = {_mm256_and_si256(c.v, low)};
  const __m256i first = _mm256_and_si256(_mm256_srli_epi16(a.v, 2), _mm256_set1_epi8(0x30));
  const __m256i two = _mm256_or_si256(first, _mm256_and_si256(_mm256_srli_epi16(b.v, 4), _mm256_set1_epi8(0x0c)));
  quads[3] = {_mm256_or_si256(two, _mm256_and_si256(_mm256_srli_epi16(c.v, 6), _mm256_set1_epi8(0x03)))};
}
