// OpenMP as this engine uses it: a scope that sets the thread count, and loops over independent items.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

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

// body(i) for i in [0, n), each thread a contiguous range. body must not throw.
template <class Body>
void parallel_for(int64_t n, const Body& body) {
#pragma omp parallel for schedule(static) if (n > 1)
  for (int64_t i = 0; i < n; ++i) body(i);
}

// The same for items of unequal cost, handed out `grain` at a time.
template <class Body>
void parallel_for_dynamic(int64_t n, int64_t grain, const Body& body) {
#pragma omp parallel for schedule(dynamic, grain) if (n > 1)
  for (int64_t i = 0; i < n; ++i) body(i);
}

// body(begin, end) over [0, n) cut into one range per thread, borders at multiples of `grain`.
template <class Body>
void parallel_ranges(int64_t n, int64_t grain, const Body& body) {
  const int64_t units = (n + grain - 1) / grain;
#pragma omp parallel if (units > 1)
  {
    const int64_t threads = omp_get_num_threads(), id = omp_get_thread_num();
    const int64_t begin = units * id / threads * grain, end = units * (id + 1) / threads * grain;
    if (begin < n && begin < end) body(begin, end < n ? end : n);
  }
}

// body(begin, end) over [0, n): three quarters in one equal range per thread, the rest in pieces of about 1/64 of a
// thread's share, multiples of `grain`, to whichever is ready. Memory and neighbours do not serve cores equally, and
// each loop ends with the slowest thread.
template <class Body>
void parallel_ranges_balanced(int64_t n, int64_t grain, const Body& body) {
  std::atomic<int64_t> next{0};
#pragma omp parallel if (n > grain)
  {
    const int64_t threads = omp_get_num_threads(), id = omp_get_thread_num();
    const int64_t share = threads == 1 ? n : n * 3 / 4 / threads / grain * grain;
    const int64_t piece = (n / (64 * threads) / grain + 1) * grain;
    if (share > 0) body(share * id, share * (id + 1));
    for (;;) {
      const int64_t begin = share * threads + next.fetch_add(piece, std::memory_order_relaxed);
      if (begin >= n) break;
      body(begin, std::min(begin + piece, n));
    }
  }
}

inline int thread_id() { return omp_get_thread_num(); }
inline int max_threads() { return omp_get_max_threads(); }

}  // namespace lfm
