"""Tables of a bench_speed.py run.

    PYTHONPATH=python python benchmarks/bench_report.py RUN.json ... [--bars | --text]

RUN.json is what bench_speed.py --json wrote; of several, a later one's tasks replace an earlier
one's. Prints Markdown for the README; --bars: the project's aims, met or missed; --text: what
bench_speed.py itself printed. Speeds and fractions are rounded down, times and bytes up.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench_bars import load_bars, load_columns, show, speed_bars
from bench_results import (
    OURS,
    Model,
    Result,
    ceil,
    floor,
    label,
    merge,
    of_bandwidth,
    of_gemm,
    percent,
    plural,
    spread,
)
from tables import format_table

LIMITS = {
    "bandwidth": ("read bandwidth", "GB/s", 1),
    "gemm_bfloat16": ("oneDNN bf16 GEMM", "GFLOP/s", 0),
    "gemm_int8": ("oneDNN int8 GEMM", "GOP/s", 0),
}


def speed_tables(model: Model, group: dict[str, Any]) -> str:
    """A table for each task: tokens/s with spread, fractions of the limits."""
    engines = {engine["name"]: engine for engine in group["engines"]}
    tables = []
    for kind, batch, depth in _tasks(group["results"]):
        results = [
            r for r in group["results"] if (r.kind, r.batch, r.depth) == (kind, batch, depth)
        ]
        rows = []
        for result in results:
            row = [result.engine, spread(result.rates, 0 if result.rate >= 200 else 1)]
            row.append(str(len(result.rates)))
            if kind == "prefill":
                row += [percent(of_gemm(model, result, d)) for d in ("bfloat16", "int8")]
            else:
                row.append(percent(of_bandwidth(model, engines[result.engine], result)))
            rows.append(row)
        header = ["", "tokens/s", "rounds"]
        header += ["of bf16 GEMM", "of int8 GEMM"] if kind == "prefill" else ["of bandwidth"]
        title = f"{label(kind, batch, depth)}, {plural(group['threads'])}"
        tables.append(format_table(f"{title}\n{machine_limits(results)}", header, rows))
    return "\n".join(tables)


def machine_limits(results: Iterable[Result]) -> str:
    """What the machine gave beside these results."""
    limits = [limit for r in results for limit in r.limits]
    values = {key: [limit[key] / 1e9 for limit in limits if key in limit] for key in LIMITS}
    return "; ".join(
        f"{name} {spread(values[key], digits)} {unit}"
        for key, (name, unit, digits) in LIMITS.items()
        if values[key]
    )


def load_table(loads: list[dict[str, Any]], threads: int) -> str:
    """Load time and memory, and the bars of the packed int4 file."""
    if not loads:
        return ""
    header = ["", *load_columns(loads[0])]
    rows = [[f["name"], *(show(k, v) for k, v in load_columns(f).items())] for f in loads]
    text = format_table(f"Load time and memory, {plural(threads)}", header, rows)
    bars = load_bars(loads)
    return f"{text}\n{bars}" if bars else text


def _tasks(results: Iterable[Result]) -> list[tuple[str, int, int]]:
    return list(dict.fromkeys((r.kind, r.batch, r.depth) for r in results))


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _column(kind: str, batch: int, depth: int) -> str:
    if batch > 1:
        return f"decode, batch {batch}"
    return f"{kind} {depth:,}"


def _cell(model: Model, engine: dict[str, Any], result: Result) -> str:
    rate = floor(result.rate, 0 if result.rate >= 100 else 1)
    if result.kind == "decode":
        return f"{rate} ({percent(of_bandwidth(model, engine, result))})"
    dtype = "bfloat16" if engine["weights"] == "bfloat16" else "int8"
    part = percent(of_gemm(model, result, dtype))
    return f"{rate} ({part})" if part else rate


def speed_markdown(model: Model, group: dict[str, Any], not_run: list[dict[str, Any]]) -> str:
    """One table: a row for each engine, a column for each task; then the machine and the spread."""
    results: list[Result] = group["results"]
    tasks = sorted(_tasks(results), key=lambda t: (t[0] == "decode", t[1], t[2]))
    found = {(r.engine, r.kind, r.batch, r.depth): r for r in results}
    rows = []
    for engine in group["engines"]:
        name = engine["name"]
        if not any((name, *task) in found for task in tasks):
            continue  # a variant for tasks that were not asked for
        row = [f"**{name}**" if name.startswith(OURS) else f"{name} ({engine['version']})"]
        for task in tasks:
            result = found.get((name, *task))
            row.append(_cell(model, engine, result) if result else "")
        rows.append(row)
    notes = []
    for note in not_run:
        if note["threads"] != group["threads"] or note["what"] == "load":
            continue
        if note["what"] == "all":
            rows.append([note["engine"], f"not run: {note['reason']}", *[""] * (len(tasks) - 1)])
        else:
            notes.append(f"{note['engine']}, {note['what']}, not run: {note['reason']}.")
    header = [plural(group["threads"]), *(_column(*task) for task in tasks)]
    around = [max(abs(rate / r.rate - 1) for rate in r.rates) for r in results if len(r.rates) > 1]
    text = [_markdown(header, rows), "", f"Machine: {machine_limits(results)}."]
    if around:
        middle, most = (ceil(100 * v) for v in (statistics.median(around), max(around)))
        text.append(f"Rounds differ from their median by {middle}% (median), at most {most}%.")
    return "\n".join([*text, *notes])


def load_markdown(report: dict[str, Any]) -> str:
    """Load time and memory."""
    loads = report["loads"]
    if not loads:
        return ""
    header = [plural(report["load_threads"]), *load_columns(loads[0])]
    rows = []
    for figures in loads:
        name = figures["name"]
        cells = [show(k, v) for k, v in load_columns(figures).items()]
        rows.append([f"**{name}**" if name.startswith(OURS) else name, *cells])
    return _markdown(header, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, nargs="+", help="from bench_speed.py --json")
    parser.add_argument("--bars", action="store_true", help="the aims, met or missed")
    parser.add_argument("--text", action="store_true", help="tables with every spread")
    options = parser.parse_args()
    report = merge([json.loads(run.read_text()) for run in options.run])
    model = Model(**report["model"])
    groups = [
        {**group, "results": [Result(**values) for values in group["results"]]}
        for group in report["groups"]
    ]
    parts = []
    if options.bars:
        parts = [speed_bars(model, group) for group in groups] + [load_bars(report["loads"])]
    elif options.text:
        parts = [speed_tables(model, group) for group in groups]
        parts.append(load_table(report["loads"], report.get("load_threads", 0)))
    else:
        parts = [f"Measured on {report['processor']}; tokens/s (of the machine's limit), medians."]
        parts += [speed_markdown(model, group, report["not_run"]) for group in groups]
        parts.append(load_markdown(report))
    print("\n\n".join(part for part in parts if part))


if __name__ == "__main__":
    main()
