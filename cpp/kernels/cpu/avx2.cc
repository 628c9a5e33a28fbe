#include "kernels/cpu/vec_avx2.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "base/dtype.h"
#include "kernels/kernels.h"

namespace lfm {
namespace avx2 {
namespace {
#include "kernels/cpu/simd_kernels.h"
}  // namespace
}  // namespace avx2

const Kernels kAvx2Kernels = avx2::kTable;

}  // namespace lfm
