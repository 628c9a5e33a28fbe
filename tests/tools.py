"""Tools for tests: Python functions, and schemas of every supported kind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import tiny_tokenizer
from lfm_engine import CausalLM, ChatOutput
from lfm_engine.tokenizer import Tokenizer
from lfm_engine.tool_schema import function_schemas
from structured import SAMPLE

START, END = tiny_tokenizer.TOOL_TOKENS
USER = [{"role": "user", "content": "hello"}]
TEXT = {"type": "string", "maxLength": 6}
FLAG = {"type": "boolean"}


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Tell the weather.

    Args:
        city: where.
        unit: of the temperature.
    """
    return f"sunny in {city}, 20 {unit}"


def add(a: int, b: int | None = None) -> int:
    """Add numbers.

    Args:
        a: the first.
        b: the second, if any.
    """
    return a + (b or 0)


def tool(name: str, required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS: list[Any] = [
    tool("now"),
    {"name": "bare"},
    tool("text", ["a"], a=TEXT, b={**TEXT, "minLength": 2}),
    tool("a.b-c.d", ["from", "class"], **{"from": FLAG, "class": FLAG, "größe": FLAG}),
    tool("odd.names", ["a b", ""], **{"a b": FLAG, "": {"const": "x"}, "1=2": FLAG}),
    tool(
        "numbers",
        ["i", "x"],
        i={"type": "integer"},
        x={"type": "number"},
        j={"type": "integer", "minimum": -3, "maximum": 30},
        y={"type": "number", "minimum": 0, "maximum": 1},
    ),
    tool(
        "choice",
        ["e"],
        e={"enum": ["celsius", "f\"ahr'en\\heit\n", 3, 2.5, True, None, [1, "a"], {"k": None}]},
        f={"type": "string", "enum": ["x", "y", 3]},
        g={"const": "z"},
    ),
    tool(
        "maybe",
        a={"type": ["integer", "null"]},
        b={**TEXT, "nullable": True},
        c={"anyOf": [FLAG, {"type": "null"}]},
        d={"oneOf": [{"type": "integer", "maximum": 9, "minimum": 0}, TEXT]},
    ),
    tool(
        "lists",
        ["a"],
        a={"type": "array", "items": FLAG, "minItems": 1, "maxItems": 3},
        b={
            "type": "array",
            "items": {"type": "array", "items": {"enum": [1]}, "maxItems": 2},
            "maxItems": 2,
        },
        c={"type": "array", "prefixItems": [FLAG, {"enum": ["x"]}], "minItems": 2},
        d={"type": "array", "items": TEXT, "maxItems": 0},
    ),
    tool(
        "objects",
        ["a"],
        a={
            "type": "object",
            "required": ["y"],
            "properties": {
                "x": FLAG,
                "y": {"type": "object", "properties": {"z": FLAG}, "required": ["z"]},
                "w": FLAG,
            },
        },
        b={"type": "object", "additionalProperties": FLAG},
        c={"type": "object", "properties": {"k": TEXT}, "additionalProperties": {"type": "null"}},
        d={"type": "object", "additionalProperties": False},
    ),
    tool(
        "formats",
        d={"type": "string", "format": "date"},
        p={"type": "string", "pattern": "^[a-z]{2}-[0-9]$"},
    ),
    tool("any", ["x"], x={}),
    {
        "name": "refs",
        "parameters": {
            "type": "object",
            "$defs": {
                "node": {
                    "type": "object",
                    "required": ["v"],
                    "properties": {
                        "v": FLAG,
                        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    },
                }
            },
            "properties": {
                "tree": {"$ref": "#/$defs/node"},
                "also": {"$ref": "#/$defs/node", "description": "x"},
            },
            "required": ["tree", "undescribed"],
        },
    },
    get_weather,
    add,
]


def chatted(model: CausalLM, tokenizer: Tokenizer, **options: Any) -> ChatOutput:
    given = {"tokenizer": tokenizer, "max_new_tokens": 400, "seed": 0, **SAMPLE, **options}
    output = model.chat(given.pop("messages", USER), **given)
    assert isinstance(output, ChatOutput)
    return output


def validator(entry: Any) -> tuple[str, dict[str, Any]]:
    """The name and the schema of a tool; OpenAPI's nullable said in JSON Schema's words."""
    ((name, function),) = function_schemas([entry]).items()
    schema = json.loads(json.dumps(function["parameters"]))
    for key, value in schema.get("properties", {}).items():
        if isinstance(value, dict) and value.pop("nullable", False):
            schema["properties"][key] = {"anyOf": [value, {"type": "null"}]}
    return name, {"type": "object", **schema}
