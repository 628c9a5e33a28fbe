#include "runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/kernels.h"
#include "runtime/random.h"

namespace lfm {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr float kLowest = std::numeric_limits<float>::lowest();

bool more_probable(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
}

}  // namespace

void SamplingParams::validate() const {
  if (!do_sample) return;
  check(std::isfinite(temperature) && temperature > 0, "temperature must be > 0, not ", temperature);
  check(top_k >= 0, "top_k must be >= 0, not ", top_k);
  check(top_p > 0 && top_p <= 1, "top_p must be in (0, 1], not ", top_p);
  check(min_p >= 0 && min_p <= 1, "min_p must be in [0, 1], not ", min_p);
  check(typical_p > 0 && typical_p <= 1, "typical_p must be in (0, 1], not ", typical_p);
  check(epsilon_cutoff >= 0 && epsilon_cutoff < 1, "epsilon_cutoff must be in [0, 1), not ", epsilon_cutoff);
  check(eta_cutoff >= 0 && eta_cutoff < 1, "eta_cutoff must be in [0, 1), not ", eta_cutoff);
}

bool SamplingParams::keeps_all(size_t vocab) const {
  return (top_k == 0 || top_k >= static_cast<int64_t>(vocab)) && top_p == 1.0f && min_p == 0.0f && typical_p == 1.0f &&
         epsilon_cutoff == 0.0f && eta_cutoff == 0.0f;
}

void Sampler::normalize_candidates() {
  double total = 0;
  for (const Candidate& c : candidates_) total += c.probability;
  for (Candidate& c : candidates_) c.probability = static_cast<float>(c.probability / total);
}

// Keeps the candidates whose information is closest to the expected one and that together reach typical_p.
void Sampler::keep_typical() {
  double entropy = 0;
  for (const Candidate& c : candidates_) {
    if (c.probability > 0) entropy -= c.probability * std::log(double{c.probability});
  }
  const auto distance = [&](const Candidate& c) { return std::fabs(-std::log(double{c.probability}) - entropy); };
  std::vector<Candidate> nearest = candidates_;
  std::stable_sort(nearest.begin(), nearest.end(),
                   [&](const Candidate& a, const Candidate& b) { return distance(a) < distance(b); });
  double mass = 0;
  size_t last = 0;
  while (last < nearest.size() && (mass += nearest[last].probability) < params_.typical_p) ++last;
  if (last >= nearest.size()) return;
  const double farthest = distance(nearest[last]);
  std::erase_if(candidates_, [&](const Candidate& c) { return distance(c) > farthest; });
  normalize_candidates();
}

// epsilon_cutoff, then eta_cutoff; the most probable stay in any case.
void Sampler::drop_improbable() {
  const auto drop_below = [&](double least) {
    const float most = candidates_[0].probability;
    std::erase_if(candidates_, [&](const Candidate& c) { return c.probability < least && c.probability < most; });
    normalize_candidates();
  };
  if (params_.epsilon_cutoff > 0) drop_below(params_.epsilon_cutoff);
  if (params_.eta_cutoff > 0) {
    double entropy = 0;
    for (const Candidate& c : candidates_) {
      if (c.probability > 0) entropy -= c.probability * std::log(double{c.probability});
    }
    const double eta = params_.eta_cutoff;
    drop_below(std::min(eta, std::sqrt(eta) * std::exp(-entropy)));
  }
}

// Positive floats are in the order of their bits, whose first twelve make the buckets of weights up to 1.
uint32_t Sampler::bucket_of(const Candidate& c) { return std::bit_cast<uint32_t>(c.probability) >> 20; }

// The bucket in which the most probable candidates come to more than `mass` together, or the last one that holds any:
// so that few are left to sort.
Sampler::Cut Sampler::cut_at(double mass) const {
  std::vector<double> buckets(bucket_of({0, 1.0f}) + 1);
  for (const Candidate& c : candidates_) buckets[bucket_of(c)] += c.probability;
  Cut cut = {0, 0.0};
  double found = 0;
  for (auto b = static_cast<uint32_t>(buckets.size()); b-- > 0 && found <= mass;) {
    if (buckets[b] == 0) continue;
    cut = {b, found};
    found += buckets[b];
  }
  return cut;
}

// Fills maxima_ and max_; whether all logits are less than infinity.
bool Sampler::scan(std::span<const float> logits) {
  maxima_.resize((logits.size() + kLogitBlock - 1) / kLogitBlock);
  const bool valid = active_kernels().block_max(logits.data(), static_cast<int64_t>(logits.size()), maxima_.data());
  max_ = kMinusInf;
  for (const float max : maxima_) max_ = std::max(max_, max);
  return valid;
}

// The first token with the largest logit.
int32_t Sampler::argmax(std::span<const float> logits) const {
  const auto block = std::find(maxima_.begin(), maxima_.end(), max_) - maxima_.begin();
  const auto begin = logits.begin() + block * static_cast<std::ptrdiff_t>(kLogitBlock);
  return static_cast<int32_t>(std::find(begin, logits.end(), max_) - logits.begin());
}

// Fills candidates_ with the tokens, in their order, whose logits are finite and at least `least`; for weights, the
// logits.
void Sampler::collect(std::span<const float> logits, float least) {
  candidates_.clear();
  least = std::max(least, kLowest);
  for (size_t b = 0; b < maxima_.size(); ++b) {
    if (maxima_[b] < least) continue;
    const size_t end = std::min((b + 1) * kLogitBlock, logits.size());
    for (size_t i = b * kLogitBlock; i < end; ++i) {
      if (logits[i] >= least) candidates_.push_back({static_cast<int32_t>(i), logits[i]});
    }
  }
}

