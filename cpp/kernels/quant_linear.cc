#include "kernels/quant_linear.h"

#include <atomic>
#include <cstring>
#include <new>

#include "base/error.h"
#include "kernels/panel_linear.h"

namespace lfm {
namespace {

enum class Format : uint8_t { q8, q4, q4_mins };

constexpr std::string_view format_name(Format format) {
  switch (format) {
    case Format::q8: return "panels:q8";
    case Format::q4: return "panels:q4";
    case Format::q4_mins: return "panels:q4_mins";
  }
  return "?";
}

// The smallest format that holds the values of `type`: exactly, but for q4_k, whose products of two scales are rounded
// to fp16, and for q5_1, q5_k and q6_k, which are rounded to 8 bits (at most an eighth of their own error's variance).
Format format_of(DType type) {
  switch (type) {
    case DType::q4_0: return Format::q4;
    case DType::q4_1:
    case DType::q4_k: return Format::q4_mins;
    default: return Format::q8;
  }
}

// What `parts`, stacked, are stored as: the smallest format that `type` allows and that rounds none of them again, or,
// for parts of different types, to 8 bits at least.
Format format_for(std::span<const TensorView> parts, ComputeType type) {
  if (type == ComputeType::int8) return Format::q8;
  Format format = Format::q4;
  for (const TensorView& part : parts) {
    const bool rounded = !is_quantized(part.dtype) && !part.int8_at_least;
    const Format own = rounded ? Format::q4 : format_of(part.dtype);
    if (own == Format::q8) return own;
    if (own == Format::q4_mins) format = own;
  }
  return format;
}

// Whether the integers of `type` are taken over as they are.
bool is_copied(DType type, Format format) {
  switch (type) {
    case DType::q8_0:
    case DType::q5_0: return format == Format::q8;
    case DType::q4_0: return true;
    case DType::q4_1:
    case DType::q4_k: return format == Format::q4_mins;
    default: return false;
  }
}

class QuantLinear final : public Linear {
 public:
  QuantLinear(std::span<const TensorView> parts, Format format, const Kernels& kernels,
              std::span<const float> importance)
      : QuantLinear(parts[0].cols(), stacked_rows(parts), format, kernels) {
    struct Memory {
      Buffer<uint8_t> values;
      Buffer<uint16_t> scales, mins;
    };
    const size_t scales = static_cast<size_t>(panels_ * groups_ * kPanel);
    const auto memory = std::make_shared<Memory>(Memory{Buffer<uint8_t>(scales * static_cast<size_t>(group_bytes())),
                                                        Buffer<uint16_t>(scales),
                                                        Buffer<uint16_t>(format == Format::q4_mins ? scales : 0)});
    // Padding rows have scales of zero; padding inputs meet activations of zero.
    values_ = memory->values.data(), scales_ = memory->scales.data();
    if (format == Format::q4_mins) mins_ = memory->mins.data();
    owner_ = memory;
    const Packer packer = {*this, parts, importance, memory->values.data(), memory->scales.data(), memory->mins.data()};
    // One panel per thread as floats.
    const int64_t width = groups_ * kGroup;
    Buffer<float> rows(static_cast<size_t>(max_threads() * kPanel * width));
    std::atomic<const TensorView*> bad{nullptr};
    parallel_for(panels_, [&](int64_t panel) {
      const TensorView* part = packer.pack(panel, rows.data() + thread_id() * kPanel * width);
      if (part != nullptr) bad.store(part);
    });
    if (const TensorView* tensor = bad.load()) {
      throw std::invalid_argument(not_finite_message(tensor->name) + " or values too large for groups of integers");
    }
  }

  QuantLinear(const PackedWeights& weights, Format format, const Kernels& kernels)
      : QuantLinear(weights.in_features, weights.out_features, format, kernels) {
    check(weights.parts.size() == sizes().size(), "packed weights of ", weights.parts.size(), " parts instead of ",
          sizes().size());
    for (size_t i = 0; i < weights.parts.size(); ++i) {
      check(weights.parts[i].size() == sizes()[i], "packed weights have ", weights.parts[i].size(),
            " bytes instead of ", sizes()[i]);
      check(reinterpret_cast<uintptr_t>(weights.parts[i].data()) % 64 == 0, "packed weights are not aligned");
    }
    values_ = reinterpret_cast<const uint8_t*>(weights.parts[0].data());
    scales_ = reinterpret_cast<const uint16_t*>(weights.parts[1].data());
    if (format == Format::q4_mins) mins_ = reinterpret_cast<const uint16_t*>(weights.parts[2].data());
    owner_ = weights.owner;
  }

