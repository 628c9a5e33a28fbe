// Functions of one vector, for any `Vec`. Included like simd_kernels.h, before it.

// exp(x) to about 1 ulp for x <= 88; exactly 0 below -87.3, so that a masked score weighs nothing.
inline Vec exp(Vec x) {
  const Vec lowest = Vec::set(-87.3f);
  const Vec clamped = Vec::min(Vec::max(x, lowest), Vec::set(88.0f));
  const Vec n = Vec::round(clamped * Vec::set(1.44269504f));
  // ln 2 in two parts keeps the reduced argument exact.
  Vec r = Vec::fma(n, Vec::set(-0.693359375f), clamped);
  r = Vec::fma(n, Vec::set(2.12194440e-4f), r);
  Vec p = Vec::set(1.0f / 5040);  // Taylor terms on |r| <= ln(2)/2
  p = Vec::fma(p, r, Vec::set(1.0f / 720));
  p = Vec::fma(p, r, Vec::set(1.0f / 120));
  p = Vec::fma(p, r, Vec::set(1.0f / 24));
  p = Vec::fma(p, r, Vec::set(1.0f / 6));
  p = Vec::fma(p, r, Vec::set(0.5f));
  p = Vec::fma(p, r, Vec::set(1.0f));
  p = Vec::fma(p, r, Vec::set(1.0f));
  return Vec::keep_ge(x, lowest, p * Vec::exp2i(n));
}

inline Vec silu(Vec v) { return v / (Vec::set(1.0f) + exp(Vec::zero() - v)); }
