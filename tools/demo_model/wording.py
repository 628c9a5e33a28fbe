"""Requests in words: by a tool's own templates, by naming each parameter, or as people speak."""

from __future__ import annotations

import re
from random import Random

from toolbox import Key, Tool, keys, spoken
from values import Value

_FRAMES = [
    "{Verb} the {noun}", "{Verb} a {noun}", "Please {verb} the {noun}", "Can you {verb} a {noun}",
    "I want to {verb} the {noun}", "{Verb} my {noun}", "I need you to {verb} a {noun}",
    "{Verb} {noun}",
]  # fmt: skip
# Requests as people speak: how they begin; what a verb may be where the noun says which tool.
_BEFORE_VERB = [
    "", "", "", "Please", "Can you", "Could you", "I want to", "We want to", "I need you to",
    "I would like to", "Let us", "Now",
]  # fmt: skip
_WITHOUT_VERB = [
    "", "", "I need", "I want", "We need", "We would like", "Is there", "What is", "How is",
    "Can I have", "There is", "It is time for",
]  # fmt: skip
_ANY_VERB = "give get take make do put have let tell bring arrange prepare handle offer".split()
_LINKS = ["", "", "", "for", "of", "as", "to", "from", "in", "at"]
# What may stand before a value of each kind, nothing among it.
_SAID = {
    "name": "for|by|with|from|to|of|", "place": "in|from|to|of|near|for",
    "thing": "about|on|with|of|in the|", "phrase": "about|saying|on|with the text|",
    "title": "called|titled|", "code": "|number|with|with number", "date": "on|for|until|from|by",
    "time": "at|from|until|by", "email": "at|to|, mail|using|",
    "pseudo": "at|called|named|in|from|with|", "money": "of|over|for|worth",
    "address": "at|to|in", "phone": "at|, phone|under", "list": "with|of|",
    "names": "with|for|to", "places": "to|in|for", "street": "in|on", "url": "at|from",
    "language": "in|into", "currency": "in", "unit": "in", "ticker": "|of", "expression": "|of",
    "year": "of|from|in",
}  # fmt: skip
_LOOKS = {"date", "time", "email", "phone", "code", "url"}  # kinds that a value's letters tell
_UNITS = """hours minutes people grams degrees pieces tickets points kilos steps copies rooms times
nights days stars percent""".split()


def clause(random: Random, key: Key, value: Value, natural: bool) -> str:
    """Say a value so that its key can be told: by a usual cue, or by the key's name."""
    if natural and key.cues and random.random() < 0.6:
        return f"{random.choice(key.cues)} {value.said}"
    name = spoken(key.name) if random.random() < 0.7 else key.name
    forms = [
        "{k} {v}", "with {k} {v}", "{k}: {v}", "{k} = {v}", "the {k} is {v}", "with the {k} {v}",
        "{v} as {k}", "{k} {v}", "use {k} {v}",
    ]  # fmt: skip
    return random.choice(forms).format(k=name, v=value.said)


def _spoken_clause(random: Random, key: Key, value: Value) -> str:
    """Say a value as people do, without its key; whether it may be told is the caller's care."""
    if key.cues and random.random() < 0.3:
        return f"{random.choice(key.cues)} {value.said}"
    if key.kind == "int":
        unit = spoken(key.name) if random.random() < 0.5 else random.choice(_UNITS)
        forms = [
            "for {v} {u}",
            "{v} {u}",
            "{v} {u}",
            "of {v}",
            "to {v}",
            "at {v}",
            "with {v} {u}",
        ]
        return random.choice(forms).format(v=value.said, u=unit)
    cues = "in||in a|as" if "/" in key.kind else _SAID[key.kind]
    return f"{random.choice(cues.split('|'))} {value.said}".strip()


def _order(random: Random, named: list[Key], values: dict[str, Value]) -> list[Key]:
    """Shuffle keys so that each value can still be told.

    By its type in the schema, or by its looks where the key is a known one; else values stand in
    the order of the schema.
    """
    known = {key.name: key.kind for key in keys(False)}
    groups: dict[str, list[Key]] = {}
    for key in named:
        schema = values[key.name].schema
        number = schema["type"] in ("integer", "number")
        groups.setdefault("number" if number else str(schema), []).append(key)
    shuffled = random.sample(named, len(named))
    for group in groups.values():
        kinds = [known.get(key.name, "") for key in group]
        plain = [kind for kind in kinds if kind not in _LOOKS]
        if len(set(kinds)) < len(kinds) or "" in kinds or len(plain) > 1:
            places = sorted(shuffled.index(key) for key in group)
            for place, key in zip(places, group, strict=True):
                shuffled[place] = key
    return shuffled


