// The whole model: immutable weights and the forward pass over several sequences at once.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "model/layers.h"
#include "model/state.h"
#include "model/weights.h"
#include "model/workspace.h"

namespace lfm {

enum class LogitsFor : uint8_t { none, last, all };

// The next tokens of one sequence. States in one call must be different ones.
struct SequenceInput {
  SequenceState* state;
  std::span<const int32_t> tokens;
  LogitsFor logits_for = LogitsFor::last;
  // With LogitsFor::last and one row, null or one bit per token, ceil(vocab_size / 32) words, low bit first: where the
  // bit is 0 the logit is -inf and its row of the output head is not computed.
  const uint32_t* allowed = nullptr;
  int64_t last_rows = 1;           // with LogitsFor::last: for so many of the last tokens
  ConvHistory* history = nullptr;  // if not null, gets the conv state after each token
};

// Rows of logits that a forward pass over `inputs` gives.
int64_t num_logit_rows(std::span<const SequenceInput> inputs);

class Model {
 public:
  // num_threads <= 0: usable_cores(). kv: type of K and V in states; by default f32 for f32 weights, else bf16.
  Model(ModelConfig config, const TensorSource& source, ComputeType type, int num_threads,
        std::optional<KvType> kv = {});

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  ComputeType compute_type() const { return type_; }
  KvType kv_type() const { return layout_->kv_type; }
  int num_threads() const { return num_threads_; }
  std::string_view isa() const { return isa_name(isa_); }

  size_t state_nbytes(int64_t length) const;  // of the state of a sequence of so many tokens
  SequenceState new_state() const { return SequenceState(layout_); }

  // Runs all tokens of all inputs as one packed batch without padding and advances the states. logits:
  // [num_logit_rows(inputs), vocab_size], input by input; may be null when there are none.
  // Throws std::invalid_argument for tokens outside the vocabulary, an empty input or a sequence longer than
  // max_position_embeddings; states are unchanged then, and also on std::bad_alloc.
  // Safe to call from several threads with different workspaces and states.
  void forward(std::span<const SequenceInput> inputs, float* logits, Workspace& ws) const;

  // Who sees the activations of every pass that begins from now on; null: nobody. ws.taps see those of one caller,
  // after these.
  void set_taps(std::shared_ptr<const Taps> taps);
  std::shared_ptr<const Taps> taps() const;  // null: none

  // Throws std::invalid_argument for no tokens, or one outside the vocabulary.
  void check_tokens(std::span<const int32_t> tokens) const;

  // Throws what forward would throw for these inputs.
  void check_inputs(std::span<const SequenceInput> inputs) const;

  // Prompt tokens of one pass: enough for the rate of its products, few enough for others who wait, and for Ctrl-C.
  int64_t prefill_chunk() const;

  // forward for any number of tokens, `chunk` at a time; after_chunk (may be empty) runs after each chunk and may throw
  // to stop there.
  void prefill(const SequenceInput& input, float* logits, Workspace& ws, int64_t chunk,
               const std::function<void()>& after_chunk) const;

  // The mean square of each input of each linear layer over all tokens, by the layers' names: what int4 weights can be
  // weighted with (TensorSource::importance). For f32 weights only. after_chunk: as in prefill.
  std::map<std::string, std::vector<float>> input_mean_squares(std::span<const std::vector<int32_t>> sequences,
                                                               const std::function<void()>& after_chunk) const;

 private:
  void embed(const LayerContext& ctx, std::span<const SequenceInput> inputs) const;
  void run_layers(LayerContext ctx) const;
  void tap_logits(const LayerContext& ctx, std::span<const SequenceInput> inputs, float* logits) const;
  void write_logits(const LayerContext& ctx, std::span<const SequenceInput> inputs, float* logits) const;

  ModelConfig config_;
  ComputeType type_;
  Isa isa_;
  const Kernels& kernels_;
  int num_threads_;
  std::shared_ptr<const StateLayout> layout_;
  ModelWeights weights_;
  std::vector<const Linear*> linears_;  // of weights_
  mutable std::mutex taps_mutex_;
  std::shared_ptr<const Taps> taps_;
};

}  // namespace lfm