// Keeps the k best in candidates_. Ties with the k-th stay, as in transformers.
void Sampler::collect_best(std::span<const float> logits, size_t k) {
  const auto kth = [&](std::vector<float>& values) {
    const auto at = values.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(values.begin(), at, values.end(), std::greater<>());
    return *at;
  };
  // The maxima of the blocks are logits too: the k-th of them is at most the k-th logit, and few logits reach it.
  std::vector<float> values = maxima_;
  collect(logits, k <= values.size() ? kth(values) : kMinusInf);
  if (candidates_.size() <= k) return;
  values.clear();
  for (const Candidate& c : candidates_) values.push_back(c.probability);
  const float least = kth(values);
  std::erase_if(candidates_, [&](const Candidate& c) { return c.probability < least; });
}

// Fills candidates_ with the tokens that top-k leaves and their weights relative to the best; returns their sum. Where
// that sum is not needed, tokens that min_p will drop may be missing.
double Sampler::weigh(std::span<const float> logits) {
  const float inverse = 1.0f / params_.temperature;
  if (params_.top_k > 0 && params_.top_k < static_cast<int64_t>(logits.size())) {
    collect_best(logits, static_cast<size_t>(params_.top_k));
  } else if (params_.min_p > 0 && params_.top_p == 1.0f) {
    // A weight is below min_p where the logit is this far below the best. 1 more than that is beyond what rounding can
    // do, weights that are subnormal numbers included.
    const double least = max_ + double{params_.temperature} * (std::log(double{params_.min_p}) - 1);
    collect(logits, std::nextafter(static_cast<float>(std::max(least, double{kLowest})), kMinusInf));
  } else {
    collect(logits, kMinusInf);
  }
  double total = 0;
  for (Candidate& c : candidates_) {
    c.probability = std::exp((c.probability - max_) * inverse);  // relative to the best: its weight is 1
    total += c.probability;
  }
  return total;
}

const std::vector<Candidate>& Sampler::candidates(std::span<const float> logits) {
  scan(logits);
  filter(logits);
  return candidates_;
}

// Fills candidates_, after scan().
void Sampler::filter(std::span<const float> logits) {
  const double total = weigh(logits);
  if (candidates_.empty()) return;
  if (params_.min_p > 0) {
    // min_p compares with the best after top-p; weights relative to the best do not change by then, so it commutes with
    // top-p's cut except for the mass that top-p counts, which is kept in `total`.
    std::erase_if(candidates_, [&](const Candidate& c) { return c.probability < params_.min_p; });
  }
  if (params_.top_p < 1.0f) {
    // A little more, for sums in another order.
    const Cut cut = cut_at(params_.top_p * total * (1 + 1e-9));
    std::erase_if(candidates_, [&](const Candidate& c) { return bucket_of(c) < cut.bucket; });
  }
  std::sort(candidates_.begin(), candidates_.end(), more_probable);
  if (params_.top_p < 1.0f) {
    double mass = 0;
    size_t keep = 0;
    while (keep < candidates_.size() && (keep == 0 || mass < params_.top_p * total))
      mass += candidates_[keep++].probability;
    candidates_.resize(keep);
  }
  normalize_candidates();
  if (params_.typical_p < 1.0f) keep_typical();
  drop_improbable();
}

int32_t Sampler::sample(std::span<const float> logits, uint64_t position) {
  if (!scan(logits)) {
    const bool nan = std::any_of(logits.begin(), logits.end(), [](float logit) { return std::isnan(logit); });
    throw std::runtime_error(nan ? "the model gave NaN logits" : "a logit is infinite");
  }
  if (!params_.do_sample) {
    if (max_ == kMinusInf) throw std::runtime_error("no token has a finite logit");
    return argmax(logits);
  }
  double left = uniform(params_.seed, params_.stream, position);
  if (params_.keeps_all(logits.size())) {
    // The draw falls into one bucket: only that one needs an order.
    left *= weigh(logits);
    const Cut cut = cut_at(left);
    left -= cut.above;
    std::erase_if(candidates_, [&](const Candidate& c) { return bucket_of(c) != cut.bucket; });
    std::sort(candidates_.begin(), candidates_.end(), more_probable);
  } else {
    filter(logits);
  }
  if (candidates_.empty() || !std::isfinite(candidates_[0].probability)) {
    throw std::runtime_error("no token has a finite logit");
  }
  for (const Candidate& c : candidates_) {
    left -= c.probability;
    if (left < 0) return c.token;
  }
  return candidates_.back().token;
}

void Sampler::write_scores(std::span<float> logits, bool normalize) const {
  if (params_.do_sample && params_.keeps_all(logits.size())) {
    for (float& logit : logits) logit /= params_.temperature;
  } else if (params_.do_sample) {
    std::vector<float> kept;
    for (const Candidate& c : candidates_) kept.push_back(logits[c.token] / params_.temperature);
    std::fill(logits.begin(), logits.end(), kMinusInf);
    for (size_t i = 0; i < kept.size(); ++i) logits[candidates_[i].token] = kept[i];
  }
  if (!normalize) return;
  const double max = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float logit : logits) total += std::exp(logit - max);
  const double log_total = max + std::log(total);
  for (float& logit : logits) logit = static_cast<float>(logit - log_total);
}

}  // namespace lfm
