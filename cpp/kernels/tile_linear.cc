#include "kernels/tile_linear.h"

#include <algorithm>

#include "kernels/panel_linear.h"

namespace lfm {
namespace {

constexpr int64_t kStep = 32;  // inputs of a tile
constexpr int64_t kLeastOwnRows = kMostTiledRows / 2;

class TileLinear final : public PanelLinear {
 public:
  TileLinear(std::span<const TensorView> parts, const Kernels& kernels, Arena& arena)
      : PanelLinear(parts[0].cols(), stacked_rows(parts), kernels),
        steps_((in_features() + kStep - 1) / kStep),
        memory_(arena.allocate(nbytes())),
        weights_(reinterpret_cast<uint16_t*>(memory_.get())) {
    const int64_t k = in_features(), n = out_features();
    constexpr int64_t kChunk = 64 * kPanel;
    Buffer<float> rows(static_cast<size_t>(std::min(kChunk, n) * k));
    for (int64_t first = 0; first < n; first += kChunk) {
      const int64_t count = std::min(kChunk, n - first);
      read_stacked_rows(parts, first, count, ComputeType::bf16, rows.data());
      parallel_for((count + kPanel - 1) / kPanel, [&](int64_t p) {
        for (int64_t r = p * kPanel; r < std::min((p + 1) * kPanel, count); ++r) {
          for (int64_t i = 0; i < k; ++i) weights_[offset(first + r, i)] = f32_to_bf16(rows.data()[r * k + i]);
        }
      });
    }
  }

  void weight_row(int64_t n, float* out) const override {
    for (int64_t i = 0; i < in_features(); ++i) out[i] = bf16_to_f32(weights_[offset(n, i)]);
  }
  std::vector<std::span<const std::byte>> packed_memory() const override { return {{memory_.get(), nbytes()}}; }
  size_t nbytes() const override { return static_cast<size_t>(panels() * kPanel * steps_ * kStep) * sizeof(uint16_t); }
  std::string_view implementation() const override { return "tiles:bf16"; }
  bool gates_for(const Linear& next) const override {
    return gates() && next.in_features() == out_features() / 2 && next.in_features() % kStep == 0 &&
           dynamic_cast<const TileLinear*>(&next) != nullptr;
  }

 protected:
  size_t activation_bytes(int64_t rows) const override {
    return static_cast<size_t>(tiled_rows(rows) * steps_ * kStep) * sizeof(uint16_t);
  }
  void convert_row(const float* x, int64_t m, int64_t /*rows*/, std::byte* activations) const override {
    kernels_.to_tiles(
        x, in_features(),
        reinterpret_cast<uint16_t*>(activations) + (m / kTileRows * kTileRows * steps_ + m % kTileRows) * kStep);
  }

  void multiply_gated_for_next(const void* x, int64_t rows, std::byte* activations,
                               LinearScratch& scratch) const override {
    const int64_t steps = out_features() / 2 / kStep;
    auto* to = reinterpret_cast<uint16_t*>(activations);
    multiply_strips(x, rows, scratch,
                    [&](int64_t row, int64_t count, int64_t first, int64_t width, const float* strips) {
                      kernels_.silu_mul_to_tiles(strips, count, width, first, steps, to + row * steps * kStep);
                    });
  }

  // Blocks of rows go to threads of their own, whose caches have them from layer to layer, if there are enough rows for
  // all weights that each then reads.
  TileShape tile(int64_t rows) const override {
    const int64_t blocks = std::max<int64_t>(rows / kLeastOwnRows, 1);
    return {2 * kTileRows, 2, (rows + blocks - 1) / blocks};
  }
  int64_t work_floats(int64_t rows) const override { return tile_sums(rows, steps_, out_features()); }
  void gemm(const void* x, int64_t, int64_t row, int64_t count, int64_t panel, int64_t features, float* y, int64_t ldy,
            bool accumulate, float* work) const override {
    kernels_.gemm_tiles(static_cast<const uint16_t*>(x) + row * steps_ * kStep, count, steps_,
                        weights_ + panel * kPanel * steps_ * kStep, features, y, ldy, accumulate, work);
  }

 private:
  // Of input i of row n of W, see Kernels::gemm_tiles.
  int64_t offset(int64_t n, int64_t i) const {
    const int64_t tile = n / kPanel * steps_ + i / kStep, pair = i % kStep / 2;
    return ((tile * kStep / 2 + pair) * kPanel + n % kPanel) * 2 + i % 2;
  }

  int64_t steps_;
  std::shared_ptr<std::byte[]> memory_;
  uint16_t* weights_;
};

}  // namespace

std::unique_ptr<Linear> make_tile_linear(std::span<const TensorView> parts, const Kernels& kernels, Arena& arena) {
  return std::make_unique<TileLinear>(parts, kernels, arena);
}

}  // namespace lfm
