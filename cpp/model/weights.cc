#include "model/weights.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/error.h"

namespace lfm {
namespace {

struct Part {
  std::string name;
  int64_t rows;
};

// ---- the list of a model's tensors: one for reading and writing --------------------------------------------------
//
// A visitor has
//   matrix(name, parts, cols, linear)       the stacked rows of `parts`
//   embedding(name, rows, cols, linear)     embedding or output head
//   vector(name, shape, values)
//   taps(name, channels, taps, values)      [channels, 1, taps], in memory transposed
//   bias(name, linear)

template <class Weights, class Visitor>
void visit_short_conv(const ModelConfig& c, const std::string& prefix, Weights& w, const Visitor& visit) {
  const int64_t hidden = c.hidden_size;
  visit.matrix(prefix + "in_proj.weight", {{prefix + "in_proj.weight", 3 * hidden}}, hidden, w.in_proj);
  visit.matrix(prefix + "out_proj.weight", {{prefix + "out_proj.weight", hidden}}, hidden, w.out_proj);
  visit.taps(prefix + "conv.weight", hidden, c.conv_L_cache, w.conv);
  if (c.conv_bias) {
    visit.bias(prefix + "in_proj.bias", *w.in_proj);
    visit.bias(prefix + "out_proj.bias", *w.out_proj);
    visit.vector(prefix + "conv.bias", {hidden}, w.conv_bias);
  }
}

template <class Weights, class Visitor>
void visit_attention(const ModelConfig& c, const std::string& prefix, Weights& w, const Visitor& visit) {
  visit.matrix(prefix + "qkv_proj.weight",
               {{prefix + "q_proj.weight", c.query_width()},
                {prefix + "k_proj.weight", c.kv_width()},
                {prefix + "v_proj.weight", c.kv_width()}},
               c.hidden_size, w.qkv_proj);
  visit.matrix(prefix + "out_proj.weight", {{prefix + "out_proj.weight", c.hidden_size}}, c.query_width(), w.out_proj);
  if (c.qk_norm) {
    visit.vector(prefix + "q_layernorm.weight", {c.head_dim}, w.q_layernorm);
    visit.vector(prefix + "k_layernorm.weight", {c.head_dim}, w.k_layernorm);
  }
}

// Weights: ModelWeights, const or not, with the layers and their parts in place.
template <class Weights, class Visitor>
void visit_weights(const ModelConfig& c, Weights& w, const Visitor& visit) {
  const int64_t hidden = c.hidden_size, ff = c.intermediate_size;
  visit.embedding("model.embed_tokens.weight", c.vocab_size, hidden, w.embed_tokens);
  if (!c.tie_word_embeddings) visit.embedding("lm_head.weight", c.vocab_size, hidden, w.lm_head);
  visit.vector("model.embedding_norm.weight", {hidden}, w.embedding_norm);
  for (int64_t i = 0; i < c.num_layers(); ++i) {
    const std::string prefix = concat("model.layers.", i, "."), mlp = prefix + "feed_forward.";
    auto& layer = w.layers[static_cast<size_t>(i)];
    visit.vector(prefix + "operator_norm.weight", {hidden}, layer.operator_norm);
    visit.vector(prefix + "ffn_norm.weight", {hidden}, layer.ffn_norm);
    if (layer.conv) {
      visit_short_conv(c, prefix + "conv.", *layer.conv, visit);
    } else {
      visit_attention(c, prefix + "self_attn.", *layer.attention, visit);
    }
    visit.matrix(mlp + "w13.weight", {{mlp + "w1.weight", ff}, {mlp + "w3.weight", ff}}, hidden, layer.w13);
    visit.matrix(mlp + "w2.weight", {{mlp + "w2.weight", hidden}}, ff, layer.w2);
  }
}

// Few of them hold a model; what stays unused of the last takes no memory.
constexpr size_t kChunkBytes = size_t{64} << 20;

// ---- reading -----------------------------------------------------------------------------------------------------

class Loader {
 public:
  Loader(const TensorSource& source, ComputeType type, Isa isa, Arena& arena)
      : source_(source), type_(type), isa_(isa), arena_(arena) {}

