// The table of CPU kernels. One table per ISA level, picked once (see dispatch.cc); the scalar `reference`
// table is the oracle that every other one is tested against.
//
// Kernels are noexcept, single-threaded and work on raw pointers; who calls them splits the work over threads.
// Each result depends only on its own inputs, never on how many rows or items share the call: that is what makes
// a token's logits the same in any batch, chunk and thread count.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "base/cpu.h"
#include "base/dtype.h"
#include "kernels/kv_page.h"

namespace lfm {

inline constexpr int64_t kPanel = 16;  // output features (lanes) of one packed weight panel
inline constexpr int64_t kBlock = 64;  // output features of one block of oneDNN's packed layouts

inline constexpr int64_t kMostRows = 96;    // of x, which stay in cache while panels of weights stream past them
inline constexpr int64_t kTileRows = 16;    // of x in one tile
inline constexpr int64_t kLogitBlock = 64;  // logits that a sampler skips together

// Rows as tiles have them.
constexpr int64_t tiled_rows(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }
// Bytes of x that stay in the L2 cache of a CPU with AMX (2 MB) beside weights.
inline constexpr int64_t kTiledCache = 5 << 18;

// Tiles of bf16. Every block of rows reads all weights again, which memory gives more slowly than tiles take them: many
// rows together, with as many of their inputs at a time as the cache holds.
inline constexpr int64_t kMostTiledRows = 512, kMostTiledFeatures = 1024;
constexpr int64_t tile_steps(int64_t rows, int64_t steps) {  // a step: 32 inputs
  constexpr int64_t kStepBytes = 64, kSteps = 8;
  const int64_t most = kTiledCache / (std::min(rows, kMostTiledRows) * kStepBytes);
  return steps <= most ? steps : std::max(most / kSteps * kSteps, kSteps);
}
// Floats that Kernels::gemm_tiles works in: blocks of 2 x 2 tiles, or of 1 x 4.
constexpr int64_t tile_sums(int64_t rows, int64_t steps, int64_t features) {
  constexpr int64_t kWhole = 2 * kTileRows;
  const int64_t most = tile_steps(rows, steps) < steps ? kMostTiledFeatures : kWhole;
  const auto whole = [](int64_t n) { return (n + kWhole - 1) / kWhole * kWhole; };
  return whole(std::min(rows, kMostTiledRows)) * whole(std::min(features, most));
}

// A group whose largest magnitude is not above this is quantized to zeros: 127 / max must stay finite.
inline constexpr float kSmallestQ8Max = 1e-36f;

// Block floating point: a row has a scale, by which its largest group is exact to 8 bits, and each group a power of
// two, at most 1 and at least this (what is below it is nothing beside the largest group). Times the scale of a weight
// that is an addition to its exponent, which unlike a multiplication runs beside the dot products.
inline constexpr float kLeastPower = 0x1p-30f;
// A row whose largest magnitude is not above this is quantized to zeros: 127 / max / kLeastPower must stay finite.
inline constexpr float kSmallestRowMax = 1e-27f;

// Rows of x quantized to int8 in groups of 32, zero padded: the activations of int8 and int4 weights.
struct Q8Rows {
  const int8_t* values;     // [rows, groups * 32]
  const float* scales;      // [groups, stride], of which `rows` are used
  const int32_t* sums;      // [groups * per_group, stride], see Q8Kind
  const float* row_scales;  // [rows]; int8 weights: not used
  int64_t stride;
};

// What Q8Rows are, by the format of the weights. Sums are the int8 values of each of the `per_group` equal parts of a
// group, summed, times `factor`: minus the zero point, for integer dot products that start there; 1 for mins. Scales
// are `powers` of two for weights that are far less exact than activations anyway.
struct Q8Kind {
  int32_t factor;
  int64_t per_group;
  bool powers;
};
inline constexpr Q8Kind kQ8Kind = {-128, 1, false}, kQ6Kind = {-32, 2, true}, kQ4Kind = {-8, 1, true},
                        kMinsKind = {1, 1, true};

// Quantized weights of 16-row panels, in groups of 32 inputs. Scales of int4 and steps are never zero, or there would
// be no exponent to add to: where all weights are zero, they are one.
struct QuantPanels {
  // int8: [panels, groups, 8, 16, 4], input 4j+i of row r at [j][r][i], plus 128.
  // int4: [panels, groups, 4, 16, 4], input 8j+i of row r in the low half of [j][r][i], input 8j+4+i in the high half.
  // 6 bits: [panels, groups, 2, 3, 16, 4], 16 inputs each: input 4j+i of row r, j < 3, in the low 6 bits of [j][r][i];
  // the high 2 bits of [0][r][i], [1][r][i] and [2][r][i] are those of input 12+i, from the top.
  const uint8_t* values;
  const uint16_t* scales;  // [panels, groups, 16] fp16; 6 bits: [panels, super_groups(groups), 16]
  const uint16_t* mins;    // int4 only, the same shape: weight = scale * q + min; null: weight = scale * (q - 8)
  const int8_t* steps;     // 6 bits only: [panels, groups, 2, 16], of 16 inputs each: weight = scale * step * (q - 32)
};

// Of 6-bit weights so many groups, or what is left of a row, share an fp16 scale.
inline constexpr int64_t kSuperGroups = kSuperBlock / kGroup;
constexpr int64_t super_groups(int64_t groups) { return (groups + kSuperGroups - 1) / kSuperGroups; }

// Candidates for the scale of a group: the largest magnitude becomes this multiple of it (in pack_q6 and pack_q4
// minus it, too). Finer steps, or a wider range, lower the error of random weights by less than a
// 100th (6 bits: a 60th).
inline constexpr int kQ8Candidates = 9, kQ6Candidates = 11, kQ4Candidates = 29;
constexpr float q8_candidate(int step) { return 127.0f - 0.75f * static_cast<float>(step); }
constexpr float q6_candidate(int step) { return 27.0f + 0.5f * static_cast<float>(step); }
constexpr float q4_candidate(int step) { return 5.0f + 0.25f * static_cast<float>(step); }

// Queries that share one KV head, and one block of kAttentionBlock positions that they look at. Row r is head
// r % group of token r / group.
struct AttentionTile {
  const float* q;                 // row r at q + r / group * q_stride + r % group * head_dim, scaled by head_dim^-0.5
  int64_t q_stride, group;        // group: query heads of the KV head
  int64_t rows, head_dim;         // rows: tokens * group
  int64_t visible;                // the first token sees the positions [0, visible), each later one sees one more
  const std::byte* const* pages;  // all pages of the sequence
  size_t k_offset, v_offset;      // bytes of this layer's and head's K and V inside a page
  int64_t block;                  // positions [block, block + 1) * kAttentionBlock
  const std::byte* next;          // K of the page that this thread reads next, for the cache, or null
};

// Softmax state of each row over some positions: the output is acc / sum.
struct AttentionPartial {
  float* max;  // [rows], -inf where nothing was visible
  float* sum;  // [rows]
  float* acc;  // [rows, padded_head_dim(head_dim)]
};

// Bytes that an attention kernel works in.
constexpr int64_t attention_scratch_bytes(int64_t rows, int64_t head_dim) {
  constexpr int64_t kScores = (kAttentionBlock + 16) * 4, kScales = 2 * kAttentionBlock * 4;
  return tiled_rows(rows) * (kScores + 4 * head_dim + 8) + kScales + 64;
}

struct Kernels {
  // out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i], i < n; in place allowed.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out) noexcept;

