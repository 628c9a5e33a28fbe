"""IFEval and IFBench: prompts with instructions that a program can check."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..generation import GenerationConfig
from .answering import BATCH_SIZE, Answer, Job, answer_all
from .checkers import Checkers, Verdict
from .data import HUB, Key, Prompt, load_prompts, match_responses
from .extras import require
from .intervals import CONFIDENCE, share
from .picture import draw_shares, instruction_rows
from .progress import Progress
from .response_log import ResponseLog, digest, run_settings, save_json

BENCHMARKS = tuple(HUB)
TITLES = {"ifeval": "IFEval", "ifbench": "IFBench"}
MAX_NEW_TOKENS = 1280
_NOTHING = {"error": "there is no response"}
RESPONSES, REPORT, PICTURE = "responses.jsonl", "report.json", "report.png"

Report = dict[str, Any]


def run_instructions(
    benchmark: str,
    model: Any,
    tokenizer: Any,
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    model_name: str | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    generation_config: GenerationConfig | None = None,
    progress: bool | None = None,
    picture: bool = True,
    **options: Any,
) -> Report:
    """Answer the prompts of IFEval or IFBench with a model, and score the answers.

        report = run_instructions("ifeval", model, tokenizer, "runs/ifeval")
        report["prompt_strict"], report["instruction_loose"]

    Responses go into `out`/responses.jsonl as they come. A run that was stopped goes on there when
    it is repeated.

    Args:
        benchmark: "ifeval" or "ifbench".
        model: a `CausalLM`.
        tokenizer: its tokenizer, with a chat template.
        out: a folder, made if it is missing; gets responses.jsonl and report.json.
        data: a JSONL file with the prompts, or a data set on the hub; None for the authors' own.
        model_name: for the report.
        limit: so many prompts only, from the first.
        batch_size: prompts that are answered together.
        generation_config: in place of the model's own.
        progress: show a progress bar; None for terminals.
        picture: draw the report into report.png, too.
        **options: any of `GenerationConfig`. 1280 tokens at most by default.

    Returns:
        The report, as report.json has it; see `score`.

    Raises:
        ValueError: malformed data or options, or `out` holds responses of another run.
        OSError: data that cannot be read, responses that cannot be written.
        MissingExtraError: the checkers are not installed.
    """
    checkers = _checkers(benchmark, picture)
    every = _prompts(benchmark, data, limit, checkers)
    prompts = every[:limit]
    config = (generation_config or model.generation_config).merged(
        **{"max_new_tokens": MAX_NEW_TOKENS, **options}
    )
    template = str(tokenizer.get_chat_template())
    settings = run_settings(benchmark, model, model_name, template, config.to_dict())
    settings["data"] = digest(repr(every))
    with ResponseLog(Path(out) / RESPONSES, settings) as log:
        missing = [p for p in prompts if log.records.get(p.key, _NOTHING).get("error") is not None]
        with Progress(benchmark, len(prompts), len(prompts) - len(missing), progress) as bar:
            _answer(model, tokenizer, missing, config, batch_size, log, bar)
        records = {prompt.key: log.records[prompt.key] for prompt in prompts}
    responses = {key: str(record["response"]) for key, record in records.items()}
    report = score(
        benchmark, checkers, prompts, responses, settings=settings, isa=model.core.isa, log=records
    )
    write_report(report, out, picture)
    return report


def score_responses(
    benchmark: str,
    responses: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    picture: bool = True,
) -> Report:
    """Score responses that were made elsewhere; no model is needed.

    Args:
        benchmark: "ifeval" or "ifbench".
        responses: a JSONL file, `{"prompt": ..., "response": ...}` a line, as published by the
            benchmarks' authors, or "key" in place of "prompt". A prompt without a response counts
            as not followed, and the report names it.
        out, data, limit, picture: as in `run_instructions`.

    Raises:
        OSError, ValueError, MissingExtraError: as `run_instructions`.
    """
    checkers = _checkers(benchmark, picture)
    prompts = _prompts(benchmark, data, limit, checkers)[:limit]
    found, by_place = match_responses(responses, prompts)
    settings = {"benchmark": benchmark, "responses": str(responses)}
    report = score(benchmark, checkers, prompts, found, settings=settings)
    if by_place:
        report["matched_by_place"] = by_place
    write_report(report, out, picture)
    return report


def score(
    benchmark: str,
    checkers: Checkers,
    prompts: Sequence[Prompt],
    responses: Mapping[Key, str],
    *,
    settings: Mapping[str, Any],
    isa: str | None = None,
    log: Mapping[Key, Mapping[str, Any]] | None = None,
) -> Report:
    """Check all responses and add up.

    Returns:
        What goes into report.json: the fractions "prompt_strict", "instruction_strict",
        "prompt_loose" and "instruction_loose"; "scores" has them with hits, count and interval,
        "categories" and "instructions" have strict and loose shares by group and by kind of
        instruction, "speed" has tokens and tokens/s, "errors" what could not be answered or
        checked, and "responses" the verdicts.
    """
    verdicts: dict[Key, Verdict] = {}
    for prompt in prompts:
        record = (log or {}).get(prompt.key, {})
        none = [False] * len(prompt.instruction_ids)
        if record.get("error"):
            verdicts[prompt.key] = Verdict(none, none, str(record["error"]))
        elif prompt.key not in responses:
            verdicts[prompt.key] = Verdict(none, none, "there is no response")
        else:
            verdicts[prompt.key] = checkers.check(prompt, responses[prompt.key])
    scores = {
        f"{level}_{mode}": share(*_count(level, [getattr(v, mode) for v in verdicts.values()]))
        for mode in ("strict", "loose")
        for level in ("prompt", "instruction")
    }
    report: Report = {name: value["fraction"] for name, value in scores.items()}
    report.update(
        benchmark=benchmark,
        checkers=checkers.name,
        confidence=CONFIDENCE,
        settings=dict(settings),
        scores=scores,
        categories=_by_kind(prompts, verdicts, lambda name: name.partition(":")[0]),
        instructions=_by_kind(prompts, verdicts, lambda name: name),
        errors=[
            {"key": key, "error": verdict.error}
            for key, verdict in verdicts.items()
            if verdict.error
        ],
    )
    if isa is not None:
        report["isa"] = isa
    if log is not None:
        report["speed"] = _speed(log)
    report["responses"] = [
        {
            "key": prompt.key,
            "prompt_strict": all(verdicts[prompt.key].strict),
            "prompt_loose": all(verdicts[prompt.key].loose),
            "instructions": prompt.instruction_ids,
            "strict": verdicts[prompt.key].strict,
            "loose": verdicts[prompt.key].loose,
            **{
                name: (log or {}).get(prompt.key, {}).get(name)
                for name in ("prompt_tokens", "new_tokens", "finish_reason")
                if log is not None
            },
        }
        for prompt in prompts
    ]
    return report


def write_report(report: Report, out: str | os.PathLike[str], picture: bool) -> None:
    """Write report.json, and report.png if wanted, into the folder `out`."""
    save_json(report, Path(out) / REPORT)
    if picture:
        name = report["settings"].get("model") or report["settings"].get("responses") or ""
        title = f"{TITLES[report['benchmark']]}: {Path(str(name)).name}"
        draw_shares(instruction_rows(report), title, Path(out) / PICTURE)


# -- inside --


def _checkers(benchmark: str, picture: bool) -> Checkers:
    """All that scoring needs, so that what is missing is known before anything is generated."""
    if benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark must be one of {', '.join(BENCHMARKS)}, not {benchmark!r}")
    if picture:
        require("matplotlib.figure", "a picture of the report")
    return Checkers(benchmark)


def _prompts(
    benchmark: str, data: str | os.PathLike[str] | None, limit: int | None, checkers: Checkers
) -> list[Prompt]:
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    prompts = load_prompts(HUB[benchmark] if data is None else data)
    checkers.check_known(prompts)
    return prompts


def _answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    batch_size: int,
    log: ResponseLog,
    bar: Progress,
) -> None:
    jobs = (
        Job(chat_ids(tokenizer, [{"role": "user", "content": prompt.text}])) for prompt in prompts
    )
    last = time.monotonic()

    def write(answer: Answer) -> None:
        nonlocal last
        now = time.monotonic()
        record: dict[str, Any] = {
            "key": prompts[answer.index].key,
            "response": str(tokenizer.decode(answer.ids, skip_special_tokens=True)),
            "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens,
            "finish_reason": answer.finish_reason,
            "seconds": round(now - last, 4),  # since the one before: they add up to the run's
        }
        if answer.error is not None:
            record["error"] = answer.error
        log.append(record)
        last = now
        bar.advance(answer.new_tokens)

    answer_all(model, tokenizer, jobs, config, write, batch_size=batch_size)


def chat_ids(tokenizer: Any, messages: Sequence[Any], **template: Any) -> list[int]:
    """The ids of a conversation by the checkpoint's chat template, ready to be answered."""
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **template
    )
    return [int(token) for token in tokenizer(text, add_special_tokens=False).input_ids]


