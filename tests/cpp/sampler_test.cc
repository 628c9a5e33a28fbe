// Sampling against a direct implementation of transformers' processors, and the random numbers behind the draws.
#include "runtime/sampler.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <set>

#include "runtime/processors.h"
#include "runtime/random.h"
#include "testing.h"

namespace lfm::testing {
namespace {

// Vectors of the authors' Random123 distribution.
TEST(Philox, KnownAnswers) {
  using Counter = std::array<uint32_t, 4>;
  constexpr uint32_t kOnes = 0xffffffffu;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformUsesEveryBitOfItsArguments) {
  std::set<double> seen;
  seen.insert(uniform(0, 0, 0));
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t one = uint64_t{1} << bit;
    for (const double u : {uniform(one, 0, 0), uniform(0, one, 0), uniform(0, 0, one)}) {
      EXPECT_TRUE(u >= 0 && u < 1);
      EXPECT_TRUE(seen.insert(u).second) << bit;
    }
  }
}

// A token as the scheduler samples it.
int32_t sample(const SamplingParams& params, const ProcessorParams& processors, std::vector<float>& logits,
               const std::vector<int32_t>& history, const uint32_t* mask = nullptr) {
  LogitsProcessors(processors).apply(logits, {history, static_cast<int64_t>(history.size()), false, {}, mask});
  return Sampler(params).sample(logits, history.size());
}

struct Want {
  std::vector<Candidate> kept;  // most probable first, ties by id
  bool borderline;              // a cut is too close to a value for fp32 and double to agree
};

// transformers: TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper, each as documented.
Want transformers_warpers(const std::vector<float>& logits, const SamplingParams& p) {
  const size_t vocab = logits.size();
  std::vector<double> scores(vocab), probs;
  for (size_t i = 0; i < vocab; ++i) scores[i] = double{logits[i]} / p.temperature;
  Want want{{}, false};
  const auto softmax = [&] {
    const double top = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    probs.assign(vocab, 0);
    for (size_t i = 0; i < vocab; ++i) total += probs[i] = std::exp(scores[i] - top);
    for (double& x : probs) x /= total;
  };
  if (p.top_k > 0) {
    std::vector<double> sorted = scores;
    std::sort(sorted.rbegin(), sorted.rend());
    const double last = sorted[std::min(vocab, static_cast<size_t>(p.top_k)) - 1];
    for (double& s : scores) s = s < last ? -INFINITY : s;
  }
  if (p.top_p < 1) {
    softmax();
    std::vector<size_t> order(vocab);
    std::iota(order.begin(), order.end(), size_t{0});
    // Ascending; of equal ones the lower id goes last, so that it stays (the engine's rule).
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return scores[a] != scores[b] ? scores[a] < scores[b] : a > b; });
    double cumulative = 0;
    for (size_t i = 0; i + 1 < vocab; ++i) {  // min_tokens_to_keep = 1
      cumulative += probs[order[i]];
      if (probs[order[i]] > 0 && std::fabs(cumulative - (1 - double{p.top_p})) < 1e-5) want.borderline = true;
      if (cumulative <= 1 - double{p.top_p}) scores[order[i]] = -INFINITY;
    }
  }
  if (p.min_p > 0) {
    softmax();
    const double least = p.min_p * *std::max_element(probs.begin(), probs.end());
    for (size_t i = 0; i < vocab; ++i) {
      if (std::fabs(probs[i] / least - 1) < 1e-5) want.borderline = true;
      if (probs[i] < least) scores[i] = -INFINITY;
    }
  }
  softmax();
  for (size_t i = 0; i < vocab; ++i) {
    if (scores[i] != -INFINITY) want.kept.push_back({static_cast<int32_t>(i), static_cast<float>(probs[i])});
  }
  std::stable_sort(want.kept.begin(), want.kept.end(),
                   [](const Candidate& a, const Candidate& b) { return a.probability > b.probability; });
  return want;
}

