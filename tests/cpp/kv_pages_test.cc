#include "model/kv_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "model/state.h"
#include "testing.h"

namespace lfm::testing {
namespace {

constexpr size_t kChunks = 6, kBytes = 192;
constexpr int64_t kVocab = 97;

std::shared_ptr<KvPage> page_after(const KvPage* before, int64_t index) {
  return KvPage::create(index, before, kChunks, kBytes, HugePages::no);
}

std::vector<std::byte> contents(const KvPage& page) {
  std::vector<std::byte> bytes(kChunks * kBytes);
  page.read(bytes.data());
  return bytes;
}

std::vector<std::byte> pattern(uint64_t seed) {
  std::vector<std::byte> bytes(kChunks * kBytes);
  Rng rng(seed);
  for (std::byte& b : bytes) b = static_cast<std::byte>(1 + rng.tokens(1, 255)[0]);
  return bytes;
}

TEST(KvPages, NeighboursLieChunkByChunk) {
  std::vector<std::shared_ptr<KvPage>> pages;
  for (int64_t i = 0; i < kSlabPages + 1; ++i) {
    pages.push_back(page_after(i > 0 ? pages.back().get() : nullptr, i));
    pages.back()->write(pattern(static_cast<uint64_t>(i)).data());
  }
  for (int64_t i = 1; i < kSlabPages; ++i) {
    EXPECT_EQ(&pages[i]->slab(), &pages[0]->slab());
    EXPECT_EQ(pages[i]->kv(), pages[i - 1]->kv() + kBytes);
  }
  EXPECT_NE(&pages.back()->slab(), &pages[0]->slab());
  EXPECT_EQ(pages.back()->slot(), 0);
  for (size_t i = 0; i < pages.size(); ++i) EXPECT_EQ(contents(*pages[i]), pattern(i));
}

TEST(KvPages, ATakenSlotStaysAsItIs) {
  const auto first = page_after(nullptr, 0), one = page_after(first.get(), 1), other = page_after(first.get(), 1);
  EXPECT_EQ(&one->slab(), &first->slab());
  EXPECT_NE(&other->slab(), &first->slab());
  EXPECT_EQ(other->slot(), 1);  // so that what follows lies next to it
  EXPECT_EQ(&page_after(other.get(), 2)->slab(), &other->slab());
  one->write(pattern(1).data());
  other->write(pattern(2).data());
  EXPECT_EQ(contents(*one), pattern(1));
  EXPECT_EQ(contents(*other), pattern(2));
}

TEST(KvPages, AFreedSlotIsTakenAgainAndEmpty) {
  const auto first = page_after(nullptr, 0);
  first->write(pattern(1).data());
  auto second = page_after(first.get(), 1);
  second->write(pattern(2).data());
  second.reset();
  const auto again = page_after(first.get(), 1);
  EXPECT_EQ(&again->slab(), &first->slab());
  EXPECT_EQ(contents(*again), std::vector<std::byte>(kChunks * kBytes));
  EXPECT_EQ(contents(*first), pattern(1));
}

TEST(KvPages, ACopyHasTokensAndContents) {
  const auto first = page_after(nullptr, 3), copy = page_after(nullptr, 3);
  first->write(pattern(1).data());
  first->tokens[63] = 7;
  copy->copy_from(*first);
  EXPECT_EQ(copy->tokens, first->tokens);
  EXPECT_EQ(contents(*copy), pattern(1));
}

TEST(KvPages, OneThreadGetsASlot) {
  for (int round = 0; round < 50; ++round) {
    KvSlab slab(kChunks, kBytes, HugePages::no);
    std::atomic<int> got{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int64_t slot = 0; slot < kSlabPages; ++slot) got += slab.claim(slot) ? 1 : 0;
      });
    }
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(got.load(), kSlabPages);
  }
}