  void weight_row(int64_t n, float* out) const override {
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t block = n / kPanel * groups_ + g, lane = block * kPanel + n % kPanel;
      const float scale = f16_to_f32(scales_[lane]), min = mins_ != nullptr ? f16_to_f32(mins_[lane]) : 0.0f;
      const int zero = format_ == Format::q8 ? 128 : format_ == Format::q4 ? 8 : 0;
      for (int64_t i = 0; i < std::min(kGroup, in_features() - g * kGroup); ++i) {
        out[g * kGroup + i] = scale * static_cast<float>(value(block, n % kPanel, i) - zero) + min;
      }
    }
  }
  size_t nbytes() const override {
    size_t total = 0;
    for (const size_t size : sizes()) total += size;
    return total;
  }
  std::string_view implementation() const override { return format_name(format_); }
  std::vector<std::span<const std::byte>> packed_memory() const override { return packed()->parts; }
  std::optional<PackedWeights> packed() const override {
    const void* data[] = {values_, scales_, mins_};
    PackedWeights weights = {std::string(implementation()), in_features(), out_features(), {}, owner_};
    for (size_t i = 0; i < sizes().size(); ++i) {
      weights.parts.push_back({static_cast<const std::byte*>(data[i]), sizes()[i]});
    }
    return weights;
  }

 protected:
  size_t activation_bytes(int64_t rows) const override { return static_cast<size_t>(rows * groups_ * (kGroup + 8)); }
  void convert_row(const float* x, int64_t m, int64_t rows, std::byte* activations) const override {
    const Activations a = activations_at(activations, rows);
    const int32_t factor = format_ == Format::q8 ? kQ8SumFactor : format_ == Format::q4 ? kQ4SumFactor : kMinsSumFactor;
    kernels_.quantize_q8(x, in_features(), factor, a.values + m * groups_ * kGroup, a.scales + m, a.sums + m, rows);
  }
  void multiply(const void* x, int64_t rows, float* y, bool accumulate, LinearScratch&) const override {
    const int64_t n = out_features();
    for_panel_tasks(rows, panels_, [&](int64_t row, int64_t count, int64_t panel, int64_t panels) {
      gemm(x, rows, row, count, panel, std::min(panels * kPanel, n - panel * kPanel), y + row * n + panel * kPanel, n,
           accumulate);
    });
  }

  int64_t output_block() const override { return kPanel; }
  void multiply_blocks(const void* x, std::span<const int64_t> blocks, float* y) const override {
    parallel_for(static_cast<int64_t>(blocks.size()), [&](int64_t i) {
      const int64_t n = blocks[static_cast<size_t>(i)] * kPanel;
      gemm(x, 1, 0, 1, n / kPanel, std::min(kPanel, out_features() - n), y + n, out_features(), false);
    });
  }

  bool gates() const override { return out_features() % (2 * kPanel) == 0 && !has_bias(); }
  // Strips of panels of W1 and of W3 go to a small tile, and from there through silu to y.
  void multiply_gated(const void* x, int64_t rows, float* y, LinearScratch& scratch) const override {
    constexpr int64_t kTile = kMostPanelRows * 6 * kPanel;  // of all rows of a block: 3 + 3 panels, 36 KB
    const int64_t n = out_features() / 2;
    float* tiles = scratch.tiles.ensure(static_cast<size_t>(max_threads() * kTile));
    for_panel_tasks(rows, panels_ / 2, [&](int64_t row, int64_t count, int64_t panel, int64_t panels) {
      float* tile = tiles + thread_id() * kTile;
      const int64_t most = kTile / (2 * kPanel * count) / 3 * 3;
      for (const int64_t end = panel + panels; panel < end;) {
        const int64_t width = std::min(most, end - panel) * kPanel;
        gemm(x, rows, row, count, panel, width, tile, 2 * width, false);
        gemm(x, rows, row, count, panel + panels_ / 2, width, tile + width, 2 * width, false);
        for (int64_t r = 0; r < count; ++r) {
          const float* gate = tile + r * 2 * width;
          kernels_.silu_mul(gate, gate + width, width, y + (row + r) * n + panel * kPanel);
        }
        panel += width / kPanel;
      }
    });
  }

