// The forward pass against a plain one in double; the same bits in every chunking, batch and thread count; errors.
#include "model/model.h"

#include <algorithm>
#include <functional>
#include <thread>

#include "testing.h"

namespace lfm::testing {
namespace {

constexpr ComputeType kTypes[] = {ComputeType::f32, ComputeType::bf16, ComputeType::int8, ComputeType::int4};

// ---- an oracle: the equations of transformers' Lfm2ForCausalLM and LlamaForCausalLM, one loop each -----------------

using Rows = std::vector<std::vector<double>>;  // [tokens][features]

class Oracle {
 public:
  explicit Oracle(const TinyModel& model) : c_(model.config), tensors_(model.tensors) {}

  Rows logits(std::span<const int32_t> tokens) const {
    Rows h;
    const std::vector<float>& embed = weight("model.embed_tokens.weight");
    for (const int32_t t : tokens) {
      h.emplace_back(embed.begin() + t * c_.hidden_size, embed.begin() + (t + 1) * c_.hidden_size);
    }
    for (int64_t i = 0; i < c_.num_layers(); ++i) {
      const std::string at = concat("model.layers.", i, ".");
      const Rows u = norm(h, at + "operator_norm.weight");
      const bool conv = c_.layer_types[static_cast<size_t>(i)] == LayerType::conv;
      add(h, conv ? short_conv(u, at + "conv.") : attention(u, at + "self_attn."));
      const Rows x = norm(h, at + "ffn_norm.weight"), up = linear(x, at + "feed_forward.w3");
      Rows gate = linear(x, at + "feed_forward.w1");
      for (size_t t = 0; t < gate.size(); ++t) {
        for (size_t j = 0; j < gate[t].size(); ++j) gate[t][j] = gate[t][j] / (1 + std::exp(-gate[t][j])) * up[t][j];
      }
      add(h, linear(gate, at + "feed_forward.w2"));
    }
    return linear(norm(h, "model.embedding_norm.weight"), c_.tie_word_embeddings ? "model.embed_tokens" : "lm_head");
  }

 private:
  const std::vector<float>& weight(const std::string& name) const { return tensors_.at(name).values; }

