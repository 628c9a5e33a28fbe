#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "model/layers.h"

namespace lfm {
namespace {

constexpr int64_t kTileRows = 48;     // query rows (tokens x heads of one KV head) that share each page load
constexpr int64_t kSplitQueries = 8;  // segments of at most this many tokens have their blocks computed in parallel

struct Shape {
  Shape(const ModelConfig& config, const StateLayout& state_layout, int64_t attention_layer)
      : heads(config.num_attention_heads),
        kv_heads(config.num_key_value_heads),
        group(config.queries_per_kv()),
        head_dim(config.head_dim),
        padded(padded_head_dim(config.head_dim)),
        width(config.query_width() + 2 * config.kv_width()),
        tile_tokens(std::max<int64_t>(1, kTileRows / group)),
        rows(tile_tokens * group),
        layer(attention_layer),
        layout(state_layout),
        partial_bytes(rounded(rows * (padded + 2) * 4)),
        task_bytes(2 * partial_bytes + rounded(attention_scratch_bytes(rows, head_dim))) {}
  static int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

  AttentionPartial partial_at(std::byte* base, int64_t index) const {
    auto* max = reinterpret_cast<float*>(base + index * partial_bytes);
    return {max, max + rows, max + 2 * rows};
  }

  int64_t heads, kv_heads, group, head_dim, padded;
  int64_t width;  // of a row of the fused projection [q | k | v]
  int64_t tile_tokens;
  int64_t rows;  // of a full tile
  int64_t layer;
  const StateLayout& layout;
  int64_t partial_bytes;
  int64_t task_bytes;  // two softmax states and the kernel's scratch
};

int64_t blocks_for(int64_t keys) { return (keys + kAttentionBlock - 1) / kAttentionBlock; }

// Few tokens: every block is a task, in the order of memory.
void plan_split(const Shape& s, const Segment& segment, int64_t index, AttentionPlan& plan) {
  for (int64_t token = 0; token < segment.count; token += s.tile_tokens) {
    const int64_t count = std::min(s.tile_tokens, segment.count - token);
    const int64_t blocks = blocks_for(segment.position + token + count);
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t head = 0; head < s.kv_heads; ++head) {
        plan.tasks.push_back({index, head, token, count, block, block + 1, plan.partials + head * blocks + block});
      }
    }
    for (int64_t head = 0; head < s.kv_heads; ++head) {
      plan.merges.push_back({index, head, token, count, 0, blocks, plan.partials + head * blocks});
    }
    plan.partials += s.kv_heads * blocks;
  }
}

// Many tokens: every tile is a task, head by head, so that neighbours share K and V.
void plan_tiles(const Shape& s, const Segment& segment, int64_t index, AttentionPlan& plan) {
  for (int64_t head = 0; head < s.kv_heads; ++head) {
    for (int64_t token = 0; token < segment.count; token += s.tile_tokens) {
      const int64_t count = std::min(s.tile_tokens, segment.count - token);
      const int64_t blocks = blocks_for(segment.position + token + count);
      plan.tasks.push_back({index, head, token, count, 0, blocks, -1});
    }
  }
}

// The blocks of positions are the same however tokens are cut into segments and tiles, so that a token's output has the
// same bits in a long prefill, in a chunk and in decoding.
void make_plan(const LayerContext& ctx, const Shape& s, AttentionPlan& plan) {
  plan.tasks.clear();
  plan.merges.clear();
  plan.partials = 0;
  for (size_t i = 0; i < ctx.segments.size(); ++i) {
    const Segment& segment = ctx.segments[i];
    const bool split = segment.count <= kSplitQueries && segment.position + segment.count > kAttentionBlock;
    (split ? plan_split : plan_tiles)(s, segment, static_cast<int64_t>(i), plan);
  }
}

// Writes acc / sum of a task's rows to out[tokens, heads * head_dim].
void write_output(const Shape& s, const Segment& segment, const AttentionTask& task, const AttentionPartial& p,
                  float* out) {
  for (int64_t r = 0; r < task.count * s.group; ++r) {
    const int64_t token = segment.first + task.token + r / s.group, head = task.kv_head * s.group + r % s.group;
    float* to = out + (token * s.heads + head) * s.head_dim;
    for (int64_t d = 0; d < s.head_dim; ++d) to[d] = p.acc[r * s.padded + d] / p.sum[r];
  }
}

// K of the first page that a task reads in `block`.
const std::byte* first_page(const LayerContext& ctx, const Shape& s, const AttentionTask& task, int64_t block) {
  const SequenceState& state = *ctx.segments[static_cast<size_t>(task.segment)].state;
  return state.pages()[block * (kAttentionBlock / kPage)] + s.layout.k_offset(s.layer, task.kv_head);
}