 private:
  // `count` rows of all `rows` of x times the `features` rows of W from `panel` on.
  void gemm(const void* x, int64_t rows, int64_t row, int64_t count, int64_t panel, int64_t features, float* y,
            int64_t ldy, bool accumulate) const {
    const Activations a = activations_at(const_cast<void*>(x), rows);
    const Q8Rows q = {a.values + row * groups_ * kGroup, a.scales + row, a.sums + row, rows};
    const int64_t lane = panel * groups_ * kPanel;
    const QuantPanels w = {values_ + lane * group_bytes(), scales_ + lane, mins_ != nullptr ? mins_ + lane : nullptr};
    const auto product = format_ == Format::q8 ? kernels_.gemm_q8 : kernels_.gemm_q4;
    product(q, count, groups_, w, features, y, ldy, accumulate);
  }

  QuantLinear(int64_t in_features, int64_t out_features, Format format, const Kernels& kernels)
      : Linear(in_features, out_features),
        kernels_(kernels),
        format_(format),
        panels_((out_features + kPanel - 1) / kPanel),
        groups_((in_features + kGroup - 1) / kGroup) {}

  // The parts of Q8Rows one after the other.
  struct Activations {
    int8_t* values;
    float* scales;
    int32_t* sums;
  };
  Activations activations_at(void* memory, int64_t rows) const {
    auto* scales = reinterpret_cast<float*>(static_cast<std::byte*>(memory) + rows * groups_ * kGroup);
    return {static_cast<int8_t*>(memory), scales, reinterpret_cast<int32_t*>(scales + rows * groups_)};
  }

  int64_t group_bytes() const { return format_ == Format::q8 ? kGroup : kGroup / 2; }  // of one row
  std::vector<size_t> sizes() const {
    const auto lanes = static_cast<size_t>(panels_ * groups_ * kPanel);
    std::vector<size_t> all = {lanes * static_cast<size_t>(group_bytes()), lanes * sizeof(uint16_t)};
    if (format_ == Format::q4_mins) all.push_back(lanes * sizeof(uint16_t));
    return all;
  }

  // Where the value of input i of a group lies; see QuantPanels.
  int64_t byte_of(int64_t block, int64_t lane, int64_t i) const {
    const int64_t quad = format_ == Format::q8 ? i / 4 : i / 8;
    return block * kPanel * group_bytes() + (quad * kPanel + lane) * 4 + i % 4;
  }
  int value(int64_t block, int64_t lane, int64_t i) const {
    const int byte = values_[byte_of(block, lane, i)];
    if (format_ == Format::q8) return byte;
    return i % 8 < 4 ? byte & 15 : byte >> 4;
  }

  // Fills the panels of a new QuantLinear.
  struct Packer {
    const QuantLinear& to;
    std::span<const TensorView> parts;
    std::span<const float> importance;  // [groups * 32]
    uint8_t* values;
    uint16_t *scales, *mins;

    // rows: zeros, [16, groups * 32], and left as zeros. Returns the tensor of a row that does not fit, or null.
    const TensorView* pack(int64_t panel, float* rows) const {
      const int64_t width = to.groups_ * kGroup, first = panel * kPanel * to.groups_;
      const TensorView *part_of[kPanel] = {}, *bad = nullptr;
      int64_t row_of[kPanel];
      int64_t lanes = 0;
      bool any_rounded = false;
      for (int64_t offset = 0; const TensorView& part : parts) {
        for (; lanes < kPanel && panel * kPanel + lanes < offset + part.rows(); ++lanes) {
          part_of[lanes] = &part, row_of[lanes] = panel * kPanel + lanes - offset;
          if (is_copied(part.dtype, to.format_)) continue;
          any_rounded = true;
          if (!read_row(part, row_of[lanes], rows + lanes * width)) bad = &part;
        }
        offset += part.rows();
      }
      if (bad != nullptr) return bad;
      if (any_rounded) {
        uint8_t* panel_values = values + first * to.group_bytes();
        if (to.format_ == Format::q8) {
          to.kernels_.pack_q8(rows, width, to.groups_, panel_values, scales + first);
        } else {
          to.kernels_.pack_q4(rows, width, to.groups_, importance.data(), panel_values, scales + first);
        }
        std::memset(rows, 0, static_cast<size_t>(kPanel * width) * sizeof(float));
      }
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const TensorView& part = *part_of[lane];
        const bool fits =
            is_copied(part.dtype, to.format_) ? copy_row(part, row_of[lane], first + lane) : check_row(first + lane);
        if (!fits) return &part;
      }
      return nullptr;
    }

