// The layout of KV pages: kPage tokens of one layer and head, K and V apart. One layout per type, the same on every
// ISA, so that a kernel reads whole vectors front to back and a dot-product instruction finds its pairs side by side:
//
//   K [head_dim / pair][kPage][pair]           lanes are tokens, a pair is two neighbours along head_dim
//   V [kPage / pair][padded_head_dim][pair]    lanes are features, a pair is two neighbouring tokens
//
// pair is 1 for float32 and 2 for bfloat16 and int8. int8 is followed by bf16 scales [kPage], one per token: an element
// is worth value * scale.
#pragma once

#include <cstdint>
#include <string_view>

namespace lfm {

enum class KvType : uint8_t { f32, bf16, int8 };
inline constexpr int kKvTypes = 3;

inline constexpr int64_t kPage = 64;             // tokens of one KV page
inline constexpr int64_t kAttentionBlock = 512;  // tokens whose softmax state is computed on its own

constexpr std::string_view kv_type_name(KvType type) {
  switch (type) {
    case KvType::f32: return "float32";
    case KvType::bf16: return "bfloat16";
    case KvType::int8: return "int8";
  }
  return "?";
}

// V rows are padded with zeros to whole vectors.
constexpr int64_t padded_head_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

constexpr int64_t kv_pair(KvType type) { return type == KvType::f32 ? 1 : 2; }

// Index of element d of the token at `slot`.
constexpr int64_t k_index(KvType type, int64_t slot, int64_t d) {
  const int64_t pair = kv_pair(type);
  return (d / pair * kPage + slot) * pair + d % pair;
}
constexpr int64_t v_index(KvType type, int64_t head_dim, int64_t slot, int64_t d) {
  const int64_t pair = kv_pair(type);
  return (slot / pair * padded_head_dim(head_dim) + d) * pair + slot % pair;
}

constexpr int64_t k_elements(int64_t head_dim) { return kPage * head_dim; }
constexpr int64_t v_elements(int64_t head_dim) { return kPage * padded_head_dim(head_dim); }

// Bytes of the K or V of one layer and head in a page: elements, then the scales. A multiple of 64.
constexpr int64_t kv_bytes(KvType type, int64_t elements) {
  switch (type) {
    case KvType::f32: return 4 * elements;
    case KvType::bf16: return 2 * elements;
    case KvType::int8: return elements + kPage * 2;
  }
  return 0;
}

// int8 attention multiplies K by queries, and V by weights, rounded to this many steps: as fine as int32 sums over
// `terms` products with int8 allow, at most 15 bits.
constexpr int32_t int8_operand_max(int64_t terms) {
  const int64_t most = 0x7fffffff / (127 * terms);
  return static_cast<int32_t>(most < 32767 ? most : 32767);
}

}  // namespace lfm
