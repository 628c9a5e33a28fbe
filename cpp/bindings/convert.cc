#include "bindings/convert.h"

#include <pybind11/stl.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/file_map.h"
#include "bindings/arrays.h"

namespace py = pybind11;

namespace lfm {

DType dtype_from_name(const std::string& tensor, const std::string& name) {
  for (const DType dtype : kAllDTypes) {
    if (dtype_name(dtype) == name) return dtype;
  }
  throw std::invalid_argument(concat("tensor '", tensor, "' has dtype ", name, ", which the engine does not read"));
}

ModelConfig config_from_python(const py::object& config) {
  ModelConfig c;
  c.vocab_size = config.attr("vocab_size").cast<int64_t>();
  c.hidden_size = config.attr("hidden_size").cast<int64_t>();
  c.intermediate_size = config.attr("intermediate_size").cast<int64_t>();
  c.num_attention_heads = config.attr("num_attention_heads").cast<int64_t>();
  c.num_key_value_heads = config.attr("num_key_value_heads").cast<int64_t>();
  c.head_dim = config.attr("head_dim").cast<int64_t>();
  for (const auto& type : config.attr("layer_types").cast<std::vector<std::string>>()) {
    check(type == "conv" || type == "full_attention", "config: layer type '", type, "' is unknown");
    c.layer_types.push_back(type == "conv" ? LayerType::conv : LayerType::full_attention);
  }
  c.conv_L_cache = config.attr("conv_L_cache").cast<int64_t>();
  c.conv_bias = config.attr("conv_bias").cast<bool>();
  c.qk_norm = config.attr("qk_norm").cast<bool>();
  c.tie_word_embeddings = config.attr("tie_word_embeddings").cast<bool>();
  c.norm_eps = config.attr("norm_eps").cast<float>();
  c.max_position_embeddings = config.attr("max_position_embeddings").cast<int64_t>();
  const auto freq = py::array_t < float, py::array::c_style | py::array::forcecast > (config.attr("rope_inv_freq"));
  c.rope_inv_freq.assign(freq.data(), freq.data() + freq.size());
  c.validate();
  return c;
}

std::vector<int32_t> token_ids_from_python(const py::array& ids, const char* argument) {
  check(ids.ndim() == 1, argument, " must have 1 dimension here, not ", ids.ndim());
  const char kind = ids.dtype().kind();
  check(kind == 'i' || kind == 'u', argument, " must hold integers, not ", std::string(py::str(ids.dtype())));
  const auto wide = py::array_t < int64_t, py::array::c_style | py::array::forcecast > (ids);
  std::vector<int32_t> out(static_cast<size_t>(wide.size()));
  for (py::ssize_t i = 0; i < wide.size(); ++i) {
    const int64_t id = wide.data()[i];
    check(id >= std::numeric_limits<int32_t>::min() && id <= std::numeric_limits<int32_t>::max(), argument, " holds ",
          id, ", outside the vocabulary");
    out[static_cast<size_t>(i)] = static_cast<int32_t>(id);
  }
  return out;
}

PythonTensorSource::PythonTensorSource(py::object checkpoint, const PyVectors& importance)
    : checkpoint_(std::move(checkpoint)) {
  for (const auto& [name, values] : importance) {
    check(values.ndim() == 1, "importance of '", name, "' must have 1 dimension");
    std::vector<float>& copy = importance_[name];
    for (py::ssize_t i = 0; i < values.size(); ++i) {
      copy.push_back(values.at(i));
      check(std::isfinite(copy.back()) && copy.back() >= 0.0f, "importance of '", name, "' holds ", copy.back());
    }
  }
}

TensorSource PythonTensorSource::source() {
  return {[this](const std::string& name, const std::vector<int64_t>& shape) { return get(name, shape); },
          [this](const std::string& name) { done(name); }, [this](const std::string& name) { return packed(name); },
          importance_};
}

TensorView PythonTensorSource::get(const std::string& name, const std::vector<int64_t>& shape) {
  const py::gil_scoped_acquire gil;
  const py::object stored = checkpoint_.attr("tensor")(name, py::tuple(py::cast(shape)));
  const py::array data = stored.attr("data");
  TensorView view;
  view.name = name;
  view.dtype = dtype_from_name(name, stored.attr("dtype").cast<std::string>());
  view.shape = stored.attr("shape").cast<std::vector<int64_t>>();
  view.data = data.data();
  check((data.flags() & py::array::c_style) != 0, "tensor '", name, "' is not contiguous in memory");
  view.least_bits = stored.attr("least_bits").cast<int>();
  check(view.cols() % block_values(view.dtype) == 0, "tensor '", name, "' has rows that are not whole ",
        dtype_name(view.dtype), " blocks");
  check(data.nbytes() == view.rows() * row_bytes(view.dtype, view.cols()), "tensor '", name, "' has ", data.nbytes(),
        " bytes, not what its shape and dtype need");
  alive_[name] = data;
  return view;
}

void PythonTensorSource::done(const std::string& name) {
  const py::gil_scoped_acquire gil;
  alive_.erase(name);
  checkpoint_.attr("release")(name);
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

std::optional<PackedWeights> PythonTensorSource::packed(const std::string& name) {
  const py::gil_scoped_acquire gil;
  const py::object stored = checkpoint_.attr("packed")(name);
  if (stored.is_none()) return std::nullopt;
  const auto map = stored.attr("map").cast<std::shared_ptr<FileMap>>();
  const auto [rows, cols] = stored.attr("shape").cast<std::pair<int64_t, int64_t>>();
  PackedWeights weights = {stored.attr("layout").cast<std::string>(), cols, rows, {}, map};
  const std::span<const std::byte> file = map->bytes();
  for (const auto& [offset, nbytes] : stored.attr("parts").cast<std::vector<std::pair<size_t, size_t>>>()) {
    check(offset <= file.size() && nbytes <= file.size() - offset, "tensor '", name, "' lies outside its file");
    weights.parts.push_back(file.subspan(offset, nbytes));
  }
  return weights;
}

std::pair<std::vector<PyMatrix>, PyVectors> weights_to_python(const ModelConfig& config, const ModelWeights& weights) {
  std::vector<PyMatrix> matrices;
  PyVectors vectors;
  const WeightSink sink = {
      [&](const std::string& name, const PackedWeights& w) {
        std::vector<py::array_t<uint8_t>> parts;
        for (const std::span<const std::byte> part : w.parts) parts.push_back(bytes_in_place(part, w.owner));
        matrices.emplace_back(name, w.implementation, std::pair(w.out_features, w.in_features), std::move(parts));
      },
      [&](const std::string& name, const std::vector<int64_t>& shape, std::span<const float> values) {
        vectors.emplace(name, py::array_t<float>(shape, values.data()));
      }};
  export_weights(config, weights, sink);
  return {std::move(matrices), std::move(vectors)};
}

std::shared_ptr<py::object> shared_object(py::object object) {
  return {new py::object(std::move(object)), [](py::object* o) {
            const py::gil_scoped_acquire gil;
            delete o;
          }};
}

}  // namespace lfm
