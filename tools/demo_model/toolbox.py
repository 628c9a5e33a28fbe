"""Tools: those written by hand, and endless made-up ones."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

from values import Value, any_kind, make_value, pseudo
from words import HELD_KEYS, HELD_NOUNS, HELD_TOOLS, KEYS, NOUNS, TOOLS, VERBS

_AFFIXES = 2, 5  # letters that each of two words gives to a blend


@dataclass(frozen=True)
class Key:
    """A parameter or a field: its name, the kind of its value, cues that announce the value."""

    name: str
    kind: str
    cues: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool; `requests` are templates, none for a made-up one."""

    name: str
    description: str
    keys: tuple[Key, ...]
    requests: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    noun: str = ""

    def schema(self, random: Random, values: dict[str, Value]) -> dict[str, Any]:
        """Return the tool as JSON, in one of two layouts."""
        wrapped = random.random() < 0.15
        properties = {}
        for key in self.keys:
            value = values.get(key.name) or make_value(random, key.kind)
            properties[key.name] = dict(value.schema)
            if wrapped:
                properties[key.name]["description"] = f"The {spoken(key.name)}."
        required = [key.name for key in self.keys if not key.optional]
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": {"type": "object", "properties": properties, "required": required},
        }
        return {"type": "function", "function": function} if wrapped else function


def spoken(name: str) -> str:
    return name.replace("_", " ")


@cache
def keys(held: bool) -> tuple[Key, ...]:
    text = HELD_KEYS if held else KEYS
    found = []
    for entry in re.split(r"[;\n]", text.strip()):
        words = entry.split(maxsplit=2)
        cues = tuple(cue.strip() for cue in words[2].split("|")) if len(words) > 2 else ()
        found.append(Key(words[0], words[1], cues))
    return tuple(found)


@cache
def written_tools(held: bool) -> tuple[Tool, ...]:
    """Return the tools that were written by hand; `held` are the test's."""
    found = []
    for line in HELD_TOOLS if held else TOOLS:
        name, description, parameters, requests = (part.strip() for part in line.split(" | "))
        parsed = []
        for parameter in parameters.split():
            key, kind = parameter.split(":")
            parsed.append(Key(key, kind.rstrip("?"), (), kind.endswith("?")))
        templates = tuple(request.strip() for request in requests.split(" ; "))
        found.append(Tool(name, description, tuple(parsed), templates))
    return tuple(found)


@cache
def _words(held: bool) -> tuple[str, ...]:
    """Return the words that names are made of; those of the test only, or those of training."""
    names = [key.name for key in keys(held)] + [tool.name for tool in written_tools(held)]
    names += [key.name for tool in written_tools(held) for key in tool.keys]
    parts = {part for name in names for part in name.split("_")}
    parts.update(HELD_NOUNS if held else NOUNS)
    return tuple(sorted(parts - set(_words(False)) if held else parts))


def coined(random: Random) -> str:
    """Return a new word for a name: half of them blends, which look like real words."""
    while True:
        if random.random() < 0.5:
            return pseudo(random, 1, 3)
        head, tail = (random.choice(_words(False)) for _ in range(2))
        word = head[: random.randint(*_AFFIXES)] + tail[-random.randint(*_AFFIXES) :]
        if word not in _words(True):
            return word


def draw_keys(random: Random, count: int, held: bool) -> list[Key]:
    """Draw different keys; in training a part are coined, in the test most are unseen."""
    found: list[Key] = []
    while len(found) < count:
        if held and (not found or random.random() < 0.6):
            key = random.choice(keys(True))
        elif not held and random.random() < 0.65:
            name = coined(random)
            if random.random() < 0.2:
                name += "_" + coined(random)
            key = Key(name, any_kind(random))
        else:
            key = random.choice(keys(False))
        if all(other.name != key.name for other in found):
            found.append(key)
    return found


