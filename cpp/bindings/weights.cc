#include "bindings/weights.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/parallel.h"
#include "bindings/arrays.h"

namespace py = pybind11;

namespace lfm {
namespace {

TensorPlace place_of(const Model& model, const std::string& name) {
  const auto places = tensor_places(model.config(), model.weights());
  const auto found = places.find(name);
  check(found != places.end(), "the model has no tensor '", name, "'");
  return found->second;
}

using Description = std::tuple<std::vector<int64_t>, std::string>;  // shape, layout

std::map<std::string, Description> describe_weights(const Model& model) {
  std::map<std::string, Description> found;
  for (const auto& [name, place] : tensor_places(model.config(), model.weights())) {
    found.emplace(name, Description(place.shape, place.matrix != nullptr ? place.matrix->implementation() : "float32"));
  }
  return found;
}

py::array weight_in_place(const std::shared_ptr<const Model>& model, const std::string& name) {
  const TensorPlace place = place_of(*model, name);
  check(place.values != nullptr, "tensor '", name, "' is packed for multiplication: copy it with weight_rows()");
  std::vector<int64_t> strides = place.strides;
  return array_in_place(ElementType::f32, place.shape, strides, place.values, model, false);
}

py::array_t<float> weight_rows(const Model& model, const std::string& name, int64_t begin, int64_t end) {
  const TensorPlace place = place_of(model, name);
  check(place.matrix != nullptr, "tensor '", name, "' is not a matrix");
  check(begin >= 0 && begin <= end && end <= place.shape[0], "rows must lie between 0 and ", place.shape[0], ", not ",
        begin, " to ", end);
  py::array_t<float> copy({end - begin, place.shape[1]});
  float* out = copy.mutable_data();
  const py::gil_scoped_release release;
  const ThreadScope threads(model.num_threads());
  parallel_for(end - begin,
               [&](int64_t i) { place.matrix->weight_row(place.first_row + begin + i, out + i * place.shape[1]); });
  return copy;
}

std::vector<py::array_t<uint8_t>> weight_memory(const std::shared_ptr<const Model>& model, const std::string& name) {
  const TensorPlace place = place_of(*model, name);
  check(place.matrix != nullptr, "tensor '", name, "' is not a matrix");
  std::vector<py::array_t<uint8_t>> parts;
  for (const std::span<const std::byte> part : place.matrix->packed_memory())
    parts.push_back(bytes_in_place(part, model));
  return parts;
}

}  // namespace

void bind_weights(py::class_<Model, std::shared_ptr<Model>>& model) {
  model
      .def("describe_weights", &describe_weights,
           "Name to (shape, layout) of every tensor; layout 'float32' lies in memory as it is.")
      .def("weight_in_place", &weight_in_place, py::arg("name"),
           "A tensor that lies in memory as it is (norms, convolution kernels, biases): float32, read-only and without "
           "a copy.")
      .def("weight_rows", &weight_rows, py::arg("name"), py::arg("begin"), py::arg("end"),
           "A float32 copy [end - begin, columns] of rows of a packed matrix: the values that the model computes with.")
      .def("weight_memory", &weight_memory, py::arg("name"),
           "The memory of a packed matrix in the engine's layout, uint8 arrays, read-only and without a copy. q, k and "
           "v share one, and so do w1 and w3.");
}

}  // namespace lfm
