#include "runtime/processors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace lfm {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

void check_ids(const char* name, std::span<const int32_t> ids, int64_t vocab_size) {
  for (const int32_t id : ids) {
    check(id >= 0 && id < vocab_size, name, ": ", id, " is outside the vocabulary of ", vocab_size);
  }
}

void suppress(std::span<float> logits, std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) logits[token] = kMinusInf;
}

// Whether `sequence` without its last token is how `history` ends.
bool would_complete(std::span<const int32_t> sequence, std::span<const int32_t> history) {
  const std::span<const int32_t> prefix = sequence.first(sequence.size() - 1);
  return prefix.size() <= history.size() && std::equal(prefix.rbegin(), prefix.rend(), history.rbegin());
}

}  // namespace

void ProcessorParams::validate(int64_t vocab_size) const {
  for (const auto& [sequence, bias] : sequence_bias) {
    check(!sequence.empty(), "sequence_bias holds an empty sequence");
    check(bias < std::numeric_limits<float>::infinity(), "sequence_bias must be finite or -inf, not ", bias);
    check_ids("sequence_bias", sequence, vocab_size);
  }
  check(std::isfinite(repetition_penalty) && repetition_penalty > 0, "repetition_penalty must be > 0, not ",
        repetition_penalty);
  check(no_repeat_ngram_size >= 0, "no_repeat_ngram_size must be >= 0, not ", no_repeat_ngram_size);
  for (const auto& word : bad_words_ids) {
    check(!word.empty(), "bad_words_ids holds an empty word");
    check_ids("bad_words_ids", word, vocab_size);
  }
  check_ids("forced_eos_token_id", forced_eos_token_ids, vocab_size);
  check(exponential_decay_start >= 0, "exponential_decay_length_penalty must start at >= 0, not ",
        exponential_decay_start);
  check(std::isfinite(exponential_decay_factor) && exponential_decay_factor > 0,
        "exponential_decay_length_penalty must have a factor > 0, not ", exponential_decay_factor);
  check_ids("suppress_tokens", suppress_tokens, vocab_size);
  check_ids("begin_suppress_tokens", begin_suppress_tokens, vocab_size);
}

void apply_mask(std::span<float> logits, const uint32_t* mask) {
  for (size_t begin = 0; begin < logits.size(); begin += 32) {
    const std::span<float> word = logits.subspan(begin, std::min<size_t>(32, logits.size() - begin));
    const uint32_t allowed = mask[begin / 32];
    if (allowed == 0) {
      std::fill(word.begin(), word.end(), kMinusInf);
    } else if (allowed != ~uint32_t{0}) {
      for (size_t i = 0; i < word.size(); ++i) word[i] = (allowed >> i & 1) == 0 ? kMinusInf : word[i];
    }
  }
}

void LogitsProcessors::penalize_repetition(std::span<float> logits, std::span<const int32_t> history) {
  if (params_.repetition_penalty == 1.0f) return;
  seen_.resize((logits.size() + 63) / 64);
  for (const int32_t token : history) {
    uint64_t& word = seen_[static_cast<size_t>(token) / 64];
    const uint64_t bit = uint64_t{1} << (token % 64);
    if ((word & bit) != 0) continue;
    word |= bit;
    float& logit = logits[token];
    logit = logit < 0 ? logit * params_.repetition_penalty : logit / params_.repetition_penalty;
  }
  for (const int32_t token : history) seen_[static_cast<size_t>(token) / 64] = 0;
}

void LogitsProcessors::ban_ngrams(std::span<float> logits, std::span<const int32_t> history) const {
  const auto n = static_cast<size_t>(params_.no_repeat_ngram_size);
  if (n == 0 || history.size() < n) return;
  const std::span<const int32_t> latest = history.last(n - 1);
  for (size_t i = 0; i + n <= history.size(); ++i) {
    if (std::equal(latest.begin(), latest.end(), history.begin() + static_cast<std::ptrdiff_t>(i))) {
      logits[history[i + n - 1]] = kMinusInf;
    }
  }
}

void LogitsProcessors::apply(std::span<float> logits, const ProcessorInput& in) {
  const int64_t generated = static_cast<int64_t>(in.history.size()) - in.prompt_length;
  for (const auto& [sequence, bias] : params_.sequence_bias) {
    if (would_complete(sequence, in.history)) logits[sequence.back()] += bias;
  }
  penalize_repetition(logits, in.history);
  ban_ngrams(logits, in.history);
  for (const auto& word : params_.bad_words_ids) {
    const bool is_end = word.size() == 1 && std::find(in.eos.begin(), in.eos.end(), word[0]) != in.eos.end();
    if (!is_end && would_complete(word, in.history)) logits[word.back()] = kMinusInf;
  }
  if (generated < params_.min_new_tokens) suppress(logits, in.eos);
  if (in.mask != nullptr) apply_mask(logits, in.mask);
  if (in.last && !params_.forced_eos_token_ids.empty()) {
    std::fill(logits.begin(), logits.end(), kMinusInf);
    for (const int32_t token : params_.forced_eos_token_ids) logits[token] = 0;
  }
  if (params_.remove_invalid_values) {
    for (float& logit : logits) logit = std::isnan(logit) ? 0.0f : std::clamp(logit, -kMax, kMax);
  }
  if (params_.exponential_decay_factor != 1.0f && generated > params_.exponential_decay_start) {
    const double weight =
        std::pow(double{params_.exponential_decay_factor}, generated - params_.exponential_decay_start) - 1;
    for (const int32_t token : in.eos) {
      float& logit = logits[token];  // an end that is banned stays so
      if (std::isfinite(logit)) logit += std::fabs(logit) * static_cast<float>(weight);
    }
  }
  suppress(logits, params_.suppress_tokens);
  if (generated == 0) suppress(logits, params_.begin_suppress_tokens);
}

}  // namespace lfm
