"""What benchmarks/bench_report.py makes of a run: rounding, fractions of limits, bars, Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from bench_bars import load_bars, speed_bars
from bench_candidates import Task, candidates, for_loads, for_speed
from bench_report import load_markdown, speed_markdown, speed_tables
from bench_results import Model, Result, ceil, floor, merge, of_bandwidth, of_gemm, spread

# One matrix of 1,000 weights twice, a head of 500: 2,500 weights, 5,000 bytes in bfloat16.
MODEL = Model([(10, 100, 2)], 500, 4, 16)


def result(engine: str, kind: str, rates: list[float], batch: int = 1, depth: int = 128) -> Result:
    limits = {"bandwidth": 1e6, "gemm_bfloat16": 1e7}
    return Result(engine, kind, batch, depth, rates, [limits] * len(rates))


def engine(name: str, weights: str = "bfloat16", size: float = 1e9) -> dict[str, Any]:
    return {
        "name": name,
        "weights": weights,
        "kv_dtype": "",
        "weight_bytes": size,
        "version": "1.0",
    }


def group(results: list[Result], engines: list[dict[str, Any]]) -> dict[str, Any]:
    return {"threads": 2, "engines": engines, "results": results}


def test_rounding_never_flatters() -> None:
    assert [floor(1.999, 2), floor(0.7499, 2), floor(899.96), floor(0.29 * 100)] == [
        "1.99",
        "0.74",
        "899",
        "29",
    ]
    assert [ceil(55.2), ceil(55.0), ceil(0.3 * 10)] == ["56", "55", "3"]
    assert spread([3.19, 1.99, 2.59], 1) == "2.5 (1.9-3.1)"


def test_fraction_of_bandwidth_counts_the_weights_and_the_keys_and_values() -> None:
    one = result("lfm-engine bfloat16", "decode", [100.0])
    kv = 128 * 4 * 16 * 2
    assert of_bandwidth(MODEL, engine(""), one) == [pytest.approx(100 * (5000 + kv) / 1e6)]
    # A file that stores less than the type needs counts as what it is.
    assert of_bandwidth(MODEL, engine("", size=4000), one) == [
        pytest.approx(100 * (4000 + kv) / 1e6)
    ]
    many = result("lfm-engine bfloat16", "decode", [100.0], batch=4)
    assert of_bandwidth(MODEL, engine(""), many) == [pytest.approx(25 * (5000 + 4 * kv) / 1e6)]
    packed = {**engine(""), "kv_dtype": "int8"}
    assert of_bandwidth(MODEL, packed, one) == [
        pytest.approx(100 * (5000 + 128 * 4 * (16 + 2)) / 1e6)
    ]


def test_fraction_of_gemm_counts_the_head_once() -> None:
    one = result("", "prefill", [100.0], depth=100)
    assert of_gemm(MODEL, one, "bfloat16") == [pytest.approx(100 * 2 * (2000 + 5) / 1e7)]
    assert of_gemm(MODEL, one, "int8") == []


def test_bars_compare_round_by_round_and_tell_met_from_missed() -> None:
    ours = result("lfm-engine int8", "decode", [150.0, 280.0, 420.0])
    peer = result("llama.cpp Q8_0", "decode", [100.0, 200.0])  # had no third round
    engines = [engine("lfm-engine int8", "int8"), engine("llama.cpp Q8_0", "int8")]
    text = speed_bars(MODEL, group([ours, peer], engines))
    line = next(line for line in text.splitlines() if "int8 / llama.cpp Q8_0" in line)
    assert line.split()[-3:] == ["(1.40-1.50)", "1.4x", "met"]
    assert "1.45 " in line
    worse = result("lfm-engine int8", "decode", [139.9, 279.9])
    text = speed_bars(MODEL, group([worse, peer], engines))
    line = next(line for line in text.splitlines() if "int8 / llama.cpp Q8_0" in line)
    assert "MISSED" in line and "1.39 " in line


def test_bar_without_a_measurement_is_left_out() -> None:
    ours = result("lfm-engine int4", "decode", [100.0])
    text = speed_bars(MODEL, group([ours], [engine("lfm-engine int4", "int4")]))
    assert "int4 of read bandwidth" in text and "llama.cpp" not in text
    assert speed_bars(MODEL, group([], [])) == ""


def test_best_peer_of_any_type_is_the_fastest_and_not_ours() -> None:
    results = [
        result("lfm-engine int4", "prefill", [400.0], depth=512),
        result("lfm-engine int8", "prefill", [1000.0], depth=512),
        result("openvino int8", "prefill", [201.0], depth=512),
        result("llama.cpp Q4_0", "prefill", [100.0], depth=512),
    ]
    engines = [engine(r.engine, "int4") for r in results]
    text = speed_bars(MODEL, group(results, engines))
    line = next(line for line in text.splitlines() if "int4 /" in line)
    assert "openvino int8" in line and "1.99" in line and line.endswith("MISSED")


def test_tables_and_markdown_show_every_engine_and_why_one_did_not_run() -> None:
    results = [
        result("lfm-engine bfloat16", "prefill", [10.0, 30.0, 20.0]),
        result("lfm-engine bfloat16", "decode", [5.0]),
        result("llama.cpp BF16", "decode", [4.0]),
    ]
    both = group(results, [engine("lfm-engine bfloat16"), engine("llama.cpp BF16")])
    text = speed_tables(MODEL, both)
    assert "20.0 (10.0-30.0)" in text and "decode after 128 tokens, 2 threads" in text
    not_run = [
        {"threads": 2, "engine": "openvino int8", "what": "all", "reason": "no file"},
        {"threads": 2, "engine": "llama.cpp BF16", "what": "prefill:128", "reason": "slow"},
        {"threads": 1, "engine": "other", "what": "all", "reason": "other group"},
    ]
    lines = speed_markdown(MODEL, both, not_run).splitlines()
    assert lines[0] == "| 2 threads | prefill 128 | decode 128 |"
    assert lines[2].startswith("| **lfm-engine bfloat16** | 20.0 (")
    assert lines[3].startswith("| llama.cpp BF16 (1.0) |  | 4.0 (")
    assert lines[4] == "| openvino int8 | not run: no file |  |"
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "llama.cpp BF16, prefill:128, not run: slow." in lines
    assert not any("other" in line for line in lines)


def test_load_bars_and_markdown() -> None:
    figures = {
        "name": "lfm-engine int4, packed",
        "load_s": 0.0495,
        "first_s": 0.11,
        "file_bytes": 2e8,
        "private": 90e6,
        "before": 30e6,
        "file": 240e6,
        "peak": 350e6,
    }
    lines = {line.split("  ")[0]: line for line in load_bars([figures]).splitlines() if line}
    assert lines["load ms"].split()[-3:] == ["50", "50", "met"]
    assert lines["added MB"].split()[-3:] == ["60", "56", "MISSED"]
    assert lines["load + first ms"].endswith("MISSED") and lines["total MB"].endswith("met")
    text = load_markdown({"loads": [figures], "load_threads": 1})
    assert text.splitlines()[2].startswith("| **lfm-engine int4, packed** | 50 | 160 | 200 |")


def test_merge_keeps_a_ratio_within_one_run() -> None:
    def report(threads: int, results: list[Result], loads: list[str]) -> dict[str, Any]:
        values = [vars(r) for r in results]
        groups = [group([], [engine(r.engine) for r in results]) | {"results": values}]
        groups[0]["threads"] = threads
        return {"groups": groups, "not_run": [], "loads": loads, "load_threads": threads}

    first = report(2, [result("a", "decode", [1.0]), result("b", "decode", [2.0])], ["old"])
    again = report(2, [result("a", "decode", [3.0]), result("c", "prefill", [4.0])], [])
    other = report(1, [result("a", "decode", [5.0])], ["new"])
    merged = merge([first, again, other])
    two, one = merged["groups"]
    assert [(r["engine"], r["rates"]) for r in two["results"]] == [("a", [3.0]), ("c", [4.0])]
    assert [e["name"] for e in two["engines"]] == ["a", "b", "c"]
    assert (one["threads"], len(one["results"])) == (1, 1)
    assert (merged["loads"], merged["load_threads"]) == (["new"], 1)
    assert merge([first])["groups"][0] == first["groups"][0]


def test_task_names() -> None:
    assert Task.parse("decode:32x128") == Task("decode", 32, 128)
    assert str(Task.parse("decode:32x128")) == "decode:32x128"
    assert str(Task.parse("prefill:512")) == "prefill:512"
    for text in ("decode", "decode:x", "sleep:3", "prefill:"):
        with pytest.raises(ValueError, match="expected prefill:DEPTH"):
            Task.parse(text)


def test_engine_files_are_chosen_by_what_exists(tmp_path: Path) -> None:
    def ours(dtype: str) -> list[tuple[str, str]]:
        found = candidates(tmp_path, [dtype], ["lfm-engine"])
        speed, loads = for_speed(tmp_path, found), for_loads(tmp_path, found)
        return [(c.name, c.place.name) for c in (*speed, *loads)]

    folder = tmp_path.name
    assert ours("bfloat16") == [("lfm-engine bfloat16", folder)] * 2
    kv = "lfm-engine int4, kv int8"
    assert ours("int4") == [
        ("lfm-engine int4", folder),
        (kv, folder),
        ("lfm-engine int4", folder),
    ]
    (tmp_path / "model-Q4_0.gguf").touch()
    (tmp_path / "model-int4.lfm").touch()
    assert ours("int4") == [
        ("lfm-engine int4", "model-int4.lfm"),
        (kv, "model-int4.lfm"),
        ("lfm-engine int4", "model-Q4_0.gguf"),
        ("lfm-engine int4, packed", "model-int4.lfm"),
    ]
