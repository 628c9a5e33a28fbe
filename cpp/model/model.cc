#include "model/model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/parallel.h"

namespace lfm {
namespace {

// cos and sin of position * inv_freq, each product rounded to fp32 as in transformers' Lfm2RotaryEmbedding.
void fill_rope(const LayerContext& ctx) {
  const std::vector<float>& inv_freq = ctx.config.rope_inv_freq;
  const auto half = static_cast<int64_t>(inv_freq.size());
  for (const Segment& s : ctx.segments) {
    parallel_for(s.count, [&](int64_t t) {
      float* cos = ctx.ws.rope.data() + (s.first + t) * 2 * half;
      const auto position = static_cast<float>(s.position + t);
      for (int64_t i = 0; i < half; ++i) {
        const double angle = position * inv_freq[i];
        cos[i] = static_cast<float>(std::cos(angle));
        cos[half + i] = static_cast<float>(std::sin(angle));
      }
    });
  }
}

}  // namespace

Model::Model(ModelConfig config, const TensorSource& source, ComputeType type, int num_threads,
             std::optional<KvType> kv)
    : config_(std::move(config)),
      type_(type),
      isa_(active_isa()),
      kernels_(kernels_for(isa_)),
      num_threads_(num_threads > 0 ? num_threads : usable_cores()) {
  config_.validate();
  const ThreadScope threads(num_threads_);
  layout_ = std::make_shared<StateLayout>(config_, kv.value_or(type == ComputeType::f32 ? KvType::f32 : KvType::bf16));
  weights_ = load_weights(config_, source, type, isa_);
  for (const auto& [name, linear] : named_linears(config_, weights_)) linears_.push_back(linear);
}

size_t Model::state_nbytes(int64_t length) const {
  check(length >= 0, "length must not be negative, not ", length);
  const auto pages = static_cast<size_t>((length + kPage - 1) / kPage);
  return pages * layout_->page_bytes + new_state().nbytes();
}

void Model::set_taps(std::shared_ptr<const Taps> taps) {
  const std::lock_guard lock(taps_mutex_);
  taps_.swap(taps);
}

std::shared_ptr<const Taps> Model::taps() const {
  const std::lock_guard lock(taps_mutex_);
  return taps_;
}

int64_t num_logit_rows(std::span<const SequenceInput> inputs) {
  int64_t rows = 0;
  for (const SequenceInput& input : inputs) {
    if (input.logits_for == LogitsFor::last) rows += input.last_rows;
    if (input.logits_for == LogitsFor::all) rows += static_cast<int64_t>(input.tokens.size());
  }
  return rows;
}

void Model::check_tokens(std::span<const int32_t> tokens) const {
  check(!tokens.empty(), "input_ids is empty: at least one token is needed");
  for (const int32_t token : tokens) {
    check(token >= 0 && token < config_.vocab_size, "input_ids holds ", token, ", outside the vocabulary of ",
          config_.vocab_size);
  }
}

void Model::check_inputs(std::span<const SequenceInput> inputs) const {
  for (const SequenceInput& input : inputs) {
    check(&input.state->layout() == layout_.get(), "the state belongs to another model");
    check_tokens(input.tokens);
    check(input.last_rows >= 1 && input.last_rows <= static_cast<int64_t>(input.tokens.size()), "last_rows is ",
          input.last_rows, " for ", input.tokens.size(), " tokens");
    check(input.last_rows == 1 || input.allowed == nullptr, "a mask is for one row of logits, not for ",
          input.last_rows);
    const int64_t length = input.state->length() + static_cast<int64_t>(input.tokens.size());
    check(length <= config_.max_position_embeddings, "the sequence would have ", length,
          " tokens, more than the model's context of ", config_.max_position_embeddings);
  }
}

void Model::embed(const LayerContext& ctx, std::span<const SequenceInput> inputs) const {
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Segment& s = ctx.segments[i];
    parallel_for(s.count, [&](int64_t t) {
      const int64_t position = s.position + t, fresh = position - s.state->length();
      const int32_t token = fresh < 0 ? s.state->token(position) : inputs[i].tokens[fresh];
      weights_.embed_tokens->weight_row(token, ctx.ws.hidden.data() + (s.first + t) * config_.hidden_size);
    });
  }
}

