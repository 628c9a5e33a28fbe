#include <algorithm>

#include "base/parallel.h"
#include "model/layers.h"

namespace lfm {

void mlp_block(const LayerContext& ctx, const LayerWeights& layer) {
  Workspace& ws = ctx.ws;
  const int64_t width = ctx.config.intermediate_size;
  rms_norm_rows(ctx, ws.hidden.data(), layer.ffn_norm, ws.normed.data());
  layer.w13->forward(ws.normed.data(), ctx.tokens, ws.projected.data(), false, ws.linear);
  // Cut within rows too, so that a single token uses all threads.
  constexpr int64_t kPiece = 1024;
  const int64_t pieces = (width + kPiece - 1) / kPiece;
  parallel_for(ctx.tokens * pieces, [&](int64_t i) {
    const int64_t row = i / pieces, begin = i % pieces * kPiece;
    const float* gate = ws.projected.data() + row * 2 * width + begin;
    ctx.kernels.silu_mul(gate, gate + width, std::min(kPiece, width - begin), ws.mixed.data() + row * width + begin);
  });
  layer.w2->forward(ws.mixed.data(), ctx.tokens, ws.hidden.data(), true, ws.linear);
}

}  // namespace lfm
