"""Tables of bench_speed.py: tokens/s, fractions of the machine's limits, ratios to the peers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lfm_engine.checkpoint import ModelConfig
from tables import format_table

OURS = "lfm-engine"
# Bits of a weight, group scales included: of the matrices, and of the output head.
BITS = {"bfloat16": (16.0, 16.0), "int8": (8.5, 8.5), "int4": (4.5, 8.5)}
KV_BYTES = {"bfloat16": 2.0, "int8": 1.0}  # and int8's scales: KV_SCALE a head
KV_SCALE = 4


@dataclass(frozen=True)
class Model:
    """What the limits need to know of a model.

    Attributes:
        shapes: (K, N, how many) of the matrices between embedding and head, as the engine joins
            them.
        head: weights of the output head.
        kv_heads: K and V heads of all layers together; head_dim: values of each.
    """

    shapes: list[tuple[int, int, int]]
    head: int
    kv_heads: int
    head_dim: int

    @staticmethod
    def from_config(config: ModelConfig) -> Model:
        """Of a checkpoint."""
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
        return Model(
            [shape for shape in shapes if shape[2]],
            config.vocab_size * hidden,
            attention * 2 * config.num_key_value_heads,
            config.head_dim,
        )

    @property
    def matrices(self) -> int:
        """Weights between embedding and head."""
        return sum(k * n * count for k, n, count in self.shapes)

    def weight_bytes(self, engine: dict[str, Any]) -> float:
        """What a step reads: the engine's own count, or less if the type needs less."""
        body, head = BITS[engine["weights"]]
        nominal = (self.matrices * body + self.head * head) / 8
        return min(nominal, float(engine["weight_bytes"]))

    def kv_bytes(self, kv_dtype: str) -> float:
        """K and V of one token."""
        if kv_dtype == "int8":
            return self.kv_heads * (self.head_dim * KV_BYTES["int8"] + KV_SCALE)
        return self.kv_heads * self.head_dim * KV_BYTES["bfloat16"]


@dataclass
class Result:
    """One engine's figures of one task: a value for each round."""

    engine: str
    kind: str
    batch: int
    depth: int
    rates: list[float] = field(default_factory=list)  # tokens/s
    limits: list[dict[str, float]] = field(default_factory=list)

    def add(self, answer: dict[str, Any], limits: dict[str, float]) -> None:
        """One round."""
        self.rates.append(answer["tokens"] / answer["seconds"])
        self.limits.append(limits)

    @property
    def rate(self) -> float:
        """Median."""
        return statistics.median(self.rates)


def of_bandwidth(model: Model, engine: dict[str, Any], result: Result) -> list[float]:
    """Decode: bytes read a second over the read bandwidth, by round."""
    step = model.weight_bytes(engine)
    step += result.batch * result.depth * model.kv_bytes(engine["kv_dtype"])
    rates = zip(result.rates, result.limits, strict=True)
    return [rate / result.batch * step / limits["bandwidth"] for rate, limits in rates]


def of_gemm(model: Model, result: Result, dtype: str) -> list[float]:
    """Prefill: FLOPs of the matrices over oneDNN's rate in `dtype`; empty if not measured."""
    flops = 2.0 * (model.matrices + model.head / result.depth)
    rates = zip(result.rates, result.limits, strict=True)
    key = f"gemm_{dtype}"
    return [rate * flops / limits[key] for rate, limits in rates if key in limits]


def spread(values: Iterable[float], digits: int = 0) -> str:
    """Median (smallest-largest)."""
    found = list(values)
    low, middle, high = min(found), statistics.median(found), max(found)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def percent(values: list[float]) -> str:
    """Median in percent."""
    return f"{statistics.median(values):.0%}" if values else ""


def _label(kind: str, batch: int, depth: int) -> str:
    if kind == "prefill":
        return f"prefill of {depth} tokens"
    return f"decode after {depth} tokens" + (f", batch {batch}" if batch > 1 else "")


def speed_tables(model: Model, group: dict[str, Any]) -> str:
    """A table for each task: tokens/s with spread, fractions of the limits."""
    engines = {engine["name"]: engine for engine in group["engines"]}
    tables = []
    tasks = dict.fromkeys((r.kind, r.batch, r.depth) for r in group["results"])
    for kind, batch, depth in tasks:
        results = [
            r for r in group["results"] if (r.kind, r.batch, r.depth) == (kind, batch, depth)
        ]
        limits = [limit for r in results for limit in r.limits]
        units = {"bandwidth": ("read bandwidth", "GB/s", 1)}
        units |= {f"gemm_{d}": (f"oneDNN {d} GEMM", "GFLOP/s", 0) for d in ("bfloat16", "int8")}
        measured = "; ".join(
            f"{name} {spread((limit[key] / 1e9 for limit in limits), digits)} {unit}"
            for key, (name, unit, digits) in units.items()
            if limits and key in limits[0]
        )
        rows = []
        for result in results:
            row = [result.engine, spread(result.rates, 0 if result.rate >= 200 else 1)]
            if kind == "prefill":
                row += [percent(of_gemm(model, result, d)) for d in ("bfloat16", "int8")]
            else:
                row.append(percent(of_bandwidth(model, engines[result.engine], result)))
            rows.append(row)
        header = ["", "tokens/s"]
        header += ["of bf16 GEMM", "of int8 GEMM"] if kind == "prefill" else ["of bandwidth"]
        count = group["threads"]
        title = f"{_label(kind, batch, depth)}, {count} thread{'s' * (count > 1)}\n{measured}"
        tables.append(format_table(title, header, rows))
    return "\n".join(tables)