  // y[r, i] = silu(gate[i]) * up[i] of rows x[r] = [gate[n], up[n]]; silu(v) = v / (1 + exp(-v)).
  void (*silu_mul)(const float* x, int64_t rows, int64_t n, float* y, int64_t ldy) noexcept;

  // maxima[b] = the largest of x[64 b] to x[64 b + 63], as far as x[n] has them. False where an x is NaN or +infinity;
  // maxima mean nothing then.
  bool (*block_max)(const float* x, int64_t n, float* maxima) noexcept;

  // Rotary embedding, rotate-half layout, of x[head_dim] in place, then times `scale`.
  // cos, sin: [head_dim / 2]. norm_weight [head_dim] or null: RMSNorm first.
  void (*head_norm_rope)(float* x, const float* norm_weight, float eps, const float* cos, const float* sin, float scale,
                         int64_t head_dim) noexcept;

  // Double-gated short convolution on the channels [begin, end): bx = B * x; y[t] = C[t] * (bias + sum_j
  // weight[j] * bx[t - (taps-1) + j]). bcx: rows [B | C | x] of 3 * hidden; before [taps-1, hidden] holds the last bx,
  // oldest first, and so does after, which is written and may be the same; weight [taps, hidden]; bias [hidden] or
  // null; y [tokens, hidden].
  void (*short_conv)(const float* bcx, int64_t tokens, int64_t hidden, int64_t begin, int64_t end, const float* weight,
                     const float* bias, int64_t taps, const float* before, float* after, float* y) noexcept;

