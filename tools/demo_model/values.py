"""Values of all kinds, as they are said in a request and as they are written in an answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from words import CURRENCIES, FIRST_NAMES, LANGUAGES, PLACES, STREETS, THINGS, UNITS

ONSETS = "b c d f g h j k l m n p r s t v w z br dr gr kr pl sk st tr ch sh th".split()
VOWELS = "a e i o u a e i o ai ea ou".split()
CODAS = ["", "", "", "n", "r", "l", "s", "m", "k", "t", "x", "nd", "rt"]


@dataclass(frozen=True)
class Value:
    """A value: `said` in a sentence, `written` as JSON text, and its JSON `schema`."""

    said: str
    written: str
    schema: dict[str, Any]

    @property
    def plain(self) -> Any:
        return json.loads(self.written)

    @property
    def pythonic(self) -> str:
        """As an argument of a Pythonic call."""
        return {"true": "True", "false": "False", "null": "None"}.get(self.written, self.written)


def pseudo(random: Random, low: int = 2, high: int = 3) -> str:
    """Return a word that no language has, lower case."""
    count = random.randint(low, high)
    word = "".join(random.choice(ONSETS) + random.choice(VOWELS) for _ in range(count))
    return word + random.choice(CODAS)


def _text(said: str, **schema: Any) -> Value:
    return Value(said, json.dumps(said, ensure_ascii=False), {"type": "string", **schema})


def _name(random: Random) -> str:
    first = random.choice(FIRST_NAMES) if random.random() < 0.5 else pseudo(random, 1, 2).title()
    if random.random() < 0.4:
        return first
    return f"{first} {pseudo(random, 1, 3).title()}"


def _place(random: Random) -> str:
    kind = random.random()
    if kind < 0.4:
        return random.choice(PLACES)
    if kind < 0.9:
        return pseudo(random).title()
    return f"{random.choice(['New', 'San', 'Port', 'Bad'])} {pseudo(random).title()}"


def _thing(random: Random) -> str:
    return random.choice(THINGS) if random.random() < 0.6 else pseudo(random, 1, 3)


def _phrase(random: Random) -> str:
    words = [_thing(random) for _ in range(random.randint(2, 3))]
    if random.random() < 0.3:
        words.insert(1, random.choice(["the", "a", "my", "and", "for", "with"]))
    return " ".join(words)


def _title(random: Random) -> str:
    return " ".join(_thing(random).title() for _ in range(random.randint(1, 3)))


def _digits(random: Random, low: int, high: int) -> str:
    count = random.randint(low, high)
    return random.choice("123456789") + "".join(
        random.choice("0123456789") for _ in range(count - 1)
    )


def _code(random: Random) -> str:
    letters = "".join(
        random.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(random.randint(1, 3))
    )
    return letters + random.choice(["", "-", "-"]) + _digits(random, 2, 4)


def _date(random: Random) -> str:
    return f"20{random.randint(18, 32)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}"


def _integer(random: Random) -> str:
    return _digits(random, 1, random.choice([1, 2, 2, 3, 4]))


def _money(random: Random) -> str:
    whole = _digits(random, 1, 4)
    return (
        whole
        if random.random() < 0.5
        else f"{whole}.{random.randint(1, 9)}{random.choice(['', '5'])}"
    )


def _email(random: Random) -> str:
    host = f"{pseudo(random, 1, 2)}.{random.choice(['com', 'org', 'net', 'de', 'io'])}"
    return f"{pseudo(random, 1, 2)}{random.choice(['', '', '.' + pseudo(random, 1, 1)])}@{host}"


def _phone(random: Random) -> str:
    return f"{random.choice(['+', '0'])}{_digits(random, 2, 3)} {_digits(random, 4, 6)}"


def _street(random: Random) -> str:
    return f"{_digits(random, 1, 3)} {pseudo(random).title()} {random.choice(STREETS)}"


def _expression(random: Random) -> str:
    parts = [_integer(random)]
    for _ in range(random.randint(1, 2)):
        parts += [random.choice("+-*/"), _integer(random)]
    return " ".join(parts)


_STRINGS = {
    "name": _name,
    "place": _place,
    "thing": _thing,
    "phrase": _phrase,
    "title": _title,
    "code": _code,
    "date": _date,
    "time": lambda r: f"{r.randint(0, 23):02}:{r.choice(['00', '15', '30', '45', '05', '20'])}",
    "email": _email,
    "phone": _phone,
    "address": _street,
    "street": lambda r: f"{pseudo(r).title()} {r.choice(STREETS)}",
    "pseudo": lambda r: pseudo(r).title() if r.random() < 0.6 else pseudo(r),
    "currency": lambda r: r.choice(CURRENCIES),
    "unit": lambda r: r.choice(UNITS),
    "language": lambda r: r.choice(LANGUAGES),
    "ticker": lambda r: "".join(r.choice("ABCDEFGHIJKLMNOPRSTUVWXYZ") for _ in range(4)),
    "url": lambda r: f"{pseudo(r, 1, 2)}.{r.choice(['com', 'org', 'net'])}/{pseudo(r, 1, 2)}",
    "expression": _expression,
}
_LISTS = {"list": _thing, "names": _name, "places": _place}
# What a coined key may hold.
_ANY_KIND = (
    "name place thing thing phrase code date time email pseudo pseudo pseudo int int int money "
    "bool list names places title address phone choice choice"
).split()


def any_kind(random: Random) -> str:
    kind = random.choice(_ANY_KIND)
    if kind != "choice":
        return kind
    words = [_thing(random) for _ in range(random.randint(2, 4))]
    return "/".join(dict.fromkeys(words)) if len(set(words)) > 1 else "thing"


def make_value(random: Random, kind: str) -> Value:
    """Draw a value; `kind` is one of the above, int, money, year, bool, or "a/b/c" for an enum."""
    if kind in _STRINGS:
        return _text(_STRINGS[kind](random))
    if kind == "int":
        said = _integer(random)
        return Value(said, said, {"type": "integer"})
    if kind == "year":
        said = str(random.randint(1900, 2030))
        return Value(said, said, {"type": "integer"})
    if kind == "money":
        said = _money(random)
        return Value(said, said, {"type": "number"})
    if kind == "bool":
        yes = random.random() < 0.5
        said = random.choice(["yes", "true", "on"] if yes else ["no", "false", "off"])
        return Value(said, "true" if yes else "false", {"type": "boolean"})
    if kind in _LISTS:
        entries: list[str] = []
        while len(entries) < random.choice([2, 2, 3]):
            entry = _LISTS[kind](random)
            if entry not in entries:
                entries.append(entry)
        said = f"{', '.join(entries[:-1])} and {entries[-1]}"
        schema = {"type": "array", "items": {"type": "string"}}
        return Value(said, json.dumps(entries, ensure_ascii=False), schema)
    if "/" in kind:
        choices = kind.split("/")
        return _text(random.choice(choices), enum=choices)
    raise ValueError(f"no such kind of value: {kind}")