TEST(Sampler, CandidatesAreThoseOfTransformers) {
  Rng rng(3);
  int compared = 0;
  for (int i = 0; i < 3000; ++i) {
    SamplingParams p;
    p.do_sample = true;
    p.temperature = 0.1f + 2 * static_cast<float>(rng.uniform());
    if (rng.below(2) == 0) p.top_k = 1 + rng.below(80);
    if (rng.below(2) == 0) p.top_p = static_cast<float>(rng.uniform() * 0.98 + 0.01);
    if (rng.below(2) == 0) p.min_p = static_cast<float>(rng.uniform() * 0.5);
    std::vector<float> logits = rng.normals(1 + rng.below(60), 3.0f);
    for (float& l : logits) {
      if (rng.below(4) == 0) l = std::round(l);  // ties, also with the k-th
      if (rng.below(10) == 0) l = -INFINITY;
    }
    if (*std::max_element(logits.begin(), logits.end()) == -INFINITY) continue;
    const Want want = transformers_warpers(logits, p);
    if (want.borderline) continue;
    ++compared;
    Sampler sampler(p);
    const std::vector<Candidate>& got = sampler.candidates(logits);
    ASSERT_EQ(got.size(), want.kept.size()) << "case " << i << ": top_k " << p.top_k << ", top_p " << p.top_p
                                            << ", min_p " << p.min_p << ", temperature " << p.temperature;
    for (size_t j = 0; j < got.size(); ++j) {
      ASSERT_EQ(got[j].token, want.kept[j].token) << "case " << i;
      ASSERT_NEAR(got[j].probability, want.kept[j].probability, 1e-5) << "case " << i;
    }
  }
  EXPECT_GT(compared, 2800);
}

// What the sampler computes, without skipping anything: the same float arithmetic over every logit.
std::vector<Candidate> plain_candidates(const std::vector<float>& logits, const SamplingParams& p) {
  std::vector<float> sorted = logits;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const bool top_k = p.top_k > 0 && static_cast<size_t>(p.top_k) < logits.size();
  const float least = top_k ? sorted[static_cast<size_t>(p.top_k) - 1] : -INFINITY;
  const float inverse = 1.0f / p.temperature;
  std::vector<Candidate> kept;
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] < least || logits[i] == -INFINITY) continue;
    kept.push_back({static_cast<int32_t>(i), std::exp((logits[i] - sorted[0]) * inverse)});
    total += kept.back().probability;
  }
  if (p.min_p > 0) std::erase_if(kept, [&](const Candidate& c) { return c.probability < p.min_p; });
  std::stable_sort(kept.begin(), kept.end(),
                   [](const Candidate& a, const Candidate& b) { return a.probability > b.probability; });
  if (p.top_p < 1) {
    double mass = 0;
    size_t keep = 0;
    while (keep < kept.size() && (keep == 0 || mass < p.top_p * total)) mass += kept[keep++].probability;
    kept.resize(keep);
  }
  double left = 0;
  for (const Candidate& c : kept) left += c.probability;
  for (Candidate& c : kept) c.probability = static_cast<float>(c.probability / left);
  return kept;
}

// Rows on which skipping could go wrong: ties, masks, logits next to where min_p cuts, numbers of every size.
std::vector<float> hard_row(Rng& rng, const SamplingParams& p) {
  const int64_t vocab = 1 + rng.below(rng.below(8) == 0 ? 5000 : 300);
  std::vector<float> row = rng.normals(static_cast<size_t>(vocab), 3.0f);
  const int64_t kind = rng.below(6);
  if (kind == 1) std::sort(row.begin(), row.end());
  if (kind == 2) std::fill(row.begin(), row.end(), -1.5f);
  for (float& logit : row) {
    if (kind == 3) logit = std::round(logit / 2);  // zeros of both signs too
    if (kind == 4) logit = std::ldexp(logit, static_cast<int>(rng.below(240)) - 120);
    if (kind == 5) {
      const auto ulps = static_cast<float>(rng.below(9) - 4);
      logit = p.temperature * std::log(p.min_p > 0 ? p.min_p : 0.1f) * (1 + ulps * 0x1p-23f);
    }
  }
  if (kind == 5) row[static_cast<size_t>(rng.below(vocab))] = 0;
  if (rng.below(3) == 0) {
    const int64_t share = 2 + rng.below(30);
    for (float& logit : row) logit = rng.below(share) == 0 ? logit : -INFINITY;
    row[static_cast<size_t>(rng.below(vocab))] = 1;
  }
  return row;
}

