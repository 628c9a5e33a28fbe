#include "base/error.h"
#include "kernels/cuda/cuda.h"

namespace lfm {

void require_device(std::string_view device) {
  if (device == "cpu") return;
  const bool cuda = device.substr(0, 4) == "cuda";
#ifdef LFM_ENGINE_CUDA
  check(!cuda, "device '", device,
        "': the CUDA backend is not written yet (LFM_ENGINE_CUDA builds its stub); use device='cpu'");
#else
  check(!cuda, "device '", device, "': this build of lfm-engine has no CUDA; use device='cpu'");
#endif
  throw std::invalid_argument(concat("device '", device, "' is unknown; use device='cpu'"));
}

}  // namespace lfm
