// Element types of tensors and their scalar conversions.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lfm {

// The quantized types are rows of blocks, laid out as GGUF's types of these names (see tensor.cc).
enum class DType : uint8_t { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k };

inline constexpr DType kAllDTypes[] = {DType::f32,  DType::f16,  DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1,
                                       DType::q5_0, DType::q5_1, DType::q4_k, DType::q5_k, DType::q6_k};
inline constexpr int64_t kGroup = 32;        // values that share one scale
inline constexpr int64_t kSuperBlock = 256;  // values of a block of the types named _k

// Values and bytes of one stored block, 1 and the bytes of a value for types without.
constexpr int64_t block_values(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::f16:
    case DType::bf16: return 1;
    case DType::q8_0:
    case DType::q4_0:
    case DType::q4_1:
    case DType::q5_0:
    case DType::q5_1: return kGroup;
    case DType::q4_k:
    case DType::q5_k:
    case DType::q6_k: return kSuperBlock;
  }
  return 0;
}
constexpr int64_t block_bytes(DType dtype) {
  switch (dtype) {
    case DType::f32: return 4;
    case DType::f16:
    case DType::bf16: return 2;
    case DType::q8_0: return 2 + kGroup;
    case DType::q4_0: return 2 + kGroup / 2;
    case DType::q4_1: return 4 + kGroup / 2;
    case DType::q5_0: return 2 + kGroup / 8 + kGroup / 2;
    case DType::q5_1: return 4 + kGroup / 8 + kGroup / 2;
    case DType::q4_k: return 4 + 12 + kSuperBlock / 2;
    case DType::q5_k: return 4 + 12 + kSuperBlock / 8 + kSuperBlock / 2;
    case DType::q6_k: return kSuperBlock / 2 + kSuperBlock / 4 + kSuperBlock / 16 + 2;
  }
  return 0;
}
constexpr bool is_quantized(DType dtype) { return block_values(dtype) > 1; }

constexpr std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::q8_0: return "q8_0";
    case DType::q4_0: return "q4_0";
    case DType::q4_1: return "q4_1";
    case DType::q5_0: return "q5_0";
    case DType::q5_1: return "q5_1";
    case DType::q4_k: return "q4_k";
    case DType::q5_k: return "q5_k";
    case DType::q6_k: return "q6_k";
  }
  return "?";
}

// Bytes of one row of `cols` values, which are whole blocks.
constexpr int64_t row_bytes(DType dtype, int64_t cols) { return cols / block_values(dtype) * block_bytes(dtype); }

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
