#include "model/weights.h"

#include <utility>

#include "base/error.h"

namespace lfm {
namespace {

class Loader {
 public:
  Loader(const TensorSource& source, ComputeType type, Isa isa) : source_(source), type_(type), isa_(isa) {}

  std::vector<float> vector(const std::string& name, std::vector<int64_t> shape) const {
    std::vector<float> values = read_all(get(name, shape));
    done(name);
    return values;
  }

  // The stacked rows of several matrices, each `rows` x cols, as one layer.
  std::unique_ptr<Linear> linear(const std::vector<std::pair<std::string, int64_t>>& parts, int64_t cols) const {
    return pack(parts, cols, false);
  }

  // Embedding or output head: an int4 model keeps it in int8 unless the file has it in 4 bits.
  std::unique_ptr<Linear> embedding(const std::string& name, int64_t rows, int64_t cols) const {
    return pack({{name, rows}}, cols, true);
  }

 private:
  std::unique_ptr<Linear> pack(const std::vector<std::pair<std::string, int64_t>>& parts, int64_t cols,
                               bool int8_at_least) const {
    std::vector<TensorView> views;
    for (const auto& [name, rows] : parts) {
      TensorView& view = views.emplace_back(get(name, {rows, cols}));
      view.int8_at_least = view.int8_at_least || (int8_at_least && !is_quantized(view.dtype));
    }
    auto packed = make_linear(views, type_, isa_);
    for (const auto& part : parts) done(part.first);
    return packed;
  }

  TensorView get(const std::string& name, const std::vector<int64_t>& shape) const {
    TensorView view = source_.get(name, shape);
    check(view.shape == shape, "tensor '", name, "' has the wrong shape");
    check(view.cols() % block_values(view.dtype) == 0, "tensor '", name, "' is ", dtype_name(view.dtype),
          " but its rows of ", view.cols(), " values are not whole blocks");
    view.name = name;
    return view;
  }
  void done(const std::string& name) const {
    if (source_.done) source_.done(name);
  }

  const TensorSource& source_;
  ComputeType type_;
  Isa isa_;
};

ShortConvWeights load_short_conv(const Loader& load, const ModelConfig& c, const std::string& prefix) {
  ShortConvWeights w;
  w.in_proj = load.linear({{prefix + "in_proj.weight", 3 * c.hidden_size}}, c.hidden_size);
  w.out_proj = load.linear({{prefix + "out_proj.weight", c.hidden_size}}, c.hidden_size);
  const std::vector<float> conv = load.vector(prefix + "conv.weight", {c.hidden_size, 1, c.conv_L_cache});
  w.conv.resize(conv.size());
  for (int64_t channel = 0; channel < c.hidden_size; ++channel) {
    for (int64_t tap = 0; tap < c.conv_L_cache; ++tap) {
      w.conv[tap * c.hidden_size + channel] = conv[channel * c.conv_L_cache + tap];
    }
  }
  if (c.conv_bias) {
    w.in_proj->set_bias(load.vector(prefix + "in_proj.bias", {3 * c.hidden_size}));
    w.out_proj->set_bias(load.vector(prefix + "out_proj.bias", {c.hidden_size}));
    w.conv_bias = load.vector(prefix + "conv.bias", {c.hidden_size});
  }
  return w;
}

AttentionWeights load_attention(const Loader& load, const ModelConfig& c, const std::string& prefix) {
  AttentionWeights w;
  w.qkv_proj = load.linear({{prefix + "q_proj.weight", c.query_width()},
                            {prefix + "k_proj.weight", c.kv_width()},
                            {prefix + "v_proj.weight", c.kv_width()}},
                           c.hidden_size);
  w.out_proj = load.linear({{prefix + "out_proj.weight", c.hidden_size}}, c.query_width());
  if (c.qk_norm) {
    w.q_layernorm = load.vector(prefix + "q_layernorm.weight", {c.head_dim});
    w.k_layernorm = load.vector(prefix + "k_layernorm.weight", {c.head_dim});
  }
  return w;
}

size_t bytes_of(const std::unique_ptr<Linear>& linear) { return linear ? linear->nbytes() : 0; }

}  // namespace

size_t ModelWeights::nbytes() const {
  size_t total = bytes_of(embed_tokens) + bytes_of(lm_head) + embedding_norm.size() * sizeof(float);
  for (const LayerWeights& layer : layers) {
    total += bytes_of(layer.w13) + bytes_of(layer.w2);
    if (layer.conv) {
      total += bytes_of(layer.conv->in_proj) + bytes_of(layer.conv->out_proj) + layer.conv->conv.size() * sizeof(float);
    }
    if (layer.attention) total += bytes_of(layer.attention->qkv_proj) + bytes_of(layer.attention->out_proj);
  }
  return total;
}

ModelWeights load_weights(const ModelConfig& config, const TensorSource& source, ComputeType type, Isa isa) {
  config.validate();
  const Loader load(source, type, isa);
  const int64_t hidden = config.hidden_size, ff = config.intermediate_size;
  ModelWeights w;
  w.embed_tokens = load.embedding("model.embed_tokens.weight", config.vocab_size, hidden);
  if (!config.tie_word_embeddings) w.lm_head = load.embedding("lm_head.weight", config.vocab_size, hidden);
  w.embedding_norm = load.vector("model.embedding_norm.weight", {hidden});
  for (int64_t i = 0; i < config.num_layers(); ++i) {
    const std::string prefix = concat("model.layers.", i, ".");
    LayerWeights layer;
    layer.operator_norm = load.vector(prefix + "operator_norm.weight", {hidden});
    layer.ffn_norm = load.vector(prefix + "ffn_norm.weight", {hidden});
    if (config.layer_types[i] == LayerType::conv) {
      layer.conv = load_short_conv(load, config, prefix + "conv.");
    } else {
      layer.attention = load_attention(load, config, prefix + "self_attn.");
    }
    const std::string mlp = prefix + "feed_forward.";
    layer.w13 = load.linear({{mlp + "w1.weight", ff}, {mlp + "w3.weight", ff}}, hidden);
    layer.w2 = load.linear({{mlp + "w2.weight", hidden}}, ff);
    w.layers.push_back(std::move(layer));
  }
  return w;
}

}  // namespace lfm
