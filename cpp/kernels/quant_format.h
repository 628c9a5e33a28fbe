// How int8, 6-bit and int4 weights lie in memory: the formats, which of them a tensor gets, and packing.
#pragma once

#include "kernels/linear.h"

namespace lfm {

enum class QuantFormat : uint8_t { q8, q6, q4, q4_mins };

inline constexpr QuantFormat kAllQuantFormats[] = {QuantFormat::q8, QuantFormat::q6, QuantFormat::q4,
                                                   QuantFormat::q4_mins};

std::string_view format_name(QuantFormat format);  // also that of the layout in packed files

// What activations quantize_q8 makes for a format.
Q8Kind kind_of(QuantFormat format);

// What `parts`, stacked, are stored as: the smallest format that `type` allows and that rounds none of them again, or,
// for parts of different types, to 8 bits at least.
QuantFormat format_for(std::span<const TensorView> parts, ComputeType type);

// A matrix of a format: where everything lies.
struct QuantLayout {
  QuantLayout(QuantFormat of, int64_t in_features, int64_t out_features);

  QuantFormat format;
  int64_t cols, rows, panels, groups;

  int64_t group_bytes() const;   // values of a group of a panel
  int64_t scale_groups() const;  // fp16 scales of a row

  // Bytes of the parts in memory and in files: values; of 6 bits the steps; scales; mins, if there are any.
  std::vector<size_t> sizes() const;
  QuantPanels whole(std::span<const std::span<const std::byte>> parts) const;
  // The panels from `panel` on.
  QuantPanels from(const QuantPanels& whole, int64_t panel) const;
  // Row n as fp32, out[cols].
  void read_row(const QuantPanels& whole, int64_t n, float* out) const;
};

// Packs the rows of `parts`; importance [groups * 32]. Throws std::invalid_argument naming a tensor that does not fit.
PackedWeights pack_quantized(std::span<const TensorView> parts, QuantFormat format, const Kernels& kernels,
                             Arena& arena, std::span<const float> importance);

}  // namespace lfm
