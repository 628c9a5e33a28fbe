// From processed logits (processors.h) to a token: transformers' warpers in transformers' order (temperature, top-k,
// top-p, min-p, typical-p, epsilon, eta), then a draw; or the argmax.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lfm {

struct SamplingParams {
  bool do_sample = false;  // false: argmax, the lowest id on a tie
  float temperature = 1.0f;
  int64_t top_k = 0;            // 0: off
  float top_p = 1.0f;           // 1: off
  float min_p = 0.0f;           // 0: off
  float typical_p = 1.0f;       // 1: off
  float epsilon_cutoff = 0.0f;  // 0: off
  float eta_cutoff = 0.0f;      // 0: off
  uint64_t seed = 0;
  uint64_t stream = 0;  // which sequence of the call: two of them draw differently

  // Throws std::invalid_argument naming the parameter that is out of range.
  void validate() const;

  // Whether every token can be drawn: nothing but the temperature applies.
  bool keeps_all(size_t vocab) const;
};

// A candidate and its probability after all filters.
struct Candidate {
  int32_t token;
  float probability;
};

class Sampler {
 public:
  explicit Sampler(const SamplingParams& params) : params_(params) { params.validate(); }

  // The draw from logits[vocab] is numbered by `position`: how many tokens the sequence has. Throws std::runtime_error
  // on NaN, or when no logit is finite.
  int32_t sample(std::span<const float> logits, uint64_t position);

  // The candidates that sample() draws from, most probable first (ties: lowest id); for do_sample.
  const std::vector<Candidate>& candidates(std::span<const float> logits);

  // After sample() on the same logits: makes them what it chose from, transformers' `scores`. With do_sample they are
  // divided by the temperature, and minus infinity for tokens that the warpers dropped. normalize: log-probabilities.
  void write_scores(std::span<float> logits, bool normalize) const;

 private:
  struct Cut {
    uint32_t bucket;  // of weights
    double above;     // sum of the weights in higher buckets
  };
  static uint32_t bucket_of(const Candidate& c);
  Cut cut_at(double mass) const;
  bool scan(std::span<const float> logits);
  int32_t argmax(std::span<const float> logits) const;
  void collect(std::span<const float> logits, float least);
  void collect_best(std::span<const float> logits, size_t k);
  double weigh(std::span<const float> logits);
  void filter(std::span<const float> logits);
  void keep_typical();
  void drop_improbable();
  void normalize_candidates();

  SamplingParams params_;
  std::vector<float> maxima_;  // of the latest row's blocks: most of them need no second look
  float max_ = 0;              // of all
  std::vector<Candidate> candidates_;
};

}  // namespace lfm