TEST(Sampler, SkippingChangesNoBit) {
  Rng rng(17);
  const float least[] = {1e-45f, 1e-40f, 1e-6f, 0.15f, 0.5f, 1.0f};
  const float temperatures[] = {1e-38f, 0.01f, 0.1f, 0.3f, 1.0f, 50.0f, 1e38f};
  for (int i = 0; i < 4000; ++i) {
    SamplingParams p;
    p.temperature = temperatures[rng.below(7)];
    if (rng.below(2) == 0) p.min_p = least[rng.below(6)];
    if (rng.below(3) == 0) p.top_p = static_cast<float>(rng.uniform() * 0.98 + 0.01);
    if (rng.below(2) == 0) p.top_k = 1 + rng.below(rng.below(2) == 0 ? 8 : 400);
    p.seed = static_cast<uint64_t>(i);
    const std::vector<float> row = hard_row(rng, p);
    ASSERT_EQ(Sampler(p).sample(row, 0), std::max_element(row.begin(), row.end()) - row.begin()) << "case " << i;
    p.do_sample = true;
    const std::vector<Candidate> want = plain_candidates(row, p);
    Sampler sampler(p);
    sampler.candidates(hard_row(rng, p));  // what another row left must not matter
    const std::vector<Candidate>& got = sampler.candidates(row);
    const auto about = [&] {
      return "case " + std::to_string(i) + ": vocab " + std::to_string(row.size()) + ", top_k " +
             std::to_string(p.top_k) + ", top_p " + std::to_string(p.top_p) + ", min_p " + std::to_string(p.min_p) +
             ", temperature " + std::to_string(p.temperature);
    };
    ASSERT_EQ(got.size(), want.size()) << about();
    for (size_t j = 0; j < got.size(); ++j) {
      ASSERT_EQ(got[j].token, want[j].token) << about();
      ASSERT_EQ(got[j].probability, want[j].probability) << about();
    }
    if (p.keeps_all(row.size())) continue;
    double left = uniform(p.seed, p.stream, 3);
    size_t drawn = 0;
    while (drawn + 1 < want.size() && (left -= want[drawn].probability) >= 0) ++drawn;
    ASSERT_EQ(sampler.sample(row, 3), want[drawn].token) << about();
  }
}

TEST(Sampler, ABadLogitAnywhereIsNamed) {
  Rng rng(18);
  for (int i = 0; i < 3000; ++i) {
    SamplingParams p;
    p.do_sample = rng.below(2) == 0;
    p.top_k = rng.below(3) * 5;
    if (rng.below(2) == 0) p.min_p = 0.1f;
    std::vector<float> row = hard_row(rng, p);
    const auto put = [&](float bad) { row[static_cast<size_t>(rng.below(static_cast<int64_t>(row.size())))] = bad; };
    const char* want = "a logit is infinite";
    put(INFINITY);
    if (rng.below(2) == 0) {
      put(rng.below(2) == 0 ? NAN : -NAN);
      want = "the model gave NaN logits";
    }
    if (rng.below(8) == 0) {
      std::fill(row.begin(), row.end(), -INFINITY);
      want = "no token has a finite logit";
    }
    try {
      Sampler(p).sample(row, 0);
      FAIL() << "case " << i;
    } catch (const std::runtime_error& error) {
      ASSERT_STREQ(error.what(), want) << "case " << i;
    }
  }
}

TEST(Sampler, GreedyTakesTheLowestIdOfATie) {
  Sampler greedy{SamplingParams{}};
  std::vector<float> logits = {1, 3, 2, 3, -INFINITY};
  EXPECT_EQ(greedy.sample(logits, 0), 1);
  ProcessorParams suppressed;
  suppressed.suppress_tokens = {1};
  EXPECT_EQ(sample({}, suppressed, logits, {}), 3);
  std::vector<float> one = {-INFINITY, -1e30f};
  EXPECT_EQ(greedy.sample(one, 0), 1);
}

TEST(Sampler, TokensOutsideTheMaskAreNeverChosen) {
  Rng rng(91);
  for (const int64_t vocab : {1, 31, 32, 33, 97}) {
    std::vector<uint32_t> mask(static_cast<size_t>((vocab + 31) / 32));
    const auto allowed = [&](int64_t i) { return (mask[static_cast<size_t>(i / 32)] >> (i % 32) & 1) != 0; };
    for (int round = 0; round < 40; ++round) {
      std::vector<float> logits(static_cast<size_t>(vocab));
      for (float& logit : logits) logit = static_cast<float>(rng.below(2000)) / 100.0f - 10.0f;
      for (uint32_t& word : mask) {
        const int64_t kind = rng.below(4);  // words that allow all or nothing are taken as a whole
        word = kind == 0 ? 0 : kind == 1 ? ~uint32_t{0} : static_cast<uint32_t>(rng.below(int64_t{1} << 32));
      }
      const int64_t one = rng.below(vocab);
      mask[static_cast<size_t>(one / 32)] |= uint32_t{1} << (one % 32);
      const std::vector<int32_t> history = rng.tokens(5, vocab);
      SamplingParams p;
      ProcessorParams penalty;
      penalty.repetition_penalty = 1.5f;
      // The penalty comes first: it can move the argmax among the allowed.
      int64_t best = -1;
      const auto penalized = [&](int64_t i) {
        const float logit = logits[static_cast<size_t>(i)];
        if (std::find(history.begin(), history.end(), i) == history.end()) return logit;
        return logit < 0 ? logit * 1.5f : logit / 1.5f;
      };
      for (int64_t i = 0; i < vocab; ++i) {
        if (allowed(i) && (best < 0 || penalized(i) > penalized(best))) best = i;
      }
      std::vector<float> row = logits;
      ASSERT_EQ(sample(p, penalty, row, history, mask.data()), best);
      p.do_sample = true;
      p.seed = static_cast<uint64_t>(round);
      p.top_k = rng.below(2) * 5;
      p.temperature = 5.0f;
      row = logits;
      ASSERT_TRUE(allowed(sample(p, penalty, row, history, mask.data())));
    }
    std::vector<float> logits(static_cast<size_t>(vocab), 1.0f);
    std::fill(mask.begin(), mask.end(), 0u);
    EXPECT_THROW(sample({}, {}, logits, {}, mask.data()), std::runtime_error);
    ProcessorParams suppressed;
    suppressed.suppress_tokens = {0};
    mask[0] = 1;  // what is allowed may be suppressed: nothing is left
    EXPECT_THROW(sample({}, suppressed, logits, {}, mask.data()), std::runtime_error);
  }
}

