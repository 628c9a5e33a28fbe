"""Measures prefill, decode, load and memory beside transformers and llama.cpp.

    PYTHONPATH=python python benchmarks/bench_generate.py FOLDER [--threads 1,2] [--json OUT]

FOLDER comes from make_model.py, with --gguf BF16 --gguf Q8_0 for llama.cpp. Every engine runs in a
process of its own; the processes take turns, round by round, beside measurements of the machine's
read bandwidth and GEMM rate, so that a change of the machine's speed touches all alike. Figures are
medians, with the range of the rounds in parentheses. One round before the first is not counted.

- prefill: prompt tokens over the time to the first new token;
- decode: the tokens after it, at a depth of one prompt;
- of bandwidth: decode's weight bytes per second over the measured read bandwidth of its round;
- of GEMM: prefill's FLOPs per second (matrices only, the head for one token) over what oneDNN does
  in the same type (bfloat16 for quantized ones) with the model's matrices, in the same round;
- load: with the file in the page cache and the libraries imported;
- memory: resident after the last round: private and file-backed, the interpreter's included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench_worker import Spec
from lfm_engine import _core
from lfm_engine.checkpoint import ModelConfig, open_checkpoint
from tables import format_table

WORKER = Path(__file__).with_name("bench_worker.py")
MODULES = {"lfm-engine": "lfm_engine", "transformers": "transformers", "llama.cpp": "llama_cpp"}
BYTES_PER_WEIGHT = {"float32": 4.0, "bfloat16": 2.0, "int8": 34 / 32}  # int8: with its scales


@dataclass
class Worker:
    """A running bench_worker.py and what it has answered."""

    name: str
    spec: Spec
    process: subprocess.Popen[str]
    loaded: dict[str, Any] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process died"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}, {self.spec.threads} threads: {answer['error']}")
        return answer

    def round(self) -> dict[str, Any]:
        """Run one round."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()


@contextlib.contextmanager
def start(name: str, spec: Spec) -> Iterator[Worker]:
    """A worker whose model is loaded; ends its process."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER), spec.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        worker = Worker(name, spec, process)
        worker.loaded = worker.read()
        yield worker
    finally:
        process.kill()
        process.wait()


def gemm_shapes(config: ModelConfig) -> list[tuple[int, int, int]]:
    """(K, N, how many) of the matrices between embedding and head, as the engine joins them."""
    hidden, ff = config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    layers = config.num_hidden_layers
    attention = config.layer_types.count("full_attention")
    shapes = [
        (hidden, 3 * hidden, layers - attention),
        (hidden, hidden, layers - attention),
        (hidden, q + 2 * kv, attention),
        (q, hidden, attention),
        (hidden, 2 * ff, layers),
        (ff, hidden, layers),
    ]
    return [shape for shape in shapes if shape[2]]


def candidates(folder: Path, dtypes: list[str]) -> Iterator[tuple[str, str, str, Path]]:
    """(name, engine, dtype, file) of what can run; says what cannot and why."""
    weights = folder / "model.safetensors"
    wanted = [(f"lfm-engine {dtype}", "lfm-engine", dtype, weights) for dtype in dtypes]
    wanted += [(f"transformers {d}", "transformers", d, weights) for d in dtypes if d != "int8"]
    for kind, dtype in (("BF16", "bfloat16"), ("Q8_0", "int8")):
        if dtype in dtypes:
            path = folder / f"model-{kind}.gguf"
            wanted.append((f"llama.cpp {kind}", "llama.cpp", dtype, path))
    for name, engine, dtype, path in wanted:
        if not find_spec(MODULES[engine]):
            print(f"skipped: {name} (the package {MODULES[engine]} is not installed)")
        elif not path.is_file():
            print(f"skipped: {name} ({path} is missing; make_model.py --gguf makes it)")
        else:
            yield name, engine, dtype, path


def run_group(
    folder: Path, dtypes: list[str], threads: int, options: argparse.Namespace
) -> tuple[Worker, list[Worker]]:
    """All engines with this number of threads, taking turns; the machine's measurements first."""
    with open_checkpoint(folder) as checkpoint:
        shapes = gemm_shapes(checkpoint.config)
    common = {"threads": threads, "prompt": options.prompt, "new": options.new, "shapes": shapes}
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(start("machine", Spec("machine", "", "", **common)))
        workers = []
        for name, engine, dtype, path in candidates(folder, dtypes):
            place = str(path if engine == "llama.cpp" else folder)
            spec = Spec(engine, dtype, place, **common)
            worker = stack.enter_context(start(name, spec))
            worker.loaded["file_bytes"] = path.stat().st_size
            worker.loaded["warm_up"] = worker.round()
            workers.append(worker)
        for _ in range(options.rounds):
            for worker in workers:
                # Beside each: the neighbours of a virtual machine come and go within a round.
                limits = machine.round()
                machine.rounds.append(limits)
                worker.rounds.append({**worker.round(), **limits})
    return machine, workers


