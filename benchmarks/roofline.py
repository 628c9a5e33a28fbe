"""Draws the roofline of a bench_speed.py run: what the machine allows, and where each engine is.

    python benchmarks/roofline.py RUN.json ... OUT.svg [--threads 2]

RUN.json is what bench_speed.py --json wrote; OUT may be .svg, .png or .pdf. Horizontal: FLOPs for
each byte of weights and K/V that must be read. Vertical: FLOPs per second (those of the matrices).
The slope is the read bandwidth, the roofs are oneDNN's bfloat16 and int8 rates for the model's
shapes; all measured in the same run. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench_results import Model, Result, merge, plural

COLORS = {
    "lfm-engine": "#c0392b",
    "llama.cpp": "#2471a3",
    "transformers": "#7d6608",
    "onnxruntime-genai": "#6c3483",
    "openvino": "#117a65",
}
# What is drawn of a run that has many tasks: neighbours would hide each other.
SHOWN = {("prefill", 1, 512), ("decode", 1, 128), ("decode", 1, 32000), ("decode", 32, 128)}
MARKERS = {"bfloat16": "s", "int8": "o", "int4": "D"}


def operations(model: Model, result: Result) -> float:
    """FLOPs of the matrices for one token; a prompt needs the head once."""
    heads = model.head / result.depth if result.kind == "prefill" else model.head
    return 2.0 * (model.matrices + heads)


def bytes_of_step(model: Model, engine: dict[str, Any], result: Result) -> float:
    """What one pass reads at least: weights once, and K/V of its sequences while decoding."""
    total = model.weight_bytes(engine)
    if result.kind == "decode":
        total += result.batch * result.depth * model.kv_bytes(engine["kv_dtype"])
    return total


def tokens_of_step(result: Result) -> int:
    """Tokens that share one reading of the weights."""
    return result.depth if result.kind == "prefill" else result.batch


def machine(results: list[Result], key: str) -> float:
    """Median of a limit over these results' rounds; 0 where it was not measured."""
    found = [limits[key] for r in results for limits in r.limits if key in limits]
    return statistics.median(found) if found else 0.0


def draw(axes: Axes, model: Model, group: dict[str, Any]) -> tuple[float, float]:
    """One panel; its lowest and highest GFLOP/s."""
    results = [Result(**values) for values in group["results"]]
    shown = [r for r in results if (r.kind, r.batch, r.depth) in SHOWN] or results
    # The machine's memory changes its speed: the slope is that of the rounds it is the limit of.
    single = [r for r in shown if r.kind == "decode" and r.batch == 1]
    bandwidth = machine(single or shown, "bandwidth")
    roofs = {d: machine(results, f"gemm_{d}") for d in ("bfloat16", "int8")}
    points = []
    for result in shown:
        engine = next(e for e in group["engines"] if e["name"] == result.engine)
        work = operations(model, result)
        intensity = work * tokens_of_step(result) / bytes_of_step(model, engine, result)
        points.append((result, engine, intensity, result.rate * work))
    top = max([*roofs.values(), *(p[3] for p in points)])
    left, right = 0.5, max(p[2] for p in points) * 2
    for dtype, style in (("bfloat16", "-"), ("int8", "--")):
        if roofs[dtype]:
            corner = (roofs[dtype] / bandwidth, roofs[dtype] / 1e9)
            x, y = zip((left, left * bandwidth / 1e9), corner, (right, corner[1]), strict=True)
            axes.plot(x, y, style, color="black", lw=1.2)
            label = f"oneDNN {dtype} GEMM: {roofs[dtype] / 1e9:.0f} GFLOP/s"
            axes.annotate(label, corner, ha="right", va="bottom", fontsize=8)
    styles: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for result, engine, intensity, rate in points:
        color = COLORS[result.engine.split()[0]]
        inside = "none" if engine["kv_dtype"] == "int8" else color
        look = (MARKERS[engine["weights"]], color, inside)
        styles.setdefault(look, []).append((intensity, rate / 1e9))
    for (marker, color, inside), places in styles.items():
        at = zip(*places, strict=True)
        axes.plot(*at, ls="", marker=marker, color=color, mfc=inside, ms=6, alpha=0.85)
    kinds: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for result, _, intensity, rate in points:
        key = (result.kind, result.batch, result.depth)
        kinds.setdefault(key, []).append((intensity, rate))
    for (kind, batch, depth), places in kinds.items():
        text = f"{kind} {depth}" + (f" x {batch}" if batch > 1 else "")
        place = (statistics.median(p[0] for p in places), min(p[1] for p in places) / 1e9)
        axes.annotate(
            text,
            place,
            xytext=(0, -9),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7,
            color="dimgray",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()  # most of a drawing's bytes
    axes.set_xlabel("FLOP per byte of weights and K/V")
    title = f"{plural(group['threads'])}, memory reads {bandwidth / 1e9:.1f} GB/s"
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", lw=0.4, alpha=0.5)
    return min(p[3] for p in points) / 1e9 / 3, top / 1e9 * 2


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, nargs="+", help="from bench_speed.py --json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", help="only these panels, e.g. 2; default: all of the run")
    options = parser.parse_args()
    matplotlib.rcParams["svg.fonttype"] = "none"  # text, not outlines: half the size
    report = merge([json.loads(run.read_text()) for run in options.run])
    model = Model(**report["model"])
    wanted = [int(t) for t in options.threads.split(",")] if options.threads else None
    groups = [
        g for g in report["groups"] if g["results"] and (not wanted or g["threads"] in wanted)
    ]
    if not groups:
        parser.error("no results for these threads")
    figure, panels = plt.subplots(
        1, len(groups), figsize=(6.2 * len(groups), 4.8), sharey=True, squeeze=False
    )
    ends = [draw(axes, model, group) for axes, group in zip(panels[0], groups, strict=True)]
    panels[0][0].set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    panels[0][0].set_ylabel("GFLOP/s")
    names = dict.fromkeys(e["name"].split()[0] for g in groups for e in g["engines"])
    handles = [Line2D([], [], color=COLORS[n], marker="o", ls="", label=n) for n in names]
    handles += [
        Line2D([], [], color="gray", marker=m, ls="", label=f"{d} weights")
        for d, m in MARKERS.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.suptitle(f"Roofline, {report['processor']}", fontsize=10)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(options.out, dpi=90)
    print(options.out)


if __name__ == "__main__":
    main()