void Model::run_layers(LayerContext ctx) const {
  Buffer<float>& hidden = ctx.ws.hidden;
  const TapView all = {{ctx.tokens, config_.hidden_size}};
  int64_t conv_layer = 0, attention_layer = 0;
  for (const LayerWeights& layer : weights_.layers) {
    ++ctx.layer;
    ctx.tap(TapPoint::input, hidden, all);
    if (layer.conv) {
      short_conv_block(ctx, layer, conv_layer++);
    } else {
      attention_block(ctx, layer, attention_layer++);
    }
    ctx.tap(TapPoint::middle, hidden, all);
    mlp_block(ctx, layer);
    ctx.tap(TapPoint::output, hidden, all);
  }
}

// The taps change a copy, which is then written to `logits`.
void Model::tap_logits(const LayerContext& ctx, std::span<const SequenceInput> inputs, float* logits) const {
  std::vector<TapRows> rows;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Segment& s = ctx.segments[i];
    const int64_t count = num_logit_rows(inputs.subspan(i, 1));
    if (count > 0) rows.push_back({static_cast<int64_t>(i), count, s.position + s.count - count});
  }
  const int64_t count = num_logit_rows(inputs), size = count * config_.vocab_size;
  Buffer<float> copy(static_cast<size_t>(size));
  std::copy_n(logits, size, copy.data());
  ctx.visit(TapPoint::logits, copy, {{count, config_.vocab_size}}, rows, true);
  std::copy_n(copy.data(), size, logits);
}

void Model::write_logits(const LayerContext& ctx, std::span<const SequenceInput> inputs, float* logits) const {
  const NormedRows normed_tokens(ctx, weights_.embedding_norm, TapPoint::norm);
  const int64_t vocab = config_.vocab_size;
  struct Row {
    int64_t token;
    float* logits;
  };
  std::vector<Row> rows;
  const auto normed = [&](int64_t m, float* out) { normed_tokens(rows[static_cast<size_t>(m)].token, out); };
  const auto flush = [&] {
    if (rows.empty()) return;
    weights_.head().forward(normed, static_cast<int64_t>(rows.size()), rows[0].logits, false, ctx.ws.linear);
    rows.clear();
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Segment& s = ctx.segments[i];
    const bool some = inputs[i].allowed != nullptr && inputs[i].logits_for == LogitsFor::last;
    if (some) flush();
    for (int64_t t = s.count - num_logit_rows(inputs.subspan(i, 1)); t < s.count; ++t, logits += vocab) {
      rows.push_back({s.first + t, logits});
    }
    if (!some) continue;
    float* row = rows[0].logits;
    weights_.head().forward_some(normed, inputs[i].allowed, row, ctx.ws.linear);
    rows.clear();
    parallel_for((vocab + 31) / 32, [&](int64_t w) {
      const uint32_t word = inputs[i].allowed[w];
      if (word == ~0u) return;
      for (int64_t n = 32 * w; n < std::min(vocab, 32 * w + 32); ++n) {
        if ((word >> (n % 32) & 1) == 0) row[n] = -std::numeric_limits<float>::infinity();
      }
    });
  }
  flush();
}

