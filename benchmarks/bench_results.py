"""Figures of bench_speed.py: what was measured, and what the machine's limits make of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lfm_engine.checkpoint import ModelConfig

OURS = "lfm-engine"
# Bits of a weight, group scales included: of the matrices, and of the output head.
BITS = {"bfloat16": (16.0, 16.0), "int8": (8.5, 8.5), "int4": (4.5, 6.5625)}
KV_BYTES = {"bfloat16": 2.0, "int8": 1.0}  # and int8's scales: KV_SCALE a head
KV_SCALE = 2


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
    """FLOPs of the matrices over oneDNN's rate in `dtype`; empty if not measured.

    A prompt needs the head once, a decoded batch for each token.
    """
    head = model.head / (result.depth if result.kind == "prefill" else 1)
    flops = 2.0 * (model.matrices + head)
    rates = zip(result.rates, result.limits, strict=True)
    key = f"gemm_{dtype}"
    return [rate * flops / limits[key] for rate, limits in rates if key in limits]


def floor(value: float, digits: int = 0) -> str:
    """In decimals, rounded down: no figure looks better than it was."""
    scale = 10**digits
    return f"{math.floor(value * scale + 1e-9) / scale:.{digits}f}"


def ceil(value: float) -> str:
    """Without decimals, rounded up: for what should be small."""
    return f"{math.ceil(value - 1e-9)}"


def spread(values: Iterable[float], digits: int = 0) -> str:
    """Median (smallest-largest), rounded down."""
    found = list(values)
    low, middle, high = min(found), statistics.median(found), max(found)
    return f"{floor(middle, digits)} ({floor(low, digits)}-{floor(high, digits)})"


def percent(values: list[float]) -> str:
    """Median in percent, rounded down; "" without values."""
    return f"{floor(100 * statistics.median(values))}%" if values else ""


def label(kind: str, batch: int, depth: int) -> str:
    """A task in words."""
    if kind == "prefill":
        return f"prefill of {depth} tokens"
    return f"decode after {depth} tokens" + (f", batch {batch}" if batch > 1 else "")


def plural(threads: int) -> str:
    """ "1 thread" or "2 threads"."""
    return f"{threads} thread{'s' * (threads > 1)}"


def merge(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs on one machine as one: a later run's task or loading replaces an earlier's."""
    merged: dict[str, Any] = {**reports[0], "groups": [], "not_run": []}
    groups: dict[int, dict[str, Any]] = {}
    for report in reports:
        for group in report["groups"]:
            into = groups.setdefault(group["threads"], {**group, "engines": [], "results": []})
            new = {_task(r) for r in group["results"]}
            into["results"] = [r for r in into["results"] if _task(r) not in new]
            into["results"] += group["results"]
            known = {engine["name"] for engine in into["engines"]}
            into["engines"] += [e for e in group["engines"] if e["name"] not in known]
        if report["loads"]:
            merged |= {key: report[key] for key in ("loads", "load_threads")}
        merged["not_run"] += report["not_run"]
    return {**merged, "groups": list(groups.values())}


def _task(result: dict[str, Any]) -> tuple[str, int, int]:
    return result["kind"], result["batch"], result["depth"]