  // By KvType. Writes one key and one value (each [head_dim]) at `slot` of a page, rounded to the page's type.
  void (*store_kv[kKvTypes])(const float* k, const float* v, int64_t head_dim, int64_t slot, std::byte* k_page,
                             std::byte* v_page) noexcept;

  // By KvType. Softmax attention over the tile's block; sums are fp32 (or exact integers) in the order of positions.
  // scratch: attention_scratch_bytes(rows, head_dim), on a 64-byte border.
  void (*attention[kKvTypes])(const AttentionTile& tile, const AttentionPartial& out, std::byte* scratch) noexcept;

  // total := total merged with `part`, the partial of later positions.
  void (*attention_merge)(int64_t rows, int64_t head_dim, const AttentionPartial& total,
                          const AttentionPartial& part) noexcept;

  // y[m, n] (or y += if accumulate) = sum_k x[m, k] * w[n, k] for n < features, over whole panels [k, 16].
  void (*gemm_f32)(const float* x, int64_t ldx, int64_t rows, int64_t k, const float* panels, int64_t features,
                   float* y, int64_t ldy, bool accumulate) noexcept;
  void (*gemm_bf16)(const float* x, int64_t ldx, int64_t rows, int64_t k, const uint16_t* panels, int64_t features,
                    float* y, int64_t ldy, bool accumulate) noexcept;

  // One row x[n] to int8. Per group of 32, scale = max|x| / 127 and value = round(x / scale), or, of powers,
  // row_scale = max|x| of the row / 127, scale = the least power of two that is not below the group's share of that
  // maximum, and value = round(x / (row_scale * scale)). values have ceil(n / 32) whole groups; scales, and what `kind`
  // says of sums, are written `stride` apart. Products are NaN where they have to do with an x that is not finite, in
  // the same group, or of powers in the same row; values are zero there.
  void (*quantize_q8)(const float* x, int64_t n, Q8Kind kind, int8_t* values, float* scales, int32_t* sums,
                      int64_t stride, float* row_scale) noexcept;

  // From so many rows on, kernels of int8 and int4 weights work in tiles of kTileRows rows.
  int64_t least_tile_rows = std::numeric_limits<int64_t>::max();

  // y = x W^T (or +=) in bf16: x in tiles [ceil(rows / 16), steps, 16, 32], W in panels [steps, 16, 16, 2] of pairs
  // (input 32s + 2j + i of row r at [s][j][r][i]), both zero padded. Per step, even and odd inputs are summed
  // from zero on, each in order, and sum = sum + (even + odd). sums: tile_sums(rows, steps, features), on a 64-byte
  // border.
  void (*gemm_tiles)(const uint16_t* x, int64_t rows, int64_t steps, const uint16_t* panels, int64_t features, float* y,
                     int64_t ldy, bool accumulate, float* sums) noexcept = nullptr;
  // A row of x, at its place in the first of its tiles; subnormal numbers are zero, as in the product.
  void (*to_tiles)(const float* x, int64_t n, uint16_t* row) noexcept = nullptr;
  // What silu_mul gives, as the inputs [first, first + n) of the product, both multiples of 16; row 0 is that of x.
  void (*silu_mul_to_tiles)(const float* gate_up, int64_t rows, int64_t n, int64_t first, int64_t steps,
                            uint16_t* x) noexcept = nullptr;

