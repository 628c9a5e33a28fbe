// Element types of tensors and their scalar conversions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lfm {

// q8_0, q4_0, q4_1: rows of blocks of 32 values, laid out as GGUF's types of these names:
// q8_0: an fp16 scale, then 32 int8; value = scale * q.
// q4_0: an fp16 scale, then 16 bytes, values 0 to 15 in their low halves, 16 to 31 in the high ones; scale * (q - 8).
// q4_1: fp16 scale and minimum, then the same 16 bytes; value = scale * q + min.
enum class DType : uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1 };

inline constexpr DType kAllDTypes[] = {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1};
inline constexpr int64_t kGroup = 32;  // values that share one scale

// Bytes of one stored block, 0 for types that have none.
constexpr int64_t block_bytes(DType dtype) {
  switch (dtype) {
    case DType::q8_0: return 2 + kGroup;
    case DType::q4_0: return 2 + kGroup / 2;
    case DType::q4_1: return 4 + kGroup / 2;
    default: return 0;
  }
}
constexpr bool is_quantized(DType dtype) { return block_bytes(dtype) > 0; }

constexpr std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::q8_0: return "q8_0";
    case DType::q4_0: return "q4_0";
    case DType::q4_1: return "q4_1";
  }
  return "?";
}

// Bytes of one row of `cols` values (cols is a multiple of 32 for quantized types).
constexpr int64_t row_bytes(DType dtype, int64_t cols) {
  if (is_quantized(dtype)) return cols / kGroup * block_bytes(dtype);
  return (dtype == DType::f32 ? 4 : 2) * cols;
}

inline float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

// Round to nearest even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude << 13));
  // Exponent shift by a multiplication also makes subnormals right.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

// Round to nearest even; overflow becomes infinity.
inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
  if (magnitude < 0x38800000u) {  // subnormal: let the FPU round at 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000u);
  }
  return sign | static_cast<uint16_t>((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13);
}

}  // namespace lfm
