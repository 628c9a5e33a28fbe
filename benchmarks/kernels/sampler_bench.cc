// From 65,536 logits to a token. A step of decoding takes 3 to 25 ms: sampling must be far below.
#include "runtime/sampler.h"

#include <cstring>
#include <numeric>
#include <string>

#include "bench.h"
#include "runtime/processors.h"

namespace lfm::bench {
namespace {

constexpr int64_t kVocab = 65536;

struct Settings {
  SamplingParams sampling;
  ProcessorParams processors;
};

void sample(benchmark::State& state, const Settings& settings) {
  // As of a model: a few likely tokens (standard deviation 2.5, and a peak).
  std::vector<float> logits = normals(kVocab, 2.5f), work(logits.size());
  logits[4711] += 8.0f;
  std::vector<int32_t> history(512);
  std::iota(history.begin(), history.end(), 1000);
  Sampler sampler(settings.sampling);
  LogitsProcessors processors(settings.processors);
  for (auto _ : state) {
    // Processors change the logits; the copy is counted (256 KiB from cache).
    std::memcpy(work.data(), logits.data(), work.size() * sizeof(float));
    processors.apply(work, {history, static_cast<int64_t>(history.size()), false, {}, nullptr});
    benchmark::DoNotOptimize(sampler.sample(work, history.size()));
  }
  state.SetBytesProcessed(state.iterations() * kVocab * static_cast<int64_t>(sizeof(float)));
  state.SetItemsProcessed(state.iterations() * kVocab);
}

Settings drawing(float temperature, int64_t top_k, float top_p, float min_p, float penalty) {
  Settings s;
  s.sampling.do_sample = true;
  s.sampling.temperature = temperature;
  s.sampling.top_k = top_k;
  s.sampling.top_p = top_p;
  s.sampling.min_p = min_p;
  s.sampling.seed = 1;
  s.processors.repetition_penalty = penalty;
  return s;
}

const bool registered = [] {
  const std::pair<const char*, Settings> cases[] = {
      {"greedy", {}},
      {"all", drawing(1.0f, 0, 1.0f, 0.0f, 1.0f)},
      {"top_k_50", drawing(1.0f, 50, 1.0f, 0.0f, 1.0f)},
      {"top_p_0.9", drawing(1.0f, 0, 0.9f, 0.0f, 1.0f)},
      {"top_k_50_top_p_0.9", drawing(1.0f, 50, 0.9f, 0.0f, 1.0f)},
      {"lfm2", drawing(0.3f, 0, 1.0f, 0.15f, 1.05f)},
      {"lfm2.5", drawing(0.1f, 50, 1.0f, 0.0f, 1.05f)},
  };
  for (const auto& [name, params] : cases) {
    const Settings p = params;
    benchmark::RegisterBenchmark((std::string("sampler/") + name).c_str(), [p](benchmark::State& s) { sample(s, p); })
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }
  return true;
}();

}  // namespace
}  // namespace lfm::bench
