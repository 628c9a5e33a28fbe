#include <algorithm>

#include "base/parallel.h"
#include "model/layers.h"

namespace lfm {
namespace {

// B * x takes the place of B and 1 that of x, so that the convolution runs over what the taps made of it.
void tap_conv_input(const LayerContext& ctx) {
  const int64_t hidden = ctx.config.hidden_size;
  float* bcx = ctx.ws.projected.data();
  parallel_for(ctx.tokens, [&](int64_t t) {
    float *b = bcx + t * 3 * hidden, *x = b + 2 * hidden;
    for (int64_t i = 0; i < hidden; ++i) b[i] *= x[i];
    std::fill_n(x, hidden, 1.0f);
  });
  ctx.tap(TapPoint::conv_input, ctx.ws.projected, {{ctx.tokens, hidden}, {3 * hidden, 1}});
}

}  // namespace

void short_conv_block(const LayerContext& ctx, const LayerWeights& layer, int64_t conv_layer) {
  const ShortConvWeights& w = *layer.conv;
  Workspace& ws = ctx.ws;
  const int64_t hidden = ctx.config.hidden_size, past = ctx.config.conv_L_cache - 1;
  const NormedRows normed(ctx, layer.operator_norm, TapPoint::operator_norm);
  w.in_proj->forward(normed, ctx.tokens, ws.projected.data(), false, ws.linear);
  ctx.tap(TapPoint::conv_in_proj, ws.projected, {{ctx.tokens, 3, hidden}});
  if (ctx.taps_at(TapPoint::conv_input)) tap_conv_input(ctx);
  // Tokens of a sequence follow each other, channels are independent.
  parallel_ranges(hidden, 16, [&](int64_t begin, int64_t end) {
    for (const Segment& s : ctx.segments) {
      const float* before = s.state->conv(conv_layer);
      float* after = s.conv_after + conv_layer * past * hidden;
      const auto convolve = [&](int64_t token, int64_t count) {
        if (count == 0) return;
        ctx.kernels.short_conv(ws.projected.data() + token * 3 * hidden, count, hidden, begin, end, w.conv.data(),
                               w.conv_bias.empty() ? nullptr : w.conv_bias.data(), ctx.config.conv_L_cache, before,
                               after, ws.mixed.data() + token * hidden);
        before = after;
      };
      convolve(s.first, s.count - s.kept);
      for (int64_t i = 0; i < s.kept; ++i) {
        convolve(s.first + s.count - s.kept + i, 1);
        float* kept = s.history + (i * ctx.config.num_layers_of(LayerType::conv) + conv_layer) * past * hidden;
        for (int64_t p = 0; p < past; ++p) {
          std::copy(after + p * hidden + begin, after + p * hidden + end, kept + p * hidden + begin);
        }
      }
    }
  });
  ctx.tap(TapPoint::conv_gated, ws.mixed, {{ctx.tokens, hidden}});
  add_output(ctx, TapPoint::conv_output, *w.out_proj, ws.mixed.data());
}

}  // namespace lfm
