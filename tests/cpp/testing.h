// Helpers of the C++ tests: seeded random values, comparisons, guarded outputs, tiny random models.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

#include "base/cpu.h"
#include "base/error.h"
#include "model/model.h"

namespace lfm::testing {

// splitmix64: the same values on every platform and library.
class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  float normal() {
    const double r = std::sqrt(-2 * std::log(1 - uniform()));
    return static_cast<float>(r * std::cos(2 * std::numbers::pi * uniform()));
  }
  std::vector<float> normals(int64_t n, float scale = 1.0f) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = normal() * scale;
    return v;
  }
  std::vector<int32_t> tokens(int64_t n, int64_t vocab) {
    std::vector<int32_t> v(static_cast<size_t>(n));
    for (int32_t& t : v) t = static_cast<int32_t>(below(vocab));
    return v;
  }

 private:
  uint64_t state_;
};

// Every level of this CPU from `reference` up to `best`.
inline std::vector<Isa> isas_up_to(Isa best) {
  std::vector<Isa> all;
  for (const Isa isa : supported_isas()) {
    if (isa <= best) all.push_back(isa);
  }
  return all;
}

// An output with canaries before and behind; everything starts as the canary byte, gaps between rows included.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t n) : all_(static_cast<size_t>(n) + 2 * kPad) { fill(); }
  explicit Guarded(const std::vector<T>& values) : Guarded(static_cast<int64_t>(values.size())) {
    std::copy(values.begin(), values.end(), data());
  }
  T* data() { return all_.data() + kPad; }
  const T* data() const { return all_.data() + kPad; }
  T& operator[](int64_t i) { return all_[static_cast<size_t>(i) + kPad]; }
  const T& operator[](int64_t i) const { return all_[static_cast<size_t>(i) + kPad]; }
  int64_t size() const { return static_cast<int64_t>(all_.size() - 2 * kPad); }
  std::vector<T> values() const { return {data(), data() + size()}; }
  bool untouched(int64_t i) const {  // element i, which may be a canary outside the range
    const auto* bytes = reinterpret_cast<const unsigned char*>(data() + i);
    for (size_t b = 0; b < sizeof(T); ++b) {
      if (bytes[b] != kByte) return false;
    }
    return true;
  }
  bool intact() const {
    for (int64_t i = 1; i <= static_cast<int64_t>(kPad); ++i) {
      if (!untouched(-i) || !untouched(size() - 1 + i)) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kPad = 64;
  static constexpr unsigned char kByte = 0xa5;
  void fill() { std::memset(static_cast<void*>(all_.data()), kByte, all_.size() * sizeof(T)); }
  std::vector<T> all_;
};

// |got - want| <= abs + rel * |want| for every element; names the first that is not.
template <class Got, class Want>
::testing::AssertionResult close(const Got* got, const Want* want, int64_t n, double abs, double rel = 0) {
  for (int64_t i = 0; i < n; ++i) {
    const double g = static_cast<double>(got[i]), w = static_cast<double>(want[i]);
    if (!(std::fabs(g - w) <= abs + rel * std::fabs(w))) {
      return ::testing::AssertionFailure() << "at " << i << " of " << n << ": " << g << ", expected " << w;
    }
  }
  return ::testing::AssertionSuccess();
}

template <class T>
::testing::AssertionResult same_bits(const T* a, const T* b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (std::memcmp(a + i, b + i, sizeof(T)) != 0) {
      return ::testing::AssertionFailure()
             << "bits differ at " << i << " of " << n << ": " << +a[i] << " and " << +b[i];
    }
  }
  return ::testing::AssertionSuccess();
}
template <class T>
::testing::AssertionResult same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << "sizes " << a.size() << " and " << b.size();
  return same_bits(a.data(), b.data(), static_cast<int64_t>(a.size()));
}

// body throws std::invalid_argument whose message holds `part`.
template <class Body>
::testing::AssertionResult throws_naming(const std::string& part, const Body& body) {
  try {
    body();
  } catch (const std::invalid_argument& e) {
    if (std::string(e.what()).find(part) != std::string::npos) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "'" << e.what() << "' does not name '" << part << "'";
  } catch (const std::exception& e) {
    return ::testing::AssertionFailure() << "another type of exception: " << e.what();
  }
  return ::testing::AssertionFailure() << "nothing was thrown";
}

inline TensorView view_of(const std::string& name, const std::vector<float>& values, std::vector<int64_t> shape) {
  return {name, values.data(), DType::f32, std::move(shape)};
}

struct Tensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

// Config and random fp32 weights of a small model.
struct TinyModel {
  ModelConfig config;
  std::map<std::string, Tensor> tensors;

  TensorSource source() const {
    return {[this](const std::string& name, const std::vector<int64_t>&) {
              const auto found = tensors.find(name);
              check(found != tensors.end(), "tensor '", name, "' is missing");
              return view_of(name, found->second.values, found->second.shape);
            },
            {}};
  }
  std::shared_ptr<const Model> load(ComputeType type, int threads = 1) const {
    return std::make_shared<const Model>(config, source(), type, threads);
  }
};