TEST(KvPages, HugePagesChangeNoContents) {
  constexpr size_t kLarge = size_t{3} << 17;  // a slab of 6 MiB
  for (const HugePages huge : {HugePages::yes, HugePages::no}) {
    KvSlab slab(2, kLarge, huge);
    for (int64_t slot = 0; slot < kSlabPages; ++slot) {
      ASSERT_TRUE(slab.claim(slot));
      for (size_t chunk = 0; chunk < 2; ++chunk) {
        std::byte* at = slab.page(slot) + chunk * slab.chunk_stride();
        EXPECT_TRUE(std::all_of(at, at + kLarge, [](std::byte b) { return b == std::byte{0}; })) << slot;
        std::memset(at, static_cast<int>(2 * slot + chunk + 1), kLarge);
      }
    }
    for (int64_t slot = 0; slot < kSlabPages; ++slot) {
      for (size_t chunk = 0; chunk < 2; ++chunk) {
        const auto value = static_cast<std::byte>(2 * slot + chunk + 1);
        const std::byte* at = slab.page(slot) + chunk * slab.chunk_stride();
        EXPECT_TRUE(std::all_of(at, at + kLarge, [&](std::byte b) { return b == value; })) << slot;
      }
    }
  }
}

TEST(KvPages, HugePagesWhereASlabIsFilledOrASequenceGrowsIntoAnother) {
  const auto model = tiny_model(lfm2_config(), 50).load(ComputeType::f32);
  const auto grow = [&](SequenceState& state, int64_t tokens) {
    run(*model, state, Rng(7).tokens(tokens, kVocab), LogitsFor::none);
  };
  const auto huge = [](const SequenceState& state, int64_t page) {
    return state.shared_page(page)->slab().huge() == HugePages::yes;
  };
  SequenceState prompt = model->new_state(), chat = model->new_state();
  grow(prompt, kAttentionBlock / 2);
  EXPECT_TRUE(huge(prompt, 0));
  grow(chat, kAttentionBlock / 2 - 1);
  grow(chat, kAttentionBlock / 2);
  EXPECT_FALSE(huge(chat, 0) || huge(chat, 7));
  grow(chat, 2);
  EXPECT_TRUE(huge(chat, 8));
  grow(chat, kPage);
  SequenceState fork = chat;
  grow(fork, 1);
  EXPECT_FALSE(huge(fork, 9));
  grow(fork, kAttentionBlock);
  EXPECT_TRUE(huge(fork, 16));
  SequenceState follow_up = model->new_state();
  for (int64_t page = 0; page < 2; ++page) follow_up.append_page(chat.shared_page(page), kPage);
  SequenceState other = follow_up;
  grow(follow_up, kPage);  // takes the place beside the shared ones or a slab of its own
  grow(other, kAttentionBlock / 2);
  EXPECT_FALSE(huge(follow_up, 2));
  EXPECT_TRUE(huge(other, 2));
}

// Forks write beside each other in shared slabs: none may see another's tokens.
TEST(KvPages, ForksThatGrowAtOnceAreExact) {
  const auto model = tiny_model(lfm2_config(), 50).load(ComputeType::f32);
  const std::vector<int32_t> shared = Rng(51).tokens(3 * kPage - 10, kVocab);
  SequenceState root = model->new_state();
  run(*model, root, shared, LogitsFor::none);
  std::vector<SequenceState> forks(3, root);
  std::vector<std::vector<int32_t>> own;
  for (size_t i = 0; i < forks.size(); ++i) own.push_back(Rng(60 + i).tokens(9 * kPage, kVocab));
  for (size_t begin = 0; begin < own[0].size(); begin += kPage) {
    for (size_t i = 0; i < forks.size(); ++i) {
      run(*model, forks[i], std::vector<int32_t>(own[i].begin() + begin, own[i].begin() + begin + kPage),
          LogitsFor::none);
    }
  }
  const std::vector<int32_t> tail = Rng(70).tokens(5, kVocab);
  for (size_t i = 0; i < forks.size(); ++i) {
    std::vector<int32_t> all = shared;
    all.insert(all.end(), own[i].begin(), own[i].end());
    SequenceState fresh = model->new_state();
    run(*model, fresh, all, LogitsFor::none);
    EXPECT_TRUE(same_bits(run(*model, forks[i], tail), run(*model, fresh, tail)));
  }
}

}  // namespace
}  // namespace lfm::testing
