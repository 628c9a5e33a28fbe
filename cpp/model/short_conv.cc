#include <algorithm>

#include "base/parallel.h"
#include "model/layers.h"

namespace lfm {

void short_conv_block(const LayerContext& ctx, const LayerWeights& layer, int64_t conv_layer) {
  const ShortConvWeights& w = *layer.conv;
  Workspace& ws = ctx.ws;
  const int64_t hidden = ctx.config.hidden_size, past = ctx.config.conv_L_cache - 1;
  w.in_proj->forward(NormedRows{ctx, layer.operator_norm}, ctx.tokens, ws.projected.data(), false, ws.linear);
  // Tokens of a sequence follow each other, channels are independent.
  parallel_ranges(hidden, 16, [&](int64_t begin, int64_t end) {
    for (const Segment& s : ctx.segments) {
      float* state = s.state->conv(conv_layer);
      const auto convolve = [&](int64_t token, int64_t count) {
        if (count == 0) return;
        ctx.kernels.short_conv(ws.projected.data() + token * 3 * hidden, count, hidden, begin, end, w.conv.data(),
                               w.conv_bias.empty() ? nullptr : w.conv_bias.data(), ctx.config.conv_L_cache, state,
                               ws.mixed.data() + token * hidden);
      };
      convolve(s.first, s.count - s.kept);
      for (int64_t i = 0; i < s.kept; ++i) {
        convolve(s.first + s.count - s.kept + i, 1);
        float* after = s.history + (i * ctx.config.num_layers_of(LayerType::conv) + conv_layer) * past * hidden;
        for (int64_t p = 0; p < past; ++p) {
          std::copy(state + p * hidden + begin, state + p * hidden + end, after + p * hidden + begin);
        }
      }
    }
  });
  w.out_proj->forward(ws.mixed.data(), ctx.tokens, ws.hidden.data(), true, ws.linear);
}

}  // namespace lfm
