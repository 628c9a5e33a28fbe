// The weights of a model, named as in transformers' Lfm2ForCausalLM, packed for one compute type.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/linear.h"
#include "model/config.h"

namespace lfm {

struct ShortConvWeights {
  std::unique_ptr<Linear> in_proj;   // [3 * hidden, hidden], rows B, C, x
  std::unique_ptr<Linear> out_proj;  // [hidden, hidden]
  std::vector<float> conv;           // [conv_L_cache, hidden]: transposed, so that lanes are channels
  std::vector<float> conv_bias;      // [hidden] or empty
};

struct AttentionWeights {
  std::unique_ptr<Linear> qkv_proj;             // [(heads + 2 * kv_heads) * head_dim, hidden]
  std::unique_ptr<Linear> out_proj;             // [hidden, heads * head_dim]
  std::vector<float> q_layernorm, k_layernorm;  // [head_dim] or empty
};

struct LayerWeights {
  std::vector<float> operator_norm, ffn_norm;  // [hidden]
  std::optional<ShortConvWeights> conv;        // one of the two
  std::optional<AttentionWeights> attention;
  std::unique_ptr<Linear> w13;  // [2 * intermediate, hidden]: gate w1, then up w3
  std::unique_ptr<Linear> w2;   // [hidden, intermediate]
};

struct ModelWeights {
  std::unique_ptr<Linear> embed_tokens;  // [vocab, hidden]
  std::unique_ptr<Linear> lm_head;       // null when tied to embed_tokens
  std::vector<float> embedding_norm;     // [hidden]
  std::vector<LayerWeights> layers;

  const Linear& head() const { return lm_head ? *lm_head : *embed_tokens; }
  size_t nbytes() const;
};

// Gives the tensor `name`, which must have `shape`; the view is used before the next call of `done`.
struct TensorSource {
  std::function<TensorView(const std::string& name, const std::vector<int64_t>& shape)> get;
  std::function<void(const std::string& name)> done;  // the tensor was copied; may be empty
  // The matrix `name` as export_weights gave it, to be used in place; nullopt, or an empty function, where there is
  // none.
  std::function<std::optional<PackedWeights>(const std::string& name)> packed = {};
  // By the same names: how much each input matters to the error of int4 weights; see make_linear.
  std::map<std::string, std::vector<float>> importance = {};
};

// Reads and packs every tensor. Throws std::invalid_argument naming a tensor that is missing, misshapen or not finite.
ModelWeights load_weights(const ModelConfig& config, const TensorSource& source, ComputeType type, Isa isa);

// The layers by name, without embedding and output head.
std::map<std::string, const Linear*> named_linears(const ModelConfig& config, const ModelWeights& weights);

// Where a model has a tensor of its checkpoint: fp32 values in place, or rows of a packed matrix.
struct TensorPlace {
  std::vector<int64_t> shape;
  const float* values = nullptr;
  std::vector<int64_t> strides = {};  // of values, in elements
  const Linear* matrix = nullptr;
  int64_t first_row = 0;  // of shape[0], in the matrix
};

// All tensors, by name.
std::map<std::string, TensorPlace> tensor_places(const ModelConfig& config, const ModelWeights& weights);

// Takes a model's weights apart: matrices as they lie in memory, named as their tensors (fused ones: "qkv_proj",
// "w13"), and the small tensors in the shapes that TensorSource::get is asked for.
struct WeightSink {
  std::function<void(const std::string& name, const PackedWeights& weights)> matrix;
  std::function<void(const std::string& name, const std::vector<int64_t>& shape, std::span<const float> values)> vector;
};

// Throws std::invalid_argument where matrices have a layout that is for one kind of CPU (float32, bfloat16).
void export_weights(const ModelConfig& config, const ModelWeights& weights, const WeightSink& sink);

// A digest of the weights' values: of all small tensors, and of 16 rows of each matrix. The same on every ISA.
uint64_t fingerprint(const ModelConfig& config, const ModelWeights& weights);

}  // namespace lfm
