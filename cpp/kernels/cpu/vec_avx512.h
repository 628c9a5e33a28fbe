// Sixteen fp32 lanes: what simd_kernels.h needs of AVX-512 F/BW/DQ/VL + VNNI. Only for translation units built for it.
// Included inside the namespace of such a unit, so that no code built for one ISA can be linked into another; hence no
// include guard, no #include and no namespace here.

struct Vec {
  static constexpr int64_t kWidth = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const uint16_t* p) {  // bf16
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static Vec load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  void store_f16(uint16_t* p) const {  // nearest even
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  // The first n (0 < n < kWidth) lanes, the rest zero.
  static Vec load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(mask(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, mask(n), v); }
  void store(uint16_t* p) const {  // bf16, nearest even; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  // 2^n for integral n in [-126, 127].
  static Vec exp2i(Vec n) {
    const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
  }
  // a where x >= y, else 0.
  static Vec keep_ge(Vec x, Vec y, Vec a) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_GE_OQ), a.v)};
  }
  // a where x > y, else b.
  static Vec select_gt(Vec x, Vec y, Vec a, Vec b) {
    return {_mm512_mask_mov_ps(b.v, _mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ), a.v)};
  }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float max() const { return _mm512_reduce_max_ps(v); }

 private:
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

// Integer lanes for q8: one int32 sum per weight row.
struct IntVec {
  __m512i v;
  static IntVec set(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static IntVec of(Vec x) { return {_mm512_cvtps_epi32(x.v)}; }  // nearest even
  static IntVec load_i8(const int8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static IntVec bits_of(Vec x) { return {_mm512_castps_si512(x.v)}; }
  Vec as_bits() const { return {_mm512_castsi512_ps(v)}; }
  Vec to_float() const { return {_mm512_cvtepi32_ps(v)}; }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
  void store_i8(int8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v)); }
  int32_t max() const { return _mm512_reduce_max_epi32(v); }
  static IntVec max(IntVec a, IntVec b) { return {_mm512_max_epi32(a.v, b.v)}; }
  // out[i] = the lanes of v[i] combined, by a sum or a maximum
  template <class Combine>
  static void reduce_each(const IntVec (&v)[4], const Combine& combine, int32_t* out) {
    const auto halves = [&](IntVec a, IntVec b) {
      return combine(IntVec{_mm512_unpacklo_epi32(a.v, b.v)}, IntVec{_mm512_unpackhi_epi32(a.v, b.v)});
    };
    IntVec all = halves(halves(v[0], v[2]), halves(v[1], v[3]));
    all = combine(all, IntVec{_mm512_shuffle_i64x2(all.v, all.v, 0x4e)});
    all = combine(all, IntVec{_mm512_shuffle_i64x2(all.v, all.v, 0xb1)});
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(all.v));
  }
  friend IntVec operator+(IntVec a, IntVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
  friend IntVec operator-(IntVec a, IntVec b) { return {_mm512_sub_epi32(a.v, b.v)}; }
  friend IntVec operator&(IntVec a, IntVec b) { return {_mm512_and_si512(a.v, b.v)}; }
  friend IntVec operator|(IntVec a, IntVec b) { return {_mm512_or_si512(a.v, b.v)}; }
  template <int kBits>
  IntVec shifted() const {
    return {_mm512_slli_epi32(v, kBits)};
  }
};

// Four bytes (a quad of inputs) per lane.
struct ByteVec {
  __m512i v;
  static ByteVec load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
  ByteVec low_halves() const { return {_mm512_and_si512(v, _mm512_set1_epi8(15))}; }
  ByteVec high_halves() const { return {_mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15))}; }
};

// Three quads of 6 bits, and a fourth from the high 2 bits of each; see QuantPanels.
inline void split_q6(ByteVec a, ByteVec b, ByteVec c, ByteVec (&quads)[4]) {
  const __m512i low = _mm512_set1_epi8(0x3f);
  quads[0] = {_mm512_and_si512(a.v, low)};
  quads[1] = {_mm512_and_si512(b.v, low)};
  quads[2] = {_mm512_and_si512(c.v, low)};
  // x & y | z
  const __m512i last = _mm512_and_si512(_mm512_srli_epi16(c.v, 6), _mm512_set1_epi8(0x03));
  const __m512i two = _mm512_ternarylogic_epi32(_mm512_srli_epi16(b.v, 4), _mm512_set1_epi8(0x0c), last, 0xea);
  quads[3] = {_mm512_ternarylogic_epi32(_mm512_srli_epi16(a.v, 2), _mm512_set1_epi8(0x30), two, 0xea)};
}

// sum + w * a over 4 inputs per lane; w in 0..255, a: four int8 packed in `quad`.
inline IntVec dot4(IntVec sum, ByteVec w, int32_t quad) {
  return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(quad))};
}
