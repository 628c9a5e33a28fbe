#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace lfm {

int64_t ModelConfig::num_layers_of(LayerType type) const {
  return std::count(layer_types.begin(), layer_types.end(), type);
}

void ModelConfig::validate() const {
  constexpr int64_t kMost = int64_t{1} << 31;  // products of two sizes stay far from overflow
  for (const auto& [name, value] : {std::pair{"vocab_size", vocab_size},
                                    {"hidden_size", hidden_size},
                                    {"intermediate_size", intermediate_size},
                                    {"num_attention_heads", num_attention_heads},
                                    {"num_key_value_heads", num_key_value_heads},
                                    {"head_dim", head_dim},
                                    {"conv_L_cache", conv_L_cache},
                                    {"max_position_embeddings", max_position_embeddings},
                                    {"num_hidden_layers", num_layers()}}) {
    check(value >= 1 && value < kMost, "config: ", name, " = ", value, " is out of range");
  }
  check(num_attention_heads % num_key_value_heads == 0, "config: num_attention_heads = ", num_attention_heads,
        " is not a multiple of num_key_value_heads = ", num_key_value_heads);
  check(head_dim % 2 == 0 && head_dim <= 1024, "config: head_dim = ", head_dim, " is not an even number up to 1024");
  check(static_cast<int64_t>(rope_inv_freq.size()) == head_dim / 2, "config: rope_inv_freq has ", rope_inv_freq.size(),
        " values, expected head_dim / 2 = ", head_dim / 2);
  check(std::isfinite(norm_eps) && norm_eps >= 0, "config: norm_eps = ", norm_eps, " is not a small positive number");
}

}  // namespace lfm
