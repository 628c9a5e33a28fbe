#include "bindings/processors.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <utility>

#include "base/error.h"
#include "bindings/convert.h"

namespace py = pybind11;

namespace lfm {
namespace {

// Python objects may only be destroyed with the GIL, which a hook's last owner need not hold.
std::shared_ptr<py::object> shared_object(py::object object) {
  return {new py::object(std::move(object)), [](py::object* o) {
            const py::gil_scoped_acquire gil;
            delete o;
          }};
}

}  // namespace

void bind_processors(py::module_& m) {
  using P = ProcessorParams;
  py::class_<P>(m, "ProcessorParams", "Logits processors of a request, as in generation.GenerationConfig.")
      .def(py::init<>())
      .def_readwrite("sequence_bias", &P::sequence_bias)
      .def_readwrite("repetition_penalty", &P::repetition_penalty)
      .def_readwrite("no_repeat_ngram_size", &P::no_repeat_ngram_size)
      .def_readwrite("bad_words_ids", &P::bad_words_ids)
      .def_readwrite("min_new_tokens", &P::min_new_tokens)
      .def_readwrite("forced_eos_token_ids", &P::forced_eos_token_ids)
      .def_readwrite("remove_invalid_values", &P::remove_invalid_values)
      .def_readwrite("exponential_decay_start", &P::exponential_decay_start, "Counts new tokens.")
      .def_readwrite("exponential_decay_factor", &P::exponential_decay_factor)
      .def_readwrite("suppress_tokens", &P::suppress_tokens)
      .def_readwrite("begin_suppress_tokens", &P::begin_suppress_tokens);
  m.def(
      "process_logits",
      [](const P& params, py::array_t<float, py::array::c_style> row, const py::array& ids, int64_t prompt_length,
         bool last, const std::vector<int32_t>& eos) {
        const std::vector<int32_t> history = token_ids_from_python(ids, "input_ids");
        params.validate(row.size());
        const std::span<float> logits(row.mutable_data(), static_cast<size_t>(row.size()));
        for (const int32_t id : history) {
          check(id < row.size(), "input_ids holds ", id, ", outside the vocabulary of ", row.size());
        }
        for (const int32_t id : eos)
          check(id >= 0 && id < row.size(), "eos_token_id ", id, " is outside the vocabulary");
        LogitsProcessors(params).apply(logits, {history, prompt_length, last, eos});
      },
      py::arg("params"), py::arg("logits").noconvert(), py::arg("input_ids"), py::kw_only(), py::arg("prompt_length"),
      py::arg("last"), py::arg("eos_token_ids"),
      "Changes logits [vocab] in place, as for a request whose tokens so far are input_ids [n].");
}

LogitsStage logits_stage_from_name(const std::string& name) {
  if (name == "raw") return LogitsStage::raw;
  if (name == "processed") return LogitsStage::processed;
  check(name == "scores", "stage must be 'raw', 'processed' or 'scores', not '", name, "'");
  return LogitsStage::scores;
}

LogitsHook make_logits_hook(py::object function, int64_t request, std::shared_ptr<CallbackErrors> errors) {
  return [function = shared_object(std::move(function)), request, errors = std::move(errors)](
             std::span<float> row, const std::shared_ptr<Buffer<float>>& owner) {
    const py::gil_scoped_acquire gil;
    try {
      const py::capsule base(new std::shared_ptr<Buffer<float>>(owner),
                             [](void* p) { delete static_cast<std::shared_ptr<Buffer<float>>*>(p); });
      const auto vocab = static_cast<py::ssize_t>(row.size());
      (*function)(py::array_t<float>({py::ssize_t{1}, vocab}, row.data(), base));
    } catch (py::error_already_set& error) {
      if (error.trace()) PyException_SetTraceback(error.value().ptr(), error.trace().ptr());
      (*errors)[request] = error.value();
      throw std::runtime_error("a callback raised");
    }
  };
}

}  // namespace lfm