  void matrix(const std::string& name, const std::vector<Part>& parts, int64_t cols,
              std::unique_ptr<Linear>& linear) const {
    load(name, parts, cols, 4, linear);
  }
  // An int4 model gives these 6 bits where the file has floats: here 4 would cost the most.
  void embedding(const std::string& name, int64_t rows, int64_t cols, std::unique_ptr<Linear>& linear) const {
    load(name, {{name, rows}}, cols, 6, linear);
  }
  void vector(const std::string& name, const std::vector<int64_t>& shape, std::vector<float>& values) const {
    values = read_all(get(name, shape));
    done(name);
  }
  void taps(const std::string& name, int64_t channels, int64_t taps, std::vector<float>& values) const {
    std::vector<float> stored;
    vector(name, {channels, 1, taps}, stored);
    values.resize(stored.size());
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < taps; ++t) values[t * channels + c] = stored[c * taps + t];
    }
  }
  void bias(const std::string& name, Linear& linear) const {
    std::vector<float> values;
    vector(name, {linear.out_features()}, values);
    linear.set_bias(std::move(values));
  }

 private:
  void load(const std::string& name, const std::vector<Part>& parts, int64_t cols, int least_bits,
            std::unique_ptr<Linear>& linear) const {
    if (std::optional<PackedWeights> packed = source_.packed ? source_.packed(name) : std::nullopt) {
      linear = use_packed(name, parts, cols, *packed);
      return;
    }
    std::vector<TensorView> views;
    for (const Part& part : parts) {
      TensorView& view = views.emplace_back(get(part.name, {part.rows, cols}));
      view.least_bits = std::max(view.least_bits, least_bits);
    }
    const auto importance = source_.importance.find(name);
    const bool given = importance != source_.importance.end();
    linear = make_linear(views, type_, isa_, arena_, given ? importance->second : std::vector<float>());
    for (const Part& part : parts) done(part.name);
  }

  std::unique_ptr<Linear> use_packed(const std::string& name, const std::vector<Part>& parts, int64_t cols,
                                     const PackedWeights& packed) const {
    int64_t rows = 0;
    for (const Part& part : parts) rows += part.rows;
    check(packed.out_features == rows && packed.in_features == cols, "tensor '", name, "' has the shape [",
          packed.out_features, ", ", packed.in_features, "], but the configuration needs [", rows, ", ", cols, "]");
    try {
      return make_linear(packed, isa_);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(concat("tensor '", name, "': ", error.what()));
    }
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
  Arena& arena_;
};

// ---- writing -----------------------------------------------------------------------------------------------------

class Exporter {
 public:
  explicit Exporter(const WeightSink& sink) : sink_(sink) {}

  void matrix(const std::string& name, const std::vector<Part>&, int64_t, const std::unique_ptr<Linear>& linear) const {
    const std::optional<PackedWeights> packed = linear->packed();
    check(packed.has_value(), "weights in the layout ", linear->implementation(),
          " are for this kind of CPU only and cannot be packed into a file; use dtype int8 or int4");
    sink_.matrix(name, *packed);
  }
  void embedding(const std::string& name, int64_t, int64_t, const std::unique_ptr<Linear>& linear) const {
    matrix(name, {}, 0, linear);
  }
  void vector(const std::string& name, const std::vector<int64_t>& shape, const std::vector<float>& values) const {
    sink_.vector(name, shape, values);
  }
  void taps(const std::string& name, int64_t channels, int64_t taps, const std::vector<float>& values) const {
    std::vector<float> stored(values.size());
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < taps; ++t) stored[c * taps + t] = values[t * channels + c];
    }
    sink_.vector(name, {channels, 1, taps}, stored);
  }
  void bias(const std::string& name, const Linear& linear) const {
    sink_.vector(name, {linear.out_features()}, linear.bias());
  }

 private:
  const WeightSink& sink_;
};

// ---- listing -----------------------------------------------------------------------------------------------------

struct Lister {
  std::map<std::string, const Linear*>& linears;

  void matrix(const std::string& name, const std::vector<Part>&, int64_t, const std::unique_ptr<Linear>& linear) const {
    linears[name] = linear.get();
  }
  void embedding(const std::string&, int64_t, int64_t, const std::unique_ptr<Linear>&) const {}
  void vector(const std::string&, const std::vector<int64_t>&, const std::vector<float>&) const {}
  void taps(const std::string&, int64_t, int64_t, const std::vector<float>&) const {}
  void bias(const std::string&, const Linear&) const {}
};

