#include "bindings/taps.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/convert.h"

namespace py = pybind11;

namespace lfm {
namespace {

// What a hook is told about the array that it gets.
struct HookSite {
  TapPlace place;
  std::vector<TapRows> rows;

  std::optional<int64_t> layer() const { return place.layer < 0 ? std::nullopt : std::optional(place.layer); }

  template <class Value>
  py::array_t<int64_t> per_row(const Value& value) const {
    std::vector<int64_t> values;
    for (const TapRows& r : rows) {
      for (int64_t i = 0; i < r.count; ++i) values.push_back(value(r, i));
    }
    return py::array_t<int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
  }
  py::array_t<int64_t> positions() const {
    return per_row([](const TapRows& r, int64_t i) { return r.position + i; });
  }
  py::array_t<int64_t> sequences() const {
    return per_row([](const TapRows& r, int64_t) { return r.sequence; });
  }
};

}  // namespace

std::shared_ptr<const Taps> taps_from_python(const ModelConfig& config, const py::object& taps, bool weakly) {
  if (taps.is_none()) return nullptr;
  const auto names = taps.attr("names").cast<std::vector<std::string>>();
  auto target = shared_object(weakly ? py::object(py::weakref(taps)) : taps);
  return std::make_shared<Taps>(config, names, [target = std::move(target), weakly](const Activation& a) {
    const py::gil_scoped_acquire gil;
    const py::object visitor = weakly ? (*target)() : *target;
    if (visitor.is_none()) return;
    visitor.attr("visit")(array_in_place(ElementType::f32, a.shape, a.strides, a.data, a.owner, a.writable),
                          HookSite{a.place, a.rows});
  });
}

void bind_taps(py::module_& m) {
  py::class_<HookSite>(m, "HookSite", "Where a hook is called: the point, and which tokens the rows of its array are.")
      .def_property_readonly("name", [](const HookSite& s) { return tap_name(s.place); })
      .def_property_readonly("layer", &HookSite::layer, "None outside of layers.")
      .def_property_readonly("positions", &HookSite::positions, "int64 [rows]: the position of each row's token.")
      .def_property_readonly("sequences", &HookSite::sequences,
                             "int64 [rows]: which of the sequences that share this pass each row belongs to.");
}

void bind_model_taps(py::class_<Model, std::shared_ptr<Model>>& model) {
  model
      .def(
          "set_taps", [](Model& s, const py::object& taps) { s.set_taps(taps_from_python(s.config(), taps, true)); },
          py::arg("taps"),
          "From the next pass on, call taps.visit(array, site) at each of the points taps.names. Refers to the object "
          "weakly. None: no more calls.")
      .def(
          "tap_names",
          [](const Model& s) {
            std::vector<std::string> names;
            for (const TapPlace place : tap_places(s.config())) names.push_back(tap_name(place));
            return names;
          },
          "The names of all points, in the order in which a pass comes by.");
}

}  // namespace lfm
