// Threads, loops, memory and the names of instruction sets.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/arena.h"
#include "base/buffer.h"
#include "base/parallel.h"
#include "testing.h"

namespace lfm::testing {
namespace {

TEST(Cpu, CoresAndIsa) {
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(active_isa(), detected_isa());
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(Isa::amx); ++i) names.insert(isa_name(static_cast<Isa>(i)));
  EXPECT_EQ(names.size(), 6u);
  EXPECT_FALSE(names.contains("?"));
  EXPECT_EQ(supported_isas().front(), Isa::reference);
  EXPECT_EQ(supported_isas().back(), detected_isa());
}

TEST(Cpu, DispatchNeverGoesAboveTheIsa) {
  EXPECT_EQ(&kernels_for(Isa::reference), &kReferenceKernels);
  EXPECT_EQ(&kernels_for(Isa::avx2), &kAvx2Kernels);
  EXPECT_EQ(&kernels_for(Isa::avx2_vnni), &avx2_vnni_kernels());
  EXPECT_EQ(&kernels_for(Isa::avx512), &kAvx512Kernels);
}

TEST(ThreadScope, SetsAndRestores) {
  const int before = max_threads();
  {
    const ThreadScope outer(3);
    EXPECT_EQ(max_threads(), 3);
    {
      const ThreadScope inner(1);
      EXPECT_EQ(max_threads(), 1);
    }
    EXPECT_EQ(max_threads(), 3);
    const ThreadScope none(0);  // not a count: one thread
    EXPECT_EQ(max_threads(), 1);
  }
  EXPECT_EQ(max_threads(), before);
  try {
    const ThreadScope scope(before + 1);
    throw std::runtime_error("leave");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(max_threads(), before);
}

TEST(Parallel, EveryIndexOnce) {
  for (const int threads : {1, 2, 3, 7}) {
    const ThreadScope scope(threads);
    for (const int64_t n : {0, 1, 2, 15, 16, 17, 33, 100}) {
      std::vector<int> hits(static_cast<size_t>(n));  // each index has one writer, or the test fails
      parallel_for(n, [&](int64_t i) { ++hits[static_cast<size_t>(i)]; });
      parallel_for_dynamic(n, 1 + n % 3, [&](int64_t i) { ++hits[static_cast<size_t>(i)]; });
      EXPECT_EQ(hits, std::vector<int>(hits.size(), 2)) << n << " items, " << threads << " threads";
      for (const int64_t grain : {1, 4, 16, 50}) {
        std::vector<int> covered(static_cast<size_t>(n));
        std::vector<int64_t> borders(static_cast<size_t>(threads), 0);
        parallel_ranges(n, grain, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++covered[static_cast<size_t>(i)];
          borders[static_cast<size_t>(thread_id())] = begin;
        });
        EXPECT_EQ(covered, std::vector<int>(covered.size(), 1)) << n << " by " << grain << ", " << threads;
        for (const int64_t b : borders) EXPECT_EQ(b % grain, 0);
      }
    }
  }
}

TEST(Parallel, BalancedRangesCoverAll) {
  for (const int threads : {1, 2, 3, 7, 70}) {
    const ThreadScope scope(threads);
    for (const int64_t n : {0, 1, 2, 16, 17, 100, 1000}) {
      for (const int64_t grain : {1, 3, 50}) {
        std::vector<std::atomic<int>> covered(static_cast<size_t>(n));
        std::atomic<bool> aligned{true};
        parallel_ranges_balanced(n, grain, [&](int64_t begin, int64_t end) {
          if (begin % grain != 0 || end > n || begin >= end) aligned = false;
          for (int64_t i = begin; i < std::min(end, n); ++i) ++covered[static_cast<size_t>(i)];
        });
        EXPECT_TRUE(aligned) << n << " by " << grain << ", " << threads;
        for (const auto& count : covered) ASSERT_EQ(count, 1) << n << " by " << grain << ", " << threads;
      }
    }
  }
}

TEST(Team, SharesOneRegionAmongLoops) {
  EXPECT_EQ(Team::current(), nullptr);
  for (const int threads : {1, 2, 3, 7}) {
    const ThreadScope scope(threads);
    std::vector<int> hits(1000);
    Team::with([&] {
      EXPECT_EQ(Team::current() != nullptr, threads > 1);
      for (int round = 0; round < 50; ++round) {
        parallel_for(1000, [&](int64_t i) { ++hits[static_cast<size_t>(i)]; });
        parallel_for_dynamic(1000, 7, [&](int64_t i) { ++hits[static_cast<size_t>(i)]; });
        parallel_ranges_balanced(1000, 16, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
        });
        if (round == 20) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // they go to sleep
      }
    });
    EXPECT_EQ(hits, std::vector<int>(1000, 150)) << threads << " threads";
    std::set<int> ids;
    std::mutex mutex;
    Team::with([&] {
      parallel_ranges(threads, 1, [&](int64_t, int64_t) {
        const std::lock_guard lock(mutex);
        ids.insert(thread_id());
      });
    });
    EXPECT_EQ(ids.size(), static_cast<size_t>(threads));
  }
}

