"""Answers IFEval's prompts with transformers, to compare the engine's scores with.

    python benchmarks/ifeval_transformers.py MODEL --data DATA.jsonl --step 5 -o theirs.jsonl
    lfm-engine eval ifeval --responses theirs.jsonl --data DATA.jsonl -o theirs
    lfm-engine eval compare evaluations/ifeval-MODEL/report.json theirs/report.json

Greedy, in float32, the checkpoint's own chat template. --step 5 takes every fifth prompt. Prompts
that are in the output already are left out, so that it can be stopped. --draft responses.jsonl, of
the engine's run, saves most of the time: one forward pass over prompt and draft shows how far the
draft is what transformers' own argmax chooses, and from the first other token on it generates by
itself. So the answer is transformers' greedy one, whatever the draft says. Needs torch and
transformers (and accelerate for .gguf files), and not the engine.
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


def accepted(model: Any, prompt: list[int], draft: list[int], eos: set[int]) -> list[int]:
    """The beginning of a draft that greedy decoding gives, up to the end of the answer."""
    import torch

    ids = torch.tensor([[*prompt, *draft]])
    with torch.inference_mode():
        logits = model(ids, logits_to_keep=len(draft) + 1, use_cache=False).logits[0]
    best = logits.argmax(-1).tolist()
    taken: list[int] = []
    for token, choice in zip([*draft, None], best, strict=True):
        if choice in eos:
            return [*taken, choice]
        if choice != token:
            return taken
        taken.append(choice)
    return taken


def generate(model: Any, prompts: list[list[int]], limits: list[int], pad: int) -> list[list[int]]:
    """Greedy continuations, computed together."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max(limits))
    rows = out[:, longest:].tolist()
    return [row[:limit] for row, limit in zip(rows, limits, strict=True)]


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a message by the chat template, ready to be answered."""
    message = [{"role": "user", "content": text}]
    chat = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(chat, add_special_tokens=False).input_ids)


def end_ids(model: Any) -> set[int]:
    """What ends an answer."""
    ids = model.generation_config.eos_token_id
    return set(ids if isinstance(ids, list) else [ids])


def answer(
    model: Any, tokenizer: Any, texts: list[str], begun: list[list[int]], new: int
) -> list[str]:
    """Greedy answers to some messages, computed together, from what they begin with."""
    eos = end_ids(model)
    rest = generate(
        model,
        [encode(tokenizer, text) + tokens for text, tokens in zip(texts, begun, strict=True)],
        [new - len(tokens) for tokens in begun],
        model.generation_config.pad_token_id,
    )
    found = []
    for tokens, more in zip(begun, rest, strict=True):
        ends = [place for place, token in enumerate(more) if token in eos]
        found.append(
            tokenizer.decode(tokens + more[: ends[0] if ends else None], skip_special_tokens=True)
        )
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder or a .gguf file")
    parser.add_argument("--data", type=Path, required=True, help="ifeval_input_data.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSONL of responses")
    parser.add_argument("--step", type=int, default=1, help="every so many-th prompt")
    parser.add_argument("--draft", type=Path, help="responses.jsonl of the engine's run")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=1280)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.data.read_text("utf-8").splitlines()]
    rows = rows[:: options.step]
    drafts: dict[object, str] = {}
    if options.draft:
        for line in options.draft.read_text("utf-8").splitlines():
            record = json.loads(line)
            if "response" in record:
                drafts[record["key"]] = record["response"]
        rows = [row for row in rows if row["key"] in drafts]
    done = set()
    if options.output.exists():
        done = {json.loads(line)["key"] for line in options.output.read_text("utf-8").splitlines()}
    rows = [row for row in rows if row["key"] not in done]
    model, tokenizer = load(options.model, options.threads)
    start = time.monotonic()
    todo: list[tuple[dict[str, Any], list[int]]] = []  # and what is known of the answer
    written = 0

    def write(row: dict[str, Any], response: str, accepted: int) -> None:
        nonlocal written
        line = {"key": row["key"], "prompt": row["prompt"], "response": response}
        if options.draft:
            line |= {"tokens_as_drafted": accepted, "as_drafted": response == drafts[row["key"]]}
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        written += 1
        seconds = time.monotonic() - start
        print(f"{written} of {len(rows)} prompts, {seconds:.0f} s", flush=True)

    new = options.max_new_tokens
    for row in rows:
        ids = tokenizer(drafts.get(row["key"], ""), add_special_tokens=False).input_ids[:new]
        tokens = []
        if ids:
            tokens = accepted(model, encode(tokenizer, row["prompt"]), ids, end_ids(model))
        if len(tokens) == new or (tokens and tokens[-1] in end_ids(model)):
            write(row, tokenizer.decode(tokens, skip_special_tokens=True), len(tokens))
        else:
            todo.append((row, tokens))
    for begin in range(0, len(todo), options.batch_size):
        part = todo[begin : begin + options.batch_size]
        texts = [row["prompt"] for row, _ in part]
        responses = answer(model, tokenizer, texts, [tokens for _, tokens in part], new)
        for (row, tokens), response in zip(part, responses, strict=True):
            write(row, response, len(tokens))


if __name__ == "__main__":
    main()
