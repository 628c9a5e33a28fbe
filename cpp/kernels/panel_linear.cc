#include "kernels/panel_linear.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/parallel.h"

namespace lfm {
namespace {

constexpr int64_t kRowBlock = 96;   // rows of x that stay in cache while panels stream past them
constexpr int64_t kPanelGrain = 4;  // panels of one task

int64_t total_rows(std::span<const TensorView> parts) {
  int64_t rows = 0;
  for (const TensorView& part : parts) rows += part.rows();
  return rows;
}

// task(row, rows, panel, panels) over blocks of rows and groups of panels, one task after the other on each thread.
template <class Task>
void for_tasks(int64_t rows, int64_t panels, const Task& task) {
  const int64_t groups = (panels + kPanelGrain - 1) / kPanelGrain, blocks = (rows + kRowBlock - 1) / kRowBlock;
  parallel_for(blocks * groups, [&](int64_t i) {
    const int64_t row = i / groups * kRowBlock, panel = i % groups * kPanelGrain;
    task(row, std::min(kRowBlock, rows - row), panel, std::min(kPanelGrain, panels - panel));
  });
}

void assign(float& to, float v) { to = v; }
void assign(uint16_t& to, float v) { to = f32_to_bf16(v); }
float to_float(float v) { return v; }
float to_float(uint16_t v) { return bf16_to_f32(v); }
auto gemm_of(const Kernels& kernels, float) { return kernels.gemm_f32; }
auto gemm_of(const Kernels& kernels, uint16_t) { return kernels.gemm_bf16; }

// T: float, or uint16_t for bf16. Panels are [K, 16].
template <class T>
class FloatPanels final : public Linear {
 public:
  FloatPanels(std::span<const TensorView> parts, const Kernels& kernels)
      : Linear(parts[0].cols(), total_rows(parts)),
        kernels_(kernels),
        panels_((out_features() + kPanel - 1) / kPanel),
        weights_(static_cast<size_t>(panels_ * kPanel * in_features())) {
    const int64_t k = in_features(), n = out_features();
    constexpr int64_t kChunk = 64 * kPanel;
    Buffer<float> rows(static_cast<size_t>(std::min(kChunk, n) * k));
    for (int64_t first = 0; first < n; first += kChunk) {
      const int64_t count = std::min(kChunk, n - first);
      read_stacked_rows(parts, first, count, sizeof(T) == 4 ? ComputeType::f32 : ComputeType::bf16, rows.data());
      parallel_for((count + kPanel - 1) / kPanel, [&](int64_t p) {
        T* panel = weights_.data() + (first / kPanel + p) * kPanel * k;
        for (int64_t r = 0; r < std::min(kPanel, count - p * kPanel); ++r) {
          const float* row = rows.data() + (p * kPanel + r) * k;
          for (int64_t i = 0; i < k; ++i) assign(panel[i * kPanel + r], row[i]);
        }
      });
    }
  }

  void weight_row(int64_t n, float* out) const override {
    const T* column = weights_.data() + n / kPanel * kPanel * in_features() + n % kPanel;
    for (int64_t i = 0; i < in_features(); ++i) out[i] = to_float(column[i * kPanel]);
  }
  size_t nbytes() const override { return weights_.bytes(); }
  std::string_view implementation() const override { return sizeof(T) == 4 ? "panels:f32" : "panels:bf16"; }

 protected:
  void multiply(const float* x, int64_t rows, float* y, bool accumulate, LinearScratch&) const override {
    const int64_t k = in_features(), n = out_features();
    for_tasks(rows, panels_, [&](int64_t row, int64_t count, int64_t panel, int64_t panels) {
      gemm_of(kernels_, T{})(x + row * k, k, count, k, weights_.data() + panel * kPanel * k,
                             std::min(panels * kPanel, n - panel * kPanel), y + row * n + panel * kPanel, n,
                             accumulate);
    });
  }

 private:
  const Kernels& kernels_;
  int64_t panels_;
  Buffer<T> weights_;
};

class Q8PanelLinear final : public Linear {
 public:
  Q8PanelLinear(std::span<const TensorView> parts, const Kernels& kernels)
      : Linear(parts[0].cols(), total_rows(parts)),
        kernels_(kernels),
        panels_((out_features() + kPanel - 1) / kPanel),
        groups_((in_features() + kGroup - 1) / kGroup),
        values_(static_cast<size_t>(panels_ * groups_ * kPanel * kGroup)),
        scales_(static_cast<size_t>(panels_ * groups_ * kPanel)) {
    std::memset(values_.data(), 128, values_.bytes());  // padding rows and inputs are zero
    std::atomic<const TensorView*> bad{nullptr};
    int64_t offset = 0;
    for (const TensorView& part : parts) {
      // Static shares of whole rows; each thread has a row of fp32 of its own.
      parallel_ranges(part.rows(), 1, [&](int64_t begin, int64_t end) {
        const std::unique_ptr<float[]> row(new (std::nothrow) float[static_cast<size_t>(groups_ * kGroup)]());
        for (int64_t r = begin; r < end; ++r) {
          const bool ok = row != nullptr && (part.dtype == DType::q8_0 ? copy_row(part, r, offset + r)
                                                                       : quantize_row(part, r, offset + r, row.get()));
          if (!ok) bad.store(&part);
        }
      });
      offset += part.rows();
    }
    if (const TensorView* tensor = bad.load()) {
      throw std::invalid_argument(not_finite_message(tensor->name) + " or values too large for int8 groups");
    }
  }

