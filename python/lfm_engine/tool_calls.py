"""Tool calls in a model's text: LFM2's Pythonic lists, `[get_weather(city="Paris"), now()]`.

What is read, and what is not:

- Between `<|tool_call_start|>` and `<|tool_call_end|>` (or the end of the text) stands a call list;
  JSON calls (`{"name": ..., "arguments": {...}}`) are read as well. Anything else there raises
  `ToolCallError`, so that a broken call never passes for an answer. Text around it is text.
- Without these tokens a call list is one only if it is flawless: brackets, keyword arguments, and
  tools that exist, where `tools` are given. The whole text may be JSON calls, fenced or not.
  Everything else is text, and nothing is raised. Thoughts (before `</think>`) are text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .literals import LiteralError, LiteralReader, render_literal
from .tool_schema import function_schemas

START = "<|tool_call_start|>"
END = "<|tool_call_end|>"

ToolCall = dict[str, Any]

_NAME = re.compile(r"[^\W\d][\w.-]*")
_CALL = re.compile(rf"({_NAME.pattern})\s*\(")
_BARE_LIST = re.compile(rf"\[\s*{_CALL.pattern}")
_ENTRY = re.compile(rf"\{{|{_CALL.pattern}")
_LIST = re.compile(rf"\[\s*(?:{_ENTRY.pattern})")
# The name of an argument may be a reserved word; Python's comparison is none.
_KEYWORD = re.compile(r"([^\s=,()\[\]{}'\"*<]+)\s*=(?!=)")
_THOUGHTS_END = "</think>"
_END_OF_TURN = re.compile(r"(?:<\|(?:im_end|endoftext)\|>\s*)+\Z")
_FENCE = re.compile(r"```\w*\n(.*)\n```", re.DOTALL)


class ToolCallError(ValueError):
    """A tool call cannot be read; `position` is the character of the text where reading stopped."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"tool call, character {position}: {message}")
        self.position = position


def parse_tool_calls(text: str, tools: Sequence[Any] | None = None) -> list[ToolCall]:
    """Return the tool calls in a model's text, [] if there are none.

        >>> parse_tool_calls('<|tool_call_start|>[f(a="x", n=3)]<|tool_call_end|>')
        [{'name': 'f', 'arguments': {'a': 'x', 'n': 3}}]

    Args:
        text: decoded with special tokens kept.
        tools: JSON schemas or functions. They give positional arguments their names, keep unquoted
            values of string parameters as text (`zip=02139`), and tell a bare `[f()]` from prose.

    Raises:
        ToolCallError: there is a call between LFM2's tokens that cannot be read.
    """
    return split_tool_calls(text, tools)[1]


def split_tool_calls(text: str, tools: Sequence[Any] | None = None) -> tuple[str, list[ToolCall]]:
    """Return the text around the tool calls, and the calls; see `parse_tool_calls`."""
    known = None if tools is None else function_schemas(tools)
    text = _END_OF_TURN.sub("", text)
    if START in text:
        return _split_marked(text, known)
    end_of_thoughts = text.rfind(_THOUGHTS_END)
    begin = 0 if end_of_thoughts < 0 else end_of_thoughts + len(_THOUGHTS_END)
    whole = _json_answer(text[begin:], known)
    if whole:
        return text[:begin], whole
    return _split_bare(text, begin, known)


def render_tool_calls(calls: Sequence[Mapping[str, Any]], *, markers: bool = True) -> str:
    """Write calls as LFM2 does; `parse_tool_calls` gives exactly them back.

    Args:
        calls: `{"name": ..., "arguments": {...}}` each.
        markers: put LFM2's tokens around the list.

    Raises:
        ValueError: a name is none, or an argument has no JSON form.
    """
    rendered = f"[{', '.join(_render_call(call) for call in calls)}]"
    return f"{START}{rendered}{END}" if markers else rendered


def render_name(name: str) -> str:
    """What stands before an argument's value: `name=`, or `**{"any name": ` (to be closed)."""
    if (keyword := _KEYWORD.fullmatch(f"{name}=")) and keyword[1] == name:
        return f"{name}="
    return f"**{{{render_literal(name)}: "


