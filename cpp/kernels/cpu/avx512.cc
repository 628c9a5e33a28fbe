#include "kernels/cpu/vec_avx512.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/dtype.h"
#include "kernels/kernels.h"

namespace lfm {
namespace avx512 {
namespace {
#include "kernels/cpu/simd_kernels.h"
}  // namespace
}  // namespace avx512

const Kernels kAvx512Kernels = avx512::kTable;

}  // namespace lfm
