"""One report of what bfcl-eval's score files say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..intervals import CONFIDENCE, share
from .package import MULTI_TURN, SINGLE_TURN

_LIVE = SINGLE_TURN[7:]
# Version 3 of the leaderboard: the mean of three, each of which is itself a mean.
V3 = (
    "overall = mean(non_live, live, multi_turn); non_live = mean(simple, multiple, parallel, "
    "parallel_multiple, irrelevance) with simple = mean(simple_python, simple_java, "
    "simple_javascript); live = the share of all entries of the six live categories; multi_turn = "
    "mean(base, miss_func, miss_param, long_context)"
)


def make_report(
    records: Mapping[Any, Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    checkers: str,
) -> dict[str, Any]:
    """Add up answers (`run`) and scores (`run.score`).

    Returns:
        What goes into report.json: "categories" has the official accuracy of each as a share,
        "v3" the leaderboard's means as far as their categories were run, "calls" how many answers
        had calls that can be read, by category, "speed" tokens and tokens/s, "errors" what could
        not be answered, and "responses" the verdicts.
    """
    kinds: dict[str, Counter[str]] = {}
    for key, record in records.items():
        counter = kinds.setdefault(str(key).rsplit("_", 1)[0], Counter())
        for kind, finish in zip(record["kinds"], record["finish_reasons"], strict=True):
            counter["answers"] += 1
            counter[kind] += 1
            counter["cut_off"] += finish == "length"
            counter["cut_off_without_calls"] += finish == "length" and kind != "calls"
    categories = {
        name: share(int(score["correct_count"]), int(score["total_count"]))
        for name, score in scores.items()
    }
    names = ("answers", "calls", "text", "broken", "cut_off", "cut_off_without_calls")
    new_tokens = sum(int(record["new_tokens"]) for record in records.values())
    prompt_tokens = sum(int(record["prompt_tokens"]) for record in records.values())
    seconds = sum(float(record["seconds"]) for record in records.values())
    return {
        "benchmark": "bfcl",
        "checkers": checkers,
        "confidence": CONFIDENCE,
        "settings": dict(settings),
        "categories": categories,
        "v3": {"definition": V3, **_v3(categories)},
        "calls": {name: {each: counter[each] for each in names} for name, counter in kinds.items()},
        "speed": {
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "seconds": round(seconds, 2),
            "new_tokens_per_second": round(new_tokens / seconds, 2) if seconds else None,
            "tokens_per_second": (
                round((prompt_tokens + new_tokens) / seconds, 2) if seconds else None
            ),
        },
        "errors": [
            {"key": key, "error": record["error"]}
            for key, record in records.items()
            if record.get("error")
        ],
        "responses": [_verdict(key, scores) for key in records],
    }


def _v3(categories: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """The means; None where a category is missing."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    def of(name: str) -> float | None:
        return float(categories[name]["fraction"]) if name in categories else None

    simple = mean([of("simple_python"), of("simple_java"), of("simple_javascript")])
    rest = ("multiple", "parallel", "parallel_multiple", "irrelevance")
    non_live = mean([simple, *(of(name) for name in rest)])
    live = None
    if all(name in categories for name in _LIVE):
        count = sum(int(categories[name]["count"]) for name in _LIVE)
        live = sum(int(categories[name]["hits"]) for name in _LIVE) / count
    multi_turn = mean([of(name) for name in MULTI_TURN])
    return {
        "overall": mean([non_live, live, multi_turn]),
        "non_live": non_live,
        "live": live,
        "multi_turn": multi_turn,
    }


def _verdict(key: Any, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    failed = scores[str(key).rsplit("_", 1)[0]]["failed"].get(key)
    if failed is None:
        return {"key": key, "valid": True}
    error = failed.get("error")
    kind = failed.get("error_type") or (error.get("error_type") if isinstance(error, dict) else "")
    return {"key": key, "valid": False, "error_type": kind}