class _Bars:
    """Looks up results and notes how each compares with its bar."""

    def __init__(self, model: Model, group: dict[str, Any]) -> None:
        self._model = model
        self._engines = {engine["name"]: engine for engine in group["engines"]}
        self._results = {(r.engine, r.kind, r.batch, r.depth): r for r in group["results"]}
        self.rows: list[list[str]] = []

    def _find(self, name: str, kind: str, batch: int, depth: int) -> Result | None:
        return self._results.get((name, kind, batch, depth))

    def ratio(self, ours: str, peers: str, task: tuple[str, int, int], bar: float) -> None:
        """Ours over the fastest peer whose name starts with `peers`, round by round."""
        mine = self._find(f"{OURS} {ours}", *task)
        others = [
            result
            for (name, *rest), result in self._results.items()
            if tuple(rest) == task and not name.startswith(OURS) and name.startswith(peers)
        ]
        if mine and others:
            best = max(others, key=lambda r: r.rate)
            self._row(task, f"{ours} / {best.engine}", _divide(mine, best), bar, "x")

    def versus(self, ours: str, other: str, task: tuple[str, int, int], bar: float) -> None:
        """Ours over another of ours."""
        mine, base = self._find(f"{OURS} {ours}", *task), self._find(f"{OURS} {other}", *task)
        if mine and base:
            self._row(task, f"{ours} / {other}", _divide(mine, base), bar, "x")

    def limit(
        self,
        ours: str,
        task: tuple[str, int, int],
        bar: float,
        fraction: Callable[[Result], list[float]] | None = None,
        what: str = "read bandwidth",
    ) -> None:
        """Ours as a part of a limit of the machine."""
        mine = self._find(f"{OURS} {ours}", *task)
        if mine:
            engine = self._engines[mine.engine]
            values = fraction(mine) if fraction else of_bandwidth(self._model, engine, mine)
            if values:
                self._row(task, f"{ours} of {what}", values, bar, "")

    def _row(
        self, task: tuple[str, int, int], text: str, values: list[float], bar: float, unit: str
    ) -> None:
        measured = spread(values, 2)
        met = "met" if statistics.median(values) >= bar else "MISSED"
        self.rows.append([_label(*task), text, measured, f"{bar:g}{unit}", met])


def _divide(mine: Result, other: Result) -> list[float]:
    return [a / b for a, b in zip(mine.rates, other.rates, strict=True)]


def bars(model: Model, group: dict[str, Any]) -> str:
    """The project's aims, with what was measured; those without a measurement are left out."""
    found = _Bars(model, group)
    decode, deep = ("decode", 1, 128), ("decode", 1, 32000)
    same = (("int4", "llama.cpp Q4_0"), ("int8", "llama.cpp Q8_0"), ("bfloat16", "llama.cpp BF16"))
    for (ours, peer), least, part in zip(same, (1.5, 1.4, 1.0), (0.75, 0.8, 0.9), strict=True):
        found.ratio(ours, peer, decode, least)
        found.limit(ours, decode, part)
    prefill = ("prefill", 1, 512)
    for ours in ("int4", "int8"):
        found.ratio(ours, "", prefill, 2.0)
    found.ratio("bfloat16", "transformers", prefill, 1.3)
    gemm = "oneDNN's bf16 GEMM"
    found.limit("bfloat16", prefill, 0.8, lambda r: of_gemm(model, r, "bfloat16"), gemm)
    for ours, peer in same:
        found.ratio(ours, peer, ("prefill", 1, 4096), 2.5)
    for ours, peer in same:
        found.ratio(ours, peer, deep, 3.5)
        found.limit(ours, deep, 0.7)
    for ours in ("int4", "int8"):
        found.ratio(f"{ours}, kv int8", dict(same)[ours], deep, 3.5)
        found.versus(f"{ours}, kv int8", ours, deep, 1.0)
    for ours, peer in same:
        found.ratio(ours, peer, ("decode", 32, 128), 3.0)
    header = ["", "", "measured", "bar", ""]
    title = f"Bars, {group['threads']} thread{'s' * (group['threads'] > 1)}"
    return format_table(title, header, found.rows) if found.rows else ""


# Of lfm-engine int4 from a packed file: the bars of memory (bytes) and time (seconds).
LOAD_BARS = {"added MB": 56e6, "total MB": 340e6, "load ms": 0.050, "load + first ms": 0.150}


def load_table(loads: list[dict[str, Any]], threads: int) -> str:
    """Load time and memory, and the bars of the packed int4 file."""

    def columns(f: dict[str, Any]) -> dict[str, float]:
        return {
            "load ms": f["load_s"],
            "load + first ms": f["load_s"] + f["first_s"],
            "file MB": f["file_bytes"],
            "private MB": f["private"],
            "file-backed MB": f["file"],
            "total MB": f["private"] + f["file"],
            "added MB": f["private"] - f["before"],
            "peak MB": f["peak"],
        }

    def show(key: str, value: float) -> str:
        return f"{value * 1e3:.0f}" if key.endswith("ms") else f"{value / 1e6:.0f}"

    if not loads:
        return ""
    header = ["", *columns(loads[0])]
    rows = [[f["name"], *(show(k, v) for k, v in columns(f).items())] for f in loads]
    title = f"Load time and memory, {threads} thread{'s' * (threads > 1)}"
    text = format_table(title, header, rows)
    for f in loads:
        if f["name"] == f"{OURS} int4, packed":
            values = columns(f)
            rows = [
                [
                    key,
                    show(key, values[key]),
                    show(key, bar),
                    "met" if values[key] <= bar else "MISSED",
                ]
                for key, bar in LOAD_BARS.items()
            ]
            text += "\n" + format_table(
                f"Bars of {f['name']}", ["", "measured", "at most", ""], rows
            )
    return text
