// Taps: no bit changes while they only look, what they keep stays, an exception leaves states as they were.
#include "model/taps.h"

#include <set>

#include "model/model.h"
#include "testing.h"

namespace lfm::testing {
namespace {

constexpr ComputeType kTypes[] = {ComputeType::f32, ComputeType::bf16, ComputeType::int8, ComputeType::int4};
constexpr int64_t kVocab = 97;

std::vector<std::string> all_names(const ModelConfig& config) {
  std::vector<std::string> names;
  for (const TapPlace place : tap_places(config)) names.push_back(tap_name(place));
  return names;
}

// Logits of `tokens` in steps of `chunk`, with a rewind on the way.
std::vector<float> run_with(const Model& model, const Taps* taps, std::span<const int32_t> tokens, int64_t chunk) {
  Workspace ws;
  ws.taps = taps;
  SequenceState state = model.new_state();
  std::vector<float> logits(tokens.size() * kVocab);
  model.prefill({&state, tokens, LogitsFor::all}, logits.data(), ws, chunk, {});
  const int64_t back = static_cast<int64_t>(tokens.size()) - 3;
  state.truncate(back);
  model.prefill({&state, tokens.subspan(back), LogitsFor::all}, logits.data() + back * kVocab, ws, chunk, {});
  return logits;
}

TEST(Taps, ThatOnlyLookChangeNoBit) {
  for (const ModelConfig& config : {lfm2_config(), llama_config(), biased_config()}) {
    const TinyModel tiny = tiny_model(config, 3);
    const std::vector<int32_t> tokens = Rng(4).tokens(70, kVocab);
    for (const ComputeType type : kTypes) {
      const auto model = tiny.load(type, 2);
      const std::vector<float> want = run_with(*model, nullptr, tokens, 70);
      const std::vector<std::string> names = all_names(config);
      std::vector<std::shared_ptr<const Buffer<float>>> kept;
      for (const bool keep : {false, true}) {
        std::vector<std::string> seen;
        const Taps taps(config, names, [&](const Activation& a) {
          seen.push_back(tap_name(a.place));
          if (keep) kept.push_back(a.owner);
        });
        ASSERT_TRUE(same_bits(run_with(*model, &taps, tokens, 70), want)) << compute_type_name(type) << keep;
        seen.resize(names.size());
        ASSERT_EQ(seen, names);
        ASSERT_TRUE(same_bits(run_with(*model, &taps, tokens, 9), want)) << compute_type_name(type) << keep;
      }
      ASSERT_EQ(std::set(kept.begin(), kept.end()).size(), kept.size());
    }
  }
}

TEST(Taps, OfTheModelComeFirstAndOnlyWhereTheyAreWanted) {
  const TinyModel tiny = tiny_model(lfm2_config(), 3);
  Model model(tiny.config, tiny.source(), ComputeType::f32, 1);
  const std::vector<int32_t> tokens = Rng(4).tokens(5, kVocab);
  std::vector<std::string> calls;
  model.set_taps(std::make_shared<Taps>(tiny.config, std::vector<std::string>{"norm", "layers.1.attention.probs"},
                                        [&](const Activation& a) {
                                          calls.push_back("model " + tap_name(a.place));
                                          EXPECT_EQ(a.writable, a.place.point == TapPoint::norm);
                                          if (a.writable) a.data[0] = 100.0f;
                                        }));
  const Taps own(tiny.config, {"norm"}, [&](const Activation& a) {
    calls.push_back("own " + tap_name(a.place));
    EXPECT_EQ(a.data[0], 100.0f);
    EXPECT_EQ(a.shape, (std::vector<int64_t>{5, 40}));
    EXPECT_EQ(a.strides, (std::vector<int64_t>{40, 1}));
  });
  Workspace ws;
  ws.taps = &own;
  SequenceState state = model.new_state();
  const SequenceInput input = {&state, tokens, LogitsFor::none};
  model.forward({&input, 1}, nullptr, ws);
  EXPECT_EQ(calls, (std::vector<std::string>{"model layers.1.attention.probs", "model norm", "own norm"}));
  calls.clear();
  model.set_taps(nullptr);
  ws.taps = nullptr;
  model.forward({&input, 1}, nullptr, ws);
  EXPECT_TRUE(calls.empty());
}

TEST(Taps, ThatThrowLeaveTheStateAndTheWorkspaceUsable) {
  const TinyModel tiny = tiny_model(biased_config(), 3);
  const auto model = tiny.load(ComputeType::bf16);
  const std::vector<int32_t> tokens = Rng(4).tokens(30, kVocab);
  const std::vector<float> want = run_with(*model, nullptr, tokens, 30);
  for (const std::string& name : all_names(tiny.config)) {
    std::vector<std::shared_ptr<const Buffer<float>>> kept;
    const Taps taps(tiny.config, {name}, [&](const Activation& a) {
      kept.push_back(a.owner);
      throw std::runtime_error("a tap");
    });
    Workspace ws;
    SequenceState state = model->new_state();
    std::vector<float> logits(30 * kVocab);
    model->prefill({&state, std::span(tokens).first(10), LogitsFor::all}, logits.data(), ws, 4, {});
    ws.taps = &taps;
    const SequenceInput rest = {&state, std::span(tokens).subspan(10), LogitsFor::all};
    EXPECT_THROW(model->forward({&rest, 1}, logits.data() + 10 * kVocab, ws), std::runtime_error) << name;
    EXPECT_EQ(state.length(), 10);
    ws.taps = nullptr;
    model->forward({&rest, 1}, logits.data() + 10 * kVocab, ws);
    ASSERT_TRUE(same_bits(logits, want)) << name;
  }
}

TEST(Taps, RefuseNamesThatTheModelDoesNotHave) {
  for (const char* name :
       {"layers.0.attention.q", "layers.1.conv.input", "layers.4.input", "input", "layers.-1.norm"}) {
    EXPECT_TRUE(throws_naming(name, [&] { Taps(lfm2_config(), {name}, {}); }));
  }
}

TEST(SharedConvState, StaysAsItIsForWhoHoldsIt) {
  const TinyModel tiny = tiny_model(lfm2_config(), 3);
  const auto model = tiny.load(ComputeType::f32);
  const std::vector<int32_t> tokens = Rng(4).tokens(12, kVocab);
  SequenceState state = model->new_state();
  Workspace ws;
  const SequenceInput input = {&state, tokens, LogitsFor::none};
  model->forward({&input, 1}, nullptr, ws);
  const float* alone = state.conv(0);
  for (int pass = 0; pass < 2; ++pass) model->forward({&input, 1}, nullptr, ws);
  EXPECT_EQ(state.conv(0), alone);  // two buffers take turns while nobody looks
  const std::shared_ptr<const Buffer<float>> held = state.shared_conv();
  const Buffer<float> copy = *held;
  for (int pass = 0; pass < 3; ++pass) {
    model->forward({&input, 1}, nullptr, ws);
    EXPECT_NE(state.conv(0), held->data());
  }
  EXPECT_TRUE(same_bits(held->data(), copy.data(), static_cast<int64_t>(copy.size())));
  state.truncate(3);
  EXPECT_TRUE(same_bits(held->data(), copy.data(), static_cast<int64_t>(copy.size())));
}

}  // namespace
}  // namespace lfm::testing