  // The same product for int8, 6-bit and int4 weights: integer dot products within a group, fp32 over groups in order,
  // sum = fma(dot, scale * x.scale, sum), and where there are mins then fma(x.sum * x.scale, min, sum).
  // 6 bits: half a group at a time, part = fma(dot, step * x.scale, part), where the groups that share a scale have a
  // sum of their own, then sum = fma(part, scale, sum). At last, but for int8, y = sum * x.row_scale.
  void (*gemm_q8)(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& panels, int64_t features, float* y,
                  int64_t ldy, bool accumulate) noexcept;
  void (*gemm_q6)(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& panels, int64_t features, float* y,
                  int64_t ldy, bool accumulate) noexcept;
  void (*gemm_q4)(const Q8Rows& x, int64_t rows, int64_t groups, const QuantPanels& panels, int64_t features, float* y,
                  int64_t ldy, bool accumulate) noexcept;

  // Rows times weights in oneDNN's blocked layouts: `panel` is one block of 64 output features, [k, 64] fp32 or
  // [k / 2, 64, 2] bf16 (k even). Each sum runs over k in order, started anew every k_chunk inputs, the partial sums
  // added up: brgemm's order, so that results can equal its bits. y gets features < 64 values a row.
  // Null where the ISA has no oneDNN product to match: blocked_f32 below AVX-512, blocked_bf16 below AVX-512 BF16.
  void (*blocked_f32)(const float* x, int64_t ldx, int64_t rows, int64_t k, int64_t k_chunk, const float* panel,
                      int64_t features, float* y, int64_t ldy, bool accumulate) noexcept;
  void (*blocked_bf16)(const uint16_t* x, int64_t ldx, int64_t rows, int64_t k, int64_t k_chunk, const uint16_t* panel,
                       int64_t features, float* y, int64_t ldy, bool accumulate) noexcept;

  // out[i] = bf16(x[i]), round to nearest even.
  void (*to_bf16)(const float* x, int64_t n, uint16_t* out) noexcept;

  // Sixteen rows x[16, ldx] of finite weights to one panel of `groups` groups, see QuantPanels. Scales are fp16, those
  // of least squared error among the candidates, and infinite where a group is too large. Every table gives the same
  // bits.
  void (*pack_q8)(const float* x, int64_t ldx, int64_t groups, uint8_t* values, uint16_t* scales) noexcept;
  // Input i is weighted by importance[i] > 0, [groups * 32]; each candidate is refined by least squares. Scales may be
  // negative: integers reach from -8 to 7.
  void (*pack_q4)(const float* x, int64_t ldx, int64_t groups, const float* importance, uint8_t* values,
                  uint16_t* scales) noexcept;
  // The same for 16 inputs at a time, with integers from -32 to 31. The scale of several groups is the largest of
  // theirs / 127, and each half of a group the nearest step of it.
  void (*pack_q6)(const float* x, int64_t ldx, int64_t groups, const float* importance, uint8_t* values, int8_t* steps,
                  uint16_t* scales) noexcept;
};

// The table for `isa` (the best one at or below it).
const Kernels& kernels_for(Isa isa);

// The table for active_isa().
const Kernels& active_kernels();

extern const Kernels kReferenceKernels;
extern const Kernels kAvx2Kernels;
const Kernels& avx2_vnni_kernels();  // kAvx2Kernels and integer products by dot product instructions
extern const Kernels kAvx512Kernels;
const Kernels& avx512_bf16_kernels();  // kAvx512Kernels and bf16 dot products
const Kernels& amx_kernels();          // those and products by tiles

}  // namespace lfm
