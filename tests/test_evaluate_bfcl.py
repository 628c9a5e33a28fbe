"""BFCL: the ground truth through our handler, and runs on a small random model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import golden_models
from lfm_engine import AutoModelForCausalLM, CausalLM
from lfm_engine.evaluate import MissingExtraError
from lfm_engine.evaluate.bfcl import package, run_bfcl
from lfm_engine.tokenizer import Tokenizer
from lfm_engine.tool_calls import END, START, render_tool_calls

try:
    package.prepare()
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)

from lfm_engine.evaluate.bfcl import handler as handlers
from lfm_engine.evaluate.bfcl import run as runs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PYTHON_AST = [
    *("simple_python", "multiple", "parallel", "parallel_multiple"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
]

# What bfcl-eval accepts here is not of the type that the tool's schema says, lacks an argument that
# it requires, or has one that it does not know; our parser reads values by the schema.
CONTRADICTIONS = {
    *("live_simple_106-63-0", "live_simple_112-68-0", "live_multiple_552-153-1"),
    *("live_multiple_595-158-1", "live_multiple_596-158-2", "live_multiple_731-167-2"),
    *("live_multiple_733-167-4", "live_multiple_735-167-6", "live_multiple_862-181-3"),
    *("live_multiple_964-207-0", "live_multiple_1038-265-0"),
}


def record(result: Any, **more: Any) -> dict[str, Any]:
    return {"result": result, "prompt_tokens": 1, "new_tokens": 1, "seconds": 0.0, **more}


class Replay:
    """In a model's place: says a multi-turn entry's ground truth, each turn in one list."""

    def __init__(self, turns: list[list[str]]) -> None:
        self._turns = iter(turns)
        self._called = False
        self.seen: list[list[dict[str, Any]]] = []

    def __call__(self, messages: Any, tools: Any, native: bool) -> handlers.Reply:
        self.seen.append(list(messages))
        self._called = not self._called
        calls = next(self._turns) if self._called else []
        if not calls:
            self._called = False
            return handlers.Reply("Done.", 1, 1, "stop")
        return handlers.Reply(f"{START}[{', '.join(calls)}]{END}", 1, 1, "stop")


@pytest.mark.parametrize(
    ("category", "native"),
    [*((category, True) for category in package.MULTI_TURN), ("multi_turn_miss_func", False)],
)
def test_the_multi_turn_ground_truth_replays(category: str, native: bool, tmp_path: Path) -> None:
    from bfcl_eval.utils import load_ground_truth_entry

    entries = runs.load_entries(category)
    truths = {entry["id"]: entry["ground_truth"] for entry in load_ground_truth_entry(category)}
    assert len(entries) == 200
    records = {}
    for entry in entries:
        player = handlers.EngineHandler(Replay(truths[entry["id"]]), native_tools=native)
        with runs.silently():
            records[entry["id"]] = record(player.multi_turn(copy.deepcopy(entry)))
    scores = runs.score(tmp_path, records, native, "replay")
    assert scores[category]["failed"] == {}
    assert scores[category]["correct_count"] == len(entries)


def test_a_wrong_call_fails_in_several_turns(tmp_path: Path) -> None:
    from bfcl_eval.utils import load_ground_truth_entry

    entry = runs.load_entries("multi_turn_base", 1)[0]
    truth = load_ground_truth_entry("multi_turn_base")[0]["ground_truth"]
    truth[0][1] = truth[0][1].replace("temp", "other")
    results = []
    for _ in range(2):  # what the first try did to the files is forgotten
        replay = Replay(truth)
        with runs.silently():
            results.append(handlers.EngineHandler(replay).multi_turn(copy.deepcopy(entry)))
        tools = [m["content"] for m in replay.seen[-1] if m["role"] == "tool"]
        assert tools[:2] == ['{"current_working_directory": "document"}', "None"]
    assert results[0] == results[1]
    scores = runs.score(tmp_path, {entry["id"]: record(results[0])}, True, "replay")
    assert scores["multi_turn_base"]["correct_count"] == 0


def accepted(options: list[Any], last: bool) -> Any:
    """One of the values that bfcl-eval accepts; a dict has such a list for each key."""

    def choose(values: list[Any]) -> Any:
        given = [value for value in values if value != ""]
        return given[-1 if last else 0] if given else ""

    def plain(entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        chosen = {key: choose(values) for key, values in entry.items()}
        return {key: value for key, value in chosen.items() if value != ""}

    value = choose(options) if options else []
    return [plain(each) for each in value] if isinstance(value, list) else plain(value)


def truth_as_calls(
    truth: list[Any], required: dict[str, list[str]], native: bool, every: bool, last: bool
) -> list[dict[str, Any]]:
    """Calls from an entry's ground truth, with `every` argument or those that must be."""
    return [
        {
            "name": name.replace(".", "_") if native else name,
            "arguments": {
                key: accepted(options, last)
                for key, options in arguments.items()
                if "" not in options or key in required[name] or (every and set(options) != {""})
            },
        }
        for call in truth
        for name, arguments in call.items()
    ]


