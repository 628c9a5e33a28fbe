// The numbers of a model: LFM2 of any size, or a Llama-shaped stack (attention in every layer, no q/k norm).
#pragma once

#include <cstdint>
#include <vector>

namespace lfm {

enum class LayerType : uint8_t { conv, full_attention };

// Names as in transformers' Lfm2Config.
struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // the FFN's effective width
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  std::vector<LayerType> layer_types;
  int64_t conv_L_cache = 3;  // taps of the short convolution
  bool conv_bias = false;
  bool qk_norm = true;
  bool tie_word_embeddings = true;
  float norm_eps = 1e-5f;
  int64_t max_position_embeddings = 0;
  std::vector<float> rope_inv_freq;  // [head_dim / 2], radians per position

  int64_t num_layers() const { return static_cast<int64_t>(layer_types.size()); }
  int64_t num_layers_of(LayerType type) const;
  int64_t query_width() const { return num_attention_heads * head_dim; }
  int64_t kv_width() const { return num_key_value_heads * head_dim; }
  int64_t queries_per_kv() const { return num_attention_heads / num_key_value_heads; }

  // Throws std::invalid_argument naming the field that makes no sense.
  void validate() const;
};

}  // namespace lfm