def spread(values: list[float], digits: int = 0) -> str:
    """Median (smallest-largest)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def summarize(worker: Worker, config: ModelConfig) -> dict[str, Any]:
    """Figures of one worker: a list per round, or a single number."""
    spec, rounds = worker.spec, worker.rounds
    matrices = sum(k * n * count for k, n, count in spec.shapes)
    head = config.vocab_size * config.hidden_size
    weight_bytes = (matrices + head) * BYTES_PER_WEIGHT[spec.dtype]
    flops = 2.0 * (matrices * spec.prompt + head)
    gemm = "gemm_float32" if spec.dtype == "float32" else "gemm_bfloat16"
    decode = [spec.new / r["rest_s"] for r in rounds]
    last = rounds[-1]["memory"]
    return {
        "name": worker.name,
        "version": worker.loaded["version"],
        "threads": spec.threads,
        "prefill": [spec.prompt / r["first_s"] for r in rounds],
        "decode": decode,
        "of_bandwidth": [
            rate * weight_bytes / r["bandwidth"] for rate, r in zip(decode, rounds, strict=True)
        ],
        "of_gemm": [flops / r["first_s"] / r[gemm] if r[gemm] else 0.0 for r in rounds],
        "load_s": worker.loaded["load_s"],
        "load_and_first_s": worker.loaded["load_s"] + worker.loaded["warm_up"]["first_s"],
        "private": last["private"],
        "file": last["file"],
        "peak": last["peak"],
        "before": worker.loaded["before"],
        "file_bytes": worker.loaded["file_bytes"],
    }


def speed_table(threads: int, machine: Worker, figures: list[dict[str, Any]]) -> str:
    """Prefill and decode with their limits."""
    spec = machine.spec
    limits = ", ".join(
        f"{label} {spread([r[key] / scale for r in machine.rounds], digits)}"
        for label, key, scale, digits in (
            ("read bandwidth GB/s", "bandwidth", 1e9, 1),
            ("GEMM GFLOP/s bfloat16", "gemm_bfloat16", 1e9, 0),
            ("float32", "gemm_float32", 1e9, 0),
        )
    )
    rows = [
        [
            f["name"],
            spread(f["prefill"]),
            f"{statistics.median(f['of_gemm']):.0%}",
            spread(f["decode"], 1),
            f"{statistics.median(f['of_bandwidth']):.0%}",
        ]
        for f in figures
    ]
    title = (
        f"{threads} thread{'s' * (threads > 1)}: prompt {spec.prompt}, then {spec.new} tokens; "
        f"tokens/s\n{limits}"
    )
    return format_table(title, ["", "prefill", "of GEMM", "decode", "of bandwidth"], rows)


def peer_table(figures: list[dict[str, Any]]) -> str:
    """Each of our rows over each peer's, round by round."""

    def ratio(ours: dict[str, Any], peer: dict[str, Any], key: str) -> str:
        pairs = zip(ours[key], peer[key], strict=True)
        return spread([a / b for a, b in pairs], 2)

    rows = [
        [f"{ours['name']} / {peer['name']}", *(ratio(ours, peer, k) for k in ("prefill", "decode"))]
        for ours in figures
        if ours["name"].startswith("lfm-engine")
        for peer in figures
        if not peer["name"].startswith("lfm-engine")
    ]
    return format_table("Ratios to the peers", ["", "prefill", "decode"], rows)


def memory_table(figures: list[dict[str, Any]]) -> str:
    """Load time and memory."""

    def mb(value: float) -> str:
        return f"{value / 1e6:.0f}"

    rows = []
    for f in figures:
        total = f["private"] + f["file"]
        before = f["before"]["private"] + f["before"]["file"]
        rows.append(
            [
                f["name"],
                f"{f['load_s']:.2f}",
                f"{f['load_and_first_s']:.2f}",
                mb(f["file_bytes"]),
                mb(f["private"]),
                mb(f["file"]),
                mb(total),
                f"{total / f['file_bytes']:.2f}",
                f"{(total - before) / f['file_bytes']:.2f}",
                mb(f["peak"]),
            ]
        )
    header = ["", "load s", "+ 1st token", "file MB", "private", "file-backed", "total"]
    header += ["/ file", "model only / file", "peak"]
    return format_table("Load time and memory (MB)", header, rows)


def processor() -> str:
    """The CPU's name, and what the engine uses of it."""
    name = platform.processor()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {_core.cpu_info()['isa']}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="from make_model.py")
    parser.add_argument("--threads", default="1,2", help="one table for each; default 1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--float32", action="store_true", help="measure float32 too")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure there")
    options = parser.parse_args()
    if options.rounds < 1 or options.new < 1 or options.prompt < 1:
        parser.error("--rounds, --prompt and --new must be at least 1")
    dtypes = ["bfloat16", "int8", *(["float32"] if options.float32 else [])]
    with open_checkpoint(options.folder) as checkpoint:
        config = checkpoint.config
    print(processor())
    report: dict[str, Any] = {"processor": processor(), "groups": []}
    for threads in (int(text) for text in options.threads.split(",")):
        machine, workers = run_group(options.folder, dtypes, threads, options)
        figures = [summarize(worker, config) for worker in workers]
        print(speed_table(threads, machine, figures))
        if len({f["name"].split()[0] for f in figures}) > 1:
            print(peer_table(figures))
        print(memory_table(figures))
        report["groups"].append({"threads": threads, "machine": machine.rounds, "engines": figures})
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
