"""Tool calls: one, several, none, and what is said to a tool's result."""

from __future__ import annotations

from random import Random
from typing import Any

from example import Example, user
from toolbox import (
    Tool,
    draw_keys,
    draw_values,
    made_up_tool,
    plain_call,
    spoken,
    with_other_keys,
    with_other_noun,
    written_call,
    written_tools,
)
from values import Value, make_value
from wording import request, spoken_request, starts_with_value

START, END = "<|tool_call_start|>", "<|tool_call_end|>"
NO_TOOL = "None of my tools can do that."
Chosen = list[tuple[Tool, dict[str, Value]]]
SMALL_TALK = [
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Good morning", "Hello! How can I help you?"),
    ("Hey, how are you?", "Hello! How can I help you?"),
    ("Thank you!", "You are welcome!"),
    ("Thanks a lot.", "You are welcome!"),
    ("That is great, thanks", "You are welcome!"),
    ("Bye!", "Goodbye!"),
    ("Good night", "Goodbye!"),
    ("See you later.", "Goodbye!"),
    ("Who are you?", "I am a miniature of LFM2, trained from scratch as a demo of lfm-engine."),
    ("What are you?", "I am a miniature of LFM2, trained from scratch as a demo of lfm-engine."),
    (
        "What is your name?",
        "I am a miniature of LFM2, trained from scratch as a demo of lfm-engine.",
    ),
]


def _tool(random: Random, held: bool, like: Tool | None = None) -> Tool:
    if random.random() < 0.5:
        return made_up_tool(random, held, like)
    tool = random.choice(written_tools(held))
    if held:
        return tool
    if random.random() < 0.75:
        tool = with_other_noun(random, tool)
    return with_other_keys(random, tool) if random.random() < 0.75 else tool


def _toolbox(random: Random, held: bool, wanted: list[Tool], count: int) -> list[Tool]:
    """Return `wanted` among others, `count` in all, with different names and nouns."""
    box = list(wanted)
    tries = 0
    while len(box) < count and tries < 20:
        tries += 1
        other = _tool(random, held, wanted[0] if wanted else None)
        last = {tool.name.split("_")[-1] for tool in box if not tool.noun}
        if other.name in {tool.name for tool in box} or other.name.split("_")[-1] in last:
            continue
        box.append(other)
    random.shuffle(box)
    return box


def _calls(random: Random, held: bool, many: bool) -> tuple[str, Chosen, list[dict[str, Any]]]:
    """Return a request, the calls that answer it, and the schemas of the tools at hand."""
    first = _tool(random, held)
    chosen = [(first, draw_values(random, first))]
    if many and len(first.keys) == 1 and random.random() < 0.6 and not first.keys[0].optional:
        again = _another(random, first, chosen[0][1])
        if again is not None:
            chosen.append((first, again[1]))
            text = request(random, first, again[0])
            box = _toolbox(random, held, [first], random.choice([1, 2]))
            return text, chosen, _schemas(random, box, chosen)
    if many:
        for _ in range(9):
            second = _tool(random, held)
            clash = {second.name, second.name.split("_")[-1], second.noun or "-"}
            if not clash & {first.name, first.name.split("_")[-1], first.noun or "+"}:
                chosen.append((second, draw_values(random, second)))
                break
    text = _join(random, [request(random, tool, values) for tool, values in chosen], chosen)
    wanted = [tool for tool, _ in chosen]
    count = random.choice([1, 1, 2, 2, 3]) if len(wanted) == 1 else random.choice([2, 2, 2, 3])
    return text, chosen, _schemas(random, _toolbox(random, held, wanted, count), chosen)


def _another(
    random: Random, tool: Tool, values: dict[str, Value]
) -> tuple[dict[str, Value], dict[str, Value]] | None:
    """Return the one parameter with both values said, and with the second, if that can be told."""
    key = tool.keys[0]
    one, other = values[key.name], make_value(random, key.kind)
    joins = ("place", "name", "thing", "pseudo", "code", "int", "date", "email")
    if key.kind not in joins or one.said == other.said:
        return None
    both = Value(f"{one.said} and {other.said}", one.written, one.schema)
    return {key.name: both}, {key.name: other}


def _join(random: Random, parts: list[str], chosen: Chosen) -> str:
    """Make one request of those for each of the chosen calls."""
    text = parts[0]
    for part in parts[1:]:
        if text[-1] in ".?!":
            text += f" {part}"
        else:
            fixed = starts_with_value(part, chosen[-1][1])
            lowered = part if fixed else part[0].lower() + part[1:]
            text += random.choice(
                [f". {part}", f" and {lowered}", f". Then {lowered}", f", then {lowered}"]
            )
    return text


def _schemas(random: Random, box: list[Tool], chosen: Chosen) -> list[dict[str, Any]]:
    given = {tool.name: values for tool, values in chosen}
    return [tool.schema(random, given.get(tool.name, {})) for tool in box]


def _call_text(chosen: Chosen) -> str:
    return f"{START}[{', '.join(written_call(*call) for call in chosen)}]{END}"


_SYSTEM = ["", "", "", "You are a helpful assistant.", "Use the tools."]


def call_task(random: Random, held: bool, many: bool = False) -> Example:
    if not held and random.random() < 0.6:
        return _conversation(random, many)
    text, chosen, schemas = _calls(random, held, many)
    return Example(
        "parallel calls" if len(chosen) > 1 else "call",
        user(text, random.choice(_SYSTEM)),
        _call_text(chosen),
        [plain_call(*call) for call in chosen],
        schemas,
    )


