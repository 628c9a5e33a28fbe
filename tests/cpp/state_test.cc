// Snapshots: a copied state and its original go on independently, with the bits of a run from scratch.
#include "model/state.h"

#include "testing.h"

namespace lfm::testing {
namespace {

constexpr ComputeType kTypes[] = {ComputeType::f32, ComputeType::bf16, ComputeType::int8, ComputeType::int4};
constexpr int64_t kVocab = 97;

std::vector<int32_t> joined(std::span<const int32_t> a, std::span<const int32_t> b) {
  std::vector<int32_t> out(a.begin(), a.end());
  out.insert(out.end(), b.begin(), b.end());
  return out;
}

// Logits of `tail` after `prompt`, in one run from an empty state.
std::vector<float> from_scratch(const Model& model, std::span<const int32_t> prompt, std::span<const int32_t> tail) {
  SequenceState state = model.new_state();
  const std::vector<float> all = run(model, state, joined(prompt, tail));
  return {all.begin() + static_cast<int64_t>(prompt.size()) * kVocab, all.end()};
}

// Branches a and b of one prompt in every order that a caller may take them.
void check_branches(const Model& model, int64_t length, int64_t tail) {
  Rng rng(static_cast<uint64_t>(length));
  const std::vector<int32_t> prompt = rng.tokens(length, kVocab), a = rng.tokens(tail, kVocab),
                             b = rng.tokens(tail, kVocab);
  const std::vector<float> want_a = from_scratch(model, prompt, a), want_b = from_scratch(model, prompt, b);
  SequenceState original = model.new_state();
  run(model, original, prompt, LogitsFor::none);
  const SequenceState snapshot = original;
  ASSERT_EQ(snapshot.length(), length);

  ASSERT_TRUE(same_bits(run(model, original, a), want_a)) << "the original after a snapshot, length " << length;
  SequenceState restored = snapshot;
  ASSERT_TRUE(same_bits(run(model, restored, b), want_b)) << "restored after the original went on, " << length;
  original = snapshot;
  ASSERT_EQ(original.length(), length);
  ASSERT_TRUE(same_bits(run(model, original, b), want_b)) << "assigned back, " << length;

  // Token by token in turns: neither may see what the other writes to a page they shared.
  SequenceState left = snapshot, right = snapshot;
  for (int64_t i = 0; i < tail; ++i) {
    ASSERT_TRUE(same_bits(run(model, left, std::span(a).subspan(i, 1)).data(), &want_a[i * kVocab], kVocab))
        << length << " + " << i;
    ASSERT_TRUE(same_bits(run(model, right, std::span(b).subspan(i, 1)).data(), &want_b[i * kVocab], kVocab))
        << length << " + " << i;
  }
  // Both branches in one batch, and a snapshot of a branch that outlives everything else.
  SequenceState kept = model.new_state();
  {
    SequenceState first = snapshot, second = snapshot;
    const SequenceInput batch[] = {{&first, a, LogitsFor::all}, {&second, b, LogitsFor::all}};
    Workspace ws;
    std::vector<float> logits(static_cast<size_t>(2 * tail * kVocab));
    model.forward(batch, logits.data(), ws);
    ASSERT_TRUE(same_bits(logits.data(), want_a.data(), tail * kVocab)) << length;
    ASSERT_TRUE(same_bits(&logits[tail * kVocab], want_b.data(), tail * kVocab)) << length;
    kept = first;
    run(model, first, b, LogitsFor::none);
  }
  ASSERT_TRUE(same_bits(run(model, kept, b), from_scratch(model, joined(prompt, a), b))) << length;
}

TEST(State, SnapshotsAcrossPageBorders) {
  const TinyModel tiny = tiny_model(lfm2_config(), 21);
  for (const ComputeType type : kTypes) {
    const auto model = tiny.load(type, 2);
    for (const int64_t length : {1, 63, 64, 65, 130}) check_branches(*model, length, 67);
  }
}

TEST(State, SnapshotsOfConvolutionsAloneAndOfFourTaps) {
  check_branches(*tiny_model(tiny_config(16, {1, 1, 8}, "cc"), 22).load(ComputeType::f32), 2, 5);
  check_branches(*tiny_model(biased_config(), 23).load(ComputeType::bf16), 64, 5);
}

// Beyond 512 tokens attention is split; few tokens at once take another path than many.
TEST(State, SameBitsAcrossTheAttentionSplit) {
  const TinyModel tiny = tiny_model(lfm2_config(), 24);
  const std::vector<int32_t> tokens = Rng(25).tokens(1100, kVocab);
  const std::span<const int32_t> all(tokens);
  for (const ComputeType type : kTypes) {
    std::vector<float> want;
    for (const int threads : {1, 3}) {
      const auto model = tiny.load(type, threads);
      SequenceState state = model->new_state();
      if (want.empty()) want = run(*model, state, tokens);
      for (const int64_t start : {500, 1018}) {
        SequenceState cut = model->new_state();
        run(*model, cut, all.first(static_cast<size_t>(start)), LogitsFor::none);
        const int64_t counts[] = {8, 1, 1, 9, 2, 1, 3, 20, 1};
        int64_t at = start;
        for (const int64_t count : counts) {
          const std::vector<float> got = run(*model, cut, all.subspan(at, count));
          ASSERT_TRUE(same_bits(got.data(), &want[at * kVocab], count * kVocab))
              << compute_type_name(type) << ", " << threads << " threads, " << count << " tokens at " << at;
          at += count;
        }
        const std::vector<float> rest = run(*model, cut, all.subspan(at));
        ASSERT_TRUE(same_bits(rest.data(), &want[at * kVocab], (1100 - at) * kVocab)) << compute_type_name(type);
      }
      SequenceState before = model->new_state();  // a snapshot within the second split
      run(*model, before, all.first(600), LogitsFor::none);
      SequenceState after = before;
      run(*model, before, all.first(500), LogitsFor::none);
      const std::vector<float> rest = run(*model, after, all.subspan(600));
      ASSERT_TRUE(same_bits(rest.data(), &want[600 * kVocab], 500 * kVocab)) << compute_type_name(type);
    }
  }
}

TEST(State, PagesAreSharedUntilWritten) {
  const auto model = tiny_model(lfm2_config(), 26).load(ComputeType::f32);
  const std::vector<int32_t> tokens = Rng(27).tokens(131, kVocab);
  SequenceState state = model->new_state();
  EXPECT_EQ(state.num_pages(), 0);
  run(*model, state, std::span(tokens).first(130), LogitsFor::none);
  ASSERT_EQ(state.num_pages(), 3);
  EXPECT_GE(state.nbytes(), 3 * state.layout().page_bytes);
  const SequenceState snapshot = state;
  const auto& shared = std::as_const(state);
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(shared.page(i), snapshot.page(i));
  run(*model, state, std::span(tokens).subspan(130), LogitsFor::none);
  EXPECT_EQ(shared.page(0), snapshot.page(0));
  EXPECT_EQ(shared.page(1), snapshot.page(1));
  EXPECT_NE(shared.page(2), snapshot.page(2));  // only the page that was written to is copied
  EXPECT_EQ(snapshot.length(), 130);
}

// Back to `length` and on with other tokens, with the bits of a run from scratch; in pieces too.
void check_truncated(const Model& model, const SequenceState& full, std::span<const int32_t> tokens, int64_t length) {
  const std::vector<int32_t> tail = Rng(static_cast<uint64_t>(length)).tokens(9, kVocab);
  const std::vector<float> want = from_scratch(model, tokens.first(static_cast<size_t>(length)), tail);
  SequenceState state = full;
  state.truncate(length);
  ASSERT_EQ(state.length(), length);
  ASSERT_EQ(state.replay(), std::min(length, state.layout().conv_reach));
  SequenceState pieces = state;
  ASSERT_TRUE(same_bits(run(model, state, tail), want)) << length;
  ASSERT_EQ(state.replay(), 0);
  ASSERT_EQ(state.common_prefix(tokens.first(static_cast<size_t>(length))), length);
  for (size_t i = 0; i < tail.size(); i += 3) {
    const std::vector<float> got = run(model, pieces, std::span(tail).subspan(i, 3));
    ASSERT_TRUE(same_bits(got.data(), &want[i * kVocab], 3 * kVocab)) << length << " + " << i;
  }
}

TEST(State, TruncatedToAnyTokenItHasTheBitsOfARunFromScratch) {
  const struct {
    ModelConfig config;
    int64_t tokens;
  } cases[] = {{lfm2_config(), 140},
               {biased_config(), 140},
               {llama_config(), 140},
               {tiny_config(16, {1, 1, 8}, "cc"), 70},
               {tiny_config(40, {4, 2, 12}, "ccacccacc"), 80}};
  uint64_t seed = 30;
  for (const auto& [config, count] : cases) {
    const TinyModel tiny = tiny_model(config, ++seed);
    const std::vector<int32_t> tokens = Rng(seed).tokens(count, kVocab);
    for (const ComputeType type : kTypes) {
      const auto model = tiny.load(type, 2);
      SequenceState full = model->new_state();
      run(*model, full, tokens, LogitsFor::none);
      for (int64_t length = 0; length < count; length += length < 24 || length % 64 > 60 ? 1 : 5) {
        check_truncated(*model, full, tokens, length);
      }
      ASSERT_EQ(full.common_prefix(tokens), count);  // its pages were shared, and not written to
      check_truncated(*model, full, tokens, count - 1);
    }
  }
}

TEST(State, TruncatedBeyondTheAttentionSplitForEveryKvType) {
  const TinyModel tiny = tiny_model(lfm2_config(), 36);
  const std::vector<int32_t> tokens = Rng(37).tokens(1100, kVocab);
  for (const KvType kv : {KvType::f32, KvType::bf16, KvType::int8}) {
    const Model model(tiny.config, tiny.source(), ComputeType::f32, 2, kv);
    SequenceState full = model.new_state();
    run(model, full, tokens, LogitsFor::none);
    for (const int64_t length : {500, 512, 514, 1022, 1024, 1030}) check_truncated(model, full, tokens, length);
  }
}

TEST(State, ReplayWritesNoPage) {
  const auto model = tiny_model(lfm2_config(), 38).load(ComputeType::bf16);
  const std::vector<int32_t> tokens = Rng(39).tokens(130, kVocab);
  SequenceState full = model->new_state();
  run(*model, full, tokens, LogitsFor::none);
  SequenceState cut = full;
  cut.truncate(128);  // a page border, which the replay begins before
  run(*model, cut, std::span(tokens).subspan(128), LogitsFor::none);
  EXPECT_EQ(cut.shared_nbytes(), 2 * cut.layout().page_bytes);
  cut.truncate(70);
  cut.truncate(70);
  EXPECT_EQ(cut.num_pages(), 2);
  EXPECT_EQ(cut.shared_nbytes(), 2 * cut.layout().page_bytes);
  EXPECT_TRUE(throws_naming("length must be between 0 and 70", [&] { cut.truncate(71); }));
  EXPECT_TRUE(throws_naming("length must be between 0 and 70", [&] { cut.truncate(-1); }));
  cut.truncate(0);
  EXPECT_EQ(cut.num_pages(), 0);
  EXPECT_EQ(cut.replay(), 0);
}

TEST(State, PagesOfAnotherStateMakeTheSameState) {
  const auto model = tiny_model(lfm2_config(), 40).load(ComputeType::int8);
  const std::vector<int32_t> tokens = Rng(41).tokens(150, kVocab), tail = Rng(42).tokens(5, kVocab);
  SequenceState full = model->new_state();
  run(*model, full, tokens, LogitsFor::none);
  SequenceState copy = model->new_state();
  const auto kv_of = [&](int64_t page) {
    std::vector<std::byte> kv(full.layout().page_bytes);
    full.shared_page(page)->read(kv.data());
    return kv;
  };
  for (int64_t page = 0; page < 3; ++page) {
    const auto begin = static_cast<size_t>(page * kPage);
    copy.append_page(std::span(tokens).subspan(begin, std::min<size_t>(kPage, tokens.size() - begin)), kv_of(page));
  }
  EXPECT_TRUE(throws_naming("not full", [&] { copy.append_page(tail, kv_of(0)); }));
  EXPECT_TRUE(same_bits(run(*model, copy, tail), from_scratch(*model, tokens, tail)));
  SequenceState empty = model->new_state();
  EXPECT_TRUE(throws_naming("bytes of K and V", [&] { empty.append_page(tail, std::vector<std::byte>(64)); }));
  EXPECT_TRUE(throws_naming("1 to 64 tokens", [&] { empty.append_page(tokens, kv_of(0)); }));
  EXPECT_TRUE(throws_naming("1 to 64 tokens", [&] { empty.append_page({}, kv_of(0)); }));
  const int32_t outside[] = {3, 97};
  EXPECT_TRUE(throws_naming("tokens holds 97", [&] { empty.append_page(outside, kv_of(0)); }));
  EXPECT_EQ(empty.length(), 0);
}

}  // namespace
}  // namespace lfm::testing
