#include "model/layers.h"

namespace lfm {

void mlp_block(const LayerContext& ctx, const LayerWeights& layer) {
  Workspace& ws = ctx.ws;
  const int64_t width = ctx.config.intermediate_size;
  const NormedRows normed = {ctx, layer.ffn_norm};
  if (layer.w13->gates()) {
    float* gated = ws.projected.ensure(static_cast<size_t>(ctx.tokens * width));
    layer.w13->forward_gated(normed, ctx.tokens, gated, ws.linear);
    layer.w2->forward(gated, ctx.tokens, ws.hidden.data(), true, ws.linear);
    return;
  }
  float* both = ws.projected.ensure(static_cast<size_t>(ctx.tokens * 2 * width));
  layer.w13->forward(normed, ctx.tokens, both, false, ws.linear);
  const auto gated = [&](int64_t t, float* out) {
    const float* gate = both + t * 2 * width;
    ctx.kernels.silu_mul(gate, gate + width, width, out);
  };
  layer.w2->forward(gated, ctx.tokens, ws.hidden.data(), true, ws.linear);
}

}  // namespace lfm
