// The cache gives back what was put in, up to any token, within its budget, the least recently used going first.
#include "runtime/prefix_cache.h"

#include "testing.h"

namespace lfm::testing {
namespace {

constexpr int64_t kVocab = 97;

// Logits of `tail` after `state`, and after `prefix` from scratch.
::testing::AssertionResult goes_on(const Model& model, SequenceState state, std::span<const int32_t> prefix) {
  SequenceState fresh = model.new_state();
  if (!prefix.empty()) run(model, fresh, prefix, LogitsFor::none);
  const int32_t tail[] = {1, 2, 3};
  return same_bits(run(model, state, tail), run(model, fresh, tail));
}

struct Cached {
  explicit Cached(size_t pages)
      : model(tiny_model(lfm2_config(), 60).load(ComputeType::bf16, 2)), cache(model, pages * page_bytes()) {}
  // What a page counts for.
  size_t page_bytes() const {
    PrefixCache one(model, size_t{1} << 20);
    SequenceState state = model->new_state();
    run(*model, state, std::vector<int32_t>{1}, LogitsFor::none);
    one.insert(state);
    return one.nbytes();
  }
  void insert(std::span<const int32_t> tokens) {
    SequenceState state = model->new_state();
    run(*model, state, tokens, LogitsFor::none);
    cache.insert(state);
  }
  std::shared_ptr<const Model> model;
  PrefixCache cache;
};

TEST(PrefixCache, RandomPromptsMatchAsFarAsTheLongestOfThem) {
  Cached c(1000);
  Rng rng(61);
  std::vector<std::vector<int32_t>> all;
  for (int i = 0; i < 60; ++i) {
    // Two values, so that prompts share prefixes of all lengths; some go on from others.
    std::vector<int32_t> tokens = rng.tokens(1 + rng.below(150), i % 2 == 0 ? 2 : kVocab);
    if (i % 3 != 0) {
      const auto& other = all[static_cast<size_t>(rng.below(i))];
      tokens.insert(tokens.begin(), other.begin(), other.begin() + rng.below(static_cast<int64_t>(other.size()) + 1));
    }
    int64_t want = 0;
    for (const auto& other : all) {
      want = std::max(want,
                      std::mismatch(tokens.begin(), tokens.end(), other.begin(), other.end()).first - tokens.begin());
    }
    ASSERT_EQ(c.cache.match(tokens), want) << i;
    const SequenceState found = c.cache.find(tokens);
    ASSERT_EQ(found.length(), want);
    ASSERT_EQ(found.common_prefix(tokens), want);
    ASSERT_TRUE(goes_on(*c.model, found, std::span(tokens).first(static_cast<size_t>(want)))) << i;
    c.insert(tokens);
    all.push_back(tokens);
    ASSERT_EQ(c.cache.match(tokens), static_cast<int64_t>(tokens.size())) << i;
  }
  const size_t full = c.cache.nbytes();
  for (const auto& tokens : all) c.insert(tokens);
  EXPECT_EQ(c.cache.nbytes(), full);  // nothing new
  c.cache.clear();
  EXPECT_EQ(c.cache.nbytes(), 0u);
  EXPECT_EQ(c.cache.match(all[5]), 0);
}

TEST(PrefixCache, WritingOnDoesNotTouchWhatIsCached) {
  Cached c(100);
  const std::vector<int32_t> tokens = Rng(62).tokens(100, kVocab), other = Rng(63).tokens(30, kVocab);
  SequenceState state = c.model->new_state();
  run(*c.model, state, tokens, LogitsFor::none);
  c.cache.insert(state);
  EXPECT_EQ(state.shared_nbytes(), 2 * state.layout().page_bytes);
  run(*c.model, state, other, LogitsFor::none);
  SequenceState found = c.cache.find(tokens);
  run(*c.model, found, other, LogitsFor::none);
  EXPECT_TRUE(goes_on(*c.model, c.cache.find(tokens), tokens));
  std::vector<int32_t> longer = tokens;
  longer.insert(longer.end(), other.begin(), other.end());
  EXPECT_TRUE(goes_on(*c.model, found, longer));
  EXPECT_TRUE(goes_on(*c.model, state, longer));
}

TEST(PrefixCache, TheLeastRecentlyUsedGoesFirst) {
  Cached c(5);
  const std::vector<int32_t> trunk = Rng(64).tokens(128, kVocab);
  const auto branch = [&](int32_t token) {
    std::vector<int32_t> tokens = trunk;
    tokens.insert(tokens.end(), 10, token);
    return tokens;
  };
  for (const int32_t token : {1, 2, 3}) c.insert(branch(token));
  EXPECT_EQ(c.cache.nbytes(), c.cache.max_bytes());
  c.cache.find(branch(1));
  c.insert(branch(4));
  EXPECT_EQ(c.cache.match(branch(2)), 128);
  for (const int32_t token : {1, 3, 4}) EXPECT_EQ(c.cache.match(branch(token)), 138);
  const std::vector<int32_t> unrelated = Rng(65).tokens(300, kVocab);
  c.insert(unrelated);  // five pages
  EXPECT_EQ(c.cache.match(branch(4)), 0);
  EXPECT_EQ(c.cache.match(unrelated), 300);
  c.cache.set_max_bytes(c.cache.max_bytes() / 5 * 2);
  EXPECT_EQ(c.cache.match(unrelated), 128);
  c.cache.set_max_bytes(0);
  c.insert(trunk);
  EXPECT_EQ(c.cache.nbytes(), 0u);
  const auto stranger = tiny_model(lfm2_config(), 66).load(ComputeType::bf16);
  EXPECT_TRUE(throws_naming("belongs to another model", [&] { c.cache.insert(stranger->new_state()); }));
}

}  // namespace
}  // namespace lfm::testing
