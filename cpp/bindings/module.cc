// lfm_engine._core: argument conversion, GIL release and exception mapping; no logic of its own.
#include <malloc.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <system_error>

#include "base/error.h"
#include "base/file_map.h"
#include "base/parallel.h"
#include "bindings/arrays.h"
#include "bindings/convert.h"
#include "bindings/processors.h"
#include "bindings/state.h"
#include "bindings/taps.h"
#include "bindings/weights.h"
#include "kernels/cuda/cuda.h"
#include "kernels/roofline.h"
#include "runtime/scheduler.h"

namespace py = pybind11;

namespace lfm {
namespace {

struct PyScheduler {
  PyScheduler(std::shared_ptr<Model> m, int64_t chunk, std::shared_ptr<PrefixCache> cache)
      : model(m), scheduler(std::move(m), chunk, std::move(cache)) {}
  std::shared_ptr<Model> model;
  Scheduler scheduler;
  std::map<int64_t, py::array> masks;  // keeps alive what the scheduler reads
  std::shared_ptr<CallbackErrors> errors = std::make_shared<CallbackErrors>();
  std::atomic<bool> busy{false};
};

void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

std::optional<KvType> kv_type_from_name(const std::string& name) {
  if (name == "auto") return {};
  for (const KvType type : {KvType::f32, KvType::bf16, KvType::int8}) {
    if (name == kv_type_name(type)) return type;
  }
  throw std::invalid_argument(concat("kv_dtype must be 'auto', 'float32', 'bfloat16' or 'int8', not '", name, "'"));
}

std::shared_ptr<Model> make_model(const py::object& config, const py::object& checkpoint, const std::string& dtype,
                                  const std::string& device, int num_threads, const std::string& kv_dtype,
                                  const PyVectors& importance) {
  require_device(device);
  const ComputeType type = compute_type_from_name(dtype);
  const std::optional<KvType> kv_type = kv_type_from_name(kv_dtype);
  ModelConfig c = config_from_python(config);
  PythonTensorSource source(checkpoint, importance);
  const py::gil_scoped_release release;
  return std::make_shared<Model>(std::move(c), source.source(), type, num_threads, kv_type);
}

py::array_t<float> forward(const Model& model, PyState& state, const py::array& ids, const std::string& logits_for,
                           std::optional<int64_t> chunk, const std::optional<py::array_t<float>>& out,
                           const py::object& taps) {
  check(logits_for == "all" || logits_for == "last", "logits must be 'all' or 'last', not '", logits_for, "'");
  const std::vector<int32_t> tokens = token_ids_from_python(ids, "input_ids");
  const SequenceInput input = {&state.state, tokens, logits_for == "all" ? LogitsFor::all : LogitsFor::last};
  const Exclusive guard(state.busy, "the state");
  model.check_inputs({&input, 1});  // before memory for the logits is taken
  const int64_t rows = num_logit_rows({&input, 1}), vocab = model.config().vocab_size;
  py::array_t<float> logits = out ? *out : py::array_t<float>({rows, vocab});
  check(logits.ndim() == 2 && logits.shape(0) == rows && logits.shape(1) == vocab &&
            (logits.flags() & py::array::c_style) != 0,
        "out must be a C-contiguous float32 array of shape [", rows, ", ", vocab, "]");
  float* data = logits.mutable_data();  // throws for a read-only array
  const std::shared_ptr<const Taps> own = taps_from_python(model.config(), taps);
  {
    const py::gil_scoped_release release;
    Workspace ws;
    ws.taps = own.get();
    model.prefill(input, data, ws, chunk.value_or(model.prefill_chunk()), check_signals);
  }
  return logits;
}

py::array_t<float> forward_batch(const Model& model, const std::vector<PyState*>& states,
                                 const std::vector<py::array>& ids) {
  check(states.size() == ids.size(), "states and input_ids differ in length: ", states.size(), " and ", ids.size());
  std::vector<std::vector<int32_t>> tokens;
  std::vector<SequenceInput> inputs;
  std::vector<std::unique_ptr<Exclusive>> guards;  // also refuses one state given twice
  for (const py::array& row : ids) tokens.push_back(token_ids_from_python(row, "input_ids"));
  for (size_t i = 0; i < states.size(); ++i) {
    check(states[i] != nullptr, "states holds None");
    guards.push_back(std::make_unique<Exclusive>(states[i]->busy, "a state (each may occur once)"));
    inputs.push_back({&states[i]->state, tokens[i], LogitsFor::last});
  }
  model.check_inputs(inputs);
  py::array_t<float> logits({num_logit_rows(inputs), model.config().vocab_size});
  float* data = logits.mutable_data();
  {
    const py::gil_scoped_release release;
    Workspace ws;
    model.forward(inputs, data, ws);
  }
  return logits;
}

PyVectors input_mean_squares(const Model& model, const std::vector<py::array>& ids) {
  std::vector<std::vector<int32_t>> sequences;
  for (const py::array& row : ids) sequences.push_back(token_ids_from_python(row, "input_ids"));
  std::map<std::string, std::vector<float>> means;
  {
    const py::gil_scoped_release release;
    means = model.input_mean_squares(sequences, check_signals);
  }
  PyVectors out;
  for (const auto& [name, values] : means) {
    out.emplace(name, py::array_t<float>(static_cast<py::ssize_t>(values.size()), values.data()));
  }
  return out;
}

std::vector<int32_t> eos_from_python(const std::vector<int64_t>& ids, int64_t vocab) {
  std::vector<int32_t> out;
  for (const int64_t id : ids) {
    check(id >= 0 && id < vocab, "eos_token_id ", id, " is outside the vocabulary of ", vocab);
    out.push_back(static_cast<int32_t>(id));
  }
  return out;
}

int64_t add_request(PyScheduler& s, const py::array& prompt, int64_t max_new_tokens, const std::vector<int64_t>& eos,
                    bool do_sample, float temperature, int64_t top_k, float top_p, float min_p, float typical_p,
                    float epsilon_cutoff, float eta_cutoff, uint64_t seed, uint64_t stream,
                    const std::optional<ProcessorParams>& processors, int64_t speculation) {
  RequestParams params;
  params.speculation = speculation;
  params.sampling = {do_sample, temperature, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff, seed, stream};
  if (processors) params.processors = *processors;
  params.max_new_tokens = max_new_tokens;
  params.eos_token_ids = eos_from_python(eos, s.model->config().vocab_size);
  const Exclusive guard(s.busy, "the scheduler");
  return s.scheduler.add(token_ids_from_python(prompt, "input_ids"), params);
}

using PyEvents = std::vector<std::tuple<int64_t, int32_t, std::string>>;

PyEvents events_to_python(PyScheduler& s, const std::vector<StepEvent>& events) {
  PyEvents out;
  for (const StepEvent& e : events) {
    std::string finish;
    if (e.finish == FinishReason::stop) finish = "stop";
    if (e.finish == FinishReason::length) finish = "length";
    if (e.finish == FinishReason::error) finish = "error: " + e.error;
    if (e.finish != FinishReason::none) s.masks.erase(e.request);
    out.emplace_back(e.request, e.token, finish);
  }
  return out;
}

PyEvents step(PyScheduler& s) {
  const Exclusive guard(s.busy, "the scheduler");
  std::vector<StepEvent> events;
  {
    const py::gil_scoped_release release;
    events = s.scheduler.step();
  }
  return events_to_python(s, events);
}

PyEvents append_tokens(PyScheduler& s, int64_t request, const py::array& ids) {
  const std::vector<int32_t> tokens = token_ids_from_python(ids, "token_ids");
  const Exclusive guard(s.busy, "the scheduler");
  return events_to_python(s, s.scheduler.append(request, tokens));
}

void set_mask(PyScheduler& s, int64_t request, const std::optional<py::array>& mask) {
  const Exclusive guard(s.busy, "the scheduler");
  if (!mask) {
    s.scheduler.set_mask(request, nullptr);
    s.masks.erase(request);
    return;
  }
  const int64_t words = (s.model->config().vocab_size + 31) / 32;
  check(py::isinstance<py::array_t<uint32_t>>(*mask) && mask->ndim() == 1 && mask->shape(0) >= words &&
            (mask->flags() & py::array::c_style) != 0,
        "mask must be a contiguous uint32 array of at least ", words, " words, one bit per token");
  s.scheduler.set_mask(request, static_cast<const uint32_t*>(mask->data()));
  s.masks[request] = *mask;
}

using PyHook = py::typing::Callable<void(py::array_t<float>)>;

void set_hook(PyScheduler& s, int64_t request, const std::string& stage, const std::optional<PyHook>& hook) {
  const Exclusive guard(s.busy, "the scheduler");
  s.scheduler.set_hook(request, logits_stage_from_name(stage),
                       hook ? make_logits_hook(*hook, request, s.errors) : LogitsHook());
}

py::object take_error(PyScheduler& s, int64_t request) {
  const auto found = s.errors->find(request);
  if (found == s.errors->end()) return py::none();
  py::object error = std::move(found->second);
  s.errors->erase(found);
  return error;
}

size_t size_from_python(const char* name, int64_t value) {
  check(value >= 0, name, " must not be negative, not ", value);
  return static_cast<size_t>(value);
}

std::shared_ptr<FileMap> map_file(int fd) {
  try {
    return std::make_shared<FileMap>(fd);
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
}

void release_free_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

py::array_t<float> dequantize(const py::array_t<uint8_t, py::array::c_style>& data, const std::string& dtype) {
  TensorView view = {"data", data.data(), dtype_from_name("data", dtype), {}};
  check(data.ndim() == 2 && data.shape(1) % block_bytes(view.dtype) == 0,
        "data must be uint8 [rows, bytes], rows of whole ", dtype, " blocks");
  view.shape = {data.shape(0), data.shape(1) / block_bytes(view.dtype) * block_values(view.dtype)};
  py::array_t<float> values({view.rows(), view.cols()});
  float* out = values.mutable_data();
  const py::gil_scoped_release release;
  parallel_for(view.rows(), [&](int64_t r) { read_row(view, r, out + r * view.cols()); });
  return values;
}

py::dict cpu_info() {
  py::dict info;
  info["isa"] = std::string(isa_name(active_isa()));
  info["detected_isa"] = std::string(isa_name(detected_isa()));
  py::list isas;
  for (const Isa isa : supported_isas()) isas.append(std::string(isa_name(isa)));
  info["isas"] = isas;
  info["num_threads"] = usable_cores();
  return info;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of lfm-engine: model, sequence states and scheduler.";
  m.attr("__version__") = LFM_ENGINE_VERSION;

  py::class_<FileMap, std::shared_ptr<FileMap>>(
      m, "FileMap", "A file mapped read-only and shared, whose bytes a model uses in place.")
      .def(py::init(&map_file), py::arg("fd"), "Maps the whole file open at `fd`.")
      .def_property_readonly(
          "bytes", [](const std::shared_ptr<FileMap>& s) { return bytes_in_place(s->bytes(), s); },
          "The file, uint8 [size], read-only; keeps the map.")
      .def("populate", &FileMap::populate, py::arg("offset"),
           "Starts to map all pages from `offset` on ahead of their use, in a thread that ends with the map.");

  bind_arrays(m);
  bind_state(m);
  bind_taps(m);
  py::class_<Model, std::shared_ptr<Model>> model(m, "Model", "Immutable weights and the forward pass.");
  model
      .def(py::init(&make_model), py::arg("config"), py::arg("checkpoint"), py::arg("dtype"), py::arg("device") = "cpu",
           py::arg("num_threads") = 0, py::arg("kv_dtype") = "auto", py::arg("importance") = PyVectors(),
           "config: checkpoint.ModelConfig; checkpoint: a checkpoint.Checkpoint; dtype: 'float32', 'bfloat16', 'int8' "
           "or 'int4'; num_threads: 0 takes the physical cores that this process may use; kv_dtype: type of K and V in "
           "states, 'float32', 'bfloat16', 'int8' or 'auto' (float32 for float32 weights, else bfloat16).")
      .def_property_readonly("dtype", [](const Model& s) { return std::string(compute_type_name(s.compute_type())); })
      .def_property_readonly("kv_dtype", [](const Model& s) { return std::string(kv_type_name(s.kv_type())); })
      .def_property_readonly("num_threads", &Model::num_threads)
      .def_property_readonly("isa", [](const Model& s) { return std::string(s.isa()); })
      .def_property_readonly(
          "weight_nbytes", [](const Model& s) { return s.weights().nbytes(); }, "Bytes of the packed weights.")
      .def_property_readonly(
          "linear_implementation", [](const Model& s) { return std::string(s.weights().head().implementation()); },
          "What multiplies the matrices, e.g. 'onednn:brg:avx512_core_bf16' or 'panels:q8'.")
      .def(
          "export_weights", [](const Model& s) { return weights_to_python(s.config(), s.weights()); },
          "What a packed file holds: a list of matrices (name, layout, (rows, columns), parts as uint8 arrays over the "
          "model's own memory) and a dictionary of small float32 tensors. int8 and int4 only.")
      .def("input_mean_squares", &input_mean_squares, py::arg("input_ids"),
           "The mean square of each input of each linear layer over all tokens of the sequences [n], by name; float32 "
           "models only. What a model in 'int4' can be given as `importance`.")
      .def(
          "fingerprint", [](const Model& s) { return fingerprint(s.config(), s.weights()); },
          py::call_guard<py::gil_scoped_release>(),
          "A digest of the weights as this model holds them, the same on every CPU: of all small tensors, and of some "
          "rows of every matrix.")
      .def("new_state", [](const Model& s) { return std::make_unique<PyState>(s.new_state()); })
      .def_property_readonly("prefill_chunk", &Model::prefill_chunk,
                             "Prompt tokens of one pass, where nothing else is asked for.")
      .def("state_nbytes", &Model::state_nbytes, py::arg("length"),
           "Bytes of the state of a sequence of so many tokens.")
      .def("forward", &forward, py::arg("state"), py::arg("input_ids"), py::arg("logits") = "all",
           py::arg("chunk") = py::none(), py::arg("out").noconvert() = py::none(), py::arg("taps") = py::none(),
           "Appends input_ids [n] to the state; returns float32 logits [n, vocab] ('all') or [1, vocab] ('last'), "
           "written to `out` if given. chunk: tokens of one pass, prefill_chunk if None. taps: as at set_taps, for "
           "this call and after those of the model.")
      .def("forward_batch", &forward_batch, py::arg("states"), py::arg("input_ids"),
           "One packed step of several sequences, without padding; returns the last logits of each, [batch, vocab].");
  bind_model_taps(model);
  bind_weights(model);

  bind_processors(m);
  py::class_<PrefixCache, std::shared_ptr<PrefixCache>>(
      m, "PrefixCache",
      "K and V of what was computed, for prompts that begin alike. What was not used for longest is given up first. "
      "Safe to use from several threads.")
      .def(py::init([](std::shared_ptr<Model> model, int64_t max_bytes) {
             return std::make_shared<PrefixCache>(std::move(model), size_from_python("max_bytes", max_bytes));
           }),
           py::arg("model").none(false), py::arg("max_bytes"))
      .def_property(
          "max_bytes", &PrefixCache::max_bytes,
          [](PrefixCache& s, int64_t bytes) { s.set_max_bytes(size_from_python("max_bytes", bytes)); },
          "The budget; 0 turns the cache off. A smaller one takes effect at once.")
      .def_property_readonly("nbytes", &PrefixCache::nbytes, "Bytes held, also of what running requests share.")
      .def_property_readonly("reused_tokens", &PrefixCache::reused_tokens,
                             "Tokens that were not computed again so far.")
      .def(
          "match",
          [](PrefixCache& s, const py::array& ids) { return s.match(token_ids_from_python(ids, "input_ids")); },
          py::arg("input_ids"), "How many of input_ids [n], from the first on, are cached.")
      .def("clear", &PrefixCache::clear, "Gives everything up.");

  py::class_<PyScheduler>(m, "Scheduler", "Continuous batching over one model; requests join and leave at any step.")
      .def(py::init([](std::shared_ptr<Model> model, std::optional<int64_t> chunk,
                       const std::optional<std::shared_ptr<PrefixCache>>& cache) {
             const int64_t tokens = chunk.value_or(model->prefill_chunk());
             return std::make_unique<PyScheduler>(std::move(model), tokens, cache.value_or(nullptr));
           }),
           py::arg("model").none(false), py::arg("prefill_chunk") = py::none(), py::arg("prefix_cache") = py::none())
      .def("add", &add_request, py::arg("input_ids"), py::kw_only(), py::arg("max_new_tokens"),
           py::arg("eos_token_ids") = std::vector<int64_t>(), py::arg("do_sample") = false,
           py::arg("temperature") = 1.0f, py::arg("top_k") = 0, py::arg("top_p") = 1.0f, py::arg("min_p") = 0.0f,
           py::arg("typical_p") = 1.0f, py::arg("epsilon_cutoff") = 0.0f, py::arg("eta_cutoff") = 0.0f,
           py::arg("seed") = 0, py::arg("stream") = 0, py::arg("processors") = py::none(), py::arg("speculation") = 0,
           "Adds a request and returns its id.")
      .def(
          "cancel",
          [](PyScheduler& s, int64_t request) {
            const Exclusive guard(s.busy, "the scheduler");
            s.scheduler.cancel(request);
            s.masks.erase(request);
          },
          py::arg("request"))
      .def("append", &append_tokens, py::arg("request"), py::arg("token_ids"),
           "Appends tokens [n] that need no sampling: they count as generated and are computed with the next step. "
           "Returns one event, as from step(), for each token taken: none after the one that ends the request.")
      .def("set_mask", &set_mask, py::arg("request"), py::arg("mask").none(true),
           "Only tokens whose bit is set can be sampled from now on; None: any. uint32 [ceil(vocab / 32)], low bit "
           "first; not copied, read at each step.")
      .def("set_hook", &set_hook, py::arg("request"), py::arg("stage"), py::arg("hook").none(true),
           "Calls hook(row) for each token of this request that is sampled, with float32 [1, vocab] over the logits "
           "themselves: 'raw' (the model's), 'processed' (before temperature and what follows) or 'scores' (what the "
           "token was chosen from). Changes in place count in the first two. If it raises, the request ends.")
      .def(
          "set_normalize_scores",
          [](PyScheduler& s, int64_t request, bool normalize) {
            const Exclusive guard(s.busy, "the scheduler");
            s.scheduler.set_normalize_scores(request, normalize);
          },
          py::arg("request"), py::arg("normalize"), "Whether the 'scores' of a request are log-probabilities.")
      .def("take_error", &take_error, py::arg("request"),
           "The exception that a hook of this request raised, once; None if there is none.")
      .def(
          "use_state",
          [](PyScheduler& s, int64_t request, PyState& state) {
            const Exclusive guard(s.busy, "the scheduler"), other(state.busy, "the state");
            s.scheduler.use_state(request, state.state);
          },
          py::arg("request"), py::arg("state"),
          "The request goes on from what its prompt and the state have in common, before its first step. The state is "
          "not changed; that of the request can be taken when it has ended.")
      .def(
          "take_state",
          [](PyScheduler& s, int64_t request) {
            const Exclusive guard(s.busy, "the scheduler");
            return std::make_unique<PyState>(s.scheduler.take_state(request));
          },
          py::arg("request"),
          "The state of a request with use_state that has ended, once. It lacks the last token, and forced ones before "
          "it.")
      .def_property_readonly("idle", [](const PyScheduler& s) { return s.scheduler.idle(); })
      .def(
          "step", &step,
          "At most one forward pass; returns (request, token, finish) with finish '', 'stop', 'length' or 'error: ...' "
          "(token -1).")
      .def_property_readonly(
          "passes", [](const PyScheduler& s) { return s.scheduler.passes(); }, "Forward passes so far.")
      .def_property_readonly(
          "drafted_tokens", [](const PyScheduler& s) { return s.scheduler.drafted_tokens(); },
          "Tokens that speculation drafted so far.")
      .def_property_readonly(
          "accepted_tokens", [](const PyScheduler& s) { return s.scheduler.accepted_tokens(); },
          "Those of them that came.");

  m.def("dequantize", &dequantize, py::arg("data"), py::arg("dtype"),
        "The float32 values [rows, cols] of uint8 [rows, bytes]: blocks of GGUF's type of that name, such as 'q4_k'.");
  m.def("cpu_info", &cpu_info, "isa in use, isa detected, all isas of this CPU, and the default number of threads.");
  m.def("release_free_memory", &release_free_memory, py::call_guard<py::gil_scoped_release>(),
        "Gives memory that the C library keeps for later back to the system.");
  m.def("forked_after_parallel", &forked_after_parallel,
        "True in a child forked after the engine ran: it computes with one thread there.");
  m.def(
      "measure_read_bandwidth",
      [](int num_threads, int64_t bytes) {
        const py::gil_scoped_release release;
        return measure_read_bandwidth(num_threads, bytes);
      },
      py::arg("num_threads"), py::arg("nbytes") = int64_t{1} << 29, "Streaming read bandwidth in bytes per second.");
  m.def(
      "measure_gemm",
      [](const std::string& dtype, int64_t rows, int64_t k, int64_t n, int num_threads) {
        const py::gil_scoped_release release;
        return measure_gemm(compute_type_from_name(dtype), rows, k, n, num_threads);
      },
      py::arg("dtype"), py::arg("rows"), py::arg("k"), py::arg("n"), py::arg("num_threads"),
      "oneDNN's own matmul rate in FLOP per second, 0 where it has none.");
}

}  // namespace lfm
