// Errors of the C++ core. Bad input throws std::invalid_argument (ValueError in Python) with one line
// that names the tensor, file or argument. Nothing throws inside a parallel region or a kernel.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace lfm {

template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// Throws std::invalid_argument made of `args` unless `condition` holds.
template <class... Args>
void check(bool condition, const Args&... args) {
  if (!condition) throw std::invalid_argument(concat(args...));
}

}  // namespace lfm
