// What attention_kernels.h needs of AVX-512 with VNNI. Included like it, before it.

// p * 2^n for integral n <= 0; 0 where that is too small.
inline Vec scale2(Vec p, Vec n) { return {_mm512_scalef_ps(p.v, n.v)}; }

// Lanes of two bf16: the first and the second of each.
struct VecPair {
  Vec first, second;
};
inline VecPair load_pairs(const uint16_t* p) {
  const __m512i v = _mm512_loadu_si512(p);
  return {{_mm512_castsi512_ps(_mm512_slli_epi32(v, 16))},
          {_mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000))))}};
}

// int32 lanes that sum products of int16 pairs.
struct PairSum {
  __m512i v;
  static PairSum zero() { return {_mm512_setzero_si512()}; }
  static PairSum load_values(const int8_t* p) {  // one pair per lane, widened
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static PairSum set_pair(int32_t pair) { return {_mm512_set1_epi32(pair)}; }
  static PairSum add(PairSum sum, PairSum a, PairSum b) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }
  void store(float* out) const { _mm512_storeu_si512(out, v); }
  Vec to_float() const { return {_mm512_cvtepi32_ps(v)}; }
};

inline Vec load_int32(const float* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
// Rounded to nearest even; |x| <= 32767.
inline void store_int16(Vec x, int16_t* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x.v)));
}
