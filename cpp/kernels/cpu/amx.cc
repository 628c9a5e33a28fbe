// What AMX adds to the AVX-512 BF16 table: products of many rows by tiles of 16 rows and 32 inputs; and for few rows
// the same kernels with prefetches as Intel's cores like them.
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
// Intel's cores: decoding one sequence x1.2 for bits, x1.16 for bytes (AMD's, AVX-512: no gain).
inline constexpr int64_t kAheadOfBytes = 512, kAheadOfBits = 1024;
inline constexpr int kStreamedPanels = 2;

// clang-format off: each needs the ones before it
#include "kernels/cpu/vec_avx512.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/dot_vnni.h"
#include "kernels/cpu/quant_scales.h"
#include "kernels/cpu/quant_kernels.h"
#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/amx_quant.h"
#include "kernels/cpu/amx_bf16.h"
#include "kernels/cpu/attention_avx512.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/attention_bf16.h"
#include "kernels/cpu/amx_attention.h"
// clang-format on
}  // namespace

const Kernels& amx_kernels() {
  static const Kernels table = [] {
    Kernels t = avx512_bf16_kernels();
    t.least_tile_rows = kLeastTileRows;
    t.quantize_q8 = quantize_q8;
    t.gemm_q8 = gemm_quant_tiles<TileQ8>;
    t.gemm_q6 = gemm_quant<Q6Format>;
    t.gemm_q4 = gemm_q4_tiles;
    t.gemm_tiles = gemm_tiles;
    t.to_tiles = to_tiles;
    t.silu_mul_to_tiles = silu_mul_to_tiles;
    t.attention[static_cast<int>(KvType::bf16)] = run_attention<TileAttention>;
    return t;
  }();
  return table;
}

}  // namespace lfm
