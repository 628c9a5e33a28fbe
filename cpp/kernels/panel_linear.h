// Linear layers on our own kernels: weights in panels of 16 output rows, lanes hold rows; fp32 and bf16 ones.
#pragma once

#include "kernels/linear.h"
#include "kernels/row_tasks.h"

namespace lfm {

// Layers that compute outputs in panels of kPanel: how products are shared out to threads.
class PanelLinear : public Linear {
 public:
  bool gates() const override { return out_features() % (2 * kPanel) == 0 && !has_bias(); }

 protected:
  PanelLinear(int64_t in_features, int64_t out_features, const Kernels& kernels)
      : Linear(in_features, out_features), kernels_(kernels) {}

  virtual TileShape tile(int64_t rows) const = 0;
  // `count` rows from `row` on of all `rows` of x, as convert_row made them, times the `features` rows of W from the
  // panel `panel` on. Rows begin where a tile does. work: work_floats(rows), on a 64-byte border. Must not throw.
  virtual void gemm(const void* x, int64_t rows, int64_t row, int64_t count, int64_t panel, int64_t features, float* y,
                    int64_t ldy, bool accumulate, float* work) const = 0;
  virtual int64_t work_floats(int64_t /*rows*/) const { return 0; }

  void multiply(const void* x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const override;
  int64_t output_block() const override { return kPanel; }
  void multiply_blocks(const void* x, std::span<const int64_t> blocks, float* y, LinearScratch& scratch) const override;
  void multiply_gated(const void* x, int64_t rows, float* y, LinearScratch& scratch) const override;

  // The strips of multiply_gated_panels.
  template <class Take>
  void multiply_strips(const void* x, int64_t rows, LinearScratch& scratch, const Take& take) const {
    const ThreadFloats work(scratch.work, work_floats(rows));
    multiply_gated_panels<kPanel>(
        tile(rows), rows, out_features() / 2, scratch.tiles,
        [&](int64_t row, int64_t count, int64_t panel, int64_t panels, float* out, int64_t ldo) {
          gemm(x, rows, row, count, panel, panels * kPanel, out, ldo, false, work.of_this());
        },
        take);
  }

  int64_t panels() const { return (out_features() + kPanel - 1) / kPanel; }
  const Kernels& kernels_;
};

// fp32 and bf16 weights times fp32 activations.
std::unique_ptr<Linear> make_panel_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels,
                                          Arena& arena);

inline int64_t stacked_rows(std::span<const TensorView> parts) {
  int64_t rows = 0;
  for (const TensorView& part : parts) rows += part.rows();
  return rows;
}

}  // namespace lfm
