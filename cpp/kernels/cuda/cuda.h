// The CUDA backend's door. There is no CUDA code yet: this build says so instead of falling back in silence.
#pragma once

#include <string_view>

namespace lfm {

// "cpu" is accepted; anything else throws std::invalid_argument that says what this build lacks.
void require_device(std::string_view device);

}  // namespace lfm
