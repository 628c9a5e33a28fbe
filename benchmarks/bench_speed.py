"""Speed, load time and memory of lfm-engine beside its peers: one command, one table each.

    PYTHONPATH=python python benchmarks/bench_speed.py FOLDER [--quick] [--threads 1,2] [--json OUT]

FOLDER comes from make_model.py, which also makes the files for the peers that are installed
(--gguf, --pack; exports for onnxruntime-genai and OpenVINO: see make_model.py's text). What is not
installed, or refuses its file, is skipped with a line that says why. `--python llama.cpp=PATH` runs
an engine with another interpreter, where its libraries are.

Every engine runs in a process of its own, with the same weights, prompts and threads. The processes
take turns, round by round, each beside measurements of the machine's read bandwidth and GEMM rate,
so that a change of the machine's speed touches all alike. Figures are medians; the range of the
rounds is in parentheses. One run of each task before the first round is not counted.

- prefill: prompt tokens over the time until the first new token is known;
- decode: tokens of all sequences over the time of the steps, after contexts of that many tokens;
- of bandwidth: bytes of weights and K/V that a step reads, over the read bandwidth just measured;
- of GEMM: FLOPs of the matrices (the head for one token), over oneDNN's own rate for the model's
  shapes in bfloat16, and in int8 for integer weights where the core measures it;
- load: in a fresh process, libraries imported, the file in the page cache;
- memory: after 2,040 tokens of context; "added" is private memory on top of what the process had
  before the model; the total includes Python, and lfm-engine's includes its tokenizer.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench_report import Model, Result, bars, load_table, speed_tables
from bench_worker import Spec
from lfm_engine import _core
from lfm_engine.checkpoint import open_checkpoint
from machine_lock import MachineLock

WORKER = Path(__file__).with_name("bench_worker.py")
FULL = "prefill:128,prefill:512,prefill:4096,decode:128,decode:4096,decode:32000"
FULL += ",decode:8x128,decode:32x128"
QUICK = "prefill:512,decode:128,decode:32x128"
ENGINES = "lfm-engine,transformers,llama.cpp,onnxruntime-genai,openvino"
SLACK = 8  # tokens of a context beyond what is used


@dataclass(frozen=True)
class Task:
    """What one timing covers: `batch` sequences of `depth` tokens."""

    kind: str
    batch: int
    depth: int

    @staticmethod
    def parse(text: str) -> Task:
        """From "prefill:512", "decode:4096" or "decode:32x128"."""
        kind, _, size = text.partition(":")
        batch, _, depth = size.rpartition("x")
        if kind not in ("prefill", "decode") or not depth.isdigit():
            raise ValueError(f"task {text!r}: expected prefill:DEPTH or decode:[BATCHx]DEPTH")
        return Task(kind, int(batch or 1), int(depth))


@dataclass(frozen=True)
class Candidate:
    """An engine with a model file.

    Attributes:
        weights: "bfloat16", "int8" or "int4": what it is compared with.
        file: must exist.
        max_depth: longer contexts are left out (they would take hours).
        min_depth: shorter ones too (a variant that differs in long contexts only).
    """

    name: str
    engine: str
    weights: str
    file: Path
    place: Path
    dtype: str = ""
    kv_dtype: str = ""
    max_depth: int = 1 << 30
    min_depth: int = 0

    def takes(self, task: Task) -> bool:
        """Whether the task is for it."""
        return self.min_depth <= task.depth <= self.max_depth


@dataclass
class Worker:
    """A running bench_worker.py."""

    process: subprocess.Popen[str]
    loaded: dict[str, Any] = field(default_factory=dict)

    def read(self) -> dict[str, Any]:
        """The next answer; RuntimeError if it is an error."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process died"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, task: str, **request: Any) -> dict[str, Any]:
        """One request and its answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"task": task, **request}) + "\n")
            self.process.stdin.flush()
        return self.read()


@contextlib.contextmanager
def start(spec: Spec, interpreter: str) -> Iterator[Worker]:
    """A worker whose model is loaded; ends its process."""
    process = subprocess.Popen(
        [interpreter, str(WORKER), spec.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        worker = Worker(process)
        worker.loaded = worker.read()
        yield worker
    finally:
        process.kill()
        process.wait()


def candidates(folder: Path, dtypes: list[str], engines: list[str]) -> list[Candidate]:
    """All that could run."""
    weights = folder / "model.safetensors"
    found: list[Candidate] = []
    for d in dtypes:
        found.append(Candidate(f"lfm-engine {d}", "lfm-engine", d, weights, folder, d))
        if d != "bfloat16":
            name = f"lfm-engine {d}, kv int8"
            found.append(
                Candidate(name, "lfm-engine", d, weights, folder, d, "int8", min_depth=4096)
            )
    if "bfloat16" in dtypes:
        kind = "bfloat16"
        found.append(
            Candidate(
                "transformers bfloat16", "transformers", kind, weights, folder, kind, "", 4096
            )
        )
    for kind, d in (("BF16", "bfloat16"), ("Q8_0", "int8"), ("Q4_0", "int4"), ("Q4_K_M", "int4")):
        path = folder / f"model-{kind}.gguf"
        found.append(Candidate(f"llama.cpp {kind}", "llama.cpp", d, path, path))
    for engine, d, file in (
        ("onnxruntime-genai", "int4", "model.onnx"),
        ("openvino", "int8", "openvino_model.xml"),
        ("openvino", "int4", "openvino_model.xml"),
    ):
        place = folder / f"{engine.split('-')[0]}-{d}"
        found.append(Candidate(f"{engine} {d}", engine, d, place / file, place, max_depth=4096))
    return [c for c in found if c.engine in engines and c.weights in dtypes]


def packed(folder: Path, dtypes: list[str]) -> list[Candidate]:
    """lfm-engine's packed files: as fast as the others, so measured for load and memory only."""
    places = ((d, folder / f"model-{d}.lfm") for d in dtypes)
    return [Candidate(f"lfm-engine {d}, packed", "lfm-engine", d, p, p) for d, p in places]


