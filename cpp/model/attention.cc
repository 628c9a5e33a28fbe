#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/parallel.h"
#include "model/layers.h"

namespace lfm {
namespace {

constexpr int64_t kTileRows = 32;     // query rows (tokens x heads of one KV head) that share each page load
constexpr int64_t kSplitPages = 8;    // pages whose softmax state is computed on its own: 512 tokens
constexpr int64_t kSplitQueries = 8;  // segments of at most this many tokens run their splits in parallel

// A tile of queries: `count` tokens of one segment from `token` on, and the query heads of `kv_head`.
struct Tile {
  const Segment* segment;
  int64_t kv_head, token, count;
  int64_t split_begin, split_end;  // the splits that this task computes
  int64_t partial;                 // index of the result among the partial buffers, or -1: write the output
};

struct Shape {
  Shape(const ModelConfig& config, const StateLayout& layout, int64_t attention_layer)
      : heads(config.num_attention_heads),
        kv_heads(config.num_key_value_heads),
        group(config.queries_per_kv()),
        head_dim(config.head_dim),
        padded(padded_head_dim(config.head_dim)),
        width(config.query_width() + 2 * config.kv_width()),
        tile_tokens(std::max<int64_t>(1, kTileRows / group)),
        rows(tile_tokens * group),
        layer(attention_layer),
        layout(layout) {}
  int64_t partial_floats() const { return rows * (padded + 2); }
  // Two softmax states, the gathered queries and the scores of one task.
  int64_t task_floats() const { return 2 * partial_floats() + rows * head_dim + rows * (kPage + 1); }

  int64_t heads, kv_heads, group, head_dim, padded;
  int64_t width;  // of a row of the fused projection [q | k | v]
  int64_t tile_tokens;
  int64_t rows;  // of a full tile
  int64_t layer;
  const StateLayout& layout;
};

AttentionPartial partial_at(float* base, const Shape& s) { return {base, base + s.rows, base + 2 * s.rows}; }

int64_t splits_for(int64_t keys) { return (keys + kSplitPages * kPage - 1) / (kSplitPages * kPage); }

// Writes acc / sum of a tile to out[tokens, heads * head_dim].
void write_output(const Shape& s, const Tile& tile, const AttentionPartial& p, float* out) {
  for (int64_t r = 0; r < tile.count * s.group; ++r) {
    const int64_t token = tile.segment->first + tile.token + r / s.group, head = tile.kv_head * s.group + r % s.group;
    float* to = out + (token * s.heads + head) * s.head_dim;
    for (int64_t d = 0; d < s.head_dim; ++d) to[d] = p.acc[r * s.padded + d] / p.sum[r];
  }
}

// Computes the tile's splits one after the other. The order of all sums depends on positions alone, so that a token's
// output has the same bits in a long prefill, in a chunk and in decoding.
void run_tile(const LayerContext& ctx, const Shape& s, const Tile& tile, float* memory, int64_t* visible,
              std::vector<const std::byte*>::const_iterator pages, float* partials) {
  const auto attention = s.layout.kv_dtype == DType::f32 ? ctx.kernels.attention_f32 : ctx.kernels.attention_bf16;
  const AttentionPartial local = partial_at(memory, s);
  const AttentionPartial next = partial_at(memory + s.partial_floats(), s);
  const AttentionPartial total = tile.partial < 0 ? local : partial_at(partials + tile.partial * s.partial_floats(), s);
  float* q = memory + 2 * s.partial_floats();
  float* scores = q + s.rows * s.head_dim;
  const int64_t rows = tile.count * s.group, past = tile.segment->state->length();
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t token = tile.token + r / s.group, head = tile.kv_head * s.group + r % s.group;
    const float* from = ctx.ws.projected.data() + (tile.segment->first + token) * s.width + head * s.head_dim;
    std::memcpy(q + r * s.head_dim, from, static_cast<size_t>(s.head_dim) * sizeof(float));
    visible[r] = past + token + 1;
  }
  AttentionTile args = {q,
                        visible,
                        rows,
                        s.head_dim,
                        &*pages,
                        s.layout.k_offset(s.layer, tile.kv_head),
                        s.layout.v_offset(s.layer, tile.kv_head),
                        0,
                        0};
  for (int64_t split = tile.split_begin; split < tile.split_end; ++split) {
    args.page_begin = split * kSplitPages;
    args.page_end = std::min((split + 1) * kSplitPages, tile.segment->state->num_pages());
    const bool first = split == tile.split_begin;
    attention(args, first ? total : next, scores);
    if (!first) ctx.kernels.attention_merge(rows, s.head_dim, total, next);
  }
  if (tile.partial < 0) write_output(s, tile, total, ctx.ws.mixed.data());
}

// Norm, rotation and storing of K and V; queries stay in place, scaled.
void rotate_and_store(const LayerContext& ctx, const AttentionWeights& w, const Shape& s) {
  const auto store = s.layout.kv_dtype == DType::f32 ? ctx.kernels.store_kv_f32 : ctx.kernels.store_kv_bf16;
  const float* q_norm = w.q_layernorm.empty() ? nullptr : w.q_layernorm.data();
  const float* k_norm = w.k_layernorm.empty() ? nullptr : w.k_layernorm.data();
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim)), eps = ctx.config.norm_eps;
  for (const Segment& segment : ctx.segments) {
    SequenceState& state = *segment.state;
    parallel_for(segment.count, [&](int64_t t) {
      float* row = ctx.ws.projected.data() + (segment.first + t) * s.width;
      const float* cos = ctx.ws.rope.data() + (segment.first + t) * s.head_dim;
      const float* sin = cos + s.head_dim / 2;
      for (int64_t h = 0; h < s.heads; ++h) {
        ctx.kernels.head_norm_rope(row + h * s.head_dim, q_norm, eps, cos, sin, scale, s.head_dim);
      }
      const int64_t position = state.length() + t;
      std::byte* page = state.page(position / kPage);
      for (int64_t h = 0; h < s.kv_heads; ++h) {
        float* k = row + (s.heads + h) * s.head_dim;
        const float* v = row + (s.heads + s.kv_heads + h) * s.head_dim;
        ctx.kernels.head_norm_rope(k, k_norm, eps, cos, sin, 1.0f, s.head_dim);
        store(k, v, s.head_dim, position % kPage, page + s.layout.k_offset(s.layer, h),
              page + s.layout.v_offset(s.layer, h));
      }
    });
  }
}

}  // namespace

