// Attention over bf16 K and V by AVX-512 BF16's dot products. Included after attention_kernels.h.

inline __m512bh broadcast_pair(const uint16_t* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof(pair));
  return (__m512bh)_mm512_set1_epi32(pair);
}

// bf16 K and V times queries and weights rounded to bf16; sums are fp32. The sum of the weights is that of the rounded
// ones, so that what is lost by rounding one goes to the others.
struct Bf16DotKv {
  static constexpr KvType kType = KvType::bf16;
  static constexpr int kMostRows = 6;
  using Element = uint16_t;
  using Operand = uint16_t;
  using Sum = Vec;
  static __m512bh load(const Element* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static __m512bh broadcast(const Operand* x) { return broadcast_pair(x); }
  static Vec add(Vec sum, __m512bh x, __m512bh values) { return {_mm512_dpbf16_ps(sum.v, values, x)}; }

  static float query(const float* q, int64_t n, Operand* out) {
    for_lanes(0, n, [&](int64_t i, int64_t k) {
      const auto lanes = static_cast<__mmask16>((1u << k) - 1u);
      _mm256_mask_storeu_epi16(out + i, lanes, (__m256i)_mm512_cvtneps_pbh(load_n(q + i, k).v));
    });
    return 1.0f;
  }

  static float softmax(const ScoreRow& row) {
    float* s = row.scores;
    std::fill(s + row.visible, s + row.keys, kMasked);
    *row.max = max_of(row.keys, [&](int64_t i) { return Vec::load(s + i); }).max();
    const Vec scale = Vec::set(kLog2E), shift = Vec::set(-*row.max * kLog2E);
    const auto ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    auto* weights = reinterpret_cast<uint16_t*>(s);
    Vec sum[2] = {Vec::zero(), Vec::zero()};
    for (int64_t i = 0; i < row.keys; i += 64) {
      for (int64_t j = 0; j < 2; ++j) {
        const float* at = s + i + j * 32;
        const Vec first = exp2(Vec::fma(Vec::load(at), scale, shift));
        const Vec second = exp2(Vec::fma(Vec::load(at + 16), scale, shift));
        const __m512bh both = _mm512_cvtne2ps_pbh(second.v, first.v);
        sum[j] = {_mm512_dpbf16_ps(sum[j].v, both, ones)};
        _mm512_storeu_si512(weights + i + j * 32, (__m512i)both);
      }
    }
    *row.sum = (sum[0] + sum[1]).sum();
    return 1.0f;
  }
};
