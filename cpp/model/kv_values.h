// K and V of a sequence as they are stored, read back as fp32.
#pragma once

#include <cstdint>

#include "model/state.h"

namespace lfm {

// Writes the key (the value) of one position and head to out[head_dim].
void read_key(const SequenceState& state, int64_t attention_layer, int64_t head, int64_t position, float* out);
void read_value(const SequenceState& state, int64_t attention_layer, int64_t head, int64_t position, float* out);

}  // namespace lfm
