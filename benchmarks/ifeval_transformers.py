"""Answers IFEval's prompts with transformers, to compare the engine's scores with.

    python benchmarks/ifeval_transformers.py MODEL --data DATA.jsonl --step 5 -o theirs.jsonl
    lfm-engine eval ifeval --responses theirs.jsonl --data DATA.jsonl -o theirs
    lfm-engine eval compare evaluations/ifeval-MODEL/report.json theirs/report.json

Greedy, in float32, the checkpoint's own chat template. --step 5 takes every fifth prompt. Prompts
that are in the output already are left out, so that it can be stopped. Needs torch and transformers
(and accelerate for .gguf files), and not the engine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any


def load(path: Path, threads: int | None) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or a .gguf file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    options = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **options)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    eos = model.generation_config.eos_token_id or tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id or 0
    )
    return model, tokenizer


def answer(model: Any, tokenizer: Any, texts: list[str], new: int) -> list[str]:
    """Greedy answers to some messages, computed together."""
    import torch

    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        for text in texts
    ]
    batch = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=new
        )
    begin = batch.input_ids.shape[1]
    return [tokenizer.decode(row[begin:], skip_special_tokens=True) for row in out]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder or a .gguf file")
    parser.add_argument("--data", type=Path, required=True, help="ifeval_input_data.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSONL of responses")
    parser.add_argument("--step", type=int, default=1, help="every so many-th prompt")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=1280)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.data.read_text("utf-8").splitlines()]
    rows = rows[:: options.step]
    done = set()
    if options.output.exists():
        done = {json.loads(line)["key"] for line in options.output.read_text("utf-8").splitlines()}
    rows = [row for row in rows if row["key"] not in done]
    model, tokenizer = load(options.model, options.threads)
    begun = time.monotonic()
    for begin in range(0, len(rows), options.batch_size):
        part = rows[begin : begin + options.batch_size]
        texts = [row["prompt"] for row in part]
        responses = answer(model, tokenizer, texts, options.max_new_tokens)
        with options.output.open("a", encoding="utf-8") as file:
            for row, response in zip(part, responses, strict=True):
                line = {"key": row["key"], "prompt": row["prompt"], "response": response}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        seconds = time.monotonic() - begun
        print(f"{begin + len(part)} of {len(rows)} prompts, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