def spoken_request(random: Random, tool: Tool, values: dict[str, Value], verb: bool) -> str:
    """Ask for a made-up tool as people speak; `verb`: other tools have the same noun."""
    given = [key for key in tool.keys if key.name in values]
    named = [key for key in given if key.kind == "bool" or random.random() < 0.2]
    order = _order(random, [key for key in given if key not in named], values)
    for key in named:
        order.insert(random.randint(0, len(order)), key)

    def said(key: Key, bare: float) -> str:
        value = values[key.name]
        if key in named:
            return clause(random, key, value, natural=False)
        return value.said if random.random() < bare else _spoken_clause(random, key, value)

    # Each value stands before the verb, between verb and noun, as an adjective, or after the noun.
    places = sorted(random.choices([0, 1, 2], [0.2, 0.25, 0.55], k=len(order)))
    split = [[key for key, at in zip(order, places, strict=True) if at == i] for i in range(3)]
    adjective = ""
    if split[1] and _is_adjective(split[1][-1], named) and random.random() < 0.6:
        adjective = values[split[1].pop().name].said + " "
    elif split[2] and _is_adjective(split[2][0], named) and random.random() < 0.4:
        adjective = values[split[2].pop(0).name].said + " "
    lead = random.choice([" ", ", ", " and "]).join(said(key, 0.2) for key in split[0])
    middle = random.choice([" ", ", ", " and "]).join(said(key, 0.7) for key in split[1])
    tail = random.choice([" ", " ", ", ", " and "]).join(said(key, 0.15) for key in split[2])

    noun = adjective + tool.noun
    article = random.choice(["the", "the", "a", "a", "my", "our", ""])
    if article == "a" and noun[0] in "aeiou":
        article = "an"
    middle += f" {random.choice(_LINKS)}" if middle else ""
    what = f"{middle} {article} {noun} {tail}"
    own = random.choice(tool.verbs)
    style = random.random()
    if style < 0.1:
        body = f"{what}, {own} it" if verb or random.random() < 0.5 else what
    elif verb or style < 0.6:
        do = own if verb or random.random() < 0.65 else random.choice(_ANY_VERB)
        body = f"{random.choice(_BEFORE_VERB)} {do} {what}"
    else:
        body = f"{random.choice(_WITHOUT_VERB)} {what}"
    if lead:
        body = f"{lead}{random.choice([' ', ', ', ': '])}{body}"
    text = re.sub(r"(?<=\w)[ ,]* ,", ",", re.sub(r" +", " ", body)).strip(" ,:")
    if not starts_with_value(text, values):
        text = text[0].upper() + text[1:]
    if re.match("(can|could|is|what|how) ", text, re.IGNORECASE) and random.random() < 0.8:
        text += "?"
    return _finished(random, text, values)


def _is_adjective(key: Key, named: list[Key]) -> bool:
    return key not in named and ("/" in key.kind or key.kind in ("thing", "language"))


def request(random: Random, tool: Tool, values: dict[str, Value]) -> str:
    """Ask for the tool in words."""
    if tool.requests:
        text = random.choice(tool.requests)

        def optional(match: re.Match[str]) -> str:
            inner = match[1]
            names = re.findall(r"\{(\w+)\}", inner)
            return inner if all(name in values for name in names) else ""

        text = re.sub(r"\[([^]]*)\]", optional, text)
        text = text.format(**{name: value.said for name, value in values.items()})
    else:
        verb = random.choice(tool.verbs) if random.random() < 0.4 else _verb_of(tool)
        frame = random.choice(_FRAMES)
        if tool.noun[0] in "aeiou":
            frame = frame.replace(" a {noun}", " an {noun}")
        text = frame.format(verb=verb, Verb=verb.title(), noun=tool.noun)
        kinds = [key.kind for key in tool.keys]
        named = [key for key in tool.keys if key.name in values]
        if random.random() < 0.3:
            random.shuffle(named)
        for index, key in enumerate(named):
            part = clause(random, key, values[key.name], kinds.count(key.kind) == 1)
            text += (" " if index == 0 else random.choice([" ", ", ", " and "])) + part
    return _finished(random, text, values)


def _finished(random: Random, text: str, values: dict[str, Value]) -> str:
    """Vary how a request begins and ends."""
    style = random.random()
    if starts_with_value(text, values):
        pass  # its letters are to be copied as they are
    elif style < 0.1:
        text = text[0].lower() + text[1:]
    elif style < 0.2:
        opening = random.choice(["Hi,", "Hello.", "Hey,", "Okay,", "Now"])
        text = f"{opening} {text[0].lower()}{text[1:]}"
    if text[-1] not in "?.!" and random.random() < 0.3:
        text += "."
    return text


def starts_with_value(text: str, values: dict[str, Value]) -> bool:
    return any(text.startswith(value.said) for value in values.values())


def _verb_of(tool: Tool) -> str:
    return next((verb for verb in tool.verbs if verb in tool.name), tool.verbs[0])