@pytest.mark.parametrize(
    ("category", "native"),
    [*((category, True) for category in PYTHON_AST), ("parallel_multiple", False)],
)
def test_the_ast_ground_truth_passes(category: str, native: bool, tmp_path: Path) -> None:
    from bfcl_eval.utils import load_ground_truth_entry

    truths = {entry["id"]: entry["ground_truth"] for entry in load_ground_truth_entry(category)}
    reader = handlers.EngineHandler(native_tools=native)
    entries = runs.load_entries(category)
    # Arguments that may be left out are left out first; some values that the data accept are of
    # a type that the checker does not, so that others are tried.
    for every, last in [(False, False), (False, True), (True, False), (True, True)]:
        records = {}
        for entry in entries:
            required = {f["name"]: f["parameters"].get("required", []) for f in entry["function"]}
            _, tools = reader.conversation(copy.deepcopy(entry))
            calls = truth_as_calls(truths[entry["id"]], required, native, every, last)
            text = render_tool_calls(calls, markers=native)
            result, kind = reader.read(handlers.Reply(text, 1, 1, "stop"), tools)
            assert kind == "calls"
            records[entry["id"]] = record(result)
        failed = runs.score(tmp_path, records, native, "replay")[category]["failed"]
        if not every and not last:
            assert len(failed) <= len(entries) / 50
        entries = [entry for entry in entries if entry["id"] in failed]
        if not entries:
            break
    assert {i: f["error"] for i, f in failed.items() if i not in CONTRADICTIONS} == {}


# -- runs --


