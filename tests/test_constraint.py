"""Constraints of one's own; response formats that are wrong raise before the first token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lfm_engine import CausalLM, Constraint, _core
from lfm_engine.tokenizer import Tokenizer
from structured import PROMPT, SAMPLE, Anything, json_format

pytestmark = pytest.mark.engine


# -- constraints of one's own --


class Own(Constraint):
    """Allows what a function of the tokens so far returns."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.tokens: list[int] = []

    def allowed(self) -> Any:
        return self.function(self.tokens)

    def accept(self, token: int) -> None:
        self.tokens.append(token)


def test_what_a_constraint_may_return(chat_model: CausalLM) -> None:
    wanted = [40, 41, 299]
    flags = np.zeros(300, bool)
    flags[wanted] = True
    words = np.zeros(10, np.uint32)
    for token in wanted:
        words[token // 32] |= np.uint32(1 << token % 32)
    for answer in (
        wanted,
        tuple(wanted),
        set(wanted),
        np.array(wanted),
        flags,
        words,
        iter(wanted),
    ):
        kept = answer if not hasattr(answer, "__next__") else None
        for seed in range(3):
            own = Own(lambda tokens, kept=kept: wanted if kept is None else kept)
            out = chat_model.generate(PROMPT, max_new_tokens=8, constraint=own, seed=seed, **SAMPLE)
            new = out[0, len(PROMPT) :].tolist()
            assert set(new) <= set(wanted)
            assert own.tokens == new
    # None for some steps only.
    own = Own(lambda tokens: [50] if len(tokens) % 2 else None)
    new = chat_model.generate(PROMPT, max_new_tokens=8, constraint=own)[0, len(PROMPT) :]
    assert new[1::2].tolist() == [50] * 4
    free = chat_model.generate(PROMPT, max_new_tokens=8, constraint=Anything())
    assert np.array_equal(free, chat_model.generate(PROMPT, max_new_tokens=8))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([300], "outside the vocabulary of 300"),
        ([-1], "outside the vocabulary of 300"),
        (np.zeros(299, bool), r"shape \[300\]"),
        (np.zeros(9, np.uint32), r"shape \[10\]"),
        (np.zeros((1, 10), np.uint32), r"shape \[10\]"),
        ([1.5], "must return ids"),
        (["a"], "must return ids"),
        ([[1]], "must return ids"),
    ],
)
def test_wrong_answers_of_a_constraint(chat_model: CausalLM, answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"constraint: .*{message}"):
        chat_model.generate(PROMPT, max_new_tokens=4, constraint=Own(lambda tokens: answer))


def test_a_constraint_that_fails(chat_model: CausalLM) -> None:
    before = chat_model.generate(PROMPT, max_new_tokens=4)
    for empty in ([], np.zeros(10, np.uint32), np.zeros(300, bool)):
        with pytest.raises(RuntimeError, match="no token has a finite logit"):
            chat_model.generate(PROMPT, max_new_tokens=4, constraint=Own(lambda tokens, e=empty: e))

    def broken(tokens: list[int]) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        chat_model.generate(PROMPT, max_new_tokens=4, constraint=Own(broken))
    assert np.array_equal(chat_model.generate(PROMPT, max_new_tokens=4), before)


def test_prefix_allowed_tokens_fn(chat_model: CausalLM) -> None:
    calls: list[tuple[int, list[int]]] = []

    def function(batch_id: int, ids: Any) -> list[int]:
        assert ids.dtype == np.int64
        calls.append((batch_id, ids.tolist()))
        return [60 + batch_id] if len(ids) % 2 else [70, 71]

    rows = chat_model.generate(
        [PROMPT, PROMPT[:3]], max_new_tokens=6, prefix_allowed_tokens_fn=function
    )
    for index, (row, prompt) in enumerate(zip(rows, [PROMPT, PROMPT[:3]], strict=True)):
        for position in range(len(prompt), len(row)):
            allowed = [60 + index] if position % 2 else [70, 71]
            assert row[position] in allowed
            assert (index, row[:position].tolist()) in calls
    assert len(calls) == 12  # once for each token
    with pytest.raises(ValueError, match="prefix_allowed_tokens_fn returned no token"):
        chat_model.generate(PROMPT, max_new_tokens=6, prefix_allowed_tokens_fn=lambda b, ids: [])


# -- bad input --

