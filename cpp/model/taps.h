// Named points of a forward pass where others see its activations in place and may change them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "model/config.h"

namespace lfm {

// In the order in which a pass comes by. T: tokens of the pass, H: hidden size.
enum class TapPoint : uint8_t {
  input,               // [T, H] the residual stream before the layer
  operator_norm,       // [T, H] what the convolution or attention block gets
  conv_in_proj,        // [T, 3, H] B, C and x
  conv_input,          // [T, H] B * x: what the convolution runs over, and keeps as its state
  conv_gated,          // [T, H] C * conv(B * x)
  conv_output,         // [T, H] what the block adds to the stream
  attention_qkv_proj,  // [T, heads + 2 * kv_heads, head_dim] before norm and rotation
  attention_q,         // [T, heads, head_dim] rotated, times head_dim^-0.5
  attention_k,         // [T, kv_heads, head_dim] rotated, before it is rounded to the type of the KV pages
  attention_v,         // [T, kv_heads, head_dim] likewise
  attention_probs,     // [heads, tokens of one sequence, its positions] computed apart, so not to be changed
  attention_heads,     // [T, heads, head_dim] weighted sums of V
  attention_output,    // [T, H] what the block adds to the stream
  middle,              // [T, H] the stream between the two blocks of a layer
  ffn_norm,            // [T, H] what the MLP gets
  mlp_gated,           // [T, intermediate] silu(w1 x) * w3 x
  mlp_output,          // [T, H] what the MLP adds to the stream
  output,              // [T, H] the stream after the layer
  norm,                // [T, H] after the last norm
  logits,              // [rows, vocab] those that were asked for
};
inline constexpr int kTapPoints = static_cast<int>(TapPoint::logits) + 1;

struct TapPlace {
  TapPoint point;
  int64_t layer;  // -1 for norm and logits
};

// "layers.3.conv.in_proj" and the like.
std::string tap_name(TapPlace place);

// All places of a model, in the order in which a pass comes by.
std::vector<TapPlace> tap_places(const ModelConfig& config);

// Throws std::invalid_argument for a name that the model does not have.
TapPlace tap_place(const ModelConfig& config, const std::string& name);

// Rows of an activation that belong to one sequence of the pass, at the positions [position, position + count).
struct TapRows {
  int64_t sequence, count, position;
};

// An activation in the memory of the pass. Who keeps `owner` keeps this memory as it is: the pass goes on in a copy.
struct Activation {
  TapPlace place;
  float* data;
  std::vector<int64_t> shape, strides;  // strides count elements
  std::vector<TapRows> rows;            // in order, of axis 0 (attention_probs: axis 1)
  bool writable;
  std::shared_ptr<const Buffer<float>> owner;
};

// Where in a buffer an activation lies. No strides: C-contiguous.
struct TapView {
  std::vector<int64_t> shape, strides = {};
  int64_t offset = 0;
};

// Who wants to see which places. Immutable, so that passes in several threads may share it.
class Taps {
 public:
  // Called between the steps of a pass, never in a parallel region. May throw: the pass then ends, and states are as
  // they were before it.
  using Visitor = std::function<void(const Activation&)>;

  Taps(const ModelConfig& config, const std::vector<std::string>& names, Visitor visitor);

  bool wants(TapPlace place) const {
    return (points_[static_cast<size_t>(place.layer + 1)] >> static_cast<int>(place.point) & 1) != 0;
  }

  // Shows the part `view` of `buffer`, which afterwards may be other memory with the same contents.
  void visit(TapPlace place, Buffer<float>& buffer, const TapView& view, const std::vector<TapRows>& rows,
             bool writable) const;

 private:
  std::vector<uint32_t> points_;  // [1 + layers]: a bit for each point; first those outside of layers
  Visitor visitor_;
};

}  // namespace lfm
