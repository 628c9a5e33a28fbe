#include "kernels/linear.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/parallel.h"
#include "kernels/onednn_linear.h"
#include "kernels/panel_linear.h"
#include "kernels/quant_linear.h"
#include "kernels/row_tasks.h"
#include "kernels/tile_linear.h"

namespace lfm {

std::string_view compute_type_name(ComputeType type) {
  switch (type) {
    case ComputeType::f32: return "float32";
    case ComputeType::bf16: return "bfloat16";
    case ComputeType::int8: return "int8";
    case ComputeType::int4: return "int4";
  }
  return "?";
}

ComputeType compute_type_from_name(std::string_view name) {
  for (const ComputeType type : kAllComputeTypes) {
    if (compute_type_name(type) == name) return type;
  }
  throw std::invalid_argument(concat("dtype '", name, "' is not supported; use float32, bfloat16, int8 or int4"));
}

void Linear::set_bias(std::vector<float> bias) {
  check(static_cast<int64_t>(bias.size()) == out_features_, "bias has ", bias.size(), " values, expected ",
        out_features_);
  bias_ = std::move(bias);
}

void Linear::add_bias(float* y, int64_t rows) const {
  if (bias_.empty()) return;
  parallel_for(rows, [&](int64_t m) {
    for (int64_t n = 0; n < out_features_; ++n) y[m * out_features_ + n] += bias_[n];
  });
}

// Each input's squares are summed in the order of rows, so that the sums do not depend on the threads.
void Linear::add_squares(const float* x, int64_t rows, InputSquares& squares) const {
  std::vector<double>& sums = squares[this];
  sums.resize(static_cast<size_t>(in_features_));
  parallel_ranges(in_features_, 64, [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t i = begin; i < end; ++i) sums[i] += double{x[m * in_features_ + i]} * x[m * in_features_ + i];
    }
  });
}

void Linear::forward(const float* x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const {
  if (rows == 0) return;
  const void* input = x;
  if (const size_t bytes = activation_bytes(rows); bytes > 0) {
    std::byte* activations = scratch.activations.ensure(bytes);
    parallel_for(rows, [&](int64_t m) { convert_row(x + m * in_features_, m, rows, activations); });
    input = activations;
  }
  if (scratch.squares != nullptr) add_squares(x, rows, *scratch.squares);
  multiply(input, rows, y, accumulate, scratch);
  add_bias(y, rows);
}

const void* Linear::convert(const RowSource& x, int64_t rows, LinearScratch& scratch) const {
  const size_t bytes = activation_bytes(rows);
  const auto values = static_cast<size_t>(rows * in_features_);
  std::byte* input = scratch.activations.ensure(bytes > 0 ? bytes : values * sizeof(float));
  const ThreadFloats buffers(scratch.rows, in_features_);
  parallel_for(rows, [&](int64_t m) {
    if (bytes == 0) return x(m, reinterpret_cast<float*>(input) + m * in_features_);
    float* row = buffers.of_this();
    x(m, row);
    convert_row(row, m, rows, input);
  });
  if (scratch.squares != nullptr && bytes == 0) {
    add_squares(reinterpret_cast<const float*>(input), rows, *scratch.squares);
  }
  return input;
}

void Linear::forward(const RowSource& x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const {
  if (rows == 0) return;
  multiply(convert(x, rows, scratch), rows, y, accumulate, scratch);
  add_bias(y, rows);
}

void Linear::forward_some(const RowSource& x, const uint32_t* wanted, float* y, LinearScratch& scratch) const {
  const int64_t block = output_block();
  if (block == 0 || has_bias()) return forward(x, 1, y, false, scratch);
  std::vector<int64_t> blocks;
  for (int64_t n = 0; n < out_features_; ++n) {
    if (wanted[n / 32] == 0) {
      n |= 31;  // a whole word without wanted outputs
    } else if ((wanted[n / 32] >> (n % 32) & 1) != 0) {
      blocks.push_back(n / block);
      n |= block - 1;
    }
  }
  multiply_blocks(convert(x, 1, scratch), blocks, y, scratch);
}

void Linear::forward_gated(const RowSource& x, int64_t rows, float* y, LinearScratch& scratch) const {
  if (rows > 0) multiply_gated(convert(x, rows, scratch), rows, y, scratch);
}

void Linear::forward_gated(const RowSource& x, int64_t rows, const Linear& next, float* y, bool accumulate,
                           LinearScratch& scratch) const {
  if (rows == 0) return;
  std::byte* activations = scratch.next.ensure(next.activation_bytes(rows));
  multiply_gated_for_next(convert(x, rows, scratch), rows, activations, scratch);
  next.multiply(activations, rows, y, accumulate, scratch);
  next.add_bias(y, rows);
}

void read_stacked_rows(std::span<const TensorView> parts, int64_t first, int64_t count, ComputeType type, float* out) {
  // Larger values round to infinity in bf16.
  const float limit = type == ComputeType::bf16 ? 0x1.fep127f : std::numeric_limits<float>::max();
  std::atomic<const TensorView*> bad{nullptr};
  int64_t offset = 0;  // of the part's first row in the stack
  for (const TensorView& part : parts) {
    const int64_t begin = std::max(first, offset), end = std::min(first + count, offset + part.rows());
    parallel_for(end - begin, [&](int64_t i) {
      const int64_t row = begin + i;
      float* to = out + (row - first) * part.cols();
      bool ok = read_row(part, row - offset, to);
      for (int64_t c = 0; c < part.cols(); ++c) ok &= std::fabs(to[c]) <= limit;
      if (!ok) bad.store(&part);
    });
    offset += part.rows();
  }
  if (const TensorView* tensor = bad.load()) {
    throw std::invalid_argument(concat(not_finite_message(tensor->name), " (as ", compute_type_name(type), ")"));
  }
}

std::unique_ptr<Linear> make_linear(std::span<const TensorView> parts, ComputeType type, Isa isa, Arena& arena,
                                    std::span<const float> importance) {
  if (type == ComputeType::int8 || type == ComputeType::int4) {
    return make_quant_linear(parts, type, kernels_for(isa), arena, importance);
  }
  if (type == ComputeType::bf16 && kernels_for(isa).gemm_tiles != nullptr) {
    return make_tile_linear(parts, kernels_for(isa), arena);
  }
  if (auto linear = OneDnnLinear::create(parts, type, isa, arena)) return linear;
  return make_panel_linear(parts, type, kernels_for(isa), arena);
}

std::unique_ptr<Linear> make_linear(std::span<const TensorView> parts, ComputeType type, Isa isa) {
  Arena own;
  return make_linear(parts, type, isa, own);
}

std::unique_ptr<Linear> make_linear(const PackedWeights& weights, Isa isa) {
  return make_quant_linear(weights, kernels_for(isa));
}

}  // namespace lfm
