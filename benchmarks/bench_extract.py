"""JSON extraction: what the grammar's masks cost, and what jump-ahead and speculation bring.

    PYTHONPATH=python python benchmarks/bench_extract.py MODEL [--dtype int8] [--threads 2]

MODEL is an instruct model (a GGUF file, a folder). It fills a schema from letters of several
sentences, greedily, in four ways: without structure; under the grammar, every token sampled; with
tokens that are certain appended without a step (jump-ahead); and with drafts from the letter too.
The last three have the same output, which is checked. Rounds are interleaved; medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

from lfm_engine import AutoModelForCausalLM, AutoTokenizer
from lfm_engine.constraint import Constraint
from lfm_engine.inputs import read_prompts
from lfm_engine.response_format import make_constraints
from lfm_engine.rows import end_ids
from tables import format_table

FIELDS = {
    "customer_full_name": {"type": "string", "maxLength": 40},
    "customer_email_address": {"type": "string", "maxLength": 40},
    "order_number": {"type": "integer"},
    "delivery_address": {
        "type": "object",
        "properties": {
            "street_and_number": {"type": "string", "maxLength": 40},
            "city": {"type": "string", "maxLength": 30},
            "postal_code": {"type": "string", "pattern": "^[0-9]{5}$"},
        },
        "required": ["street_and_number", "city", "postal_code"],
        "additionalProperties": False,
    },
    "preferred_delivery_date": {"type": "string", "format": "date"},
    "total_amount_in_euros": {"type": "number"},
    "category": {"enum": ["complaint", "question", "order", "cancellation"]},
}
SCHEMA = {
    "type": "object",
    "properties": FIELDS,
    "required": list(FIELDS),
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "letter", "schema": SCHEMA}}


def letters(count: int) -> list[str]:
    rng = random.Random(3)
    pick = rng.choice
    out = []
    for _ in range(count):
        name = f"{pick(['Anna', 'Paul', 'Maria', 'Jonas'])} {pick(['Keller', 'Brandt', 'Lopez'])}"
        mail = name.lower().replace(" ", ".") + "@" + pick(["mail.com", "post.org"])
        street = f"{pick(['Linden Street', 'Mill Lane', 'Harbour Road'])} {rng.randint(1, 99)}"
        out.append(
            f"Dear team, my name is {name} ({mail}). I ordered number {rng.randint(1000, 99999)} "
            f"for {rng.randint(5, 400)}.50 euros, to be delivered to {street} in "
            f"{pick(['Hamburg', 'Bremen', 'Leipzig'])}, postal code {rng.randint(10000, 99999)}, "
            f"on 2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}. {pick(['Where is it?', ''])}"
        )
    return out


class Timed(Constraint):
    """Another constraint, with the time that it takes; without its forced tokens if `sample`."""

    def __init__(self, inner: Constraint, sample: bool) -> None:
        self._inner, self._sample = inner, sample
        self.seconds = 0.0

    def _timed(self, work: Any, *args: Any) -> Any:
        begin = time.perf_counter()
        result = work(*args)
        self.seconds += time.perf_counter() - begin
        return result

    def allowed(self) -> Any:
        return self._timed(self._inner.allowed)

    def accept(self, token: int) -> None:
        self._timed(self._inner.accept, token)

    def forced(self) -> Any:
        return () if self._sample else self._timed(self._inner.forced)

    @property
    def is_finished(self) -> bool:
        return self._inner.is_finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--letters", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=options.dtype, num_threads=options.threads
    )
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    config = model.generation_config

    def constraint(ids: Any, sample: bool) -> Timed:
        made = make_constraints(
            read_prompts(ids),
            response_format=FORMAT,
            constraint=None,
            prefix_allowed_tokens_fn=None,
            tokenizer=tokenizer,
            vocab_size=model.config.vocab_size,
            eos_ids=end_ids(config, model.config),
        )
        assert made is not None
        return Timed(made[0], sample)

    def run(way: str, ids: Any) -> tuple[Any, float, float]:
        rule = None if way == "free" else constraint(ids, way == "grammar, each token sampled")
        begin = time.perf_counter()
        out = model.generate(
            ids,
            max_new_tokens=300,
            do_sample=False,
            repetition_penalty=1.0,
            constraint=rule,
            speculation=8 if way == WAYS[-1] else 0,
            return_dict_in_generate=True,
        )
        return out, time.perf_counter() - begin, rule.seconds if rule else 0.0

    prompts = [
        tokenizer.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": f"{text}\n\nWrite this letter's data as JSON with the "
                    f"keys {', '.join(FIELDS)}.",
                }
            ],
            add_generation_prompt=True,
            return_dict=False,
        )
        for text in letters(options.letters)
    ]
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    passes: dict[str, int] = {}
    for turn in range(options.rounds + 1):  # the first one is not counted
        texts: dict[str, list[str]] = {}
        for way in WAYS:
            model.prefix_cache.clear()
            results = [run(way, ids) for ids in prompts]
            texts[way] = [
                tokenizer.decode(out.sequences[0][-out.new_tokens[0] :]) for out, _, _ in results
            ]
            if turn == 0:
                continue
            took = sum(time for _, time, _ in results)
            tokens = sum(out.new_tokens[0] for out, _, _ in results)
            rates[way].append(tokens / took)
            seconds[way].append(took / len(prompts))
            shares[way].append(sum(mask for _, _, mask in results) / took)
            passes[way] = sum(out.speculation.passes for out, _, _ in results)
        assert texts[WAYS[1]] == texts[WAYS[2]] == texts[WAYS[3]], "the outputs differ"
        for text, (out, _, _) in zip(texts[WAYS[3]], results, strict=True):
            if out.finish_reasons == ["stop"]:
                json.loads(text.removesuffix("<|im_end|>"))
    base = statistics.median(seconds[WAYS[1]])
    rows = [
        [
            way,
            f"{statistics.median(rates[way]):.1f}",
            f"{statistics.median(seconds[way]):.3f}",
            f"{passes[way]}",
            f"{100 * statistics.median(shares[way]):.2f}%" if way != "free" else "",
            f"{base / statistics.median(seconds[way]):.2f}" if way != "free" else "",
        ]
        for way in WAYS
    ]
    title = f"{len(prompts)} letters, {model.dtype}, {model.num_threads} threads; prefill included"
    header = ["", "tokens/s", "s a letter", "passes", "in the grammar", "faster by"]
    print(format_table(title, header, rows))


WAYS = ["free", "grammar, each token sampled", "and jump-ahead", "and speculation"]

if __name__ == "__main__":
    main()
