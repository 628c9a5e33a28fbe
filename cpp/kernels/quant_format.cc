#include "kernels/quant_format.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/error.h"
#include "base/parallel.h"
#include "kernels/panel_linear.h"

namespace lfm {
namespace {

// The smallest format that holds the values of `part`: exactly, but for q4_k, whose products of two scales are rounded
// to fp16, and for q5_1 and q5_k, which are rounded to 8 bits (at most an eighth of their own error's variance). Floats
// are rounded to as few bits as they may.
QuantFormat format_of(const TensorView& part) {
  switch (part.dtype) {
    case DType::q4_0: return QuantFormat::q4;
    case DType::q4_1:
    case DType::q4_k: return QuantFormat::q4_mins;
    case DType::q6_k: return QuantFormat::q6;
    case DType::f32:
    case DType::f16:
    case DType::bf16:
      return part.least_bits <= 4 ? QuantFormat::q4 : part.least_bits <= 6 ? QuantFormat::q6 : QuantFormat::q8;
    default: return QuantFormat::q8;
  }
}

// Whether the integers of `type` are taken over as they are.
bool is_copied(DType type, QuantFormat format) {
  switch (type) {
    case DType::q8_0:
    case DType::q5_0: return format == QuantFormat::q8;
    case DType::q6_k: return format == QuantFormat::q6;
    case DType::q4_0: return format != QuantFormat::q6;
    case DType::q4_1:
    case DType::q4_k: return format == QuantFormat::q4_mins;
    default: return false;
  }
}

constexpr int kQ6Zero = 32, kHalf = kGroup / 2;

// The bytes of a group, at those of row r of its panel: integer i, as stored.
int load_integer(QuantFormat format, const uint8_t* bytes, int64_t i) {
  const auto at = [&](int64_t quad) { return int{bytes[quad * kPanel * 4 + i % 4]}; };
  if (format == QuantFormat::q8) return at(i / 4);
  if (format != QuantFormat::q6) return i % 8 < 4 ? at(i / 8) & 15 : at(i / 8) >> 4;
  const int64_t first = i / kHalf * 3, quad = i % kHalf / 4;
  if (quad < 3) return at(first + quad) & 63;
  return (at(first) >> 6) << 4 | (at(first + 1) >> 6) << 2 | at(first + 2) >> 6;
}

// Writes q[32] + zero there.
void store_integers(QuantFormat format, const int8_t* q, int zero, uint8_t* bytes) {
  const auto store = [&](int64_t quad, int64_t i, int value) {
    bytes[quad * kPanel * 4 + i % 4] = static_cast<uint8_t>(value);
  };
  for (int64_t i = 0; i < kGroup; ++i) {
    const int64_t first = i / kHalf * 3, quad = i % kHalf / 4;
    if (format == QuantFormat::q8) {
      store(i / 4, i, q[i] + zero);
    } else if (format != QuantFormat::q6) {
      if (i % 8 < 4) store(i / 8, i, (q[i] + zero) | (q[i + 4] + zero) << 4);
    } else if (quad < 3) {
      const int last = q[i / kHalf * kHalf + 12 + i % 4] + zero;
      store(first + quad, i, (q[i] + zero) | (last >> (4 - 2 * quad) & 3) << 6);
    }
  }
}

// What 8 steps below zero are; exact but for subnormal scales.
uint16_t minimum_of(uint16_t scale) { return f32_to_f16(-8.0f * f16_to_f32(scale)); }

using PartMemory = std::vector<std::shared_ptr<std::byte[]>>;

class Packer {
 public:
  Packer(const QuantLayout& layout, std::span<const TensorView> parts, const Kernels& kernels,
         std::span<const float> importance, const PartMemory& memory)
      : layout_(layout), parts_(parts), kernels_(kernels), importance_(importance) {
    const bool q6 = layout.format == QuantFormat::q6;
    values_ = reinterpret_cast<uint8_t*>(memory[0].get());
    if (q6) steps_ = reinterpret_cast<int8_t*>(memory[1].get());
    scales_ = reinterpret_cast<uint16_t*>(memory[q6 ? 2 : 1].get());
    if (layout.format == QuantFormat::q4_mins) mins_ = reinterpret_cast<uint16_t*>(memory[2].get());
  }

