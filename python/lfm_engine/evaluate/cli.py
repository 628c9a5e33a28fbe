"""`lfm-engine eval`: the command line of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Options = argparse.Namespace
_TITLES = {"ifeval": "IFEval", "ifbench": "IFBench"}


def add_commands(
    commands: Any,
    add_engine_options: Callable[[argparse.ArgumentParser], None],
    add_sampling_options: Callable[[argparse.ArgumentParser], None],
    generation_options: Callable[[Options], dict[str, Any]],
) -> None:
    """Add `eval` and its benchmarks to the command line's sub-commands."""
    evaluate = commands.add_parser("eval", help="run a benchmark: ifeval, ifbench, bfcl, lm-eval")
    benchmarks = evaluate.add_subparsers(required=True, metavar="BENCHMARK")
    for name, title in _TITLES.items():
        command = benchmarks.add_parser(
            name, help=f"{title}: instructions that a program can check"
        )
        command.add_argument(
            "model", metavar="MODEL", nargs="?", help="hub id, folder, .gguf or .lfm file"
        )
        command.add_argument(
            "--responses", metavar="FILE", help="score responses made elsewhere, without a model"
        )
        command.add_argument(
            "--data", metavar="FILE", help="JSONL with the prompts, or a data set on the hub"
        )
        _add_run_options(command)
        add_engine_options(command)
        add_sampling_options(command)
        command.set_defaults(
            run=_instructions, benchmark=name, generation_options=generation_options
        )

    command = benchmarks.add_parser(
        "bfcl", help="BFCL: calls of functions, in one turn and several"
    )
    command.add_argument("model", metavar="MODEL", help="hub id, folder, .gguf or .lfm file")
    command.add_argument(
        "--categories",
        metavar="NAMES",
        default="all",
        help="categories or groups, separated by commas: all (default), non_live, "
        "non_live_python, live, single_turn, multi_turn, or one such as simple_python",
    )
    command.add_argument(
        "--calls",
        choices=("free", "auto", "required"),
        default="free",
        help="free (default); auto: text or calls, and calls are constrained to the tools; "
        "required: always calls, constrained",
    )
    _add_run_options(command)
    add_engine_options(command)
    add_sampling_options(command)
    command.set_defaults(run=_bfcl, benchmark="bfcl", generation_options=generation_options)

    command = benchmarks.add_parser(
        "lm-eval",
        help="any task of lm-eval (lm-evaluation-harness)",
        description="lm-eval's own command line with this engine's model: what comes after MODEL "
        "goes to lm-eval, such as --tasks mmlu_pro --apply_chat_template --limit 100.",
    )
    add_engine_options(command)
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.add_argument("model", metavar="MODEL", help="hub id, folder, .gguf or .lfm file")
    command.add_argument(
        "arguments", metavar="...", nargs=argparse.REMAINDER, help="lm-eval's own arguments"
    )
    command.set_defaults(run=_lm_eval)

    command = benchmarks.add_parser(
        "compare", help="compare two reports: which verdicts are the same"
    )
    command.add_argument("first", metavar="REPORT", help="a report.json")
    command.add_argument("second", metavar="REPORT", help="another of the same benchmark")
    command.add_argument("-o", "--output", metavar="FILE", help="write the comparison as JSON")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=_compare)


def _add_run_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--out", metavar="FOLDER", help="for responses and report")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    command.add_argument(
        "--batch-size", type=int, metavar="N", help="prompts answered together (default 64)"
    )
    command.add_argument("--no-picture", action="store_true", help="write no report.png")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _instructions(options: Options) -> int:
    from .instructions import run_instructions, score_responses

    out = _out_folder(options)
    common: dict[str, Any] = {
        "data": options.data,
        "limit": options.limit,
        "picture": not options.no_picture,
    }
    if options.responses is not None:
        if options.model is not None:
            raise ValueError("give a MODEL or --responses, not both")
        report = score_responses(options.benchmark, options.responses, out, **common)
    else:
        if options.model is None:
            raise ValueError("MODEL is missing, or --responses FILE")
        generation = options.generation_options(options)
        if options.batch_size is not None:
            common["batch_size"] = options.batch_size
        model, tokenizer = load(options)
        report = run_instructions(
            options.benchmark,
            model,
            tokenizer,
            out,
            model_name=options.model,
            **common,
            **generation,
        )
    _print_instructions(report)
    print(f"{out}: report.json" + ("" if options.no_picture else ", report.png"))
    return 0


