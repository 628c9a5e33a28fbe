// Kernels that work row by row: the short convolution and RMSNorm, on one thread, for decode and for a prefill chunk.
#include "bench.h"
#include "kernels/kernels.h"

namespace lfm::bench {
namespace {

constexpr int64_t kHidden = 1024, kTaps = 3;

void short_conv(benchmark::State& state) {
  const int64_t tokens = state.range(0);
  const std::vector<float> bcx = normals(tokens * 3 * kHidden, 1.0f), weight = normals(kTaps * kHidden, 0.5f);
  std::vector<float> past((kTaps - 1) * kHidden), y(static_cast<size_t>(tokens * kHidden));
  const Kernels& kernels = active_kernels();
  const Rates rates(state);
  for (auto _ : state) {
    kernels.short_conv(bcx.data(), tokens, kHidden, 0, kHidden, weight.data(), nullptr, kTaps, past.data(), past.data(),
                       y.data());
    benchmark::ClobberMemory();
  }
  const auto values = static_cast<double>(tokens * kHidden);
  const double constants = static_cast<double>(kTaps + 2 * (kTaps - 1)) * kHidden * sizeof(float);
  rates.report(values * 4 * sizeof(float) + constants, values * (2 * kTaps + 2), ComputeType::f32, 1);
}

void rms_norm(benchmark::State& state) {
  const int64_t rows = state.range(0);
  const std::vector<float> x = normals(rows * kHidden, 1.0f), weight = normals(kHidden, 1.0f);
  std::vector<float> y(x.size());
  const Kernels& kernels = active_kernels();
  const Rates rates(state);
  for (auto _ : state) {
    for (int64_t r = 0; r < rows; ++r) {
      kernels.rms_norm(&x[static_cast<size_t>(r * kHidden)], weight.data(), 1e-5f, kHidden,
                       &y[static_cast<size_t>(r * kHidden)]);
    }
    benchmark::ClobberMemory();
  }
  const auto values = static_cast<double>(rows * kHidden);
  rates.report(values * 2 * sizeof(float) + kHidden * sizeof(float), values * 4, ComputeType::f32, 1);
}

BENCHMARK(short_conv)->Arg(1)->Arg(32)->Arg(256)->ArgName("tokens")->UseRealTime()->Unit(benchmark::kMicrosecond);
BENCHMARK(rms_norm)->Arg(1)->Arg(32)->Arg(256)->ArgName("rows")->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace lfm::bench
