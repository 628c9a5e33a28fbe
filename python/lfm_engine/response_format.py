"""`response_format`: what a user writes, as grammars for `constraint.compile_grammar`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .constraint import Constraint, PrefixConstraint, compile_grammar
from .inputs import Prompts
from .json_schema import close_objects, has_finite_value, inexact_integer

_KEYS = {
    "text": set(),
    "json_object": {"whitespace"},
    "json_schema": {"json_schema", "whitespace"},
    "regex": {"regex"},
    "choice": {"choice"},
    "lark": {"lark"},
}
# As json.dumps writes it: the text between values is certain, and a weak model cannot get lost
# in endless spaces.
_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def make_constraints(
    prompts: Prompts,
    *,
    response_format: Any,
    constraint: Constraint | Sequence[Constraint] | None,
    prefix_allowed_tokens_fn: Callable[[int, Any], Sequence[int]] | None,
    tokenizer: Any,
    vocab_size: int,
    eos_ids: Sequence[int],
) -> list[Constraint] | None:
    """Return the constraint of each prompt, or None; the arguments are those of `generate`.

    Raises:
        ValueError: more than one kind of constraint is given, or one is wrong.
    """
    given = {
        "response_format": response_format,
        "constraint": constraint,
        "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} exclude each other")
    if constraint is not None:
        given_list = list(constraint) if isinstance(constraint, Sequence) else [constraint]
        if not all(isinstance(entry, Constraint) for entry in given_list):
            raise ValueError("constraint must be a Constraint, or a list of them")
        if len({id(entry) for entry in given_list}) != len(prompts.rows):
            raise ValueError(
                f"constraint: {len(prompts.rows)} prompts need as many, each its own; "
                f"{len(given_list)} given"
            )
        return given_list
    if prefix_allowed_tokens_fn is not None:
        return [
            PrefixConstraint(prefix_allowed_tokens_fn, index, row)
            for index, row in enumerate(prompts.rows)
        ]
    if response_format is None:
        return None
    grammar = response_grammar(response_format)
    if grammar is None:
        return None
    compiled = compile_grammar([grammar], tokenizer, vocab_size, eos_ids, "response_format")
    return [compiled.copy() for _ in prompts.rows]


def response_grammar(response_format: Any) -> dict[str, Any] | None:
    """Return the grammar of a `response_format`, None for free text.

    Args:
        response_format: a mapping with a `type`:
            "text": anything.
            "json_object": a JSON object.
            "json_schema": with `json_schema={"name": ..., "schema": {...}}`, as at OpenAI. A
                Pydantic model in place of the mapping means its schema.
            "regex": with `regex`, in Rust's syntax; the whole text matches it.
            "choice": with `choice`, a list of strings, of which the text is one.
            "lark": with `lark`, a grammar in llguidance's dialect of Lark.

            JSON is written on one line as `json.dumps` does; `whitespace="flexible"` lets the model
            choose.

    Raises:
        ValueError: it is malformed. (What a grammar does not support `compile_grammar` finds.)
    """
    if hasattr(response_format, "model_json_schema"):
        schema = response_format.model_json_schema()
        response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    if not isinstance(response_format, Mapping):
        raise ValueError(
            f'response_format must be a dict such as {{"type": "json_object"}}, '
            f"not {type(response_format).__name__}"
        )
    kind = response_format.get("type")
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ValueError(f"response_format: type must be one of {sorted(_KEYS)}, not {kind!r}")
    for key in response_format:
        if key != "type" and key not in _KEYS[kind]:
            raise ValueError(f"response_format: {key!r} does not belong to type {kind!r}")
    if kind == "text":
        return None
    if kind in ("json_object", "json_schema"):
        schema = {"type": "object"} if kind == "json_object" else _schema(response_format)
        return _json_grammar(schema, response_format.get("whitespace", "one line"))
    if kind == "choice":
        return {"lark_grammar": f"start: {_choices(response_format.get('choice'))}"}
    source = response_format.get(kind)
    if not isinstance(source, str) or not source:
        raise ValueError(f"response_format: {kind} must be a non-empty string, not {source!r}")
    if kind == "regex":
        import llguidance  # imported late, see constraint.py

        return {"lark_grammar": f"start: /{llguidance.regex_to_lark(source, 'd')}/"}
    return {"lark_grammar": source}


def _schema(response_format: Mapping[str, Any]) -> Any:
    outer = response_format.get("json_schema")
    if not isinstance(outer, Mapping) or not isinstance(outer.get("schema"), (Mapping, bool)):
        raise ValueError(
            'response_format: json_schema must be {"name": ..., "schema": {...}} with a JSON schema'
        )
    for key in outer:
        if key not in ("name", "schema", "strict", "description"):
            raise ValueError(f"response_format: json_schema has an unknown key {key!r}")
    return outer["schema"]


def _json_grammar(schema: Any, whitespace: Any) -> dict[str, Any]:
    if whitespace not in ("one line", "flexible"):
        raise ValueError(
            f"response_format: whitespace must be 'one line' or 'flexible', not {whitespace!r}"
        )
    try:
        schema = json.loads(json.dumps(schema))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"response_format: the schema is not JSON: {error}") from None
    if schema is True:
        schema = {}
    if (number := inexact_integer(schema)) is not None:
        raise ValueError(
            f"response_format: the schema has the integer {number}; those beyond 2**53 cannot be "
            "kept exactly"
        )
    if not has_finite_value(schema):
        raise ValueError("response_format: the schema refers to itself without end")
    if isinstance(schema, dict):
        schema = close_objects(schema)
        layout = _ONE_LINE if whitespace == "one line" else {}
        schema["x-guidance"] = {**layout, **schema.get("x-guidance", {})}
    return {"json_schema": schema}


def _choices(choice: Any) -> str:
    if isinstance(choice, (str, bytes)) or not isinstance(choice, Sequence) or not choice:
        raise ValueError(f"response_format: choice must be a list of strings, not {choice!r}")
    for entry in choice:
        if not isinstance(entry, str) or not entry:
            raise ValueError(f"response_format: choice holds {entry!r}, not a non-empty string")
    return " | ".join(json.dumps(entry, ensure_ascii=False) for entry in dict.fromkeys(choice))
