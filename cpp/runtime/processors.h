// Changes to the logits before a token is chosen: transformers' logits processors, in transformers' order.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace lfm {

struct ProcessorParams {
  // Added to the logit of a sequence's last token where the tokens before it are the latest ones.
  std::vector<std::pair<std::vector<int32_t>, float>> sequence_bias;
  float repetition_penalty = 1.0f;                  // 1: off
  int64_t no_repeat_ngram_size = 0;                 // 0: off
  std::vector<std::vector<int32_t>> bad_words_ids;  // never completed; a single end-of-sequence token is not one
  int64_t min_new_tokens = 0;                       // end-of-sequence tokens cannot come before
  std::vector<int32_t> forced_eos_token_ids;        // one of them is the last token that the limit allows
  bool remove_invalid_values = false;               // NaN becomes 0, infinities the largest finite values
  int64_t exponential_decay_start = 0;              // new tokens before end-of-sequence tokens gain weight
  float exponential_decay_factor = 1.0f;            // 1: off
  std::vector<int32_t> suppress_tokens, begin_suppress_tokens;  // the latter: as first new token only

  // Throws std::invalid_argument naming the parameter that is out of range.
  void validate(int64_t vocab_size) const;
};

// Sets the logits whose bit is 0 to minus infinity. mask: ceil(vocab / 32) words, low bit first.
void apply_mask(std::span<float> logits, const uint32_t* mask);

// Where a request is when its next token is chosen.
struct ProcessorInput {
  std::span<const int32_t> history;  // prompt and generated tokens
  int64_t prompt_length;
  bool last;                       // the next token is the last one that the limit allows
  std::span<const int32_t> eos;    // end-of-sequence tokens
  const uint32_t* mask = nullptr;  // see apply_mask; nullptr: any token
};

class LogitsProcessors {
 public:
  explicit LogitsProcessors(ProcessorParams params) : params_(std::move(params)) {}

  // Changes logits[vocab] in place.
  void apply(std::span<float> logits, const ProcessorInput& input);

 private:
  void penalize_repetition(std::span<float> logits, std::span<const int32_t> history);
  void ban_ngrams(std::span<float> logits, std::span<const int32_t> history) const;

  ProcessorParams params_;
  std::vector<uint64_t> seen_;  // a bit for each token; all 0 between calls
};

}  // namespace lfm
