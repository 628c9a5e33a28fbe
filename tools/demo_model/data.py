"""Synthetic examples for training and for the test: everything is drawn here from a seed.

`draw(seed, index)` gives the same example on every machine. The test's examples (`held=True`) use
tools, nouns and keys that training never draws.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from random import Random

import labels
from calls import SMALL_TALK, call_task, no_call_task, parallel_task, result_task
from example import Example, user
from toolbox import Key, draw_keys, keys
from values import Value, make_value, pseudo
from wording import clause, starts_with_value

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


_Record = tuple[str, dict[str, Value]]


def extract_task(random: Random, held: bool) -> Example:
    if not held and random.random() < 0.4:
        template = random.choice(_RECORDS)
        again: Callable[[], _Record] = partial(_written_record, random, template)
        text, fields = again()
    else:
        drawn = draw_keys(random, random.choice([2, 3, 3, 4]), held)
        again = partial(_made_up_record, random, drawn)
        text, fields = again()
        if random.random() < 0.3:
            more, others = _written_record(random, random.choice(_RECORDS))
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
    listed = json.dumps(properties, ensure_ascii=False)
    system = f"Extract JSON with these properties: {listed}"
    schema = {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }
    messages = user(text, system)
    while not held and random.random() < 0.5:  # more texts in turn, each answer is learnt from
        text, others = again()
        if not set(names) <= set(others):
            break
        messages.append({"role": "assistant", "content": _object(names, fields)})
        messages += user(text)
        fields = others
    expect = {name: fields[name].plain for name in names}
    return Example("extraction", messages, _object(names, fields), expect, schema=schema)


def _object(names: list[str], fields: dict[str, Value]) -> str:
    return "{" + ", ".join(f'"{name}": {fields[name].written}' for name in names) + "}"


def _written_record(random: Random, template: str) -> _Record:
    kinds = {key.name: key.kind for key in keys(False)}
    fields = {
        name: make_value(random, kind) for name, kind in kinds.items() if f"{{{name}}}" in template
    }
    return template.format(**{name: value.said for name, value in fields.items()}), fields


def _made_up_record(random: Random, drawn: list[Key]) -> _Record:
    fields = {}
    parts = []
    for key in drawn:
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
    return Example(f"{what}", user(text, system), label, label, labels=choices)


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
        ask, answer = random.choice(SMALL_TALK)
    return Example("instruction", user(ask), answer, answer)


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
        return Example("recall", user(f"Repeat: {text}"), text, text)
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
    return Example("recall", user(f"{said}\n{ask}: {', '.join(asked)}"), answer, answer)


# -- mixtures --

_TASKS: dict[str, tuple[Callable[..., Example], float]] = {
    "call": (call_task, 0.26),
    "parallel": (parallel_task, 0.14),
    "no call": (no_call_task, 0.07),
    "result": (result_task, 0.05),
    "extract": (extract_task, 0.20),
    "classify": (classify_task, 0.13),
    "instruct": (instruct_task, 0.12),
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