  void weight_row(int64_t n, float* out) const override {
    for (int64_t i = 0; i < in_features(); ++i) {
      const int64_t block = n / kPanel * groups_ + i / kGroup;
      out[i] =
          f16_to_f32(scales_[block * kPanel + n % kPanel]) * static_cast<float>(int{values_[value_index(n, i)]} - 128);
    }
  }
  size_t nbytes() const override { return values_.bytes() + scales_.bytes(); }
  std::string_view implementation() const override { return "panels:q8"; }

 protected:
  void multiply(const float* x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const override {
    const int64_t k = in_features(), n = out_features(), padded = groups_ * kGroup;
    // [rows, padded] int8, then [rows, groups] scales and sums.
    std::byte* base = scratch.activations.ensure(static_cast<size_t>(rows * (padded + groups_ * 8)));
    auto* values = reinterpret_cast<int8_t*>(base);
    auto* scales = reinterpret_cast<float*>(base + rows * padded);
    auto* sums = reinterpret_cast<int32_t*>(scales + rows * groups_);
    parallel_for(rows, [&](int64_t m) {
      kernels_.quantize_q8(x + m * k, k, values + m * padded, scales + m * groups_, sums + m * groups_);
    });
    for_tasks(rows, panels_, [&](int64_t row, int64_t count, int64_t panel, int64_t panels) {
      const Q8Rows q = {values + row * padded, scales + row * groups_, sums + row * groups_};
      const Q8Panels w = {values_.data() + panel * groups_ * kPanel * kGroup,
                          scales_.data() + panel * groups_ * kPanel};
      kernels_.gemm_q8(q, count, groups_, w, std::min(panels * kPanel, n - panel * kPanel),
                       y + row * n + panel * kPanel, n, accumulate);
    });
  }

 private:
  int64_t value_index(int64_t n, int64_t i) const {
    const int64_t block = n / kPanel * groups_ + i / kGroup, in = i % kGroup;
    return block * kPanel * kGroup + (in / 4 * kPanel + n % kPanel) * 4 + in % 4;
  }
  void put(int64_t n, int64_t group, uint16_t scale, const int8_t* q) {
    scales_[(n / kPanel * groups_ + group) * kPanel + n % kPanel] = scale;
    for (int64_t i = 0; i < kGroup; ++i) values_[value_index(n, group * kGroup + i)] = static_cast<uint8_t>(q[i] + 128);
  }
  bool copy_row(const TensorView& part, int64_t r, int64_t n) {
    const auto* block = static_cast<const std::byte*>(part.data) + r * row_bytes(DType::q8_0, in_features());
    bool finite = true;
    for (int64_t g = 0; g < groups_; ++g, block += kQ8BlockBytes) {
      uint16_t scale;
      std::memcpy(&scale, block, sizeof(scale));
      finite = finite && (scale & 0x7c00u) != 0x7c00u;
      put(n, g, scale, reinterpret_cast<const int8_t*>(block + 2));
    }
    return finite;
  }
  bool quantize_row(const TensorView& part, int64_t r, int64_t n, float* row) {
    if (!read_row(part, r, row)) return false;
    for (int64_t g = 0; g < groups_; ++g) {
      const float* x = row + g * kGroup;
      float max = 0.0f;
      for (int64_t i = 0; i < kGroup; ++i) max = std::max(max, std::fabs(x[i]));
      const uint16_t bits = f32_to_f16(max / 127.0f);
      const float scale = f16_to_f32(bits);  // divide by the scale that is stored, not by the exact one
      if (std::isinf(scale)) return false;
      const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
      int8_t q[kGroup];
      for (int64_t i = 0; i < kGroup; ++i) {
        q[i] = static_cast<int8_t>(std::clamp(std::nearbyint(x[i] * inverse), -127.0f, 127.0f));
      }
      put(n, g, bits, q);
    }
    return true;
  }

  const Kernels& kernels_;
  int64_t panels_, groups_;
  Buffer<uint8_t> values_;
  Buffer<uint16_t> scales_;
};

}  // namespace

std::unique_ptr<Linear> make_panel_linear(std::span<const TensorView> parts, ComputeType type, const Kernels& kernels) {
  switch (type) {
    case ComputeType::f32: return std::make_unique<FloatPanels<float>>(parts, kernels);
    case ComputeType::bf16: return std::make_unique<FloatPanels<uint16_t>>(parts, kernels);
    case ComputeType::int8: return std::make_unique<Q8PanelLinear>(parts, kernels);
  }
  throw std::invalid_argument("unknown compute type");
}

}  // namespace lfm
