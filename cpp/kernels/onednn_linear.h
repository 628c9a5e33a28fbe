// Linear layers on oneDNN matmul: weights reordered once to the blocked layout that its brgemm kernels read.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <utility>

#include "kernels/linear.h"

namespace lfm {

class OneDnnLinear final : public Linear {
 public:
  // nullptr where oneDNN has no brgemm ("brg:") implementation for `type` on `isa`, or where a row's bits depend on the
  // number of rows, as they do with its other implementations.
  static std::unique_ptr<Linear> create(std::span<const TensorView> parts, ComputeType type, Isa isa, Arena& arena);

  bool brings_threads() const override { return k_chunk_ == 0; }
  void weight_row(int64_t n, float* out) const override;
  std::vector<std::span<const std::byte>> packed_memory() const override { return {{weights_.get(), nbytes()}}; }
  size_t nbytes() const override { return layout_.get_size(); }
  std::string_view implementation() const override { return implementation_; }

 protected:
  size_t activation_bytes(int64_t rows) const override;
  void convert_row(const float* x, int64_t m, int64_t rows, std::byte* activations) const override;
  void multiply(const void* x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const override;

 private:
  struct Product {
    dnnl::matmul primitive;
    dnnl::memory::desc src, dst, pad;
  };
  OneDnnLinear(std::span<const TensorView> parts, ComputeType type, const dnnl::matmul::primitive_desc& pd,
               const Kernels& kernels, Arena& arena);
  int64_t offset(int64_t k, int64_t n) const;            // element offset in weights_
  Product product(int64_t rows, bool accumulate) const;  // handles, cheap to copy

  void multiply_onednn(const void* x, int64_t rows, float* y, bool accumulate, Buffer<std::byte>& pad) const;
  int64_t output_block() const override { return k_chunk_ > 0 ? kBlock : 0; }
  void multiply_blocks(const void* x, std::span<const int64_t> blocks, float* y, LinearScratch& scratch) const override;
  void multiply_blocked(const void* x, int64_t rows, int64_t k_chunk, float* y, bool accumulate) const;
  void multiply_block(const void* x, int64_t row, int64_t count, int64_t k_chunk, int64_t block, float* y, int64_t ldy,
                      bool accumulate) const;
  bool gates() const override { return k_chunk_ > 0 && out_features() % (2 * kBlock) == 0 && !has_bias(); }
  void multiply_gated(const void* x, int64_t rows, float* y, LinearScratch& scratch) const override;
  std::vector<std::byte> probe_inputs(int64_t rows) const;
  int64_t find_k_chunk() const;
  bool is_batch_invariant() const;

  ComputeType type_;
  const Kernels& kernels_;
  std::string implementation_;
  dnnl::memory::desc layout_;  // logical dims [K, N]
  std::shared_ptr<std::byte[]> weights_;
  std::vector<int64_t> k_offset_;  // offset(k, 0): rows are gathered through it
  int64_t k_chunk_ = 0;            // of our kernels; 0: they cannot be used, oneDNN does all
  mutable std::mutex mutex_;       // guards products_
  mutable std::map<std::pair<int64_t, int>, Product> products_;  // by rows, threads and accumulate
};

// Sets oneDNN's instruction limit to active_isa(), once, before its first use.
const dnnl::engine& onednn_engine();

}  // namespace lfm
