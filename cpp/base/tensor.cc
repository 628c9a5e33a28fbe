#include "base/tensor.h"

#include <cstring>

#include "base/error.h"

namespace lfm {

QuantBlock read_block(const TensorView& tensor, int64_t row, int64_t group) {
  const auto* bytes = static_cast<const std::byte*>(tensor.data) + row * row_bytes(tensor.dtype, tensor.cols()) +
                      group * block_bytes(tensor.dtype);
  QuantBlock block = {};
  std::memcpy(&block.scale, bytes, 2);
  if (tensor.dtype == DType::q8_0) {
    std::memcpy(block.q, bytes + 2, kGroup);
    return block;
  }
  const bool has_min = tensor.dtype == DType::q4_1;
  if (has_min) std::memcpy(&block.min, bytes + 2, 2);
  const auto* halves = reinterpret_cast<const uint8_t*>(bytes) + (has_min ? 4 : 2);
  const int zero = has_min ? 0 : 8;
  for (int64_t i = 0; i < kGroup / 2; ++i) {
    block.q[i] = static_cast<int8_t>((halves[i] & 15) - zero);
    block.q[i + kGroup / 2] = static_cast<int8_t>((halves[i] >> 4) - zero);
  }
  return block;
}

bool read_row(const TensorView& tensor, int64_t row, float* out) {
  const int64_t cols = tensor.cols();
  const auto* bytes = static_cast<const std::byte*>(tensor.data) + row * row_bytes(tensor.dtype, cols);
  const auto* halves = reinterpret_cast<const uint16_t*>(bytes);
  switch (tensor.dtype) {
    case DType::f32: std::memcpy(out, bytes, static_cast<size_t>(cols) * sizeof(float)); break;
    case DType::bf16:
      for (int64_t i = 0; i < cols; ++i) out[i] = bf16_to_f32(halves[i]);
      break;
    case DType::f16:
      for (int64_t i = 0; i < cols; ++i) out[i] = f16_to_f32(halves[i]);
      break;
    case DType::q8_0:
    case DType::q4_0:
    case DType::q4_1:
      for (int64_t g = 0; g < cols / kGroup; ++g) {
        const QuantBlock block = read_block(tensor, row, g);
        const float scale = f16_to_f32(block.scale), min = f16_to_f32(block.min);
        for (int64_t i = 0; i < kGroup; ++i) out[g * kGroup + i] = scale * static_cast<float>(block.q[i]) + min;
      }
      break;
  }
  // x * 0 is 0 for every finite x and NaN otherwise: one vectorizable pass without branches.
  float poison = 0.0f;
  for (int64_t i = 0; i < cols; ++i) poison += out[i] * 0.0f;
  return poison == 0.0f;
}

std::string not_finite_message(const std::string& name) {
  return concat("tensor '", name, "' holds NaN or infinite values");
}

std::vector<float> read_all(const TensorView& tensor) {
  const int64_t rows = tensor.rows(), cols = tensor.cols();
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    check(read_row(tensor, r, values.data() + r * cols), not_finite_message(tensor.name));
  }
  return values;
}

}  // namespace lfm
