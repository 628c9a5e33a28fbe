// What AVX-512 BF16 adds to the AVX-512 table.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "base/dtype.h"
#include "kernels/kernels.h"

namespace lfm {
namespace {
// clang-format off: each needs the ones before it
#include "kernels/cpu/vec_avx512.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/attention_avx512.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_bf16.h"
#include "kernels/cpu/blocked_kernels.h"
// clang-format on

// Each fp32 lane adds two products of bf16 pairs.
struct Bf16Product {
  using X = uint16_t;
  using W = uint16_t;
  static constexpr int64_t kStep = 2;
  static __m512bh broadcast(const X* x) { return broadcast_pair(x); }
  static Vec add(__m512bh x, const W* w, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_loadu_si512(w), x)};
  }
};

}  // namespace

const Kernels& avx512_bf16_kernels() {
  static const Kernels table = [] {
    Kernels t = kAvx512Kernels;
    t.blocked_bf16 = blocked<Bf16Product>;
    t.attention[static_cast<int>(KvType::bf16)] = attention<Bf16DotKv>;
    return t;
  }();
  return table;
}

}  // namespace lfm
