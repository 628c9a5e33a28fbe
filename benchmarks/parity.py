"""Compares the engine with transformers and prints the figures that decide acceptance.

    PYTHONPATH=python python benchmarks/parity.py --full-size FOLDER --gguf FILE

--full-size (see make_model.py): float32 greedy continuations of random prompts must be equal, and
the logits in bfloat16 as near to the float32 reference as transformers' own bfloat16 run.
--gguf (an instruct model): float32 greedy answers to chat prompts must be equal.
Where two continuations part, the distance of the reference's two best logits is shown; below 1e-3
it is a near-tie, which rounding may decide either way. The exit status is 1 for any other mismatch.
Needs torch and transformers (and accelerate for --gguf). One model is in memory at a time.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lfm_engine import AutoModelForCausalLM, AutoTokenizer
from parity_prompts import CHATS
from tables import format_table

NEAR_TIE = 1e-3
BF16_SLACK = 1.1  # the engine's mean error may be this much of transformers' own
LOGITS_TOKENS = 512
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Greedy:
    """A greedy continuation: its tokens, and at each the distance of the two best logits."""

    tokens: list[int]
    gaps: list[float]


@dataclass(frozen=True)
class Comparison:
    """How far two continuations agree."""

    label: str
    tokens: int
    position: int | None  # the first that differs
    gap: float  # the reference's at that position; the smallest of all where there is none

    @property
    def failed(self) -> bool:
        """A difference that rounding does not explain."""
        return self.position is not None and self.gap >= NEAR_TIE

    def row(self) -> list[str]:
        """For the table."""
        if self.position is None:
            return [self.label, str(self.tokens), "equal", "", f"{self.gap:.1e}"]
        result = "MISMATCH" if self.failed else "near-tie"
        return [self.label, str(self.tokens), result, str(self.position), f"{self.gap:.1e}"]


def compare(label: str, found: Sequence[int], reference: Greedy) -> Comparison:
    """The first difference; a continuation that ends early differs where it ends."""
    expected = reference.tokens
    for position in range(max(len(found), len(expected))):
        if found[position : position + 1] != expected[position : position + 1]:
            gap = reference.gaps[min(position, len(expected) - 1)]
            return Comparison(label, len(expected), position, gap)
    return Comparison(label, len(expected), None, min(reference.gaps))


def load_transformers(path: Path, dtype: str, threads: int | None) -> Any:
    """The model in transformers; `path` is a folder or a .gguf file."""
    import torch
    from transformers import AutoModelForCausalLM as Auto
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if path.is_file():
        options["gguf_file"] = path.name
        path = path.parent
    model = Auto.from_pretrained(path, **options).eval()
    model.generation_config = GenerationConfig()  # the checkpoint's sampling must not leak in
    return model


def transformers_greedy(model: Any, prompt: list[int], new: int, eos: list[int]) -> Greedy:
    """Greedy continuation by transformers' `generate`, with its cache."""
    import torch
    from transformers import GenerationConfig

    ids = torch.tensor([prompt])
    config = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=eos or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    # An explicit mask: the padding id may occur in a random prompt.
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    best = torch.cat(output.logits).float().topk(2).values
    tokens = output.sequences[0, len(prompt) :].tolist()
    if not eos and len(tokens) != new:
        raise RuntimeError(f"transformers stopped after {len(tokens)} of {new} tokens")
    return Greedy(tokens, (best[:, 0] - best[:, 1]).tolist())


def transformers_logits(model: Any, prompt: list[int]) -> Floats:
    """Logits of a whole prompt, float32 [tokens, vocab]."""
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    result: Floats = logits.float().numpy()
    return result


def llama_cpp_logits(path: Path, prompt: list[int], threads: int | None) -> Floats | None:
    """The same by llama.cpp; None where it or the file is missing."""
    if not path.is_file() or not find_spec("llama_cpp"):
        return None
    from llama_cpp import Llama

    size = len(prompt)
    model = Llama(
        str(path),
        n_ctx=size,
        n_batch=size,
        n_ubatch=size,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )
    model.eval(prompt)
    result: Floats = np.array(model.scores[:size], np.float32)
    model.close()
    return result


def engine_greedy(model: Any, prompt: list[int], new: int, eos: list[int]) -> list[int]:
    """Greedy continuation by the engine's `generate`."""
    sequences = model.generate(
        [prompt], max_new_tokens=new, do_sample=False, repetition_penalty=1.0, eos_token_id=eos
    )
    tokens: list[int] = sequences[0, len(prompt) :].tolist()
    return tokens


