"""Grammars of tool calls: from the tools' JSON schemas to LFM2's Pythonic call list.

    [get_weather(city="Paris", days=3), now()]

Arguments come in the order of the schema, each with a value of its type as Python writes it. What a
schema says and a grammar cannot check raises; nothing is dropped silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .json_schema import has_finite_value, resolve_pointer
from .literals import render_literal
from .tool_calls import is_function_name, render_name

# Values that any schema may hold; digits are bounded so that a model cannot get lost in them.
_COMMON = r"""
string: STRING
STRING: "\"" CHAR* "\""
CHAR: /[^"\\\x00-\x1F\x7F]/ | /\\["\\bfnrt]/
integer: INTEGER
INTEGER: /-?(0|[1-9][0-9]{0,17})/
number: NUMBER
NUMBER: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/
boolean: "True" | "False"
null: "None"
any: string | number | boolean | null | any_list | any_dict
any_list: "[" (any (", " any)*)? "]"
any_dict: "{" (any_entry (", " any_entry)*)? "}"
any_entry: string ": " any
"""
_ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "examples", "example", "deprecated", "optional"),
        *("readOnly", "writeOnly", "contentEncoding", "contentMediaType", "strict"),
        *("$comment", "$schema", "$id", "$anchor", "$defs", "definitions"),
    }
)
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_KEYWORDS["number"] = _KEYWORDS["integer"]
_ALL_KEYWORDS = frozenset().union(*_KEYWORDS.values())


def tool_grammar(
    functions: Mapping[str, Mapping[str, Any]],
    *,
    start: str = "",
    end: str = "",
    parallel: bool = True,
) -> dict[str, Any]:
    """Return the grammar of a list of calls of these functions.

    Args:
        functions: `{"name": ..., "parameters": ...}` by name, from `function_schemas`.
        start, end: special tokens around the list.
        parallel: allow more than one call.

    Raises:
        ValueError: a name cannot be called, or a schema uses a keyword that is not supported; names
            the tool and the argument.
    """
    builder = _Builder()
    calls = [
        builder.rule("call", builder.call(name, function["parameters"]))
        for name, function in functions.items()
    ]
    if not calls:
        raise ValueError("tools is empty: there is nothing to call")
    more = ' (", " call)*' if parallel else ""
    lines = [
        f'start: {start} "[" call{more} "]" {end}',
        f"call: {' | '.join(calls)}",
        *builder.rules,
    ]
    return {"lark_grammar": "\n".join(lines) + _COMMON}


class _Builder:
    """Turns schemas into rules; `_where` is the argument that an error names."""

    def __init__(self) -> None:
        self.rules: list[str] = []
        self._root: Any = {}
        self._where = ""
        self._references: dict[str, str] = {}

    def rule(self, prefix: str, body: str) -> str:
        """Add a rule; return its name."""
        name = f"{prefix}_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def call(self, name: str, parameters: Mapping[str, Any]) -> str:
        """The right side of a rule for a call."""
        self._where = f"tool {name}"
        if not is_function_name(name):
            raise ValueError(f"{name!r} cannot be the name of a tool")
        self._root, self._references = parameters, {}
        schema = self._resolved(dict(parameters))
        if schema.get("type", "object") != "object":
            raise self._error("parameters must have type 'object'")
        if not has_finite_value(parameters):
            raise self._error("the schema refers to itself without end")
        self._check_keywords({**schema, "type": "object"}, "object")
        # Arguments that the schema only permits are left out.
        entries = self._entries(schema, render_name)
        return f'{_literal(name + "(")} {self._sequence(entries)} ")"'

    # -- values --

    def value(self, schema: Any) -> str:
        """Return an expression that matches the values of a schema."""
        if schema is True or schema == {}:
            return "any"
        if not isinstance(schema, Mapping):
            raise self._error(f"{schema!r} is no schema that a value can have")
        schema = dict(schema)
        if schema.pop("nullable", False):  # OpenAPI's spelling
            return f"({self.value(schema)} | null)"
        for keyword in ("anyOf", "oneOf", "allOf", "$ref"):
            if keyword in schema:
                return self._combined(schema, keyword)
        if "const" in schema or "enum" in schema:
            return self._enumeration(schema)
        types = schema.get("type", _implied_type(schema))
        if types is None:
            self._check_keywords(schema, None)
            return "any"
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not types or any(t not in _TYPES for t in types):
            raise self._error(f"type must be one of {', '.join(_TYPES)}, not {schema['type']!r}")
        self._check_keywords(schema, *types)
        makers: dict[str, Callable[[dict[str, Any]], str]] = {
            "string": self._string,
            "integer": self._number,
            "number": self._number,
            "array": self._array,
            "object": self._object,
        }
        parts = [makers[t]({**schema, "type": t}) if t in makers else t for t in types]
        return parts[0] if len(parts) == 1 else f"({' | '.join(parts)})"

    def _combined(self, schema: dict[str, Any], keyword: str) -> str:
        beside = schema.keys() - _ANNOTATIONS - {keyword}
        branches = schema[keyword]
        if beside == {"type"} and keyword in ("anyOf", "oneOf") and isinstance(branches, list):
            # The type of all branches, written once beside them.
            branches = [
                {"type": schema["type"], **branch} if isinstance(branch, Mapping) else branch
                for branch in branches
            ]
            if any(b.get("type") != schema["type"] for b in branches if isinstance(b, Mapping)):
                raise self._error(f"type beside {keyword} is not supported")
        elif beside:
            raise self._error(f"{sorted(beside)[0]} beside {keyword} is not supported")
        if keyword == "$ref":
            return self._reference(branches)
        if not isinstance(branches, list) or not branches:
            raise self._error(f"{keyword} must be a list of schemas")
        if keyword == "allOf" and len(branches) > 1:
            raise self._error("allOf of several schemas is not supported")
        if keyword == "oneOf" and not self._are_disjoint(branches):
            raise self._error("oneOf is supported where the types of its schemas differ")
        return f"({' | '.join(self.value(branch) for branch in branches)})"

    def _are_disjoint(self, branches: list[Any]) -> bool:
        seen: set[str] = set()
        for branch in branches:
            types = self._resolved(branch).get("type") if isinstance(branch, Mapping) else None
            names = {types} if isinstance(types, str) else set(types or ())
            names = {"number" if name == "integer" else name for name in names}
            if not names or seen & names:
                return len(branches) == 1
            seen |= names
        return True

    def _reference(self, reference: Any) -> str:
        known = self._references.get(reference) if isinstance(reference, str) else None
        if known is None:
            target = self._target(reference)
            known = f"ref_{len(self.rules)}"
            self.rules.append("")  # its place: the schema may refer to itself
            self._references[reference] = known
            index = len(self.rules) - 1
            self.rules[index] = f"{known}: {self.value(target)}"
        return known

    def _target(self, reference: Any) -> Any:
        try:
            return resolve_pointer(self._root, reference)
        except ValueError as error:
            raise self._error(str(error)) from None

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        for _ in range(16):
            if "$ref" not in schema:
                return schema
            schema = self._target(schema["$ref"])
            if not isinstance(schema, Mapping):
                break
        raise self._error("$ref points to no schema")

    def _enumeration(self, schema: dict[str, Any]) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list) or not values:
            raise self._error("enum must be a list of values")
        types = schema.get("type")
        if types is not None:
            allowed = {types} if isinstance(types, str) else set(types)
            values = [value for value in values if _type_of(value) & allowed]
            if not values:
                raise self._error(f"no value of the enum has type {types!r}")
        rest = {key: schema[key] for key in schema.keys() - {"const", "enum", "type"}}
        self._check_keywords(rest, None)
        try:
            texts = dict.fromkeys(render_literal(value) for value in values)
        except ValueError as error:
            raise self._error(str(error)) from None
        return f"({' | '.join(map(_literal, texts))})"

    def _string(self, schema: dict[str, Any]) -> str:
        if "pattern" in schema or "format" in schema:
            return self._json_leaf(schema)
        low, high = self._count(schema, "minLength", 0), self._count(schema, "maxLength", None)
        if low == 0 and high is None:
            return "string"
        if high is not None and high < low:
            raise self._error(f"minLength is {low}, maxLength {high}")
        return self._terminal(f'"\\"" CHAR{_times(low, high)} "\\""')

    def _number(self, schema: dict[str, Any]) -> str:
        kind: str = schema["type"]
        return self._json_leaf(schema) if _KEYWORDS[kind] & schema.keys() else kind

    def _json_leaf(self, schema: dict[str, Any]) -> str:
        """Strings and numbers look the same in JSON: what llguidance knows of them is used."""
        kind = schema["type"]
        leaf = {key: schema[key] for key in schema if key == "type" or key in _KEYWORDS[kind]}
        return self.rule("leaf", f"%json {json.dumps(leaf)}")

    def _array(self, schema: dict[str, Any]) -> str:
        low, high = self._count(schema, "minItems", 0), self._count(schema, "maxItems", None)
        if high is not None and high < low:
            raise self._error(f"minItems is {low}, maxItems {high}")
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise self._error("prefixItems must be a list of schemas")
        if first:
            if schema.get("items", False) is not False or low > len(first):
                raise self._error("items beside prefixItems is not supported")
            if high is not None and high < len(first):
                raise self._error(f"maxItems is {high}, prefixItems has {len(first)}")
            items = [f"{self.value(entry)}" for entry in first]
            return self.rule("array", '"[" ' + ' ", " '.join(items) + ' "]"')
        if high == 0:
            return '"[]"'
        item = self.rule("item", self.value(schema.get("items", True)))
        more = f'(", " {item}){_times(max(low - 1, 0), None if high is None else high - 1)}'
        body = f"{item} {more}" if low else f"({item} {more})?"
        return self.rule("array", f'"[" {body} "]"')

    def _object(self, schema: dict[str, Any]) -> str:
        names = schema.get("properties") or {}
        entries = self._entries(schema, lambda name: f"{render_literal(name)}: ")
        # Like `response_format.close_objects`: what a schema does not speak of is left out.
        extra = schema.get("additionalProperties", not entries)
        tail = None
        if extra is not False:
            key = "string"
            if names:
                taken = " | ".join(_literal(render_literal(name)) for name in names)
                key = self._terminal(f"STRING & ~({taken})")
            tail = self.rule("entry", f'{key} ": " {self.value(extra)}')
        return self.rule("object", f'"{{" {self._sequence(entries, tail)} "}}"')

    def _entries(
        self, schema: Mapping[str, Any], prefix: Callable[[str], str]
    ) -> list[tuple[str, bool]]:
        """The properties in order, each as an expression and whether it is required."""
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise self._error("properties must be a dict, and required a list")
        undescribed = {name: True for name in required if name not in properties}
        outer = self._where
        entries = []
        for name, value in {**properties, **undescribed}.items():
            self._where = (
                f"{outer}.{name}" if ", argument " in outer else f"{outer}, argument {name}"
            )
            begin = prefix(name)
            close = ' "}"' if begin.startswith("**") else ""
            entries.append((f"{_literal(begin)} {self.value(value)}{close}", name in required))
        self._where = outer
        return entries

    def _sequence(self, entries: list[tuple[str, bool]], tail: str | None = None) -> str:
        """Entries in order, commas between those that are there, then any number of `tail`.

        A `rest` rule matches what may follow an entry, commas first; any entry with nothing
        required before it may be the first.
        """
        rest = f'(", " {tail})*' if tail else ""
        firsts = [f"{tail} {rest}"] if tail else []
        for body, required in reversed(entries):
            entry = self.rule("entry", body)
            firsts = [f"{entry} {rest}", *([] if required else firsts)]
            rest = self.rule("rest", f'(", " {entry}){"" if required else "?"} {rest}')
        if not firsts:
            return ""
        needed = any(required for _, required in entries)
        return f"({' | '.join(firsts)}){'' if needed else '?'}"

    # -- helpers --

    def _terminal(self, body: str) -> str:
        name = f"TERMINAL_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return self.rule("text", name)

    def _count(self, schema: Mapping[str, Any], keyword: str, default: Any) -> Any:
        value = schema.get(keyword, default)
        if value is not default and (
            isinstance(value, bool) or not isinstance(value, int) or value < 0
        ):
            raise self._error(f"{keyword} must be a count, not {value!r}")
        return value

    def _check_keywords(self, schema: Mapping[str, Any], *types: str | None) -> None:
        known = {"type"}.union(*(_KEYWORDS.get(t or "", ()) for t in types))
        for keyword in schema.keys() - _ANNOTATIONS - known:
            # What speaks of other types than these says nothing here, as in JSON Schema.
            if keyword not in _ALL_KEYWORDS or types == (None,):
                raise self._error(f"the schema keyword {keyword!r} is not supported here")

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self._where}: {message}")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _implied_type(schema: Mapping[str, Any]) -> str | None:
    """The type that a schema without one speaks of."""
    for kind in ("object", "array", "string", "number"):
        if _KEYWORDS[kind] & schema.keys():
            return kind
    return None


def _type_of(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"integer", "number"} if value.is_integer() else {"number"}
    return {"string"} if isinstance(value, str) else {"array", "object"}
