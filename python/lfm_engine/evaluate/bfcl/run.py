"""Runs BFCL: answers, the official score files, and one report."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...generation import GenerationConfig
from ..answering import BATCH_SIZE, Answer, Job, answer_all
from ..extras import require
from ..picture import draw_shares
from ..progress import Progress
from ..response_log import ResponseLog, run_settings, save_json
from . import package

MAX_NEW_TOKENS = 1024
RESPONSES, REPORT, PICTURE = "responses.jsonl", "report.json", "report.png"

Report = dict[str, Any]


def run_bfcl(
    model: Any,
    tokenizer: Any,
    out: str | os.PathLike[str],
    *,
    categories: Sequence[str] = ("all",),
    calls: str = "free",
    model_name: str | None = None,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    generation_config: GenerationConfig | None = None,
    progress: bool | None = None,
    picture: bool = True,
    **options: Any,
) -> Report:
    """Answer BFCL's entries with a model, and let bfcl-eval score the answers.

        report = run_bfcl(model, tokenizer, "runs/bfcl", categories=["non_live_python"])
        report["categories"]["simple_python"]["fraction"]

    Answers go into `out`/responses.jsonl as they come. A run that was stopped goes on there when it
    is repeated, also with more categories.

    Args:
        model: a `CausalLM`.
        tokenizer: its tokenizer, with a chat template. If that renders no tools, BFCL's own prompt
            for such models says what they are.
        out: a folder, made if it is missing; gets responses.jsonl, report.json and, in result/ and
            score/, bfcl-eval's own files.
        categories: names of categories and groups (`package.GROUPS`).
        calls: "free"; "auto": text or calls, where calls are constrained to the tools; "required":
            always calls, constrained, which answers irrelevance wrongly by definition.
        model_name: for the report.
        limit: so many entries of each category only, from the first.
        batch_size: entries of one turn that are answered together.
        generation_config: in place of the model's own.
        progress: show a progress bar; None for terminals.
        picture: draw the report into report.png, too.
        **options: any of `GenerationConfig`. 1024 tokens an answer at most by default.

    Returns:
        The report, as report.json has it.

    Raises:
        ValueError: a category that is unknown, options that do not go together, or `out` holds
            responses of another run.
        OSError: responses cannot be written.
        MissingExtraError: bfcl-eval is not installed; the message has the command.
    """
    names = package.read_categories(list(categories))
    checkers = package.prepare()
    if picture:
        require("matplotlib.figure", "a picture of the report")
    from .handler import EngineHandler
    from .respond import Responder, renders_calls, renders_tools

    if calls == "required" and any(name in package.MULTI_TURN for name in names):
        raise ValueError('calls="required" does not go with several turns, which end with text')
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    config = (generation_config or model.generation_config).merged(
        **{"max_new_tokens": MAX_NEW_TOKENS, **options}
    )
    native = renders_tools(tokenizer)
    responder = Responder(model, tokenizer, config, calls)
    handler = EngineHandler(
        responder.respond, native_tools=native, native_calls=native and renders_calls(tokenizer)
    )
    template = str(tokenizer.chat_template)
    settings = run_settings("bfcl", model, model_name, template, config.to_dict())
    settings |= {"bfcl_eval": checkers, "calls": calls, "tools_in_template": native}
    entries = {name: load_entries(name, limit) for name in names}
    with ResponseLog(Path(out) / RESPONSES, settings) as log:
        every = [entry for name in names for entry in entries[name]]
        missing = [e for e in every if log.records.get(e["id"], {"error": ""}).get("error", 0) != 0]
        with Progress("bfcl", len(every), len(every) - len(missing), progress) as bar:
            single = [e for e in missing if category_of(e["id"]) in package.SINGLE_TURN]
            _answer_single_turns(handler, responder, single, batch_size, log, bar)
            several = [e for e in missing if category_of(e["id"]) in package.MULTI_TURN]
            _answer_multi_turns(handler, several, log, bar)
        records = {entry["id"]: log.records[entry["id"]] for entry in every}
    from .report import make_report

    scores = score(out, records, native, model_name or package.REGISTRY)
    report = make_report(records, scores, settings, checkers)
    report["isa"] = model.core.isa
    save_json(report, Path(out) / REPORT)
    if picture:
        title = f"BFCL: {Path(str(model_name or '')).name}, calls: {calls}"
        rows = {name: {"accuracy": share} for name, share in report["categories"].items()}
        draw_shares(rows, title, Path(out) / PICTURE)
    return report


def load_entries(category: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The entries of a category, with the hints that a model gets and the checkers do not."""
    from bfcl_eval.utils import load_dataset_entry

    entries: list[dict[str, Any]] = load_dataset_entry(category)
    return entries[:limit]


def category_of(entry_id: str) -> str:
    """The category of an entry."""
    return entry_id.rsplit("_", 1)[0]


