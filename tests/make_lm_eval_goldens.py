"""Writes goldens/lm_eval.json: what lm-eval's own `hf` model says of a tiny random model.

    PYTHONPATH=python:tests python tests/make_lm_eval_goldens.py

Needs torch, transformers and lm-eval. The tests need none of the first two.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import golden_models
import tiny_tokenizer

FILE = golden_models.GOLDENS / "lm_eval.json"
MAX_LENGTH = 48
LONG = "one two three hello world 12 " * 5
PAIRS = [
    ("hello", " world"),
    ("hello", " well"),
    ("hello  ", "world"),  # the spaces go to the continuation
    ("", "hello world"),  # after the token that begins a sequence
    ("<bos>hello", "!"),  # which is not put there twice
    ("What is 12? ", "12"),
    (LONG, "the end"),  # loses its start
    (LONG, " and no more"),
]
TEXTS = ["hello world", LONG, "x"]
PROMPTS = [
    ("hello", {"until": [], "max_gen_toks": 12}),
    ("hello", {"until": ["\n", "o"], "max_gen_toks": 30, "do_sample": False}),
    ("<bos>hello world", {"until": ["zz"], "max_gen_toks": 12}),
    (LONG, {"until": [], "max_gen_toks": 20}),
]


def write_model(folder: Path) -> Path:
    """The model and its tokenizer, the same each time."""
    golden_models.random_model(folder, vocab_size=300, bos_token_id=1, eos_token_id=2, head_dim=32)
    return tiny_tokenizer.write(
        folder, eos_token="<eos>", tokenizer_class="PreTrainedTokenizerFast"
    )


def ask(lm: Any) -> dict[str, Any]:
    """All requests to a model of lm-eval."""

    def requests(arguments: list[Any]) -> list[Any]:
        return [SimpleNamespace(args=each) for each in arguments]

    return {
        "loglikelihood": [list(each) for each in lm.loglikelihood(requests(PAIRS))],
        "rolling": lm.loglikelihood_rolling(requests([(text,) for text in TEXTS])),
        "generated": lm.generate_until(requests(PROMPTS)),
    }


def main() -> None:
    """Write the file."""
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "model")
        # Its cache confuses ("hello", " world") with ("", "hello world"): alone, each is right.
        lm = HFLM(
            pretrained=str(path),
            dtype="float32",
            device="cpu",
            max_length=MAX_LENGTH,
            batch_size=1,
            logits_cache=False,
        )
        answers = ask(lm)
    FILE.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    print(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
