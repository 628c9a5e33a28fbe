// The SIMD kernels, written once over a vector type `Vec`.
// Included by avx2.cc and avx512.cc inside their namespace, after the header that defines it;
// hence no include guard and no namespace here. Each translation unit is compiled for its own ISA.

// ---- elementwise ------------------------------------------------------------------------------------------------

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) noexcept {
  Vec sum = Vec::zero();
  for_lanes(0, n, [&](int64_t i, int64_t k) {
    const Vec v = load_n(x + i, k);
    sum = Vec::fma(v, v, sum);
  });
  const Vec scale = Vec::set(1.0f / std::sqrt(sum.sum() / static_cast<float>(n) + eps));
  for_lanes(0, n, [&](int64_t i, int64_t k) { store_n(load_n(x + i, k) * scale * load_n(weight + i, k), out + i, k); });
}

bool block_max(const float* x, int64_t n, float* maxima) noexcept {
  const Vec most = Vec::set(std::numeric_limits<float>::max()), one = Vec::set(1.0f);
  Vec valid = one;  // or 0: no comparison with NaN is true
  const auto check = [&](Vec v) { valid = Vec::min(valid, Vec::keep_ge(most, v, one)); };
  constexpr int kSide = 4;
  int64_t i = 0;
  for (; i + kSide * kLogitBlock <= n; i += kSide * kLogitBlock, maxima += kSide) {
    IntVec tops[kSide];
    for (int b = 0; b < kSide; ++b) {
      const float* block = x + i + b * kLogitBlock;
      Vec top = Vec::load(block);
      check(top);
      for (int64_t j = Vec::kWidth; j < kLogitBlock; j += Vec::kWidth) {
        const Vec v = Vec::load(block + j);
        check(v);
        top = Vec::max(top, v);
      }
      tops[b] = IntVec::bits_of(top);
    }
    int32_t bits[kSide];
    IntVec::reduce_each(
        tops, [](IntVec a, IntVec b) { return IntVec::bits_of(Vec::max(a.as_bits(), b.as_bits())); }, bits);
    std::memcpy(maxima, bits, sizeof(bits));
  }
  bool rest = true;
  for (; i < n; i += kLogitBlock, ++maxima) {
    *maxima = x[i];
    for (int64_t j = i; j < std::min(n, i + kLogitBlock); ++j) {
      *maxima = std::max(*maxima, x[j]);
      rest = rest && x[j] <= std::numeric_limits<float>::max();
    }
  }
  return rest && (Vec::zero() - valid).max() == -1.0f;
}

void silu_mul(const float* x, int64_t rows, int64_t n, float* y, int64_t ldy) noexcept {
  for (int64_t r = 0; r < rows; ++r, x += 2 * n, y += ldy) {
    for_lanes(0, n, [&](int64_t i, int64_t k) { store_n(silu(load_n(x + i, k)) * load_n(x + n + i, k), y + i, k); });
  }
}

void head_norm_rope(float* x, const float* norm_weight, float eps, const float* cos, const float* sin, float scale,
                    int64_t head_dim) noexcept {
  if (norm_weight != nullptr) rms_norm(x, norm_weight, eps, head_dim, x);
  const int64_t half = head_dim / 2;
  const Vec s = Vec::set(scale);
  for_lanes(0, half, [&](int64_t i, int64_t k) {
    const Vec a = load_n(x + i, k), b = load_n(x + half + i, k);
    const Vec c = load_n(cos + i, k), d = load_n(sin + i, k);
    store_n(Vec::fma(a, c, Vec::zero() - b * d) * s, x + i, k);
    store_n(Vec::fma(b, c, a * d) * s, x + half + i, k);
  });
}

void short_conv(const float* bcx, int64_t tokens, int64_t hidden, int64_t begin, int64_t end, const float* weight,
                const float* bias, int64_t taps, const float* before, float* after, float* y) noexcept {
  const int64_t past = taps - 1;
  // Rows are read along the channels, as they lie in memory; state and weights of so many stay in the L1 cache.
  constexpr int64_t kChannels = 512;
  for (int64_t first = begin; first < end; first += kChannels) {
    const float* state = before;
    for (int64_t t = 0; t < tokens; ++t, state = after) {
      for_lanes(first, std::min(end, first + kChannels), [&](int64_t c, int64_t n) {
        const float* row = bcx + t * 3 * hidden + c;
        const Vec bx = load_n(row, n) * load_n(row + 2 * hidden, n);
        Vec sum = bias != nullptr ? load_n(bias + c, n) : Vec::zero();
        for (int64_t j = 0; j < past; ++j) {
          const Vec old = load_n(state + j * hidden + c, n);
          sum = Vec::fma(load_n(weight + j * hidden + c, n), old, sum);
          if (j > 0) store_n(old, after + (j - 1) * hidden + c, n);
        }
        if (past > 0) store_n(bx, after + (past - 1) * hidden + c, n);
        sum = Vec::fma(load_n(weight + past * hidden + c, n), bx, sum);
        store_n(load_n(row + hidden, n) * sum, y + t * hidden + c, n);
      });
    }
  }
}

void to_bf16(const float* x, int64_t n, uint16_t* out) noexcept {
  int64_t i = 0;
  for (; i + Vec::kWidth <= n; i += Vec::kWidth) Vec::load(x + i).store(out + i);
  for (; i < n; ++i) out[i] = f32_to_bf16(x[i]);
}

constexpr Kernels kSimdKernels = {
    .rms_norm = rms_norm,
    .silu_mul = silu_mul,
    .block_max = block_max,
    .head_norm_rope = head_norm_rope,
    .short_conv = short_conv,
    .store_kv = {store_kv<KvType::f32>, store_kv<KvType::bf16>, store_kv<KvType::int8>},
    .attention = {attention<F32Kv>, attention<Bf16Kv>, attention<Int8Kv>},
    .attention_merge = attention_merge,
    .gemm_f32 = gemm<float>,
    .gemm_bf16 = gemm<uint16_t>,
    .quantize_q8 = quantize_q8,
    .gemm_q8 = gemm_quant<Q8Format>,
    .gemm_q6 = gemm_quant<Q6Format>,
    .gemm_q4 = gemm_q4,
    .blocked_f32 = nullptr,
    .blocked_bf16 = nullptr,
    .to_bf16 = to_bf16,
    .pack_q8 = pack_q8,
    .pack_q4 = pack_q4,
    .pack_q6 = pack_q6,
};
