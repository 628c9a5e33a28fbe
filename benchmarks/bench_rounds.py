"""Takes engines through a task of bench_speed.py, in turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench_candidates import Candidate, Task
from bench_results import Model, Result
from bench_worker import KEPT, Spec
from machine_lock import MachineLock

WORKER = Path(__file__).with_name("bench_worker.py")
# Tokens of a context beyond what is used: the first sequences of a batch decode while lfm-engine's
# scheduler still fills the last.
SLACK = 64
SLICE_S = 15.0  # of filling a context until the lock may go to others


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

    def send(self, task: str, **request: Any) -> None:
        """One request; `read` must follow."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"task": task, **request}) + "\n")
            self.process.stdin.flush()

    def ask(self, task: str, **request: Any) -> dict[str, Any]:
        """One request and its answer."""
        self.send(task, **request)
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


@dataclass(frozen=True)
class Limits:
    """How much is measured.

    Attributes:
        rounds, new: rounds of a task, and tokens that each decodes.
        budget: seconds of a task after which an engine gets no further round of it.
        fill_budget: seconds that filling a context may take.
    """

    rounds: int
    new: int
    budget: float
    fill_budget: float


class Rounds:
    """One task for engines with the same number of threads."""

    def __init__(
        self,
        limits: Limits,
        lock: MachineLock,
        model: Model,
        threads: int,
        machine: Worker,
        workers: dict[Candidate, Worker],
        note: Callable[[Candidate, str, object], None],
    ) -> None:
        self._limits, self._lock, self._model = limits, lock, model
        self._machine, self._workers, self._note = machine, dict(workers), note
        self._abreast = max(1, len(os.sched_getaffinity(0)) // threads)

    def run(self, task: Task) -> list[Result]:
        """Every engine's figures, one by one as they finish their turns."""
        self._task = task
        # Fewer steps where each has many tokens; a batch's context must not grow much either.
        new = max(4, self._limits.new // (1 if task.batch == 1 else 4))
        self._request: dict[str, Any] = {"batch": task.batch, "depth": task.depth}
        self._request["capacity"] = (
            task.depth + self._limits.new * (self._limits.rounds + 2) + SLACK
        )
        results = {c: Result(c.name, task.kind, task.batch, task.depth) for c in self._workers}
        fills: list[Result] = []
        if task.kind == "decode":
            if task.batch * task.depth > KEPT:
                fills = self._fill()
            self._request["new"] = new
        if task.kind == "decode" or task.depth <= KEPT:
            self._together(list(self._workers), task.kind, self._request)  # not counted
        seconds: dict[Candidate, float] = {}
        for index in range(self._limits.rounds):
            order = [c for c in self._workers if seconds.get(c, 0.0) < self._limits.budget]
            first = index % len(order) if order else 0
            limits: dict[str, float] = {}
            for candidate in order[first:] + order[:first]:
                ours = candidate.engine == "lfm-engine"
                with self._lock:
                    if not limits or ours:
                        limits = self._measure_machine(task.kind)
                    answer = self._ask(candidate, task.kind, self._request)
                    if ours:  # the machine's speed drifts: before and after
                        after = self._measure_machine(task.kind)
                        limits = {key: (limits[key] + after[key]) / 2 for key in limits}
                if answer:
                    results[candidate].add(answer, limits)
                    seconds[candidate] = seconds.get(candidate, 0.0) + answer["seconds"]
        return fills + [r for r in results.values() if r.rates]

    def _measure_machine(self, kind: str) -> dict[str, float]:
        many = kind == "prefill" or self._task.batch > 1  # arithmetic may be the limit
        rows = min(self._task.depth * self._task.batch, 512) if many else 0
        return self._machine.ask("limits", rows=rows, shapes=self._model.shapes)

    def _ask(self, candidate: Candidate, task: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer; {} and the engine is out if there is none."""
        return self._together([candidate], task, request).get(candidate, {})

    def _together(
        self, candidates: list[Candidate], task: str, request: dict[str, Any]
    ) -> dict[Candidate, dict[str, Any]]:
        """Answers of engines that compute at the same time, as many as there are cores for."""
        answers = {}
        for start_at in range(0, len(candidates), self._abreast):
            group = candidates[start_at : start_at + self._abreast]
            with self._lock:
                for candidate in group:
                    self._workers[candidate].send(task, **request)
                for candidate in group:
                    try:
                        answers[candidate] = self._workers[candidate].read()
                    except RuntimeError as error:
                        self._drop(candidate, error)
        return answers

    def _drop(self, candidate: Candidate, reason: object) -> None:
        self._note(candidate, str(self._task), reason)
        del self._workers[candidate]

    def _fill(self) -> list[Result]:
        """Makes the contexts, in slices; prefill figures of those that had all cores."""
        task, total = self._task, self._task.batch * self._task.depth
        results = []
        waiting = list(self._workers)
        for start_at in range(0, len(waiting), self._abreast):
            pending = waiting[start_at : start_at + self._abreast]
            alone = len(pending) == 1 and self._abreast == 1
            while pending:
                answers = self._together(pending, "fill", {**self._request, "slice_s": SLICE_S})
                pending = [c for c, answer in answers.items() if not answer["done"]]
                for candidate, answer in answers.items():
                    spent, taken = answer["seconds"], answer["tokens"]
                    if answer["done"]:
                        if alone and taken == total and task.depth > 4096:
                            result = Result(candidate.name, "prefill", task.batch, task.depth)
                            result.add(answer, self._measure_machine("prefill"))
                            results.append(result)
                    elif spent * total / max(taken, 1) > self._limits.fill_budget:
                        pending.remove(candidate)
                        self._drop(
                            candidate,
                            f"a context of {total} tokens would take more than "
                            f"{self._limits.fill_budget:.0f} s: {taken} took {spent:.0f} s",
                        )
        return results
