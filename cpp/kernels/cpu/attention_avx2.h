// What attention_kernels.h needs of AVX2. Included like it, before it.

// p * 2^n for integral n <= 0; 0 below -126.
inline Vec scale2(Vec p, Vec n) { return p * Vec::exp2i(Vec::max(n, Vec::set(-127.0f))); }

// Lanes of two bf16: the first and the second of each.
struct VecPair {
  Vec first, second;
};
inline VecPair load_pairs(const uint16_t* p) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(v, 16))},
          {_mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000))))}};
}

// int32 lanes that sum products of int16 pairs.
struct PairSum {
  __m256i v;
  static PairSum zero() { return {_mm256_setzero_si256()}; }
  static PairSum load_values(const int8_t* p) {  // one pair per lane, widened
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static PairSum set_pair(int32_t pair) { return {_mm256_set1_epi32(pair)}; }
  static PairSum add(PairSum sum, PairSum a, PairSum b) {
    return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v))};
  }
  void store(float* out) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v); }
  Vec to_float() const { return {_mm256_cvtepi32_ps(v)}; }
};

inline Vec load_int32(const float* p) {
  return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Rounded to nearest even; |x| <= 32767.
inline void store_int16(Vec x, int16_t* out) {
  const __m256i q = _mm256_cvtps_epi32(x.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                   _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1)));
}
