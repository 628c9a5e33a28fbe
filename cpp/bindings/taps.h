// Hooks: Python objects that see and change activations.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "model/model.h"

namespace lfm {

// Adds the class HookSite to the module.
void bind_taps(pybind11::module_& m);

// Adds set_taps and tap_names to the class Model.
void bind_model_taps(pybind11::class_<Model, std::shared_ptr<Model>>& model);

// Taps that call taps.visit(array, site) at the points taps.names; None: null. Refers to the object weakly if asked to.
std::shared_ptr<const Taps> taps_from_python(const ModelConfig& config, const pybind11::object& taps,
                                             bool weakly = false);

}  // namespace lfm
