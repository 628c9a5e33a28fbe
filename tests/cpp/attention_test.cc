// store_kv, attention and attention_merge of every table and type of K and V, against a plain softmax in double.
#include <algorithm>
#include <tuple>

#include "base/dtype.h"
#include "kernels/kernels.h"
#include "testing.h"

namespace lfm::testing {
namespace {

constexpr int64_t kTokens = 2 * kAttentionBlock + 150;  // two whole blocks, two pages and a part
constexpr KvType kKvs[] = {KvType::f32, KvType::bf16, KvType::int8};

class AttentionTest : public ::testing::TestWithParam<std::tuple<Isa, KvType>> {
 protected:
  const Isa isa = std::get<0>(GetParam());
  const KvType type = std::get<1>(GetParam());
  const Kernels& kernels = kernels_for(isa);
  // Weights are rounded to bf16 for bf16 dot products (and queries, but those here are bf16 numbers already), and both
  // to 16 bits for int8.
  const double tolerance = type == KvType::f32                               ? 2e-5
                           : type == KvType::int8 && isa != Isa::reference   ? 8e-4
                           : type == KvType::bf16 && isa >= Isa::avx512_bf16 ? 5e-3
                                                                             : 2e-5;
  Rng rng{23};
};

INSTANTIATE_TEST_SUITE_P(Isas, AttentionTest,
                         ::testing::Combine(::testing::ValuesIn(isas_up_to(detected_isa())), ::testing::ValuesIn(kKvs)),
                         [](const auto& info) {
                           return std::string(isa_name(std::get<0>(info.param))) + "_" +
                                  std::string(kv_type_name(std::get<1>(info.param)));
                         });

// What element i of a K or V worth `elements` holds for the token at `slot`.
float stored(KvType type, const std::byte* at, int64_t elements, int64_t slot, int64_t i) {
  switch (type) {
    case KvType::f32: return reinterpret_cast<const float*>(at)[i];
    case KvType::bf16: return bf16_to_f32(reinterpret_cast<const uint16_t*>(at)[i]);
    case KvType::int8:
      return static_cast<float>(reinterpret_cast<const int8_t*>(at)[i]) *
             bf16_to_f32(reinterpret_cast<const uint16_t*>(at + elements)[slot]);
  }
  return NAN;
}

// K and V of one head in pages filled through store_kv, behind 192 bytes of something else.
struct Cache {
  Cache(const Kernels& k, KvType kv_type, int64_t head_dim, Rng& rng, int64_t tokens = kTokens)
      : kernels(k),
        type(kv_type),
        hd(head_dim),
        v_offset(kOffset + static_cast<size_t>(kv_bytes(type, k_elements(head_dim)))),
        keys(rng.normals(tokens * head_dim)),
        values(rng.normals(tokens * head_dim)) {
    for (int64_t t = 0; t < tokens; ++t) {
      if (t % kPage == 0) pages.emplace_back(v_offset + static_cast<size_t>(kv_bytes(type, v_elements(head_dim))));
      store(t, &keys[t * hd], &values[t * hd]);
      const std::byte *k_page = pages.back().data() + kOffset, *v_page = pages.back().data() + v_offset;
      for (int64_t d = 0; d < hd; ++d) {
        keys[t * hd + d] = stored(type, k_page, k_elements(hd), t % kPage, k_index(type, t % kPage, d));
        values[t * hd + d] = stored(type, v_page, v_elements(hd), t % kPage, v_index(type, hd, t % kPage, d));
      }
    }
    for (const Buffer<std::byte>& page : pages) pointers.push_back(page.data());
  }
  void store(int64_t token, const float* k, const float* v) {
    std::byte* page = pages[static_cast<size_t>(token / kPage)].data();
    kernels.store_kv[static_cast<int>(type)](k, v, hd, token % kPage, page + kOffset, page + v_offset);
  }
  static constexpr size_t kOffset = 192;
  const Kernels& kernels;
  KvType type;
  int64_t hd;
  size_t v_offset;
  std::vector<float> keys, values;  // as stored
  std::vector<Buffer<std::byte>> pages;
  std::vector<const std::byte*> pointers;
};

// The state of a softmax between canaries.
struct Partial {
  Partial(int64_t rows, int64_t head_dim) : max(rows), sum(rows), acc(rows * padded_head_dim(head_dim)) {}
  AttentionPartial view() { return {max.data(), sum.data(), acc.data()}; }
  bool intact() const { return max.intact() && sum.intact() && acc.intact(); }
  Guarded<float> max, sum, acc;
};

// Queries of `tokens` tokens, the first of which sees `visible` positions; heads lie `stride` apart.
struct Queries {
  Queries(int64_t token_count, int64_t heads, int64_t head_dim, int64_t visible_positions, float scale, Rng& rng)
      : tokens(token_count),
        group(heads),
        hd(head_dim),
        stride(heads * head_dim + 7),
        visible(visible_positions),
        q(rng.normals(token_count * stride, scale)) {
    for (float& v : q) v = bf16_to_f32(f32_to_bf16(v));
  }
  int64_t rows() const { return tokens * group; }
  const float* row(int64_t r) const { return &q[r / group * stride + r % group * hd]; }
  int64_t sees(int64_t r) const { return visible + r / group; }
  int64_t tokens, group, hd, stride, visible;
  std::vector<float> q;
};

void attend(const Cache& cache, const Queries& q, int64_t block, Partial& out) {
  const AttentionTile tile = {q.q.data(),     q.stride,       q.group, q.rows(), q.hd, q.visible, cache.pointers.data(),
                              Cache::kOffset, cache.v_offset, block};
  const int64_t bytes = attention_scratch_bytes(q.rows(), q.hd);
  Buffer<std::byte> scratch(static_cast<size_t>(bytes + 64));
  std::fill(scratch.data(), scratch.data() + scratch.size(), std::byte{0xa5});
  cache.kernels.attention[static_cast<int>(cache.type)](tile, out.view(), scratch.data());
  ASSERT_TRUE(out.intact());
  ASSERT_TRUE(std::all_of(scratch.data() + bytes, scratch.data() + bytes + 64,
                          [](std::byte b) { return b == std::byte{0xa5}; }));
}

// All blocks, merged.
Partial attend_all(const Cache& cache, const Queries& q) {
  Partial total(q.rows(), q.hd), next(q.rows(), q.hd);
  attend(cache, q, 0, total);
  for (int64_t block = 1; block * kAttentionBlock < q.sees(q.rows() - 1); ++block) {
    attend(cache, q, block, next);
    cache.kernels.attention_merge(q.rows(), q.hd, total.view(), next.view());
    EXPECT_TRUE(total.intact());
  }
  return total;
}

// Softmax attention of one query over the first `visible` tokens, in double: out[head_dim].
std::vector<double> plain(const Cache& cache, const float* q, int64_t visible) {
  std::vector<double> weights, out(static_cast<size_t>(cache.hd));
  double top = -INFINITY, total = 0;
  for (int64_t t = 0; t < visible; ++t) {
    double dot = 0;
    for (int64_t d = 0; d < cache.hd; ++d) dot += double{q[d]} * cache.keys[t * cache.hd + d];
    weights.push_back(dot);
    top = std::max(top, dot);
  }
  for (double& w : weights) total += w = std::exp(w - top);
  for (int64_t t = 0; t < visible; ++t) {
    for (int64_t d = 0; d < cache.hd; ++d) out[d] += weights[t] / total * cache.values[t * cache.hd + d];
  }
  return out;
}

void expect_outputs(const Cache& cache, const Queries& q, const Partial& p, double tolerance) {
  const int64_t padded = padded_head_dim(q.hd);
  for (int64_t r = 0; r < q.rows(); ++r) {
    std::vector<double> got;
    for (int64_t d = 0; d < q.hd; ++d) got.push_back(double{p.acc[r * padded + d]} / p.sum[r]);
    const std::vector<double> want = plain(cache, q.row(r), q.sees(r));
    ASSERT_TRUE(close(got.data(), want.data(), q.hd, tolerance))
        << "row " << r << " of " << q.rows() << ", group " << q.group << ", head_dim " << q.hd << ", sees "
        << q.sees(r);
  }
}

TEST_P(AttentionTest, StoreKvWritesItsSlotOnly) {
  for (const int64_t hd : {2, 24, 80, 128}) {
    std::vector<float> k = rng.normals(hd), v = rng.normals(hd);
    k[1] = 0.0f;
    for (const int64_t slot : {0, 15, 16, 37, 63}) {
      Guarded<std::byte> keys(kv_bytes(type, k_elements(hd))), values(kv_bytes(type, v_elements(hd)));
      kernels.store_kv[static_cast<int>(type)](k.data(), v.data(), hd, slot, keys.data(), values.data());
      const int64_t size = type == KvType::f32 ? 4 : type == KvType::bf16 ? 2 : 1;
      std::vector<bool> k_slot(static_cast<size_t>(keys.size())), v_slot(static_cast<size_t>(values.size()));
      for (int64_t d = 0; d < hd; ++d) {
        const int64_t k_at = k_index(type, slot, d), v_at = v_index(type, hd, slot, d);
        std::fill_n(k_slot.begin() + k_at * size, size, true);
        std::fill_n(v_slot.begin() + v_at * size, size, true);
        const float got_k = stored(type, keys.data(), k_elements(hd), slot, k_at);
        const float got_v = stored(type, values.data(), v_elements(hd), slot, v_at);
        if (type == KvType::int8) {  // half a step of the largest value's 127th, which is rounded up to bf16
          const auto step = [&](const std::vector<float>& x) {
            return std::fabs(*std::max_element(x.begin(), x.end(),
                                               [](float a, float b) { return std::fabs(a) < std::fabs(b); })) /
                   127 * 1.008;
          };
          ASSERT_NEAR(got_k, k[d], 0.5001 * step(k)) << "d " << d << " of " << hd;
          ASSERT_NEAR(got_v, v[d], 0.5001 * step(v)) << "d " << d << " of " << hd;
        } else {
          ASSERT_EQ(got_k, type == KvType::f32 ? k[d] : bf16_to_f32(f32_to_bf16(k[d])));
          ASSERT_EQ(got_v, type == KvType::f32 ? v[d] : bf16_to_f32(f32_to_bf16(v[d])));
        }
      }
      if (type == KvType::int8) {
        std::fill_n(k_slot.begin() + k_elements(hd) + slot * 2, 2, true);
        std::fill_n(v_slot.begin() + v_elements(hd) + slot * 2, 2, true);
      }
      for (int64_t i = 0; i < keys.size(); ++i) ASSERT_TRUE(k_slot[i] || keys.untouched(i));
      // Behind head_dim lies padding that must stay, or become, zero.
      for (int64_t i = 0; i < values.size(); ++i) ASSERT_TRUE(v_slot[i] || values.untouched(i));
      ASSERT_TRUE(keys.intact() && values.intact());
    }
  }
}

TEST_P(AttentionTest, StoresTheBytesOfTheReference) {
  for (const int64_t hd : {2, 24, 64}) {
    for (const float scale : {1.0f, 1e-30f, 1e-37f, 3e30f, 0.0f}) {
      const std::vector<float> k = rng.normals(hd, scale), v = rng.normals(hd, scale);
      Guarded<std::byte> keys(kv_bytes(type, k_elements(hd))), values(kv_bytes(type, v_elements(hd)));
      Guarded<std::byte> want_keys = keys, want_values = values;
      const int i = static_cast<int>(type);
      kernels.store_kv[i](k.data(), v.data(), hd, 5, keys.data(), values.data());
      kReferenceKernels.store_kv[i](k.data(), v.data(), hd, 5, want_keys.data(), want_values.data());
      ASSERT_EQ(keys.values(), want_keys.values()) << "head_dim " << hd << ", scale " << scale;
      ASSERT_EQ(values.values(), want_values.values()) << "head_dim " << hd << ", scale " << scale;
    }
  }
}

TEST_P(AttentionTest, EqualsPlainSoftmaxWithTheSameBitsForATokenAlone) {
  const int64_t starts[] = {1, 2, 17, 63, 64, 65, 128, 511, 512, 513, 1023, 1024, kTokens - 33};
  for (const int64_t hd : {2, 24, 32, 36, 64, 80, 128}) {
    const Cache cache(kernels, type, hd, rng);
    for (const auto& [tokens, group] : {std::pair{1, 1},
                                        {1, 2},
                                        {1, 3},
                                        {2, 2},
                                        {1, 5},
                                        {7, 1},
                                        {2, 4},
                                        {1, 8},
                                        {11, 1},
                                        {3, 4},
                                        {16, 3},
                                        {24, 2},
                                        {32, 2},
                                        {9, 7}}) {
      const int64_t start = starts[rng.below(std::size(starts))];
      const Queries q(tokens, group, hd, start, 2.0f / std::sqrt(static_cast<float>(hd)), rng);
      const Partial all = attend_all(cache, q);
      expect_outputs(cache, q, all, tolerance);
      const int64_t padded = padded_head_dim(hd);
      for (int64_t t = 0; t < tokens; t += tokens > 11 ? 5 : 1) {
        Queries one = q;
        one.tokens = 1;
        one.visible = start + t;
        one.q.erase(one.q.begin(), one.q.begin() + t * q.stride);
        const Partial alone = attend_all(cache, one);
        ASSERT_TRUE(same_bits(alone.max.data(), &all.max[t * group], group)) << "token " << t << " of " << tokens;
        ASSERT_TRUE(same_bits(alone.sum.data(), &all.sum[t * group], group)) << "token " << t << " of " << tokens;
        ASSERT_TRUE(same_bits(alone.acc.data(), &all.acc[t * group * padded], group * padded))
            << "token " << t << " of " << tokens << ", group " << group << ", head_dim " << hd << ", start " << start;
      }
    }
  }
}

// Keys and values that a row does not see have no influence, however large.
TEST_P(AttentionTest, MaskedTokensDoNotMatter) {
  constexpr int64_t kHd = 24;
  for (const int64_t start : {1, 5, 62, 64, 510}) {
    Cache cache(kernels, type, kHd, rng);
    const Queries q(3, 2, kHd, start, 1.0f, rng);
    const Partial before = attend_all(cache, q);
    const std::vector<float> large(kHd, 1e4f);
    for (int64_t t = start + 2; t < kTokens; ++t) cache.store(t, large.data(), large.data());
    const Partial after = attend_all(cache, q);
    EXPECT_TRUE(same_bits(before.acc.values(), after.acc.values()));
    EXPECT_TRUE(same_bits(before.sum.values(), after.sum.values()));
  }
}

// Scores far apart, also between blocks: the merge has to rescale in both directions. And values of all sizes.
TEST_P(AttentionTest, FarApartScoresAndValues) {
  for (const int64_t hd : {2, 24, 64, 80}) {
    const Queries q(5, 2, hd, 2 * kAttentionBlock - 2, 8.0f / std::sqrt(static_cast<float>(hd)), rng);
    Cache cache(kernels, type, hd, rng);
    expect_outputs(cache, q, attend_all(cache, q), 3 * tolerance);
    const std::vector<float> zero(static_cast<size_t>(hd));
    for (int64_t t = 0; t < kTokens; ++t) cache.store(t, &cache.keys[t * hd], zero.data());
    const Partial none = attend_all(cache, q);
    for (int64_t r = 0; r < q.rows(); ++r) {
      ASSERT_GE(none.sum[r], 0.99f);
      for (int64_t d = 0; d < hd; ++d) ASSERT_EQ(none.acc[r * padded_head_dim(hd) + d], 0.0f);
    }
  }
}

TEST_P(AttentionTest, QueriesAreRoundedToNearestForBf16DotProducts) {
  if (isa < Isa::avx512_bf16 || type != KvType::bf16) return;
  const Cache cache(kernels, type, 36, rng);
  Queries q(2, 3, 36, 100, 1.0f, rng);
  const Partial want = attend_all(cache, q);
  for (float& v : q.q) v *= 1.0f + 0.0019f * static_cast<float>(rng.uniform() - 0.5);  // less than half a step
  const Partial got = attend_all(cache, q);
  EXPECT_TRUE(same_bits(got.acc.values(), want.acc.values()));
}

TEST_P(AttentionTest, ZeroQueriesAverage) {
  const Cache cache(kernels, type, 32, rng);
  Queries q(2, 3, 32, 700, 0.0f, rng);
  expect_outputs(cache, q, attend_all(cache, q), tolerance);
}

TEST_P(AttentionTest, APartWithoutVisibleTokensChangesNoBit) {
  const Cache cache(kernels, type, 24, rng);
  const Queries q(4, 2, 24, kAttentionBlock - 1, 1.0f, rng);  // the first two tokens see nothing of block 1
  Partial total(8, 24), part(8, 24);
  attend(cache, q, 0, total);
  attend(cache, q, 1, part);
  const Partial before = total;
  kernels.attention_merge(8, 24, total.view(), part.view());
  for (int64_t r = 0; r < 8; ++r) {
    EXPECT_EQ(part.max[r] == -INFINITY, r < 4);
    const bool same = same_bits(&total.acc[r * 32], &before.acc[r * 32], 32) && total.max[r] == before.max[r] &&
                      total.sum[r] == before.sum[r];
    EXPECT_EQ(same, r < 4) << r;
  }
}

}  // namespace
}  // namespace lfm::testing
