"""The project's aims for speed, load time and memory, with what a run of bench_speed.py measured.

Those without a measurement are left out. Ratios are taken round by round, against the fastest peer
that the aim names. A ratio that is missed has beside it what meeting it would take: the part of the
machine's own limit, measured in the same rounds, that our bytes or FLOPs would need. Above 100% no
program can do it with these weights.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bench_results import (
    OURS,
    Model,
    Result,
    ceil,
    label,
    of_bandwidth,
    of_gemm,
    percent,
    plural,
    spread,
)
from tables import format_table

Key = tuple[str, int, int]  # kind, batch, depth

PEERS = (("int4", "llama.cpp Q4_0"), ("int8", "llama.cpp Q8_0"), ("bfloat16", "llama.cpp BF16"))
# Decode, batch 1: over the peer, of read bandwidth.
DECODE = {"int4": (1.5, 0.75), "int8": (1.4, 0.8), "bfloat16": (1.0, 0.9)}
# Of lfm-engine int4 from a packed file: memory (bytes) and time (seconds).
LOAD_BARS = {"added MB": 56e6, "total MB": 340e6, "load ms": 0.050, "load + first ms": 0.150}


class _Bars:
    """Looks up results and notes how each compares with its bar."""

    def __init__(self, model: Model, group: dict[str, Any]) -> None:
        self._model = model
        self._engines = {engine["name"]: engine for engine in group["engines"]}
        self._results = {(r.engine, r.kind, r.batch, r.depth): r for r in group["results"]}
        self.rows: list[list[str]] = []

    def ratio(self, ours: str, peers: str, task: Key, bar: float) -> None:
        """Ours over the fastest peer whose name starts with `peers`."""
        mine = self._results.get((f"{OURS} {ours}", *task))
        others = [
            result
            for (name, *rest), result in self._results.items()
            if tuple(rest) == task and not name.startswith(OURS) and name.startswith(peers)
        ]
        if mine and others:
            best = max(others, key=lambda r: r.rate)
            takes = self._takes(mine, best, bar)
            self._row(task, f"{ours} / {best.engine}", _divide(mine, best), bar, "x", takes)

    def _takes(self, mine: Result, best: Result, bar: float) -> str:
        """What `bar` times the peer's speed is of the machine's limit."""
        rates = [bar * rate for rate in best.rates]
        count = min(len(rates), len(mine.limits))
        aim = replace(mine, rates=rates[:count], limits=mine.limits[:count])
        engine = self._engines[mine.engine]
        if mine.kind == "decode" and mine.batch == 1:
            return f"{percent(of_bandwidth(self._model, engine, aim))} of read bandwidth"
        dtype = "bfloat16" if engine["weights"] == "bfloat16" else "int8"
        part = percent(of_gemm(self._model, aim, dtype))
        return f"{part} of oneDNN's {dtype} GEMM" if part else ""

    def versus(self, ours: str, other: str, task: Key, bar: float) -> None:
        """Ours over another of ours."""
        mine = self._results.get((f"{OURS} {ours}", *task))
        base = self._results.get((f"{OURS} {other}", *task))
        if mine and base:
            self._row(task, f"{ours} / {other}", _divide(mine, base), bar, "x")

    def limit(
        self,
        ours: str,
        task: Key,
        bar: float,
        fraction: Callable[[Result], list[float]] | None = None,
        what: str = "read bandwidth",
    ) -> None:
        """Ours as a part of a limit of the machine."""
        mine = self._results.get((f"{OURS} {ours}", *task))
        if mine:
            engine = self._engines[mine.engine]
            values = fraction(mine) if fraction else of_bandwidth(self._model, engine, mine)
            if values:
                self._row(task, f"{ours} of {what}", values, bar, "")

    def _row(
        self, task: Key, text: str, values: list[float], bar: float, unit: str, takes: str = ""
    ) -> None:
        met = statistics.median(values) >= bar
        row = [label(*task), text, spread(values, 2), f"{bar:g}{unit}", "met" if met else "MISSED"]
        self.rows.append([*row, "" if met else takes])


def _divide(mine: Result, other: Result) -> list[float]:
    """Round by round; a slow engine may have had fewer rounds."""
    return [a / b for a, b in zip(mine.rates, other.rates, strict=False)]


def speed_bars(model: Model, group: dict[str, Any]) -> str:
    """The aims for speed with one number of threads; group: as of bench_speed.Bench.speed."""
    found = _Bars(model, group)
    decode, deep = ("decode", 1, 128), ("decode", 1, 32000)
    for ours, peer in PEERS:
        found.ratio(ours, peer, decode, DECODE[ours][0])
        found.limit(ours, decode, DECODE[ours][1])
    prefill = ("prefill", 1, 512)
    for ours in ("int4", "int8"):
        found.ratio(ours, "", prefill, 2.0)
    found.ratio("bfloat16", "transformers", prefill, 1.3)
    gemm = "oneDNN's bf16 GEMM"
    found.limit("bfloat16", prefill, 0.8, lambda r: of_gemm(model, r, "bfloat16"), gemm)
    for ours, peer in PEERS:
        found.ratio(ours, peer, ("prefill", 1, 4096), 2.5)
    for ours, peer in PEERS:
        found.ratio(ours, peer, deep, 3.5)
        found.limit(ours, deep, 0.7)
    found.ratio("int4, kv int8", "llama.cpp Q4_0", deep, 3.5)
    found.versus("int4, kv int8", "int4", deep, 1.0)
    for ours, peer in PEERS:
        found.ratio(ours, peer, ("decode", 32, 128), 3.0)
    header = ["", "", "measured", "at least", "", "that would take"]
    title = f"Bars, {plural(group['threads'])}: median (range over rounds), rounded down"
    return format_table(title, header, found.rows) if found.rows else ""


def load_columns(figures: dict[str, Any]) -> dict[str, float]:
    """Seconds and bytes of one file's loading, by column."""
    return {
        "load ms": figures["load_s"],
        "load + first ms": figures["load_s"] + figures["first_s"],
        "file MB": figures["file_bytes"],
        "private MB": figures["private"],
        "file-backed MB": figures["file"],
        "total MB": figures["private"] + figures["file"],
        "added MB": figures["private"] - figures["before"],
        "peak MB": figures["peak"],
    }


def show(column: str, value: float) -> str:
    """In the unit that ends the column's name, rounded up: less is better."""
    return ceil(value * (1e3 if column.endswith("ms") else 1e-6))


def load_bars(loads: list[dict[str, Any]]) -> str:
    """The aims for the packed int4 file."""
    text = ""
    for figures in loads:
        if figures["name"] == f"{OURS} int4, packed":
            values = load_columns(figures)
            rows = [
                [k, show(k, values[k]), show(k, bar), "met" if values[k] <= bar else "MISSED"]
                for k, bar in LOAD_BARS.items()
            ]
            title = f"Bars of {figures['name']}"
            text += format_table(title, ["", "measured", "at most", ""], rows)
    return text
