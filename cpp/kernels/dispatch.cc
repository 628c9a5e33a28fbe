#include "kernels/kernels.h"

namespace lfm {

const Kernels& kernels_for(Isa isa) {
  if (isa >= Isa::amx) return amx_kernels();
  if (isa >= Isa::avx512_bf16) return avx512_bf16_kernels();
  if (isa >= Isa::avx512) return kAvx512Kernels;
  if (isa >= Isa::avx2_vnni) return avx2_vnni_kernels();
  if (isa >= Isa::avx2) return kAvx2Kernels;
  return kReferenceKernels;
}

const Kernels& active_kernels() { return kernels_for(active_isa()); }

}  // namespace lfm