def _bfcl(options: Options) -> int:
    from .bfcl import run_bfcl

    generation = options.generation_options(options)
    if options.batch_size is not None:
        generation["batch_size"] = options.batch_size
    from .bfcl.package import prepare, read_categories

    categories = read_categories([name.strip() for name in options.categories.split(",")])
    prepare()  # complain before the weights are loaded
    out = _out_folder(options)
    model, tokenizer = load(options)
    report = run_bfcl(
        model,
        tokenizer,
        out,
        categories=categories,
        calls=options.calls,
        model_name=options.model,
        limit=options.limit,
        picture=not options.no_picture,
        **generation,
    )
    _print_bfcl(report)
    print(f"{out}: report.json, score/" + ("" if options.no_picture else ", report.png"))
    return 0


def _lm_eval(options: Options) -> int:
    from .harness import run_command_line

    run_command_line(
        options.model,
        {
            "dtype": options.dtype,
            "kv_dtype": options.kv_dtype,
            "num_threads": options.threads,
        },
        [argument for argument in options.arguments if argument != "--"],
    )
    return 0


def _compare(options: Options) -> int:
    from .compare import compare_reports, read_report
    from .response_log import save_json

    result = compare_reports(read_report(options.first), read_report(options.second))
    rows = [("", "first %", "second %", "same %", "count")]
    for name, counts in result["scores"].items():
        first, second, same = counts["first"], counts["second"], counts["same"]
        cells = (show_share(share) for share in (first, second, same))
        rows.append((name, *cells, str(same["count"])))
    print_table(rows)
    print(f"{result['common']} responses are in both; 95% Wilson intervals")
    if options.output is not None:
        save_json(result, Path(options.output))
    return 0


def load(options: Options) -> tuple[Any, Any]:
    """The model and the tokenizer that the command line names."""
    from .. import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(
        options.model,
        dtype=options.dtype,
        num_threads=options.threads,
        kv_dtype=options.kv_dtype,
    )
    return model, tokenizer


def _out_folder(options: Options) -> Path:
    if options.out is not None:
        return Path(options.out)
    source = options.responses if options.model is None else options.model
    dtype = "" if options.model is None or options.dtype == "auto" else f"-{options.dtype}"
    return Path("evaluations") / f"{options.benchmark}-{Path(str(source)).name}{dtype}"


# -- what is printed --


def show_share(share: Mapping[str, Any]) -> str:
    """A share with its interval, in percent."""
    low, high = share["interval"]
    return f"{100 * share['fraction']:5.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _print_instructions(report: Mapping[str, Any]) -> None:
    scores = report["scores"]
    rows = [("", "strict %", "loose %", "count")]
    for level in ("prompt", "instruction"):
        strict, loose = scores[f"{level}_strict"], scores[f"{level}_loose"]
        rows.append((f"{level}s", show_share(strict), show_share(loose), str(strict["count"])))
    for name, share in report["categories"].items():
        strict, loose = share["strict"], share["loose"]
        rows.append((f"  {name}", show_share(strict), show_share(loose), str(strict["count"])))
    print_table(rows)
    print(f"95% Wilson intervals; checked by {report['checkers']}")
    if speed := report.get("speed"):
        print(
            f"{speed['prompt_tokens']:,} prompt tokens, {speed['new_tokens']:,} new ones in "
            f"{speed['seconds']:,.1f} s: {speed['new_tokens_per_second']} new tokens/s, "
            f"{speed['tokens_per_second']} tokens/s; {speed['cut_off']} answers were cut off"
        )
    print_errors(report["errors"])


def _print_bfcl(report: Mapping[str, Any]) -> None:
    rows = [("", "accuracy %", "count", "with calls", "broken", "cut off")]
    for name, share in report["categories"].items():
        calls = report["calls"][name]
        numbers = (calls[each] for each in ("answers", "calls", "broken", "cut_off"))
        answers, found, broken, cut_off = numbers
        rows.append(
            (
                name,
                show_share(share),
                str(share["count"]),
                f"{found} of {answers}",
                str(broken),
                str(cut_off),
            )
        )
    print_table(rows)
    means = {name: value for name, value in report["v3"].items() if isinstance(value, float)}
    if means:
        listed = ", ".join(f"{name} {100 * value:.2f}" for name, value in means.items())
        print(f"BFCL v3: {listed}")
    print(f"95% Wilson intervals; checked by {report['checkers']}")
    speed = report["speed"]
    print(
        f"{speed['prompt_tokens']:,} prompt tokens, {speed['new_tokens']:,} new ones in "
        f"{speed['seconds']:,.1f} s: {speed['tokens_per_second']} tokens/s"
    )
    print_errors(report["errors"])


def print_errors(errors: Any) -> None:
    """Say what could not be answered or checked, the first few by name."""
    if not errors:
        return
    print(f"{len(errors)} count as failed, since they could not be answered or checked:")
    for entry in errors[:5]:
        print(f"  {entry['key']}: {entry['error'][:150]}")
    if len(errors) > 5:
        print(f"  and {len(errors) - 5} more, see the report")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with columns of equal width, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
