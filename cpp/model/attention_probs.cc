#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "model/kv_values.h"
#include "model/layers.h"

namespace lfm {
namespace {

// Softmax of one query over the keys [0, visible); the rest of probs[keys] stays 0.
void softmax_row(const float* q, const float* k, int64_t head_dim, int64_t visible, float* probs) {
  float most = -INFINITY;
  for (int64_t j = 0; j < visible; ++j) {
    float sum = 0.0f;
    for (int64_t d = 0; d < head_dim; ++d) sum += q[d] * k[j * head_dim + d];
    probs[j] = sum;
    most = std::max(most, sum);
  }
  float total = 0.0f;
  for (int64_t j = 0; j < visible; ++j) total += probs[j] = std::exp(probs[j] - most);
  for (int64_t j = 0; j < visible; ++j) probs[j] /= total;
}

}  // namespace

void tap_attention_probs(const LayerContext& ctx, int64_t attention_layer) {
  const ModelConfig& c = ctx.config;
  const int64_t heads = c.num_attention_heads, kv_heads = c.num_key_value_heads, head_dim = c.head_dim;
  const int64_t width = c.query_width() + 2 * c.kv_width();
  for (size_t i = 0; i < ctx.segments.size(); ++i) {
    const Segment& s = ctx.segments[i];
    const int64_t count = s.count, keys = s.position + s.count;
    Buffer<float> k(static_cast<size_t>(kv_heads * keys * head_dim));
    Buffer<float> probs(static_cast<size_t>(heads * count * keys));
    parallel_for(kv_heads * keys, [&](int64_t row) {
      read_key(*s.state, attention_layer, row / keys, row % keys, k.data() + row * head_dim);
    });
    parallel_for(heads * count, [&](int64_t row) {
      const int64_t head = row / count, t = row % count;
      softmax_row(ctx.ws.projected.data() + (s.first + t) * width + head * head_dim,
                  k.data() + head / c.queries_per_kv() * keys * head_dim, head_dim, s.position + t + 1,
                  probs.data() + row * keys);
    });
    ctx.visit(TapPoint::attention_probs, probs, {{heads, count, keys}}, {{static_cast<int64_t>(i), count, s.position}},
              false);
  }
}

}  // namespace lfm