def greedy_chats(
    model: Any, path: Path, new: int
) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """The prompts of CHATS, what the engine says to them, and the end-of-sequence ids."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    eos = list(model.config.eos_token_id)
    prompts = [
        list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
        for chat in CHATS
    ]
    return prompts, [engine_greedy(model, prompt, new, eos) for prompt in prompts], eos


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Log-probabilities of rows, in double."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def logit_errors(found: Floats, reference: Floats) -> dict[str, float]:
    """Largest and mean |difference|, mean KL(reference || found) in nats, equal best tokens."""
    largest = total = divergence = 0.0
    for row, expected in zip(found, reference, strict=True):
        difference = np.abs(row - expected)
        largest = max(largest, float(difference.max()))
        total += float(difference.mean(dtype=np.float64))
        p, q = log_softmax(expected[None]), log_softmax(row[None])
        divergence += float((np.exp(p) * (p - q)).sum())
    return {
        "max": largest,
        "mean": total / len(found),
        "kl": divergence / len(found),
        "top1": float((found.argmax(-1) == reference.argmax(-1)).mean()),
    }


def check_full_size(folder: Path, lengths: list[int], new: int, threads: int | None) -> bool:
    """Part one; prints its tables and returns whether all is well."""
    rng = np.random.default_rng(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", num_threads=threads)
    vocabulary = model.config.vocab_size
    prompts = [rng.integers(0, vocabulary, length).tolist() for length in lengths]
    scored = rng.integers(0, vocabulary, LOGITS_TOKENS).tolist()
    found = [engine_greedy(model, prompt, new, []) for prompt in prompts]
    logits = {"lfm-engine float32": model([scored]).logits[0]}
    del model

    oracle = load_transformers(folder, "float32", threads)
    references = [
        transformers_greedy(oracle, prompt, new, [])
        for prompt in tqdm(prompts, "transformers", disable=None)
    ]
    reference = transformers_logits(oracle, scored)
    del oracle
    gc.collect()

    comparisons = [
        compare(f"prompt of {length}", tokens, greedy)
        for length, tokens, greedy in zip(lengths, found, references, strict=True)
    ]
    print_comparisons(f"{folder.name}: float32 greedy against transformers", comparisons)
    kinds = [len(set(greedy.tokens)) for greedy in references]
    print(f"different tokens in each reference: {', '.join(map(str, kinds))}")

    for dtype in ("bfloat16", "int8"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, num_threads=threads)
        logits[f"lfm-engine {dtype}"] = model([scored]).logits[0]
        del model
    oracle = load_transformers(folder, "bfloat16", threads)
    logits["transformers bfloat16"] = transformers_logits(oracle, scored)
    del oracle
    gc.collect()

    for kind in ("BF16", "Q8_0"):
        found_logits = llama_cpp_logits(folder / f"model-{kind}.gguf", scored, threads)
        if found_logits is not None:
            logits[f"llama.cpp {kind}"] = found_logits

    errors = {name: logit_errors(values, reference) for name, values in logits.items()}
    rows = [
        [name, f"{e['max']:.2e}", f"{e['mean']:.2e}", f"{e['kl']:.2e}", f"{e['top1']:.1%}"]
        for name, e in errors.items()
    ]
    title = (
        f"{folder.name}: logits of {LOGITS_TOKENS} tokens against transformers float32 "
        f"(their standard deviation: {reference.std():.2f})"
    )
    print(format_table(title, ["", "max |d|", "mean |d|", "KL, nats", "same best"], rows))
    ratio = errors["lfm-engine bfloat16"]["mean"] / errors["transformers bfloat16"]["mean"]
    print(f"bfloat16 mean error, engine / transformers: {ratio:.3f} (at most {BF16_SLACK})")
    return ratio <= BF16_SLACK and not any(c.failed for c in comparisons)


def check_gguf(path: Path, new: int, threads: int | None) -> bool:
    """Part two; prints its table and returns whether all is well."""
    # The same ids go to both: the engine's reading of a GGUF tokenizer is a test of its own.
    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32", num_threads=threads)
    prompts, found, eos = greedy_chats(model, path, new)
    del model

    oracle = load_transformers(path, "float32", threads)
    comparisons = []
    pairs = zip(CHATS, prompts, strict=True)
    for index, (chat, prompt) in enumerate(tqdm(pairs, "transformers", len(CHATS), disable=None)):
        label = f"{index + 1:2} {chat[-1]['content'][:32]!r}"
        reference = transformers_greedy(oracle, prompt, new, eos)
        comparisons.append(compare(label, found[index], reference))
    del oracle
    gc.collect()
    print_comparisons(f"{path.name}: float32 greedy answers against transformers", comparisons)
    return not any(c.failed for c in comparisons)


def print_comparisons(title: str, comparisons: list[Comparison]) -> None:
    """The table of continuations and a line that counts them."""
    header = ["", "tokens", "result", "first difference", "top-2 gap there, or smallest"]
    print(format_table(title, header, [c.row() for c in comparisons]))
    equal = sum(c.position is None for c in comparisons)
    ties = sum(c.position is not None and not c.failed for c in comparisons)
    print(
        f"{equal} of {len(comparisons)} equal, {ties} near-ties (gap < {NEAR_TIE}), "
        f"{len(comparisons) - equal - ties} mismatches; "
        f"{sum(c.tokens for c in comparisons)} reference tokens"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--full-size", type=Path, metavar="FOLDER", help="from make_model.py")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="an instruct model")
    parser.add_argument("--lengths", default="1,17,512,3000", help="prompt lengths of --full-size")
    parser.add_argument("--new-tokens", type=int, default=64, help="of --full-size")
    parser.add_argument("--answer-tokens", type=int, default=200, help="at most, of --gguf")
    parser.add_argument("--threads", type=int, help="default: the engine's and torch's own")
    arguments = parser.parse_args()
    if not (arguments.full_size or arguments.gguf):
        parser.error("give --full-size, --gguf or both")
    begin = time.perf_counter()
    good = True
    if arguments.full_size:
        lengths = [int(length) for length in arguments.lengths.split(",")]
        new = arguments.new_tokens
        good &= check_full_size(arguments.full_size, lengths, new, arguments.threads)
    if arguments.gguf:
        good &= check_gguf(arguments.gguf, arguments.answer_tokens, arguments.threads)
    print(f"\n{'PASS' if good else 'FAIL'} in {time.perf_counter() - begin:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
