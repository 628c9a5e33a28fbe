#include "base/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <thread>

namespace lfm {
namespace {

std::atomic<bool> g_used_threads{false};
std::atomic<bool> g_forked{false};

void watch_forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    if (g_used_threads.load()) g_forked.store(true);
  });
  (void)registered;
}

}  // namespace

bool forked_after_parallel() { return g_forked.load(); }

ThreadScope::ThreadScope(int num_threads) : previous_(omp_get_max_threads()) {
  watch_forks();
  const int threads = g_forked.load() ? 1 : std::max(1, num_threads);
  if (threads > 1) g_used_threads.store(true);
  omp_set_num_threads(threads);
}

ThreadScope::~ThreadScope() { omp_set_num_threads(previous_); }

namespace {

thread_local Team* t_team = nullptr;

constexpr int kSpins = 4000;  // some 100 us: longer than a step's serial parts, short for other programs

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Team* Team::current() { return t_team; }

void Team::with(FunctionRef<void()> body) {
  if (omp_get_max_threads() == 1 || t_team != nullptr || omp_in_parallel() != 0) return body();
  Team team;
  std::exception_ptr error;
#pragma omp parallel
  {
    if (omp_get_thread_num() == 0) {
      team.lead(body, error);
    } else {
      team.serve(omp_get_thread_num());
    }
  }
  if (error) std::rethrow_exception(error);
}

void Team::lead(FunctionRef<void()> body, std::exception_ptr& error) {
  threads_ = omp_get_num_threads();
  t_team = this;
  try {
    body();
  } catch (...) {
    error = std::current_exception();
  }
  t_team = nullptr;
  loop_ = nullptr;
  begin_round();
}

void Team::begin_round() {
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
}

void Team::run(Loop loop) {
  t_team = nullptr;  // a loop inside of this one has no team
  loop_ = &loop;
  busy_.store(threads_ - 1, std::memory_order_relaxed);
  begin_round();
  loop(0, threads_);
  for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
  t_team = this;
}

void Team::serve(int64_t id) {
  for (uint32_t seen = 0;; ++seen) {
    for (int spins = 0; spins < kSpins && round_.load(std::memory_order_acquire) == seen; ++spins) relax();
    round_.wait(seen, std::memory_order_acquire);
    if (loop_ == nullptr) return;
    (*loop_)(id, threads_);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace lfm
