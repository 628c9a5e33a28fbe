// OpenMP as this engine uses it: a scope that sets the thread count, and loops over independent items.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#include "base/function_ref.h"

namespace lfm {

// Sets the number of OpenMP threads of the calling thread (ours and oneDNN's) and restores the old one,
// so that NumPy's and torch's settings are left alone. In a forked child, where libgomp's pool is gone and
// a parallel region would hang, the count is 1.
class ThreadScope {
 public:
  explicit ThreadScope(int num_threads);
  ~ThreadScope();
  ThreadScope(const ThreadScope&) = delete;
  ThreadScope& operator=(const ThreadScope&) = delete;

 private:
  int previous_;
};

// True in a child forked after a parallel region ran.
bool forked_after_parallel();

// A parallel region for many loops: between them its threads wait for the next one, which starts in a fraction of the
// time that a region of its own takes.
class Team {
 public:
  using Loop = FunctionRef<void(int64_t id, int64_t threads)>;

  // Runs body on the calling thread; the loops below that body starts share a region. What body throws comes out.
  // Libraries with regions of their own, as oneDNN, get one thread in body.
  static void with(FunctionRef<void()> body);

  // That of the calling thread; null outside of `with`, and inside loops.
  static Team* current();

  // Calls loop on each thread and waits for all.
  void run(Loop loop);

 private:
  void lead(FunctionRef<void()> body, std::exception_ptr& error);
  void serve(int64_t id);
  void begin_round();

  const Loop* loop_ = nullptr;  // null: the end
  int64_t threads_ = 0;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int64_t> busy_{0};
};

// body(id, threads) on each thread, or on the calling one alone.
template <class Body>
void parallel_region(bool parallel, const Body& body) {
  if (!parallel) return body(int64_t{0}, int64_t{1});
  if (Team* team = Team::current()) return team->run(body);
#pragma omp parallel
  body(int64_t{omp_get_thread_num()}, int64_t{omp_get_num_threads()});
}

// body(begin, end) over [0, n) cut into one range per thread, borders at multiples of `grain`. body must not throw.
template <class Body>
void parallel_ranges(int64_t n, int64_t grain, const Body& body) {
  const int64_t units = (n + grain - 1) / grain;
  parallel_region(units > 1, [&](int64_t id, int64_t threads) {
    const int64_t begin = units * id / threads * grain, end = units * (id + 1) / threads * grain;
    if (begin < n && begin < end) body(begin, std::min(n, end));
  });
}

// body(i) for i in [0, n), each thread a contiguous range.
template <class Body>
void parallel_for(int64_t n, const Body& body) {
  parallel_ranges(n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

// The same for items of unequal cost, handed out `grain` at a time.
template <class Body>
void parallel_for_dynamic(int64_t n, int64_t grain, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_region(n > 1, [&](int64_t, int64_t) {
    for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < n;) {
      for (int64_t i = begin; i < std::min(n, begin + grain); ++i) body(i);
    }
  });
}

// [0, n) cut into a range for each thread. A thread works through its own in pieces that halve, in order, as
// prefetchers like it; then it helps with what the others have left.
class SharedRanges {
 public:
  SharedRanges(int64_t n, int64_t threads) : n_(n), count_(std::clamp<int64_t>(threads, 1, kMost)) {
    for (int64_t t = 0; t < count_; ++t) ranges_[t].next.store(begin_of(t), std::memory_order_relaxed);
  }

  // body(begin, end) for each piece that the thread `id` takes.
  template <class Body>
  void work(int64_t id, const Body& body) {
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t t = (id + i) % count_, end = begin_of(t + 1);
      std::atomic<int64_t>& next = ranges_[t].next;
      for (int64_t begin = next.load(std::memory_order_relaxed); begin < end;) {
        const int64_t piece_end = begin + (end - begin + 1) / 2;
        if (!next.compare_exchange_weak(begin, piece_end, std::memory_order_relaxed)) continue;
        body(begin, piece_end);
        begin = next.load(std::memory_order_relaxed);
      }
    }
  }

 private:
  static constexpr int64_t kMost = 64;  // more threads share ranges
  struct alignas(64) Range {
    std::atomic<int64_t> next;
  };
  int64_t begin_of(int64_t t) const { return n_ * t / count_; }

  int64_t n_, count_;
  Range ranges_[kMost];
};

// body(begin, end) over [0, n), borders at multiples of `grain`, shared out as the threads go: memory and neighbours do
// not serve cores equally, and each loop ends with the slowest thread.
template <class Body>
void parallel_ranges_balanced(int64_t n, int64_t grain, const Body& body) {
  const int64_t units = (n + grain - 1) / grain;
  SharedRanges ranges(units, omp_get_max_threads());
  parallel_region(units > 1, [&](int64_t id, int64_t) {
    ranges.work(id, [&](int64_t begin, int64_t end) { body(begin * grain, std::min(n, end * grain)); });
  });
}

inline int thread_id() { return omp_get_thread_num(); }
inline int max_threads() { return omp_get_max_threads(); }

}  // namespace lfm
