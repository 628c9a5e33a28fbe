"""JSON schemas for tools that are given as Python functions.

The schema of a function comes from its annotations and its Google-style docstring, in the layout
that chat templates expect and that `transformers.utils.get_json_schema` produces, so that a prompt
made here equals one made there.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_PLAIN_TYPES: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    list: "array",
    tuple: "array",
    dict: "object",
}
_SECTIONS = ("Args:", "Returns:", "Raises:")
_ARGUMENT = re.compile(r"\s*(\w+)\s*(?:\([^()]*\))?:\s*(.*)")
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


def tool_schemas(tools: Sequence[Any] | None) -> list[dict[str, Any]] | None:
    """Return the tools as JSON schemas: mappings stay as they are, functions are described.

    Raises:
        ValueError: `tools` is no sequence, or one of them is neither a mapping nor a documented
            function.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ValueError(
            f"tools must be a list of schemas or functions, not {type(tools).__name__}"
        )
    return [_as_schema(tool, index) for index, tool in enumerate(tools)]


def function_schemas(tools: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return each tool's `{"name": ..., "parameters": {...}}` by its name.

    Tools are as in `tool_schemas`; OpenAI's `{"type": "function", "function": {...}}` and the inner
    mapping alone are the same.

    Raises:
        ValueError: as `tool_schemas`; a tool has no name, the name of another, or parameters that
            are no object.
    """
    found: dict[str, dict[str, Any]] = {}
    for index, tool in enumerate(tool_schemas(tools) or ()):
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise ValueError(f"tools[{index}] has no name")
        if name in found:
            raise ValueError(f"tools[{index}]: there are two tools named {name}")
        parameters = function.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise ValueError(f"tool {name}: parameters must be a JSON schema (dict)")
        if not isinstance(parameters.get("properties", {}), Mapping):
            raise ValueError(f"tool {name}: properties must be a dict")
        found[name] = {**function, "parameters": dict(parameters)}
    return found


def _as_schema(tool: Any, index: int) -> dict[str, Any]:
    if isinstance(tool, dict):
        return tool
    if isinstance(tool, Mapping):
        return dict(tool)
    if inspect.isfunction(tool) or inspect.ismethod(tool):
        return get_json_schema(tool)
    raise ValueError(
        f"tools[{index}] must be a JSON schema (dict) or a function with type hints and a "
        f"docstring, not {type(tool).__name__}"
    )


def get_json_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Describe `function` as `{"type": "function", "function": {...}}`.

    Every parameter needs a type hint and a line in the docstring's `Args:` section; a description
    that ends in `(choices: ["a", "b"])` becomes an enum.

    Raises:
        ValueError: the docstring, a hint or a description is missing, or a hint has no JSON form.
    """
    name = getattr(function, "__name__", "operation")
    doc = inspect.getdoc(function)
    if not doc:
        raise ValueError(f"tool {name}: the function has no docstring")
    description, arguments, returns = _parse_docstring(doc)
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise ValueError(f"tool {name}: a type hint cannot be resolved: {error}") from error

    properties: dict[str, Any] = {}
    required: list[str] = []
    for position, (key, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if parameter.annotation is inspect.Parameter.empty:
            if position == 0 and key in ("self", "cls"):
                continue
            raise ValueError(f"tool {name}: argument {key} has no type hint")
        if key not in arguments:
            raise ValueError(f"tool {name}: the docstring does not describe the argument {key}")
        properties[key] = _describe_argument(
            _type_schema(hints[key], name), arguments[key], f"{name}.{key}"
        )
        if parameter.default is inspect.Parameter.empty:
            required.append(key)

    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    schema: dict[str, Any] = {"name": name, "description": description, "parameters": parameters}
    if "return" in hints:
        schema["return"] = _type_schema(hints["return"], name)
        if returns is not None:
            schema["return"]["description"] = returns
    return {"type": "function", "function": schema}


def _describe_argument(schema: dict[str, Any], text: str, where: str) -> dict[str, Any]:
    choices = _CHOICES.search(text)
    if choices:
        try:
            values = json.loads(choices.group(1))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"tool {where}: the choices in the docstring are not JSON: {error}"
            ) from error
        schema["enum"] = [value.strip() if isinstance(value, str) else value for value in values]
        text = text[: choices.start()].strip()
    schema["description"] = text
    return schema


def _parse_docstring(doc: str) -> tuple[str, dict[str, str], str | None]:
    """Split a Google-style docstring into description, arguments and what it returns."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in doc.strip().splitlines():
        if line.strip() in _SECTIONS:
            current = line.strip()
            sections.setdefault(current, [])
        else:
            sections[current].append(line)
    arguments: dict[str, str] = {}
    key = None
    for line in sections.get("Args:", []):
        match = _ARGUMENT.match(line)
        if match:
            key = match.group(1)
            arguments[key] = match.group(2).strip()
        elif key is not None and line.strip():
            arguments[key] = f"{arguments[key]} {line.strip()}".strip()
    returns = "\n".join(sections["Returns:"]).strip() if "Returns:" in sections else None
    return "\n".join(sections[""]).strip(), arguments, returns


def _type_schema(hint: Any, where: str) -> dict[str, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if origin is None:
        # A class of the user's own is an object to JSON, as in transformers.
        return {} if hint is Any else {"type": _PLAIN_TYPES.get(hint, "object")}
    if origin is Union or origin is types.UnionType:
        return _union_schema(args, where)
    if origin is Literal:
        if not all(isinstance(value, (int, float, str, type(None))) for value in args):
            raise ValueError(f"tool {where}: only plain values may stand in Literal, not {hint}")
        names = list(dict.fromkeys(_PLAIN_TYPES[type(value)] for value in args))
        return {"type": names[0] if len(names) == 1 else names, "enum": list(args)}
    if origin is list:
        return (
            {"type": "array", "items": _type_schema(args[0], where)} if args else {"type": "array"}
        )
    if origin is tuple:
        if len(args) == 1 or ... in args:
            raise ValueError(f"tool {where}: {hint} has no JSON form; use list[...] instead")
        return {"type": "array", "prefixItems": [_type_schema(arg, where) for arg in args]}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type_schema(args[1], where)}
    raise ValueError(f"tool {where}: the type hint {hint} has no JSON form")


def _union_schema(args: tuple[Any, ...], where: str) -> dict[str, Any]:
    members = [_type_schema(arg, where) for arg in args if arg is not type(None)]
    schema: dict[str, Any]
    if len(members) == 1:
        schema = members[0]
    elif all(member.keys() == {"type"} and isinstance(member["type"], str) for member in members):
        names = sorted({member["type"] for member in members})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": members}
    if type(None) in args:
        schema["nullable"] = True
    return schema
