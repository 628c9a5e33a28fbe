// What AVX-VNNI adds to the AVX2 table: integer matrix products.
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/kernels.h"

namespace lfm {
namespace {
inline constexpr int64_t kAheadOfBytes = 1536, kAheadOfBits = 4544;
inline constexpr int kStreamedPanels = 1;
#include "kernels/cpu/vec_avx2.h"

// sum + w * a over 4 inputs per lane; w in 0..255, a: four int8 packed in `quad`.
inline IntVec dot4(IntVec sum, ByteVec w, int32_t quad) {
  return {_mm256_dpbusd_avx_epi32(sum.v, w.v, _mm256_set1_epi32(quad))};
}

// clang-format off: each needs the ones before it
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/dot_vnni.h"
#include "kernels/cpu/quant_scales.h"
#include "kernels/cpu/quant_kernels.h"
// clang-format on
}  // namespace

const Kernels& avx2_vnni_kernels() {
  static const Kernels table = [] {
    Kernels t = kAvx2Kernels;
    t.quantize_q8 = quantize_q8;
    t.gemm_q8 = gemm_quant<Q8Format>;
    t.gemm_q6 = gemm_quant<Q6Format>;
    t.gemm_q4 = gemm_q4;
    return t;
  }();
  return table;
}

}  // namespace lfm
