// The limit of integer products in groups of 32: what a core computes if nothing is loaded, stored or unpacked.
// `plain` is dot-product instructions alone, as in oneDNN's int8 GEMM; `grouped` adds what each group's scales need for
// 16 outputs: a conversion, the product of the two scales, and a multiply-add. On CPUs whose dot products share their
// ports with floating-point multiplications (Zen 4) that is a fifth less: 8 of 10 slots. With activations scaled by
// `powers` of two the product of the scales is an integer addition: 8 of 9 slots.
#include <immintrin.h>

#include <cstdint>

#include "bench.h"

namespace lfm::bench {
namespace {

#define LFM_VNNI __attribute__((target("avx512f,avx512vnni")))

constexpr int kOutputs = 12;                          // vectors of sums: as many as the kernels' tiles have
constexpr int64_t kGroups = 1024, kValuesOfDot = 64;  // products of one instruction

LFM_VNNI float plain(__m512i weights, __m512i quad, __m512) {
  __m512i dot[kOutputs];
  for (auto& d : dot) {
    d = _mm512_setzero_si512();
    asm volatile("" : "+v"(d));
  }
  for (int64_t g = 0; g < kGroups; ++g) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 12
      for (auto& d : dot) d = _mm512_dpbusd_epi32(d, weights, quad);
    }
  }
  for (int i = 1; i < kOutputs; ++i) dot[0] = _mm512_add_epi32(dot[0], dot[i]);
  return static_cast<float>(_mm512_reduce_add_epi32(dot[0]));
}

template <bool Powers>
LFM_VNNI float grouped(__m512i weights, __m512i quad, __m512 scale) {
  __m512 sum[kOutputs], x_scale = scale;
  for (auto& s : sum) s = _mm512_setzero_ps();
  for (int64_t g = 0; g < kGroups; ++g) {
    asm volatile("" : "+v"(scale));  // another one each time
    __m512i dot[kOutputs];
    for (auto& d : dot) {
      d = _mm512_setzero_si512();
      asm volatile("" : "+v"(d));  // or all would be one
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 12
      for (auto& d : dot) d = _mm512_dpbusd_epi32(d, weights, quad);
    }
#pragma GCC unroll 12
    for (int i = 0; i < kOutputs; ++i) {
      asm volatile("" : "+v"(x_scale));  // each output has other scales
      const __m512i exponents = _mm512_add_epi32(_mm512_castps_si512(scale), _mm512_castps_si512(x_scale));
      const __m512 both = Powers ? _mm512_castsi512_ps(exponents) : _mm512_mul_ps(scale, x_scale);
      sum[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i]), both, sum[i]);
    }
  }
  for (int i = 1; i < kOutputs; ++i) sum[0] = _mm512_add_ps(sum[0], sum[i]);
  return _mm512_reduce_add_ps(sum[0]);
}

LFM_VNNI void dots(benchmark::State& state, float (*product)(__m512i, __m512i, __m512)) {
  if (active_isa() < Isa::avx512) return state.SkipWithError("needs AVX-512 VNNI");
  __m512i weights = _mm512_set1_epi8(3), quad = _mm512_set1_epi8(-5);
  const Rates rates(state);
  for (auto _ : state) {
    asm volatile("" : "+v"(weights), "+v"(quad));
    benchmark::DoNotOptimize(product(weights, quad, _mm512_set1_ps(0.5f)));
  }
  rates.report(0, 2.0 * kOutputs * 8 * kGroups * kValuesOfDot, ComputeType::int8, 1);
}

const bool registered = [] {
  for (auto* bench :
       {benchmark::RegisterBenchmark("dot/int8/plain", [](benchmark::State& s) { dots(s, plain); }),
        benchmark::RegisterBenchmark("dot/int8/grouped", [](benchmark::State& s) { dots(s, grouped<false>); }),
        benchmark::RegisterBenchmark("dot/int8/powers", [](benchmark::State& s) { dots(s, grouped<true>); })}) {
    bench->UseRealTime()->Unit(benchmark::kMicrosecond);
  }
  return true;
}();

}  // namespace
}  // namespace lfm::bench
