#include "bindings/state.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/convert.h"
#include "model/kv_values.h"

namespace py = pybind11;

namespace lfm {
namespace {

py::array_t<int32_t> state_tokens(PyState& s) {
  const Exclusive guard(s.busy, "the state");
  py::array_t<int32_t> tokens(s.state.length());
  int32_t* out = tokens.mutable_data();
  for (int64_t i = 0; i < s.state.length(); ++i) out[i] = s.state.token(i);
  return tokens;
}

void truncate_state(PyState& s, int64_t length) {
  const Exclusive guard(s.busy, "the state");
  s.state.truncate(length);
}

int64_t common_prefix(PyState& s, const py::array& ids) {
  const std::vector<int32_t> tokens = token_ids_from_python(ids, "input_ids");
  const Exclusive guard(s.busy, "the state");
  return s.state.common_prefix(tokens);
}

// The page `index`, which holds tokens.
std::shared_ptr<const KvPage> page_at(const PyState& s, int64_t index) {
  const int64_t pages = (s.state.length() + kPage - 1) / kPage;
  check(index >= 0 && index < pages, "page must be between 0 and ", pages - 1, ", not ", index);
  return s.state.shared_page(index);
}

py::array_t<uint8_t> page_bytes(PyState& s, int64_t index) {
  const Exclusive guard(s.busy, "the state");
  const std::shared_ptr<const KvPage> page = page_at(s, index);
  py::array_t<uint8_t> bytes(static_cast<py::ssize_t>(s.state.layout().page_bytes));
  page->read(reinterpret_cast<std::byte*>(bytes.mutable_data()));
  return bytes;
}

void append_page(PyState& s, const py::array& tokens, const py::array_t<uint8_t>& kv) {
  const std::vector<int32_t> ids = token_ids_from_python(tokens, "tokens");
  check(kv.ndim() == 1 && (kv.flags() & py::array::c_style) != 0, "kv must be a contiguous uint8 array");
  const Exclusive guard(s.busy, "the state");
  s.state.append_page(ids, std::as_bytes(std::span(kv.data(), static_cast<size_t>(kv.size()))));
}

py::array conv_state(PyState& s, int64_t layer) {
  const Exclusive guard(s.busy, "the state");
  const StateLayout& layout = s.state.layout();
  const int64_t conv_layer = layout.conv_layer(layer);
  check(s.state.replay() == 0, "the conv state is rebuilt by the next forward pass: this state went back to a token");
  const SequenceState& state = s.state;
  return array_in_place(ElementType::f32, {layout.conv_past, layout.hidden}, {layout.hidden, 1}, state.conv(conv_layer),
                        state.shared_conv(), false);
}

enum class Part : uint8_t { keys, values, key_scales, value_scales };

// Shapes as at bind_state; strides count elements.
py::array page_part(PyState& s, int64_t layer, int64_t page, Part part) {
  const Exclusive guard(s.busy, "the state");
  const StateLayout& layout = s.state.layout();
  const int64_t attention_layer = layout.attention_layer(layer);
  const std::shared_ptr<const KvPage> owner = page_at(s, page);
  const bool is_key = part == Part::keys || part == Part::key_scales;
  const std::byte* data =
      owner->kv() + (is_key ? layout.k_offset(attention_layer, 0) : layout.v_offset(attention_layer, 0));
  const int64_t head_dim = layout.head_dim, pair = kv_pair(layout.kv_type);
  const auto head_bytes = static_cast<int64_t>(2 * layout.chunk_stride());
  if (part == Part::key_scales || part == Part::value_scales) {
    check(layout.kv_type == KvType::int8, "only int8 K and V have scales, not ", kv_type_name(layout.kv_type));
    data += is_key ? k_elements(head_dim) : v_elements(head_dim);
    return array_in_place(ElementType::bf16, {layout.kv_heads, kPage}, {head_bytes / 2, 1}, data, owner, false);
  }
  const ElementType type = layout.kv_type == KvType::f32    ? ElementType::f32
                           : layout.kv_type == KvType::bf16 ? ElementType::bf16
                                                            : ElementType::i8;
  const int64_t head = head_bytes / element_bytes(type), width = padded_head_dim(head_dim);
  if (is_key) {
    return array_in_place(type, {layout.kv_heads, kPage, head_dim / pair, pair}, {head, pair, kPage * pair, 1}, data,
                          owner, false);
  }
  return array_in_place(type, {layout.kv_heads, kPage / pair, pair, head_dim}, {head, width * pair, 1, pair}, data,
                        owner, false);
}

template <Part part>
py::array page_part_of(PyState& s, int64_t layer, int64_t page) {
  return page_part(s, layer, page, part);
}

template <auto read>
py::array_t<float> copy_of_cache(PyState& s, int64_t layer) {
  const Exclusive guard(s.busy, "the state");
  const SequenceState& state = s.state;
  const StateLayout& layout = state.layout();
  const int64_t attention_layer = layout.attention_layer(layer);
  py::array_t<float> copy({layout.kv_heads, state.length(), layout.head_dim});
  float* out = copy.mutable_data();
  const py::gil_scoped_release release;
  for (int64_t head = 0; head < layout.kv_heads; ++head) {
    for (int64_t position = 0; position < state.length(); ++position, out += layout.head_dim) {
      read(state, attention_layer, head, position, out);
    }
  }
  return copy;
}

}  // namespace

void bind_state(py::module_& m) {
  py::class_<PyState>(m, "State", "KV pages and conv state of one sequence; made by Model.new_state().")
      .def_property_readonly(
          "length", [](const PyState& s) { return s.state.length(); }, "Tokens processed.")
      .def_property_readonly(
          "nbytes", [](const PyState& s) { return s.state.nbytes(); },
          "Bytes of pages (shared ones too) and conv state.")
      .def_property_readonly(
          "shared_nbytes", [](const PyState& s) { return s.state.shared_nbytes(); },
          "Bytes of pages that other states or caches hold too.")
      .def_property_readonly("tokens", &state_tokens, "A copy of the tokens, int32 [length].")
      .def("truncate", &truncate_state, py::arg("length"),
           "Goes back to the first `length` tokens, exactly; ValueError if there are fewer. The next forward pass runs "
           "the last few tokens before them once more, to rebuild the conv state.")
      .def("common_prefix", &common_prefix, py::arg("input_ids"),
           "How many of input_ids [n] are the tokens that this state begins with.")
      .def("page", &page_bytes, py::arg("index"),
           "A copy of K and V of the 64 tokens from 64 * index on, uint8 [page bytes], in the engine's layout.")
      .def("append_page", &append_page, py::arg("tokens"), py::arg("kv"),
           "Appends at most 64 tokens with their K and V as `page` gave them, after pages that are full.")
      .def(
          "snapshot",
          [](PyState& s) {
            const Exclusive guard(s.busy, "the state");
            return std::make_unique<PyState>(s.state);
          },
          "An independent copy that shares KV pages until either side writes to them.")
      .def(
          "restore",
          [](PyState& s, PyState& snapshot) {
            if (&s == &snapshot) return;
            const Exclusive guard(s.busy, "the state"), other(snapshot.busy, "the snapshot");
            s.state = SequenceState(snapshot.state);  // all or nothing
          },
          py::arg("snapshot"), "Go back to a snapshot of this model's state, exactly.")
      .def(
          "conv", &conv_state, py::arg("layer"),
          "The conv state of a layer: the last B * x, oldest first, float32 [conv_L_cache - 1, hidden_size]. Read-only "
          "and without a copy; it stays as it is when the state goes on. ValueError after truncate(), until the next "
          "forward pass.")
      .def("keys", &copy_of_cache<read_key>, py::arg("layer"),
           "A copy of the keys of a layer, rotated, float32 [kv_heads, length, head_dim].")
      .def("values", &copy_of_cache<read_value>, py::arg("layer"),
           "A copy of the values of a layer, float32 [kv_heads, length, head_dim].")
      .def("key_page", &page_part_of<Part::keys>, py::arg("layer"), py::arg("page"),
           "The keys of the 64 tokens from 64 * page on, in the type of the state (bfloat16: of ml_dtypes, else its "
           "bits as uint16), [kv_heads, 64, head_dim / p, p]; p is 1 in float32, else 2. Read-only and without a copy; "
           "it stays as it is when the state goes on. Slots beyond the length are undefined.")
      .def("value_page", &page_part_of<Part::values>, py::arg("layer"), py::arg("page"),
           "The same of the values, [kv_heads, 64 / p, p, head_dim].")
      .def("key_scales", &page_part_of<Part::key_scales>, py::arg("layer"), py::arg("page"),
           "What the keys of key_page are multiplied with, int8 states only: bfloat16 [kv_heads, 64], one per token.")
      .def("value_scales", &page_part_of<Part::value_scales>, py::arg("layer"), py::arg("page"),
           "The same of the values.");
}

}  // namespace lfm