def with_other_noun(random: Random, tool: Tool) -> Tool:
    """Give a written tool another noun, so that its own cannot be learnt by heart.

    Only requests that say the noun are kept; a tool without any stays as it is.
    """
    old = tool.name.split("_")[-1]
    said = re.compile(rf"\b(?:(a)n? )?(?<!{{){old}\b(?!}})", re.IGNORECASE)
    requests = tuple(text for text in tool.requests if said.search(text))
    if not requests or any(old == part for key in tool.keys for part in key.name.split("_")):
        return tool
    noun = random.choice(NOUNS) if random.random() < 0.5 else coined(random)

    def other(match: re.Match[str]) -> str:
        word = match[0].split()[-1]
        article = match[1] + ("n " if noun[0] in "aeiou" else " ") if match[1] else ""
        return article + (noun.title() if word[0].isupper() else noun)

    return replace(
        tool,
        name=tool.name.replace(old, noun),
        description=said.sub(other, tool.description),
        requests=tuple(said.sub(other, text) for text in requests),
    )


def with_other_keys(random: Random, tool: Tool) -> Tool:
    """Give parameters of a written tool other names, so that schemas must be read.

    The order stays: where two are alike, it tells which is which.
    """
    names: dict[str, str] = {}
    for key in tool.keys:
        alike = [other.name for other in keys(False) if other.kind == key.kind]
        name = random.choice(alike) if alike and random.random() < 0.5 else coined(random)
        taken = {*names.values(), *(other.name for other in tool.keys)}
        names[key.name] = key.name if name in taken or random.random() < 0.3 else name
    requests = [
        re.sub(r"\{(\w+)\}", lambda found: f"{{{names[found[1]]}}}", text) for text in tool.requests
    ]
    renamed_keys = [replace(key, name=names[key.name]) for key in tool.keys]
    return replace(tool, keys=tuple(renamed_keys), requests=tuple(requests))


def made_up_tool(random: Random, held: bool, like: Tool | None = None) -> Tool:
    """Draw a tool; `like` one gives another verb for the same noun, or another noun."""
    while True:
        verbs = tuple(random.choice(VERBS).split())
        same = like is not None and like.noun and random.random() < 0.5
        if like is not None and same:
            if set(verbs) & set(like.verbs):
                continue
            noun = like.noun
        elif held:
            noun = random.choice(HELD_NOUNS)
        else:
            noun = random.choice(NOUNS) if random.random() < 0.3 else coined(random)
        if like is not None and not same and noun == like.noun:
            continue
        break
    drawn = draw_keys(random, random.choice([1, 1, 2, 2, 3]), held)
    if len(drawn) > 1 and random.random() < 0.15:
        drawn[-1] = Key(drawn[-1].name, drawn[-1].kind, drawn[-1].cues, True)
    verb = random.choice(verbs)
    style = random.random()
    name = f"{verb}_{noun}" if style < 0.85 else f"{noun}_{verb}"
    if style > 0.95:
        name = f"{verb}{noun.title()}"
    article = random.choice(["an" if noun[0] in "aeiou" else "a", "the"])
    description = f"{verb.title()} {article} {noun}."
    return Tool(name, description, tuple(drawn), (), verbs, noun)


def draw_values(random: Random, tool: Tool) -> dict[str, Value]:
    """Draw the arguments; optional ones are left out half of the time."""
    return {
        key.name: make_value(random, key.kind)
        for key in tool.keys
        if not key.optional or random.random() < 0.5
    }


def written_call(tool: Tool, values: dict[str, Value]) -> str:
    """Write the call as LFM2 does, arguments in the order of the schema."""
    given = [key.name for key in tool.keys if key.name in values]
    return f"{tool.name}({', '.join(f'{name}={values[name].pythonic}' for name in given)})"


def plain_call(tool: Tool, values: dict[str, Value]) -> dict[str, Any]:
    return {"name": tool.name, "arguments": {name: value.plain for name, value in values.items()}}