@pytest.mark.parametrize("calls", ["auto", "required"])
def test_constrained_calls_of_a_random_model_always_parse(
    calls: str, chat_model: CausalLM, chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    report = run_bfcl(
        chat_model,
        chat_tokenizer,
        tmp_path,
        categories=["simple_python", "parallel_multiple", "simple_java"],
        calls=calls,
        limit=4,
        batch_size=3,
        max_new_tokens=600,
        picture=False,
        **greedy_towards_calls(chat_tokenizer, calls),
    )
    for counts in report["calls"].values():
        assert counts["answers"] == counts["calls"] == 4
        assert counts["broken"] == counts["cut_off_without_calls"] == 0
    assert report["errors"] == []
    assert len(report["responses"]) == 12


def greedy_towards_calls(tokenizer: Tokenizer, calls: str) -> dict[str, Any]:
    """Options that make a random model start a call by itself."""
    start = tokenizer.backend.token_to_id(START)
    bias = [[[start], 1000.0]] if calls == "auto" else None
    return {"do_sample": False, "sequence_bias": bias}


def test_a_run_is_resumed_extended_and_refused(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def run(**changes: Any) -> dict[str, Any]:
        options = {"limit": 3, "max_new_tokens": 8, "do_sample": False, "picture": False}
        return run_bfcl(
            chat_model,
            chat_tokenizer,
            tmp_path,
            **{"categories": ["multiple", "irrelevance"], **options, **changes},
        )

    first = run()
    file = tmp_path / "responses.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    file.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # as if killed
    again = run()
    assert again["responses"] == first["responses"]
    assert again["categories"] == first["categories"]
    kept = file.read_bytes().splitlines(keepends=True)
    assert kept[:4] == lines[:4] and len(kept) == 7
    more = run(categories=["non_live_python"], limit=2)
    assert [*more["categories"]] == [
        *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance")
    ]
    with pytest.raises(ValueError, match=r"calls 'free', now 'required'"):
        run(calls="required")
    # No calls: right for irrelevance, wrong for the rest.
    assert more["categories"]["irrelevance"]["fraction"] == 1
    assert more["categories"]["multiple"]["fraction"] == 0
    assert more["v3"]["overall"] is None
    assert (tmp_path / "score" / "data_overall.csv").exists()


def test_multi_turn_goes_through_a_session(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    report = run_bfcl(
        chat_model,
        chat_tokenizer,
        tmp_path,
        categories=["multi_turn_base"],
        limit=1,
        max_new_tokens=4,
        do_sample=False,
        picture=False,
    )
    # The random model's context of 20,000 does not hold this tokenizer's prompt of 30 tools.
    assert report["categories"]["multi_turn_base"]["count"] == 1


def test_the_session_keeps_the_conversation_and_replays_the_same_tokens(
    chat_model: CausalLM, chat_tokenizer: Tokenizer
) -> None:
    from lfm_engine.evaluate.bfcl.respond import Responder

    config = chat_model.generation_config.merged(max_new_tokens=12, do_sample=False)
    responder = Responder(chat_model, chat_tokenizer, config, "free")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    talk: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    for _ in range(3):
        reply = responder.respond(talk, tools, True)
        fresh = Responder(chat_model, chat_tokenizer, config, "free").respond(talk, tools, True)
        assert fresh == reply
        talk += [{"role": "assistant", "content": reply.raw}, {"role": "tool", "content": "7"}]


def test_an_entry_that_fails_is_told_and_tried_again(
    chat_model: CausalLM,
    chat_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {
        "categories": ["simple_python"],
        "limit": 2,
        "max_new_tokens": 4,
        "do_sample": False,
        "picture": False,
    }
    conversation = handlers.EngineHandler.conversation

    def broken(self: Any, entry: Any) -> Any:
        if entry["id"] == "simple_python_1":
            raise RuntimeError("no such luck")
        return conversation(self, entry)

    monkeypatch.setattr(handlers.EngineHandler, "conversation", broken)
    report = run_bfcl(chat_model, chat_tokenizer, tmp_path, **options)
    assert report["errors"] == [{"key": "simple_python_1", "error": "RuntimeError: no such luck"}]
    assert report["categories"]["simple_python"]["count"] == 2
    monkeypatch.undo()
    assert run_bfcl(chat_model, chat_tokenizer, tmp_path, **options)["errors"] == []


def test_executed_calls_reach_nothing_but_the_benchmark() -> None:
    render = handlers.render_safely
    assert render("cd", {"folder": "a'b"}) == 'cd(folder="a\'b")'
    assert render("open", {"file": "x"}) == "open_(file='x')"
    assert render("importlib.import_module", {"name": "os"}) == "importlib_import_module(name='os')"
    assert render("json", {}) == "json_()"
    injected = {"x=print(1), y": 2}
    assert render("cd", injected) == "cd(**{'x=print(1), y': 2})"


def test_unknown_categories_and_modes_are_named(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="there is no category 'web_search'"):
        run_bfcl(chat_model, chat_tokenizer, tmp_path, categories=["web_search"])
    with pytest.raises(ValueError, match="calls must be one of free, auto, required"):
        run_bfcl(chat_model, chat_tokenizer, tmp_path, calls="always")
    with pytest.raises(ValueError, match="several turns"):
        run_bfcl(chat_model, chat_tokenizer, tmp_path, calls="required")
    assert not any(tmp_path.iterdir())


def test_results_are_official_files(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"limit": 1, "max_new_tokens": 4, "do_sample": False}
    report = run_bfcl(chat_model, chat_tokenizer, tmp_path, categories=["live_simple"], **options)
    (result,) = (tmp_path / "result").rglob("BFCL_v4_live_simple_result.json")
    assert json.loads(result.read_text())["id"] == report["responses"][0]["key"]
    assert (tmp_path / "report.png").stat().st_size > 5000
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_calls_are_complete_where_the_context_ends(
    chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from lfm_engine.evaluate.answering import Answer, Job, answer_all
    from lfm_engine.evaluate.bfcl.respond import Responder

    folder = golden_models.random_model(
        tmp_path / "model", vocab_size=300, eos_token_id=2, max_position_embeddings=1000
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", num_threads=1)
    config = model.generation_config.merged(max_new_tokens=900, do_sample=False)
    responder = Responder(model, chat_tokenizer, config, "required")
    parameters = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "list": {"type": "array", "items": {"type": "string"}},
            "any": {},
        },
        "required": ["text", "list", "any"],
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    reader = handlers.EngineHandler()
    told: list[Answer] = []
    for room in (80, 200, 700, 950):
        prompt = [5 + index % 200 for index in range(1000 - room)]
        job = Job(prompt, responder.constraint(tools, len(prompt)))
        answer_all(model, chat_tokenizer, [job], config, told.append)
        result, kind = reader.read(responder.reply(told[-1]), tools)
        assert kind == "calls" and told[-1].finish_reason == "stop", responder.reply(told[-1])
        assert {*json.loads(result[0]["f"])} == {"text", "list", "any"}
    assert min(answer.new_tokens for answer in told) < 80