BAD_FORMATS = [
    ("json", "must be a dict"),
    ({}, "type must be one of"),
    ({"type": "xml"}, "not 'xml'"),
    ({"type": ["json_object"]}, "type must be one of"),
    ({"type": "json_object", "schema": {}}, "'schema' does not belong to type 'json_object'"),
    ({"type": "json_schema"}, "json_schema must be"),
    ({"type": "json_schema", "json_schema": {"name": "x"}}, "with a JSON schema"),
    ({"type": "json_schema", "json_schema": {"schema": {}, "shema": 1}}, "unknown key 'shema'"),
    (json_format({"a": {1, 2}}), "is not JSON"),
    (json_format({}, whitespace="some"), "whitespace must be"),
    (json_format(False), "chema is false"),
    (json_format({"type": "strin"}), "Invalid type: strin"),
    (json_format({"not": {"type": "string"}}), '"not"'),
    (json_format({"type": "array", "uniqueItems": True}), '"uniqueItems"'),
    (json_format({"if": {}, "then": {}}), '"if", "then"'),
    (json_format({"type": "string", "format": "nonsense"}), "Unknown format: nonsense"),
    (json_format({"type": "string", "pattern": "(?=a)"}), "look-around"),
    (json_format({"type": "string", "pattern": "("}), "regex"),
    (json_format({"$ref": "#/$defs/none"}), "none"),
    (json_format({"enum": []}), "Unsatisfiable"),
    (json_format({"type": "integer", "minimum": 2, "maximum": 1}), "Unsatisfiable|minimum"),
    (json_format({"allOf": [{"type": "string"}, {"type": "null"}]}), "Unsatisfiable"),
    (
        json_format({"type": "object", "properties": {"a": False}, "required": ["a"]}),
        "Unsatisfiable",
    ),
    (json_format({"type": "array", "items": {"$ref": "#"}, "minItems": 1}), "without end"),
    ({"type": "regex"}, "regex must be a non-empty string"),
    ({"type": "regex", "regex": ""}, "regex must be a non-empty string"),
    ({"type": "regex", "regex": "a("}, "regex"),
    ({"type": "choice", "choice": []}, "choice must be a list"),
    ({"type": "choice", "choice": "yes"}, "choice must be a list"),
    ({"type": "choice", "choice": ["a", ""]}, "holds ''"),
    ({"type": "choice", "choice": ["a", 1]}, "holds 1"),
    ({"type": "lark", "lark": "start: x"}, "x"),
    ({"type": "lark", "lark": "nothing: /a/"}, "start"),
    ({"type": "lark", "lark": "start: start"}, "response_format"),
    ({"type": "lark", "lark": "start: <|no_such_token|>"}, "no_such_token"),
]


@pytest.mark.parametrize(("response_format", "message"), BAD_FORMATS, ids=str)
def test_bad_formats_raise_before_the_first_token(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, response_format: Any, message: str
) -> None:
    def put(value: Any) -> None:
        raise AssertionError("generation began")

    streamer = type("S", (), {"put": staticmethod(put), "end": staticmethod(lambda: None)})()
    with pytest.raises(ValueError, match=message) as error:
        chat_model.generate(
            PROMPT,
            max_new_tokens=20,
            response_format=response_format,
            tokenizer=chat_tokenizer,
            streamer=streamer,
        )
    assert "\n" not in str(error.value)
    assert "response_format" in str(error.value)


def test_bad_combinations(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    text = {"type": "json_object"}
    with pytest.raises(ValueError, match="response_format and constraint exclude"):
        chat_model.generate(PROMPT, response_format=text, constraint=Anything())
    with pytest.raises(ValueError, match="needs tokenizer="):
        chat_model.generate(PROMPT, response_format=text)
    with pytest.raises(ValueError, match="needs tokenizer="):
        chat_model.generate(PROMPT, response_format=text, tokenizer=object())
    with pytest.raises(ValueError, match="must be a Constraint"):
        chat_model.generate(PROMPT, constraint=[lambda: None])
    one = Anything()
    for given_constraints in ([], [one], [one, one], [one, Anything(), Anything()]):
        with pytest.raises(ValueError, match="2 prompts need as many"):
            chat_model.generate([PROMPT, PROMPT[:2]], constraint=given_constraints)
    free = chat_model.generate(PROMPT, max_new_tokens=4, response_format={"type": "text"})
    assert np.array_equal(free, chat_model.generate(PROMPT, max_new_tokens=4))


def test_masks_of_the_scheduler(chat_model: CausalLM) -> None:
    scheduler = _core.Scheduler(chat_model.core)
    request = scheduler.add(np.array(PROMPT), max_new_tokens=3)
    for bad in (
        np.zeros(9, np.uint32),
        np.zeros(10, np.int32),
        np.zeros((1, 10), np.uint32),
        np.zeros(20, np.uint32)[::2],
    ):
        with pytest.raises(
            ValueError, match="mask must be a contiguous uint32 array of at least 10"
        ):
            scheduler.set_mask(request, bad)
    with pytest.raises(ValueError, match="request 7 is not running"):
        scheduler.set_mask(7, None)
    with pytest.raises(ValueError, match="request 7 is not running"):
        scheduler.append(7, np.array([1]))
    with pytest.raises(ValueError, match="300"):
        scheduler.append(request, np.array([300]))
    # The scheduler keeps the array alive.
    scheduler.set_mask(request, np.full(10, 1 << 9, np.uint32))
    allowed = {9 + 32 * i for i in range(10)}
    assert {token for _, token, _ in scheduler.step()} <= allowed
    scheduler.set_mask(request, None)
    assert scheduler.append(request, np.array([3, 4, 5])) == [
        (request, 3, ""),
        (request, 4, "length"),
    ]
    assert scheduler.idle
