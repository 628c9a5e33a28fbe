// Activations of one forward pass; grown on demand, owned by the caller and used by one thread at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "kernels/linear.h"
#include "model/config.h"
#include "model/taps.h"

namespace lfm {

// Queries of one KV head: `count` tokens of a segment from `token` on. One task computes the blocks [begin, end) of
// positions; what several tasks compute apart is merged afterwards, in the order of positions.
struct AttentionTask {
  int64_t segment, kv_head, token, count;
  int64_t begin, end;
  int64_t partial;  // index of the result among the partial buffers, or -1: the task writes the output
};

// The same in every layer of a pass.
struct AttentionPlan {
  std::vector<AttentionTask> tasks, merges;
  int64_t partials = 0;
};

struct Workspace {
  Buffer<float> hidden;         // [tokens, hidden]: the residual stream h
  Buffer<float> projected;      // [tokens, widest fused projection]: B C x, q k v, or the MLP's
  Buffer<float> mixed;          // [tokens, widest input of an output projection]
  Buffer<float> rope;           // [tokens, head_dim]: cos, then sin, of each token's position
  Buffer<std::byte> attention;  // softmax states and scores
  AttentionPlan attention_plan;
  std::vector<std::shared_ptr<Buffer<float>>> conv_states;  // of each sequence, after the pass
  LinearScratch linear;
  const Taps* taps = nullptr;  // of this caller

  // Room for a batch of `tokens`. What a prompt needed leaves the process when decoding begins: tens of megabytes, and
  // milliseconds to have them again for the next prompt.
  void ensure(const ModelConfig& c, int64_t tokens) {
    const auto n = static_cast<size_t>(tokens);
    if (hidden.size() > std::max<size_t>(8 * n, 64) * c.hidden_size) {
      InputSquares* const squares = linear.squares;  // not memory
      const Taps* const callers = taps;
      *this = Workspace();
      linear.squares = squares;
      taps = callers;
    }
    hidden.ensure(n * c.hidden_size);
    projected.ensure(n * std::max(3 * c.hidden_size, c.query_width() + 2 * c.kv_width()));
    mixed.ensure(n * std::max(c.hidden_size, c.query_width()));
    rope.ensure(n * c.head_dim);
  }

  // Of the sequence `i`, [size], to be written: one that nobody else holds.
  Buffer<float>& conv_state(size_t i, size_t size) {
    if (i >= conv_states.size()) conv_states.resize(i + 1);
    std::shared_ptr<Buffer<float>>& state = conv_states[i];
    if (state == nullptr || state.use_count() > 1 || state->size() != size) {
      state = std::make_shared<Buffer<float>>(size);
    }
    // Another thread may have been the last to let go of it, after reading it.
    std::atomic_thread_fence(std::memory_order_acquire);
    return *state;
  }
};

}  // namespace lfm