TEST(Sampler, TopKKeepsTiesWithTheLast) {
  SamplingParams p;
  p.do_sample = true;
  p.top_k = 2;
  Sampler sampler(p);
  std::vector<float> logits = {0, 2, 1, 2, 2, 1};
  const std::vector<Candidate>& kept = sampler.candidates(logits);
  ASSERT_EQ(kept.size(), 3u);
  EXPECT_EQ(kept[0].token, 1);
  EXPECT_EQ(kept[1].token, 3);
  EXPECT_EQ(kept[2].token, 4);
}

TEST(Sampler, PenaltyOncePerTokenDividesOrMultipliesBySign) {
  SamplingParams p;
  ProcessorParams processors;
  processors.repetition_penalty = 1.5f;
  const std::vector<float> before = {3.0f, 2.9f, -1.0f, -1.2f, 0.0f};
  std::vector<float> logits = before;
  const std::vector<int32_t> history = {0, 2, 0, 4, 0, 2};
  EXPECT_EQ(sample(p, processors, logits, history), 1);
  EXPECT_EQ(logits, (std::vector<float>{3.0f / 1.5f, 2.9f, -1.0f * 1.5f, -1.2f, 0.0f}));
  // Nothing of a row is left for the next one.
  LogitsProcessors again(processors);
  std::vector<float> first = before, second = before;
  again.apply(first, {history, 0, false, {}, nullptr});
  again.apply(second, {history, 0, false, {}, nullptr});
  EXPECT_EQ(first, logits);
  EXPECT_EQ(second, logits);
  // The penalty comes before the temperature and the suppression.
  p.do_sample = true;
  p.temperature = 0.5f;
  logits = before;
  processors.suppress_tokens = {1};
  EXPECT_NE(sample(p, processors, logits, history), 1);
  EXPECT_EQ(logits[0], 3.0f / 1.5f);
  EXPECT_EQ(logits[1], -INFINITY);
}

// 20,000 draws by position, by stream and by seed follow the probabilities (chi-square, p = 1e-4 at 7 degrees: 29.9).
TEST(Sampler, DrawsFollowTheProbabilities) {
  SamplingParams p;
  p.do_sample = true;
  constexpr int kDraws = 20000;
  const std::vector<float> logits = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, -2.0f, 1.5f, 0.3f};
  std::vector<float> copy = logits;
  std::vector<double> expected(8);
  Sampler exact(p);
  for (const Candidate& c : exact.candidates(copy)) expected[c.token] = c.probability * double{kDraws};
  for (const int what : {0, 1, 2}) {
    std::vector<int> count(8);
    for (int i = 0; i < kDraws; ++i) {
      p.seed = what == 2 ? i : 42;
      p.stream = what == 1 ? i : 0;
      copy = logits;
      Sampler sampler(p);
      ++count[sampler.sample(copy, what == 0 ? i : 9)];
    }
    double chi2 = 0;
    for (int k = 0; k < 8; ++k) chi2 += (count[k] - expected[k]) * (count[k] - expected[k]) / expected[k];
    EXPECT_LT(chi2, 29.9) << "by " << (what == 0 ? "position" : what == 1 ? "stream" : "seed");
    EXPECT_GT(chi2, 0.3);  // not suspiciously even either
  }
}

