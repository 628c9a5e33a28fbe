"""`lfm-engine demo`: what the engine is for, in seconds and offline, on the miniature model.

The model is the one in this package (`from_pretrained("demo")`). It is small and errs; what it
says is shown as it is, and marked where it is wrong. Calls and JSON are constrained by their
schemas, as they are for any model.
"""

from __future__ import annotations

import ast
import json
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from .auto_model import AutoModelForCausalLM
from .model import CausalLM
from .tokenizer import AutoTokenizer, Tokenizer

# -- the tools: these really run --

_KILOMETERS = {"km": 1.0, "miles": 1.609344, "meters": 0.001, "feet": 0.0003048}
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def convert_units(value: float, source: str, target: str) -> str:
    """Convert a length; units are km, miles, meters and feet."""
    return f"{value * _KILOMETERS[source] / _KILOMETERS[target]:.4g}"


def calculate(expression: str) -> str:
    """Compute sums, differences, products and quotients of numbers."""
    try:
        return f"{_compute(ast.parse(expression, mode='eval').body):.10g}"
    except SyntaxError:
        raise ValueError(f"{expression!r} is no expression") from None


def _compute(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_compute(node.left), _compute(node.right))
    raise ValueError("only numbers and + - * / can be computed")


def set_timer(minutes: int, label: str = "") -> str:
    """Say that a timer was set."""
    return json.dumps({"timer": label or "started", "minutes": minutes})


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "convert_units": convert_units,
    "calculate": calculate,
    "set_timer": set_timer,
}


def _tool(name: str, description: str, required: int, **types: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:required],
    }
    return {"name": name, "description": description, "parameters": parameters}


TOOLS = [
    _tool(
        "convert_units",
        "Convert a value between units.",
        3,
        value="integer",
        source="string",
        target="string",
    ),
    _tool("calculate", "Calculate an expression.", 1, expression="string"),
    _tool("set_timer", "Start a timer.", 1, minutes="integer", label="string"),
]
# Requests, and the calls that they ask for.
REQUESTS: list[tuple[str, list[dict[str, Any]]]] = [
    (
        "How many miles are 42 km?",
        [{"name": "convert_units", "arguments": {"value": 42, "source": "km", "target": "miles"}}],
    ),
    (
        "Set a timer for 9 minutes called noodles.",
        [{"name": "set_timer", "arguments": {"minutes": 9, "label": "noodles"}}],
    ),
]

# -- the text to extract from --

RECORD = "Invoice KX-2041 from Velin over 129.5 EUR is due on 2027-03-14."
RECORD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "invoice_id": {"type": "string"},
        "vendor": {"type": "string"},
        "amount": {"type": "number"},
        "due_date": {"type": "string"},
    },
    "required": ["invoice_id", "vendor", "amount", "due_date"],
    "additionalProperties": False,
}
RECORD_EXPECTED = {
    "invoice_id": "KX-2041",
    "vendor": "Velin",
    "amount": 129.5,
    "due_date": "2027-03-14",
}

# -- the texts to label --

LABELS = ["positive", "negative", "neutral"]
REVIEWS = {
    "positive": [
        "The coffee was excellent.",
        "What a lovely hotel!",
        "I would buy this phone again.",
        "We found the staff charming.",
        "The screen is brilliant and the battery is superb.",
        "I recommend the book to everyone.",
        "Honestly, the music seemed wonderful to me.",
        "My room turned out to be perfect.",
    ],
    "negative": [
        "The delivery was terrible.",
        "What an awful movie!",
        "I want my money back for this app.",
        "The website is broken and the support is rude.",
        "Never again this product.",
        "We found the show boring.",
        "My game turned out to be useless.",
        "I think the price is disappointing.",
    ],
    "neutral": [
        "The phone arrived on Monday.",
        "There is a screen here.",
        "The food was average.",
        "They showed the room to us.",
        "I think the view is ordinary.",
        "We found the story typical.",
        "The website is from last year.",
        "I have a battery.",
    ],
}
_ROUNDS = 8  # the reviews are labelled this many times, for a speed that can be told


