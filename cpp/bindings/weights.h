// The weights of a model as arrays.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "model/model.h"

namespace lfm {

// Adds describe_weights, weight_in_place, weight_rows and weight_memory to the class Model.
void bind_weights(pybind11::class_<Model, std::shared_ptr<Model>>& model);

}  // namespace lfm
