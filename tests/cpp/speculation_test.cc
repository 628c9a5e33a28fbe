// Speculation changes how many passes are made, and nothing else.
#include <algorithm>
#include <map>

#include "runtime/prompt_lookup.h"
#include "runtime/scheduler.h"
#include "testing.h"

namespace lfm::testing {
namespace {

constexpr int64_t kVocab = 97;

using Tokens = std::vector<int32_t>;

TEST(PromptLookup, ProposesWhatFollowedTheLongestRepetition) {
  const PromptLookup lookup(4);
  EXPECT_EQ(lookup.draft(Tokens{1, 2, 3, 4, 5, 6, 9, 2, 3}, 9), (Tokens{4, 5, 6, 9}));
  EXPECT_EQ(lookup.draft(Tokens{1, 2, 3, 4, 9, 2, 3, 7, 1, 2, 3}, 2), (Tokens{4, 9}));  // longer, though earlier
  EXPECT_EQ(lookup.draft(Tokens{2, 3, 4, 9, 2, 3, 7, 8, 2, 3}, 2), (Tokens{7, 8}));     // the last of two
  EXPECT_EQ(lookup.draft(Tokens{5, 6, 5, 6}, 4), (Tokens{5, 6, 5, 6}));                 // goes on with itself
  EXPECT_EQ(lookup.draft(Tokens{8, 8, 8}, 3), (Tokens{8, 8, 8}));
  EXPECT_TRUE(lookup.draft(Tokens{1, 2, 3, 2}, 4).empty());  // a single token is no repetition
  for (const Tokens& text : {Tokens{}, Tokens{1}, Tokens{1, 1}}) EXPECT_TRUE(lookup.draft(text, 4).empty());
  EXPECT_TRUE(lookup.draft(Tokens{5, 6, 5, 6}, 0).empty());
  EXPECT_TRUE(PromptLookup(0).draft(Tokens{5, 6, 5, 6}, 4).empty());
}

TEST(PromptLookup, LearnsFromWhatBecameOfDrafts) {
  PromptLookup lookup(8);
  const Tokens text = {1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 1, 2}, longer = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4};
  const size_t first = lookup.draft(text, 8).size();
  EXPECT_GE(first, 2u);
  EXPECT_EQ(lookup.draft(text, 1).size(), 1u);
  for (int i = 0; i < 9; ++i) lookup.verified(5, 5);
  EXPECT_EQ(lookup.draft(text, 8).size(), 8u);  // they come: longer ones
  for (int i = 0; i < 4; ++i) lookup.verified(8, 1);
  EXPECT_LT(lookup.draft(text, 8).size(), 8u);
  lookup.verified(3, 0);
  EXPECT_TRUE(lookup.draft(text, 8).empty());  // two tokens are not enough any more
  EXPECT_FALSE(lookup.draft(longer, 8).empty());
  for (int i = 0; i < 50; ++i) lookup.verified(1, 0);
  EXPECT_TRUE(lookup.draft(longer, 8).empty());
  for (int i = 0; i < 4; ++i) lookup.verified(1, 1);
  EXPECT_FALSE(lookup.draft(text, 8).empty());
}

// Tokens taken back by their history leave the state as if they had never come.
TEST(ConvHistory, TakesTokensBackExactly) {
  for (const ModelConfig& config : {lfm2_config(), biased_config(), llama_config()}) {
    const auto model = tiny_model(config, 81).load(ComputeType::f32, 2);
    const Tokens tokens = Rng(82).tokens(140, kVocab), other = Rng(83).tokens(9, kVocab);
    const std::span<const int32_t> all(tokens);
    for (const int64_t start : {0, 1, 60, 63, 64, 128}) {
      for (const int64_t kept : {1, 2, 5, 8}) {
        for (const bool replay : {false, true}) {  // the pass begins with a replay
          SequenceState state = model->new_state(), want = model->new_state();
          if (start > 0) run(*model, state, all.first(static_cast<size_t>(start + replay)), LogitsFor::none);
          if (start > 0 && replay) state.truncate(start);
          ConvHistory history;
          Workspace ws;
          std::vector<float> logits(8 * kVocab);
          const SequenceInput input = {&state,  all.subspan(static_cast<size_t>(start), 8), LogitsFor::last, nullptr, 8,
                                       &history};
          model->forward({&input, 1}, logits.data(), ws);
          const SequenceState copy = state;  // shares the pages that the next pass writes to
          state.truncate(start + kept, history);
          EXPECT_EQ(state.length(), start + kept);
          EXPECT_EQ(state.replay(), 0);
          run(*model, want, all.first(static_cast<size_t>(start + kept)), LogitsFor::none);
          ASSERT_TRUE(same_bits(run(*model, state, other), run(*model, want, other))) << start << " " << kept;
          EXPECT_EQ(copy.length(), start + 8);
          EXPECT_TRUE(throws_naming("the history does not have", [&] { state.truncate(start + 1, history); }));
        }
      }
    }
  }
}

struct Running {
  Tokens prompt, got;
  RequestParams params;
  FinishReason finish = FinishReason::none;
};

// Prompts that repeat themselves, with and without noise.
Tokens repetitive(Rng& rng) {
  const Tokens phrase = rng.tokens(1 + rng.below(12), kVocab);
  Tokens prompt;
  while (prompt.size() < 60) {
    prompt.insert(prompt.end(), phrase.begin(), phrase.end());
    if (rng.below(3) == 0) prompt.push_back(static_cast<int32_t>(rng.below(kVocab)));
  }
  return prompt;
}

TEST(Speculation, EveryTokenIsTheOneThatWouldComeWithout) {
  for (const auto& [type, threads] : {std::pair{ComputeType::f32, 1}, {ComputeType::bf16, 2}, {ComputeType::int8, 1}}) {
    const auto model = tiny_model(lfm2_config(), 84).load(type, threads);
    const auto cache = std::make_shared<PrefixCache>(model, size_t{1} << 24);
    Rng rng(85);
    int64_t accepted = 0, drafted = 0;
    for (int round = 0; round < 12; ++round) {
      Scheduler plain(model, 64), scheduler(model, round % 2 == 0 ? 64 : 5, round % 3 == 0 ? cache : nullptr);
      std::map<int64_t, Running> want, requests;
      for (int i = 0; i < 4; ++i) {
        Running r;
        r.prompt = repetitive(rng);
        r.params.max_new_tokens = 1 + rng.below(40);
        r.params.sampling.do_sample = i % 2 == 1;
        r.params.sampling.temperature = 0.3f;  // such that something repeats
        r.params.sampling.top_k = 3;
        r.params.sampling.seed = static_cast<uint64_t>(round);
        r.params.eos_token_ids = rng.tokens(1, kVocab);
        if (rng.below(3) == 0) r.params.processors.repetition_penalty = 1.1f;
        want.emplace(plain.add(r.prompt, r.params), r);
        r.params.speculation = 1 + rng.below(8);
        requests.emplace(scheduler.add(r.prompt, r.params), r);
      }
      for (auto* run : {&plain, &scheduler}) {
        auto& into = run == &plain ? want : requests;
        while (!run->idle()) {
          for (const StepEvent& event : run->step()) {
            Running& r = into.at(event.request);
            r.got.push_back(event.token);
            r.finish = event.finish;
            if (event.finish != FinishReason::none || rng.below(5) != 0) continue;
            // Tokens that come anyway may be appended at any time.
            const Tokens& sure = want.at(event.request).got;
            if (run == &plain || sure.size() <= r.got.size()) continue;
            const Tokens next(sure.begin() + static_cast<int64_t>(r.got.size()),
                              std::min(sure.end(), sure.begin() + static_cast<int64_t>(r.got.size()) + 3));
            for (const StepEvent& e : scheduler.append(event.request, next)) {
              r.got.push_back(e.token);
              r.finish = e.finish;
            }
          }
        }
      }
      for (const auto& [id, r] : requests) {
        ASSERT_EQ(r.got, want.at(id).got) << compute_type_name(type) << ", round " << round;
        ASSERT_EQ(r.finish, want.at(id).finish);
      }
      drafted += scheduler.drafted_tokens();
      accepted += scheduler.accepted_tokens();
      EXPECT_EQ(plain.drafted_tokens(), 0);
    }
    EXPECT_GT(accepted, 20);
    EXPECT_GT(drafted, accepted);
  }
}

TEST(Speculation, ARepetitionNeedsFewPasses) {
  const auto model = tiny_model(lfm2_config(), 86).load(ComputeType::f32);
  Scheduler scheduler(model, 64);
  const Tokens phrase = Rng(87).tokens(7, kVocab);
  RequestParams params;
  params.max_new_tokens = 90;
  params.speculation = 8;
  const int64_t id = scheduler.add(phrase, params);
  // A mask that leaves one token makes the model say the phrase again and again.
  std::vector<uint32_t> mask((kVocab + 31) / 32);
  size_t count = 0;
  const auto allow = [&] {
    const int32_t token = phrase[count++ % phrase.size()];
    std::fill(mask.begin(), mask.end(), 0u);
    mask[static_cast<size_t>(token / 32)] = 1u << (token % 32);
  };
  allow();
  scheduler.set_mask(id, mask.data());
  Tokens got;
  while (!scheduler.idle()) {
    for (const StepEvent& event : scheduler.step()) {
      got.push_back(event.token);
      allow();
    }
  }
  ASSERT_EQ(got.size(), 90u);
  for (size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], phrase[i % phrase.size()]);
  EXPECT_EQ(scheduler.passes() + scheduler.accepted_tokens(), 90);
  EXPECT_LE(scheduler.passes(), 20);
}

