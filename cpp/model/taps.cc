#include "model/taps.h"

#include <atomic>
#include <utility>

#include "base/error.h"

namespace lfm {
namespace {

constexpr std::string_view kNames[kTapPoints] = {
    "input",           "operator_norm",      "conv.in_proj",     "conv.input",  "conv.gated",
    "conv.output",     "attention.qkv_proj", "attention.q",      "attention.k", "attention.v",
    "attention.probs", "attention.heads",    "attention.output", "middle",      "ffn_norm",
    "mlp.gated",       "mlp.output",         "output",           "norm",        "logits"};

bool is_conv(TapPoint point) { return point >= TapPoint::conv_in_proj && point <= TapPoint::conv_output; }
bool is_attention(TapPoint point) {
  return point >= TapPoint::attention_qkv_proj && point <= TapPoint::attention_output;
}

}  // namespace

std::string tap_name(TapPlace place) {
  const std::string_view name = kNames[static_cast<size_t>(place.point)];
  return place.layer < 0 ? std::string(name) : concat("layers.", place.layer, ".", name);
}

std::vector<TapPlace> tap_places(const ModelConfig& config) {
  std::vector<TapPlace> places;
  for (int64_t layer = 0; layer < config.num_layers(); ++layer) {
    const bool conv = config.layer_types[static_cast<size_t>(layer)] == LayerType::conv;
    for (int i = 0; i < static_cast<int>(TapPoint::norm); ++i) {
      const auto point = static_cast<TapPoint>(i);
      if (conv ? !is_attention(point) : !is_conv(point)) places.push_back({point, layer});
    }
  }
  places.push_back({TapPoint::norm, -1});
  places.push_back({TapPoint::logits, -1});
  return places;
}

TapPlace tap_place(const ModelConfig& config, const std::string& name) {
  for (const TapPlace place : tap_places(config)) {
    if (tap_name(place) == name) return place;
  }
  throw std::invalid_argument(concat("there is no point '", name, "' in this model"));
}

Taps::Taps(const ModelConfig& config, const std::vector<std::string>& names, Visitor visitor)
    : points_(static_cast<size_t>(config.num_layers() + 1)), visitor_(std::move(visitor)) {
  for (const std::string& name : names) {
    const TapPlace place = tap_place(config, name);
    points_[static_cast<size_t>(place.layer + 1)] |= uint32_t{1} << static_cast<int>(place.point);
  }
}

void Taps::visit(TapPlace place, Buffer<float>& buffer, const TapView& view, const std::vector<TapRows>& rows,
                 bool writable) const {
  std::vector<int64_t> strides = view.strides;
  if (strides.empty()) {
    strides.resize(view.shape.size());
    int64_t stride = 1;
    for (size_t i = strides.size(); i-- > 0; stride *= view.shape[i]) strides[i] = stride;
  }
  const auto shared = std::make_shared<Buffer<float>>(std::move(buffer));
  visitor_({place, shared->data() + view.offset, view.shape, std::move(strides), rows, writable, shared});
  const bool kept = shared.use_count() > 1;
  std::atomic_thread_fence(std::memory_order_acquire);  // another thread may have let go of it
  buffer = kept ? Buffer<float>(*shared) : std::move(*shared);
}

}  // namespace lfm