class Bench:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.folder
        self._lock = MachineLock(options.lock)
        self._python: dict[str, str] = dict(pair.split("=", 1) for pair in options.python)
        with open_checkpoint(self._folder) as checkpoint:
            self.model = Model.from_config(checkpoint.config)

    def _start(self, candidate: Candidate, threads: int, tokenizer: bool = False) -> Any:
        place = str(candidate.place)
        source = str(self._folder) if tokenizer and candidate.engine == "lfm-engine" else ""
        spec = Spec(candidate.engine, place, candidate.dtype, candidate.kv_dtype, threads, source)
        return start(spec, self._python.get(candidate.engine, sys.executable))

    def _usable(self, found: list[Candidate]) -> Iterator[Candidate]:
        for candidate in found:
            if candidate.file.is_file():
                yield candidate
            else:
                print(f"skipped: {candidate.name} ({candidate.file} is missing)")

    def speed(self, threads: int, found: list[Candidate], tasks: list[Task]) -> dict[str, Any]:
        """All engines with this number of threads, taking turns."""
        with contextlib.ExitStack() as stack:
            machine = stack.enter_context(
                start(Spec("machine", "", "", "", threads), sys.executable)
            )
            workers: dict[Candidate, Worker] = {}
            for candidate in self._usable(found):
                try:
                    with self._lock:
                        workers[candidate] = stack.enter_context(self._start(candidate, threads))
                except RuntimeError as error:
                    print(f"skipped: {candidate.name} ({error})")
            engines = [
                {"name": c.name, "weights": c.weights, "kv_dtype": c.kv_dtype, **w.loaded}
                for c, w in workers.items()
            ]
            group: dict[str, Any] = {"threads": threads, "engines": engines, "results": []}
            for task in tasks:
                results = self._task(task, machine, workers)
                print(speed_tables(self.model, {**group, "results": results}), flush=True)
                group["results"] += results
        return group

    def _task(self, task: Task, machine: Worker, workers: dict[Candidate, Worker]) -> list[Result]:
        rounds, new = self._options.rounds, self._options.new
        if task.kind == "prefill" and task.depth > 1024:
            rounds = min(rounds, 3)
        request: dict[str, Any] = {"batch": task.batch, "depth": task.depth}
        request["capacity"] = task.depth + SLACK
        rows = min(task.depth, 512)
        if task.kind == "decode":
            request |= {"capacity": task.depth + new * (rounds + 1) + SLACK, "new": new}
            rows = 0
        taking: dict[Candidate, Result] = {}
        for candidate in filter(lambda c: c.takes(task), workers):
            with self._lock:
                try:
                    workers[candidate].ask(task.kind, **request)
                    taking[candidate] = Result(candidate.name, task.kind, task.batch, task.depth)
                except RuntimeError as error:
                    print(f"skipped: {candidate.name}, {task} ({error})")
        for index in range(rounds):
            order = list(taking)
            order = order[index % len(order) :] + order[: index % len(order)] if order else []
            for candidate in order:
                with self._lock:
                    limits = machine.ask("limits", rows=rows, shapes=self.model.shapes)
                    answer = workers[candidate].ask(task.kind, **request)
                taking[candidate].add(answer, limits)
        for candidate in taking:
            workers[candidate].ask("drop")
        self._lock.release()
        return list(taking.values())

    def loads(self, threads: int, found: list[Candidate]) -> list[dict[str, Any]]:
        """Load time and memory, each time in a fresh process."""
        figures = []
        for candidate in self._usable([c for c in found if not c.kv_dtype]):
            runs = []
            try:
                for _ in range(self._options.loads):
                    with self._lock, self._start(candidate, threads, True) as worker:
                        first = worker.ask("first", depth=16, capacity=2048)["seconds"]
                        worker.ask("drop")
                        worker.ask("decode", batch=1, depth=1976, capacity=2048, new=64)
                        runs.append({**worker.loaded, "first_s": first, **worker.ask("memory")})
            except RuntimeError as error:
                print(f"skipped: load of {candidate.name} ({error})")
                continue
            median = {
                key: statistics.median(run[key] for run in runs)
                for key in ("load_s", "first_s", "private", "file", "peak")
            }
            before = statistics.median(run["before"]["private"] for run in runs)
            file_bytes = sum(p.stat().st_size for p in _files(candidate))
            figures.append(
                {"name": candidate.name, "file_bytes": file_bytes, "before": before, **median}
            )
        return figures


