"""IFEval and IFBench: published scores, and runs on a small random model that go wrong."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import make_lm_eval_goldens
from conftest import RunPython
from lfm_engine import CausalLM, cli
from lfm_engine.evaluate import (
    MissingExtraError,
    compare_reports,
    run_instructions,
    score_responses,
)
from lfm_engine.evaluate import checkers as checking
from lfm_engine.evaluate import data as reading
from lfm_engine.evaluate.answering import Answer, Job, _Bell, answer_all
from lfm_engine.evaluate.intervals import wilson
from lfm_engine.evaluate.response_log import ResponseLog
from lfm_engine.tokenizer import Tokenizer

pytest.importorskip("if_verifiable", reason="if-verifiable is not installed")

EVALS = Path(__file__).resolve().parents[2] / "shared" / "data" / "evals"
needs_evals = pytest.mark.skipif(not EVALS.is_dir(), reason="needs ../shared/data/evals")
# Of the checkers' own imports.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROMPTS: list[dict[str, Any]] = [
    {
        "key": 10 + index,
        "prompt": f"Say {word}.",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [{}, {"keywords": [word]}],
    }
    for index, word in enumerate(["hello", "well", "twelve", "world", "hell"])
]
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": [], "picture": False}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "prompts.jsonl", PROMPTS)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def verdicts(report: dict[str, Any]) -> list[Any]:
    return [(each["key"], each["strict"], each["loose"]) for each in report["responses"]]


# -- published responses --


@needs_evals
def test_gpt4_scores_as_published(tmp_path: Path) -> None:
    report = score_responses(
        "ifeval",
        EVALS / "ifeval_input_response_data_gpt4_20231107_145030.jsonl",
        tmp_path,
        data=EVALS / "ifeval_input_data.jsonl",
    )
    hits = {name: (share["hits"], share["count"]) for name, share in report["scores"].items()}
    assert hits["prompt_strict"][0] in (416, 417)
    assert hits["instruction_strict"][0] in (697, 698)
    assert hits["prompt_loose"][0] in (430, 431)
    assert hits["instruction_loose"][0] in (713, 714)
    assert hits["prompt_loose"][1] == 541 and hits["instruction_loose"][1] == 834
    assert report["prompt_strict"] == hits["prompt_strict"][0] / 541
    assert report["errors"] == []
    assert report["matched_by_place"] == [2785]  # whose prompt was changed since
    assert len(report["responses"]) == 541
    assert sum(share["strict"]["count"] for share in report["categories"].values()) == 834
    low, high = report["scores"]["prompt_strict"]["interval"]
    assert 0.73 < low < report["prompt_strict"] < high < 0.81
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_what_checkers_draw_is_the_same_each_time() -> None:
    checkers = checking.Checkers("ifeval")
    letter = {"let_relation": "at least", "let_frequency": 1}  # of which letter is left open
    prompt = reading.Prompt(1122, "x", ["keywords:letter_frequency"], [letter])
    found = []
    for seed in range(20):
        random.seed(seed)
        found.append(checkers.check(prompt, "the quick brown fox").strict)
    assert found == found[:1] * 20


@needs_evals
def test_lm_evals_checkers_agree() -> None:
    utils = pytest.importorskip("lm_eval.tasks.ifeval.utils", reason="lm-eval is not installed")
    prompts = reading.load_prompts(EVALS / "ifeval_input_data.jsonl")
    responses, _ = reading.match_responses(
        EVALS / "ifeval_input_response_data_gpt4_20231107_145030.jsonl", prompts
    )
    checkers = checking.Checkers("ifeval")
    different = []
    for prompt in prompts:
        sample = utils.InputExample(prompt.key, prompt.instruction_ids, prompt.text, prompt.kwargs)
        strict = utils.test_instruction_following_strict(sample, responses[prompt.key])
        verdict = checkers.check(prompt, responses[prompt.key])
        if verdict.strict != strict.follow_instruction_list:
            different.append(prompt.key)
    assert set(different) <= {1122, 1129}  # these draw a random letter


@needs_evals
def test_ifbench_scores_and_names_what_is_missing(tmp_path: Path) -> None:
    report = score_responses(
        "ifbench",
        EVALS / "IFBench_sample_output.jsonl",
        tmp_path,
        data=EVALS / "IFBench_test.jsonl",
        picture=False,
    )
    missing = [e["key"] for e in report["errors"] if e["error"] == "there is no response"]
    assert len(missing) == 7
    others = [e["error"] for e in report["errors"] if e["key"] not in missing]
    # nltk's tagger is in no package: without a network one kind of instruction cannot be checked.
    assert all("averaged_perceptron_tagger" in error for error in others)
    assert len(others) in (0, 6)
    assert report["scores"]["prompt_strict"]["count"] == 300
    assert report["scores"]["prompt_strict"]["hits"] >= 74


# -- runs --


def test_a_killed_run_goes_on_where_it_stopped(
    chat_model: CausalLM,
    chat_tokenizer: Tokenizer,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(out: str, **options: Any) -> dict[str, Any]:
        return run_instructions(
            "ifeval",
            chat_model,
            chat_tokenizer,
            tmp_path / out,
            data=prompts,
            **{"max_new_tokens": 20, **GREEDY, **options},
        )

    whole = run("whole", batch_size=64)
    append = ResponseLog.append

    def killed(self: ResponseLog, record: Any) -> None:
        if len(self.records) == 3:
            raise KeyboardInterrupt
        append(self, record)

    monkeypatch.setattr(ResponseLog, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        run("killed", batch_size=2)
    monkeypatch.undo()
    file = tmp_path / "killed" / "responses.jsonl"
    assert len(file.read_bytes().splitlines()) == 4
    with file.open("ab") as stream:
        stream.write(b'{"key": 13, "response": "half')
    before = file.read_bytes().splitlines()[:4]
    resumed = run("killed", batch_size=3)
    assert file.read_bytes().splitlines()[:4] == before
    assert resumed["responses"] == whole["responses"]
    assert resumed["scores"] == whole["scores"]
    assert resumed["speed"]["new_tokens"] == 100 == 5 * 20
    assert resumed["speed"]["cut_off"] == 5
    calls: list[Any] = []
    monkeypatch.setattr(type(chat_model), "generate", lambda *_, **__: calls.append(1))
    assert run("killed")["responses"] == whole["responses"] and not calls


def test_a_longer_run_adds_to_a_shorter_one(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, prompts: Path, tmp_path: Path
) -> None:
    def run(limit: int | None) -> dict[str, Any]:
        return run_instructions(
            "ifeval",
            chat_model,
            chat_tokenizer,
            tmp_path / "out",
            data=prompts,
            limit=limit,
            max_new_tokens=4,
            **GREEDY,
        )

    few, every, again = run(2), run(None), run(2)
    assert [each["key"] for each in few["responses"]] == [10, 11]
    assert every["responses"][:2] == few["responses"] == again["responses"]
    assert len(every["responses"]) == 5


def test_a_run_with_other_settings_is_refused(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, model: CausalLM, prompts: Path, tmp_path: Path
) -> None:
    def run(model: CausalLM, **options: Any) -> None:
        options = {"max_new_tokens": 4, **GREEDY, **options}
        run_instructions("ifeval", model, chat_tokenizer, tmp_path, data=prompts, **options)

    run(chat_model)
    with pytest.raises(ValueError, match=r"another run \(generation .*'max_new_tokens': 4.*, now"):
        run(chat_model, max_new_tokens=5)
    with pytest.raises(ValueError, match=r"weights '[0-9a-f]{16}', now '[0-9a-f]{16}'"):
        run(model)
    write_lines(prompts, PROMPTS[1:])
    with pytest.raises(ValueError, match="data '"):
        run(chat_model)


def test_the_log_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"key": 1}\n')
    with pytest.raises(ValueError, match="holds no responses of this program"):
        ResponseLog(path, {})
    path.unlink()
    with ResponseLog(path, {"a": 1}) as log:
        log.append({"key": "x", "response": "\ud800 é"})
        with pytest.raises(ValueError, match="another process is writing"):
            ResponseLog(path, {"a": 1})
    with ResponseLog(path, {"a": 1}) as log:
        assert log.records["x"]["response"] == "\ud800 é"
    path.write_text(path.read_text("utf-8", "surrogatepass") + "{]\n", "utf-8", "surrogatepass")
    with pytest.raises(ValueError, match=r"log.jsonl, line 3: not a response"):
        ResponseLog(path, {"a": 1})


def test_a_full_disk_keeps_whole_lines(run_python: RunPython, tmp_path: Path) -> None:
    result = run_python(
        f"""
        import resource
        from lfm_engine.evaluate.response_log import ResponseLog

        path = {str(tmp_path / "log.jsonl")!r}
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
        with ResponseLog(path, {{"a": 1}}) as log:
            try:
                for key in range(100):
                    log.append({{"key": key, "response": "r" * 50}})
            except OSError as error:
                print(error, len(log.records))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            log.append({{"key": 50, "response": "there is room again"}})
        with ResponseLog(path, {{"a": 1}}) as log:
            print(sorted(log.records))
            log.append({{"key": 99, "response": "more"}})
        """
    )
    message, kept = result.stdout.splitlines()
    assert "log.jsonl: File too large; 4 responses are kept: the same command goes on" in message
    assert kept == "[0, 1, 2, 3, 50]"
    assert len((tmp_path / "log.jsonl").read_bytes().splitlines()) == 7


def test_a_checker_that_raises_is_told_and_the_rest_is_scored(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import if_verifiable

    rows = [{"key": row["key"], "response": row["kwargs"][1]["keywords"][0]} for row in PROMPTS]
    responses = write_lines(tmp_path / "responses.jsonl", rows)
    original = if_verifiable.evaluate_output_for_sample

    def broken(benchmark: str, sample: Any, response: str) -> Any:
        if sample.key == 12:
            raise ZeroDivisionError("of the checker")
        return original(benchmark, sample, response)

    monkeypatch.setattr(if_verifiable, "evaluate_output_for_sample", broken)
    report = score_responses("ifeval", responses, tmp_path / "out", data=prompts, picture=False)
    assert report["errors"] == [{"key": 12, "error": "ZeroDivisionError: of the checker"}]
    assert [each["prompt_strict"] for each in report["responses"]] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert report["prompt_strict"] == 0.8 and report["instruction_loose"] == 0.8


def test_a_prompt_over_the_context_is_an_error_of_its_own(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    long = {**PROMPTS[1], "prompt": "x" * 30_000}
    data = write_lines(tmp_path / "prompts.jsonl", [PROMPTS[0], long, PROMPTS[2]])
    report = run_instructions(
        "ifeval", chat_model, chat_tokenizer, tmp_path, data=data, max_new_tokens=4, **GREEDY
    )
    (error,) = report["errors"]
    assert error["key"] == 11 and "the model's context" in error["error"]
    assert [each["finish_reason"] for each in report["responses"]] == ["length", "error", "length"]


# -- data --


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not a JSON object"),
        ('{"key": 1}', "line 2: prompt is missing"),
        (json.dumps({**PROMPTS[0], "kwargs": [{}]}), "line 2: 2 instructions, but kwargs for 1"),
        (json.dumps({**PROMPTS[0], "prompt": 3}), "line 2: prompt must be text"),
        (json.dumps(PROMPTS[0]), "line 2: the key 10 comes twice"),
    ],
)
def test_a_broken_line_in_the_data_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(PROMPTS[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=f"prompts.jsonl, {message}"):
        reading.load_prompts(path)


def test_an_unknown_instruction_is_named(tmp_path: Path) -> None:
    row = {**PROMPTS[0], "instruction_id_list": ["punctuation:no_comma", "words:rhyme"]}
    data = write_lines(tmp_path / "prompts.jsonl", [row])
    responses = write_lines(tmp_path / "responses.jsonl", [{"key": 10, "response": "x"}])
    with pytest.raises(ValueError, match="no checker of 'words:rhyme' for ifeval"):
        score_responses("ifeval", responses, tmp_path, data=data, picture=False)


def test_responses_are_matched_by_key_prompt_and_place(tmp_path: Path, prompts: Path) -> None:
    loaded = reading.load_prompts(prompts)
    rows = [
        {"prompt": " Say well. ", "response": "b"},
        {"key": "10", "response": "a"},
        {"prompt": "Say 12, please.", "response": "c"},
        {"key": 13, "response": "d"},
        {"prompt": "Say hell.", "response": "e"},
    ]
    found, by_place = reading.match_responses(write_lines(tmp_path / "r.jsonl", rows), loaded)
    assert found == {10: "a", 11: "b", 12: "c", 13: "d", 14: "e"} and by_place == [12]
    found, by_place = reading.match_responses(write_lines(tmp_path / "r.jsonl", rows[:3]), loaded)
    assert found == {10: "a", 11: "b"} and by_place == []
    with pytest.raises(ValueError, match="line 1: response must be text"):
        reading.match_responses(write_lines(tmp_path / "r.jsonl", [{"key": 10}]), loaded)
    with pytest.raises(ValueError, match="no response is to one of the prompts"):
        reading.match_responses(write_lines(tmp_path / "r.jsonl", [rows[2]]), loaded)


def test_prompts_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"train": PROMPTS})
    assert [prompt.key for prompt in reading.load_prompts("google/IFEval")] == [10, 11, 12, 13, 14]

    def unreachable(name: str) -> None:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(OSError, match=r"google/IFEval: neither a file nor .*: no network$"):
        reading.load_prompts("google/IFEval")


# -- what is missing --


@pytest.mark.parametrize("module", ["if_verifiable", "matplotlib.figure", "langdetect"])
def test_a_missing_extra_is_named_before_anything_is_done(
    module: str, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lfm-engine\[eval\]'"):
        score_responses("ifeval", tmp_path / "none", tmp_path / "out", data=prompts)
    arguments = ["eval", "ifeval", "--responses", str(prompts), "--data", str(prompts)]
    assert cli.main([*arguments, "-o", str(tmp_path / "out")]) == 2
    assert module.partition(".")[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_data_of_nltk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    monkeypatch.setattr("lfm_engine.evaluate.extras._NLTK_FOLDER", "nowhere")
    with pytest.raises(MissingExtraError, match="pip install --no-deps llama-index-core"):
        checking.Checkers("ifeval")


# -- the rest --


def test_wilsons_interval() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    # From the formula's first publication in tables: 0 and 10 of 10, 417 of 541.
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson(417, 541) == pytest.approx((0.73349, 0.80424), abs=1e-4)


def test_reports_are_compared(tmp_path: Path, prompts: Path) -> None:
    def report(words: list[str]) -> dict[str, Any]:
        rows = [{"key": row["key"], "response": w} for row, w in zip(PROMPTS, words, strict=False)]
        return score_responses(
            "ifeval",
            write_lines(tmp_path / "r.jsonl", rows),
            tmp_path / str(len(words)),
            data=prompts,
            picture=False,
        )

    first = report(["hello", "well", "no", "world", "no, no"])
    second = report(["hello", "no", "no", "world"])
    result = compare_reports(first, second)
    assert result["common"] == 4  # the fifth has no response
    assert result["scores"]["prompt_strict"]["same"]["hits"] == 3
    assert result["scores"]["prompt_strict"]["first"]["hits"] == 3
    assert result["scores"]["prompt_strict"]["second"]["hits"] == 2
    assert result["scores"]["instruction_strict"]["same"]["count"] == 8
    assert result["different"]["prompt_strict"] == ["11"]
    files = [str(tmp_path / name / "report.json") for name in ("5", "4")]
    assert cli.main(["eval", "compare", *files, "-o", str(tmp_path / "both.json")]) == 0
    assert json.loads((tmp_path / "both.json").read_text()) == result
    with pytest.raises(ValueError, match="different benchmarks"):
        compare_reports(first, {**second, "benchmark": "ifbench"})


def test_the_command_line(tmp_path: Path, prompts: Path, capsys: Any) -> None:
    folder = make_lm_eval_goldens.write_model(tmp_path / "model")
    out = tmp_path / "out"
    arguments = ["eval", "ifeval", "--data", str(prompts), "-o", str(out)]
    options = ["--dtype", "float32", "--threads", "1", "--greedy", "--max-new-tokens", "5"]
    assert cli.main([*arguments, str(folder), *options, "--limit", "3", "--batch-size", "2"]) == 0
    shown = capsys.readouterr().out
    assert "prompts" in shown and "tokens/s" in shown and "if-verifiable" in shown
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["model"] == str(folder)
    assert report["settings"]["dtype"] == "float32"
    assert report["settings"]["generation"]["max_new_tokens"] == 5
    assert (out / "report.png").exists()
    # Our own file of responses can be scored again, without the model.
    again = [*arguments[:-1], str(tmp_path / "again"), "--limit", "3", "--no-picture"]
    assert cli.main([*again, "--responses", str(out / "responses.jsonl")]) == 0
    scored = json.loads((tmp_path / "again" / "report.json").read_text())
    assert verdicts(scored) == verdicts(report)
    assert not (tmp_path / "again" / "report.png").exists()
    assert cli.main(arguments) == 2
    assert "MODEL is missing" in capsys.readouterr().err


def test_each_answer_is_told_when_it_is_complete(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that end early come first, and all are those of each prompt alone."""
    six_wait = threading.Event()
    # The engine's thread holds its first prompt until six are there, however slow this thread is.
    monkeypatch.setattr(_Bell, "put", lambda *_: six_wait.wait(60))
    prompts = [[1, *range(5 + index, 25 + index)] for index in range(12)]
    ends = list(range(0, 300, 7))
    config = chat_model.generation_config.merged(
        max_new_tokens=30, do_sample=False, eos_token_id=ends
    )
    told: list[Answer] = []

    def jobs() -> Iterator[Job]:
        for index, prompt in enumerate(prompts):
            if index == 6:
                six_wait.set()
            yield Job(prompt)

    answer_all(chat_model, chat_tokenizer, jobs(), config, told.append, batch_size=6)
    assert sorted(answer.index for answer in told) == list(range(12))
    # Six run at once (the first a step ahead): who has the fewest tokens comes first.
    counts = {answer.index: answer.new_tokens for answer in told}
    assert counts[told[0].index] <= min(counts[index] for index in range(6)) + 1
    assert [answer.index for answer in told] != list(range(12))
    assert len({answer.new_tokens for answer in told}) > 3
    for answer in told:
        alone = chat_model.generate(prompts[answer.index], config, return_dict_in_generate=True)
        ids = [int(token) for token in alone.sequences[0][len(prompts[answer.index]) :]]
        assert answer.finish_reason == alone.finish_reasons[0]
        assert answer.new_tokens == len(ids)
        assert answer.ids == (ids[:-1] if answer.finish_reason == "stop" else ids)


