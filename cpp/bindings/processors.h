// Logits processors from Python: their parameters, and callables that see and change the logits.
#pragma once

#include <pybind11/pybind11.h>

#include <map>
#include <memory>
#include <string>

#include "runtime/scheduler.h"

namespace lfm {

// Adds the class ProcessorParams to the module.
void bind_processors(pybind11::module_& m);

LogitsStage logits_stage_from_name(const std::string& name);

// What a request's callable raised, by request. Used with the GIL held.
using CallbackErrors = std::map<int64_t, pybind11::object>;

// A hook that calls function(row) with a writable float32 array [1, vocab] over the logits themselves, which the array
// keeps alive. An exception goes into `errors`, and the hook throws std::runtime_error.
LogitsHook make_logits_hook(pybind11::object function, int64_t request, std::shared_ptr<CallbackErrors> errors);

}  // namespace lfm