void attention_block(const LayerContext& ctx, const LayerWeights& layer, int64_t attention_layer) {
  const AttentionWeights& w = *layer.attention;
  Workspace& ws = ctx.ws;
  const Shape s(ctx.config, ctx.segments[0].state->layout(), attention_layer);
  norm_forward(ctx, layer.operator_norm, *w.qkv_proj, ws.projected.data());
  rotate_and_store(ctx, w, s);

  std::vector<Tile> tiles, merges;  // merges: tiles whose splits were computed by several tasks
  std::vector<const std::byte*> pages;
  std::vector<size_t> first_page;  // per segment
  int64_t partials = 0;
  for (const Segment& segment : ctx.segments) {
    first_page.push_back(pages.size());
    for (int64_t i = 0; i < segment.state->num_pages(); ++i) pages.push_back(segment.state->page(i));
    for (int64_t token = 0; token < segment.count; token += s.tile_tokens) {
      const int64_t count = std::min(s.tile_tokens, segment.count - token);
      const int64_t splits = splits_for(segment.state->length() + token + count);
      for (int64_t head = 0; head < s.kv_heads; ++head) {
        if (segment.count > kSplitQueries || splits == 1) {
          tiles.push_back({&segment, head, token, count, 0, splits, -1});
          continue;
        }
        merges.push_back({&segment, head, token, count, 0, splits, partials});
        for (int64_t i = 0; i < splits; ++i) tiles.push_back({&segment, head, token, count, i, i + 1, partials++});
      }
    }
  }
  const int64_t threads = max_threads();
  float* memory = ws.attention.ensure(static_cast<size_t>(threads * s.task_floats() + partials * s.partial_floats()));
  float* partial_memory = memory + threads * s.task_floats();
  int64_t* visible = ws.visible.ensure(static_cast<size_t>(threads * s.rows));
  parallel_for_dynamic(static_cast<int64_t>(tiles.size()), [&](int64_t i) {
    const Tile& tile = tiles[i];
    const auto segment = static_cast<size_t>(tile.segment - ctx.segments.data());
    run_tile(ctx, s, tile, memory + thread_id() * s.task_floats(), visible + thread_id() * s.rows,
             pages.begin() + static_cast<int64_t>(first_page[segment]), partial_memory);
  });
  parallel_for(static_cast<int64_t>(merges.size()), [&](int64_t i) {
    const Tile& tile = merges[i];
    const AttentionPartial total = partial_at(partial_memory + tile.partial * s.partial_floats(), s);
    for (int64_t split = 1; split < tile.split_end; ++split) {
      ctx.kernels.attention_merge(tile.count * s.group, s.head_dim, total,
                                  partial_at(partial_memory + (tile.partial + split) * s.partial_floats(), s));
    }
    write_output(s, tile, total, ws.mixed.data());
  });
  w.out_proj->forward(ws.mixed.data(), ctx.tokens, ws.hidden.data(), true, ws.linear);
}

}  // namespace lfm
