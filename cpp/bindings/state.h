// SequenceState as Python sees it.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <stdexcept>
#include <utility>

#include "base/error.h"
#include "model/state.h"

namespace lfm {

// Python threads may call with the same object while the GIL is released: refuse instead of racing.
class Exclusive {
 public:
  Exclusive(std::atomic<bool>& busy, const char* what) : busy_(busy) {
    if (busy_.exchange(true)) throw std::runtime_error(concat(what, " is in use by another thread"));
  }
  ~Exclusive() { busy_.store(false); }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  std::atomic<bool>& busy_;
};

struct PyState {
  explicit PyState(SequenceState s) : state(std::move(s)) {}
  SequenceState state;
  std::atomic<bool> busy{false};
};

// Adds the class State to the module.
void bind_state(pybind11::module_& m);

}  // namespace lfm
