"""Two reports side by side: the same responses' verdicts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .intervals import share

_PARTS = ("prompt_strict", "prompt_loose", "valid")


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a report.json.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no report.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(report, dict) or not isinstance(report.get("responses"), list):
        raise ValueError(f"{path}: not a report of lfm-engine eval")
    return report


def compare_reports(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Compare the verdicts on the responses that both reports have.

    Those that could not be answered in one of them are left out, such as prompts without a response
    when responses made elsewhere are only some.

    Returns:
        "common": how many responses; "scores": for prompts (strict, loose) and instructions, or for
        BFCL's entries, the share of each report among these responses and the share of equal
        verdicts; "different": the keys whose prompt verdicts differ.

    Raises:
        ValueError: the reports are of different benchmarks, or have no response in common.
    """
    if first.get("benchmark") != second.get("benchmark"):
        raise ValueError(
            f"reports of different benchmarks: {first.get('benchmark')} and "
            f"{second.get('benchmark')}"
        )
    failed = {str(error["key"]) for report in (first, second) for error in report["errors"]}
    ours, theirs = (
        {str(r["key"]): r for r in report["responses"] if str(r["key"]) not in failed}
        for report in (first, second)
    )
    keys = [key for key in ours if key in theirs]
    if not keys:
        raise ValueError("the reports have no response in common")
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    different: dict[str, list[str]] = {}
    for key in keys:
        for part in _PARTS:
            if part in ours[key]:
                pair = ours[key][part], theirs[key][part]
                pairs.setdefault(part, []).append(pair)
                if pair[0] != pair[1]:
                    different.setdefault(part, []).append(key)
        for mode in ("strict", "loose"):
            if mode in ours[key]:
                both = zip(ours[key][mode], theirs[key][mode], strict=True)
                pairs.setdefault(f"instruction_{mode}", []).extend(both)
    return {
        "benchmark": first["benchmark"],
        "common": len(keys),
        "scores": {
            part: {
                "first": share(sum(a for a, _ in each), len(each)),
                "second": share(sum(b for _, b in each), len(each)),
                "same": share(sum(a == b for a, b in each), len(each)),
            }
            for part, each in pairs.items()
        },
        "different": different,
    }
