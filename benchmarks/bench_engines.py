"""What the benchmarks drive: one interface over lfm-engine and its peers.

An `Engine` loads a model and makes `Session`s; a session takes prompts (`fill`) and then one token
for each (`step`). Peers are driven as llama-bench does it: fixed tokens and no sampling.
lfm-engine runs its scheduler with its greedy sampler: what `generate` runs. Libraries are imported
by the engine that needs them, so that each may live in an environment of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Prompts = list[list[int]]
NEXT_TOKEN = 1234  # what peers are fed while decoding


class Session(Protocol):
    """Sequences in progress."""

    def fill(self, prompts: Prompts) -> Iterator[int]:
        """Forget what was and take these prompts (of one length).

        Yields the tokens taken so far (of all prompts), as often as the engine allows to pause;
        ready to decode when it ends.
        """

    def step(self) -> None:
        """Decode one token of every sequence."""


class Engine(Protocol):
    """A loaded model.

    Attributes:
        version: of the library.
        weight_bytes: of the weights; what one token reads.
    """

    version: str
    weight_bytes: int

    def session(self, batch: int, capacity: int) -> Session:
        """Room for `batch` sequences of `capacity` tokens each."""


class LfmEngine:
    """lfm-engine; `path` is a folder, a .gguf file or a packed file."""

    def __init__(self, path: str, dtype: str, kv_dtype: str, threads: int) -> None:
        import lfm_engine

        options: dict[str, Any] = {"kv_dtype": kv_dtype} if kv_dtype else {}
        self._model = lfm_engine.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype or "auto", num_threads=threads, progress=False, **options
        )
        self.version = lfm_engine.__version__
        self.weight_bytes: int = self._model.core.weight_nbytes

    def session(self, batch: int, capacity: int) -> Session:
        return _LfmSession(self._model.core, capacity)


class _LfmSession:
    def __init__(self, core: Any, capacity: int) -> None:
        self._core, self._capacity = core, capacity

    def fill(self, prompts: Prompts) -> Iterator[int]:
        from lfm_engine import _core

        total, taken = sum(map(len, prompts)), 0
        self._scheduler = _core.Scheduler(self._core)
        waiting = {
            self._scheduler.add(np.array(p), max_new_tokens=self._capacity - len(p))
            for p in prompts
        }
        while waiting:
            waiting -= {event[0] for event in self._step()}
            taken = min(taken + self._core.prefill_chunk, total)
            yield taken

    def _step(self) -> list[tuple[int, int, str]]:
        events: list[tuple[int, int, str]] = self._scheduler.step()
        for _, _, finish in events:
            if finish:
                raise RuntimeError(f"a request ended early: {finish}")
        return events

    def step(self) -> None:
        self._step()


class Transformers:
    """transformers' forward with its DynamicCache."""

    def __init__(self, path: str, dtype: str, threads: int) -> None:
        import torch
        import transformers
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype)
        ).eval()
        self.version = f"{transformers.__version__}, torch {torch.__version__}"
        self.weight_bytes = sum(p.nbytes for p in self._model.parameters())

    def session(self, batch: int, capacity: int) -> Session:
        return _TransformersSession(self._model, batch)


class _TransformersSession:
    def __init__(self, model: Any, batch: int) -> None:
        self._model, self._batch = model, batch

    def _forward(self, ids: Any, cache: Any) -> None:
        import torch

        with torch.inference_mode():
            output = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values

    def fill(self, prompts: Prompts) -> Iterator[int]:
        import torch

        self._forward(torch.tensor(prompts), None)
        yield len(prompts) * len(prompts[0])

    def step(self) -> None:
        import torch

        self._forward(torch.full((self._batch, 1), NEXT_TOKEN), self._cache)


class LlamaCpp:
    """llama.cpp through the C functions of llama-cpp-python, with llama-bench's settings.

    A long context takes it minutes to fill. Its state is the same for all types of weights but for
    the values, which do not change the speed: the first worker saves it in the folder `contexts`
    ("": none), the others load it.
    """

    def __init__(self, path: str, threads: int, contexts: str) -> None:
        import llama_cpp

        self._lib, self._threads = llama_cpp, threads
        self._contexts = Path(contexts) if contexts else None
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.version = llama_cpp.__version__
        self.weight_bytes = int(llama_cpp.llama_model_size(self._model))

    def session(self, batch: int, capacity: int) -> Session:
        return _LlamaSession(self._lib, self._model, self._threads, self._contexts, batch, capacity)


