"""One engine in a process of its own, for bench_speed.py.

Started with a JSON `Spec` as its argument. Prints one JSON line when the model is loaded, then one
for each JSON request on stdin:

    {"task": "prefill", "batch": 1, "depth": 512, "capacity": 700}
        seconds until ready to decode
    {"task": "fill", "batch": 1, "depth": 32000, "capacity": 32200, "slice_s": 15}
        makes a context ready to decode; stops after that many seconds, to be asked again until
        "done". "seconds" and "tokens" are of all slices; "loaded": read from a file instead
    {"task": "decode", "batch": 32, "depth": 128, "capacity": 400, "new": 32}
        seconds of 32 steps
    {"task": "first", "depth": 16, "capacity": 2048}
        seconds of a short prompt, its context made in them
    {"task": "memory"}
        bytes of the process
    {"task": "drop"}
        frees all contexts
    {"task": "limits", "rows": 512, "shapes": [[K, N, count], ...]}
        of the machine; rows 0: without the GEMM

A context of more than 512 tokens is kept and goes on where the last request of the same sizes
left it (its depth grows by `new` each time): filling it anew would take minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench_engines import Engine, Prompts, Session, import_library, load_engine

KEPT = 512  # tokens of all sequences above which a context is kept
Answer = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Spec:
    """What a worker runs.

    Attributes:
        engine: "lfm-engine", "transformers", "llama.cpp", "onnxruntime-genai", "openvino", or
            "machine" (measures the hardware).
        path: a model folder or file.
        dtype, kv_dtype: of lfm-engine and transformers; "" where the file or the engine decides.
        tokenizer: lfm-engine: a folder whose tokenizer is loaded too before anything is measured.
        contexts: llama.cpp: a folder for long contexts that its workers share.
    """

    engine: str
    path: str
    dtype: str
    kv_dtype: str
    threads: int
    tokenizer: str = ""
    contexts: str = ""

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


def memory() -> dict[str, int]:
    """Bytes of this process: anonymous (private), file-backed and peak resident."""
    values: dict[str, int] = {}
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/self/{name}").read_text().splitlines():
            key, _, rest = line.partition(":")
            number = rest.split()
            if len(number) == 2 and number[1] == "kB":
                values[key] = int(number[0]) * 1024
    private = values["Anonymous"]
    return {"private": private, "file": values["Rss"] - private, "peak": values["VmHWM"]}


def random_prompts(seed: int, batch: int, length: int) -> Prompts:
    """Another text each time: nothing to find in a prefix cache. No special tokens."""
    rng = np.random.default_rng([seed, batch, length])
    prompts: Prompts = rng.integers(500, 64_000, (batch, length)).tolist()
    return prompts


@dataclass
class Context:
    """A session and how far it is."""

    session: Session
    filling: Iterator[int] | None = None  # not ready while this is set
    seconds: float = 0.0  # spent on filling
    length: int = 0  # of each sequence, once filled


class Runner:
    """Answers the requests with one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._contexts: dict[tuple[int, int, int], Context] = {}
        self._count = 0

    def _context(self, batch: int, depth: int, capacity: int) -> Context:
        key = (batch, depth, capacity)
        if key not in self._contexts:
            self._contexts[key] = Context(self._engine.session(batch, capacity))
        return self._contexts[key]

    def _fill(self, context: Context, batch: int, depth: int, slice_s: float) -> int:
        """Goes on with filling for that long; the tokens that it has taken so far."""
        taken = 0
        begin = time.perf_counter()
        if not context.filling:
            self._count += 1
            prompts = random_prompts(self._count, batch, depth)
            context.seconds, context.length = 0.0, 0
            begin = time.perf_counter()
            context.filling = context.session.fill(prompts)
        for taken in context.filling:
            if time.perf_counter() - begin > slice_s and taken < batch * depth:
                break
        else:
            context.filling, context.length = None, depth
        context.seconds += time.perf_counter() - begin
        return taken

    def fill(self, batch: int, depth: int, capacity: int, slice_s: float) -> dict[str, Any]:
        """A slice of filling a context."""
        context = self._context(batch, depth, capacity)
        taken = self._fill(context, batch, depth, slice_s)
        done = not context.filling
        return {
            "seconds": context.seconds,
            "tokens": taken,
            "done": done,
            "loaded": done and not taken,
        }

    def prefill(self, batch: int, depth: int, capacity: int) -> dict[str, Any]:
        """Time of the prompts."""
        context = self._context(batch, depth, capacity)
        self._fill(context, batch, depth, float("inf"))
        return {"seconds": context.seconds, "tokens": batch * depth}

    def decode(self, batch: int, depth: int, capacity: int, new: int) -> dict[str, Any]:
        """Time of `new` steps after `depth` tokens."""
        context = self._context(batch, depth, capacity)
        if not context.length or batch * depth <= KEPT:
            self._fill(context, batch, depth, float("inf"))
        context.length += new
        if context.length > capacity:
            raise ValueError(f"a context of {capacity} tokens is full")
        begin = time.perf_counter()
        for _ in range(new):
            context.session.step()
        return {"seconds": time.perf_counter() - begin, "tokens": batch * new}

    def first(self, depth: int, capacity: int) -> dict[str, Any]:
        """Time to the first token of a short prompt in a new context."""
        begin = time.perf_counter()
        context = self._context(1, depth, capacity)
        made = time.perf_counter() - begin
        self._fill(context, 1, depth, float("inf"))
        return {"seconds": made + context.seconds}

    def drop(self) -> dict[str, Any]:
        """Frees all contexts."""
        self._contexts.clear()
        return {}