bool is_stored(const Segment& segment, int64_t t) { return segment.position + t < segment.state->length(); }

// K and V of one token and head, unless they are in the KV page already.
void store(const LayerContext& ctx, const Shape& s, const Segment& segment, int64_t t, int64_t head) {
  if (is_stored(segment, t)) return;
  const float* k = ctx.ws.projected.data() + (segment.first + t) * s.width + (s.heads + head) * s.head_dim;
  const int64_t position = segment.position + t;
  std::byte* page = segment.state->page(position / kPage);
  ctx.kernels.store_kv[static_cast<int>(s.layout.kv_type)](k, k + s.kv_heads * s.head_dim, s.head_dim, position % kPage,
                                                           page + s.layout.k_offset(s.layer, head),
                                                           page + s.layout.v_offset(s.layer, head));
}

// Whether tasks store the K and V that they read, which are in their cache then: where one task alone reads a block of
// a head, and no tap reads the pages before.
bool tasks_store(const LayerContext& ctx, const Shape& s, const Segment& segment) {
  return segment.count <= s.tile_tokens && !ctx.taps_at(TapPoint::attention_probs);
}

void run_task(const LayerContext& ctx, const Shape& s, const AttentionTask& task, const std::byte* next_page,
              std::byte* memory, std::byte* partials) {
  const Segment& segment = ctx.segments[static_cast<size_t>(task.segment)];
  const auto attention = ctx.kernels.attention[static_cast<int>(s.layout.kv_type)];
  const AttentionPartial total = task.partial < 0 ? s.partial_at(memory, 0) : s.partial_at(partials, task.partial);
  const AttentionPartial next = s.partial_at(memory, 1);
  std::byte* scratch = memory + 2 * s.partial_bytes;
  if (tasks_store(ctx, s, segment)) {
    const auto token_of = [&](int64_t block) {
      return std::clamp<int64_t>(block * kAttentionBlock - segment.position, 0, segment.count);
    };
    for (int64_t t = token_of(task.begin); t < token_of(task.end); ++t) store(ctx, s, segment, t, task.kv_head);
  }
  const float* q = ctx.ws.projected.data() + (segment.first + task.token) * s.width;
  AttentionTile tile = {q + task.kv_head * s.group * s.head_dim,
                        s.width,
                        s.group,
                        task.count * s.group,
                        s.head_dim,
                        segment.position + task.token + 1,
                        segment.state->pages(),
                        s.layout.k_offset(s.layer, task.kv_head),
                        s.layout.v_offset(s.layer, task.kv_head),
                        task.begin,
                        nullptr};
  for (; tile.block < task.end; ++tile.block) {
    const bool first = tile.block == task.begin;
    tile.next = tile.block + 1 < task.end ? first_page(ctx, s, task, tile.block + 1) : next_page;
    attention(tile, first ? total : next, scratch);
    if (!first) ctx.kernels.attention_merge(tile.rows, s.head_dim, total, next);
  }
  if (task.partial < 0) write_output(s, segment, task, total, ctx.ws.mixed.data());
}

// Norm and rotation of one token's queries, which are scaled, and of its keys unless there is no need.
void rotate(const LayerContext& ctx, const AttentionWeights& w, const Shape& s, const Segment& segment, int64_t t,
            bool keys) {
  const float* q_norm = w.q_layernorm.empty() ? nullptr : w.q_layernorm.data();
  const float* k_norm = w.k_layernorm.empty() ? nullptr : w.k_layernorm.data();
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim)), eps = ctx.config.norm_eps;
  float* row = ctx.ws.projected.data() + (segment.first + t) * s.width;
  const float* cos = ctx.ws.rope.data() + (segment.first + t) * s.head_dim;
  const float* sin = cos + s.head_dim / 2;
  for (int64_t h = 0; h < s.heads; ++h) {
    ctx.kernels.head_norm_rope(row + h * s.head_dim, q_norm, eps, cos, sin, scale, s.head_dim);
  }
  for (int64_t h = s.heads; keys && h < s.heads + s.kv_heads; ++h) {
    ctx.kernels.head_norm_rope(row + h * s.head_dim, k_norm, eps, cos, sin, 1.0f, s.head_dim);
  }
}

