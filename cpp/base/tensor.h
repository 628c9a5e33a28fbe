// A non-owning, C-contiguous view of a stored tensor, and reading its rows as fp32.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace lfm {

struct TensorView {
  std::string name;  // for error messages
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  // Floats shall not be rounded to fewer bits than these: 4, 6 or 8.
  int least_bits = 4;

  int64_t rows() const { return shape.size() > 1 ? shape[0] : 1; }
  int64_t cols() const {
    int64_t n = 1;
    for (size_t i = shape.size() > 1 ? 1 : 0; i < shape.size(); ++i) n *= shape[i];
    return n;
  }
  int64_t size() const { return rows() * cols(); }
};

// 32 stored values taken apart: value i = scale[i / 16] * q[i] + min. q6_k: scale[j] = super_scale * step[j].
struct QuantGroup {
  float scale[2], min;
  int8_t q[kGroup];
  float super_scale;
  int8_t step[2];
};

// Group `group` of row `row` of a quantized tensor. Exact: products of scales are not rounded.
QuantGroup read_group(const TensorView& tensor, int64_t row, int64_t group);

// Writes row `row` of `tensor` to out[cols] as fp32; returns false if a value is not finite.
bool read_row(const TensorView& tensor, int64_t row, float* out);

// All values as fp32, [rows * cols]. Throws std::invalid_argument naming the tensor on NaN or infinity.
std::vector<float> read_all(const TensorView& tensor);

// The message for a tensor with NaN or infinite values.
std::string not_finite_message(const std::string& name);

}  // namespace lfm
