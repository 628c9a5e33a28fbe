"""Typed, bounded access to the values of a file that may lie (config.json, GGUF metadata)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Upper limits far above any real model: a number beyond them is a corrupt or hostile file, and must
# not become an allocation.
LIMITS = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "conv_L_cache": 1 << 6,
    "max_position_embeddings": 1 << 31,
}


class Fields:
    """Typed access to a dictionary that came from a file: the first key present wins."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self.source = source

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.source}: {message}")

    def values(self) -> Iterable[Any]:
        return self._values.values()

    def is_null(self, key: str) -> bool:
        """Whether the key is there with the value null."""
        return key in self._values and self._values[key] is None

    def find(self, *keys: str) -> tuple[str, Any]:
        """The first of `keys` whose value is there and not null; (keys[0], None) otherwise."""
        for key in keys:
            if self._values.get(key) is not None:
                return key, self._values[key]
        return keys[0], None

    def integer(self, *keys: str, default: int | None = None, low: int = 1, high: int = 0) -> int:
        key, value = self.find(*keys)
        if value is None:
            value = default
        if value is None:
            raise self.error(f"{key!r} is missing")
        high = high or (1 << 31)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{key!r} must be an integer, not {show(value)}")
        if not low <= value <= high:
            raise self.error(f"{key!r} must be between {low} and {high}, not {show(value)}")
        return value

    def size(self, name: str, *other_keys: str, default: int | None = None) -> int:
        """An integer under its canonical name, at most as large as `LIMITS` allows."""
        return self.integer(name, *other_keys, default=default, high=LIMITS[name])

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite positive number."""
        key, value = self.find(*keys)
        if value is None:
            value = default
        if value is None:
            raise self.error(f"{key!r} is missing")
        return self.positive(key, value)

    def positive(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(f"{key!r} must be a number, not {show(value)}")
        # Compared before float(), which overflows on huge integers.
        if not 0 < value < 1e30:
            raise self.error(f"{key!r} must be a positive finite number, not {show(value)}")
        return float(value)

    def flag(self, *keys: str, default: bool) -> bool:
        key, value = self.find(*keys)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{key!r} must be true or false, not {show(value)}")
        return value

    def token(self, key: str, default: int | None) -> int | None:
        """A token id; absent means `default`, null or -1 (old Llama files) means none."""
        if key not in self._values:
            return default
        if self._values[key] in (None, -1):
            return None
        return self.integer(key, low=0)

    def tokens(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self._values.get(key)
        if not isinstance(value, list):
            one = self.token(key, default[0] if default else None)
            return () if one is None else (one,)
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 1 << 31:
                raise self.error(f"{key!r} must hold token ids, not {show(item)}")
        return tuple(dict.fromkeys(value))

    def mapping(self, *keys: str) -> Mapping[str, Any]:
        key, value = self.find(*keys)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(f"{key!r} must be an object, not {show(value)}")
        return value


def show(value: Any) -> str:
    """`repr`, cut short: a hostile value must not make the message unreadable."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge integer"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
