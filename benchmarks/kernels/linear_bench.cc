// Linear layers on LFM2.5-350M's shapes: every type, few rows (decode, batches) and many (prefill).
#include <cmath>
#include <cstring>
#include <string>

#include "bench.h"
#include "kernels/linear.h"

namespace lfm::bench {
namespace {

struct Shape {
  const char* name;
  int64_t k, n;
};

constexpr Shape kShapes[] = {{"conv_in", 1024, 3072}, {"qkv", 1024, 2048}, {"out", 1024, 1024},
                             {"w1w3", 1024, 9216},    {"w2", 4608, 1024},  {"head", 1024, 65536}};

// More than the caches: in a model, every layer's weights come from memory.
constexpr size_t kColdBytes = size_t{160} << 20;

// Random weights stored so that packing need not round them: for int4 in 4 bits, but 6 for the output head.
std::vector<std::byte> random_weights(ComputeType type, int64_t n, int64_t k, bool head, DType& dtype) {
  std::mt19937 random(1);
  if (type == ComputeType::f32) {
    dtype = DType::f32;
    std::vector<std::byte> data(static_cast<size_t>(n * k) * sizeof(float));
    for (size_t i = 0; i < data.size(); i += sizeof(float)) {
      const float value = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-36f;
      std::memcpy(&data[i], &value, sizeof(float));
    }
    return data;
  }
  if (type == ComputeType::bf16) {
    dtype = DType::bf16;
    std::vector<std::byte> data(static_cast<size_t>(n * k) * sizeof(uint16_t));
    for (size_t i = 0; i < data.size(); i += sizeof(uint16_t)) {
      // Any sign and mantissa, 2^-6 and more.
      const auto value = static_cast<uint16_t>((random() & 0x807fu) | 0x3c80u);
      std::memcpy(&data[i], &value, sizeof(uint16_t));
    }
    return data;
  }
  dtype = type == ComputeType::int8 ? DType::q8_0 : head ? DType::q6_k : DType::q4_0;
  const auto block = static_cast<size_t>(block_bytes(dtype));
  std::vector<std::byte> data(static_cast<size_t>(n * row_bytes(dtype, k)));
  for (std::byte& b : data) b = static_cast<std::byte>(random());
  const uint16_t scale = dtype == DType::q4_0 ? 0x1800 : 0x0c00;  // fp16 2^-9 and 2^-12
  const size_t at = dtype == DType::q6_k ? block - sizeof(scale) : 0;
  for (size_t i = at; i < data.size(); i += block) std::memcpy(&data[i], &scale, sizeof(scale));
  return data;
}

std::vector<std::unique_ptr<Linear>> cold_copies(const Shape& shape, ComputeType type) {
  DType dtype = DType::f32;
  const std::vector<std::byte> data = random_weights(type, shape.n, shape.k, shape.n > 10'000, dtype);
  TensorView view;
  view.name = shape.name;
  view.data = data.data();
  view.dtype = dtype;
  view.shape = {shape.n, shape.k};
  const ThreadScope threads(usable_cores());
  Arena arena(size_t{64} << 20);  // as in a model
  std::vector<std::unique_ptr<Linear>> copies;
  for (size_t bytes = 0; bytes < kColdBytes; bytes += copies.back()->nbytes()) {
    copies.push_back(make_linear(std::span(&view, 1), type, active_isa(), arena));
  }
  return copies;
}

void linear(benchmark::State& state, const Shape& shape, ComputeType type) {
  const int64_t rows = state.range(0);
  const auto threads = static_cast<int>(state.range(1));
  const auto copies = cold_copies(shape, type);
  const ThreadScope scope(threads);
  const std::vector<float> x = normals(rows * shape.k, 1.0f);
  std::vector<float> y(static_cast<size_t>(rows * shape.n));
  LinearScratch scratch;
  copies[0]->forward(x.data(), rows, y.data(), false, scratch);  // sizes the scratch
  size_t next = 1;
  const Rates rates(state);
  for (auto _ : state) {
    copies[next++ % copies.size()]->forward(x.data(), rows, y.data(), false, scratch);
    benchmark::ClobberMemory();
  }
  const double activations = static_cast<double>(rows * (shape.k + shape.n)) * sizeof(float);
  const double flops = 2.0 * static_cast<double>(rows * shape.k) * static_cast<double>(shape.n);
  rates.report(static_cast<double>(copies[0]->nbytes()) + activations, flops, type, threads);
  state.SetLabel(std::string(copies[0]->implementation()));
}

const bool registered = [] {
  for (const ComputeType type : kAllComputeTypes) {
    for (const Shape& shape : kShapes) {
      const std::string name = "linear/" + std::string(compute_type_name(type)) + "/" + shape.name;
      benchmark::RegisterBenchmark(name.c_str(), [&shape, type](benchmark::State& s) { linear(s, shape, type); })
          ->ArgsProduct({{1, 8, 32, 512}, thread_counts()})
          ->ArgNames({"rows", "threads"})
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace lfm::bench
