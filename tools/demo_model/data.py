"""Synthetic examples for training and for the test: everything is drawn here from a seed.

`draw(seed, index)` gives the same example on every machine. The test's examples (`held=True`) use
tools, nouns and keys that training never draws.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import labels
from toolbox import (
    Tool,
    clause,
    draw_keys,
    draw_values,
    keys,
    made_up_tool,
    plain_call,
    request,
    spoken,
    starts_with_value,
    with_other_keys,
    with_other_noun,
    written_call,
    written_tools,
)
from values import Value, make_value, pseudo

START, END = "<|tool_call_start|>", "<|tool_call_end|>"
NO_TOOL = "None of my tools can do that."


@dataclass(frozen=True)
class Example:
    """A conversation that ends before the assistant's `answer`.

    Attributes:
        expect: what the answer must mean: calls, a JSON value, a label or a text.
        schema: JSON schema of the answer, for extractions.
        labels: what a classification may choose from.
    """

    task: str
    messages: list[dict[str, str]]
    answer: str
    expect: Any
    tools: list[dict[str, Any]] = field(default_factory=list)
    schema: dict[str, Any] | None = None
    labels: list[str] = field(default_factory=list)

    def prompt(self) -> str:
        """Render as LFM2.5's chat template does, up to the assistant's answer."""
        messages = list(self.messages)
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        if self.tools:
            listed = ", ".join(json.dumps(tool, ensure_ascii=False) for tool in self.tools)
            system += ("\n" if system else "") + f"List of tools: [{listed}]"
        text = "<|startoftext|>"
        if system:
            text += f"<|im_start|>system\n{system}<|im_end|>\n"
        for message in messages:
            text += f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
        return text + "<|im_start|>assistant\n"


def _user(text: str, system: str = "") -> list[dict[str, str]]:
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": text}]


# -- tool calls --


def _tool(random: Random, held: bool, like: Tool | None = None) -> Tool:
    if random.random() < 0.5:
        return made_up_tool(random, held, like)
    tool = random.choice(written_tools(held))
    if held:
        return tool
    if random.random() < 0.6:
        tool = with_other_noun(random, tool)
    return with_other_keys(random, tool) if random.random() < 0.6 else tool


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


def _calls(
    random: Random, held: bool, many: bool
) -> tuple[str, list[tuple[Tool, dict[str, Value]]], list[dict[str, Any]]]:
    """Return a request, the calls that answer it, and the schemas of the tools at hand."""
    first = _tool(random, held)
    chosen = [(first, draw_values(random, first))]
    if many and len(first.keys) == 1 and random.random() < 0.6 and not first.keys[0].optional:
        key = first.keys[0]
        again = make_value(random, key.kind)
        joins = key.kind in ("place", "name", "thing", "pseudo", "code", "int", "date", "email")
        one = chosen[0][1][key.name]
        if joins and again.said != one.said:
            chosen.append((first, {key.name: again}))
            joined = Value(f"{one.said} and {again.said}", one.written, one.schema)
            text = request(random, first, {key.name: joined})
            schemas = _schemas(
                random, _toolbox(random, held, [first], random.choice([1, 2])), chosen
            )
            return text, chosen, schemas
    if many:
        for _ in range(9):
            second = _tool(random, held)
            clash = {second.name, second.name.split("_")[-1], second.noun or "-"}
            if not clash & {first.name, first.name.split("_")[-1], first.noun or "+"}:
                chosen.append((second, draw_values(random, second)))
                break
    parts = [request(random, tool, values) for tool, values in chosen]
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
    wanted = [tool for tool, _ in chosen]
    count = random.choice([1, 1, 2, 2, 3]) if len(wanted) == 1 else random.choice([2, 2, 2, 3])
    return text, chosen, _schemas(random, _toolbox(random, held, wanted, count), chosen)


def _schemas(
    random: Random, box: list[Tool], chosen: list[tuple[Tool, dict[str, Value]]]
) -> list[dict[str, Any]]:
    given = {tool.name: values for tool, values in chosen}
    return [tool.schema(random, given.get(tool.name, {})) for tool in box]


def _call_text(chosen: list[tuple[Tool, dict[str, Value]]]) -> str:
    return f"{START}[{', '.join(written_call(*call) for call in chosen)}]{END}"


_SYSTEM = ["", "", "", "You are a helpful assistant.", "Use the tools."]


def call_task(random: Random, held: bool, many: bool = False) -> Example:
    text, chosen, schemas = _calls(random, held, many)
    return Example(
        "parallel calls" if len(chosen) > 1 else "call",
        _user(text, random.choice(_SYSTEM)),
        _call_text(chosen),
        [plain_call(*call) for call in chosen],
        schemas,
    )


def parallel_task(random: Random, held: bool) -> Example:
    return call_task(random, held, many=True)


def no_call_task(random: Random, held: bool) -> Example:
    if random.random() < 0.5:
        text, answer = random.choice(_SMALL_TALK)
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
    messages = _user(text, random.choice(_SYSTEM))
    return Example("no call", messages, answer, answer, _schemas(random, box, []))


def result_task(random: Random, held: bool) -> Example:
    """The tool has answered: say so."""
    text, chosen, schemas = _calls(random, held, random.random() < 0.15)
    called = {tool.name for tool, _ in chosen}
    if random.random() < 0.7:  # the other tools do not matter here
        schemas = [tool for tool in schemas if tool.get("function", tool)["name"] in called]
    messages = _user(text, random.choice(_SYSTEM))
    messages.append({"role": "assistant", "content": _call_text(chosen)})
    said = []
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
    answer = " ".join(said)
    return Example("tool result", messages, answer, answer, schemas)


_SMALL_TALK = [
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


# -- extraction --

_RECORDS = """
Invoice {invoice_id} from {vendor} over {amount} {currency} is due on {due_date}.
{vendor} sent invoice {invoice_id}. The amount of {amount} {currency} must be paid by {due_date}.
{name} lives at {address} in {city}, phone {phone}.
You can reach {name} of {company} at {email} or {phone}.
{name}, {age} years old, works at {company} in {city}.
My name is {name}, I live in {city} and my email is {email}.
{customer} ordered {quantity} {item} for {price} {currency} on {date}.
On {date}, {customer} bought {quantity} {item} and paid {total}.
The {item} costs {price} {currency} and comes in {color}.
The meeting about {topic} is on {date} at {time} in the {room}.
{title} by {author} has {pages} pages and came out in {year}.
{author} wrote {title} in {year}.
Flight from {source} to {target} on {date} at {time}, {people} people, {price} {currency}.
{guest} booked {days} days in {city} from {start_date} for {people} people.
Order {order_id}: {quantity} {item}, ship to {customer}, {address}, {city}.
{sender} wrote to {recipient} on {date}: {message}.
{name} was born on {birthday} in {city}.
{manager} leads the project {project} with a budget of {budget}, deadline {deadline}.
The team {team} has the members {members}.
{brand} sells the {product} in {color} for {price} {currency}.
""".strip().splitlines()


def extract_task(random: Random, held: bool) -> Example:
    if not held and random.random() < 0.4:
        text, fields = _written_record(random)
    else:
        text, fields = _made_up_record(random, held)
        if random.random() < 0.3:
            more, others = _written_record(random)
            if not set(others) & set(fields):
                text = f"{more} {text}"
                names = [name for name in others if random.random() < 0.5]
                fields.update({name: others[name] for name in names})
    names = list(fields)
    random.shuffle(names)
    if held:  # keep an unseen key at least
        unseen = {key.name for key in keys(True)}
        names.sort(key=lambda name: name not in unseen)
    names = names[: random.choice([2, 3, 3, 4, 5])]
    if held:
        random.shuffle(names)
    properties = {name: fields[name].schema for name in names}
    answer = "{" + ", ".join(f'"{name}": {fields[name].written}' for name in names) + "}"
    listed = json.dumps(properties, ensure_ascii=False)
    system = f"Extract JSON with these properties: {listed}"
    schema = {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }
    expect = {name: fields[name].plain for name in names}
    return Example("extraction", _user(text, system), answer, expect, schema=schema)


def _written_record(random: Random) -> tuple[str, dict[str, Value]]:
    template = random.choice(_RECORDS)
    kinds = {key.name: key.kind for key in keys(False)}
    fields = {
        name: make_value(random, kind) for name, kind in kinds.items() if f"{{{name}}}" in template
    }
    return template.format(**{name: value.said for name, value in fields.items()}), fields


def _made_up_record(random: Random, held: bool) -> tuple[str, dict[str, Value]]:
    fields = {}
    parts = []
    for key in draw_keys(random, random.choice([2, 3, 3, 4]), held):
        fields[key.name] = make_value(random, key.kind)
        parts.append(clause(random, key, fields[key.name], natural=False))
    head = random.choice(
        ["", "", "Note:", "New entry:", "We have", "Update:", "As agreed,", "It has"]
    )
    joint = random.choice([", ", "; ", ". ", ", and ", "\n"])
    text = f"{head} {joint.join(parts)}".strip()
    if not starts_with_value(text, fields):
        text = text[0].upper() + text[1:]
    return text + random.choice([".", ""]), fields


# -- classification --


def classify_task(random: Random, held: bool) -> Example:
    what = random.choice(
        ["sentiment", "sentiment", "intent", "intent", "spam", "language", "topic"]
    )
    text, label, choices = _LABELLED[what](random)
    random.shuffle(choices)
    system = random.choice(
        [
            f"Classify the {what}. Labels: {', '.join(choices)}",
            f"What is the {what} of the text? Labels: {', '.join(choices)}",
            # What `model.classify` says by default.
            f"Classify the text. Answer with one of: {', '.join(choices)}.",
        ]
    )
    return Example(f"{what}", _user(text, system), label, label, labels=choices)


def _sentiment(random: Random) -> tuple[str, str, list[str]]:
    label = random.choice(["positive", "negative", "neutral"])
    s, t = random.sample(labels.SUBJECTS, 2)
    if random.random() < 0.3:
        text = random.choice(labels.LOVE[label]).format(s=s)
    else:
        pool = {"positive": labels.GOOD, "negative": labels.BAD, "neutral": labels.PLAIN}[label]
        a, b = random.sample(pool, 2)
        frame = random.choice(labels.SENTIMENT_FRAMES)
        if label == "negative" and random.random() < 0.2:
            a, b = f"not {random.choice(labels.GOOD)}", f"not {random.choice(labels.GOOD)}"
        text = frame.format(s=s, t=t, a=a, b=b)
        text = text[0].upper() + text[1:]
    choices = ["positive", "negative", "neutral"]
    if label != "neutral" and random.random() < 0.4:
        choices.remove("neutral")
    return text, label, choices


def _intent(random: Random) -> tuple[str, str, list[str]]:
    label = random.choice(list(labels.INTENTS))
    text = random.choice(labels.INTENTS[label]).format(s=random.choice(labels.SUBJECTS))
    if random.random() < 0.5:
        text = text[0].upper() + text[1:] + random.choice(["", ".", "!", "?"])
    if random.random() < 0.3:
        text = f"{random.choice(['Excuse me,', 'Well,', 'Please,', 'So,', 'Listen,'])} {text}"
    others = [name for name in labels.INTENTS if name != label]
    return text, label, [label, *random.sample(others, random.randint(2, 5))]


def _spam(random: Random) -> tuple[str, str, list[str]]:
    label = random.choice(["spam", "ham"])
    pool = labels.SPAM if label == "spam" else labels.HAM
    lines = random.sample(pool, random.choice([1, 2]))
    values = {"s": random.choice(labels.SUBJECTS), "n": str(random.randint(2, 9999))}
    return " ".join(line.format(**values) for line in lines), label, ["spam", "ham"]


def _language(random: Random) -> tuple[str, str, list[str]]:
    label = random.choice(list(labels.LANGUAGE_WORDS))
    words = labels.LANGUAGE_WORDS[label].split()
    start = random.randrange(len(words) - 4)
    part = words[start : start + random.randint(4, 8)]
    if random.random() < 0.5:
        random.shuffle(part)
    others = [name for name in labels.LANGUAGE_WORDS if name != label]
    return " ".join(part), label, [label, *random.sample(others, random.randint(2, 4))]


def _topic(random: Random) -> tuple[str, str, list[str]]:
    label = random.choice(list(labels.TOPICS))
    a, b, c = random.sample(labels.TOPICS[label].split(), 3)
    others = [name for name in labels.TOPICS if name != label]
    text = random.choice(labels.TOPIC_FRAMES).format(a=a, b=b, c=c)
    return text, label, [label, *random.sample(others, random.randint(2, 4))]


_LABELLED: dict[str, Callable[[Random], tuple[str, str, list[str]]]] = {
    "sentiment": _sentiment,
    "intent": _intent,
    "spam": _spam,
    "language": _language,
    "topic": _topic,
}


# -- instructions with a checkable answer --

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
_FILLERS = "one good small quiet bright old new warm clear open".split()


def instruct_task(random: Random, held: bool) -> Example:
    words = [make_value(random, "thing").said for _ in range(random.choice([1, 2, 2, 3]))]
    text = " ".join(words)
    end = make_value(random, "thing").said
    listed = [make_value(random, "thing").said for _ in range(random.choice([3, 3, 4]))]
    count = random.randint(2, 5)
    name = random.choice([_NUMBERS[count], str(count)])
    quoted = random.choice(['"{}"', "{}"]).format(text)
    options = [
        (f"Write {quoted} in upper case.", text.upper()),
        (f"Write {text.upper()} in lower case.", text),
        (f"Capitalize {quoted}.", text.title()),
        (f"Say {words[0]} {name} times.", " ".join([words[0]] * count)),
        (f"Say {quoted} and end with {end}.", f"{text} {end}"),
        (f"Say {quoted}, but begin with {end}.", f"{end} {text}"),
        (f"Answer in {name} words.", " ".join(_FILLERS[:count])),
        (f"Reverse the list: {', '.join(listed)}", ", ".join(listed[::-1])),
        (f"What is the first word of the list? {', '.join(listed)}", listed[0]),
        (f"What is the last word of the list? {', '.join(listed)}", listed[-1]),
        (f"Join with dashes: {' '.join(listed)}", "-".join(listed)),
        (f"Write as a list with commas: {' '.join(listed)}", ", ".join(listed)),
        (f"Repeat exactly: {text}", text),
        (f"Put {quoted} in brackets.", f"({text})"),
        (f"Put {quoted} between stars.", f"*{text}*"),
    ]
    wish = random.choice(listed)
    yes = random.random() < 0.5
    asked = wish if yes else end
    if yes or end not in listed:
        options.append(
            (
                f"Is {asked} in the list? {', '.join(listed)}. Answer yes or no.",
                "yes" if yes else "no",
            )
        )
    ask, answer = random.choice(options)
    if random.random() < 0.15:
        ask, answer = random.choice(_SMALL_TALK)
    return Example("instruction", _user(ask), answer, answer)


# -- copying and looking up --


def recall_task(random: Random, held: bool, level: float = 1.0) -> Example:
    """Look up values by their keys, or repeat a text; `level` 0 is over few symbols, 1 over all."""
    letters = "abcdefghijklmnopqrstuvwxyz"[: 6 + int(20 * level)]

    def symbol() -> str:
        if random.random() > level:
            return "".join(random.choice(letters) for _ in range(random.randint(1, 2)))
        return make_value(
            random,
            random.choice(["pseudo", "thing", "code", "int", "money", "name", "time", "date"]),
        ).said

    count = random.randint(3, 4 + int(4 * level))
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        key = pseudo(random, 1, 2) if random.random() < level else symbol()
        pairs[key] = symbol()
    if random.random() < 0.35:
        text = random.choice([" ", ", "]).join(pairs.values())
        return Example("recall", _user(f"Repeat: {text}"), text, text)
    asked = list(pairs)
    random.shuffle(asked)
    asked = asked[: random.randint(1, count)]
    equals = random.choice(["=", ": ", " is ", " = "])
    said = ", ".join(f"{key}{equals}{value}" for key, value in pairs.items())
    if random.random() < 0.5:
        answer = ", ".join(f"{key}{equals}{pairs[key]}" for key in asked)
    else:
        answer = ", ".join(pairs[key] for key in asked)
        equals = ""
    ask = "Look up with keys" if equals else "Look up"
    return Example("recall", _user(f"{said}\n{ask}: {', '.join(asked)}"), answer, answer)


# -- mixtures --

_TASKS: dict[str, tuple[Callable[..., Example], float]] = {
    "call": (call_task, 0.27),
    "parallel": (parallel_task, 0.09),
    "no call": (no_call_task, 0.08),
    "result": (result_task, 0.05),
    "extract": (extract_task, 0.24),
    "classify": (classify_task, 0.14),
    "instruct": (instruct_task, 0.11),
    "recall": (recall_task, 0.08),
}
TASK_NAMES = tuple(_TASKS)


def draw(
    seed: int, index: int, *, task: str | None = None, held: bool = False, level: float = 1.0
) -> Example:
    """Draw one example; `level` below 1 (early training) is mostly recall over few symbols."""
    random = Random(f"{seed}:{index}:{task}:{held}")
    if task is None:
        if random.random() > 0.3 + 0.7 * level:
            task = "recall"
        else:
            weights = [weight for _, weight in _TASKS.values()]
            task = random.choices(TASK_NAMES, weights)[0]
    if task == "recall":
        return recall_task(random, held, level)
    return _TASKS[task][0](random, held)