void Model::forward(std::span<const SequenceInput> inputs, float* logits, Workspace& ws) const {
  check_inputs(inputs);
  const ThreadScope threads(num_threads_);
  const auto conv_size = static_cast<size_t>(layout_->conv_layers * layout_->conv_past * layout_->hidden);
  std::vector<Segment> segments;
  int64_t tokens = 0;
  for (const SequenceInput& input : inputs) {
    const auto count = static_cast<int64_t>(input.tokens.size());
    const int64_t replay = input.state->replay();
    input.state->reserve(count);
    Segment& s =
        segments.emplace_back(Segment{input.state, tokens, replay + count, input.state->length() - replay, nullptr});
    if (input.history != nullptr) {
      s.kept = count;
      s.history = input.history->conv.ensure(static_cast<size_t>(count) * conv_size);
      input.history->begin = input.state->length();
      input.history->count = count;
    }
    tokens += replay + count;
  }
  if (tokens == 0) return;
  ws.ensure(config_, tokens);
  for (size_t i = 0; i < segments.size(); ++i) segments[i].conv_after = ws.conv_state(i, conv_size).data();
  const std::shared_ptr<const Taps> model_taps = taps();
  const LayerContext ctx = {config_, kernels_, segments, tokens, ws, {model_taps.get(), ws.taps}};

  // Memory may still run out in a later layer, and a tap may throw. States stay as they were then: the new conv states
  // are beside them, and KV beyond a state's length does not count.
  const auto compute = [&] {
    embed(ctx, inputs);
    fill_rope(ctx);
    run_layers(ctx);
    write_logits(ctx, inputs, logits);
    if (ctx.taps_at(TapPoint::logits) && num_logit_rows(inputs) > 0) tap_logits(ctx, inputs, logits);
  };
  // Taps may be Python, which may do anything.
  const bool tapped = model_taps != nullptr || ws.taps != nullptr;
  const bool alone = std::ranges::none_of(linears_, [&](const Linear* l) { return l->brings_threads(); });
  if (alone && !tapped) {
    Team::with(compute);
  } else {
    compute();
  }
  for (size_t i = 0; i < inputs.size(); ++i) inputs[i].state->advance(inputs[i].tokens, ws.conv_states[i]);
}

int64_t Model::prefill_chunk() const {
  const bool own_rows = type_ == ComputeType::bf16 && kernels_.gemm_tiles != nullptr && num_threads_ > 1;
  return own_rows ? kMostTiledRows : 256;
}

void Model::prefill(const SequenceInput& input, float* logits, Workspace& ws, int64_t chunk,
                    const std::function<void()>& after_chunk) const {
  check_inputs({&input, 1});
  check(chunk >= 1, "chunk must be >= 1, not ", chunk);
  const auto total = static_cast<int64_t>(input.tokens.size());
  for (int64_t begin = 0; begin < total; begin += chunk) {
    const int64_t count = std::min(chunk, total - begin);
    SequenceInput part = {input.state, input.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
                          input.logits_for};
    if (part.logits_for == LogitsFor::last && begin + count < total) part.logits_for = LogitsFor::none;
    forward({&part, 1}, logits, ws);
    logits += num_logit_rows({&part, 1}) * config_.vocab_size;
    if (after_chunk) after_chunk();
  }
}

std::map<std::string, std::vector<float>> Model::input_mean_squares(std::span<const std::vector<int32_t>> sequences,
                                                                    const std::function<void()>& after_chunk) const {
  check(type_ == ComputeType::f32, "inputs are measured in float32, not ", compute_type_name(type_));
  InputSquares squares;
  Workspace ws;
  ws.linear.squares = &squares;
  size_t tokens = 0;
  for (const std::vector<int32_t>& sequence : sequences) {
    SequenceState state = new_state();
    prefill({&state, sequence, LogitsFor::none}, nullptr, ws, prefill_chunk(), after_chunk);
    tokens += sequence.size();
  }
  std::map<std::string, std::vector<float>> means;
  for (const auto& [name, linear] : named_linears(config_, weights_)) {
    for (const double sum : squares[linear]) {
      means[name].push_back(static_cast<float>(sum / static_cast<double>(tokens)));
    }
  }
  return means;
}

}  // namespace lfm