TEST(Team, LoopsWithinLoopsAndTeamsWithinTeams) {
  const ThreadScope scope(3);
  std::vector<std::atomic<int>> hits(100);
  Team::with([&] {
    Team::with([&] {
      parallel_for(10,
                   [&](int64_t i) { parallel_for(10, [&](int64_t j) { ++hits[static_cast<size_t>(10 * i + j)]; }); });
    });
    EXPECT_NE(Team::current(), nullptr);
  });
  for (const auto& count : hits) EXPECT_EQ(count, 1);
}

TEST(Team, WhatTheBodyThrowsComesOut) {
  const ThreadScope scope(2);
  for (int i = 0; i < 3; ++i) {
    EXPECT_THROW(Team::with([&] {
                   parallel_for(10, [](int64_t) {});
                   throw std::runtime_error("leave");
                 }),
                 std::runtime_error);
    EXPECT_EQ(Team::current(), nullptr);
  }
}

TEST(Team, SeveralAtOnce) {
  std::vector<std::thread> callers;
  std::atomic<int64_t> total{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      const ThreadScope scope(2);
      Team::with([&] {
        for (int round = 0; round < 20; ++round) parallel_for(100, [&](int64_t i) { total += i; });
      });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 4 * 20 * 4950);
}

TEST(Buffer, ZeroFilledAlignedAndDeeplyCopied) {
  for (const size_t n : {size_t{1}, size_t{17}, (size_t{2} << 20) / sizeof(float) + 3}) {  // the last in huge pages
    Buffer<float> a(n);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 64, 0u);
    EXPECT_EQ(a.bytes(), n * sizeof(float));
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(a[i], 0.0f);
    a[n - 1] = 5.0f;
    Buffer<float> b = a, c;
    a[n - 1] = 6.0f;
    EXPECT_EQ(b[n - 1], 5.0f);
    c = b;
    b[n - 1] = 7.0f;
    EXPECT_EQ(c[n - 1], 5.0f);
    c = std::move(a);
    EXPECT_EQ(c[n - 1], 6.0f);
    const float* same = c.data();
    EXPECT_EQ(c.ensure(n), same);
    EXPECT_NE(c.ensure(n + 1), nullptr);
    EXPECT_EQ(c.size(), n + 1);
  }
}

