#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "runtime/random.h"

namespace lfm {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

bool more_probable(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
}

void apply_mask(std::span<float> logits, const uint32_t* mask) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if ((mask[i / 32] >> (i % 32) & 1) == 0) logits[i] = kMinusInf;
  }
}

}  // namespace

void SamplingParams::validate() const {
  check(std::isfinite(repetition_penalty) && repetition_penalty > 0, "repetition_penalty must be > 0, not ",
        repetition_penalty);
  if (!do_sample) return;
  check(std::isfinite(temperature) && temperature > 0, "temperature must be > 0, not ", temperature);
  check(top_k >= 0, "top_k must be >= 0, not ", top_k);
  check(top_p > 0 && top_p <= 1, "top_p must be in (0, 1], not ", top_p);
  check(min_p >= 0 && min_p <= 1, "min_p must be in [0, 1], not ", min_p);
}

void Sampler::penalize(std::span<float> logits, std::span<const int32_t> history) {
  if (params_.repetition_penalty == 1.0f) return;
  seen_.assign(history.begin(), history.end());
  std::sort(seen_.begin(), seen_.end());
  seen_.erase(std::unique(seen_.begin(), seen_.end()), seen_.end());
  for (const int32_t token : seen_) {
    float& logit = logits[token];
    logit = logit < 0 ? logit * params_.repetition_penalty : logit / params_.repetition_penalty;
  }
}

const std::vector<Candidate>& Sampler::candidates(std::span<float> logits) {
  const auto vocab = static_cast<int64_t>(logits.size());
  const float inverse = 1.0f / params_.temperature;
  candidates_.clear();
  if (params_.top_k > 0 && params_.top_k < vocab) {
    // The k best by a bounded heap: most logits fail its first comparison. Ties with the k-th stay, as in transformers.
    std::vector<float> heap(logits.begin(), logits.begin() + params_.top_k);
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
    for (int64_t i = params_.top_k; i < vocab; ++i) {
      if (logits[i] <= heap.front()) continue;
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      heap.back() = logits[i];
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
    for (int64_t i = 0; i < vocab; ++i) {
      if (logits[i] >= heap.front() && logits[i] != kMinusInf)
        candidates_.push_back({static_cast<int32_t>(i), logits[i]});
    }
  } else {
    for (int64_t i = 0; i < vocab; ++i) {
      if (logits[i] != kMinusInf) candidates_.push_back({static_cast<int32_t>(i), logits[i]});
    }
  }
  if (candidates_.empty()) return candidates_;
  float max = kMinusInf;
  for (const Candidate& c : candidates_) max = std::max(max, c.probability);
  double total = 0;
  for (Candidate& c : candidates_) {
    c.probability = std::exp((c.probability - max) * inverse);  // relative to the best: its weight is 1
    total += c.probability;
  }
  if (params_.min_p > 0) {
    // min_p compares with the best after top-p; weights relative to the best do not change by then, so it commutes with
    // top-p's cut except for the mass that top-p counts, which is kept in `total`.
    std::erase_if(candidates_, [&](const Candidate& c) { return c.probability < params_.min_p; });
  }
  std::sort(candidates_.begin(), candidates_.end(), more_probable);
  if (params_.top_p < 1.0f) {
    double mass = 0;
    size_t keep = 0;
    while (keep < candidates_.size() && (keep == 0 || mass < params_.top_p * total))
      mass += candidates_[keep++].probability;
    candidates_.resize(keep);
  }
  total = 0;
  for (const Candidate& c : candidates_) total += c.probability;
  for (Candidate& c : candidates_) c.probability = static_cast<float>(c.probability / total);
  return candidates_;
}

int32_t Sampler::sample(std::span<float> logits, std::span<const int32_t> history, std::span<const int32_t> suppressed,
                        const uint32_t* mask) {
  bool nan = false;
  for (const float logit : logits) nan |= std::isnan(logit);
  if (nan) throw std::runtime_error("the model gave NaN logits");
  penalize(logits, history);
  for (const int32_t token : suppressed) logits[token] = kMinusInf;
  if (mask != nullptr) apply_mask(logits, mask);
  if (!params_.do_sample) {
    const auto best = std::max_element(logits.begin(), logits.end());
    if (!std::isfinite(*best)) throw std::runtime_error("no token has a finite logit");
    return static_cast<int32_t>(best - logits.begin());
  }
  const std::vector<Candidate>& all = candidates(logits);
  if (all.empty() || !std::isfinite(all[0].probability)) throw std::runtime_error("no token has a finite logit");
  double left = uniform(params_.seed, params_.stream, history.size());
  for (const Candidate& c : all) {
    left -= c.probability;
    if (left < 0) return c.token;
  }
  return all.back().token;
}

}  // namespace lfm
