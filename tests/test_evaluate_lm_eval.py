"""The engine as a model of lm-eval: requests against its own `hf` model, and a whole task."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import make_lm_eval_goldens as goldens
from lfm_engine import cli

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lfm_engine.evaluate.harness import EngineLM  # noqa: E402

# lm-eval and what it imports, not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return goldens.write_model(tmp_path_factory.mktemp("lm_eval") / "model")


@pytest.fixture(scope="module")
def lm(folder: Path) -> Any:
    return EngineLM(folder, dtype="float32", num_threads=1, max_length=goldens.MAX_LENGTH)


def test_all_requests_give_what_the_hf_model_gives(lm: Any) -> None:
    expected = json.loads(goldens.FILE.read_text())
    found = goldens.ask(lm)
    for (logprob, greedy), (other, other_greedy) in zip(
        found["loglikelihood"], expected["loglikelihood"], strict=True
    ):
        assert logprob == pytest.approx(other, rel=1e-5)
        assert greedy == other_greedy
    assert found["rolling"] == pytest.approx(expected["rolling"], rel=1e-5)
    assert found["generated"] == expected["generated"]


def write_tasks(folder: Path) -> None:
    """A task of each kind, on data of our own."""
    folder.mkdir()
    questions = [{"q": f"Is {n} even?", "answer": n % 2} for n in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "data.jsonl"}}}}}
test_split: test
"""
    (folder / "choice.yaml").write_text(
        f"""task: tiny_choice
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list: [{{metric: acc}}]
{common}"""
    )
    (folder / "text.yaml").write_text(
        f"""task: tiny_text
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "no"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
metric_list: [{{metric: exact_match}}]
{common}"""
    )
    (folder / "rolling.yaml").write_text(
        f"""task: tiny_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{q}}}}"
metric_list: [{{metric: bits_per_byte}}]
{common}"""
    )


@pytest.mark.parametrize("chat", [False, True])
def test_simple_evaluate_runs_tasks_of_each_kind(
    lm: Any, chat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf" / "datasets"))
    logging.disable(logging.WARNING)
    write_tasks(tmp_path / "tasks")
    monkeypatch.setattr(lm, "max_length", lm.model.config.max_position_embeddings)
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=["tiny_choice", "tiny_text", *([] if chat else ["tiny_rolling"])],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path / "tasks")),
        apply_chat_template=chat,
        bootstrap_iters=0,
        limit=4,
    )
    logging.disable(logging.NOTSET)
    found = results["results"]
    assert 0 <= found["tiny_choice"]["acc,none"] <= 1
    assert found["tiny_text"]["exact_match,none"] == 0
    if not chat:
        assert found["tiny_rolling"]["bits_per_byte,none"] > 0
    prompt = results["samples"]["tiny_text"][0]["arguments"][0][0]
    assert ("<im>assistant" in prompt) == chat


def test_the_command_line_is_lm_evals(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf" / "datasets"))
    write_tasks(tmp_path / "tasks")
    arguments = [
        "--tasks",
        "tiny_choice",
        "--include_path",
        str(tmp_path / "tasks"),
        "--limit",
        "2",
    ]
    status = cli.main(["eval", "lm-eval", "--dtype", "float32", str(folder), *arguments])
    assert status == 0
    out = capsys.readouterr().out
    assert "tiny_choice" in out and "acc" in out and "lfm-engine" in out


def test_bad_requests_are_named(lm: Any, folder: Path, capsys: Any) -> None:
    with pytest.raises(ValueError, match="leaves no room in a context of 48"):
        lm.generate_until([goldens.SimpleNamespace(args=("x", {"max_gen_toks": 100}))])
    with pytest.raises(ValueError, match="max_length must be between 1 and"):
        EngineLM(folder, max_length=10**9)
    with pytest.raises(ValueError, match="needs tokenizer="):
        EngineLM(lm.model)
    assert cli.main(["eval", "lm-eval", "a,b", "--tasks", "x"]) == 2
    assert "comma" in capsys.readouterr().err
