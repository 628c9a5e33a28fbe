#include "base/parallel.h"
#include "model/layers.h"

namespace lfm {

void short_conv_block(const LayerContext& ctx, const LayerWeights& layer, int64_t conv_layer) {
  const ShortConvWeights& w = *layer.conv;
  Workspace& ws = ctx.ws;
  const int64_t hidden = ctx.config.hidden_size;
  w.in_proj->forward(NormedRows{ctx, layer.operator_norm}, ctx.tokens, ws.projected.data(), false, ws.linear);
  // Tokens of a sequence follow each other, channels are independent.
  parallel_ranges(hidden, 16, [&](int64_t begin, int64_t end) {
    for (const Segment& s : ctx.segments) {
      ctx.kernels.short_conv(ws.projected.data() + s.first * 3 * hidden, s.count, hidden, begin, end, w.conv.data(),
                             w.conv_bias.empty() ? nullptr : w.conv_bias.data(), ctx.config.conv_L_cache,
                             s.state->conv(conv_layer), ws.mixed.data() + s.first * hidden);
    }
  });
  w.out_proj->forward(ws.mixed.data(), ctx.tokens, ws.hidden.data(), true, ws.linear);
}

}  // namespace lfm
