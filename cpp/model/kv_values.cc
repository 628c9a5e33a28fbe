#include "model/kv_values.h"

#include <cstring>

#include "base/dtype.h"

namespace lfm {
namespace {

// Element `index` of K or V of one head, which has `elements` of them, of the token at `slot`.
float element(KvType type, const std::byte* data, int64_t elements, int64_t index, int64_t slot) {
  uint16_t bits = 0;
  switch (type) {
    case KvType::f32: {
      float value = 0.0f;
      std::memcpy(&value, data + 4 * index, 4);
      return value;
    }
    case KvType::bf16: std::memcpy(&bits, data + 2 * index, 2); return bf16_to_f32(bits);
    case KvType::int8:
      std::memcpy(&bits, data + elements + 2 * slot, 2);
      return static_cast<float>(static_cast<int8_t>(data[index])) * bf16_to_f32(bits);
  }
  return 0.0f;
}

}  // namespace

void read_key(const SequenceState& state, int64_t attention_layer, int64_t head, int64_t position, float* out) {
  const StateLayout& layout = state.layout();
  const std::byte* k = state.page(position / kPage) + layout.k_offset(attention_layer, head);
  const int64_t slot = position % kPage;
  for (int64_t d = 0; d < layout.head_dim; ++d) {
    out[d] = element(layout.kv_type, k, k_elements(layout.head_dim), k_index(layout.kv_type, slot, d), slot);
  }
}

void read_value(const SequenceState& state, int64_t attention_layer, int64_t head, int64_t position, float* out) {
  const StateLayout& layout = state.layout();
  const std::byte* v = state.page(position / kPage) + layout.v_offset(attention_layer, head);
  const int64_t slot = position % kPage;
  for (int64_t d = 0; d < layout.head_dim; ++d) {
    out[d] = element(layout.kv_type, v, v_elements(layout.head_dim), v_index(layout.kv_type, layout.head_dim, slot, d),
                     slot);
  }
}

}  // namespace lfm
