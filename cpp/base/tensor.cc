#include "base/tensor.h"

#include <bit>
#include <cstring>

#include "base/error.h"

namespace lfm {

namespace {

float half_at(const uint8_t* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return f16_to_f32(bits);
}

// Values 0 to 15 are the low halves of 16 bytes, 16 to 31 the high ones, minus `zero`.
void split_halves(const uint8_t* bytes, int zero, int8_t* q) {
  for (int64_t i = 0; i < kGroup / 2; ++i) {
    q[i] = static_cast<int8_t>((bytes[i] & 15) - zero);
    q[i + kGroup / 2] = static_cast<int8_t>((bytes[i] >> 4) - zero);
  }
}

// q4_0, q4_1, q5_0, q5_1: an fp16 scale, for _1 an fp16 minimum, for 5 bits the 32 fifth bits, then the halves.
QuantGroup read_simple(const uint8_t* bytes, bool has_min, bool five_bits) {
  QuantGroup group = {};
  group.scale[0] = group.scale[1] = half_at(bytes);
  bytes += 2;
  if (has_min) group.min = half_at(bytes), bytes += 2;
  split_halves(bytes + (five_bits ? 4 : 0), has_min ? 0 : five_bits ? 16 : 8, group.q);
  if (five_bits) {
    for (int64_t i = 0; i < kGroup; ++i)
      group.q[i] = static_cast<int8_t>(group.q[i] + (bytes[i / 8] >> i % 8 & 1) * 16);
  }
  return group;
}

// q4_k, q5_k: fp16 scales of the scales and of the minima, 12 bytes with 8 scales and 8 minima of 6 bits, for q5_k 32
// bytes of fifth bits (bit g of byte i: value i of group g), then per pair of groups 32 bytes of halves.
QuantGroup read_k(const uint8_t* bytes, int64_t g, bool five_bits) {
  const uint8_t* packed = bytes + 4;
  int scale, min;
  if (g < 4) {
    scale = packed[g] & 63;
    min = packed[g + 4] & 63;
  } else {
    scale = (packed[g + 4] & 15) | (packed[g - 4] >> 6) << 4;
    min = packed[g + 4] >> 4 | (packed[g] >> 6) << 4;
  }
  QuantGroup group = {};
  group.scale[0] = group.scale[1] = half_at(bytes) * static_cast<float>(scale);
  group.min = -(half_at(bytes + 2) * static_cast<float>(min));
  const uint8_t* fifth = bytes + 16;
  const uint8_t* halves = fifth + (five_bits ? kGroup : 0) + g / 2 * kGroup;
  for (int64_t i = 0; i < kGroup; ++i) {
    const int high = five_bits ? (fifth[i] >> g & 1) * 16 : 0;
    group.q[i] = static_cast<int8_t>((g % 2 == 0 ? halves[i] & 15 : halves[i] >> 4) + high);
  }
  return group;
}

// q6_k: 128 bytes of low halves, 64 of high pairs of bits, 16 int8 scales, then their fp16 scale. Each half of a block
// has four groups: their values i share the low bytes i and 32 + i (groups 0, 2 and 1, 3) and the byte of high bits i.
QuantGroup read_q6_k(const uint8_t* bytes, int64_t g) {
  const uint8_t* low = bytes + g / 4 * 64 + g % 2 * kGroup;
  const uint8_t* high = bytes + 128 + g / 4 * kGroup;
  const auto* scales = reinterpret_cast<const int8_t*>(bytes + 192) + 2 * g;
  QuantGroup group = {};
  group.super_scale = half_at(bytes + 208);
  for (int i = 0; i < 2; ++i) {
    group.step[i] = scales[i];
    group.scale[i] = group.super_scale * static_cast<float>(scales[i]);
  }
  for (int64_t i = 0; i < kGroup; ++i) {
    const int bits = (high[i] >> g % 4 * 2 & 3) << 4 | (g % 4 < 2 ? low[i] & 15 : low[i] >> 4);
    group.q[i] = static_cast<int8_t>(bits - 32);
  }
  return group;
}

}  // namespace

QuantGroup read_group(const TensorView& tensor, int64_t row, int64_t group) {
  const int64_t per_block = block_values(tensor.dtype) / kGroup;
  const auto* bytes = static_cast<const uint8_t*>(tensor.data) + row * row_bytes(tensor.dtype, tensor.cols()) +
                      group / per_block * block_bytes(tensor.dtype);
  switch (tensor.dtype) {
    case DType::q4_0: return read_simple(bytes, false, false);
    case DType::q4_1: return read_simple(bytes, true, false);
    case DType::q5_0: return read_simple(bytes, false, true);
    case DType::q5_1: return read_simple(bytes, true, true);
    case DType::q4_k: return read_k(bytes, group % per_block, false);
    case DType::q5_k: return read_k(bytes, group % per_block, true);
    case DType::q6_k: return read_q6_k(bytes, group % per_block);
    default: break;
  }
  QuantGroup q8 = {};  // an fp16 scale, then 32 int8
  q8.scale[0] = q8.scale[1] = half_at(bytes);
  std::memcpy(q8.q, bytes + 2, kGroup);
  return q8;
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
    default:
      for (int64_t g = 0; g < cols / kGroup; ++g) {
        const QuantGroup group = read_group(tensor, row, g);
        for (int64_t i = 0; i < kGroup; ++i) {
          out[g * kGroup + i] = group.scale[i / 16] * static_cast<float>(group.q[i]) + group.min;
        }
      }
      break;
  }
  uint32_t not_finite = 0;  // integers: a float sum would not be vectorized
  for (int64_t i = 0; i < cols; ++i) {
    not_finite |= (std::bit_cast<uint32_t>(out[i]) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  }
  return not_finite == 0;
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
