"""What tests of structured output share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lfm_engine import Constraint
from lfm_engine.constraint import GrammarConstraint, compile_grammar
from lfm_engine.response_format import response_grammar
from lfm_engine.tokenizer import Tokenizer

PROMPT = [1, 71, 94, 5, 30, 99]
SAMPLE = {"do_sample": True, "temperature": 1.0, "top_k": 0, "repetition_penalty": 1.0}

OBJECT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "ok"],
}
# Each has only finitely many texts, so that a random model comes to an end.
SCHEMAS: list[Any] = [
    OBJECT,
    {"type": "boolean"},
    {"type": "null"},
    {"const": {"a": [1, "x", None]}},
    {"enum": ["red", "green", 3, None, True, [1, 2], {"k": "v"}]},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "integer", "minimum": -5, "maximum": 1000},
    {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 12},
    {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 7},
    {"type": ["boolean", "null"]},
    {"anyOf": [{"type": "boolean"}, {"const": "x"}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"const": 1}],
        "items": False,
        "minItems": 2,
    },
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 2,
    },
    {
        "type": "object",
        "properties": {"properties": {"type": "boolean"}, "enum": {"type": "null"}},
        "required": ["enum", "properties"],
    },
    {
        "type": "object",
        "properties": {
            "a": {
                "type": "object",
                "properties": {
                    "b": {
                        "type": "object",
                        "properties": {"c": {"type": "boolean"}},
                        "required": ["c"],
                    }
                },
                "required": ["b"],
            }
        },
        "required": ["a"],
    },
    {
        "$defs": {
            "p": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
        },
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/p"}, "q": {"$ref": "#/$defs/p"}},
        "required": ["q"],
    },
    {
        "properties": {"a": {}, "b": {}},
        "additionalProperties": False,
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
        ],
    },
    {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
    {
        "type": "object",
        "properties": {
            "größe": {"enum": ["ü", "漢字", "🙂", 'quo"te', "back\\slash", "new\nline"]}
        },
        "required": ["größe"],
    },
]


def json_format(schema: Any, **options: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}, **options}


def new_text(tokenizer: Tokenizer, out: Any, row: int = 0, prompt: int = len(PROMPT)) -> str:
    ids = out.sequences[row][prompt : prompt + out.new_tokens[row]]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


class Plain(Constraint):
    """A constraint without its shortcut: a model step for every token."""

    def __init__(self, inner: Constraint) -> None:
        self.inner = inner
        self.steps = 0

    def allowed(self) -> Any:
        self.steps += 1
        return self.inner.allowed()

    def accept(self, token: int) -> None:
        self.inner.accept(token)

    @property
    def is_finished(self) -> bool:
        return self.inner.is_finished


class Counted(Plain):
    """A constraint with its shortcut, that counts how many tokens were sampled."""

    def forced(self) -> Sequence[int]:
        return self.inner.forced()


def compiled(
    response_format: Any, tokenizer: Tokenizer, vocab_size: int = 300, eos: Sequence[int] = (2,)
) -> GrammarConstraint:
    grammar = response_grammar(response_format)
    assert grammar is not None
    return compile_grammar([grammar], tokenizer, vocab_size, eos, "test")


class Anything(Constraint):
    def allowed(self) -> None:
        return None
