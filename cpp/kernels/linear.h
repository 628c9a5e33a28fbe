// A linear layer's packed weights: y[M, N] = x[M, K] W^T (+ bias), with one copy of W serving prefill and decode.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/arena.h"
#include "base/buffer.h"
#include "base/function_ref.h"
#include "base/tensor.h"
#include "kernels/kernels.h"

namespace lfm {

// What the weights are stored and multiplied in.
enum class ComputeType : uint8_t { f32, bf16, int8, int4 };

inline constexpr ComputeType kAllComputeTypes[] = {ComputeType::f32, ComputeType::bf16, ComputeType::int8,
                                                   ComputeType::int4};
std::string_view compute_type_name(ComputeType type);       // "float32", "bfloat16", "int8", "int4"
ComputeType compute_type_from_name(std::string_view name);  // throws std::invalid_argument

// Input rows that are computed while they are converted to the type of a product, so that an fp32 copy of them all
// never exists: writes row m of x to out[in_features]. Called from several threads at once; must not throw.
using RowSource = FunctionRef<void(int64_t m, float* out)>;

class Linear;

// Of each layer that ran: the sum of squares of each of its inputs.
using InputSquares = std::map<const Linear*, std::vector<double>>;

// Memory that a forward pass reuses from layer to layer; one per caller.
struct LinearScratch {
  Buffer<float> rows;               // [threads, in_features]
  Buffer<std::byte> activations;    // x in the type of the product
  Buffer<std::byte> next;           // and that of the product which follows it
  Buffer<float> tiles;              // [threads, ...]: products that are not written as they are
  Buffer<float> work;               // [threads, ...]: what a product works in
  Buffer<std::byte> pad;            // oneDNN's scratchpad
  InputSquares* squares = nullptr;  // where float32 layers add their inputs' squares, if anywhere
};

// Packed weights as memory: what a packed file stores and a Linear can be made from again.
struct PackedWeights {
  std::string implementation;  // Linear::implementation()
  int64_t in_features, out_features;
  std::vector<std::span<const std::byte>> parts;  // each begins at a multiple of 64 bytes in memory
  std::shared_ptr<const void> owner;              // keeps the parts alive
};

// Immutable after construction; forward may run on several threads' workspaces at once.
class Linear {
 public:
  virtual ~Linear() = default;

  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }

  // y[rows, N] = x[rows, K] W^T + bias, or y += if `accumulate`. Row m of y depends on row m of x alone, bit for
  // bit, whatever `rows` and the number of threads are. Runs on the OpenMP threads of the current ThreadScope.
  void forward(const float* x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const;
  void forward(const RowSource& x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const;

  // For one row x: those y[n] whose bit of `wanted` is set (ceil(N / 32) words, low bit first), with the bits that
  // forward gives them, and maybe their neighbours; the others stay as they are.
  void forward_some(const RowSource& x, const uint32_t* wanted, float* y, LinearScratch& scratch) const;

  // For W = [W1; W3]: y[rows, N / 2] = silu(x W1^T) * (x W3^T), without the product in memory, where gates() is true.
  virtual bool gates() const { return false; }
  void forward_gated(const RowSource& x, int64_t rows, float* y, LinearScratch& scratch) const;
  // y = W2 (that product), or y +=, for `next` = W2, whose inputs never exist in fp32, where gates_for(next).
  virtual bool gates_for(const Linear& /*next*/) const { return false; }
  void forward_gated(const RowSource& x, int64_t rows, const Linear& next, float* y, bool accumulate,
                     LinearScratch& scratch) const;

  // Whether products run in parallel regions that are not of base/parallel.h.
  virtual bool brings_threads() const { return false; }

  // Row n of W as fp32, out[K]: embedding lookup on the same memory as the output head.
  virtual void weight_row(int64_t n, float* out) const = 0;

  // The packed weights as they lie in memory, without the bias.
  virtual std::vector<std::span<const std::byte>> packed_memory() const = 0;
  virtual size_t nbytes() const = 0;
  virtual std::string_view implementation() const = 0;

  // Only for layouts that are the same on every ISA: int8 and int4 panels.
  virtual std::optional<PackedWeights> packed() const { return std::nullopt; }

  void set_bias(std::vector<float> bias);                   // [N]
  const std::vector<float>& bias() const { return bias_; }  // [N] or empty

 protected:
  Linear(int64_t in_features, int64_t out_features) : in_features_(in_features), out_features_(out_features) {}

  // Bytes of `rows` rows of x in the type of the product, and their conversion, row by row; 0: x is used as it is.
  virtual size_t activation_bytes(int64_t /*rows*/) const { return 0; }
  virtual void convert_row(const float* /*x*/, int64_t /*m*/, int64_t /*rows*/, std::byte* /*activations*/) const {}
  // x: [rows, in_features] fp32, or what convert_row made of it.
  virtual void multiply(const void* x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const = 0;
  // Outputs are computed in blocks of so many; 0: only all together.
  virtual int64_t output_block() const { return 0; }
  virtual void multiply_blocks(const void* /*x*/, std::span<const int64_t> /*blocks*/, float* /*y*/,
                               LinearScratch& /*scratch*/) const {}
  virtual void multiply_gated(const void* /*x*/, int64_t /*rows*/, float* /*y*/, LinearScratch& /*scratch*/) const {}
  virtual void multiply_gated_for_next(const void* /*x*/, int64_t /*rows*/, std::byte* /*activations*/,
                                       LinearScratch& /*scratch*/) const {}
  bool has_bias() const { return !bias_.empty(); }

 private:
  const void* convert(const RowSource& x, int64_t rows, LinearScratch& scratch) const;
  void add_bias(float* y, int64_t rows) const;
  void add_squares(const float* x, int64_t rows, InputSquares& squares) const;

  int64_t in_features_, out_features_;
  std::vector<float> bias_;
};

// Packs the rows of `parts` ([N_i, K] each, stacked) for `type`. Throws std::invalid_argument naming the tensor
// when it holds NaN or infinity, or when its values do not fit the type.
// oneDNN serves fp32 and bf16 where its batch-invariant brgemm kernels exist on `isa`, our panel kernels the rest.
// int4 keeps tensors that are quantized with more than 4 bits in 6 or 8, and quantizes others by the scale of least
// squared error, each input weighted by importance[K] if it is given (the mean square of its activations, say).
// The packed weights lie in `arena`.
std::unique_ptr<Linear> make_linear(std::span<const TensorView> parts, ComputeType type, Isa isa, Arena& arena,
                                    std::span<const float> importance = {});
// In memory of its own.
std::unique_ptr<Linear> make_linear(std::span<const TensorView> parts, ComputeType type, Isa isa);

// A Linear that uses `weights` in place. Throws std::invalid_argument when its parts do not fit its numbers.
std::unique_ptr<Linear> make_linear(const PackedWeights& weights, Isa isa);

// Reads rows [first, first + count) of the stacked `parts` as fp32 into out[count, K] in parallel.
// Throws std::invalid_argument naming a tensor that is not finite, or would not be in `type`.
void read_stacked_rows(std::span<const TensorView> parts, int64_t first, int64_t count, ComputeType type, float* out);

}  // namespace lfm
