"""Makes tests/goldens/generation: what transformers' logits processors and `generate` give.

Run by hand, with torch and transformers (5.18 made the committed files):

    PYTHONPATH=python python tests/make_processor_goldens.py

- ``processors.npz``: ``logits`` float32 [case, vocab], ``scores`` [case, vocab] after all
  processors of the case, in transformers' order;
- ``processors.json``: the options of each case, its history and how much of that is the prompt;
- ``generate.json``: options and the tokens that transformers' `generate` gives for lfm2-base.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

GOLDENS = Path(__file__).parent / "goldens"
EOS = [2, 7]
MAX_NEW_TOKENS = 12
MIN_GAP = 1e-3  # of the two best scores of each step of `generate`

# Options that change what may come, alone and together; each case draws some of them.
OPTIONS: list[dict[str, Any]] = [
    {"sequence_bias": [[[3], -1.5], [[4, 5], 4.0], [[9, 9, 5], 2.0], [[5], 0.25]]},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"bad_words_ids": [[2], [11], [4, 6], [4, 5, 8], [1, 1]]},
    {"min_length": 14},
    {"min_new_tokens": 4},
    {"forced_eos_token_id": 7},
    {"forced_eos_token_id": [2, 30]},
    {"remove_invalid_values": True},
    {"exponential_decay_length_penalty": [1, 1.7]},
    {"suppress_tokens": [0, 31, 12]},
    {"begin_suppress_tokens": [10, 13]},
]
WARPERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.4},
    {"temperature": 2.5},
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"typical_p": 0.2},
    {"typical_p": 0.6},
    {"typical_p": 0.95},
    {"epsilon_cutoff": 0.04},
    {"eta_cutoff": 0.2},
]
GENERATE: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"min_length": 50},
    {"begin_suppress_tokens": "first"},
    {"suppress_tokens": "all"},
    {"bad_words_ids": "pairs"},
    {"sequence_bias": "pairs"},
    {"forced_eos_token_id": 7},
    {"exponential_decay_length_penalty": [2, 1.5]},
]


def random_history(rng: np.random.Generator) -> tuple[list[int], int]:
    """Tokens with repeated n-grams, and how many of them are the prompt."""
    length = int(rng.integers(3, 24))
    history = rng.choice([token for token in range(12) if token not in EOS], length).tolist()
    history[-2:] = [[4, 5], [9, 9], [1, 1], [3, 4]][int(rng.integers(4))]
    generated = int(rng.choice([0, 1, 2, 5, MAX_NEW_TOKENS - 1]))
    return history, max(1, length - generated)


def case_options(rng: np.random.Generator, index: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if index < len(OPTIONS):
        options.update(OPTIONS[index])
    else:
        for choice in rng.permutation(len(OPTIONS))[: rng.integers(0, 5)]:
            options.update(OPTIONS[int(choice)])
        if rng.random() < 0.7:
            options["do_sample"] = True
            options["top_k"] = 0
            for choice in rng.permutation(len(WARPERS))[: rng.integers(1, 4)]:
                options.update(WARPERS[int(choice)])
        if rng.random() < 0.3:
            options["renormalize_logits"] = True
    return options


def processor_cases(model: Any) -> None:
    rng = np.random.default_rng(5)
    cases, all_logits, all_scores = [], [], []
    for index in range(150):
        options = case_options(rng, index)
        history, prompt_length = random_history(rng)
        if index == 8 or index == 9:  # forced ends act on the last token alone
            prompt_length = max(1, len(history) - MAX_NEW_TOKENS + 1)
        vocab = model.config.vocab_size
        logits = (3 * rng.standard_normal(vocab)).astype(np.float32)
        if options.get("remove_invalid_values") and "do_sample" not in options:
            logits[[1, 2]] = np.nan, -np.inf
        config = GenerationConfig(
            eos_token_id=EOS, max_length=prompt_length + MAX_NEW_TOKENS, **options
        )
        config._eos_token_tensor = torch.tensor(EOS)
        config.num_beams = 1
        processors = model._get_logits_processor(config, input_ids_seq_length=prompt_length)
        ids = torch.tensor([history])
        scores = processors(ids, torch.from_numpy(logits)[None].clone())[0].numpy()
        if not np.isfinite(scores).any() or np.isnan(scores).any():
            continue
        cases.append({"options": options, "history": history, "prompt_length": prompt_length})
        all_logits.append(logits)
        all_scores.append(scores)
    folder = GOLDENS / "generation"
    np.savez_compressed(
        folder / "processors.npz", logits=np.stack(all_logits), scores=np.stack(all_scores)
    )
    lines = ",\n".join(json.dumps(case) for case in cases)
    (folder / "processors.json").write_text(f"[\n{lines}\n]\n")
    print(len(cases), "cases")


@torch.no_grad()
def generate_cases(model: Any) -> None:
    with np.load(GOLDENS / "lfm2-base" / "golden.npz") as data:
        prompt, greedy = data["prompt"], data["greedy"].tolist()
    named = {
        "first": greedy[:1],
        "all": greedy[2:5],
        "pairs": [greedy[0:2], greedy[4:7], [greedy[3]]],
    }
    cases = []
    for given in GENERATE:
        options = {k: named[v] if isinstance(v, str) else v for k, v in given.items()}
        if "sequence_bias" in options:
            options["sequence_bias"] = [[ids, -6.0] for ids in options["sequence_bias"]]
        out = model.generate(
            torch.from_numpy(prompt)[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=GenerationConfig(eos_token_id=EOS, pad_token_id=0),
            max_new_tokens=24,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        for scores in out.scores:
            best = torch.topk(scores[0], 2).values
            assert float(best[0] - best[1]) > MIN_GAP, options
        cases.append({"options": options, "tokens": out.sequences[0, len(prompt) :].tolist()})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (GOLDENS / "generation" / "generate.json").write_text(f"[\n{lines}\n]\n")
    print(len(cases), "generations")


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(GOLDENS / "lfm2-base", dtype=torch.float32).eval()
    model.generation_config = GenerationConfig()
    (GOLDENS / "generation").mkdir(exist_ok=True)
    processor_cases(model)
    generate_cases(model)


if __name__ == "__main__":
    main()
