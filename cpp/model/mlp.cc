#include "base/parallel.h"
#include "model/layers.h"

namespace lfm {

void mlp_block(const LayerContext& ctx, const LayerWeights& layer) {
  Workspace& ws = ctx.ws;
  const int64_t width = ctx.config.intermediate_size;
  const NormedRows normed(ctx, layer.ffn_norm, TapPoint::ffn_norm);
  const bool visible = ctx.taps_at(TapPoint::mlp_gated) || ctx.taps_at(TapPoint::mlp_output);
  if (layer.w13->gates_for(*layer.w2) && !visible) {
    return layer.w13->forward_gated(normed, ctx.tokens, *layer.w2, ws.hidden.data(), true, ws.linear);
  }
  if (layer.w13->gates()) {
    ws.projected.ensure(static_cast<size_t>(ctx.tokens * width));
    layer.w13->forward_gated(normed, ctx.tokens, ws.projected.data(), ws.linear);
    ctx.tap(TapPoint::mlp_gated, ws.projected, {{ctx.tokens, width}});
    add_output(ctx, TapPoint::mlp_output, *layer.w2, ws.projected.data());
    return;
  }
  float* both = ws.projected.ensure(static_cast<size_t>(ctx.tokens * 2 * width));
  layer.w13->forward(normed, ctx.tokens, both, false, ws.linear);
  const auto gated = [&](int64_t t, float* out) { ctx.kernels.silu_mul(both + t * 2 * width, 1, width, out, width); };
  if (!ctx.taps_at(TapPoint::mlp_gated)) return add_output(ctx, TapPoint::mlp_output, *layer.w2, gated);
  Buffer<float> rows(static_cast<size_t>(ctx.tokens * width));
  parallel_for(ctx.tokens, [&](int64_t t) { gated(t, rows.data() + t * width); });
  ctx.tap(TapPoint::mlp_gated, rows, {{ctx.tokens, width}});
  add_output(ctx, TapPoint::mlp_output, *layer.w2, rows.data());
}

}  // namespace lfm
