"""What the miniature in the package does, and that no way of computing it does it worse."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm_engine import AutoModelForCausalLM, AutoTokenizer, CausalLM
from lfm_engine.tokenizer import Tokenizer

TOOLS = Path(__file__).parent.parent / "tools" / "demo_model"
sys.path.insert(0, str(TOOLS))
evaluate: Any = importlib.import_module("evaluate")
sys.path.remove(str(TOOLS))

COUNT = 40
# Of COUNT held-out answers; the card has the shares. Weights that are worse are not to be shipped.
LEAST = {"call": 30, "parallel": 22, "no call": 39, "extract": 37, "classify": 39, "instruct": 37}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return AutoTokenizer.from_pretrained("demo")


def load(dtype: str) -> CausalLM:
    return AutoModelForCausalLM.from_pretrained("demo", dtype=dtype, num_threads=2)


def held_out(task: str) -> list[Any]:
    return [evaluate.draw(evaluate.TEST_SEED, i, task=task, held=True) for i in range(COUNT)]


def right_answers(model: CausalLM, tokenizer: Tokenizer, task: str) -> int:
    examples = held_out(task)
    texts = evaluate.answers(model, tokenizer, examples)
    return sum(evaluate.is_right(e, text) for e, text in zip(examples, texts, strict=True))


@pytest.fixture(scope="module")
def scores(tokenizer: Tokenizer) -> dict[str, int]:
    model = load("float32")
    return {task: right_answers(model, tokenizer, task) for task in LEAST}


def test_answers_to_unseen_tools_and_keys(scores: dict[str, int]) -> None:
    assert {task: min(scores[task], least) for task, least in LEAST.items()} == LEAST


@pytest.mark.parametrize(("dtype", "lost"), [("bfloat16", 3), ("int8", 4), ("int4", 6)])
def test_rounding_costs_few_answers(
    scores: dict[str, int], tokenizer: Tokenizer, dtype: str, lost: int
) -> None:
    model = load(dtype)
    found = {task: right_answers(model, tokenizer, task) for task in LEAST}
    assert sum(found.values()) >= sum(scores.values()) - lost, found


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_drafts_come_true_and_change_nothing(tokenizer: Tokenizer, dtype: str) -> None:
    """Calls and records repeat what the prompt says: lookup finds much of it."""
    model = load(dtype)
    drafted = accepted = 0
    for example in [*held_out("call")[:6], *held_out("extract")[:6]]:
        ids = list(tokenizer(example.prompt(), add_special_tokens=False).input_ids)
        plain = model.generate(ids, max_new_tokens=80, speculation=0)
        out = model.generate(ids, max_new_tokens=80, speculation=8, return_dict_in_generate=True)
        assert np.array_equal(out.sequences, plain)
        drafted += out.speculation.drafted_tokens
        accepted += out.speculation.accepted_tokens
    assert accepted > 0.3 * drafted > 0
