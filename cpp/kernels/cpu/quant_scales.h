// How scales of weights and activations are multiplied, for any `Vec`. Included like simd_kernels.h.

// A scale of W, to be multiplied with scales of x.
struct PlainScale {
  Vec scale;
  static PlainScale of(Vec s) { return {s}; }
  Vec times(float x_scale) const { return scale * Vec::set(x_scale); }
};

// With powers of two, exactly the same: exponents add up.
struct ScaleExponent {
  IntVec bits;
  static ScaleExponent of(Vec s) { return {IntVec::bits_of(s) - IntVec::set(std::bit_cast<int32_t>(1.0f))}; }
  Vec times(float x_scale) const { return (bits + IntVec::set(std::bit_cast<int32_t>(x_scale))).as_bits(); }
};
