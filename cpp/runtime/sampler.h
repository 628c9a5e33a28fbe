// From logits to a token, with transformers' processors in transformers' order: repetition penalty, minimum length,
// mask of allowed tokens (prefix_allowed_tokens_fn), temperature, top-k, top-p, min-p, then a draw (or the argmax).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lfm {

struct SamplingParams {
  bool do_sample = false;  // false: argmax, the lowest id on a tie
  float temperature = 1.0f;
  int64_t top_k = 0;   // 0: off
  float top_p = 1.0f;  // 1: off
  float min_p = 0.0f;  // 0: off
  float repetition_penalty = 1.0f;
  uint64_t seed = 0;
  uint64_t stream = 0;  // which sequence of the call: two of them draw differently

  // Throws std::invalid_argument naming the parameter that is out of range.
  void validate() const;
};

// A candidate and its probability after all filters.
struct Candidate {
  int32_t token;
  float probability;
};

class Sampler {
 public:
  explicit Sampler(const SamplingParams& params) : params_(params) { params.validate(); }

  // history: prompt and generated tokens; logits[vocab] are changed in place. `suppressed` tokens cannot be chosen.
  // mask: nullptr, or one bit per token, ceil(vocab / 32) words, low bit first; tokens whose bit is 0 cannot be chosen.
  // The draw is numbered by history.size(). Throws std::runtime_error on NaN, or when no logit is finite.
  int32_t sample(std::span<float> logits, std::span<const int32_t> history, std::span<const int32_t> suppressed,
                 const uint32_t* mask = nullptr);

  // The candidates that sample() draws from, most probable first (ties: lowest id); for do_sample.
  const std::vector<Candidate>& candidates(std::span<float> logits);

 private:
  void penalize(std::span<float> logits, std::span<const int32_t> history);

  SamplingParams params_;
  std::vector<Candidate> candidates_;
  std::vector<int32_t> seen_;
};

}  // namespace lfm