def test_an_answer_that_cannot_be_written_ends_the_run(
    chat_model: CausalLM, chat_tokenizer: Tokenizer
) -> None:
    def full(answer: Answer) -> None:
        raise OSError("No space left on device")

    for ends in ([], list(range(300))):  # at the limit, and before
        config = chat_model.generation_config.merged(max_new_tokens=3, eos_token_id=ends)
        with pytest.raises(OSError, match="No space left"):
            answer_all(chat_model, chat_tokenizer, [Job([1, 5])], config, full)


@pytest.mark.parametrize(
    "option", [{"min_new_tokens": 4}, {"stop_strings": ["a", "e", "i", "o", "u"]}]
)
def test_options_that_need_the_end_give_the_same_answers(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, option: dict[str, Any]
) -> None:
    prompts = [[1, *range(5 + index, 15 + index)] for index in range(3)]
    config = chat_model.generation_config.merged(
        max_new_tokens=20, do_sample=False, eos_token_id=list(range(0, 300, 7)), **option
    )
    told: list[Answer] = []
    jobs = [Job(prompt) for prompt in prompts]
    answer_all(chat_model, chat_tokenizer, jobs, config, told.append)
    told.sort(key=lambda answer: answer.index)
    rows = chat_model.generate(
        prompts, config, tokenizer=chat_tokenizer, return_dict_in_generate=True
    )
    assert [answer.new_tokens for answer in told] == rows.new_tokens
    assert [answer.finish_reason for answer in told] == rows.finish_reasons
