"""Reports as pictures; needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .extras import require

_COLORS = ("#2a6fbb", "#9dc3e6")


def draw_shares(
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]],
    title: str,
    path: str | os.PathLike[str],
) -> None:
    """Draw bars with their intervals.

    Args:
        rows: by label, the shares (`intervals.share`) to draw beside each other, by their names.
        title: above the bars.
        path: where the picture goes; its ending says which kind it is.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: it cannot be written.
    """
    figures = require("matplotlib.figure", "a picture")
    names = list(dict.fromkeys(name for shares in rows.values() for name in shares))
    height = 0.8 / max(len(names), 1)
    figure = figures.Figure(figsize=(8, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        found = [(row, shares[name]) for row, shares in enumerate(rows.values()) if name in shares]
        values = [100 * share["fraction"] for _, share in found]
        axes.barh(
            [row + place * height for row, _ in found],
            values,
            height,
            label=name,
            color=_COLORS[place % len(_COLORS)],
            xerr=_errors([share for _, share in found], values),
            ecolor="#444444",
            capsize=2,
        )
        for row, share in found:
            high = 100 * share["interval"][1]
            text = f"{100 * share['fraction']:.1f}"
            axes.text(high + 1, row + place * height, text, va="center", fontsize=8)
    axes.set_yticks([row + height * (len(names) - 1) / 2 for row in range(len(rows))])
    counts = [next(iter(shares.values()))["count"] for shares in rows.values()]
    axes.set_yticklabels([f"{label} ({count})" for label, count in zip(rows, counts, strict=True)])
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xlabel("% (95% Wilson interval)")
    axes.set_title(title, fontsize=10)
    if len(names) > 1:
        figure.legend(loc="outside lower center", ncols=len(names), fontsize=8)
    figure.savefig(path, dpi=120)


def _errors(shares: Sequence[Mapping[str, Any]], values: Sequence[float]) -> list[list[float]]:
    low = [max(0.0, v - 100 * s["interval"][0]) for s, v in zip(shares, values, strict=True)]
    high = [max(0.0, 100 * s["interval"][1] - v) for s, v in zip(shares, values, strict=True)]
    return [low, high]


def instruction_rows(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What to draw of a report of IFEval or IFBench."""
    scores = report["scores"]
    rows = {
        f"all {level}s": {mode: scores[f"{level}_{mode}"] for mode in ("strict", "loose")}
        for level in ("prompt", "instruction")
    }
    return {**rows, **report["categories"]}
