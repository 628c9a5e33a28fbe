#include "base/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>

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

}  // namespace lfm
