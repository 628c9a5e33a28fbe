"""Print the demo model's scores on held-out examples: `python evaluate.py [FOLDER]`.

Needs lfm_engine, not torch. Tools, nouns and keys of these examples are never drawn in training.
"free" answers are greedy and unconstrained, and must mean exactly what was asked for: the same
calls with the same arguments, the same JSON value, the same label, the same text. "constrained"
answers come from `model.chat` with its grammars on; for these the table has the part that parses
and fits its schema, and the part that is right.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from data import Example, draw
from lfm_engine import AutoModelForCausalLM, AutoTokenizer, parse_tool_calls

TEST_SEED = 20_000_001  # training takes its examples from other seeds
DTYPES = ("float32", "bfloat16", "int8", "int4")
# What a row of the table counts: tasks of the generator.
ROWS = {
    "one call": "call",
    "parallel calls": "parallel",
    "no call needed": "no call",
    "answer from a tool's result": "result",
    "JSON extraction": "extract",
    "classification": "classify",
    "instructions": "instruct",
}
CONSTRAINED = {"one call": "required", "parallel calls": "required", "JSON extraction": "json"}


def is_right(example: Example, text: str) -> bool:
    """Whether an answer means what is expected."""
    try:
        if isinstance(example.expect, str):
            return text.strip() == example.expect
        if example.tools:
            return parse_tool_calls(text, example.tools) == example.expect
        return bool(json.loads(text) == example.expect)
    except ValueError:
        return False


def answers(model: Any, tokenizer: Any, examples: list[Example], size: int = 32) -> list[str]:
    """Answer greedily and without constraints, in batches of similar lengths."""
    prompts = [
        list(tokenizer(example.prompt(), add_special_tokens=False).input_ids)
        for example in examples
    ]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found = [""] * len(prompts)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        rows = [prompts[index] for index in chosen]
        out = model.generate(rows, max_new_tokens=224, do_sample=False)
        for index, ids in zip(chosen, out, strict=True):
            text = str(tokenizer.decode([int(i) for i in ids[len(prompts[index]) :]]))
            found[index] = text.split("<|im_end|>")[0]
    return found


def constrained(model: Any, tokenizer: Any, example: Example) -> tuple[bool, bool]:
    """Answer under a grammar; return whether the answer parses and fits, whether it is right."""
    if example.tools:
        answer = model.chat(
            example.messages, tokenizer=tokenizer, tools=example.tools, tool_choice="required",
            max_new_tokens=400,
        )  # fmt: skip
        return answer.finish_reason == "tool_calls", answer.tool_calls == example.expect
    form = {"type": "json_schema", "json_schema": {"name": "record", "schema": example.schema}}
    answer = model.chat(
        example.messages, tokenizer=tokenizer, response_format=form, max_new_tokens=400
    )
    try:
        value = json.loads(answer.text)
    except ValueError:
        return False, False
    return sorted(value) == sorted(example.schema["required"]), value == example.expect


def measure(model: Any, tokenizer: Any, count: int, log: Callable[[str], None]) -> dict[str, float]:
    """Return the share of right answers for each row, and of constrained ones."""
    scores: dict[str, float] = {}
    for row, task in ROWS.items():
        examples = [draw(TEST_SEED, index, task=task, held=True) for index in range(count)]
        texts = answers(model, tokenizer, examples)
        right = [is_right(e, text) for e, text in zip(examples, texts, strict=True)]
        scores[row] = sum(right) / count
        for example, text, good in zip(examples, texts, right, strict=True):
            if not good:
                log(f"{row}\n  asked    {example.messages[-1]['content']!r}\n"
                    f"  expected {example.answer!r}\n  answered {text!r}")  # fmt: skip
    return scores


def measure_constrained(model: Any, tokenizer: Any, count: int) -> dict[str, float]:
    total: Counter[str] = Counter()
    for row in CONSTRAINED:
        for index in range(count):
            example = draw(TEST_SEED, index, task=ROWS[row], held=True)
            fits, right = constrained(model, tokenizer, example)
            total["fits"] += fits
            total[row] += right
    return {
        "constrained: parses and fits the schema": total["fits"] / (count * len(CONSTRAINED)),
        **{f"constrained: {row}": total[row] / count for row in CONSTRAINED},
    }


def table(columns: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table, a column for each dtype."""
    rows = next(iter(columns.values()))
    lines = [
        "| held-out test | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for row in rows:
        cells = " | ".join(f"{100 * scores[row]:.1f}%" for scores in columns.values())
        lines.append(f"| {row} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo", help="default: the one in the package")
    parser.add_argument("--count", type=int, default=200, help="examples of each row")
    parser.add_argument("--constrained", type=int, default=60, help="of each constrained row")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--errors", type=Path, help="write wrong answers of the first dtype there")
    parser.add_argument("--json", type=Path, help="write the scores there")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    columns: dict[str, dict[str, float]] = {}
    wrong: list[str] = []
    for dtype in options.dtypes.split(","):
        begun = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=dtype, num_threads=options.threads
        )
        log = wrong.append if not columns else lambda _: None
        scores = measure(model, tokenizer, options.count, log)
        if options.constrained:
            scores |= measure_constrained(model, tokenizer, options.constrained)
        columns[dtype] = scores
        print(f"{dtype}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    if options.errors:
        options.errors.write_text("\n".join(wrong) + "\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(columns, indent=1) + "\n", encoding="utf-8")
    print(table(columns))


if __name__ == "__main__":
    main()
