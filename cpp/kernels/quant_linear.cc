#include "kernels/quant_linear.h"

#include "base/error.h"
#include "kernels/panel_linear.h"
#include "kernels/quant_format.h"

namespace lfm {
namespace {

class QuantLinear final : public PanelLinear {
 public:
  QuantLinear(PackedWeights weights, QuantFormat format, const Kernels& kernels)
      : PanelLinear(weights.in_features, weights.out_features, kernels),
        layout_(format, weights.in_features, weights.out_features),
        weights_(std::move(weights)) {
    const std::vector<size_t> sizes = layout_.sizes();
    check(weights_.parts.size() == sizes.size(), "packed weights of ", weights_.parts.size(), " parts instead of ",
          sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      check(weights_.parts[i].size() == sizes[i], "packed weights have ", weights_.parts[i].size(),
            " bytes instead of ", sizes[i]);
      check(reinterpret_cast<uintptr_t>(weights_.parts[i].data()) % 64 == 0, "packed weights are not aligned");
    }
    panels_ = layout_.whole(weights_.parts);
  }

  void weight_row(int64_t n, float* out) const override { layout_.read_row(panels_, n, out); }
  size_t nbytes() const override {
    size_t total = 0;
    for (const auto& part : weights_.parts) total += part.size();
    return total;
  }
  std::string_view implementation() const override { return format_name(layout_.format); }
  std::vector<std::span<const std::byte>> packed_memory() const override { return weights_.parts; }
  std::optional<PackedWeights> packed() const override { return weights_; }

 protected:
  size_t activation_bytes(int64_t rows) const override {
    const int64_t numbers = 1 + kind().per_group;  // of a group, beside its values
    return static_cast<size_t>(layout_.groups * (rows * kGroup + stride(rows) * 4 * numbers) + rows * 4);
  }
  void convert_row(const float* x, int64_t m, int64_t rows, std::byte* activations) const override {
    const Activations a = activations_at(activations, rows);
    kernels_.quantize_q8(x, in_features(), kind(), a.values + m * layout_.groups * kGroup, a.scales + m, a.sums + m,
                         stride(rows), a.row_scales + m);
  }
  TileShape tile(int64_t rows) const override {
    if (rows < kernels_.least_tile_rows || layout_.format == QuantFormat::q6) return {4, 3};
    // As many rows as the cache holds: every block of rows reads the weights again.
    const int64_t most = kTiledCache / (layout_.groups * kGroup) / kMostRows * kMostRows;
    return {kTileRows, 8, std::clamp<int64_t>(most, kMostRows, 5 * kMostRows)};
  }

  void gemm(const void* x, int64_t rows, int64_t row, int64_t count, int64_t panel, int64_t features, float* y,
            int64_t ldy, bool accumulate, float* /*work*/) const override {
    const Activations a = activations_at(const_cast<void*>(x), rows);
    const Q8Rows q = {a.values + row * layout_.groups * kGroup, a.scales + row, a.sums + row, a.row_scales + row,
                      stride(rows)};
    const auto product = layout_.format == QuantFormat::q8   ? kernels_.gemm_q8
                         : layout_.format == QuantFormat::q6 ? kernels_.gemm_q6
                                                             : kernels_.gemm_q4;
    product(q, count, layout_.groups, layout_.from(panels_, panel), features, y, ldy, accumulate);
  }

 private:
  Q8Kind kind() const { return kind_of(layout_.format); }

  // Of many rows an odd number of cache lines: the scales of a row would share few sets of the L1 cache otherwise.
  static int64_t stride(int64_t rows) {
    constexpr int64_t kLine = 64 / sizeof(float);
    return rows < kLine ? rows : ((rows + kLine - 1) / kLine | 1) * kLine;
  }

  // The parts of Q8Rows one after the other.
  struct Activations {
    int8_t* values;
    float* scales;
    int32_t* sums;
    float* row_scales;
  };
  Activations activations_at(void* memory, int64_t rows) const {
    const int64_t groups = layout_.groups, numbers = stride(rows) * groups;
    auto* scales = reinterpret_cast<float*>(static_cast<std::byte*>(memory) + rows * groups * kGroup);
    float* sums = scales + numbers;
    return {static_cast<int8_t*>(memory), scales, reinterpret_cast<int32_t*>(sums), sums + numbers * kind().per_group};
  }

  QuantLayout layout_;
  PackedWeights weights_;
  QuantPanels panels_;
};

}  // namespace

std::unique_ptr<Linear> make_quant_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels,
                                          Arena& arena, std::span<const float> importance) {
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
  const QuantFormat format = format_for(parts, type);
  return std::make_unique<QuantLinear>(pack_quantized(parts, format, kernels, arena, weights), format, kernels);
}

std::unique_ptr<Linear> make_quant_linear(const PackedWeights& weights, const Kernels& kernels) {
  for (const QuantFormat format : kAllQuantFormats) {
    if (weights.implementation == format_name(format)) return std::make_unique<QuantLinear>(weights, format, kernels);
  }
  throw std::invalid_argument(concat("packed weights of the unknown layout '", weights.implementation, "'"));
}

}  // namespace lfm
