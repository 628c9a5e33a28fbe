"""Constrained tool calls: what is generated parses and fits the schema of its tool."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from lfm_engine import (
    CausalLM,
    parse_tool_calls,
    render_tool_calls,
)
from lfm_engine.constraint import compile_grammar
from lfm_engine.tokenizer import Tokenizer
from lfm_engine.tool_grammar import tool_grammar
from lfm_engine.tool_schema import function_schemas
from tools import FLAG, START, TOOLS, chatted, tool, validator

pytestmark = pytest.mark.engine


# -- calls fit --


@pytest.mark.parametrize("entry", TOOLS, ids=lambda entry: str(function_schemas([entry]).keys()))
def test_calls_fit_their_schema(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, entry: Any
) -> None:
    name, schema = validator(entry)
    complete = 0
    for seed in range(12):
        found = chatted(
            chat_model, chat_tokenizer, tools=[entry], tool_choice="required", seed=seed
        )
        if found.finish_reason == "length":  # numbers and lists of calls may go on for long
            assert not found.tool_calls
            continue
        complete += 1
        assert found.finish_reason == "tool_calls"
        assert found.tool_calls
        assert found.text == ""
        for call in found.tool_calls:
            assert call["name"] == name
            jsonschema.validate(call["arguments"], schema)
            assert call["arguments"].keys() <= {*schema.get("properties", ()), "undescribed"}
        # The text is what rendering the calls gives, but for the spelling of numbers.
        assert found.message["content"].startswith(f"{START}[{name}(")
        assert parse_tool_calls(render_tool_calls(found.tool_calls)) == found.tool_calls
    assert complete > 3


def test_all_tools_at_once(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    schemas = dict(validator(entry) for entry in TOOLS)
    seen = set()
    for seed in range(24):
        found = chatted(chat_model, chat_tokenizer, tools=TOOLS, tool_choice="required", seed=seed)
        for call in found.tool_calls:
            jsonschema.validate(call["arguments"], schemas[call["name"]])
            seen.add(call["name"])
    assert len(seen) > 5


def test_grammar_reads_what_is_rendered(chat_tokenizer: Tokenizer) -> None:
    """Calls that fit are in the grammar, those that do not are not."""
    good = {
        "text": [{"a": "x"}, {"a": 'q"\\\n', "b": "漢字"}],
        "numbers": [{"i": -12, "x": 1.5}, {"i": 0, "x": 3, "j": -3, "y": 0.25}],
        "choice": [{"e": None}, {"e": {"k": None}, "f": "y", "g": "z"}],
        "maybe": [{}, {"a": None, "d": 3}, {"b": None, "c": True}],
        "lists": [
            {"a": [True]},
            {"a": [True, False], "b": [[], [1, 1]], "c": [True, "x"], "d": []},
        ],
        "objects": [
            {"a": {"y": {"z": True}}, "b": {"any": False}, "c": {"k": "", "l": None}, "d": {}}
        ],
        "any": [{"x": value} for value in (None, 1.5, "a", [], {}, [1, {"a": [True]}])],
        "odd.names": [{"a b": True, "": "x", "1=2": False}],
        "formats": [{"d": "2024-02-29", "p": "ab-1"}],
    }
    bad = {
        "text": [
            {},
            {"a": 1},
            {"a": None},
            {"a": "1234567"},
            {"a": "x", "b": "y"},
            {"a": "x", "c": 1},
        ],
        "numbers": [
            {"i": 1.5, "x": 1},
            {"i": "1", "x": 1},
            {"i": 1, "x": 1, "j": 31},
            {"i": True, "x": 1},
        ],
        "choice": [{"e": "kelvin"}, {"e": 3, "f": 3}, {"e": False}],
        "maybe": [{"a": "x"}, {"d": None}, {"d": 10}],
        "lists": [{"a": []}, {"a": [1]}, {"a": [True], "c": [True]}, {"a": [True], "d": ["x"]}],
        "objects": [
            {"a": {}},
            {"a": {"y": {}}},
            {"a": {"y": {"z": True}}, "b": {"n": 1}},
            {"a": {"y": {"z": True}}, "c": {"k": None}},
        ],
        "formats": [{"d": "2024-13-01"}, {"p": "ab-12"}],
        "now": [{"a": 1}],
        "absent": [{}],
    }
    grammar = tool_grammar(function_schemas(TOOLS))
    constraint = compile_grammar([grammar], chat_tokenizer, 300, [2], "tools")

    def fits(name: str, arguments: dict[str, Any]) -> bool:
        text = render_tool_calls([{"name": name, "arguments": arguments}], markers=False)
        walk = constraint.copy()
        for token in [*chat_tokenizer.encode(text, False), 2]:
            if not int(walk.allowed()[token // 32]) >> (token % 32) & 1:
                return False
            if token != 2:
                walk.accept(token)
        return True

    for name, cases in good.items():
        for arguments in cases:
            assert fits(name, arguments), (name, arguments)
    for name, cases in bad.items():
        for arguments in cases:
            assert not fits(name, arguments), (name, arguments)


# -- what is not supported --


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "type must be one of string, .* not 'strin'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' is not supported"),
        ({"not": {}}, "'not' is not supported"),
        ({"type": "string", "format": "nonsense"}, "Unknown format: nonsense"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength is 3, maxLength 2"),
        ({"type": "string", "maxLength": "x"}, "maxLength must be a count"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "tools"),
        ({"enum": []}, "enum must be a list"),
        ({"enum": "abc"}, "enum must be a list"),
        ({"type": "integer", "enum": ["a"]}, "no value of the enum has type 'integer'"),
        ({"enum": [float("nan")]}, "nan cannot be written"),
        ({"$ref": "#/$defs/none"}, "points nowhere"),
        ({"$ref": "http://x/y"}, "must point into the schema"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"anyOf": []}, "anyOf must be a list"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf is supported where"),
        ({"allOf": [FLAG, FLAG]}, "allOf of several"),
        ({"anyOf": [FLAG], "minimum": 3}, "minimum beside anyOf"),
        ({"type": "array", "prefixItems": [FLAG], "items": FLAG}, "items beside prefixItems"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems is 3, maxItems 2"),
        ({"type": "object", "properties": [1]}, "properties must be a dict"),
        ({"type": "object", "properties": {"b": {"type": "x"}}}, "tool f, argument a.b: type must"),
        ({"type": "object", "minProperties": 1}, "'minProperties' is not supported"),
        (False, "False is no schema"),
        ("string", "'string' is no schema"),
    ],
)
def test_schemas_that_are_not_supported(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, schema: Any, message: str
) -> None:
    for choice in ("auto", "required"):
        with pytest.raises(ValueError, match=message) as error:
            chatted(
                chat_model, chat_tokenizer, tools=[tool("f", ["a"], a=schema)], tool_choice=choice
            )
        assert "\n" not in str(error.value)
        assert "tool" in str(error.value)