@dataclass(frozen=True)
class _Demo:
    model: CausalLM
    tokenizer: Tokenizer
    console: Console

    def section(self, title: str) -> None:
        self.console.print()
        self.console.print(Rule(Text(title, style="bold"), align="left", style="dim"))

    def line(self, name: str, text: str, style: str = "", mark: Text | None = None) -> None:
        line = Text(f"{name:<9}", style="dim")
        line.append(text, style=style)
        if mark is not None:
            line.append_text(mark)
        self.console.print(line)

    def tool_calls(self) -> None:
        self.section("Tool calls, run, and answered")
        for index, (request, expected) in enumerate(REQUESTS):
            if index:
                self.console.print()
            begun = time.perf_counter()
            run = self.model.run_tools(
                [{"role": "user", "content": request}],
                tokenizer=self.tokenizer,
                tools=TOOLS,
                functions=FUNCTIONS,
                tool_choice="required",  # the first answer calls; the grammar sees to its form
                max_steps=2,
                max_new_tokens=120,
            )
            seconds = time.perf_counter() - begun
            self.line("user", request)
            calls = run.steps[0].tool_calls
            shown = ", ".join(_call_text(call) for call in calls)
            self.line("calls", shown, "cyan", _mark(calls == expected))
            for message in run.messages:
                if message["role"] == "tool":
                    self.line("result", str(message["content"]), "magenta")
            self.line("answer", run.text, "green")
            tokens = run.usage["completion_tokens"]
            self.line("", f"{tokens} tokens in {seconds:.2f} s, prompts included", "dim")

    def extraction(self) -> None:
        self.section("A sentence to JSON that fits a schema")
        properties = json.dumps(RECORD_SCHEMA["properties"])
        schema = {"name": "invoice", "schema": RECORD_SCHEMA}
        answer = self.model.chat(
            [
                {
                    "role": "system",
                    "content": f"Extract JSON with these properties: {properties}",
                },
                {"role": "user", "content": RECORD},
            ],
            tokenizer=self.tokenizer,
            response_format={"type": "json_schema", "json_schema": schema},
            max_new_tokens=200,
        )
        self.line("text", RECORD)
        keys = ", ".join(f"{k}: {v['type']}" for k, v in RECORD_SCHEMA["properties"].items())
        self.line("schema", keys, "dim")
        try:
            right = json.loads(answer.text) == RECORD_EXPECTED
        except ValueError:  # cut off by the limit of tokens
            right = False
        self.line("JSON", answer.text, "green", _mark(right))

    def classification(self) -> None:
        self.section("A batch, labelled")
        pairs = [(text, label) for label, texts in REVIEWS.items() for text in texts]
        texts = [text for text, _ in pairs] * _ROUNDS
        begun = time.perf_counter()
        found = self.model.classify(texts, LABELS, tokenizer=self.tokenizer)
        seconds = time.perf_counter() - begun
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("text", "label", "probability"):
            table.add_column(column, justify="right" if column == "probability" else "left")
        for index in range(0, len(pairs), 5):
            label = found[index].label
            table.add_row(
                Text(pairs[index][0]),
                Text(label, style="green" if label == pairs[index][1] else "red"),
                f"{100 * found[index].probabilities[label]:.1f}%",
            )
        self.console.print(table)
        right = sum(f.label == label for f, (_, label) in zip(found, pairs, strict=False))
        self.console.print(
            Text(
                f"{right} of {len(pairs)} right; {len(texts)} texts in {seconds:.2f} s: "
                f"{len(texts) / seconds:.0f} texts/s",
                style="dim",
            )
        )


def _call_text(call: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in call["arguments"].items())
    return f"{call['name']}({arguments})"


def _mark(right: bool) -> Text:
    return Text("  ✓", style="green") if right else Text("  ✗ not what was asked", style="red")


_NEXT: Sequence[tuple[str, str]] = (
    ("lfm-engine chat demo", "talk to this miniature"),
    ("lfm-engine chat LiquidAI/LFM2.5-350M", "the real model, from the hub"),
    ("lfm-engine chat ./LFM2.5-350M", "from a folder with safetensors"),
    ("lfm-engine chat ./LFM2.5-350M-Q4_0.gguf", "from a GGUF file"),
)


def run_demo(num_threads: int | None = None, dtype: str = "auto") -> None:
    """Load the miniature and print all sections."""
    console = Console(highlight=False)
    begun = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained("demo")
    model = AutoModelForCausalLM.from_pretrained(
        "demo", dtype=dtype, num_threads=num_threads, progress=False
    )
    seconds = time.perf_counter() - begun
    console.print(
        Text.assemble(
            ("A miniature of LFM2. ", "bold"),
            f"{model.num_parameters() / 1e6:.1f} million parameters, 200 times fewer than "
            "LFM2.5-350M, trained from scratch on made-up examples. It calls tools, fills in JSON "
            "and labels texts like those below; it knows nothing about the world, and it errs. "
            "Forms are held by the engine's grammars, contents are the model's own.",
        )
    )
    threads = "1 thread" if model.num_threads == 1 else f"{model.num_threads} threads"
    console.print(
        Text(f"loaded in {seconds:.2f} s, {model.dtype}, {threads}, no network", style="dim")
    )
    demo = _Demo(model, tokenizer, console)
    demo.tool_calls()
    demo.extraction()
    demo.classification()
    demo.section("Next")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for command, what in _NEXT:
        table.add_row(Text(command, style="cyan"), Text(what, style="dim"))
    console.print(table)
