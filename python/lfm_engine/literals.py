"""Values in tool calls: Python literals and JSON alike, as models really write them.

The reader is written by hand and never evaluates anything. It first reads strictly; `lenient=True`
also guesses where a string ends that has its own quotes inside.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

_MAX_DEPTH = 64
_CONSTANTS: dict[str, Any] = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
}
_SPACE = re.compile(r"\s*")
_STRING_START = re.compile(r"(?i:[rbuf]{0,2})(\"\"\"|'''|\"|')")
_ESCAPE = re.compile(
    r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|N\{([^{}]*)\}|(.))",
    re.DOTALL,
)
_SIMPLE_ESCAPES = {
    **{"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "a": "\a", "v": "\v"},
    **{"\\": "\\", '"': '"', "'": "'", "/": "/", "\n": ""},
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_INTEGER = re.compile(r"[+-]?[0-9][0-9_]*")
_BASED_INTEGER = re.compile(r"[+-]?0(?:[xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)")
_FLOAT = re.compile(r"[+-]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?")
# An unquoted word: anything that is no bracket, quote or separator, on one line.
_BARE = re.compile(r"[^,()\[\]{}\"'=<\n]+")
_BARE_KEY = re.compile(r"[^,()\[\]{}\"'=<\n:]+")
# What stands after the closing quote of a string, where quotes inside it are not escaped.
_AFTER_STRING = {
    "call": re.compile(
        r"\s*(?:,\s*(?:\*\*|[^\s=,()\[\]{}'\"]+\s*=)|,?\s*\)\s*(?:[,;\]\n]|<\||$|[^\W\d][\w.-]*\())"
    ),
    "list": re.compile(r"\s*(?:,\s*[\"'\[{(+\-.\w]|,?\s*\])"),
    "tuple": re.compile(r"\s*(?:,\s*[\"'\[{(+\-.\w]|,?\s*\))"),
    "key": re.compile(r"\s*:"),
    "value": re.compile(r"\s*(?:,\s*[\"'\w]|,?\s*\})"),
}


class LiteralError(ValueError):
    """Text is no literal; `position` is where reading stopped."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"character {position}: {message}")
        self.position = position


