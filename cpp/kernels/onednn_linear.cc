#include "kernels/onednn_linear.h"

#include <algorithm>
#include <cstring>
#include <tuple>

#include "base/error.h"
#include "base/parallel.h"
#include "kernels/row_tasks.h"

namespace lfm {
namespace {

using dnnl::matmul;
using dnnl::memory;
using tag = memory::format_tag;
constexpr auto kF32 = memory::data_type::f32;
constexpr int64_t kTypicalRows = 256;  // the layout is the same for any number of rows
constexpr TileShape kTile = {6, 1};    // of our kernels
constexpr size_t kMaxProducts = 16;    // primitives kept per layer; a new one takes well under a millisecond

memory::data_type onednn_type(ComputeType type) { return type == ComputeType::bf16 ? memory::data_type::bf16 : kF32; }

dnnl::cpu_isa onednn_isa(Isa isa) {
  switch (isa) {
    case Isa::reference: return dnnl::cpu_isa::sse41;
    case Isa::avx2: return dnnl::cpu_isa::avx2;
    case Isa::avx2_vnni: return dnnl::cpu_isa::avx2_vnni;
    case Isa::avx512: return dnnl::cpu_isa::avx512_core_vnni;
    case Isa::avx512_bf16: return dnnl::cpu_isa::avx512_core_bf16;
    case Isa::amx: return dnnl::cpu_isa::avx512_core_amx;
  }
  return dnnl::cpu_isa::isa_default;
}

dnnl::stream& stream() {
  static dnnl::stream instance(onednn_engine());
  return instance;
}

// Whether elements lie as kernels.h says for blocked_*: blocks of 64 features, each [k / pair, 64, pair].
bool is_blocked_by(const memory::desc& layout, int64_t pair) {
  const auto blocks = layout.get_inner_blks(), dims = layout.get_inner_idxs(), strides = layout.get_strides();
  if (blocks.size() != (pair == 1 ? 2u : 3u) || blocks[1] != kBlock || dims[0] != 0 || dims[1] != 1) return false;
  if (pair > 1 && (blocks[2] != pair || dims[2] != 0)) return false;
  return strides[0] == blocks[0] * kBlock * pair;  // blocks of k follow each other
}

matmul::primitive_desc describe(int64_t rows, memory::desc weights, ComputeType type, bool accumulate) {
  const int64_t k = weights.get_dims()[0], n = weights.get_dims()[1];
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  return matmul::primitive_desc(onednn_engine(), memory::desc({rows, k}, onednn_type(type), tag::ab), weights,
                                memory::desc({rows, n}, kF32, tag::ab), attributes, /*allow_empty=*/true);
}

}  // namespace

const dnnl::engine& onednn_engine() {
  static const dnnl::engine engine = [] {
    dnnl::set_max_cpu_isa(onednn_isa(active_isa()));  // refused if another user of this library was first: harmless
    return dnnl::engine(dnnl::engine::kind::cpu, 0);
  }();
  return engine;
}

std::unique_ptr<Linear> OneDnnLinear::create(std::span<const TensorView> parts, ComputeType type, Isa isa,
                                             Arena& arena) {
  if (isa < Isa::avx512 || (type == ComputeType::bf16 && isa < Isa::avx512_bf16)) return nullptr;
  int64_t n = 0;
  for (const TensorView& part : parts) n += part.rows();
  const memory::desc any({parts[0].cols(), n}, onednn_type(type), tag::any);
  const auto pd = describe(kTypicalRows, any, type, false);
  if (!pd || std::string_view(pd.impl_info_str()).substr(0, 4) != "brg:") return nullptr;
  // Some shapes leave brgemm at small M; then no layout serves both prefill and decode.
  const auto decode = describe(1, pd.weights_desc(), type, true);
  if (!decode || std::string_view(decode.impl_info_str()).substr(0, 4) != "brg:") return nullptr;
  auto linear = std::unique_ptr<OneDnnLinear>(new OneDnnLinear(parts, type, pd, kernels_for(isa), arena));
  if (!linear->is_batch_invariant()) return nullptr;
  return linear;
}

OneDnnLinear::OneDnnLinear(std::span<const TensorView> parts, ComputeType type, const matmul::primitive_desc& pd,
                           const Kernels& kernels, Arena& arena)
    : Linear(pd.weights_desc().get_dims()[0], pd.weights_desc().get_dims()[1]),
      type_(type),
      kernels_(kernels),
      implementation_(std::string("onednn:") + pd.impl_info_str()),
      layout_(pd.weights_desc()),
      weights_(arena.allocate(layout_.get_size())) {
  const int64_t k = in_features(), n = out_features();
  const memory packed(layout_, onednn_engine(), weights_.get());
  // Chunk by chunk, so that no second whole copy exists; the chunk is a multiple of every block size in use.
  constexpr int64_t kChunk = 1024;
  Buffer<float> rows(static_cast<size_t>(std::min(kChunk, n) * k));
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t count = std::min(kChunk, n - first);
    read_stacked_rows(parts, first, count, type, rows.data());
    const memory source(memory::desc({k, count}, kF32, tag::ba), onednn_engine(), rows.data());
    const memory target(layout_.submemory_desc({k, count}, {0, first}), onednn_engine(), weights_.get());
    dnnl::reorder(source, target).execute(stream(), {{DNNL_ARG_FROM, source}, {DNNL_ARG_TO, target}});
    stream().wait();
  }
  k_offset_.resize(static_cast<size_t>(k));
  for (int64_t i = 0; i < k; ++i) k_offset_[i] = offset(i, 0);
  k_chunk_ = find_k_chunk();
  if (k_chunk_ > 0) implementation_ += "+blocked";
}

