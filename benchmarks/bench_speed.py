"""Speed, load time and memory of lfm-engine beside its peers: one command.

    PYTHONPATH=python python benchmarks/bench_speed.py FOLDER [--quick] [--threads 2,1] [--json OUT]

FOLDER comes from make_model.py, which also makes the files for the peers that are installed
(--gguf, --pack; exports for onnxruntime-genai and OpenVINO: see make_model.py's text). What is not
installed, or refuses its file, is listed as not run, with the reason. `--python llama.cpp=PATH`
runs an engine with another interpreter, where its libraries are. bench_report.py makes the README's
tables and the list of bars from OUT, roofline.py a picture.

Every engine runs in a process of its own, with the same weights, prompts and threads. The processes
take turns, round by round, each turn of lfm-engine beside measurements of the machine's read
bandwidth and GEMM rate, so that a change of the machine's speed touches all alike. Figures are
medians; the range of the rounds is in parentheses. One run of each short task before the first
round is not counted. An engine gets no further round of a task that took it --budget seconds.

- prefill: prompt tokens over the time until the first new token is known;
- decode: tokens of all sequences over the time of the steps, after contexts of that many tokens.
  Long contexts are filled once, on all cores together; an engine that would need more than
  --fill-budget seconds for that is not run. A filling of 32,000 tokens that had the machine for
  itself counts as a prefill too. --contexts keeps llama.cpp's, which take it minutes, for a later
  run: the speed does not depend on their values;
- of bandwidth: bytes of weights and K/V that a step reads, over the read bandwidth just measured;
- of GEMM: FLOPs of the matrices (the head for one token), over oneDNN's own rate for the model's
  shapes in bfloat16, and in int8;
- load: in a fresh process, libraries imported, the file in the page cache;
- memory: after 2,040 tokens of context; "added" is private memory on top of what the process had
  before the model; the total includes Python, and lfm-engine's includes its tokenizer.

lfm-engine's int8 and int4 read FOLDER/model-<dtype>.lfm where it exists (loading has a line for
each file); without it, int4 reads model-Q4_0.gguf.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_bars import speed_bars
from bench_candidates import (
    ENGINES,
    Candidate,
    Task,
    candidates,
    files,
    for_loads,
    for_speed,
    settle,
)
from bench_report import load_table, speed_tables
from bench_results import Model
from bench_rounds import Limits, Rounds, Worker, start
from bench_worker import Spec
from lfm_engine import _core
from lfm_engine.checkpoint import open_checkpoint
from machine_lock import MachineLock

# prefill:4096 leaves the contexts that decode:4096 goes on with.
FULL = "prefill:128,prefill:512,prefill:4096,decode:4096,decode:128,decode:8x128,decode:32x128"
DEEP = "decode:32000"  # by default only with the most threads: filling takes minutes
QUICK = "prefill:512,decode:128,decode:32x128"


class Bench:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, contexts: Path) -> None:
        self._options = options
        self._folder: Path = options.folder
        self._contexts = contexts
        self._lock = MachineLock(options.lock, options.lock_slice)
        self._python: dict[str, str] = dict(pair.split("=", 1) for pair in options.python)
        self.not_run: list[dict[str, Any]] = []
        with open_checkpoint(self._folder) as checkpoint:
            self.model = Model.from_config(checkpoint.config)

    def _note(self, threads: int, candidate: Candidate, what: str, reason: object) -> None:
        entry = {"threads": threads, "engine": candidate.name, "what": what, "reason": str(reason)}
        self.not_run.append(entry)
        print(f"not run: {candidate.name}, {what}, threads {threads}: {reason}", flush=True)

    def _start(self, candidate: Candidate, threads: int, tokenizer: bool = False) -> Any:
        source = str(self._folder) if tokenizer and candidate.engine == "lfm-engine" else ""
        spec = Spec(
            candidate.engine,
            str(candidate.place),
            candidate.dtype,
            candidate.kv_dtype,
            threads,
            source,
            str(self._contexts),
        )
        return start(spec, self._python.get(candidate.engine, sys.executable))

    def _usable(self, threads: int, found: list[Candidate]) -> Iterator[Candidate]:
        for candidate in found:
            if candidate.file.is_file():
                yield candidate
            else:
                self._note(threads, candidate, "all", f"{candidate.file.name} is missing")

    def speed(self, threads: int, found: list[Candidate], tasks: list[Task]) -> dict[str, Any]:
        """All engines with this number of threads, taking turns."""
        options = self._options
        limits = Limits(options.rounds, options.new, options.budget, options.fill_budget)
        with contextlib.ExitStack() as stack:
            machine_spec = Spec("machine", "", "", "", threads)
            machine = stack.enter_context(start(machine_spec, sys.executable))
            workers: dict[Candidate, Worker] = {}
            wanted = [c for c in found if any(c.takes(task) for task in tasks)]
            for candidate in self._usable(threads, wanted):
                try:
                    with self._lock:
                        workers[candidate] = stack.enter_context(self._start(candidate, threads))
                except RuntimeError as error:
                    self._note(threads, candidate, "all", error)
            engines = [
                {"name": c.name, "weights": c.weights, "kv_dtype": c.kv_dtype, **w.loaded}
                for c, w in workers.items()
            ]
            group: dict[str, Any] = {"threads": threads, "engines": engines, "results": []}
            for task, following in zip(tasks, [*tasks[1:], None], strict=True):
                begin = time.monotonic()
                rounds = Rounds(
                    limits,
                    self._lock,
                    self.model,
                    threads,
                    machine,
                    {c: w for c, w in workers.items() if c.takes(task)},
                    lambda candidate, what, why: self._note(threads, candidate, what, why),
                )
                results = rounds.run(task)
                print(speed_tables(self.model, {**group, "results": results}))
                print(f"({task}: {time.monotonic() - begin:.0f} s)", flush=True)
                group["results"] += results
                if not following or (following.batch, following.depth) != (task.batch, task.depth):
                    for worker in workers.values():
                        with contextlib.suppress(RuntimeError):  # dead: was noted
                            worker.ask("drop")
                self._lock.release()
        return group

    def loads(self, threads: int, found: list[Candidate]) -> list[dict[str, Any]]:
        """Load time and memory, each time in a fresh process."""
        figures = []
        for candidate in self._usable(threads, found):
            runs: list[dict[str, Any]] = []
            memory: dict[str, int] = {}
            try:
                for _ in range(self._options.loads):
                    with self._lock, self._start(candidate, threads, True) as worker:
                        first = worker.ask("first", depth=16, capacity=2048)["seconds"]
                        runs.append({"load_s": worker.loaded["load_s"], "first_s": first})
                        if not memory:
                            worker.ask("drop")
                            worker.ask("decode", batch=1, depth=1976, capacity=2048, new=64)
                            memory = worker.ask("memory")
                            memory["before"] = worker.loaded["before"]["private"]
            except RuntimeError as error:
                self._note(threads, candidate, "load", error)
                continue
            times = {k: statistics.median(run[k] for run in runs) for k in ("load_s", "first_s")}
            size = sum(path.stat().st_size for path in files(candidate))
            figures.append({"name": candidate.name, "file_bytes": size, **times, **memory})
            figures[-1]["runs"] = runs
        return figures


def processor() -> str:
    """The CPU's name, and what the engine uses of it."""
    name = platform.processor()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    info = _core.cpu_info()
    return f"{name}, {info['num_threads']} cores, {info['isa']}"


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="from make_model.py")
    parser.add_argument("--quick", action="store_true", help=f"tasks {QUICK}, 2 rounds, 1 load")
    parser.add_argument("--threads", default="2,1", help="one set of tables each; default 2,1")
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: all")
    parser.add_argument("--dtypes", default="bfloat16,int8,int4")
    parser.add_argument("--tasks", help=f"default {FULL}, and {DEEP} with the most threads")
    parser.add_argument("--rounds", type=int, help="default 4")
    parser.add_argument("--new", type=int, default=32, help="tokens decoded in a round")
    parser.add_argument("--loads", type=int, help="fresh processes for load and memory; default 3")
    parser.add_argument("--budget", type=float, default=15, metavar="SECONDS")
    parser.add_argument("--fill-budget", type=float, default=600, metavar="SECONDS")
    parser.add_argument(
        "--contexts", type=Path, metavar="FOLDER", help="keep llama.cpp's long contexts for later"
    )
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=INTERPRETER")
    parser.add_argument("--lock", type=Path, help="hold this lock file during each measurement")
    parser.add_argument("--lock-slice", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure there")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 2 if options.quick else 4
    if options.loads is None:
        options.loads = 1 if options.quick else 3
    if options.rounds < 1 or options.new < 4 or options.loads < 0:
        parser.error("--rounds must be at least 1, --new 4, --loads 0")
    if options.contexts:
        options.contexts.mkdir(exist_ok=True)
    if any("=" not in pair for pair in options.python):
        parser.error("--python takes ENGINE=INTERPRETER")
    try:
        options.threads = [int(text) for text in options.threads.split(",")]
        default = dict.fromkeys(options.threads, QUICK if options.quick else FULL)
        if not options.quick:
            default[max(options.threads)] += f",{DEEP}"
        options.tasks = {
            threads: [Task.parse(text) for text in (options.tasks or tasks).split(",")]
            for threads, tasks in default.items()
        }
    except ValueError as error:
        parser.error(str(error))
    return options


def main() -> int:
    """Runs it."""
    options = parse_arguments()
    begin = time.monotonic()
    # Beside the report, since /tmp may be memory.
    beside = options.json.resolve().parent if options.json else None
    with tempfile.TemporaryDirectory(prefix="bench-contexts-", dir=beside) as own:
        bench = Bench(options, options.contexts or Path(own))
        found = candidates(options.folder, options.dtypes.split(","), options.engines.split(","))
        report: dict[str, Any] = {"processor": processor(), "model": asdict(bench.model)}
        report |= {"command": sys.argv[1:], "groups": [], "loads": [], "not_run": bench.not_run}
        print(report["processor"], flush=True)
        for path in {c.file for c in for_speed(options.folder, found) if c.file.suffix == ".lfm"}:
            settle(path)
        for threads in options.threads:
            group = bench.speed(threads, for_speed(options.folder, found), options.tasks[threads])
            report["groups"].append({**group, "results": [asdict(r) for r in group["results"]]})
            print(speed_bars(bench.model, group))
            _write(options.json, report)
        if options.loads:
            threads = max(options.threads)
            report["load_threads"] = threads
            report["loads"] = bench.loads(threads, for_loads(options.folder, found))
            print(load_table(report["loads"], threads))
        report["seconds"] = time.monotonic() - begin
        _write(options.json, report)
        print(f"\n{report['seconds'] / 60:.1f} minutes")
    return 0


def _write(path: Path | None, report: dict[str, Any]) -> None:
    if path:
        path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