def parallel_task(random: Random, held: bool) -> Example:
    return call_task(random, held, many=True)


def no_call_task(random: Random, held: bool) -> Example:
    if random.random() < 0.5:
        text, answer = random.choice(SMALL_TALK)
        box = _toolbox(random, held, [], random.choice([1, 2, 2]))
    else:
        missing = _tool(random, held)
        text, answer = request(random, missing, draw_values(random, missing)), NO_TOOL
        box = []
        while not box:
            box = [
                tool
                for tool in _toolbox(random, held, [], random.choice([1, 2]))
                if tool.name.split("_")[-1] != missing.name.split("_")[-1]
                and (tool.noun or "-") not in missing.name
            ]
    messages = user(text, random.choice(_SYSTEM))
    return Example("no call", messages, answer, answer, _schemas(random, box, []))


def _results(random: Random, held: bool, chosen: Chosen) -> tuple[list[dict[str, str]], str]:
    """Return what the tools answer, and what is to be said to that."""
    messages, said = [], []
    for tool, _ in chosen:
        if random.random() < 0.25:
            value = make_value(
                random, random.choice(["thing", "pseudo", "int", "money", "phrase", "time"])
            )
            content = value.said
            said.append(f"The result is {content}.")
        else:
            fields = [
                (key.name, make_value(random, key.kind))
                for key in draw_keys(random, random.choice([1, 2, 2]), held)
                if key.kind not in ("list", "names", "places")
            ] or [("status", make_value(random, "thing"))]
            body = ", ".join(f'"{name}": {value.written}' for name, value in fields)
            content = "{" + body + "}"
            plain = [value.written.strip('"') for _, value in fields]
            parts = [f"the {spoken(f[0])} is {v}" for f, v in zip(fields, plain, strict=True)]
            sentence = " and ".join(parts) + "."
            said.append(sentence[0].upper() + sentence[1:])
        messages.append({"role": "tool", "content": content, "name": tool.name})
    return messages, " ".join(said)


def result_task(random: Random, held: bool) -> Example:
    """The tool has answered: say so."""
    text, chosen, schemas = _calls(random, held, random.random() < 0.15)
    called = {tool.name for tool, _ in chosen}
    if random.random() < 0.7:  # the other tools do not matter here
        schemas = [tool for tool in schemas if tool.get("function", tool)["name"] in called]
    messages = user(text, random.choice(_SYSTEM))
    messages.append({"role": "assistant", "content": _call_text(chosen)})
    results, answer = _results(random, held, chosen)
    messages += results
    return Example("tool result", messages, answer, answer, schemas)


def _conversation(random: Random, many: bool) -> Example:
    """Several requests in turn to the same tools; training learns from each answer."""
    count = random.choice([1, 2, 2] if many else [1, 1, 2, 2, 3])
    box = _toolbox(random, False, [_tool(random, False)], count)
    schemas = _schemas(random, box, [])
    messages: list[dict[str, str]] = []
    for left in reversed(range(random.choice([1, 1, 1, 2] if many else [1, 2, 2, 3]))):
        other = random.random()
        if left and other < 0.16:
            text, answer = random.choice(SMALL_TALK) if other < 0.08 else _missing(random, box)
            messages += [*user(text), {"role": "assistant", "content": answer}]
            continue
        several = many if left == 0 else random.random() < 0.3
        text, chosen = _spoken_calls(random, box, several)
        messages += user(text)
        if left:
            messages.append({"role": "assistant", "content": _call_text(chosen)})
            results, answer = _results(random, False, chosen)
            messages += [*results, {"role": "assistant", "content": answer}]
    system = random.choice(_SYSTEM)
    return Example(
        "parallel calls" if len(chosen) > 1 else "call",
        [{"role": "system", "content": system}, *messages] if system else messages,
        _call_text(chosen),
        [plain_call(*call) for call in chosen],
        schemas,
    )


def _spoken_calls(random: Random, box: list[Tool], several: bool) -> tuple[str, Chosen]:
    """Return a request of tools in the box, and the calls that answer it."""

    def ask(tool: Tool, values: dict[str, Value]) -> str:
        if tool.requests or random.random() < 0.5:
            return request(random, tool, values)
        return spoken_request(random, tool, values, sum(t.noun == tool.noun for t in box) > 1)

    tools = random.sample(box, 2 if several and len(box) > 1 else 1)
    chosen = [(tool, draw_values(random, tool)) for tool in tools]
    tool, values = chosen[0]
    alone = len(tool.keys) == 1 and not tool.keys[0].optional
    if several and alone and (len(box) == 1 or random.random() < 0.5):
        again = _another(random, tool, values)
        if again is not None:
            return ask(tool, again[0]), [chosen[0], (tool, again[1])]
    return _join(random, [ask(*call) for call in chosen], chosen), chosen


def _missing(random: Random, box: list[Tool]) -> tuple[str, str]:
    """Return a request of a tool that is not in the box."""
    names = "_".join(tool.name for tool in box)
    while True:
        tool = _tool(random, False)
        if tool.name.split("_")[-1] not in names and (not tool.noun or tool.noun not in names):
            return request(random, tool, draw_values(random, tool)), NO_TOOL
