// DLPack's structures (dmlc.github.io/dlpack), as far as bfloat16 arrays on the CPU need them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace lfm {

struct DLDevice {
  int32_t device_type, device_id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t *shape, *strides;  // strides count elements
  uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* manager;
  void (*deleter)(DLManagedTensor*);
};
struct DLManagedTensorVersioned {
  uint32_t major, minor;
  void* manager;
  void (*deleter)(DLManagedTensorVersioned*);
  uint64_t flags;
  DLTensor tensor;
};
inline constexpr int32_t kDLCPU = 1;
inline constexpr uint8_t kDLBfloat = 4;
inline constexpr uint64_t kDLReadOnly = 1;

// An array as a DLPack tensor of bfloat16. It belongs to the capsule that it makes, then to whoever takes its content.
class ExportedTensor {
 public:
  explicit ExportedTensor(pybind11::array array) : array_(std::move(array)) {
    for (pybind11::ssize_t i = 0; i < array_.ndim(); ++i) {
      shape_.push_back(array_.shape(i));
      strides_.push_back(array_.strides(i) / array_.itemsize());
    }
    const DLTensor tensor = {const_cast<void*>(array_.data()),
                             {kDLCPU, 0},
                             static_cast<int32_t>(array_.ndim()),
                             {kDLBfloat, 16, 1},
                             shape_.data(),
                             strides_.data(),
                             0};
    plain_ = {tensor, this, [](DLManagedTensor* t) { destroy(t->manager); }};
    versioned_ = {
        1,     0, this, [](DLManagedTensorVersioned* t) { destroy(t->manager); }, array_.writeable() ? 0 : kDLReadOnly,
        tensor};
  }

  pybind11::capsule capsule() { return make_capsule(&plain_, "dltensor"); }
  pybind11::capsule versioned_capsule() { return make_capsule(&versioned_, "dltensor_versioned"); }

 private:
  template <class Managed>
  static pybind11::capsule make_capsule(Managed* managed, const char* name) {
    PyObject* made = PyCapsule_New(managed, name, [](PyObject* object) {
      // Who takes the content renames the capsule and calls the deleter.
      const char* now = PyCapsule_GetName(object);
      if (!PyCapsule_IsValid(object, "dltensor") && !PyCapsule_IsValid(object, "dltensor_versioned")) return;
      auto* content = static_cast<Managed*>(PyCapsule_GetPointer(object, now));
      content->deleter(content);
    });
    if (made == nullptr) {
      managed->deleter(managed);
      throw pybind11::error_already_set();
    }
    return pybind11::reinterpret_steal<pybind11::capsule>(made);
  }
  static void destroy(void* exported) {
    const pybind11::gil_scoped_acquire gil;  // a consumer may call from any thread
    delete static_cast<ExportedTensor*>(exported);
  }

  pybind11::array array_;
  std::vector<int64_t> shape_, strides_;
  DLManagedTensor plain_;
  DLManagedTensorVersioned versioned_;
};

}  // namespace lfm