// Inputs of varied magnitude and sign for the checks below, [rows, k] in the type of the product.
std::vector<std::byte> OneDnnLinear::probe_inputs(int64_t rows) const {
  const auto count = static_cast<size_t>(rows * in_features());
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) {
    x[i] = static_cast<float>(static_cast<int64_t>(i * 7919 % 2003) - 1001) / 256.0f;
  }
  std::vector<std::byte> bytes(count * (type_ == ComputeType::bf16 ? sizeof(uint16_t) : sizeof(float)));
  if (type_ == ComputeType::bf16) {
    kernels_.to_bf16(x.data(), static_cast<int64_t>(count), reinterpret_cast<uint16_t*>(bytes.data()));
  } else {
    std::memcpy(bytes.data(), x.data(), bytes.size());
  }
  return bytes;
}

// brgemm at one row reads weights at about two thirds of the memory bandwidth, and at some dozens it waits for them;
// our kernels on the same layout fetch ahead, are as fast at any number of rows, and need no threads of their own.
// oneDNN cuts k into chunks whose length it does not tell: try the likely ones on the real weights. Where none gives
// its bits, the layout is not the one that we think it is.
int64_t OneDnnLinear::find_k_chunk() const {
  const int64_t k = in_features(), n = out_features(), pair = type_ == ComputeType::bf16 ? 2 : 1;
  const bool kernel = type_ == ComputeType::bf16 ? kernels_.blocked_bf16 != nullptr : kernels_.blocked_f32 != nullptr;
  if (!kernel || k % pair != 0 || !is_blocked_by(layout_, pair)) return 0;
  constexpr int64_t kRows = 3;
  const std::vector<std::byte> x = probe_inputs(kRows);
  std::vector<float> expected(static_cast<size_t>(kRows * n)), found(expected.size());
  Buffer<std::byte> pad;
  multiply_onednn(x.data(), kRows, expected.data(), false, pad);
  for (const int64_t chunk : {k, int64_t{4096}, int64_t{2048}, int64_t{1024}, int64_t{512}, int64_t{256}}) {
    if (chunk > k) continue;
    multiply_blocked(x.data(), kRows, chunk, found.data(), false);
    if (std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0) return chunk;
  }
  return 0;
}

// brgemm's rows are independent of their number wherever it was tested, but oneDNN does not promise it: compare a row's
// bits at several sizes, once per shape and thread count.
bool OneDnnLinear::is_batch_invariant() const {
  static std::mutex mutex;
  static std::map<std::tuple<ComputeType, int64_t, int64_t, int>, bool> known;
  const std::lock_guard lock(mutex);
  const std::tuple key(type_, in_features(), out_features(), max_threads());
  if (const auto found = known.find(key); found != known.end()) return found->second;
  constexpr int64_t kMost = 33;
  const std::vector<std::byte> x = probe_inputs(kMost);
  const auto n = static_cast<size_t>(out_features());
  std::vector<float> all(kMost * n), few(17 * n);
  Buffer<std::byte> pad;
  multiply_onednn(x.data(), kMost, all.data(), false, pad);
  bool same = true;
  for (const int64_t rows : {1, 2, 8, 17}) {
    multiply_onednn(x.data(), rows, few.data(), false, pad);
    same = same && std::memcmp(few.data(), all.data(), static_cast<size_t>(rows) * n * sizeof(float)) == 0;
  }
  return known[key] = same;
}

int64_t OneDnnLinear::offset(int64_t k, int64_t n) const {
  // oneDNN's blocked layout: inner blocks from the last to the first, then the outer strides.
  int64_t position[2] = {k, n}, result = 0, stride = 1;
  const auto blocks = layout_.get_inner_blks(), dims = layout_.get_inner_idxs(), strides = layout_.get_strides();
  for (size_t i = blocks.size(); i-- > 0;) {
    int64_t& p = position[dims[i]];
    result += p % blocks[i] * stride;
    p /= blocks[i];
    stride *= blocks[i];
  }
  return result + position[0] * strides[0] + position[1] * strides[1];
}

void OneDnnLinear::weight_row(int64_t n, float* out) const {
  const int64_t base = offset(0, n);
  if (type_ == ComputeType::bf16) {
    const auto* w = reinterpret_cast<const uint16_t*>(weights_.get()) + base;
    for (int64_t k = 0; k < in_features(); ++k) out[k] = bf16_to_f32(w[k_offset_[k]]);
  } else {
    const auto* w = reinterpret_cast<const float*>(weights_.get()) + base;
    for (int64_t k = 0; k < in_features(); ++k) out[k] = w[k_offset_[k]];
  }
}