// q, k and v of all tokens as the taps see them: rotated, and not yet in the KV pages.
void tap_qkv(const LayerContext& ctx, const Shape& s) {
  const auto view = [&](int64_t first, int64_t heads) {
    return TapView{{ctx.tokens, heads, s.head_dim}, {s.width, s.head_dim, 1}, first * s.head_dim};
  };
  ctx.tap(TapPoint::attention_q, ctx.ws.projected, view(0, s.heads));
  ctx.tap(TapPoint::attention_k, ctx.ws.projected, view(s.heads, s.kv_heads));
  ctx.tap(TapPoint::attention_v, ctx.ws.projected, view(s.heads + s.kv_heads, s.kv_heads));
}

// Rotates the queries and keys in ws.projected and stores K and V, unless the tasks do that.
void rotate_and_store(const LayerContext& ctx, const AttentionWeights& w, const Shape& s) {
  const auto for_tokens = [&](const auto& body) {
    parallel_for(ctx.tokens, [&](int64_t t) {
      const auto after = std::upper_bound(ctx.segments.begin(), ctx.segments.end(), t,
                                          [](int64_t token, const Segment& segment) { return token < segment.first; });
      body(*(after - 1), t - (after - 1)->first);
    });
  };
  const auto store_early = [&](const Segment& segment, int64_t t) {
    if (tasks_store(ctx, s, segment)) return;
    for (int64_t h = 0; h < s.kv_heads; ++h) store(ctx, s, segment, t, h);
  };
  const bool tapped =
      ctx.taps_at(TapPoint::attention_q) || ctx.taps_at(TapPoint::attention_k) || ctx.taps_at(TapPoint::attention_v);
  for_tokens([&](const Segment& segment, int64_t t) {
    rotate(ctx, w, s, segment, t, tapped || !is_stored(segment, t));
    if (!tapped) store_early(segment, t);
  });
  if (!tapped) return;
  tap_qkv(ctx, s);
  for_tokens(store_early);
}

}  // namespace

void attention_block(const LayerContext& ctx, const LayerWeights& layer, int64_t attention_layer) {
  const AttentionWeights& w = *layer.attention;
  Workspace& ws = ctx.ws;
  const Shape s(ctx.config, ctx.segments[0].state->layout(), attention_layer);
  const NormedRows normed(ctx, layer.operator_norm, TapPoint::operator_norm);
  w.qkv_proj->forward(normed, ctx.tokens, ws.projected.data(), false, ws.linear);
  ctx.tap(TapPoint::attention_qkv_proj, ws.projected, {{ctx.tokens, s.heads + 2 * s.kv_heads, s.head_dim}});
  rotate_and_store(ctx, w, s);
  if (ctx.taps_at(TapPoint::attention_probs)) tap_attention_probs(ctx, attention_layer);

  const AttentionPlan& plan = ws.attention_plan;
  if (attention_layer == 0) make_plan(ctx, s, ws.attention_plan);
  const int64_t threads = max_threads();
  std::byte* memory =
      ws.attention.ensure(static_cast<size_t>(threads * s.task_bytes + plan.partials * s.partial_bytes));
  std::byte* partials = memory + threads * s.task_bytes;

  // Those of single tokens are handed out a few at a time, so that the next one is known and can be prefetched.
  const auto tasks = static_cast<int64_t>(plan.tasks.size());
  const bool decoding = ctx.tokens == static_cast<int64_t>(ctx.segments.size());
  const int64_t grain = std::clamp<int64_t>(decoding ? tasks / threads : plan.partials / (8 * threads), 1, 4);
  parallel_for_dynamic(tasks, grain, [&](int64_t i) {
    const AttentionTask* task = &plan.tasks[static_cast<size_t>(i)];
    run_task(ctx, s, *task, decoding && i + 1 < tasks ? first_page(ctx, s, task[1], task[1].begin) : nullptr,
             memory + thread_id() * s.task_bytes, partials);
  });
  parallel_for(static_cast<int64_t>(plan.merges.size()), [&](int64_t i) {
    const AttentionTask& task = plan.merges[static_cast<size_t>(i)];
    const AttentionPartial total = s.partial_at(partials, task.partial);
    for (int64_t block = 1; block < task.end; ++block) {
      ctx.kernels.attention_merge(task.count * s.group, s.head_dim, total,
                                  s.partial_at(partials, task.partial + block));
    }
    write_output(s, ctx.segments[static_cast<size_t>(task.segment)], task, total, ws.mixed.data());
  });
  ctx.tap(TapPoint::attention_heads, ws.mixed, {{ctx.tokens, s.heads, s.head_dim}});
  add_output(ctx, TapPoint::attention_output, *w.out_proj, ws.mixed.data());
}

}  // namespace lfm
