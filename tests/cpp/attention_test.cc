// store_kv, attention and attention_merge of every table, against a plain softmax in double.
#include <algorithm>

#include "base/dtype.h"
#include "kernels/kernels.h"
#include "testing.h"

namespace lfm::testing {
namespace {

constexpr int64_t kTokens = 150;  // two whole pages and a part

class AttentionTest : public ::testing::TestWithParam<Isa> {
 protected:
  const Kernels& kernels = kernels_for(GetParam());
  Rng rng{23};
};

INSTANTIATE_TEST_SUITE_P(Isas, AttentionTest, ::testing::ValuesIn(isas_up_to(detected_isa())),
                         [](const auto& info) { return std::string(isa_name(info.param)); });

// K and V of one head in pages filled through store_kv, behind 192 bytes of something else.
struct Cache {
  Cache(const Kernels& kernels, DType type, int64_t head_dim, Rng& rng)
      : dtype(type),
        hd(head_dim),
        v_offset(kOffset + static_cast<size_t>(row_bytes(type, k_elements(head_dim)))),
        keys(rng.normals(kTokens * head_dim)),
        values(rng.normals(kTokens * head_dim)) {
    const size_t bytes = v_offset + static_cast<size_t>(row_bytes(type, v_elements(head_dim)));
    for (int64_t t = 0; t < kTokens; ++t) {
      if (t % kPage == 0) pages.emplace_back(bytes);
      const auto store = type == DType::f32 ? kernels.store_kv_f32 : kernels.store_kv_bf16;
      store(&keys[t * hd], &values[t * hd], hd, t % kPage, pages.back().data() + kOffset,
            pages.back().data() + v_offset);
    }
    if (type == DType::bf16) {
      for (float& v : keys) v = bf16_to_f32(f32_to_bf16(v));
      for (float& v : values) v = bf16_to_f32(f32_to_bf16(v));
    }
    for (const Buffer<std::byte>& page : pages) pointers.push_back(page.data());
  }
  static constexpr size_t kOffset = 192;
  DType dtype;
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

void attend(const Kernels& kernels, const Cache& cache, const float* q, const int64_t* visible, int64_t rows,
            int64_t page_begin, int64_t page_end, Partial& out) {
  const AttentionTile tile = {
      q, visible, rows, cache.hd, cache.pointers.data(), Cache::kOffset, cache.v_offset, page_begin, page_end};
  Guarded<float> scratch(rows * (kPage + 1));
  (cache.dtype == DType::f32 ? kernels.attention_f32 : kernels.attention_bf16)(tile, out.view(), scratch.data());
  ASSERT_TRUE(scratch.intact() && out.intact());
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

void expect_outputs(const Cache& cache, const std::vector<float>& q, const std::vector<int64_t>& visible,
                    const Partial& p) {
  const int64_t padded = padded_head_dim(cache.hd);
  for (size_t r = 0; r < visible.size(); ++r) {
    std::vector<double> got;
    for (int64_t d = 0; d < cache.hd; ++d) got.push_back(double{p.acc[r * padded + d]} / p.sum[r]);
    const std::vector<double> want = plain(cache, &q[r * cache.hd], visible[r]);
    ASSERT_TRUE(close(got.data(), want.data(), cache.hd, 2e-5))
        << "row " << r << " of " << visible.size() << ", head_dim " << cache.hd;
  }
}

TEST_P(AttentionTest, StoreKvWritesItsSlotOnly) {
  for (const int64_t hd : {2, 24, 80}) {
    const std::vector<float> k = rng.normals(hd), v = rng.normals(hd);
    for (const int64_t slot : {0, 15, 16, 37, 63}) {
      Guarded<float> keys(k_elements(hd)), values(v_elements(hd));
      Guarded<uint16_t> keys16(k_elements(hd)), values16(v_elements(hd));
      kernels.store_kv_f32(k.data(), v.data(), hd, slot, keys.data(), values.data());
      kernels.store_kv_bf16(k.data(), v.data(), hd, slot, keys16.data(), values16.data());
      std::vector<bool> k_slot(k_elements(hd)), v_slot(v_elements(hd));
      for (int64_t d = 0; d < hd; ++d) {
        const int64_t at = (slot / 16 * hd + d) * 16 + slot % 16, to = slot * padded_head_dim(hd) + d;
        k_slot[at] = v_slot[to] = true;
        ASSERT_EQ(keys[at], k[d]);
        ASSERT_EQ(values[to], v[d]);
        ASSERT_EQ(keys16[at], f32_to_bf16(k[d]));
        ASSERT_EQ(values16[to], f32_to_bf16(v[d]));
      }
      for (int64_t i = 0; i < keys.size(); ++i) ASSERT_TRUE(k_slot[i] || (keys.untouched(i) && keys16.untouched(i)));
      for (int64_t i = 0; i < values.size(); ++i) {
        // Behind head_dim lies padding that must stay, or become, zero.
        ASSERT_TRUE(v_slot[i] || (values.untouched(i) && values16.untouched(i)));
      }
      ASSERT_TRUE(keys.intact() && values.intact() && keys16.intact() && values16.intact());
    }
  }
}

TEST_P(AttentionTest, EqualsPlainSoftmaxWithTheSameBitsForARowAlone) {
  for (const DType type : {DType::f32, DType::bf16}) {
    for (const int64_t hd : {2, 24, 32, 64, 80, 128}) {
      const Cache cache(kernels, type, hd, rng);
      for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 11, 32, 40}) {
        const std::vector<float> q = rng.normals(rows * hd, 2.0f / std::sqrt(static_cast<float>(hd)));
        std::vector<int64_t> visible;
        for (int64_t r = 0; r < rows; ++r) visible.push_back(1 + rng.below(kTokens));
        const int64_t borders[] = {1, 64, 65, 128, kTokens};
        visible[0] = borders[rng.below(5)];
        Partial all(rows, hd);
        attend(kernels, cache, q.data(), visible.data(), rows, 0, 3, all);
        expect_outputs(cache, q, visible, all);
        const int64_t padded = padded_head_dim(hd);
        for (int64_t r = 0; r < rows; r += rows > 11 ? 3 : 1) {
          Partial alone(1, hd);
          attend(kernels, cache, &q[r * hd], &visible[r], 1, 0, 3, alone);
          ASSERT_TRUE(same_bits(alone.max.data(), &all.max[r], 1)) << "row " << r << " of " << rows;
          ASSERT_TRUE(same_bits(alone.sum.data(), &all.sum[r], 1)) << "row " << r << " of " << rows;
          ASSERT_TRUE(same_bits(alone.acc.data(), &all.acc[r * padded], padded)) << "row " << r << " of " << rows;
        }
      }
    }
  }
}

// Keys and values that a row does not see have no influence, however large.
TEST_P(AttentionTest, MaskedTokensDoNotMatter) {
  constexpr int64_t kHd = 24, kRows = 6;
  for (const DType type : {DType::f32, DType::bf16}) {
    Cache cache(kernels, type, kHd, rng);
    const std::vector<float> q = rng.normals(kRows * kHd);
    const std::vector<int64_t> visible = {1, 5, 63, 64, 65, 70};
    Partial before(kRows, kHd), after(kRows, kHd);
    attend(kernels, cache, q.data(), visible.data(), kRows, 0, 3, before);
    const std::vector<float> large(kHd, 1e4f);
    for (int64_t t = 70; t < kTokens; ++t) {
      const auto store = type == DType::f32 ? kernels.store_kv_f32 : kernels.store_kv_bf16;
      std::byte* page = cache.pages[static_cast<size_t>(t / kPage)].data();
      store(large.data(), large.data(), kHd, t % kPage, page + Cache::kOffset, page + cache.v_offset);
    }
    attend(kernels, cache, q.data(), visible.data(), kRows, 0, 3, after);
    EXPECT_TRUE(same_bits(before.acc.values(), after.acc.values()));
    EXPECT_TRUE(same_bits(before.sum.values(), after.sum.values()));
  }
}

TEST_P(AttentionTest, MergedPartsEqualTheWhole) {
  for (const int64_t hd : {2, 24, 64, 80}) {
    const Cache cache(kernels, DType::f32, hd, rng);
    // Scores far apart: the merge has to rescale in both directions.
    const std::vector<float> q = rng.normals(7 * hd, 8.0f / std::sqrt(static_cast<float>(hd)));
    const std::vector<int64_t> visible = {1, 64, 65, 100, 128, 129, kTokens};
    Partial total(7, hd);
    attend(kernels, cache, q.data(), visible.data(), 7, 0, 1, total);
    for (int64_t page = 1; page < 3; ++page) {
      Partial part(7, hd);
      const Partial before = total;
      attend(kernels, cache, q.data(), visible.data(), 7, page, page + 1, part);
      kernels.attention_merge(7, hd, total.view(), part.view());
      ASSERT_TRUE(total.intact());
      for (int64_t r = 0; r < 7; ++r) {
        if (visible[r] > page * kPage) continue;
        ASSERT_EQ(part.max[r], -INFINITY);
        // A part without visible tokens changes no bit.
        ASSERT_EQ(total.max[r], before.max[r]);
        ASSERT_EQ(total.sum[r], before.sum[r]);
        const int64_t padded = padded_head_dim(hd);
        ASSERT_TRUE(same_bits(&total.acc[r * padded], &before.acc[r * padded], padded));
      }
    }
    expect_outputs(cache, q, visible, total);
  }
}

}  // namespace
}  // namespace lfm::testing