def score(
    out: str | os.PathLike[str], records: dict[Any, dict[str, Any]], native: bool, name: str
) -> dict[str, dict[str, Any]]:
    """Write the official result files and let bfcl-eval score them.

    Returns:
        By category what its score file says: accuracy and counts, and under "failed" the entries
        that failed, by id.
    """
    from bfcl_eval.eval_checker import eval_runner
    from bfcl_eval.utils import get_directory_structure_by_category, get_file_name_by_category

    from .handler import EngineHandler, forget_instances

    package.register(EngineHandler, name, underscores=native)
    results, scores = Path(out).resolve() / "result", Path(out).resolve() / "score"
    for folder in (results, scores):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    by_category: dict[str, list[dict[str, Any]]] = {}
    for key, record in records.items():
        by_category.setdefault(category_of(key), []).append(
            {
                "id": key,
                "result": record["result"],
                "input_token_count": record["prompt_tokens"],
                "output_token_count": record["new_tokens"],
            }
        )
    for category, lines in by_category.items():
        folder = results / package.REGISTRY / get_directory_structure_by_category(category)
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        file = folder / get_file_name_by_category(category, is_result_file=True)
        file.write_text(text, encoding="utf-8")
    forget_instances()
    with silently():
        eval_runner.main([package.REGISTRY], list(by_category), results, scores, partial_eval=True)
    found: dict[str, dict[str, Any]] = {}
    for category in by_category:
        folder = scores / package.REGISTRY / get_directory_structure_by_category(category)
        file = folder / get_file_name_by_category(category, is_score_file=True)
        header, *failed = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        found[category] = {**header, "failed": {entry["id"]: entry for entry in failed}}
    return found


@contextlib.contextmanager
def silently() -> Iterator[None]:
    """bfcl-eval tells of each step on stdout, and shows a bar on stderr."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# -- answering --


def _answer_single_turns(
    handler: Any,
    responder: Any,
    entries: Sequence[dict[str, Any]],
    batch_size: int,
    log: ResponseLog,
    bar: Progress,
) -> None:
    last = time.monotonic()

    def write(key: str, **record: Any) -> None:
        nonlocal last
        now = time.monotonic()
        log.append({"key": key, **record, "seconds": round(now - last, 4)})
        last = now
        bar.advance(record["new_tokens"])

    ready: list[tuple[str, Any]] = []  # by the index of their jobs

    def jobs() -> Iterator[Job]:
        for entry in entries:
            key = entry["id"]
            try:
                messages, tools = handler.conversation(copy.deepcopy(entry))
                prompt = responder.prompt(messages, tools, handler.is_fc_model)
                job = Job(prompt, responder.constraint(tools, len(prompt)))
            except Exception as error:
                write(key, **_failed(error))
                continue
            ready.append((key, tools))
            yield job

    def on_answer(answer: Answer) -> None:
        key, tools = ready[answer.index]
        if answer.error is not None:
            counts = {"prompt_tokens": answer.prompt_tokens, "new_tokens": answer.new_tokens}
            write(key, **{**_failed(answer.error), **counts})
            return
        reply = responder.reply(answer)
        result, kind = handler.read(reply, tools)
        write(
            key,
            result=result,
            raw=reply.raw,
            kinds=[kind],
            finish_reasons=[reply.finish_reason],
            prompt_tokens=reply.prompt_tokens,
            new_tokens=reply.new_tokens,
        )

    answer_all(
        responder.model,
        responder.tokenizer,
        jobs(),
        responder.config,
        on_answer,
        batch_size=batch_size,
    )


def _answer_multi_turns(
    handler: Any, entries: Sequence[dict[str, Any]], log: ResponseLog, bar: Progress
) -> None:
    # Neighbours with the same tools: the session keeps their prompt.
    for entry in sorted(entries, key=lambda entry: str(entry["involved_classes"])):
        begun = time.monotonic()
        handler.replies.clear()
        record: dict[str, Any]
        try:
            with silently():
                record = {"result": handler.multi_turn(copy.deepcopy(entry))}
        except Exception as error:
            record = _failed(error)
        replies = handler.replies
        record.update(
            raw=[reply.raw for reply, _ in replies],
            kinds=[kind for _, kind in replies],
            finish_reasons=[reply.finish_reason for reply, _ in replies],
            prompt_tokens=sum(reply.prompt_tokens for reply, _ in replies),
            new_tokens=sum(reply.new_tokens for reply, _ in replies),
            seconds=round(time.monotonic() - begun, 4),
        )
        log.append({"key": entry["id"], **record})
        bar.advance(record["new_tokens"])


def _failed(error: Any) -> dict[str, Any]:
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    # As bfcl-eval records it; there is no call in it.
    return {
        "result": f"Error during inference: {text}",
        "error": text,
        "kinds": [],
        "finish_reasons": [],
        "prompt_tokens": 0,
        "new_tokens": 0,
    }