def measure_limits(threads: int, rows: int, shapes: list[tuple[int, int, int]]) -> dict[str, Any]:
    """Read bandwidth in bytes/s, and oneDNN's FLOP/s over the model's matrices together.

    A type that `measure_gemm` does not know, or that this CPU lacks, has no figure.
    """
    from lfm_engine import _core

    result: dict[str, Any] = {"bandwidth": _core.measure_read_bandwidth(threads)}
    for dtype in ("bfloat16", "int8") if rows else ():
        flops = seconds = 0.0
        with contextlib.suppress(ValueError):
            for k, n, count in shapes:
                rate = _core.measure_gemm(dtype, rows, k, n, threads)
                flops += count * k * n
                seconds += count * k * n / rate if rate else float("inf")
            if seconds != float("inf"):
                result[f"gemm_{dtype}"] = flops / seconds
    return result


def _serve(spec: Spec, answer: Answer) -> None:
    runner = None
    if spec.engine == "machine":
        answer({})
    else:
        import_library(spec.engine)
        tokenizer = None
        if spec.tokenizer:
            from lfm_engine import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer)
        before = memory()
        begin = time.perf_counter()
        engine = load_engine(
            spec.engine, spec.path, spec.dtype, spec.kv_dtype, spec.threads, spec.contexts
        )
        load_s = time.perf_counter() - begin
        runner = Runner(engine)
        answer(
            {
                "version": engine.version,
                "weight_bytes": engine.weight_bytes,
                "load_s": load_s,
                "before": before,
                "tokenizer": tokenizer is not None,
            }
        )
    for line in sys.stdin:
        request = json.loads(line)
        task = request.pop("task")
        try:
            if task == "limits":
                answer(measure_limits(spec.threads, **request))
            elif task == "memory":
                answer(memory())
            else:
                answer(getattr(runner, task)(**request))
        except Exception as error:  # the next request may go well
            answer({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Reads the spec and serves requests until stdin ends; an error is a line of its own."""
    values = json.loads(sys.argv[1])
    spec = Spec(**values)
    # Libraries print as they like: answers go to a private copy of stdout.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    try:
        with contextlib.redirect_stdout(sys.stderr):
            _serve(spec, answer)
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