  // rows: zeros, [16, groups * 32], and left as zeros. Returns the tensor of a row that does not fit, or null.
  const TensorView* pack(int64_t panel, float* rows) const {
    const int64_t width = layout_.groups * kGroup;
    const TensorView *part_of[kPanel] = {}, *bad = nullptr;
    int64_t row_of[kPanel];
    int64_t lanes = 0;
    bool any_rounded = false;
    for (int64_t offset = 0; const TensorView& part : parts_) {
      for (; lanes < kPanel && panel * kPanel + lanes < offset + part.rows(); ++lanes) {
        part_of[lanes] = &part, row_of[lanes] = panel * kPanel + lanes - offset;
        if (is_copied(part.dtype, layout_.format)) continue;
        any_rounded = true;
        if (!read_row(part, row_of[lanes], rows + lanes * width)) bad = &part;
      }
      offset += part.rows();
    }
    if (bad != nullptr) return bad;
    if (any_rounded) {
      round_rows(panel, rows, width);
      std::memset(rows, 0, static_cast<size_t>(kPanel * width) * sizeof(float));
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const TensorView& part = *part_of[lane];
      if (is_copied(part.dtype, layout_.format)) copy_row(part, row_of[lane], panel, lane);
      if (!finish_row(panel, lane, part.dtype)) return &part;
    }
    return nullptr;
  }

 private:
  void round_rows(int64_t panel, const float* rows, int64_t width) const {
    const int64_t groups = layout_.groups;
    uint8_t* values = values_ + panel * groups * layout_.group_bytes();
    uint16_t* scales = scales_ + panel * layout_.scale_groups() * kPanel;
    switch (layout_.format) {
      case QuantFormat::q8: return kernels_.pack_q8(rows, width, groups, values, scales);
      case QuantFormat::q6: {
        int8_t* steps = steps_ + panel * groups * 2 * kPanel;
        return kernels_.pack_q6(rows, width, groups, importance_.data(), values, steps, scales);
      }
      default: return kernels_.pack_q4(rows, width, groups, importance_.data(), values, scales);
    }
  }

  // Takes over the integers of a stored row.
  void copy_row(const TensorView& part, int64_t row, int64_t panel, int64_t lane) const {
    const bool centred = mins_ == nullptr || part.dtype == DType::q4_0;
    const int zero = layout_.format == QuantFormat::q8   ? -kQ8Kind.factor
                     : layout_.format == QuantFormat::q6 ? kQ6Zero
                     : centred                           ? -kQ4Kind.factor
                                                         : 0;
    for (int64_t g = 0; g < layout_.groups; ++g) {
      const QuantGroup group = read_group(part, row, g);
      const int64_t block = panel * layout_.groups + g;
      store_integers(layout_.format, group.q, zero, values_ + block * layout_.group_bytes() + lane * 4);
      if (steps_ != nullptr) {
        for (int64_t i = 0; i < 2; ++i) steps_[(block * 2 + i) * kPanel + lane] = group.step[i];
        scale(panel, g / kSuperGroups, lane) = f32_to_f16(group.super_scale);
      } else {
        scale(panel, g, lane) = f32_to_f16(group.scale[0]);
      }
      if (!centred) mins_[block * kPanel + lane] = f32_to_f16(group.min);
    }
  }

  // Gives a row its minima where it has none of its own, and scales of one where they are zero; returns whether all is
  // finite.
  bool finish_row(int64_t panel, int64_t lane, DType from) const {
    bool finite = true;
    for (int64_t g = 0; g < layout_.scale_groups(); ++g) {
      const uint16_t own = scale(panel, g, lane);
      finite = finite && is_finite_f16(own);
      if (mins_ == nullptr) continue;
      uint16_t& min = mins_[(panel * layout_.groups + g) * kPanel + lane];
      if (from == DType::q4_0 || !is_copied(from, layout_.format)) min = minimum_of(own);
      finite = finite && is_finite_f16(min);
    }
    if (layout_.format != QuantFormat::q8) {
      for (int64_t g = 0; g < layout_.groups; ++g) replace_zero_scales(panel, g, lane);
    }
    return finite;
  }

