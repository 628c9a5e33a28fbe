"""Checks of generation options: a value in its plain Python type, or an error with its name."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_INT = 2**31 - 1  # ids and counts; sums of them cannot overflow in the core


def optional(check: Callable[..., Any], name: str, value: Any, *arguments: Any) -> Any:
    """Return None for None, else what the check makes of the value."""
    return None if value is None else check(name, value, *arguments)


def check_int(name: str, value: Any, low: int) -> int:
    """Return an integer of at least `low`; booleans are none."""
    number = _as_int(name, value)
    if number < low:
        raise ValueError(f"{name} must be at least {low}, not {number}")
    if number > MAX_INT and name != "seed":
        raise ValueError(f"{name} must be at most {MAX_INT}, not {number}")
    return number


def check_float(name: str, value: Any) -> float:
    """Return a finite number."""
    number = _as_float(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {number}")
    return number


def id_or_ids(name: str, value: Any) -> int | list[int]:
    """Return a token id, or a list of ids where a collection is given."""
    value = _plain(value)
    if isinstance(value, (str, bytes, Mapping)):
        raise ValueError(f"{name} must be an id or a list of ids, not {value!r}")
    many = isinstance(value, (Sequence, set, frozenset))
    ids = [_as_int(name, entry) for entry in (value if many else [value])]
    if any(entry < 0 for entry in ids):
        raise ValueError(f"{name} must not be negative: {value!r}")
    if any(entry > MAX_INT for entry in ids):
        raise ValueError(f"{name} must be at most {MAX_INT}: {value!r}")
    return ids if many else ids[0]


def id_list(name: str, value: Any) -> list[int]:
    """Return a list of token ids."""
    ids = id_or_ids(name, value)
    if isinstance(ids, int):
        raise ValueError(f"{name} must be a list of ids, not {value!r}")
    return ids


def id_lists(name: str, value: Any) -> list[list[int]]:
    """Return a list of lists of token ids, none of them empty."""
    value = _plain(value)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise ValueError(f"{name} must be a list of lists of ids, not {value!r}")
    lists = [id_list(name, entry) for entry in value]
    if not all(lists):
        raise ValueError(f"{name} holds an empty list")
    return lists


def biases(name: str, value: Any) -> list[tuple[list[int], float]]:
    """Return (ids, bias) pairs, from {(id, ...): bias} or [[[id, ...], bias], ...]."""
    if isinstance(value, Mapping):
        value = list(value.items())
    pairs = [_plain(pair) for pair in value] if isinstance(value, Sequence) else None
    if pairs is None or not all(
        isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        for pair in pairs
    ):
        raise ValueError(
            f"{name} must be {{(id, ...): bias}} or [[[id, ...], bias], ...], not {value!r}"
        )
    out: dict[tuple[int, ...], float] = {}
    for ids, bias in pairs:
        number = _as_float(name, bias)
        if math.isnan(number) or number == math.inf:
            raise ValueError(f"{name} must be finite or -inf, not {number}")
        out[tuple(id_lists(name, [ids])[0])] = number
    return [(list(ids), bias) for ids, bias in out.items()]


def decay(name: str, value: Any) -> tuple[int, float]:
    """Return (start, factor)."""
    value = _plain(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{name} must be (start, factor), not {value!r}")
    factor = check_float(name, value[1])
    if factor <= 0:
        raise ValueError(f"{name} must have a factor greater than 0, not {factor}")
    return check_int(name, value[0], 0), factor


def strings(name: str, value: Any) -> str | list[str]:
    """Return a string or a list of strings, none of them empty."""
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, Sequence) or not all(
        isinstance(entry, str) and entry for entry in entries
    ):
        raise ValueError(f"{name} must be a non-empty string or a list of them, not {value!r}")
    return value if isinstance(value, str) else list(entries)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _is_bool(value: Any) -> bool:
    """Whether this is Python's bool or NumPy's, which older versions call bool_."""
    return type(value).__name__ in ("bool", "bool_")


def _as_int(name: str, value: Any) -> int:
    if not _is_bool(value):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError(f"{name} must be an integer, not {value!r}")


def _as_float(name: str, value: Any) -> float:
    if _is_bool(value) or isinstance(value, (str, bytes)):
        raise ValueError(f"{name} must be a number, not {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, not {value!r}") from None
