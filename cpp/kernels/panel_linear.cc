#include "kernels/panel_linear.h"

#include <algorithm>
#include <stdexcept>

namespace lfm {
namespace {

void assign(float& to, float v) { to = v; }
void assign(uint16_t& to, float v) { to = f32_to_bf16(v); }
float to_float(float v) { return v; }
float to_float(uint16_t v) { return bf16_to_f32(v); }
auto gemm_of(const Kernels& kernels, float) { return kernels.gemm_f32; }
auto gemm_of(const Kernels& kernels, uint16_t) { return kernels.gemm_bf16; }

// T: float, or uint16_t for bf16. Panels are [K, 16].
template <class T>
class FloatPanels final : public PanelLinear {
 public:
  FloatPanels(std::span<const TensorView> parts, const Kernels& kernels, Arena& arena)
      : PanelLinear(parts[0].cols(), stacked_rows(parts), kernels),
        memory_(arena.allocate(nbytes())),
        weights_(reinterpret_cast<T*>(memory_.get())) {
    const int64_t k = in_features(), n = out_features();
    constexpr int64_t kChunk = 64 * kPanel;
    Buffer<float> rows(static_cast<size_t>(std::min(kChunk, n) * k));
    for (int64_t first = 0; first < n; first += kChunk) {
      const int64_t count = std::min(kChunk, n - first);
      read_stacked_rows(parts, first, count, sizeof(T) == 4 ? ComputeType::f32 : ComputeType::bf16, rows.data());
      parallel_for((count + kPanel - 1) / kPanel, [&](int64_t p) {
        T* panel = weights_ + (first / kPanel + p) * kPanel * k;
        for (int64_t r = 0; r < std::min(kPanel, count - p * kPanel); ++r) {
          const float* row = rows.data() + (p * kPanel + r) * k;
          for (int64_t i = 0; i < k; ++i) assign(panel[i * kPanel + r], row[i]);
        }
      });
    }
  }

  void weight_row(int64_t n, float* out) const override {
    const T* column = weights_ + n / kPanel * kPanel * in_features() + n % kPanel;
    for (int64_t i = 0; i < in_features(); ++i) out[i] = to_float(column[i * kPanel]);
  }
  std::vector<std::span<const std::byte>> packed_memory() const override { return {{memory_.get(), nbytes()}}; }
  size_t nbytes() const override { return static_cast<size_t>(panels() * kPanel * in_features()) * sizeof(T); }
  std::string_view implementation() const override { return sizeof(T) == 4 ? "panels:f32" : "panels:bf16"; }

 protected:
  TileShape tile(int64_t) const override { return {12, 2}; }
  void gemm(const void* x, int64_t, int64_t row, int64_t count, int64_t panel, int64_t features, float* y, int64_t ldy,
            bool accumulate, float* /*work*/) const override {
    const int64_t k = in_features();
    gemm_of(kernels_, T{})(static_cast<const float*>(x) + row * k, k, count, k, weights_ + panel * kPanel * k, features,
                           y, ldy, accumulate);
  }

 private:
  std::shared_ptr<std::byte[]> memory_;
  T* weights_;
};

}  // namespace

void PanelLinear::multiply(const void* x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const {
  const int64_t n = out_features();
  const ThreadFloats work(scratch.work, work_floats(rows));
  for_panel_tasks(tile(rows), rows, panels(), [&](int64_t row, int64_t count, int64_t panel, int64_t panels) {
    gemm(x, rows, row, count, panel, std::min(panels * kPanel, n - panel * kPanel), y + row * n + panel * kPanel, n,
         accumulate, work.of_this());
  });
}

void PanelLinear::multiply_blocks(const void* x, std::span<const int64_t> blocks, float* y,
                                  LinearScratch& scratch) const {
  const ThreadFloats work(scratch.work, work_floats(1));
  parallel_for(static_cast<int64_t>(blocks.size()), [&](int64_t i) {
    const int64_t n = blocks[static_cast<size_t>(i)] * kPanel;
    gemm(x, 1, 0, 1, n / kPanel, std::min(kPanel, out_features() - n), y + n, out_features(), false, work.of_this());
  });
}

void PanelLinear::multiply_gated(const void* x, int64_t rows, float* y, LinearScratch& scratch) const {
  const int64_t n = out_features() / 2;
  multiply_strips(x, rows, scratch, [&](int64_t row, int64_t count, int64_t first, int64_t width, const float* strips) {
    kernels_.silu_mul(strips, count, width, y + row * n + first, n);
  });
}

std::unique_ptr<Linear> make_panel_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels,
                                          Arena& arena) {
  switch (type) {
    case ComputeType::f32: return std::make_unique<FloatPanels<float>>(parts, kernels, arena);
    case ComputeType::bf16: return std::make_unique<FloatPanels<uint16_t>>(parts, kernels, arena);
    default: throw std::logic_error("panels of floats are float32 or bfloat16");
  }
}

}  // namespace lfm
