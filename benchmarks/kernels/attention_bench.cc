// Attention kernels on LFM2.5-350M's shape, all layers, for each type of K and V. decode: one token after `tokens`;
// memory is the limit. prefill: 256 tokens after `tokens`.
#include <algorithm>
#include <cstring>
#include <string>

#include "bench.h"
#include "kernels/kernels.h"
#include "model/state.h"

namespace lfm::bench {
namespace {

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
  for (int64_t i = 1; i < state.num_pages(); ++i) state.shared_page(i)->copy_from(*state.shared_page(0));
  auto conv = std::make_shared<Buffer<float>>();
  state.advance(std::vector<int32_t>(static_cast<size_t>(tokens)), conv);
}

// One pass over all layers for each iteration of `timer`.
Rates attend(benchmark::State& timer, const SequenceState& state, int64_t queries, int64_t tile_tokens, int threads) {
  const Kernels& kernels = active_kernels();
  const StateLayout& layout = state.layout();
  const int64_t group = 2, hd = layout.head_dim, past = state.length() - queries, rows = tile_tokens * group;
  const std::vector<float> q = normals(queries * layout.kv_heads * group * hd, 0.25f, 2);
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
  const Rates rates(timer);
  for (auto _ : timer) {
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
    benchmark::ClobberMemory();
  }
  return rates;
}

void attention(benchmark::State& timer, KvType type, int64_t queries, int64_t tile_tokens) {
  const int64_t tokens = timer.range(0);
  const auto threads = static_cast<int>(timer.range(1));
  const ThreadScope scope(threads);
  const ModelConfig config = shape();
  const auto layout = std::make_shared<StateLayout>(config, type);
  SequenceState state(layout);
  fill(state, active_kernels(), tokens + queries);
  const Rates rates = attend(timer, state, queries, tile_tokens, threads);
  const auto keys = static_cast<double>(tokens) + static_cast<double>(queries + 1) / 2;
  const auto outputs = static_cast<double>(queries * config.num_attention_heads * config.head_dim) *
                       static_cast<double>(config.layer_types.size());
  const double bytes = static_cast<double>(layout->page_bytes) / kPage * static_cast<double>(tokens + queries);
  rates.report(bytes, 4 * outputs * keys, type == KvType::f32 ? ComputeType::f32 : ComputeType::bf16, threads);
}

const bool registered = [] {
  for (int i = 0; i < kKvTypes; ++i) {
    const auto type = static_cast<KvType>(i);
    const std::string kv = "/kv_" + std::string(kv_type_name(type));
    const auto decode = [type](benchmark::State& s) { attention(s, type, 1, 1); };
    const auto prefill = [type](benchmark::State& s) { attention(s, type, 256, 24); };
    for (auto* bench : {benchmark::RegisterBenchmark(("attention_decode" + kv).c_str(), decode)
                            ->ArgsProduct({{4096, 32000}, thread_counts()}),
                        benchmark::RegisterBenchmark(("attention_prefill" + kv).c_str(), prefill)
                            ->ArgsProduct({{4096}, thread_counts()})}) {
      bench->ArgNames({"tokens", "threads"})->UseRealTime()->Unit(benchmark::kMillisecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace lfm::bench
