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
inline constexpr int64_t kAheadOfBytes = 1536, kAheadOfBits = 4544;
inline constexpr int kStreamedPanels = 1;

// clang-format off: each needs the ones before it
#include "kernels/cpu/vec_avx2.h"
#include "kernels/cpu/lanes.h"
#include "kernels/cpu/panel_kernels.h"
#include "kernels/cpu/dot_avx2.h"
#include "kernels/cpu/quant_scales.h"
#include "kernels/cpu/quant_kernels.h"
#include "kernels/cpu/pack_kernels.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/cpu/attention_avx2.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/simd_kernels.h"
// clang-format on
}  // namespace

const Kernels kAvx2Kernels = kSimdKernels;

}  // namespace lfm
