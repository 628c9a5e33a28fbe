#include "bindings/arrays.h"

#include <utility>

#include "base/error.h"
#include "bindings/dlpack.h"

namespace py = pybind11;

namespace lfm {
namespace {

py::array array_over(const py::dtype& dtype, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                     const void* data, std::shared_ptr<const void> owner, bool writable) {
  auto kept = std::make_unique<std::shared_ptr<const void>>(std::move(owner));
  const py::capsule base(kept.get(), [](void* p) { delete static_cast<std::shared_ptr<const void>*>(p); });
  (void)kept.release();
  std::vector<int64_t> bytes = strides;
  for (int64_t& stride : bytes) stride *= dtype.itemsize();
  py::array array(dtype, shape, bytes, data, base);
  if (!writable) array.attr("setflags")(py::arg("write") = false);
  return array;
}

// A DLPack capsule of an array whose elements are two bytes that hold bfloat16: NumPy cannot make one. `versioned`:
// a DLManagedTensorVersioned, which can say that it is read-only.
py::capsule bf16_to_dlpack(const py::array& array, bool versioned) {
  check(array.itemsize() == 2, "a bfloat16 array has 2 bytes an element, not ", array.itemsize());
  auto* tensor = new ExportedTensor(array);
  return versioned ? tensor->versioned_capsule() : tensor->capsule();
}

}  // namespace

py::array array_in_place(ElementType type, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                         const void* data, std::shared_ptr<const void> owner, bool writable) {
  switch (type) {
    case ElementType::f32: return array_over(py::dtype::of<float>(), shape, strides, data, std::move(owner), writable);
    case ElementType::i8: return array_over(py::dtype::of<int8_t>(), shape, strides, data, std::move(owner), writable);
    case ElementType::bf16: break;
  }
  const py::array bits = array_over(py::dtype::of<uint16_t>(), shape, strides, data, std::move(owner), writable);
  return py::module_::import("lfm_engine.arrays").attr("as_bfloat16")(bits);
}

py::array_t<uint8_t> bytes_in_place(std::span<const std::byte> bytes, std::shared_ptr<const void> owner) {
  return array_over(py::dtype::of<uint8_t>(), {static_cast<int64_t>(bytes.size())}, {1}, bytes.data(), std::move(owner),
                    false);
}

void bind_arrays(py::module_& m) {
  m.def(
      "bf16_to_dlpack", &bf16_to_dlpack, py::arg("array"), py::arg("versioned"),
      "A DLPack capsule over an array of bfloat16 (elements of 2 bytes), which it keeps alive. versioned: of DLPack 1, "
      "which can say that it is read-only.");
}

}  // namespace lfm
