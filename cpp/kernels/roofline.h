// The machine's own limits, measured: what speed is compared with.
#pragma once

#include <cstdint>

#include "kernels/linear.h"

namespace lfm {

// Bytes per second that `num_threads` threads read from memory, streaming over a buffer of `bytes` (far larger than
// the caches); the best of several passes, each thread with one stream or with four.
double measure_read_bandwidth(int num_threads, int64_t bytes);

// FLOP per second of oneDNN's own matmul [rows, k] x [k, n] with packed weights; best of several runs. `type` f32 or
// bf16, fp32 output, or int8: u8 x s8 with int32 output and no scales. 0 where oneDNN has no such product on
// active_isa().
double measure_gemm(ComputeType type, int64_t rows, int64_t k, int64_t n, int num_threads);

}  // namespace lfm
