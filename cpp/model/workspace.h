// Activations of one forward pass; grown on demand, owned by the caller and used by one thread at a time.
#pragma once

#include <algorithm>

#include "base/buffer.h"
#include "kernels/linear.h"
#include "model/config.h"

namespace lfm {

struct Workspace {
  Buffer<float> hidden;       // [tokens, hidden]: the residual stream h
  Buffer<float> projected;    // [tokens, widest fused projection]: B C x, q k v, or w1 w3
  Buffer<float> mixed;        // [tokens, widest input of an output projection]
  Buffer<float> rope;         // [tokens, head_dim]: cos, then sin, of each token's position
  Buffer<float> attention;    // softmax states, gathered queries and scores
  Buffer<int64_t> visible;    // [threads, rows of a query tile]
  Buffer<float> conv_states;  // copies from before the pass, to go back to on an error
  LinearScratch linear;

  // Room for a batch of `tokens`.
  void ensure(const ModelConfig& c, int64_t tokens) {
    const auto n = static_cast<size_t>(tokens);
    hidden.ensure(n * c.hidden_size);
    projected.ensure(n * std::max({3 * c.hidden_size, c.query_width() + 2 * c.kv_width(), 2 * c.intermediate_size}));
    mixed.ensure(n * std::max(c.hidden_size, c.query_width()));
    rope.ensure(n * c.head_dim);
  }
};

}  // namespace lfm