  static void add(Rows& h, const Rows& x) {
    for (size_t t = 0; t < h.size(); ++t) {
      for (size_t i = 0; i < h[t].size(); ++i) h[t][i] += x[t][i];
    }
  }
  void norm_one(double* x, size_t n, const std::vector<float>& w) const {
    double squares = 0;
    for (size_t i = 0; i < n; ++i) squares += x[i] * x[i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + c_.norm_eps);
    for (size_t i = 0; i < n; ++i) x[i] *= scale * w[i];
  }
  Rows norm(Rows x, const std::string& name) const {
    for (auto& row : x) norm_one(row.data(), row.size(), weight(name));
    return x;
  }
  Rows linear(const Rows& x, const std::string& name) const {
    const std::vector<float>& w = weight(name + ".weight");
    const size_t k = x[0].size(), n = w.size() / k;
    const auto bias = tensors_.find(name + ".bias");
    Rows y(x.size(), std::vector<double>(n));
    for (size_t t = 0; t < x.size(); ++t) {
      for (size_t j = 0; j < n; ++j) {
        double sum = bias != tensors_.end() ? bias->second.values[j] : 0.0;
        for (size_t i = 0; i < k; ++i) sum += x[t][i] * w[j * k + i];
        y[t][j] = sum;
      }
    }
    return y;
  }
  Rows short_conv(const Rows& u, const std::string& at) const {
    const Rows bcx = linear(u, at + "in_proj");
    const std::vector<float>& w = weight(at + "conv.weight");
    const int64_t hidden = c_.hidden_size, taps = c_.conv_L_cache;
    Rows y(u.size(), std::vector<double>(u[0].size()));
    for (int64_t t = 0; t < static_cast<int64_t>(u.size()); ++t) {
      for (int64_t c = 0; c < hidden; ++c) {
        double sum = c_.conv_bias ? weight(at + "conv.bias")[c] : 0.0;
        for (int64_t j = std::max<int64_t>(0, taps - 1 - t); j < taps; ++j) {
          const std::vector<double>& row = bcx[t - (taps - 1) + j];
          sum += w[c * taps + j] * row[c] * row[2 * hidden + c];
        }
        y[t][c] = bcx[t][hidden + c] * sum;
      }
    }
    return linear(y, at + "out_proj");
  }
  // Norm and rotation of every head of x[tokens][heads * head_dim].
  void rotate(Rows& x, int64_t heads, const std::string& norm_name) const {
    const int64_t hd = c_.head_dim, half = hd / 2;
    for (size_t t = 0; t < x.size(); ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        double* v = x[t].data() + h * hd;
        if (c_.qk_norm) norm_one(v, static_cast<size_t>(hd), weight(norm_name));
        for (int64_t i = 0; i < half; ++i) {
          const double angle = static_cast<float>(t) * c_.rope_inv_freq[i];  // an fp32 product, as in transformers
          const double a = v[i], b = v[i + half];
          v[i] = a * std::cos(angle) - b * std::sin(angle);
          v[i + half] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
    }
  }
  Rows attention(const Rows& u, const std::string& at) const {
    Rows q = linear(u, at + "q_proj"), k = linear(u, at + "k_proj");
    const Rows v = linear(u, at + "v_proj");
    rotate(q, c_.num_attention_heads, at + "q_layernorm.weight");
    rotate(k, c_.num_key_value_heads, at + "k_layernorm.weight");
    const int64_t hd = c_.head_dim;
    Rows y(u.size(), std::vector<double>(static_cast<size_t>(c_.query_width())));
    for (size_t t = 0; t < u.size(); ++t) {
      for (int64_t h = 0; h < c_.num_attention_heads; ++h) {
        const int64_t kv = h / c_.queries_per_kv() * hd;
        std::vector<double> w(t + 1);
        double top = -INFINITY, total = 0;
        for (size_t s = 0; s <= t; ++s) {
          for (int64_t d = 0; d < hd; ++d) w[s] += q[t][h * hd + d] * k[s][kv + d];
          top = std::max(top, w[s] /= std::sqrt(static_cast<double>(hd)));
        }
        for (double& x : w) total += x = std::exp(x - top);
        for (size_t s = 0; s <= t; ++s) {
          for (int64_t d = 0; d < hd; ++d) y[t][h * hd + d] += w[s] / total * v[s][kv + d];
        }
      }
    }
    return linear(y, at + "out_proj");
  }

  const ModelConfig& c_;
  const std::map<std::string, Tensor>& tensors_;
};

// ---- tests ----------------------------------------------------------------------------------------------------------

struct Case {
  const char* name;
  ModelConfig config;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class ModelTest : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Shapes, ModelTest,
                         ::testing::Values(Case{"lfm2", lfm2_config()}, Case{"llama", llama_config()},
                                           Case{"biased", biased_config()}),
                         [](const auto& info) { return std::string(info.param.name); });

// ||got - want|| / ||want||
double relative_error(const std::vector<float>& got, const Rows& want) {
  double difference = 0, size = 0;
  size_t i = 0;
  for (const auto& row : want) {
    for (const double w : row) {
      difference += (got[i] - w) * (got[i] - w);
      size += w * w;
      ++i;
    }
  }
  return std::sqrt(difference / size);
}

// The model with the values that its matrices have in int4: embedding and head in 6 bits, the others in 4.
TinyModel rounded_to_int4(TinyModel tiny) {
  for (auto& [name, tensor] : tiny.tensors) {
    if (tensor.shape.size() != 2) continue;
    std::vector<TensorView> parts = {view_of(name, tensor.values, tensor.shape)};
    if (name.find("layers") == std::string::npos) parts[0].least_bits = 6;
    const auto linear = make_linear(parts, ComputeType::int4, Isa::reference);
    std::vector<float> rounded(tensor.values.size());
    for (int64_t r = 0; r < tensor.shape[0]; ++r) linear->weight_row(r, &rounded[r * tensor.shape[1]]);
    tensor.values = rounded;
  }
  return tiny;
}

TEST_P(ModelTest, LogitsEqualThePlainForward) {
  const std::vector<int32_t> tokens = Rng(1).tokens(70, 97);
  for (const ComputeType type : kTypes) {
    TinyModel tiny = tiny_model(GetParam().config, 11, type == ComputeType::bf16);
    const auto model = tiny.load(type);
    if (type == ComputeType::int4) tiny = rounded_to_int4(std::move(tiny));
    SequenceState state = model->new_state();
    const std::vector<float> logits = run(*model, state, tokens);
    EXPECT_EQ(state.length(), 70);
    const Rows want = Oracle(tiny).logits(tokens);
    if (type == ComputeType::f32) {
      for (size_t t = 0; t < want.size(); ++t) {
        ASSERT_TRUE(close(&logits[t * 97], want[t].data(), 97, 1e-4)) << "token " << t;
      }
    } else {
      EXPECT_LT(relative_error(logits, want), type == ComputeType::bf16 ? 0.02 : 0.06) << compute_type_name(type);
    }
  }
}

TEST(Model, LongSequencesEqualThePlainForward) {
  const TinyModel tiny = tiny_model(tiny_config(24, {2, 1, 12}, "ca"), 31);
  const std::vector<int32_t> tokens = Rng(2).tokens(1100, 97);
  const auto model = tiny.load(ComputeType::f32, 2);
  SequenceState state = model->new_state();
  const std::vector<float> logits = run(*model, state, tokens);
  const Rows want = Oracle(tiny).logits(tokens);
  for (size_t t = 0; t < want.size(); ++t) {
    ASSERT_TRUE(close(&logits[t * 97], want[t].data(), 97, 2e-4)) << "token " << t;
  }
}

TEST(Workspace, GivesBackWhatAPromptNeededWhenDecodingBegins) {
  const ModelConfig config = lfm2_config();
  Workspace ws;
  const auto room = [&](int64_t tokens) {
    ws.ensure(config, tokens);
    return static_cast<int64_t>(ws.hidden.size()) / config.hidden_size;
  };
  EXPECT_EQ(room(256), 256);
  EXPECT_EQ(room(32), 256);  // large batches and the ends of prompts: kept
  EXPECT_EQ(room(1), 1);
  EXPECT_EQ(room(8), 8);
  EXPECT_EQ(room(1), 8);
}

TEST_P(ModelTest, SameBitsInChunksStepsBatchesAndThreads) {
  const std::vector<int32_t> tokens = Rng(3).tokens(140, 97), other = Rng(4).tokens(90, 97);
  const std::span<const int32_t> all(tokens);
  for (const ComputeType type : kTypes) {
    const TinyModel tiny = tiny_model(GetParam().config, 12);
    std::vector<float> want, want_other;
    for (const int threads : {1, 2, 3}) {
      const auto model = tiny.load(type, threads);
      const auto expect = [&](const std::vector<float>& got, int64_t from, int64_t count, const char* how) {
        ASSERT_TRUE(same_bits(got.data(), &want[from * 97], count * 97))
            << how << ", " << compute_type_name(type) << ", " << threads << " threads, token " << from;
      };
      SequenceState plain = model->new_state();
      const std::vector<float> logits = run(*model, plain, tokens);
      if (want.empty()) {
        want = logits;
        SequenceState second = model->new_state();
        want_other = run(*model, second, other);
      }
      expect(logits, 0, 140, "whole");

      Rng rng(5);
      SequenceState chunked = model->new_state();
      for (int64_t at = 0, count = 0; at < 140; at += count) {
        count = std::min<int64_t>(140 - at, 1 + rng.below(rng.below(2) == 0 ? 4 : 70));
        expect(run(*model, chunked, all.subspan(at, count)), at, count, "chunk");
      }
      SequenceState steps = model->new_state();
      for (int64_t at = 0; at < 140; ++at) expect(run(*model, steps, all.subspan(at, 1)), at, 1, "step");

      // Three sequences of different lengths in one batch, chunks of different sizes, logits for some only.
      SequenceState a = model->new_state(), b = model->new_state(), c = model->new_state();
      run(*model, b, all.subspan(0, 63));
      run(*model, c, std::span(other).subspan(0, 40), LogitsFor::none);
      const SequenceInput batch[] = {{&a, all.subspan(0, 5), LogitsFor::all},
                                     {&c, std::span(other).subspan(40, 25), LogitsFor::none},
                                     {&b, all.subspan(63, 1), LogitsFor::last},
                                     {&c, {}, LogitsFor::none}};
      Workspace ws;
      std::vector<float> got(6 * 97);
      ASSERT_EQ(num_logit_rows(std::span(batch).first(3)), 6);
      model->forward(std::span(batch).first(3), got.data(), ws);
      expect(got, 0, 5, "batch");
      expect({got.begin() + 5 * 97, got.end()}, 63, 1, "batch");
      expect(run(*model, b, all.subspan(64, 10)), 64, 10, "after the batch");
      const std::vector<float> rest = run(*model, c, std::span(other).subspan(65));
      ASSERT_TRUE(same_bits(rest.data(), &want_other[65 * 97], 25 * 97)) << "after a batch without logits";
    }
  }
}

TEST_P(ModelTest, LogitsOfAllowedTokensOnly) {
  const TinyModel tiny = tiny_model(GetParam().config, 11);
  const std::vector<int32_t> tokens = {5, 9, 31, 2};
  const uint32_t allowed[] = {1u << 3 | 1u << 31, 0, 0, 1};
  for (const ComputeType type : kAllComputeTypes) {
    const auto model = tiny.load(type);
    SequenceState a = model->new_state(), b = model->new_state(), c = model->new_state(), alone = model->new_state();
    const std::vector<float> want = run(*model, alone, tokens);
    const float* last = &want[3 * 97];
    // Among others that need all of theirs.
    const std::vector<SequenceInput> inputs = {
        {&a, tokens, LogitsFor::all}, {&b, tokens, LogitsFor::last, allowed}, {&c, tokens, LogitsFor::last}};
    std::vector<float> logits(6 * 97);
    Workspace ws;
    model->forward(inputs, logits.data(), ws);
    EXPECT_TRUE(same_bits(logits.data(), want.data(), 4 * 97));
    EXPECT_TRUE(same_bits(&logits[5 * 97], last, 97));
    for (const int64_t n : {0, 3, 31, 32, 95, 96}) {
      const float got = logits[static_cast<size_t>(4 * 97 + n)];
      if (n == 3 || n == 31 || n == 96) {
        EXPECT_TRUE(same_bits(&got, last + n, 1)) << compute_type_name(type) << " " << n;
      } else {
        EXPECT_EQ(got, -std::numeric_limits<float>::infinity()) << compute_type_name(type) << " " << n;
      }
    }
  }
}

TEST(Model, PrefillInChunksAndStopsWhereAskedTo) {
  const auto model = tiny_model(lfm2_config(), 13).load(ComputeType::f32);
  const std::vector<int32_t> tokens = Rng(6).tokens(100, 97);
  SequenceState plain = model->new_state();
  const std::vector<float> want = run(*model, plain, tokens);
  Workspace ws;
  for (const int64_t chunk : {1, 7, 64, 100, 1000}) {
    SequenceState all = model->new_state(), last = model->new_state();
    Guarded<float> logits(100 * 97), one(97);
    int64_t chunks = 0;
    model->prefill({&all, tokens, LogitsFor::all}, logits.data(), ws, chunk, [&] { ++chunks; });
    model->prefill({&last, tokens, LogitsFor::last}, one.data(), ws, chunk, {});
    EXPECT_EQ(chunks, (100 + chunk - 1) / chunk);
    EXPECT_TRUE(same_bits(logits.data(), want.data(), 100 * 97)) << chunk;
    EXPECT_TRUE(same_bits(one.data(), &want[99 * 97], 97)) << chunk;
    EXPECT_TRUE(logits.intact() && one.intact());
  }
  SequenceState state = model->new_state();
  const auto stop = [&] {
    if (state.length() == 60) throw std::runtime_error("stop");
  };
  EXPECT_THROW(model->prefill({&state, tokens, LogitsFor::none}, nullptr, ws, 20, stop), std::runtime_error);
  ASSERT_EQ(state.length(), 60);
  EXPECT_TRUE(same_bits(run(*model, state, std::span(tokens).subspan(60)).data(), &want[60 * 97], 40 * 97));
}

TEST(Model, SeveralThreadsMayCallForwardAtOnce) {
  for (const ComputeType type : kTypes) {
    const auto model = tiny_model(lfm2_config(), 14).load(type, 2);
    const std::vector<int32_t> tokens = Rng(7).tokens(80, 97);
    SequenceState state = model->new_state();
    const std::vector<float> want = run(*model, state, tokens);
    std::vector<std::vector<float>> got(2);
    std::vector<std::thread> threads;
    for (std::vector<float>& out : got) {
      threads.emplace_back([&] {
        SequenceState own = model->new_state();
        for (int64_t at = 0; at < 80; at += 5) {
          const std::vector<float> part = run(*model, own, std::span(tokens).subspan(at, 5));
          out.insert(out.end(), part.begin(), part.end());
        }
      });
    }
    for (std::thread& t : threads) t.join();
    for (const auto& out : got) EXPECT_TRUE(same_bits(out, want)) << compute_type_name(type);
  }
}

TEST(Model, BadInputThrowsAndLeavesTheStatesAsTheyWere) {
  const TinyModel tiny = tiny_model(lfm2_config(), 15);
  const auto model = tiny.load(ComputeType::f32), stranger = tiny.load(ComputeType::f32);
  const std::vector<int32_t> tokens = Rng(8).tokens(70, 97);
  const std::span<const int32_t> all(tokens);
  SequenceState plain = model->new_state(), state = model->new_state(), good = model->new_state();
  const std::vector<float> want = run(*model, plain, tokens);
  run(*model, state, all.first(65));
  run(*model, good, all.first(65));
  SequenceState foreign = stranger->new_state();
  Workspace ws;
  std::vector<float> logits(2 * 97);
  const std::vector<int32_t> negative = {1, -1}, large = {97}, many(1200 - 64, 1), fits(1, 5);
  const auto rejected = [&](const std::string& message, SequenceInput input) {
    const SequenceInput both[] = {{&good, all.subspan(65), LogitsFor::last}, input};
    EXPECT_TRUE(throws_naming(message, [&] { model->forward(both, logits.data(), ws); }));
    EXPECT_TRUE(throws_naming(message, [&] { model->check_inputs({&input, 1}); }));
    EXPECT_TRUE(throws_naming(message, [&] { model->prefill(input, logits.data(), ws, 32, {}); }));
    EXPECT_EQ(good.length(), 65);
    EXPECT_EQ(state.length(), 65);
  };
  rejected("input_ids is empty", {&state, {}, LogitsFor::last});
  rejected("input_ids holds -1", {&state, negative, LogitsFor::last});
  rejected("input_ids holds 97", {&state, large, LogitsFor::last});
  rejected("context of 1200", {&state, many, LogitsFor::last});
  rejected("another model", {&foreign, fits, LogitsFor::last});
  EXPECT_EQ(foreign.length(), 0);
  for (SequenceState* s : {&state, &good}) {
    EXPECT_TRUE(same_bits(run(*model, *s, all.subspan(65)).data(), &want[65 * 97], 5 * 97));
  }
  model->forward({}, nullptr, ws);  // nothing to do is no error
}

TEST(Model, BadTensorsAreNamed) {
  const TinyModel good = tiny_model(biased_config(), 16);
  for (const auto& [name, tensor] : good.tensors) {
    TinyModel bad = good;
    const std::string quoted = "'" + name + "'";
    bad.tensors[name].values[tensor.values.size() / 2] = NAN;
    for (const ComputeType type : {ComputeType::f32, ComputeType::int8}) {
      EXPECT_TRUE(throws_naming(quoted, [&] { bad.load(type); }));
    }
    bad = good;
    bad.tensors[name].shape[0] += 1;
    bad.tensors[name].values.resize(tensor.values.size() * 2);
    EXPECT_TRUE(throws_naming(quoted, [&] { bad.load(ComputeType::f32); }));
    bad.tensors.erase(name);
    EXPECT_TRUE(throws_naming(quoted, [&] { bad.load(ComputeType::f32); }));
  }
  const std::vector<std::byte> blocks(1 << 16);
  TensorSource source = good.source();
  source.get = [&, get = source.get](const std::string& name, const std::vector<int64_t>& shape) {
    return name == "model.layers.1.feed_forward.w2.weight" ? TensorView{name, blocks.data(), DType::q8_0, shape}
                                                           : get(name, shape);
  };
  EXPECT_TRUE(throws_naming("'model.layers.1.feed_forward.w2.weight' is q8_0",
                            [&] { Model(good.config, source, ComputeType::int8, 1); }));
}

TEST(Model, BadConfigsAreNamed) {
  const auto rejects = [](const std::string& name, const std::function<void(ModelConfig&)>& change) {
    ModelConfig c = lfm2_config();
    c.validate();
    change(c);
    return throws_naming(name, [&] { c.validate(); });
  };
  EXPECT_TRUE(rejects("vocab_size", [](ModelConfig& c) { c.vocab_size = 0; }));
  EXPECT_TRUE(rejects("hidden_size", [](ModelConfig& c) { c.hidden_size = -4; }));
  EXPECT_TRUE(rejects("intermediate_size", [](ModelConfig& c) { c.intermediate_size = int64_t{1} << 40; }));
  EXPECT_TRUE(rejects("num_hidden_layers", [](ModelConfig& c) { c.layer_types.clear(); }));
  EXPECT_TRUE(rejects("num_key_value_heads", [](ModelConfig& c) { c.num_key_value_heads = 3; }));
  EXPECT_TRUE(rejects("head_dim", [](ModelConfig& c) { c.head_dim = 13; }));
  EXPECT_TRUE(rejects("rope_inv_freq", [](ModelConfig& c) { c.rope_inv_freq.pop_back(); }));
  EXPECT_TRUE(rejects("norm_eps", [](ModelConfig& c) { c.norm_eps = NAN; }));
  EXPECT_TRUE(rejects("conv_L_cache", [](ModelConfig& c) { c.conv_L_cache = 0; }));
}

}  // namespace
}  // namespace lfm::testing
