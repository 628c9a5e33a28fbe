// NumPy arrays over the engine's memory, which they keep alive.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace lfm {

enum class ElementType : uint8_t { f32, bf16, i8 };

constexpr int64_t element_bytes(ElementType type) {
  switch (type) {
    case ElementType::f32: return 4;
    case ElementType::bf16: return 2;
    case ElementType::i8: return 1;
  }
  return 0;
}

// An array over memory that `owner` keeps alive; strides count elements. bf16: an array of lfm_engine.arrays'.
pybind11::array array_in_place(ElementType type, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                               const void* data, std::shared_ptr<const void> owner, bool writable);

// The same for bytes, read-only.
pybind11::array_t<uint8_t> bytes_in_place(std::span<const std::byte> bytes, std::shared_ptr<const void> owner);

// Adds what lfm_engine.arrays needs to the module.
void bind_arrays(pybind11::module_& m);

}  // namespace lfm