OneDnnLinear::Product OneDnnLinear::product(int64_t rows, bool accumulate) const {
  const std::lock_guard lock(mutex_);
  const std::pair key(rows, max_threads() * 2 + (accumulate ? 1 : 0));
  if (const auto found = products_.find(key); found != products_.end()) return found->second;
  const auto pd = describe(rows, layout_, type_, accumulate);
  if (!pd) throw std::runtime_error(concat("oneDNN cannot multiply ", rows, " rows in the packed layout"));
  if (products_.size() >= kMaxProducts) products_.clear();
  return products_.emplace(key, Product{matmul(pd), pd.src_desc(), pd.dst_desc(), pd.scratchpad_desc()}).first->second;
}

size_t OneDnnLinear::activation_bytes(int64_t rows) const {
  return type_ == ComputeType::bf16 ? static_cast<size_t>(rows * in_features()) * sizeof(uint16_t) : 0;
}

void OneDnnLinear::convert_row(const float* x, int64_t m, int64_t /*rows*/, std::byte* activations) const {
  kernels_.to_bf16(x, in_features(), reinterpret_cast<uint16_t*>(activations) + m * in_features());
}

void OneDnnLinear::multiply(const void* x, int64_t rows, float* y, bool accumulate, LinearScratch& scratch) const {
  if (k_chunk_ == 0) {
    multiply_onednn(x, rows, y, accumulate, scratch.pad);
  } else {
    multiply_blocked(x, rows, k_chunk_, y, accumulate);
  }
}

void OneDnnLinear::multiply_onednn(const void* x, int64_t rows, float* y, bool accumulate,
                                   Buffer<std::byte>& scratchpad) const {
  const Product p = product(rows, accumulate);
  const dnnl::engine& engine = onednn_engine();
  const memory a(p.src, engine, const_cast<void*>(x));
  const memory b(layout_, engine, const_cast<std::byte*>(weights_.get()));
  const memory c(p.dst, engine, y);
  const memory pad(p.pad, engine, scratchpad.ensure(p.pad.get_size()));
  p.primitive.execute(stream(),
                      {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}, {DNNL_ARG_SCRATCHPAD, pad}});
}

// `count` rows from `row` on times one block of weights; y: the first of these rows, at that block.
void OneDnnLinear::multiply_block(const void* x, int64_t row, int64_t count, int64_t k_chunk, int64_t block, float* y,
                                  int64_t ldy, bool accumulate) const {
  const int64_t k = in_features(), begin = block * kBlock, at = offset(0, begin), features = out_features() - begin;
  if (type_ == ComputeType::bf16) {
    kernels_.blocked_bf16(static_cast<const uint16_t*>(x) + row * k, k, count, k, k_chunk,
                          reinterpret_cast<const uint16_t*>(weights_.get()) + at, features, y, ldy, accumulate);
  } else {
    kernels_.blocked_f32(static_cast<const float*>(x) + row * k, k, count, k, k_chunk,
                         reinterpret_cast<const float*>(weights_.get()) + at, features, y, ldy, accumulate);
  }
}

void OneDnnLinear::multiply_blocked(const void* x, int64_t rows, int64_t k_chunk, float* y, bool accumulate) const {
  const int64_t n = out_features();
  for_panel_tasks(kTile, rows, (n + kBlock - 1) / kBlock,
                  [&](int64_t row, int64_t count, int64_t block, int64_t blocks) {
                    for (int64_t b = block; b < block + blocks; ++b) {
                      multiply_block(x, row, count, k_chunk, b, y + row * n + b * kBlock, n, accumulate);
                    }
                  });
}

void OneDnnLinear::multiply_gated(const void* x, int64_t rows, float* y, LinearScratch& scratch) const {
  const int64_t n = out_features() / 2;
  multiply_gated_panels<kBlock>(
      kTile, rows, n, scratch.tiles,
      [&](int64_t row, int64_t count, int64_t block, int64_t blocks, float* out, int64_t ldo) {
        for (int64_t b = 0; b < blocks; ++b) {
          multiply_block(x, row, count, k_chunk_, block + b, out + b * kBlock, ldo, false);
        }
      },
      [&](int64_t row, int64_t count, int64_t first, int64_t width, const float* strips) {
        kernels_.silu_mul(strips, count, width, y + row * n + first, n);
      });
}

void OneDnnLinear::multiply_blocks(const void* x, std::span<const int64_t> blocks, float* y, LinearScratch&) const {
  parallel_for(static_cast<int64_t>(blocks.size()), [&](int64_t i) {
    const int64_t block = blocks[static_cast<size_t>(i)];
    multiply_block(x, 0, 1, k_chunk_, block, y + block * kBlock, out_features(), false);
  });
}

}  // namespace lfm