def is_function_name(name: Any) -> bool:
    """Whether a tool of this name can be called: letters, digits, `_`, `-`, and dots inside."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _render_call(call: Mapping[str, Any]) -> str:
    name, arguments = call["name"], call["arguments"]
    if not is_function_name(name):
        raise ValueError(f"{name!r} cannot be the name of a tool")
    parts = []
    for key, value in arguments.items():
        prefix = render_name(key)
        parts.append(f"{prefix}{render_literal(value)}{'}' if prefix.startswith('**') else ''}")
    return f"{name}({', '.join(parts)})"


# -- where calls are --


def _split_marked(text: str, known: Mapping[str, Any] | None) -> tuple[str, list[ToolCall]]:
    outside: list[str] = []
    calls: list[ToolCall] = []
    position = 0
    while (start := text.find(START, position)) >= 0:
        outside.append(text[position:start])
        begin = start + len(START)
        try:
            found, position = _read_block(text, begin, known, lenient=False)
        except LiteralError as strict:
            try:
                found, position = _read_block(text, begin, known, lenient=True)
            except LiteralError:
                raise ToolCallError(str(strict).partition(": ")[2], strict.position) from None
        calls += found
    outside.append(text[position:])
    return _joined(outside), calls


def _read_block(
    text: str, begin: int, known: Mapping[str, Any] | None, *, lenient: bool
) -> tuple[list[ToolCall], int]:
    """Read what follows the start token; return the calls and where the text goes on."""
    reader = _CallReader(text, begin, known, lenient=lenient)
    calls: list[ToolCall] = []
    while True:
        listed = reader.at("[")
        calls += reader.call_list() if listed else reader.one_entry()
        if reader.take(END):
            break
        if listed:
            more = reader.looking_at(_LIST)  # other text after a list is text
        else:
            more = reader.take(",") or reader.take(";") or reader.looking_at(_ENTRY)
        if more:
            continue
        if not listed and not reader.at_end():
            raise reader.fail("',' or the end is expected after a call")
        break
    return calls, reader.position


def _split_bare(
    text: str, begin: int, known: Mapping[str, Any] | None
) -> tuple[str, list[ToolCall]]:
    outside: list[str] = []
    calls: list[ToolCall] = []
    position = 0
    while match := _BARE_LIST.search(text, begin):
        reader = _CallReader(text, match.start(), known, keywords_only=True)
        try:
            found = reader.call_list()
        except LiteralError:
            found = []
        if not found or (known is not None and any(call["name"] not in known for call in found)):
            begin = match.start() + 1
            continue
        calls += found
        outside.append(text[position : match.start()])
        begin = position = reader.position
    outside.append(text[position:])
    return (_joined(outside) if calls else text), calls


def _json_answer(text: str, known: Mapping[str, Any] | None) -> list[ToolCall]:
    text = text.strip()
    if fence := _FENCE.fullmatch(text):
        text = fence[1].strip()
    if not (text.startswith(("{", "[")) and text.endswith(("}", "]")) and '"name"' in text):
        return []
    reader = LiteralReader(text)
    try:
        value = reader.value()
        calls = _from_json(value, explicit=True)
    except LiteralError:
        return []
    if not reader.at_end():
        return []
    return calls if known is None or all(call["name"] in known for call in calls) else []


def _joined(parts: list[str]) -> str:
    return "\n".join(part.strip() for part in parts if part.strip())


# -- calls --


class _CallReader(LiteralReader):
    """Reads calls: `f(a=1)`, lists of them, and JSON calls."""

    def __init__(
        self,
        text: str,
        position: int,
        known: Mapping[str, Any] | None,
        *,
        lenient: bool = False,
        keywords_only: bool = False,
    ) -> None:
        super().__init__(text, position, lenient=lenient)
        self._known = known or {}
        self._keywords_only = keywords_only

    def call_list(self) -> list[ToolCall]:
        """Read `[f(), g()]`; the closing bracket may be missing before the end token."""
        self.take("[")
        calls: list[ToolCall] = []
        while not self.take("]"):
            calls += self.one_entry()
            if self.take(",") or self.at("]"):
                continue
            if self.at(END):
                break
            raise self.fail("',' or ']' is expected after a call")
        return calls

    def one_entry(self) -> list[ToolCall]:
        """Read one call, Pythonic or JSON; JSON may nest lists."""
        if self.at("{") or self.at("["):
            start = self.position
            value = self.value("list")
            try:
                return _from_json(value)
            except LiteralError as error:
                self.position = start
                raise self.fail(str(error).partition(": ")[2]) from None
        match = self.match(_CALL)
        if match is None:
            raise self.fail("a call is expected, such as name(argument=value)")
        return [{"name": match[1], "arguments": self._arguments(match[1])}]

    def _arguments(self, name: str) -> dict[str, Any]:
        parameters = self._known.get(name, {}).get("parameters", {})
        properties: dict[str, Any] = parameters.get("properties", {})
        arguments: dict[str, Any] = {}
        while not self.take(")"):
            start = self.position
            for key, value in self._argument(name, list(properties), len(arguments)).items():
                if key in arguments:
                    self.position = start
                    raise self.fail(f"{name}: the argument {key} is given twice")
                wanted = properties.get(key)
                as_text = isinstance(wanted, dict) and wanted.get("type") == "string"
                arguments[key] = self.bare if as_text and self.bare is not None else value
            if not self.take(",") and not self.at(")"):
                raise self.fail(f"{name}: ',' or ')' is expected")
        return arguments

    def _argument(self, name: str, names: list[str], index: int) -> dict[str, Any]:
        if self.take("**"):
            value = self.value()
            if not isinstance(value, dict):
                raise self.fail(f"{name}: a dict is expected after **")
            return value
        keyword = self.match(_KEYWORD)
        if keyword:
            return {keyword[1]: self.value()}
        start = self.position
        value = self.value()
        if isinstance(value, str) and self.bare is None and (self.take("=") or self.take(":")):
            return {value: self.value()}
        if self._keywords_only or index >= len(names):
            self.position = start
            raise self.fail(f"{name}: an argument has no name")
        return {names[index]: value}


def _from_json(value: Any, *, explicit: bool = False) -> list[ToolCall]:
    """Turn JSON calls into ours; `explicit` wants both a name and arguments in each."""
    if isinstance(value, list):
        return [call for entry in value for call in _from_json(entry, explicit=explicit)]
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise LiteralError("a JSON call needs a name", 0)
    found = [key for key in ("arguments", "parameters") if key in value]
    if explicit and not found:
        raise LiteralError("a JSON call needs arguments", 0)
    arguments = value[found[0]] if found else {}
    if isinstance(arguments, str):  # OpenAI puts JSON into a string
        reader = LiteralReader(arguments or "{}")
        arguments = reader.value()
        if not reader.at_end():
            arguments = None
    if not isinstance(arguments, dict):
        raise LiteralError("a JSON call's arguments must be an object", 0)
    return [{"name": value["name"], "arguments": arguments}]
