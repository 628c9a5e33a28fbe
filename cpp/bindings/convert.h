// Python values to C++ ones and back, with errors that name the argument.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "model/config.h"
#include "model/weights.h"

namespace lfm {

// From checkpoint.ModelConfig (attributes of transformers' names).
ModelConfig config_from_python(const pybind11::object& config);

// Token ids from any 1-D array of integers (NumPy or the buffer protocol).
std::vector<int32_t> token_ids_from_python(const pybind11::array& ids, const char* argument);

// The element type of this name; throws std::invalid_argument naming the tensor.
DType dtype_from_name(const std::string& tensor, const std::string& name);

using PyVectors = std::map<std::string, pybind11::array_t<float>>;

// A TensorSource over a checkpoint.Checkpoint: its packed(name), tensor(name, shape) and release(name).
// Takes the GIL where it calls Python; keeps the arrays alive until they were copied.
class PythonTensorSource {
 public:
  PythonTensorSource(pybind11::object checkpoint, const PyVectors& importance);
  TensorSource source();

 private:
  TensorView get(const std::string& name, const std::vector<int64_t>& shape);
  void done(const std::string& name);
  std::optional<PackedWeights> packed(const std::string& name);

  pybind11::object checkpoint_;
  std::map<std::string, std::vector<float>> importance_;
  std::map<std::string, pybind11::array> alive_;
};

// What a packed file holds of a model. Each part is a read-only array over the model's own memory.
using PyMatrix = std::tuple<std::string, std::string, std::pair<int64_t, int64_t>,
                            std::vector<pybind11::array_t<uint8_t>>>;  // name, layout, (rows, columns), parts
std::pair<std::vector<PyMatrix>, PyVectors> weights_to_python(const ModelConfig& config, const ModelWeights& weights);

// Python objects may only be destroyed with the GIL, which the last owner of this need not hold.
std::shared_ptr<pybind11::object> shared_object(pybind11::object object);

}  // namespace lfm
