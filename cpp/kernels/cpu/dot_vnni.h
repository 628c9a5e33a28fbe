// Products of bytes by the dot product instruction of the ISA, `dot4`. Included like quant_kernels.h, before it.
// Sums of products of weights and activations, four inputs at a time, per lane: start(from), add(w, quad) with the
// activations of each quad packed in an int32, total(from): from + the sum. Weights are as stored, with their zero
// point: `from` is minus that times the sum of the activations.

struct Dot {
  IntVec sum;
  static Dot start(IntVec from) { return {from}; }
  template <int kQuad>
  void add(ByteVec w, int32_t quad) {
    sum = dot4(sum, w, quad);
  }
  IntVec total(IntVec) const { return sum; }
};
// Dot products take turns with floating-point multiplications.
inline constexpr bool kDotsTakeMultipliers = true;

using DotQ8 = Dot;
using DotQ6 = Dot;
using DotQ4 = Dot;
