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

}  // namespace
}  // namespace lfm::testing