// heads: query heads, kv heads, head_dim. layers: 'c' conv, 'a' attention.
inline ModelConfig tiny_config(int64_t hidden, std::array<int64_t, 3> heads, const std::string& layers) {
  ModelConfig c;
  c.vocab_size = 97;
  c.hidden_size = hidden;
  c.intermediate_size = 56;
  c.num_attention_heads = heads[0];
  c.num_key_value_heads = heads[1];
  c.head_dim = heads[2];
  for (const char l : layers) c.layer_types.push_back(l == 'c' ? LayerType::conv : LayerType::full_attention);
  c.max_position_embeddings = 1200;
  for (int64_t i = 0; i < c.head_dim / 2; ++i) {
    c.rope_inv_freq.push_back(static_cast<float>(std::pow(1e4, -2.0 * static_cast<double>(i) / c.head_dim)));
  }
  return c;
}
inline ModelConfig lfm2_config() { return tiny_config(40, {4, 2, 12}, "caca"); }
inline ModelConfig llama_config() {
  ModelConfig c = tiny_config(32, {3, 1, 24}, "aa");
  c.qk_norm = false;
  c.tie_word_embeddings = false;
  return c;
}
inline ModelConfig biased_config() {  // 4 taps, biases, more than one tile of queries per head group
  ModelConfig c = tiny_config(33, {2, 2, 32}, "cca");
  c.conv_L_cache = 4;
  c.conv_bias = true;
  return c;
}

// bf16_values: every weight is a bf16 number, so that a bf16 model holds it exactly.
inline TinyModel tiny_model(const ModelConfig& c, uint64_t seed, bool bf16_values = false) {
  TinyModel model{c, {}};
  Rng rng(seed);
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float scale, float mean = 0.0f) {
    int64_t n = 1;
    for (const int64_t d : shape) n *= d;
    std::vector<float> values = rng.normals(n, scale);
    for (float& v : values) v = bf16_values ? bf16_to_f32(f32_to_bf16(v + mean)) : v + mean;
    model.tensors[name] = {std::move(shape), std::move(values)};
  };
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
    add(name, {rows, cols}, 1.0f / std::sqrt(static_cast<float>(cols)));
  };
  const int64_t hidden = c.hidden_size, ff = c.intermediate_size;
  add("model.embed_tokens.weight", {c.vocab_size, hidden}, 0.5f);
  if (!c.tie_word_embeddings) add("lm_head.weight", {c.vocab_size, hidden}, 0.5f);
  add("model.embedding_norm.weight", {hidden}, 0.1f, 1.0f);
  for (int64_t i = 0; i < c.num_layers(); ++i) {
    const std::string prefix = concat("model.layers.", i, ".");
    add(prefix + "operator_norm.weight", {hidden}, 0.1f, 1.0f);
    add(prefix + "ffn_norm.weight", {hidden}, 0.1f, 1.0f);
    if (c.layer_types[static_cast<size_t>(i)] == LayerType::conv) {
      matrix(prefix + "conv.in_proj.weight", 3 * hidden, hidden);
      matrix(prefix + "conv.out_proj.weight", hidden, hidden);
      add(prefix + "conv.conv.weight", {hidden, 1, c.conv_L_cache}, 0.6f);
      if (c.conv_bias) {
        add(prefix + "conv.in_proj.bias", {3 * hidden}, 0.3f);
        add(prefix + "conv.out_proj.bias", {hidden}, 0.3f);
        add(prefix + "conv.conv.bias", {hidden}, 0.3f);
      }
    } else {
      matrix(prefix + "self_attn.q_proj.weight", c.query_width(), hidden);
      matrix(prefix + "self_attn.k_proj.weight", c.kv_width(), hidden);
      matrix(prefix + "self_attn.v_proj.weight", c.kv_width(), hidden);
      matrix(prefix + "self_attn.out_proj.weight", hidden, c.query_width());
      if (c.qk_norm) {
        add(prefix + "self_attn.q_layernorm.weight", {c.head_dim}, 0.2f, 1.5f);
        add(prefix + "self_attn.k_layernorm.weight", {c.head_dim}, 0.2f, 1.5f);
      }
    }
    matrix(prefix + "feed_forward.w1.weight", ff, hidden);
    matrix(prefix + "feed_forward.w3.weight", ff, hidden);
    matrix(prefix + "feed_forward.w2.weight", hidden, ff);
  }
  return model;
}

// Logits [tokens.size(), vocab] (or of the last token) of one forward pass that advances `state`.
inline std::vector<float> run(const Model& model, SequenceState& state, std::span<const int32_t> tokens,
                              LogitsFor logits_for = LogitsFor::all) {
  Workspace ws;
  const SequenceInput input = {&state, tokens, logits_for};
  std::vector<float> logits(static_cast<size_t>(num_logit_rows({&input, 1}) * model.config().vocab_size));
  model.forward({&input, 1}, logits.data(), ws);
  return logits;
}

}  // namespace lfm::testing
