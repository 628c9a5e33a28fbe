// The blocks of a layer. Each adds its output to the residual stream ws.hidden [tokens, hidden].
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kernels.h"
#include "model/state.h"
#include "model/weights.h"
#include "model/workspace.h"

namespace lfm {

// One sequence's part of a packed batch: its tokens are the rows [first, first + count) of every activation, and
// have the positions from `position` on. Those below state->length() are replayed: they have their K and V already.
struct Segment {
  SequenceState* state;
  int64_t first, count;
  int64_t position;
  int64_t kept = 0;          // the conv state is kept after each of the last so many tokens
  float* history = nullptr;  // [kept][conv layer][conv_past][hidden]
};

struct LayerContext {
  const ModelConfig& config;
  const Kernels& kernels;
  std::span<const Segment> segments;
  int64_t tokens;  // of all segments
  Workspace& ws;
};

// The rows rms_norm(h) * weight as input of a Linear.
struct NormedRows {
  const LayerContext& ctx;
  const std::vector<float>& weight;
  void operator()(int64_t t, float* out) const {
    const int64_t hidden = ctx.config.hidden_size;
    ctx.kernels.rms_norm(ctx.ws.hidden.data() + t * hidden, weight.data(), ctx.config.norm_eps, hidden, out);
  }
};

// h += out_proj(C * causal_conv(B * x)), [B | C | x] = in_proj(rms_norm(h)).
void short_conv_block(const LayerContext& ctx, const LayerWeights& layer, int64_t conv_layer);

// h += out_proj(softmax(q k^T) v) with q, k normalized per head (qk_norm) and rotated by ws.rope.
void attention_block(const LayerContext& ctx, const LayerWeights& layer, int64_t attention_layer);

// h += w2(silu(w1 x) * w3 x), x = rms_norm(h).
void mlp_block(const LayerContext& ctx, const LayerWeights& layer);

}  // namespace lfm