TEST(Sampler, DrawsDependOnSeedStreamAndPositionAlone) {
  const std::vector<float> logits = Rng(8).normals(500);
  const auto draws = [&](uint64_t seed, uint64_t stream, bool backwards) {
    SamplingParams p;
    p.do_sample = true;
    p.seed = seed;
    p.stream = stream;
    Sampler sampler(p);
    std::vector<int32_t> out(64);
    for (size_t i = 0; i < 64; ++i) {
      const size_t position = backwards ? 63 - i : i;
      std::vector<float> copy = logits;
      out[position] = sampler.sample(copy, position);
    }
    return out;
  };
  const std::vector<int32_t> first = draws(1, 0, false);
  EXPECT_EQ(first, draws(1, 0, true));
  EXPECT_NE(first, draws(2, 0, false));
  EXPECT_NE(first, draws(1, 1, false));
  EXPECT_NE(first, draws(uint64_t{1} << 32 | 1, 0, false));
  EXPECT_GT(std::set<int32_t>(first.begin(), first.end()).size(), 30u);
}

TEST(Sampler, ThrowsWithoutAFiniteLogit) {
  for (const bool do_sample : {false, true}) {
    for (const int64_t top_k : {0, 3}) {
      SamplingParams p;
      p.do_sample = do_sample;
      p.top_k = top_k;
      p.min_p = 0.1f;
      Sampler sampler(p);
      for (const float bad : {NAN, -INFINITY, INFINITY}) {
        std::vector<float> logits(50, bad);
        EXPECT_THROW(sampler.sample(logits, 0), std::runtime_error) << do_sample << " " << top_k << " " << bad;
      }
      std::vector<float> one = {1.0f};
      ProcessorParams suppressed;
      suppressed.suppress_tokens = {0};
      EXPECT_THROW(sample(p, suppressed, one, {}), std::runtime_error);
    }
  }
}

// NaN among finite logits: an exception or one of the others, never memory out of range (the sanitizers look on).
TEST(Sampler, SomeNaNsAreThrownOrNotChosen) {
  Rng rng(77);
  for (int i = 0; i < 2000; ++i) {
    SamplingParams p;
    p.do_sample = rng.below(4) != 0;
    p.top_k = rng.below(3) * 20;
    if (rng.below(2) == 0) p.top_p = 0.9f;
    if (rng.below(2) == 0) p.min_p = 0.05f;
    std::vector<float> logits = rng.normals(1 + rng.below(300));
    for (int64_t nans = 1 + rng.below(rng.below(2) == 0 ? 4 : 200); nans > 0; --nans)
      logits[rng.below(logits.size())] = NAN;
    const std::vector<float> before = logits;
    Sampler sampler(p);
    std::optional<int32_t> token;
    try {
      token = sampler.sample(logits, 0);
    } catch (const std::runtime_error&) {
      continue;
    }
    ASSERT_TRUE(*token >= 0 && *token < static_cast<int32_t>(before.size()));
    ASSERT_TRUE(std::isfinite(before[*token])) << "case " << i << ": do_sample " << p.do_sample << ", top_k " << p.top_k
                                               << ", top_p " << p.top_p << ", min_p " << p.min_p;
  }
}

TEST(Sampler, ParametersOutOfRangeAreNamed) {
  const auto rejects = [](const char* name, auto set) {
    SamplingParams p;
    p.do_sample = true;
    set(p);
    return throws_naming(name, [&] { Sampler{p}; });
  };
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY}) {
    EXPECT_TRUE(rejects("temperature", [&](SamplingParams& p) { p.temperature = bad; }));
    ProcessorParams processors;
    processors.repetition_penalty = bad;
    EXPECT_TRUE(throws_naming("repetition_penalty", [&] { processors.validate(10); }));
  }
  for (const float bad : {0.0f, 1.01f, NAN}) EXPECT_TRUE(rejects("top_p", [&](SamplingParams& p) { p.top_p = bad; }));
  for (const float bad : {-0.1f, 1.01f, NAN}) EXPECT_TRUE(rejects("min_p", [&](SamplingParams& p) { p.min_p = bad; }));
  for (const float bad : {0.0f, 1.01f, NAN})
    EXPECT_TRUE(rejects("typical_p", [&](SamplingParams& p) { p.typical_p = bad; }));
  for (const float bad : {-0.1f, 1.0f, NAN}) {
    EXPECT_TRUE(rejects("epsilon_cutoff", [&](SamplingParams& p) { p.epsilon_cutoff = bad; }));
    EXPECT_TRUE(rejects("eta_cutoff", [&](SamplingParams& p) { p.eta_cutoff = bad; }));
  }
  EXPECT_TRUE(rejects("top_k", [](SamplingParams& p) { p.top_k = -1; }));
}

}  // namespace
}  // namespace lfm::testing
