"""What a JSON schema says as a whole: questions that a grammar's compiler does not ask."""

from __future__ import annotations

from collections.abc import Mapping, Set
from copy import deepcopy
from typing import Any

# Keywords that combine schemas, so that closing an object could contradict another part.
_COMBINING = {"allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas"}
_OPENING = {
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "propertyNames",
    "minProperties",
}
# Keywords whose values hold schemas by name, and those that hold no schemas.
_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_DATA = {"const", "enum", "default", "examples", "required", "type"}
_ANNOTATIONS = {
    *("title", "description", "default", "examples", "$defs", "definitions"),
    *("$comment", "$schema", "$id"),
}


def resolve_pointer(root: Any, reference: Any) -> Any:
    """Return what a `$ref` inside a schema points to.

    Raises:
        ValueError: it points out of the schema, or nowhere.
    """
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise ValueError(f"$ref must point into the schema (#/...), not {reference!r}")
    node = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or key not in node:
            raise ValueError(f"$ref {reference!r} points nowhere")
        node = node[key]
    return node


def has_finite_value(schema: Any) -> bool:
    """Tell whether references let a value end.

    `{"properties": {"a": {"$ref": "#"}}, "required": ["a"]}` never does. Other reasons why a schema
    can have no value are not looked for, nor are wrong references.
    """
    references = _references(schema)
    ending: set[str] = set()
    while True:
        more = {name for name in references - ending if _ends(_target(schema, name), ending)}
        if not more:
            return _ends(schema, ending)
        ending |= more


def inexact_integer(schema: Any) -> int | None:
    """The first integer of a schema that double precision does not hold, which llguidance reads."""
    if isinstance(schema, int) and abs(schema) > 2**53:
        return schema
    values: list[Any] = []
    if isinstance(schema, dict):
        values = [value for key, value in schema.items() if key not in ("default", "examples")]
    elif isinstance(schema, (list, tuple)):
        values = list(schema)
    return next((n for n in map(inexact_integer, values) if n is not None), None)


def _references(schema: Any) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    found = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
    return found.union(*(_references(entry) for entry in _subschemas(schema)))


def _target(root: Any, reference: str) -> Any:
    try:
        return resolve_pointer(root, reference)
    except ValueError:
        return True


def _ends(schema: Any, ending: Set[str]) -> bool:
    """Whether a value of the schema ends, if those of the references in `ending` do."""
    if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
        return True
    if isinstance(schema.get("$ref"), str) and schema["$ref"] not in ending:
        return False
    for keyword, enough in (("anyOf", any), ("oneOf", any), ("allOf", all)):
        branches = schema.get(keyword)
        if not isinstance(branches, list) or not branches:
            continue
        if not enough(_ends(entry, ending) for entry in branches):
            return False
    types = schema.get("type", "any")
    names = set(types if isinstance(types, list) else [types])
    if names - {"object", "array"}:
        return True
    return ("object" in names and _object_ends(schema, ending)) or (
        "array" in names and _array_ends(schema, ending)
    )


def _object_ends(schema: dict[str, Any], ending: Set[str]) -> bool:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return True
    return all(_ends(entry, ending) for name, entry in properties.items() if name in required)


def _array_ends(schema: dict[str, Any], ending: Set[str]) -> bool:
    count, first = schema.get("minItems", 0), schema.get("prefixItems", [])
    if not isinstance(count, int) or not isinstance(first, list):
        return True
    needed = [*first[:count], *([schema.get("items")] if count > len(first) else [])]
    return all(_ends(entry, ending) for entry in needed)


def close_objects(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave properties out that an object does not name, unless its schema speaks of them.

    JSON Schema allows any other property by default, and a model would be free to invent some. What
    fits the closed schema fits the given one. Where schemas are combined (`allOf`, `oneOf`, or
    `$ref` and `anyOf` beside properties) they stay as they are: closed parts could contradict each
    other, or differ where the open ones overlap.
    """
    schema = deepcopy(schema)
    if not _combines_objects(schema):
        _close(schema)
    return schema


def _combines_objects(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    combining = _COMBINING.intersection(schema)
    beside = schema.keys() - _ANNOTATIONS - combining
    if combining - {"anyOf", "$ref"} or len(combining) > 1 or (combining and beside):
        return True
    return any(_combines_objects(entry) for entry in _subschemas(schema))


def _subschemas(schema: dict[str, Any]) -> list[Any]:
    """The schemas directly inside one."""
    found: list[Any] = []
    for keyword, value in schema.items():
        if keyword in _DATA:
            continue
        if keyword in _MAPS and isinstance(value, dict):
            found += value.values()
        elif isinstance(value, list):
            found += value
        else:
            found.append(value)
    return found


def _close(schema: Any) -> None:
    if not isinstance(schema, dict):
        return
    for entry in _subschemas(schema):
        _close(entry)
    names = schema.get("properties")
    if not isinstance(names, dict) or not names or _OPENING.intersection(schema):
        return
    required = schema.get("required", [])
    if isinstance(required, list) and all(name in list(names) for name in required):
        schema["additionalProperties"] = False