def _files(candidate: Candidate) -> list[Path]:
    if candidate.engine in ("onnxruntime-genai", "openvino"):
        return [p for p in candidate.place.iterdir() if p.suffix in (".data", ".bin", ".onnx")]
    return [candidate.file]


def processor() -> str:
    """The CPU's name, and what the engine uses of it."""
    name = platform.processor()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {_core.cpu_info()['isa']}"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="from make_model.py")
    parser.add_argument("--quick", action="store_true", help=f"tasks {QUICK}, 3 rounds, 1 load")
    parser.add_argument("--threads", default="1,2", help="one set of tables each; default 1,2")
    parser.add_argument("--engines", default=ENGINES, help="default: all")
    parser.add_argument("--dtypes", default="bfloat16,int8,int4")
    parser.add_argument("--tasks", help=f"default {FULL}; a batch is written decode:32x128")
    parser.add_argument("--rounds", type=int, help="default 5; at most 3 for long prompts")
    parser.add_argument("--new", type=int, default=32, help="tokens decoded in a round")
    parser.add_argument("--loads", type=int, help="fresh processes for load and memory; default 3")
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=INTERPRETER")
    parser.add_argument("--lock", type=Path, help="hold this lock file during each measurement")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure there")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 3 if options.quick else 5
    if options.loads is None:
        options.loads = 1 if options.quick else 3
    if options.rounds < 1 or options.new < 1 or options.loads < 0:
        parser.error("--rounds and --new must be at least 1, --loads at least 0")
    try:
        texts = (options.tasks or (QUICK if options.quick else FULL)).split(",")
        options.tasks = [Task.parse(text) for text in texts]
    except ValueError as error:
        parser.error(str(error))
    return options


def main() -> int:
    """Runs it."""
    options = parse_arguments()
    bench = Bench(options)
    dtypes, engines = options.dtypes.split(","), options.engines.split(",")
    found = candidates(options.folder, dtypes, engines)
    report: dict[str, Any] = {"processor": processor(), "model": asdict(bench.model)}
    report |= {"groups": [], "loads": []}
    print(report["processor"])
    threads = [int(text) for text in options.threads.split(",")]
    for count in threads:
        group = bench.speed(count, found, options.tasks)
        report["groups"].append({**group, "results": [asdict(r) for r in group["results"]]})
        print(bars(bench.model, group))
        _write(options.json, report)
    if options.loads:
        ours = packed(options.folder, dtypes) if "lfm-engine" in engines else []
        report["loads"] = bench.loads(threads[-1], found + ours)
        print(load_table(report["loads"], threads[-1]))
        _write(options.json, report)
    return 0


def _write(path: Path | None, report: dict[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
