#include "model/layers.h"

#include <bit>

#include "base/parallel.h"

namespace lfm {

void LayerContext::visit(TapPoint point, Buffer<float>& buffer, const TapView& view, const std::vector<TapRows>& rows,
                         bool writable) const {
  for (const Taps* t : taps) {
    if (t != nullptr && t->wants({point, layer})) t->visit({point, layer}, buffer, view, rows, writable);
  }
}

std::vector<TapRows> LayerContext::token_rows() const {
  std::vector<TapRows> rows;
  for (const Segment& s : segments) rows.push_back({static_cast<int64_t>(rows.size()), s.count, s.position});
  return rows;
}

NormedRows::NormedRows(const LayerContext& ctx, const std::vector<float>& weight, TapPoint point)
    : ctx_(ctx), weight_(weight) {
  if (!ctx.taps_at(point)) return;
  const int64_t hidden = ctx.config.hidden_size;
  tapped_.ensure(static_cast<size_t>(ctx.tokens * hidden));
  parallel_for(ctx.tokens, [&](int64_t t) { norm(t, tapped_.data() + t * hidden); });
  ctx.tap(point, tapped_, {{ctx.tokens, hidden}});
}

namespace {

template <class Rows>
void add_tapped_output(const LayerContext& ctx, TapPoint point, const Linear& linear, const Rows& x) {
  Workspace& ws = ctx.ws;
  const int64_t hidden = ctx.config.hidden_size;
  Buffer<float> output(static_cast<size_t>(ctx.tokens * hidden));
  linear.forward(x, ctx.tokens, output.data(), false, ws.linear);
  const Buffer<float> unchanged = output, stream = ws.hidden;
  ctx.tap(point, output, {{ctx.tokens, hidden}});
  linear.forward(x, ctx.tokens, ws.hidden.data(), true, ws.linear);
  parallel_for(ctx.tokens, [&](int64_t t) {
    for (int64_t i = t * hidden; i < (t + 1) * hidden; ++i) {
      if (std::bit_cast<uint32_t>(output[i]) != std::bit_cast<uint32_t>(unchanged[i])) {
        ws.hidden[i] = stream[i] + output[i];
      }
    }
  });
}

template <class Rows>
void add(const LayerContext& ctx, TapPoint point, const Linear& linear, const Rows& x) {
  if (ctx.taps_at(point)) return add_tapped_output(ctx, point, linear, x);
  linear.forward(x, ctx.tokens, ctx.ws.hidden.data(), true, ctx.ws.linear);
}

}  // namespace

void add_output(const LayerContext& ctx, TapPoint point, const Linear& linear, const RowSource& x) {
  add(ctx, point, linear, x);
}
void add_output(const LayerContext& ctx, TapPoint point, const Linear& linear, const float* x) {
  add(ctx, point, linear, x);
}

}  // namespace lfm