class Locator {
 public:
  explicit Locator(std::map<std::string, TensorPlace>& places) : places_(places) {}

  void matrix(const std::string&, const std::vector<Part>& parts, int64_t cols,
              const std::unique_ptr<Linear>& linear) const {
    int64_t first_row = 0;
    for (const Part& part : parts) {
      places_[part.name] = {{part.rows, cols}, nullptr, {}, linear.get(), first_row};
      first_row += part.rows;
    }
  }
  void embedding(const std::string& name, int64_t rows, int64_t cols, const std::unique_ptr<Linear>& linear) const {
    matrix(name, {{name, rows}}, cols, linear);
  }
  void vector(const std::string& name, const std::vector<int64_t>& shape, const std::vector<float>& values) const {
    places_[name] = {shape, values.data(), {1}};
  }
  void taps(const std::string& name, int64_t channels, int64_t taps, const std::vector<float>& values) const {
    places_[name] = {{channels, 1, taps}, values.data(), {1, 1, channels}};
  }
  void bias(const std::string& name, const Linear& linear) const {
    places_[name] = {{linear.out_features()}, linear.bias().data(), {1}};
  }

 private:
  std::map<std::string, TensorPlace>& places_;
};

// ---- digest ------------------------------------------------------------------------------------------------------

class Digest {
 public:
  explicit Digest(uint64_t& hash) : hash_(hash) {}

  void matrix(const std::string&, const std::vector<Part>&, int64_t, const std::unique_ptr<Linear>& linear) const {
    constexpr int64_t kRows = 16;
    std::vector<float> row(static_cast<size_t>(linear->in_features()));
    const int64_t rows = linear->out_features(), count = std::min(kRows, rows);
    for (int64_t i = 0; i < count; ++i) {
      linear->weight_row(i * (rows - 1) / std::max<int64_t>(1, count - 1), row.data());
      add(row);
    }
  }
  void embedding(const std::string& name, int64_t, int64_t, const std::unique_ptr<Linear>& linear) const {
    matrix(name, {}, 0, linear);
  }
  void vector(const std::string&, const std::vector<int64_t>&, const std::vector<float>& values) const { add(values); }
  void taps(const std::string&, int64_t, int64_t, const std::vector<float>& values) const { add(values); }
  void bias(const std::string&, const Linear& linear) const { add(linear.bias()); }

 private:
  // FNV-1a over words, folded so that high bits reach low ones.
  void add(const std::vector<float>& values) const {
    for (const float value : values) {
      hash_ = (hash_ ^ std::bit_cast<uint32_t>(value)) * 0x100000001b3u;
      hash_ ^= hash_ >> 32;
    }
  }

  uint64_t& hash_;
};

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
  ModelWeights w;
  for (const LayerType kind : config.layer_types) {
    LayerWeights& layer = w.layers.emplace_back();
    if (kind == LayerType::conv) {
      layer.conv.emplace();
    } else {
      layer.attention.emplace();
    }
  }
  Arena arena(kChunkBytes);
  visit_weights(config, w, Loader(source, type, isa, arena));
  arena.use_huge_pages();
  return w;
}

std::map<std::string, const Linear*> named_linears(const ModelConfig& config, const ModelWeights& weights) {
  std::map<std::string, const Linear*> linears;
  visit_weights(config, weights, Lister{linears});
  return linears;
}

std::map<std::string, TensorPlace> tensor_places(const ModelConfig& config, const ModelWeights& weights) {
  std::map<std::string, TensorPlace> places;
  visit_weights(config, weights, Locator(places));
  return places;
}

void export_weights(const ModelConfig& config, const ModelWeights& weights, const WeightSink& sink) {
  visit_weights(config, weights, Exporter(sink));
}

uint64_t fingerprint(const ModelConfig& config, const ModelWeights& weights) {
  uint64_t hash = 0xcbf29ce484222325u;
  visit_weights(config, weights, Digest(hash));
  return hash;
}

}  // namespace lfm