  // See QuantPanels.
  void replace_zero_scales(int64_t panel, int64_t g, int64_t lane) const {
    const int64_t block = panel * layout_.groups + g, parts = steps_ != nullptr ? 2 : 1;
    for (int64_t part = 0; part < parts; ++part) {
      if (steps_ != nullptr) {
        int8_t& step = steps_[(block * 2 + part) * kPanel + lane];
        if (step != 0) continue;
        step = 1;
      } else {
        uint16_t& own = scale(panel, g, lane);
        if (f16_to_f32(own) != 0.0f) continue;
        own = f32_to_f16(1.0f);
      }
      const int zero = steps_ != nullptr ? kQ6Zero : mins_ != nullptr ? 0 : -kQ4Kind.factor;
      uint8_t* bytes = values_ + block * layout_.group_bytes() + lane * 4;
      int8_t q[kGroup];
      for (int64_t i = 0; i < kGroup; ++i) {
        q[i] =
            i * parts / kGroup == part ? int8_t{0} : static_cast<int8_t>(load_integer(layout_.format, bytes, i) - zero);
      }
      store_integers(layout_.format, q, zero, bytes);
    }
  }

  uint16_t& scale(int64_t panel, int64_t g, int64_t lane) const {
    return scales_[(panel * layout_.scale_groups() + g) * kPanel + lane];
  }