TEST(Buffer, HugePagesChangeNoContents) {
  for (const size_t n : {size_t{1000}, size_t{3} << 20, (size_t{4} << 20) + 5}) {
    for (const HugePages huge : {HugePages::yes, HugePages::no}) {
      Buffer<uint8_t> a(n, huge);
      a.use_huge_pages(n);  // of memory that was never touched, too
      EXPECT_TRUE(std::all_of(a.data(), a.data() + n, [](uint8_t b) { return b == 0; }));
      for (size_t i = 0; i < n; ++i) a[i] = static_cast<uint8_t>(i * 7 + i / 4096);
      a.use_huge_pages(n);
      size_t wrong = 0;
      for (size_t i = 0; i < n; ++i) wrong += a[i] != static_cast<uint8_t>(i * 7 + i / 4096);
      EXPECT_EQ(wrong, 0u) << n;
    }
  }
}

TEST(Buffer, EmptyAndImpossibleSizes) {
  const Buffer<float> empty(0);
  const Buffer<float> copy = empty;
  EXPECT_EQ(copy.size(), 0u);
  const size_t huge = std::numeric_limits<size_t>::max();
  EXPECT_THROW(Buffer<float>{huge}, std::bad_alloc);
  EXPECT_THROW(Buffer<float>{huge / sizeof(float)}, std::bad_alloc);
  EXPECT_THROW(Buffer<uint8_t>{huge}, std::bad_alloc);
}

TEST(Arena, PiecesAreZerosOneBehindTheOther) {
  constexpr size_t kChunk = size_t{4} << 20;
  std::vector<std::shared_ptr<std::byte[]>> pieces;
  std::vector<size_t> sizes;
  {
    Arena arena(kChunk);
    for (const size_t bytes : {size_t{1} << 20, size_t{5}, size_t{64}, size_t{3} << 20, kChunk + 1, size_t{100}}) {
      pieces.push_back(arena.allocate(bytes));
      sizes.push_back(bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(pieces.back().get()) % 64, 0u);
      EXPECT_TRUE(
          std::all_of(pieces.back().get(), pieces.back().get() + bytes, [](auto b) { return b == std::byte{}; }));
      std::fill_n(pieces.back().get(), bytes, static_cast<std::byte>(pieces.size()));
    }
    arena.use_huge_pages();
  }
  EXPECT_EQ(pieces[1].get(), pieces[0].get() + sizes[0]);
  EXPECT_EQ(pieces[2].get(), pieces[1].get() + 64);
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto own = static_cast<std::byte>(i + 1);
    EXPECT_TRUE(std::all_of(pieces[i].get(), pieces[i].get() + sizes[i], [&](std::byte b) { return b == own; })) << i;
  }
}

TEST(Arena, WhatIsDroppedLeavesTheProcess) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  constexpr size_t kBytes = size_t{2} << 20;
  Arena arena(4 * kBytes);
  const auto before = arena.allocate(100), behind = arena.allocate(kBytes);
  auto dropped = arena.allocate(kBytes);
  const auto last = arena.allocate(100);
  std::byte* memory = dropped.get();
  for (const auto& [piece, bytes] : {std::pair(before.get(), size_t{100}), {behind.get(), kBytes}, {memory, kBytes}}) {
    std::fill_n(piece, bytes, std::byte{1});
  }
  last[0] = std::byte{1};
  const auto resident = [&] {
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const size_t pages = (reinterpret_cast<uintptr_t>(memory) + kBytes - begin) / page;
    std::vector<unsigned char> is_in(pages);
    EXPECT_EQ(mincore(reinterpret_cast<void*>(begin), pages * page, is_in.data()), 0);
    return std::count_if(is_in.begin(), is_in.end(), [](unsigned char in) { return (in & 1) != 0; });
  };
  EXPECT_GT(resident(), 0);
  dropped.reset();
  EXPECT_EQ(resident(), 0);
  EXPECT_EQ(last[0], std::byte{1});
  EXPECT_EQ(before[99], std::byte{1});
  EXPECT_TRUE(std::all_of(behind.get(), behind.get() + kBytes, [](std::byte b) { return b == std::byte{1}; }));
}

}  // namespace
}  // namespace lfm::testing
