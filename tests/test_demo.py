"""The miniature model in the package, the command that shows it, and the data it was trained on."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm_engine import AutoModelForCausalLM, AutoTokenizer, CausalLM, cli, parse_tool_calls
from lfm_engine.checkpoint.hub import DEMO_FOLDER
from lfm_engine.demo_command import FUNCTIONS
from lfm_engine.tokenizer import Tokenizer

TOOLS = Path(__file__).parent.parent / "tools" / "demo_model"
MOST_BYTES = 12_000_000

sys.path.insert(0, str(TOOLS))
data: Any = importlib.import_module("data")
tokens: Any = importlib.import_module("tokens")
toolbox: Any = importlib.import_module("toolbox")
words: Any = importlib.import_module("words")
sys.path.remove(str(TOOLS))
SEED = 20_000_001
COUNT = 24


@pytest.fixture(scope="module")
def demo() -> CausalLM:
    return AutoModelForCausalLM.from_pretrained("demo", dtype="float32", num_threads=1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained("demo")


def held_out(task: str, count: int = COUNT) -> list[Any]:
    return [data.draw(SEED, index, task=task, held=True) for index in range(count)]


def prompt_ids(tokenizer: Tokenizer, example: Any) -> list[int]:
    return list(tokenizer(example.prompt(), add_special_tokens=False).input_ids)


# -- the checkpoint --


def test_ships_with_all_its_files_and_is_small() -> None:
    names = {file.name for file in DEMO_FOLDER.iterdir()}
    assert {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    assert sum(file.stat().st_size for file in DEMO_FOLDER.iterdir()) < MOST_BYTES


def test_a_folder_named_demo_is_in_the_way_only_if_it_holds_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert AutoTokenizer.from_pretrained("demo").bos_token_id == tokens.BOS
    (tmp_path / "demo" / "config.json").write_text("{}")
    with pytest.raises(OSError, match="demo"):
        AutoTokenizer.from_pretrained("demo")


@pytest.mark.filterwarnings("default")  # transformers' own
def test_equals_transformers(demo: CausalLM, tokenizer: Tokenizer) -> None:
    torch = pytest.importorskip("torch", reason="the oracle needs torch and transformers")
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(DEMO_FOLDER, dtype="float32")
    theirs = transformers.AutoTokenizer.from_pretrained(DEMO_FOLDER)
    for task in ("call", "extract", "classify"):
        (example,) = held_out(task, 1)
        ids = prompt_ids(tokenizer, example)
        rendered = theirs.apply_chat_template(
            example.messages,
            tools=example.tools or None,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert rendered == ids
        with torch.no_grad():
            expected = oracle(torch.tensor([ids])).logits.numpy()
            continued = oracle.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)
        assert np.abs(demo(ids).logits - expected).max() < 2e-3
        ours = demo.generate(ids, max_new_tokens=24)
        assert ours.tolist() == continued.tolist()


@pytest.mark.engine
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_a_batch_answers_as_each_prompt_alone(tokenizer: Tokenizer, dtype: str) -> None:
    model = AutoModelForCausalLM.from_pretrained("demo", dtype=dtype, num_threads=2)
    rows = [
        prompt_ids(tokenizer, e) for t in ("call", "extract", "classify") for e in held_out(t, 2)
    ]
    together = model.generate(rows, max_new_tokens=20)
    for row, out in zip(rows, together, strict=True):
        alone = model.generate(row, max_new_tokens=20)[0]
        kept = np.trim_zeros(out, "b")
        assert kept.tolist() == np.trim_zeros(alone, "b").tolist()


@pytest.mark.engine
def test_constrained_calls_parse_and_fit(demo: CausalLM, tokenizer: Tokenizer) -> None:
    finished = 0
    examples = held_out("call", 12) + held_out("parallel", 6)
    for example in examples:
        answer = demo.chat(
            example.messages,
            tokenizer=tokenizer,
            tools=example.tools,
            tool_choice="required",
            max_new_tokens=400,
        )
        if answer.finish_reason == "length":  # a small model may go round in circles
            continue
        finished += 1
        assert answer.finish_reason == "tool_calls"
        schemas = {
            tool["name"]: tool["parameters"]
            for tool in (tool.get("function", tool) for tool in example.tools)
        }
        for call in answer.tool_calls:
            parameters = schemas[call["name"]]
            assert set(parameters["required"]) <= set(call["arguments"])
            assert set(call["arguments"]) <= set(parameters["properties"])
    assert finished > len(examples) // 2


@pytest.mark.engine
def test_constrained_records_fit_their_schema(demo: CausalLM, tokenizer: Tokenizer) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for example in held_out("extract", 12):
        form = {"type": "json_schema", "json_schema": {"name": "r", "schema": example.schema}}
        answer = demo.chat(
            example.messages, tokenizer=tokenizer, response_format=form, max_new_tokens=400
        )
        jsonschema.validate(json.loads(answer.text), example.schema)


# -- the command --


@pytest.mark.engine
def test_the_command_shows_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--threads", "2"]) == 0
    text = capsys.readouterr().out
    for expected in ("miniature", "Tool calls", "JSON", "texts/s", "LiquidAI/LFM2.5-350M", ".gguf"):
        assert expected in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_tools_of_the_command_compute() -> None:
    assert FUNCTIONS["convert_units"](42, "km", "miles") == "26.1"
    assert FUNCTIONS["calculate"]("17 * 23 - 1") == "390"
    with pytest.raises(ValueError, match="numbers"):
        FUNCTIONS["calculate"]("__import__('os')")


# -- the data --


def test_draws_depend_on_seed_and_index_alone() -> None:
    for task in data.TASK_NAMES:
        assert data.draw(3, 4, task=task) == data.draw(3, 4, task=task)
        assert data.draw(3, 4, task=task) != data.draw(4, 4, task=task)
    # A change of the generator changes what the card says of the model: say so there.
    example = data.draw(1, 2, task="extract")
    assert json.loads(example.answer) == example.expect


def test_training_never_draws_what_is_held_out() -> None:
    held = {key.name for key in toolbox.keys(True)} | set(words.HELD_NOUNS)
    held |= {tool.name for tool in toolbox.written_tools(True)}
    for index in range(1500):
        example = data.draw(1, index)
        names = {
            part
            for tool in example.tools
            for part in re.split(r"[_ ]", tool.get("function", tool)["name"])
        }
        names |= {
            key
            for tool in example.tools
            for key in tool.get("function", tool)["parameters"]["properties"]
        }
        names |= set((example.schema or {}).get("properties", ()))
        assert not names & held


def test_held_out_examples_have_an_unseen_name() -> None:
    unseen = {key.name for key in toolbox.keys(True)}
    for example in held_out("extract", 100):
        assert unseen & set(example.schema["properties"])
    written = {tool.name for tool in toolbox.written_tools(True)}
    for example in held_out("call", 100):
        for tool in example.tools:
            name = tool.get("function", tool)["name"]
            assert name in written or any(noun in name.lower() for noun in words.HELD_NOUNS)


@pytest.mark.parametrize("held", [False, True])
def test_prompts_are_those_of_the_template(tokenizer: Tokenizer, held: bool) -> None:
    for task in data.TASK_NAMES:
        for example in (data.draw(3, index, task=task, held=held) for index in range(12)):
            rendered = tokenizer.apply_chat_template(
                example.messages,
                tools=example.tools or None,
                add_generation_prompt=True,
                tokenize=False,
            )
            assert rendered == example.prompt()


@pytest.mark.parametrize("held", [False, True])
def test_answers_mean_what_is_expected(held: bool) -> None:
    def drawn(task: str) -> list[Any]:
        return [data.draw(3, index, task=task, held=held) for index in range(100)]

    for example in [*drawn("call"), *drawn("parallel")]:
        assert parse_tool_calls(example.answer, example.tools) == example.expect
    for example in drawn("extract"):
        assert json.loads(example.answer) == example.expect
    for example in drawn("classify"):
        assert example.expect in example.labels


def test_training_learns_from_each_turn() -> None:
    turns = []
    for task in ("call", "extract"):
        for index in range(40):
            example = data.draw(3, index, task=task)
            said = [text for text, assistant in example.parts() if assistant]
            assert said[-1] == example.answer + "<|im_end|>"
            assert len(said) == 1 + sum(m["role"] == "assistant" for m in example.messages)
            turns.append(len(said))
    assert max(turns) > 2


def test_texts_survive_the_tokenizer(tokenizer: Tokenizer) -> None:
    for task in data.TASK_NAMES:
        for example in held_out(task, 6):
            assert tokenizer.decode(prompt_ids(tokenizer, example)) == example.prompt()


def test_values_are_spelled_alike_after_any_mark(tokenizer: Tokenizer) -> None:
    word: list[Any] = list(tokenizer("Marelot", add_special_tokens=False).input_ids)
    assert len(word) == 7
    for before in ' "([_=':
        ids = list(tokenizer(f"x{before}Marelot", add_special_tokens=False).input_ids)
        assert ids[-7:] == word
