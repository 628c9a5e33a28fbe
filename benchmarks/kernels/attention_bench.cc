// Attention kernels on LFM2.5-350M's shape: bytes of K and V and FLOPs per second, for each type of K and V.
//   attention_bench [threads] [decode_tokens] [prefill_tokens]
// decode: one token after `decode_tokens`, all layers; memory is the limit. prefill: 256 tokens after `prefill_tokens`.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "base/parallel.h"
#include "kernels/kernels.h"
#include "kernels/roofline.h"
#include "model/state.h"

namespace lfm {
namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

ModelConfig shape() {
  ModelConfig c;
  c.hidden_size = 1024;
  c.num_attention_heads = 16;
  c.num_key_value_heads = 8;
  c.head_dim = 64;
  c.conv_L_cache = 3;
  c.layer_types.assign(6, LayerType::full_attention);
  return c;
}

// A state of `tokens` tokens of random K and V; all pages hold the same.
void fill(SequenceState& state, const Kernels& kernels, int64_t tokens) {
  const StateLayout& layout = state.layout();
  state.reserve(tokens);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> k(static_cast<size_t>(layout.head_dim)), v = k;
  for (int64_t slot = 0; slot < kPage; ++slot) {
    for (int64_t layer = 0; layer < layout.attention_layers; ++layer) {
      for (int64_t head = 0; head < layout.kv_heads; ++head) {
        for (float& x : k) x = normal(random);
        for (float& x : v) x = normal(random);
        std::byte* page = state.page(0);
        kernels.store_kv[static_cast<int>(layout.kv_type)](k.data(), v.data(), layout.head_dim, slot,
                                                           page + layout.k_offset(layer, head),
                                                           page + layout.v_offset(layer, head));
      }
    }
  }
  for (int64_t i = 1; i < state.num_pages(); ++i) std::memcpy(state.page(i), state.page(0), layout.page_bytes);
  state.advance(std::vector<int32_t>(static_cast<size_t>(tokens)));
}

// Seconds of one pass over all layers, the median of `runs`.
double time_attention(const SequenceState& state, const Kernels& kernels, int64_t queries, int64_t tile_tokens,
                      int threads, int runs) {
  const StateLayout& layout = state.layout();
  const int64_t group = 2, hd = layout.head_dim, past = state.length() - queries, rows = tile_tokens * group;
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, 0.25f);
  std::vector<float> q(static_cast<size_t>(queries * layout.kv_heads * group * hd));
  for (float& x : q) x = normal(random);
  const int64_t scratch_bytes = (attention_scratch_bytes(rows, hd) + 63) / 64 * 64;
  const int64_t partial_floats = rows * (padded_head_dim(hd) + 2);
  const int64_t blocks = (state.length() + kAttentionBlock - 1) / kAttentionBlock;
  const int64_t tiles = (queries + tile_tokens - 1) / tile_tokens;
  const int64_t splits = queries == 1 ? blocks : 1;  // tasks of one tile and head
  Buffer<std::byte> scratch(static_cast<size_t>(threads * scratch_bytes));
  Buffer<float> partials(static_cast<size_t>((threads * 2 + layout.kv_heads * splits) * partial_floats));
  const auto partial = [&](int64_t i) {
    float* base = partials.data() + i * partial_floats;
    return AttentionPartial{base, base + rows, base + 2 * rows};
  };
  std::vector<double> times;
  for (int run = 0; run <= runs; ++run) {
    const double start = seconds();
    for (int64_t layer = 0; layer < layout.attention_layers; ++layer) {
      parallel_for_dynamic(layout.kv_heads * tiles * splits, splits > 1 ? 4 : 1, [&](int64_t i) {
        const int64_t head = splits > 1 ? i % layout.kv_heads : i / tiles, t = splits > 1 ? 0 : i % tiles,
                      split = i / layout.kv_heads;
        const int64_t token = t * tile_tokens, count = std::min(tile_tokens, queries - token);
        AttentionTile tile = {&q[static_cast<size_t>((token * layout.kv_heads + head) * group * hd)],
                              layout.kv_heads * group * hd,
                              group,
                              count * group,
                              hd,
                              past + token + 1,
                              state.pages(),
                              layout.k_offset(layer, head),
                              layout.v_offset(layer, head),
                              0,
                              nullptr};
        std::byte* own = scratch.data() + thread_id() * scratch_bytes;
        const AttentionPartial total = partial(thread_id() * 2), next = partial(thread_id() * 2 + 1);
        const auto attention = kernels.attention[static_cast<int>(layout.kv_type)];
        if (splits > 1) {
          tile.block = split;
          const int64_t after = i + 1;
          if (after < layout.kv_heads * splits) {
            tile.next = state.page(after / layout.kv_heads * 8) + layout.k_offset(layer, after % layout.kv_heads);
          }
          attention(tile, partial(threads * 2 + head * splits + split), own);
          return;
        }
        for (; tile.block < blocks; ++tile.block) {
          attention(tile, tile.block == 0 ? total : next, own);
          if (tile.block > 0) kernels.attention_merge(tile.rows, hd, total, next);
        }
      });
      if (splits == 1) continue;
      parallel_for(layout.kv_heads, [&](int64_t head) {
        for (int64_t split = 1; split < splits; ++split) {
          kernels.attention_merge(group, hd, partial(threads * 2 + head * splits),
                                  partial(threads * 2 + head * splits + split));
        }
      });
    }
    if (run > 0) times.push_back(seconds() - start);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void run(int threads, int64_t decode_tokens, int64_t prefill_tokens) {
  const ModelConfig config = shape();
  const ThreadScope scope(threads);
  const Kernels& kernels = active_kernels();
  const double bandwidth = measure_read_bandwidth(threads, int64_t{1} << 28);
  const double gemm = measure_gemm(ComputeType::bf16, 512, 1024, 4608, threads);
  std::printf("%s, %d threads: reads %.1f GB/s, bf16 GEMM %.0f GFLOP/s\n", std::string(isa_name(active_isa())).c_str(),
              threads, bandwidth / 1e9, gemm / 1e9);
  for (int type = 0; type < kKvTypes; ++type) {
    const auto layout = std::make_shared<StateLayout>(config, static_cast<KvType>(type));
    SequenceState state(layout), prompt(layout);
    fill(state, kernels, decode_tokens);
    const double decode = time_attention(state, kernels, 1, 1, threads, 7);
    const auto bytes = static_cast<double>(layout->page_bytes) / kPage * static_cast<double>(decode_tokens);
    constexpr int64_t kQueries = 256;
    fill(prompt, kernels, prefill_tokens + kQueries);
    const double prefill = time_attention(prompt, kernels, kQueries, 24, threads, 3);
    const double keys = static_cast<double>(prefill_tokens) + (kQueries + 1) / 2.0;
    const double flops = 4.0 * 64 * 16 * 6 * kQueries * keys;
    std::printf("%-9s decode %7.2f ms %6.1f GB/s (%3.0f%%)   prefill %8.2f ms %6.0f GFLOP/s (%3.0f%%)\n",
                std::string(kv_type_name(layout->kv_type)).c_str(), decode * 1e3, bytes / decode / 1e9,
                100 * bytes / decode / bandwidth, prefill * 1e3, flops / prefill / 1e9, 100 * flops / prefill / gemm);
  }
}

}  // namespace
}  // namespace lfm

int main(int argc, char** argv) {
  const auto argument = [&](int i, int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  lfm::run(static_cast<int>(argument(1, lfm::usable_cores())), argument(2, 32000), argument(3, 4096));
}