    // The rounded row whose scales lie at `lane` of their groups.
    bool check_row(int64_t lane) const {
      bool finite = true;
      for (int64_t i = lane; i < lane + to.groups_ * kPanel; i += kPanel) {
        if (mins != nullptr) mins[i] = minimum_of(scales[i]);
        finite = finite && is_finite_f16(scales[i]);
      }
      return finite;
    }

    // Takes over the integers of a stored row.
    bool copy_row(const TensorView& part, int64_t row, int64_t lane) const {
      bool finite = true;
      for (int64_t g = 0; g < to.groups_; ++g, lane += kPanel) {
        const QuantGroup group = read_group(part, row, g);
        scales[lane] = f32_to_f16(group.scale[0]);
        finite = finite && is_finite_f16(scales[lane]);
        uint8_t zero = to.format_ == Format::q8 ? 128 : 8;
        if (mins != nullptr) {
          if (part.dtype != DType::q4_0) zero = 0;
          mins[lane] = zero == 0 ? f32_to_f16(group.min) : minimum_of(scales[lane]);
          finite = finite && is_finite_f16(mins[lane]);
        }
        store_group(group.q, zero, lane);
      }
      return finite;
    }

    // Four inputs at a time, see QuantPanels.
    void store_group(const int8_t* q, uint8_t zero, int64_t lane) const {
      const int64_t halves = to.format_ == Format::q8 ? 1 : 2, quads = kGroup / 4 / halves;
      uint8_t* out = values + lane / kPanel * kPanel * to.group_bytes() + lane % kPanel * 4;
      for (int64_t j = 0; j < quads; ++j, out += kPanel * 4) {
        for (int64_t i = 0; i < 4; ++i) {
          const int low = q[(j * halves) * 4 + i] + zero;
          const int high = halves == 2 ? q[(j * 2 + 1) * 4 + i] + zero : 0;
          out[i] = static_cast<uint8_t>(low | high << 4);
        }
      }
    }

    // What 8 steps below zero are; exact but for subnormal scales.
    static uint16_t minimum_of(uint16_t scale) { return f32_to_f16(-8.0f * f16_to_f32(scale)); }
  };

  const Kernels& kernels_;
  Format format_;
  int64_t panels_, groups_;
  const uint8_t* values_ = nullptr;
  const uint16_t* scales_ = nullptr;
  const uint16_t* mins_ = nullptr;
  std::shared_ptr<const void> owner_;
};

}  // namespace

std::unique_ptr<Linear> make_quant_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels,
                                          std::span<const float> importance) {
  const int64_t k = parts[0].cols();
  check(importance.empty() || static_cast<int64_t>(importance.size()) == k, "importance of tensor '", parts[0].name,
        "' has ", importance.size(), " values, expected ", k);
  std::vector<float> weights(static_cast<size_t>((k + kGroup - 1) / kGroup * kGroup), 1.0f);
  if (!importance.empty()) {
    double mean = 0;
    for (const float v : importance) mean += double{v} / static_cast<double>(k);
    // A trace of plain squared error keeps the weights of inputs that were always zero sensible.
    for (int64_t i = 0; i < k && mean > 0; ++i) weights[i] = static_cast<float>(importance[i] / mean) + 1e-6f;
  }
  return std::make_unique<QuantLinear>(parts, format_for(parts, type), kernels, weights);
}

std::unique_ptr<Linear> make_quant_linear(const PackedWeights& weights, const Kernels& kernels) {
  for (const Format format : {Format::q8, Format::q4, Format::q4_mins}) {
    if (weights.implementation == format_name(format)) return std::make_unique<QuantLinear>(weights, format, kernels);
  }
  throw std::invalid_argument(concat("packed weights of the unknown layout '", weights.implementation, "'"));
}

}  // namespace lfm
