#include "model/layers.h"

namespace lfm {

void mlp_block(const LayerContext& ctx, const LayerWeights& layer) {
  Workspace& ws = ctx.ws;
  const int64_t width = ctx.config.intermediate_size;
  norm_forward(ctx, layer.ffn_norm, *layer.w13, ws.projected.data());
  const auto gated = [&](int64_t t, float* out) {
    const float* gate = ws.projected.data() + t * 2 * width;
    ctx.kernels.silu_mul(gate, gate + width, width, out);
  };
  layer.w2->forward(gated, ctx.tokens, ws.hidden.data(), true, ws.linear);
}

}  // namespace lfm
