// Requests that join, leave and are cancelled at any time get the tokens that each would get alone.
#include "runtime/scheduler.h"

#include <algorithm>
#include <limits>
#include <map>

#include "testing.h"

namespace lfm::testing {
namespace {

constexpr int64_t kVocab = 97;

struct Result {
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::none;
};

Result alone(const std::shared_ptr<const Model>& model, const std::vector<int32_t>& prompt, const RequestParams& params,
             int64_t chunk = 1000) {
  Scheduler scheduler(model, chunk);
  const int64_t id = scheduler.add(prompt, params);
  Result result;
  while (!scheduler.idle()) {
    for (const StepEvent& event : scheduler.step()) {
      EXPECT_EQ(event.request, id);
      EXPECT_EQ(result.finish, FinishReason::none) << "a token after the last one";
      result.tokens.push_back(event.token);
      result.finish = event.finish;
    }
  }
  return result;
}

RequestParams greedy(int64_t max_new_tokens) {
  RequestParams params;
  params.max_new_tokens = max_new_tokens;
  return params;
}

TEST(Scheduler, EachRequestGetsWhatItGetsAlone) {
  for (const auto& [type, threads] : {std::pair{ComputeType::f32, 2}, {ComputeType::bf16, 1}, {ComputeType::int8, 1}}) {
    const auto model = tiny_model(lfm2_config(), 41).load(type, threads);
    Rng rng(42);
    for (const int64_t chunk : {1, 32, 500}) {
      struct Running {
        std::vector<int32_t> prompt, got;
        RequestParams params;
        FinishReason finish = FinishReason::none;
        bool cancelled = false;
      };
      std::map<int64_t, Running> requests;
      Scheduler scheduler(model, chunk);
      int steps = 0;
      while (requests.size() < 12 || !scheduler.idle()) {
        if (requests.size() < 12 && (scheduler.idle() || rng.below(3) == 0)) {
          Running r;
          r.prompt = rng.tokens(1 + rng.below(chunk == 1 ? 20 : 140), kVocab);
          r.params = greedy(1 + rng.below(12));
          r.params.sampling.do_sample = rng.below(2) == 0;
          r.params.sampling.top_k = rng.below(2) * 20;
          r.params.sampling.seed = 7;
          r.params.sampling.stream = requests.size();
          if (rng.below(2) == 0) r.params.processors.repetition_penalty = 1.2f;
          r.params.eos_token_ids = rng.tokens(3, kVocab);
          const int64_t id = scheduler.add(r.prompt, r.params);
          ASSERT_TRUE(requests.emplace(id, r).second) << "an id was given twice";
        }
        if (rng.below(12) == 0) {
          const auto victim = std::next(requests.begin(), rng.below(static_cast<int64_t>(requests.size())));
          scheduler.cancel(victim->first);  // finished ones too: ignored
          victim->second.cancelled = true;
        }
        int64_t last = -1;
        for (const StepEvent& event : scheduler.step()) {
          Running& r = requests.at(event.request);
          ASSERT_GT(event.request, last);  // in the order of adding, at most one token each
          last = event.request;
          ASSERT_TRUE(!r.cancelled && r.finish == FinishReason::none);
          r.got.push_back(event.token);
          r.finish = event.finish;
        }
        ASSERT_LT(++steps, 5000);
      }
      for (const auto& [id, r] : requests) {
        Result want = alone(model, r.prompt, r.params);
        ASSERT_TRUE(r.cancelled || r.finish == want.finish) << id;
        if (r.finish == FinishReason::none) {  // cancelled: what came until then
          ASSERT_LE(r.got.size(), want.tokens.size());
          want.tokens.resize(r.got.size());
        }
        ASSERT_EQ(r.got, want.tokens) << "request " << id << ", chunk " << chunk << ", " << compute_type_name(type);
      }
    }
  }
}

TEST(Scheduler, GreedyTokensAreTheArgmaxOfTheModel) {
  const auto model = tiny_model(llama_config(), 43).load(ComputeType::f32);
  std::vector<int32_t> tokens = Rng(44).tokens(30, kVocab);
  const Result got = alone(model, tokens, greedy(10), 7);
  for (const int32_t token : got.tokens) {
    SequenceState state = model->new_state();
    const std::vector<float> logits = run(*model, state, tokens, LogitsFor::last);
    ASSERT_EQ(token, std::max_element(logits.begin(), logits.end()) - logits.begin());
    tokens.push_back(token);
  }
  EXPECT_EQ(got.tokens.size(), 10u);
  EXPECT_EQ(got.finish, FinishReason::length);
}

TEST(Scheduler, EndOfSequenceAndMinimumLength) {
  const auto model = tiny_model(lfm2_config(), 45).load(ComputeType::f32);
  const std::vector<int32_t> prompt = Rng(46).tokens(9, kVocab);
  RequestParams params = greedy(12);
  params.processors.repetition_penalty = 1.3f;  // varied tokens
  const Result plain = alone(model, prompt, params);
  ASSERT_EQ(plain.tokens.size(), 12u);
  const int32_t eos = plain.tokens[4];
  const auto first = std::find(plain.tokens.begin(), plain.tokens.end(), eos) - plain.tokens.begin();
  params.eos_token_ids = {eos};
  const Result stopped = alone(model, prompt, params);
  EXPECT_EQ(stopped.finish, FinishReason::stop);
  EXPECT_EQ(stopped.tokens, std::vector<int32_t>(plain.tokens.begin(), plain.tokens.begin() + first + 1));
  // On the last allowed token it is still a stop.
  params.max_new_tokens = first + 1;
  EXPECT_EQ(alone(model, prompt, params).finish, FinishReason::stop);
  params.max_new_tokens = 12;
  for (const int64_t least : {first + 1, int64_t{12}}) {
    params.processors.min_new_tokens = least;
    const Result longer = alone(model, prompt, params);
    EXPECT_GT(static_cast<int64_t>(longer.tokens.size()), first);
    for (int64_t i = 0; i < least; ++i) EXPECT_NE(longer.tokens[static_cast<size_t>(i)], eos) << least;
  }
  params.processors.min_new_tokens = first;  // the minimum counts new tokens alone, and ends with it
  EXPECT_EQ(alone(model, prompt, params).tokens, stopped.tokens);
}

TEST(Scheduler, AppendedTokensEqualSampledOnes) {
  for (const ComputeType type : {ComputeType::f32, ComputeType::bf16, ComputeType::int8}) {
    const auto model = tiny_model(lfm2_config(), 61).load(type);
    Rng rng(62);
    for (const int64_t chunk : {1, 4, 500}) {
      for (int round = 0; round < 6; ++round) {
        const std::vector<int32_t> prompt = rng.tokens(1 + rng.below(40), kVocab);
        RequestParams params = greedy(30);
        params.sampling.do_sample = true;
        params.processors.repetition_penalty = 1.1f;
        params.sampling.seed = static_cast<uint64_t>(round);
        const Result plain = alone(model, prompt, params);
        Scheduler scheduler(model, chunk);
        scheduler.add(rng.tokens(9, kVocab), greedy(25));  // a neighbour
        const int64_t id = scheduler.add(prompt, params);
        Result got;
        const auto append = [&] {  // now and then some tokens that would come anyway
          const auto at = static_cast<int64_t>(got.tokens.size());
          const auto first = plain.tokens.begin() + at;
          const std::vector<int32_t> next(first, first + std::min<int64_t>(rng.below(9), 30 - at));
          for (const StepEvent& event : scheduler.append(id, next)) {
            ASSERT_EQ(event.request, id);
            got.tokens.push_back(event.token);
            got.finish = event.finish;
          }
        };
        append();
        while (got.finish == FinishReason::none) {
          for (const StepEvent& event : scheduler.step()) {
            if (event.request != id) continue;
            got.tokens.push_back(event.token);
            got.finish = event.finish;
            if (got.finish == FinishReason::none && rng.below(2) == 0) append();
          }
        }
        ASSERT_EQ(got.tokens, plain.tokens);
        ASSERT_EQ(got.finish, FinishReason::length);
        EXPECT_TRUE(throws_naming("is not running", [&] { scheduler.append(id, prompt); }));
        while (!scheduler.idle()) scheduler.step();
      }
    }
  }
}

TEST(Scheduler, AppendedTokensEndARequest) {
  const auto model = tiny_model(lfm2_config(), 63).load(ComputeType::f32);
  RequestParams params = greedy(4);
  params.eos_token_ids = {7};
  const std::vector<int32_t> stop = {5, 7, 6}, length = {5, 6, 5, 6, 5};
  for (const auto& [tokens, finish] : {std::pair{stop, FinishReason::stop}, {length, FinishReason::length}}) {
    Scheduler scheduler(model, 16);
    const int64_t id = scheduler.add({1, 2, 3}, params);
    EXPECT_TRUE(scheduler.append(id, {}).empty());
    EXPECT_TRUE(throws_naming("97", [&] { scheduler.append(id, std::vector<int32_t>{5, 97}); }));
    const std::vector<StepEvent> events = scheduler.append(id, tokens);
    EXPECT_EQ(events.size(), finish == FinishReason::stop ? 2u : 4u);
    EXPECT_EQ(events.back().finish, finish);
    EXPECT_TRUE(scheduler.idle());
    EXPECT_TRUE(throws_naming("is not running", [&] { scheduler.set_mask(id, nullptr); }));
  }
}

TEST(Scheduler, AMaskBelongsToItsRequest) {
  const auto model = tiny_model(lfm2_config(), 64).load(ComputeType::f32);
  const std::vector<int32_t> prompt = Rng(65).tokens(20, kVocab);
  const Result plain = alone(model, prompt, greedy(6));
  Scheduler scheduler(model, 8);
  const int64_t masked = scheduler.add(prompt, greedy(6)), free = scheduler.add(prompt, greedy(6));
  std::vector<uint32_t> mask = {0, 1, 0, 1};  // tokens 32 and 96
  scheduler.set_mask(masked, mask.data());
  std::map<int64_t, std::vector<int32_t>> got;
  while (!scheduler.idle()) {
    for (const StepEvent& event : scheduler.step()) {
      got[event.request].push_back(event.token);
      if (event.request != masked) continue;
      if (got[masked].size() == 2) mask = {4, 0, 0, 0};  // changed in place
      if (got[masked].size() == 4) scheduler.set_mask(masked, nullptr);
    }
  }
  EXPECT_EQ(got[free], plain.tokens);
  for (const size_t i : {0, 1}) EXPECT_TRUE(got[masked][i] == 32 || got[masked][i] == 96);
  for (const size_t i : {2, 3}) EXPECT_EQ(got[masked][i], 2);
  EXPECT_EQ(got[masked].size(), 6u);
}

TEST(Scheduler, TheContextMayBeFilledToTheLastPosition) {
  TinyModel tiny = tiny_model(lfm2_config(), 47);
  tiny.config.max_position_embeddings = 20;
  const auto model = tiny.load(ComputeType::f32);
  const std::vector<int32_t> prompt = Rng(48).tokens(20, kVocab);
  EXPECT_EQ(alone(model, prompt, greedy(1)).tokens.size(), 1u);  // the last new token is never fed back
  EXPECT_EQ(alone(model, {prompt.begin(), prompt.begin() + 15}, greedy(6)).tokens.size(), 6u);
  Scheduler scheduler(model, 8);
  EXPECT_TRUE(throws_naming("context of 20", [&] { scheduler.add(prompt, greedy(2)); }));
  EXPECT_TRUE(throws_naming("context of 20", [&] { scheduler.add(std::vector<int32_t>(21, 1), greedy(1)); }));
}

TEST(Scheduler, BadParametersThrowAndAddNothing) {
  const auto model = tiny_model(lfm2_config(), 49).load(ComputeType::f32);
  EXPECT_TRUE(throws_naming("prefill_chunk", [&] { Scheduler(model, 0); }));
  Scheduler scheduler(model, 16);
  EXPECT_TRUE(scheduler.idle());
  EXPECT_TRUE(scheduler.step().empty());
  scheduler.cancel(5);
  RequestParams hot = greedy(3), eos = greedy(3);
  hot.sampling.do_sample = true;
  hot.sampling.temperature = 0;
  eos.eos_token_ids = {97};
  EXPECT_TRUE(throws_naming("input_ids is empty", [&] { scheduler.add({}, greedy(3)); }));
  EXPECT_TRUE(throws_naming("max_new_tokens", [&] { scheduler.add({1}, greedy(0)); }));
  EXPECT_TRUE(throws_naming("max_new_tokens", [&] { scheduler.add({1}, greedy(-1)); }));
  EXPECT_TRUE(throws_naming("input_ids holds 97", [&] { scheduler.add({1, 97}, greedy(3)); }));
  EXPECT_TRUE(throws_naming("input_ids holds -1", [&] { scheduler.add({-1}, greedy(3)); }));
  EXPECT_TRUE(throws_naming("eos_token_id 97", [&] { scheduler.add({1}, eos); }));
  EXPECT_TRUE(throws_naming("temperature", [&] { scheduler.add({1}, hot); }));
  EXPECT_TRUE(
      throws_naming("context of 1200", [&] { scheduler.add({1, 2, 3}, greedy(std::numeric_limits<int64_t>::max())); }));
  EXPECT_TRUE(scheduler.idle());
  const int64_t id = scheduler.add({1, 2, 3}, greedy(2));
  EXPECT_FALSE(scheduler.idle());
  EXPECT_EQ(scheduler.step().size(), 1u);
  scheduler.cancel(id);
  EXPECT_TRUE(scheduler.idle());
  EXPECT_TRUE(scheduler.step().empty());
}

TEST(Scheduler, GoesOnFromAState) {
  const auto model = tiny_model(lfm2_config(), 50).load(ComputeType::bf16, 2);
  const std::vector<int32_t> prompt = Rng(51).tokens(90, kVocab);
  const Result want = alone(model, prompt, greedy(6));
  SequenceState state = model->new_state();
  for (const int64_t common : {0, 1, 40, 64, 89, 90}) {
    std::vector<int32_t> other(prompt.begin(), prompt.begin() + common);
    other.push_back((common < 90 ? prompt[common] + 1 : 5) % kVocab);
    state = model->new_state();
    run(*model, state, other, LogitsFor::none);
    Scheduler scheduler(model, 16);
    const int64_t id = scheduler.add(prompt, greedy(6));
    scheduler.use_state(id, state);
    EXPECT_TRUE(throws_naming("has no state to take", [&] { scheduler.take_state(id); }));
    std::vector<int32_t> tokens;
    while (!scheduler.idle()) {
      for (const StepEvent& event : scheduler.step()) tokens.push_back(event.token);
    }
    EXPECT_EQ(tokens, want.tokens) << common;
    EXPECT_EQ(state.length(), common + 1);
    SequenceState after = scheduler.take_state(id);
    EXPECT_EQ(after.length(), 95);
    EXPECT_TRUE(throws_naming("has no state to take", [&] { scheduler.take_state(id); }));
    after.truncate(90);
    EXPECT_EQ(after.common_prefix(prompt), 90);
  }
  Scheduler scheduler(model, 16);
  EXPECT_TRUE(throws_naming("request 3 is not running", [&] { scheduler.use_state(3, state); }));
  const int64_t id = scheduler.add(prompt, greedy(6));
  const auto stranger = tiny_model(lfm2_config(), 52).load(ComputeType::bf16);
  EXPECT_TRUE(throws_naming("belongs to another model", [&] { scheduler.use_state(id, stranger->new_state()); }));
  scheduler.step();
  EXPECT_TRUE(throws_naming("has begun", [&] { scheduler.use_state(id, state); }));
  scheduler.cancel(id);
  EXPECT_TRUE(throws_naming("has no state to take", [&] { scheduler.take_state(id); }));  // not asked for
}

TEST(Scheduler, WithAPrefixCacheEachGetsTheTokensItWouldGetAlone) {
  const auto model = tiny_model(lfm2_config(), 53).load(ComputeType::int8, 2);
  const size_t page = model->new_state().layout().page_bytes + 1024;
  for (const size_t budget : {size_t{0}, 3 * page, 1000 * page}) {
    const auto cache = std::make_shared<PrefixCache>(model, budget);
    Rng rng(54);
    const std::vector<int32_t> shared = rng.tokens(150, kVocab);
    for (int round = 0; round < 3; ++round) {
      Scheduler scheduler(model, 40, cache);
      std::map<int64_t, std::vector<int32_t>> prompts, found;
      for (int i = 0; i < 8; ++i) {  // leave the shared prompt at any token
        std::vector<int32_t> prompt(shared.begin(), shared.begin() + rng.below(151));
        for (const int32_t token : rng.tokens(1 + rng.below(30), kVocab)) prompt.push_back(token);
        prompts[scheduler.add(prompt, greedy(4))] = prompt;
      }
      while (!scheduler.idle()) {
        for (const StepEvent& event : scheduler.step()) {
          found[event.request].push_back(event.token);
          if (round == 1 && event.request == 3) scheduler.cancel(3);
        }
        EXPECT_LE(cache->nbytes(), budget);
      }
      for (const auto& [id, prompt] : prompts) {
        if (round == 1 && id == 3) continue;
        EXPECT_EQ(found[id], alone(model, prompt, greedy(4)).tokens) << budget << ": " << id;
      }
    }
    EXPECT_EQ(cache->reused_tokens() > 0, budget > 0);
  }
}

TEST(Scheduler, ASharedPrefixIsComputedOnce) {
  const auto model = tiny_model(lfm2_config(), 55).load(ComputeType::f32);
  const auto cache = std::make_shared<PrefixCache>(model, size_t{1} << 30);
  const std::vector<int32_t> shared = Rng(56).tokens(500, kVocab);
  Scheduler scheduler(model, 100, cache);
  for (int32_t i = 0; i < 20; ++i) {
    std::vector<int32_t> prompt = shared;
    prompt.push_back(i);
    scheduler.add(prompt, greedy(1));
  }
  int steps = 0;
  for (; !scheduler.idle(); ++steps) scheduler.step();
  EXPECT_EQ(cache->reused_tokens(), 19 * 500);
  EXPECT_LE(steps, 8);  // 6 for the first prompt; then each takes one token of the chunk, and a few that are replayed
}

}  // namespace
}  // namespace lfm::testing