TEST(Speculation, TheStateThatIsKeptEndsWithTheRequest) {
  const auto model = tiny_model(lfm2_config(), 88).load(ComputeType::f32);
  Tokens prompt;
  for (int i = 0; i < 8; ++i) prompt.insert(prompt.end(), {5, 6, 7, 8});
  for (const bool cancel : {false, true}) {
    Scheduler scheduler(model, 64);
    RequestParams params;
    params.max_new_tokens = 12;
    params.speculation = 8;
    const int64_t id = scheduler.add(prompt, params);
    scheduler.use_state(id, model->new_state());
    Tokens all = prompt;
    while (!scheduler.idle()) {
      for (const StepEvent& event : scheduler.step()) all.push_back(event.token);
      if (cancel && all.size() > prompt.size() + 4) scheduler.cancel(id);
    }
    SequenceState state = scheduler.take_state(id);
    EXPECT_LE(state.length(), static_cast<int64_t>(all.size()));
    ASSERT_EQ(state.common_prefix(all), state.length());
    SequenceState fresh = model->new_state();
    run(*model, fresh, std::span(all).first(static_cast<size_t>(state.length())), LogitsFor::none);
    ASSERT_TRUE(same_bits(run(*model, state, prompt), run(*model, fresh, prompt)));
  }
}

}  // namespace
}  // namespace lfm::testing