class _LlamaSession:
    CHUNK = 2048  # llama.cpp's default n_batch
    SAVED = 16_384  # tokens from which a context is kept in a file for other workers

    def __init__(
        self, lib: Any, model: Any, threads: int, contexts: Path | None, batch: int, capacity: int
    ) -> None:
        self._lib, self._contexts = lib, contexts
        options = lib.llama_context_default_params()
        # Streams are padded to 256 cells.
        options.n_ctx = batch * -(-capacity // 256) * 256
        options.n_batch, options.n_ubatch, options.n_seq_max = self.CHUNK, 512, batch
        options.n_threads = options.n_threads_batch = threads
        self._context = lib.llama_init_from_model(model, options)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self._batch = lib.llama_batch_init(self.CHUNK, 0, batch)
        self._length = 0
        self._sequences = batch

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._context)

    def _decode(
        self,
        tokens: list[int],
        positions: list[int],
        sequences: list[int],
        wanted: list[int],
    ) -> None:
        batch, size = self._batch, len(tokens)
        batch.n_tokens = size
        for field, values, kind in (
            (batch.token, tokens, ctypes.c_int32),
            (batch.pos, positions, ctypes.c_int32),
            (batch.logits, wanted, ctypes.c_int8),
        ):
            ctypes.memmove(field, (kind * size)(*values), size * ctypes.sizeof(kind))
        for i, sequence in enumerate(sequences):
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
        code = self._lib.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        self._lib.llama_synchronize(self._context)

    def fill(self, prompts: Prompts) -> Iterator[int]:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
        self._length = length = len(prompts[0])
        saved = self._contexts / f"llama-{length}.state" if self._contexts else None
        if saved and length >= self.SAVED and len(prompts) == 1 and self._load(saved):
            return
        taken = 0
        for sequence, prompt in enumerate(prompts):
            for start in range(0, length, self.CHUNK):
                chunk = prompt[start : start + self.CHUNK]
                wanted = [0] * len(chunk)
                wanted[-1] = int(start + len(chunk) == length)
                positions = list(range(start, start + len(chunk)))
                self._decode(chunk, positions, [sequence] * len(chunk), wanted)
                taken += len(chunk)
                yield taken
        if saved and length >= self.SAVED and len(prompts) == 1:
            self._save(saved, prompts[0])

    def _save(self, path: Path, prompt: list[int]) -> None:
        part = path.with_suffix(f".{os.getpid()}")
        tokens = (ctypes.c_int32 * len(prompt))(*prompt)
        save = self._lib.llama_state_seq_save_file
        if save(self._context, os.fsencode(part), 0, tokens, len(prompt)):
            part.rename(path)

    def _load(self, path: Path) -> bool:
        if not path.exists():
            return False
        room = (ctypes.c_int32 * self._length)()
        count = ctypes.c_size_t()
        load = self._lib.llama_state_seq_load_file
        size = load(self._context, os.fsencode(path), 0, room, len(room), ctypes.byref(count))
        return bool(size) and count.value == self._length

    def step(self) -> None:
        n = self._sequences
        self._decode([NEXT_TOKEN] * n, [self._length] * n, list(range(n)), [1] * n)
        self._length += 1


