// The blocks of a layer. Each adds its output to the residual stream ws.hidden [tokens, hidden].
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <utility>

#include "kernels/kernels.h"
#include "model/state.h"
#include "model/taps.h"
#include "model/weights.h"
#include "model/workspace.h"

namespace lfm {

// One sequence's part of a packed batch: its tokens are the rows [first, first + count) of every activation, and
// have the positions from `position` on. Those below state->length() are replayed: they have their K and V already.
struct Segment {
  SequenceState* state;
  int64_t first, count;
  int64_t position;
  float* conv_after;         // [conv layer][conv_past][hidden]: the conv state after the pass, to be written
  int64_t kept = 0;          // the conv state is kept after each of the last so many tokens
  float* history = nullptr;  // [kept][conv layer][conv_past][hidden]
};

struct LayerContext {
  const ModelConfig& config;
  const Kernels& kernels;
  std::span<const Segment> segments;
  int64_t tokens;  // of all segments
  Workspace& ws;
  std::array<const Taps*, 2> taps = {};  // of the model, then of this call; either may be null
  int64_t layer = -1;

  bool taps_at(TapPoint point) const {
    return (taps[0] != nullptr && taps[0]->wants({point, layer})) ||
           (taps[1] != nullptr && taps[1]->wants({point, layer}));
  }
  // Shows an activation of all tokens to the taps at this point. Pointers into `buffer` end here.
  void tap(TapPoint point, Buffer<float>& buffer, const TapView& view) const {
    if (taps_at(point)) visit(point, buffer, view, token_rows(), true);
  }
  void visit(TapPoint point, Buffer<float>& buffer, const TapView& view, const std::vector<TapRows>& rows,
             bool writable) const;
  std::vector<TapRows> token_rows() const;
};

// The rows rms_norm(h) * weight as input of a Linear; where they are tapped at `point`, what the taps made of them.
class NormedRows {
 public:
  NormedRows(const LayerContext& ctx, const std::vector<float>& weight, TapPoint point);
  void operator()(int64_t t, float* out) const {
    const int64_t hidden = ctx_.config.hidden_size;
    if (tapped_.size() > 0) {
      std::copy_n(tapped_.data() + t * hidden, hidden, out);
    } else {
      norm(t, out);
    }
  }

 private:
  void norm(int64_t t, float* out) const {
    const int64_t hidden = ctx_.config.hidden_size;
    ctx_.kernels.rms_norm(ctx_.ws.hidden.data() + t * hidden, weight_.data(), ctx_.config.norm_eps, hidden, out);
  }

  const LayerContext& ctx_;
  const std::vector<float>& weight_;
  Buffer<float> tapped_;
};

// h += linear(x), the end of a block. Where it is tapped at `point`: h += what the taps made of linear(x), element by
// element; where they changed nothing the sum has the bits that it has without them.
void add_output(const LayerContext& ctx, TapPoint point, const Linear& linear, const RowSource& x);
void add_output(const LayerContext& ctx, TapPoint point, const Linear& linear, const float* x);

// h += out_proj(C * causal_conv(B * x)), [B | C | x] = in_proj(rms_norm(h)).
void short_conv_block(const LayerContext& ctx, const LayerWeights& layer, int64_t conv_layer);

// h += out_proj(softmax(q k^T) v) with q, k normalized per head (qk_norm) and rotated by ws.rope.
void attention_block(const LayerContext& ctx, const LayerWeights& layer, int64_t attention_layer);

// h += w2(silu(w1 x) * w3 x), x = rms_norm(h).
void mlp_block(const LayerContext& ctx, const LayerWeights& layer);

// For taps: softmax(q k^T) of this layer, sequence by sequence, from ws.projected and the KV pages.
void tap_attention_probs(const LayerContext& ctx, int64_t attention_layer);

}  // namespace lfm
