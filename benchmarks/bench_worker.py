"""One engine in a process of its own, for bench_generate.py.

Started with a JSON `Spec` as its argument. Prints one JSON line when the model is loaded, then one
for each line on stdin: the time to the first token of a random prompt, the time of the following
tokens, and the memory. All engines are driven through their public generate calls, greedily.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

Clock = list[float]
Generate = Callable[[list[int], int], Clock]


@dataclass(frozen=True)
class Spec:
    """What a worker runs.

    Attributes:
        engine: "lfm-engine", "transformers", "llama.cpp" or "machine" (measures the hardware).
        dtype: "float32", "bfloat16" or "int8"; ignored for llama.cpp, whose file says it.
        path: the model folder, or a .gguf file for llama.cpp.
        prompt, new: tokens of the prompt, and tokens generated after the first.
        shapes: (K, N, count) of the model's matrices, for "machine".
    """

    engine: str
    dtype: str
    path: str
    threads: int
    prompt: int
    new: int
    shapes: list[tuple[int, int, int]]

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


class _Stamps:
    """A streamer that notes when tokens arrive; both libraries' `put` and `end`."""

    def __init__(self) -> None:
        self.times: Clock = []

    def put(self, _value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _load_engine(spec: Spec) -> tuple[Callable[[], Generate], str]:
    import lfm_engine

    def load() -> Generate:
        model = lfm_engine.AutoModelForCausalLM.from_pretrained(
            spec.path, dtype=spec.dtype, num_threads=spec.threads, progress=False
        )

        def generate(prompt: list[int], new: int) -> Clock:
            stamps = _Stamps()
            model.generate(
                [prompt],
                max_new_tokens=new,
                do_sample=False,
                repetition_penalty=1.0,
                eos_token_id=[],
                streamer=stamps,
            )
            return stamps.times[1:]  # the first is the prompt

        return generate

    return load, lfm_engine.__version__


def _load_transformers(spec: Spec) -> tuple[Callable[[], Generate], str]:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(spec.threads)

    def load() -> Generate:
        dtype = getattr(torch, spec.dtype)
        model = AutoModelForCausalLM.from_pretrained(spec.path, dtype=dtype).eval()
        model.generation_config = GenerationConfig()

        def generate(prompt: list[int], new: int) -> Clock:
            stamps, ids = _Stamps(), torch.tensor([prompt])
            config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
            with torch.inference_mode():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=config,
                    streamer=stamps,
                )
            return stamps.times[1:]

        return generate

    return load, transformers.__version__


def _load_llama_cpp(spec: Spec) -> tuple[Callable[[], Generate], str]:
    import llama_cpp

    def load() -> Generate:
        model = llama_cpp.Llama(
            spec.path,
            n_ctx=spec.prompt + spec.new + 32,
            n_batch=512,
            n_ubatch=512,
            n_threads=spec.threads,
            n_threads_batch=spec.threads,
            verbose=False,
        )

        def generate(prompt: list[int], new: int) -> Clock:
            model.reset()
            # top_k=1 and temp=0 keep its sampler chain as cheap as a greedy one.
            tokens = model.generate(prompt, top_k=1, temp=0.0)
            stamps = []
            for _ in range(new):
                next(tokens)
                stamps.append(time.perf_counter())
            tokens.close()
            return stamps

        return generate

    return load, llama_cpp.__version__


def _measure_machine(spec: Spec) -> dict[str, float]:
    """Read bandwidth in bytes/s, and oneDNN's FLOP/s over the model's matrices together."""
    from lfm_engine import _core

    result = {"bandwidth": _core.measure_read_bandwidth(spec.threads)}
    for dtype in ("bfloat16", "float32"):
        flops = seconds = 0.0
        for k, n, count in spec.shapes:
            rate = _core.measure_gemm(dtype, spec.prompt, k, n, spec.threads)
            flops += count * k * n
            seconds += count * k * n / rate if rate else float("inf")
        result[f"gemm_{dtype}"] = flops / seconds
    return result


def _serve(spec: Spec, answer: Callable[[dict[str, Any]], None]) -> None:
    if spec.engine == "machine":
        answer({"version": ""})
        for _ in sys.stdin:
            answer(_measure_machine(spec))
        return
    loaders = {
        "lfm-engine": _load_engine,
        "transformers": _load_transformers,
        "llama.cpp": _load_llama_cpp,
    }
    load, version = loaders[spec.engine](spec)
    before = memory()
    begin = time.perf_counter()
    generate = load()
    answer({"version": version, "load_s": time.perf_counter() - begin, "before": before})
    for seed, _ in enumerate(sys.stdin):
        # Another prompt each time: nothing to find in a prefix cache. No special tokens.
        prompt = np.random.default_rng(seed).integers(500, 64_000, spec.prompt).tolist()
        begin = time.perf_counter()
        times = generate(prompt, spec.new + 1)
        if len(times) != spec.new + 1:
            raise RuntimeError(f"{spec.engine} generated {len(times)} of {spec.new + 1} tokens")
        answer({"first_s": times[0] - begin, "rest_s": times[-1] - times[0], "memory": memory()})


def main() -> None:
    """Reads the spec and serves rounds until stdin ends; an error is a line of its own."""
    values = json.loads(sys.argv[1])
    spec = Spec(**{field.name: values[field.name] for field in fields(Spec)})
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