  const QuantLayout& layout_;
  std::span<const TensorView> parts_;
  const Kernels& kernels_;
  std::span<const float> importance_;
  uint8_t* values_;
  int8_t* steps_ = nullptr;
  uint16_t *scales_, *mins_ = nullptr;
};

}  // namespace

std::string_view format_name(QuantFormat format) {
  switch (format) {
    case QuantFormat::q8: return "panels:q8";
    case QuantFormat::q6: return "panels:q6";
    case QuantFormat::q4: return "panels:q4";
    case QuantFormat::q4_mins: return "panels:q4_mins";
  }
  return "?";
}

Q8Kind kind_of(QuantFormat format) {
  switch (format) {
    case QuantFormat::q8: return kQ8Kind;
    case QuantFormat::q6: return kQ6Kind;
    case QuantFormat::q4: return kQ4Kind;
    case QuantFormat::q4_mins: break;
  }
  return kMinsKind;
}

QuantFormat format_for(std::span<const TensorView> parts, ComputeType type) {
  if (type == ComputeType::int8) return QuantFormat::q8;
  QuantFormat format = format_of(parts[0]);
  for (const TensorView& part : parts) {
    const QuantFormat own = format_of(part);
    if (own == format) continue;
    const auto is_q4 = [](QuantFormat f) { return f == QuantFormat::q4 || f == QuantFormat::q4_mins; };
    if (!is_q4(own) || !is_q4(format)) return QuantFormat::q8;
    format = QuantFormat::q4_mins;
  }
  return format;
}

QuantLayout::QuantLayout(QuantFormat of, int64_t in_features, int64_t out_features)
    : format(of),
      cols(in_features),
      rows(out_features),
      panels((out_features + kPanel - 1) / kPanel),
      groups((in_features + kGroup - 1) / kGroup) {}

int64_t QuantLayout::group_bytes() const {
  switch (format) {
    case QuantFormat::q8: return kPanel * kGroup;
    case QuantFormat::q6: return kPanel * kGroup / 4 * 3;
    default: return kPanel * kGroup / 2;
  }
}

int64_t QuantLayout::scale_groups() const { return format == QuantFormat::q6 ? super_groups(groups) : groups; }

std::vector<size_t> QuantLayout::sizes() const {
  const auto of_panels = [&](int64_t bytes) { return static_cast<size_t>(panels * bytes); };
  const size_t values = of_panels(groups * group_bytes());
  const size_t scales = of_panels(scale_groups() * kPanel) * sizeof(uint16_t);
  switch (format) {
    case QuantFormat::q6: return {values, of_panels(groups * 2 * kPanel), scales};
    case QuantFormat::q4_mins: return {values, scales, scales};
    default: return {values, scales};
  }
}

QuantPanels QuantLayout::whole(std::span<const std::span<const std::byte>> parts) const {
  const bool q6 = format == QuantFormat::q6;
  QuantPanels w = {};
  w.values = reinterpret_cast<const uint8_t*>(parts[0].data());
  w.scales = reinterpret_cast<const uint16_t*>(parts[q6 ? 2 : 1].data());
  if (q6) w.steps = reinterpret_cast<const int8_t*>(parts[1].data());
  if (format == QuantFormat::q4_mins) w.mins = reinterpret_cast<const uint16_t*>(parts[2].data());
  return w;
}

QuantPanels QuantLayout::from(const QuantPanels& whole, int64_t panel) const {
  const int64_t lane = panel * groups * kPanel;
  return {whole.values + panel * groups * group_bytes(), whole.scales + panel * scale_groups() * kPanel,
          whole.mins != nullptr ? whole.mins + lane : nullptr,
          whole.steps != nullptr ? whole.steps + 2 * lane : nullptr};
}

void QuantLayout::read_row(const QuantPanels& whole, int64_t n, float* out) const {
  const QuantPanels w = from(whole, n / kPanel);
  const int64_t lane = n % kPanel;
  const int zero = format == QuantFormat::q4_mins ? 0 : -kind_of(format).factor;
  for (int64_t first = 0; first < cols; first += kHalf) {
    const int64_t g = first / kGroup;
    float scale = f16_to_f32(w.scales[(format == QuantFormat::q6 ? g / kSuperGroups : g) * kPanel + lane]);
    if (w.steps != nullptr) scale *= static_cast<float>(w.steps[first / kHalf * kPanel + lane]);
    const float min = w.mins != nullptr ? f16_to_f32(w.mins[g * kPanel + lane]) : 0.0f;
    const uint8_t* values = w.values + g * group_bytes() + lane * 4;
    for (int64_t i = first; i < std::min(first + kHalf, cols); ++i) {
      out[i] = scale * static_cast<float>(load_integer(format, values, i % kGroup) - zero) + min;
    }
  }
}

PackedWeights pack_quantized(std::span<const TensorView> parts, QuantFormat format, const Kernels& kernels,
                             Arena& arena, std::span<const float> importance) {
  const QuantLayout layout(format, parts[0].cols(), stacked_rows(parts));
  // Zeros: padding rows have scales of zero; padding inputs meet activations of zero.
  const auto memory = std::make_shared<PartMemory>();
  const std::vector<size_t> sizes = layout.sizes();
  for (const size_t size : sizes) memory->push_back(arena.allocate(size));
  const Packer packer(layout, parts, kernels, importance, *memory);
  const int64_t width = layout.groups * kGroup;
  Buffer<float> buffer;
  const ThreadFloats rows(buffer, kPanel * width);  // one panel as floats
  std::atomic<const TensorView*> bad{nullptr};
  parallel_for(layout.panels, [&](int64_t panel) {
    const TensorView* part = packer.pack(panel, rows.of_this());
    if (part != nullptr) bad.store(part);
  });
  if (const TensorView* tensor = bad.load()) {
    throw std::invalid_argument(not_finite_message(tensor->name) + " or values too large for groups of integers");
  }
  PackedWeights weights = {std::string(format_name(format)), layout.cols, layout.rows, {}, memory};
  for (size_t i = 0; i < sizes.size(); ++i) weights.parts.emplace_back((*memory)[i].get(), sizes[i]);
  return weights;
}

}  // namespace lfm
