// What the kernel benchmarks share: rates and fractions of the machine's limits as google-benchmark counters.
#pragma once

#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "kernels/roofline.h"

namespace lfm::bench {

// Bytes per second that `threads` threads read from memory; measured once.
inline double read_bandwidth(int threads) {
  static std::map<int, double> known;
  const auto [entry, added] = known.try_emplace(threads, 0.0);
  if (added) entry->second = measure_read_bandwidth(threads, int64_t{1} << 29);
  return entry->second;
}

// oneDNN's FLOP per second in `type` on a large product; int4 counts against int8. Measured once.
inline double gemm_peak(ComputeType type, int threads) {
  static std::map<std::pair<ComputeType, int>, double> known;
  const auto [entry, added] = known.try_emplace({type, threads}, 0.0);
  if (added) {
    entry->second = measure_gemm(type == ComputeType::int4 ? ComputeType::int8 : type, 512, 1024, 9216, threads);
  }
  return entry->second;
}

// Counters of an iteration that moves `bytes` and computes `flops`: rates, and fractions of the limits (of bandwidth
// above 1: the data lay in a cache). Made before the loop, reported after it; for benchmarks with UseRealTime().
class Rates {
 public:
  explicit Rates(benchmark::State& state) : state_(state), begin_(Clock::now()) {}

  void report(double bytes, double flops, ComputeType type, int threads) const {
    const std::chrono::duration<double> seconds = Clock::now() - begin_;
    const double per_second = static_cast<double>(state_.iterations()) / seconds.count();
    const auto rate = benchmark::Counter::kIsIterationInvariantRate;
    state_.counters["bytes"] = benchmark::Counter(bytes, rate);
    state_.counters["FLOP"] = benchmark::Counter(flops, rate);
    // A rate counter would print a fraction with "/s".
    state_.counters["of_bandwidth"] = bytes * per_second / read_bandwidth(threads);
    const double peak = gemm_peak(type, threads);
    if (peak > 0) state_.counters["of_gemm"] = flops * per_second / peak;
  }

 private:
  using Clock = std::chrono::steady_clock;

  benchmark::State& state_;
  Clock::time_point begin_;
};

// 1 and, if there are more, all cores.
inline std::vector<int64_t> thread_counts() {
  const int64_t all = usable_cores();
  return all > 1 ? std::vector<int64_t>{1, all} : std::vector<int64_t>{1};
}

inline std::vector<float> normals(int64_t n, float scale, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& x : values) x = normal(random);
  return values;
}

}  // namespace lfm::bench
