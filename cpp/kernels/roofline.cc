#include "kernels/roofline.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <unordered_map>

#include "base/dtype.h"
#include "base/error.h"
#include "base/parallel.h"
#include "kernels/onednn_linear.h"

namespace lfm {
namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <class Work>
double best_seconds(int runs, const Work& work) {
  double best = 1e30;
  work();  // warm-up
  for (int i = 0; i < runs; ++i) {
    const double start = seconds();
    work();
    best = std::min(best, seconds() - start);
  }
  return best;
}

// Varied values of moderate size: with zeros, which switch no wires, the clock is some percent higher than in real
// work.
void fill(ComputeType type, Buffer<std::byte>& buffer) {
  uint32_t bits = 1;
  const auto next = [&] { return bits = bits * 1664525 + 1013904223; };
  const auto store = [&](auto value, size_t at) { std::memcpy(buffer.data() + at, &value, sizeof(value)); };
  for (size_t at = 0; at < buffer.size();) {
    const float value = static_cast<float>(static_cast<int32_t>(next())) * 0x1p-36f;
    switch (type) {
      case ComputeType::f32: store(value, at), at += sizeof(float); break;
      case ComputeType::bf16: store(f32_to_bf16(value), at), at += sizeof(uint16_t); break;
      default: store(static_cast<uint8_t>(bits >> 24), at++); break;
    }
  }
}

constexpr int64_t kLine = 8, kPiece = 128;  // in uint64_t

// Eight independent results: loads, not the arithmetic, are what this loop waits for.
uint64_t read_piece(const uint64_t* p) {
  uint64_t s[kLine] = {};
  for (int64_t i = 0; i < kPiece; i += kLine) {
    for (int64_t l = 0; l < kLine; ++l) s[l] ^= p[i + l];
  }
  return s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6] ^ s[7];
}

}  // namespace

double measure_read_bandwidth(int num_threads, int64_t bytes) {
  check(bytes >= 1 << 20, "bytes must be at least 1 MiB, not ", bytes);
  const ThreadScope threads(num_threads);
  Buffer<uint64_t> data(static_cast<size_t>(bytes) / sizeof(uint64_t));
  // Untouched memory is one shared page of zeros: write all of it first.
  parallel_ranges(static_cast<int64_t>(data.size()), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) data[static_cast<size_t>(i)] = static_cast<uint64_t>(i);
  });
  volatile uint64_t sink = 0;
  const auto n = static_cast<int64_t>(data.size());
  const uint64_t* p = data.data();
  // As hardware fetches it, one stream for each thread; and as some cores get more: several streams, whose next piece
  // is asked for.
  const double plain = best_seconds(7, [&] {
    uint64_t total = 0;
#pragma omp parallel for schedule(static) reduction(^ : total)
    for (int64_t i = 0; i < n / kPiece; ++i) total ^= read_piece(p + i * kPiece);
    sink = sink ^ total;
  });
  constexpr int64_t kStreams = 4, kStream = 32 * kPiece, kBlock = kStreams * kStream;
  const double streams = best_seconds(7, [&] {
    uint64_t total = 0;
#pragma omp parallel for schedule(static) reduction(^ : total)
    for (int64_t block = 0; block < n / kBlock; ++block) {
      for (int64_t at = 0; at < kStream; at += kPiece) {
        for (int64_t s = 0; s < kStreams; ++s) {
          const uint64_t* piece = p + block * kBlock + s * kStream + at;
          for (int64_t i = 0; i < kPiece; i += kLine) __builtin_prefetch(piece + kPiece + i);
          total ^= read_piece(piece);
        }
      }
    }
    sink = sink ^ total;
  });
  constexpr double kWord = sizeof(uint64_t);
  return kWord *
         std::max(static_cast<double>(n / kPiece * kPiece) / plain, static_cast<double>(n / kBlock * kBlock) / streams);
}

double measure_gemm(ComputeType type, int64_t rows, int64_t k, int64_t n, int num_threads) {
  check(rows >= 1 && k >= 1 && n >= 1, "rows, k and n must be positive");
  check(type != ComputeType::int4, "dtype must be float32, bfloat16 or int8");
  if (active_isa() < Isa::avx2 || (type == ComputeType::bf16 && active_isa() < Isa::avx512)) return 0;
  const ThreadScope threads(num_threads);
  using dnnl::memory;
  using data_type = memory::data_type;
  const bool integer = type == ComputeType::int8;
  const auto weights_type = integer ? data_type::s8 : type == ComputeType::bf16 ? data_type::bf16 : data_type::f32;
  const auto source_type = integer ? data_type::u8 : weights_type;
  const auto ab = memory::format_tag::ab;
  const dnnl::engine& engine = onednn_engine();
  const dnnl::matmul::primitive_desc pd(
      engine, memory::desc({rows, k}, source_type, ab), memory::desc({k, n}, weights_type, memory::format_tag::any),
      memory::desc({rows, n}, integer ? data_type::s32 : data_type::f32, ab), dnnl::primitive_attr(), true);
  if (!pd) return 0;
  const dnnl::matmul product(pd);
  dnnl::stream stream(engine);
  Buffer<std::byte> a(pd.src_desc().get_size()), b(pd.weights_desc().get_size()), c(pd.dst_desc().get_size());
  fill(type, a);
  fill(type, b);
  const std::unordered_map<int, memory> args = {{DNNL_ARG_SRC, memory(pd.src_desc(), engine, a.data())},
                                                {DNNL_ARG_WEIGHTS, memory(pd.weights_desc(), engine, b.data())},
                                                {DNNL_ARG_DST, memory(pd.dst_desc(), engine, c.data())}};
  const double best = best_seconds(5, [&] {
    product.execute(stream, args);
    stream.wait();
  });
  return 2.0 * static_cast<double>(rows) * static_cast<double>(k) * static_cast<double>(n) / best;
}

}  // namespace lfm