def _count(level: str, followed: Sequence[Sequence[bool]]) -> tuple[int, int]:
    if level == "prompt":
        return sum(all(each) for each in followed), len(followed)
    return sum(map(sum, followed)), sum(map(len, followed))


def _by_kind(prompts: Sequence[Prompt], verdicts: Mapping[Key, Verdict], kind: Any) -> Report:
    found: dict[str, list[tuple[bool, bool]]] = {}
    for prompt in prompts:
        verdict = verdicts[prompt.key]
        for name, strict, loose in zip(
            prompt.instruction_ids, verdict.strict, verdict.loose, strict=True
        ):
            found.setdefault(kind(name), []).append((strict, loose))
    return {
        name: {
            "strict": share(sum(strict for strict, _ in pairs), len(pairs)),
            "loose": share(sum(loose for _, loose in pairs), len(pairs)),
        }
        for name, pairs in sorted(found.items())
    }


def _speed(log: Mapping[Key, Mapping[str, Any]]) -> Report:
    prompt_tokens = sum(int(record["prompt_tokens"]) for record in log.values())
    new_tokens = sum(int(record["new_tokens"]) for record in log.values())
    seconds = sum(float(record["seconds"]) for record in log.values())
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "cut_off": sum(record["finish_reason"] == "length" for record in log.values()),
        "seconds": round(seconds, 2),
        "new_tokens_per_second": round(new_tokens / seconds, 2) if seconds else None,
        "tokens_per_second": round((prompt_tokens + new_tokens) / seconds, 2) if seconds else None,
    }