class OnnxRuntimeGenai:
    """onnxruntime-genai; `path` is a folder that its model builder made."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(path)
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model, self._lib = og.Model(config), og
        self.version = str(og.__version__)
        self.weight_bytes = _file_bytes(Path(path), "*.onnx.data")

    def session(self, batch: int, capacity: int) -> Session:
        return _OnnxSession(self._lib, self._model, batch, capacity)


class _OnnxSession:
    def __init__(self, lib: Any, model: Any, batch: int, capacity: int) -> None:
        self._make: Callable[[], Any] = lambda: self._generator(lib, model, batch, capacity)
        self._tokens = self._make()

    @staticmethod
    def _generator(lib: Any, model: Any, batch: int, capacity: int) -> Any:
        params = lib.GeneratorParams(model)
        # min_length: an end token must not end the measurement.
        params.set_search_options(
            max_length=capacity, min_length=capacity, batch_size=batch, do_sample=False
        )
        return lib.Generator(model, params)

    def fill(self, prompts: Prompts) -> Iterator[int]:
        if self._tokens.token_count():
            del self._tokens
            self._tokens = self._make()
        self._tokens.append_tokens(np.array(prompts, np.int32).ravel())
        self._tokens.generate_next_token()
        yield len(prompts) * len(prompts[0])

    def step(self) -> None:
        self._tokens.generate_next_token()


class OpenVino:
    """OpenVINO's runtime on a model exported by optimum-intel, with the CPU plugin's defaults.

    The head is computed for the last token only, as openvino-genai does it.
    """

    def __init__(self, path: str, threads: int) -> None:
        import openvino as ov

        core = ov.Core()
        model = core.read_model(Path(path) / "openvino_model.xml")
        _keep_last_row(model)
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_HYPER_THREADING": False,
        }
        # Its own cache of compiled models stays out: load means load.
        self._compiled = core.compile_model(model, "CPU", options)
        self.version = str(ov.__version__).split("-")[0]
        self.weight_bytes = _file_bytes(Path(path), "openvino_model.bin")

    def session(self, batch: int, capacity: int) -> Session:
        return _OpenVinoSession(self._compiled, batch)


def _keep_last_row(model: Any) -> None:
    """Slices the input of the head to the last token."""
    from openvino import opset13 as ops

    node = model.output("logits").get_node().input_value(0).get_node()
    while node.get_type_name() != "MatMul":
        node = node.input_value(0).get_node()
    hidden = node.input_value(0)
    if hidden.get_node().get_type_name() in ("Gather", "Slice"):
        return
    last = ops.slice(hidden, *(np.array([v], np.int64) for v in (-1, 2**31 - 1, 1, 1)))
    node.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()


class _OpenVinoSession:
    def __init__(self, compiled: Any, batch: int) -> None:
        self._request, self._batch = compiled.create_infer_request(), batch
        self._names = {name for port in compiled.inputs for name in port.get_names()}
        self._length = 0

    def _infer(self, ids: npt.NDArray[np.int64]) -> None:
        batch, new = ids.shape
        total = self._length + new
        values = {
            "input_ids": ids,
            "attention_mask": np.ones((batch, total), np.int64),
            "position_ids": np.tile(np.arange(self._length, total), (batch, 1)),
            "beam_idx": np.arange(batch, dtype=np.int32),
        }
        self._request.infer({name: values[name] for name in values if name in self._names})
        self._length = total

    def fill(self, prompts: Prompts) -> Iterator[int]:
        self._request.reset_state()
        self._length = 0
        self._infer(np.array(prompts, np.int64))
        yield len(prompts) * len(prompts[0])

    def step(self) -> None:
        self._infer(np.full((self._batch, 1), NEXT_TOKEN, np.int64))


def _file_bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def import_library(engine: str) -> None:
    """Imports what `load_engine` needs, so that loading is measured without it."""
    if engine == "lfm-engine":
        import lfm_engine  # noqa: F401
    elif engine == "transformers":
        from transformers import AutoModelForCausalLM  # noqa: F401
    elif engine == "llama.cpp":
        import llama_cpp  # noqa: F401
    elif engine == "onnxruntime-genai":
        import onnxruntime_genai  # noqa: F401
    elif engine == "openvino":
        import openvino  # noqa: F401
    else:
        raise ValueError(f"engine: {engine!r} is not known")


def load_engine(
    engine: str, path: str, dtype: str, kv_dtype: str, threads: int, contexts: str
) -> Engine:
    """Loads a model; the arguments are those of bench_worker.Spec."""
    if engine == "lfm-engine":
        return LfmEngine(path, dtype, kv_dtype, threads)
    if engine == "transformers":
        return Transformers(path, dtype, threads)
    if engine == "llama.cpp":
        return LlamaCpp(path, threads, contexts)
    if engine == "onnxruntime-genai":
        return OnnxRuntimeGenai(path, threads)
    return OpenVino(path, threads)