class LiteralReader:
    """Reads values one after the other.

    Attributes:
        text: what is read.
        position: where the next value begins.
        bare: how the last value was spelled if it was not quoted, else None.
    """

    def __init__(self, text: str, position: int = 0, *, lenient: bool = False) -> None:
        self.text = text
        self.position = position
        self.bare: str | None = None
        self._lenient = lenient
        self._depth = 0
        self._trailing_comma = False

    # -- small steps --

    def fail(self, message: str) -> LiteralError:
        """The error to raise when what stands here is not what must."""
        return LiteralError(message, self.position)

    def skip_space(self) -> None:
        match = _SPACE.match(self.text, self.position)
        assert match is not None
        self.position = match.end()

    def at(self, text: str) -> bool:
        """Skip space; tell whether `text` stands here."""
        self.skip_space()
        return self.text.startswith(text, self.position)

    def take(self, text: str) -> bool:
        """Skip space, and `text` if it stands here; tell whether it did."""
        if not self.at(text):
            return False
        self.position += len(text)
        return True

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Skip space and what the pattern matches here."""
        self.skip_space()
        match = pattern.match(self.text, self.position)
        if match:
            self.position = match.end()
        return match

    def looking_at(self, pattern: re.Pattern[str]) -> bool:
        """Skip space; tell whether the pattern matches here."""
        self.skip_space()
        return pattern.match(self.text, self.position) is not None

    def at_end(self) -> bool:
        """Skip space; tell whether nothing follows."""
        self.skip_space()
        return self.position >= len(self.text)

    # -- values --

    def value(self, inside: str = "call") -> Any:
        """Read a value.

        Args:
            inside: what the value is part of: "call", "list", "tuple", or "value" (of a dict).

        Raises:
            LiteralError: there is no value here.
        """
        self.skip_space()
        self.bare = None
        if _STRING_START.match(self.text, self.position):
            return self.string(inside)
        read = {"[": self._list, "(": self._tuple, "{": self._dict_or_set}.get(
            self.text[self.position : self.position + 1]
        )
        if read is None:
            return self._bare_value()
        if self._depth >= _MAX_DEPTH:
            raise self.fail(f"more than {_MAX_DEPTH} levels of brackets")
        self._depth += 1
        self.position += 1
        result = read()
        self._depth -= 1
        self.bare = None
        return result

    def string(self, inside: str) -> str:
        """Read a string, or several that stand side by side."""
        text = self._one_string(inside)
        while not self._lenient:
            self.skip_space()
            # No prefix here: `"a "b" c"` is one string with quotes inside, not two.
            if self.text[self.position : self.position + 1] not in ("'", '"'):
                break
            text += self._one_string(inside)
        return text

    def _one_string(self, inside: str) -> str:
        start = self.match(_STRING_START)
        if start is None:
            raise self.fail("a string is expected")
        quote, begin = start[1], self.position
        while True:
            end = self.text.find(quote, self.position)
            if end < 0:
                self.position = begin
                raise self.fail("a string has no end")
            # A quote after an odd number of backslashes is escaped.
            before = end
            while before > begin and self.text[before - 1] == "\\":
                before -= 1
            self.position = end + len(quote)
            if (end - before) % 2 == 0 and self._closes(inside):
                break
            self.position = end + 1
        content = self.text[begin:end]
        return content if "r" in start[0].lower() else _unescape(content)

    def _closes(self, inside: str) -> bool:
        return (
            not self._lenient or _AFTER_STRING[inside].match(self.text, self.position) is not None
        )

    def _bare_value(self) -> Any:
        match = self.match(_BARE)
        text = match[0].strip() if match else ""
        if not text:
            found = self.text[self.position : self.position + 1]
            raise self.fail(f"a value is expected, not {found!r}" if found else "the text ends")
        self.bare = text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        try:
            if _INTEGER.fullmatch(text):
                return int(text.replace("_", ""))
            if _BASED_INTEGER.fullmatch(text):
                return int(text.replace("_", ""), 0)
            number = float(text.replace("_", "")) if _FLOAT.fullmatch(text) else None
        except ValueError as error:  # more digits than Python reads
            raise self.fail(f"a number cannot be read: {error}") from None
        if number is None:
            return text
        if math.isinf(number):
            raise self.fail(f"the number {text} is too large")
        return number

    def _items(self, end: str, inside: str) -> Iterator[Any]:
        while not self.take(end):
            yield self.value(inside)
            self._trailing_comma = self.take(",")
            if not self._trailing_comma and not self.at(end):
                raise self.fail(f"',' or {end!r} is expected")

    def _list(self) -> list[Any]:
        return list(self._items("]", "list"))

    def _tuple(self) -> Any:
        items = list(self._items(")", "tuple"))
        return items[0] if len(items) == 1 and not self._trailing_comma else items

    def _dict_or_set(self) -> Any:
        start = self.position
        result: dict[str, Any] = {}
        while not self.take("}"):
            key = self._key()
            if not self.take(":"):
                if result:
                    raise self.fail("':' is expected")
                self.position = start  # JSON has no sets: a list
                return list(self._items("}", "value"))
            result[key] = self.value("value")
            if not self.take(",") and not self.at("}"):
                raise self.fail("',' or '}' is expected")
        return result

    def _key(self) -> str:
        self.skip_space()
        if _STRING_START.match(self.text, self.position):
            return self.string("key")
        match = self.match(_BARE_KEY)
        if match is None or not match[0].strip():
            raise self.fail("a key is expected")
        return match[0].strip()


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    text = _ESCAPE.sub(_unescape_one, text)
    # JSON spells characters beyond 16 bits as two halves; a half alone is no character.
    if _SURROGATE.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _unescape_one(match: re.Match[str]) -> str:
    octal, *hexadecimal, name, simple = match.groups()
    try:
        if octal:
            return chr(int(octal, 8))
        for digits in hexadecimal:
            if digits:
                return chr(int(digits, 16))
        if name is not None:
            return unicodedata.lookup(name)
    except (ValueError, OverflowError, KeyError):
        return match[0]
    # Like Python: a backslash before anything else is a backslash (`\d` in a regex).
    return _SIMPLE_ESCAPES.get(simple, match[0])


def render_literal(value: Any) -> str:
    """Write a JSON-like value as a Python literal that the reader gives back exactly.

    Raises:
        ValueError: the value has no JSON form, or is not finite.
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be written in a tool call")
        return float.__repr__(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(render_literal(entry) for entry in value)}]"
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        entries = (
            f"{render_literal(key)}: {render_literal(entry)}" for key, entry in value.items()
        )
        return f"{{{', '.join(entries)}}}"
    raise ValueError(f"{type(value).__name__} cannot be written in a tool call")
