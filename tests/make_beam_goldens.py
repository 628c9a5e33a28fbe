"""Makes tests/goldens/beams.json with transformers: beam searches on the tiny checkpoints.

python tests/make_beam_goldens.py     (torch and transformers installed)
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

GOLDENS = Path(__file__).parent / "goldens"
# num_beams, num_return_sequences and more; eos ids that come now and then.
CASES = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 3},
    {"num_beams": 4, "eos_token_id": [7, 19, 33, 64, 90], "num_return_sequences": 4},
    {"num_beams": 3, "eos_token_id": [7, 19, 33, 64, 90], "length_penalty": 0.0},
    {"num_beams": 3, "eos_token_id": [7, 19, 33, 64, 90], "length_penalty": -1.0},
    {"num_beams": 3, "eos_token_id": [5, 19, 33, 64, 90], "early_stopping": True},
    {"num_beams": 3, "eos_token_id": [5, 19, 33, 64, 90], "early_stopping": "never"},
    {"num_beams": 5, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {
        "num_beams": 3,
        "eos_token_id": [7, 19, 33, 64, 90],
        "min_new_tokens": 6,
        "length_penalty": 2.0,
    },
    {"num_beams": 3, "eos_token_id": list(range(60)), "early_stopping": True},
    {"num_beams": 4, "eos_token_id": list(range(20)), "num_return_sequences": 4},
    {"num_beams": 3, "eos_token_id": list(range(20)), "length_penalty": 2.0},
    {"num_beams": 3, "eos_token_id": list(range(20)), "early_stopping": "never"},
    {"num_beams": 3, "eos_token_id": list(range(20)), "early_stopping": True},
]


def main() -> None:
    found = []
    for name in ("lfm2-base", "lfm2-bias-hd64"):
        model = AutoModelForCausalLM.from_pretrained(GOLDENS / name, dtype=torch.float32)
        model.generation_config = GenerationConfig()  # not the checkpoint's
        generator = torch.Generator().manual_seed(1)
        for case in CASES:
            for length in (1, 9):
                prompt = torch.randint(0, model.config.vocab_size, (1, length), generator=generator)
                options = {"eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 12, **case}
                out = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=False,
                    return_dict_in_generate=True,
                    output_scores=True,
                    **options,
                )
                found.append(
                    {
                        "model": name,
                        "prompt": prompt[0].tolist(),
                        "options": {**case, "eos_token_id": case.get("eos_token_id", [])},
                        "sequences": out.sequences.tolist(),
                        "scores": out.sequences_scores.tolist(),
                    }
                )
    lines = ",\n".join(json.dumps(entry) for entry in found)
    (GOLDENS / "beams.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
