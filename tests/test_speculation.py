"""Speculation by prompt lookup: the same tokens in fewer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden_models import DTYPES, PLAIN_GREEDY
from lfm_engine import AutoModelForCausalLM, CausalLM, GenerationConfig

pytestmark = pytest.mark.engine

VOCAB = 131
SAMPLE: dict[str, Any] = {**PLAIN_GREEDY, "do_sample": True, "temperature": 0.4, "top_k": 4}


# What makes a random model go round in a circle most of the time.
CIRCLE = [([i, i % 12 + 1], 5.0) for i in range(1, 13)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [PLAIN_GREEDY, SAMPLE], ids=["greedy", "sample"])
def test_no_token_changes(long_folder: Path, dtype: str, options: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(long_folder, dtype=dtype, num_threads=2)
    accepted = 0
    for prompts in ([[3]], [[1, 50, 3]], [[5], [60, 7, 8], [9] * 4]):
        given: dict[str, Any] = {
            **options,
            "max_new_tokens": 120,
            "seed": 3,
            "sequence_bias": CIRCLE,
            "return_dict_in_generate": True,
            "output_scores": True,
            "logprobs": True,
        }
        plain = model.generate(prompts, speculation=0, **given)
        assert plain.speculation.drafted_tokens == plain.speculation.accepted_tokens == 0
        for limit in (None, 1, 5, 40):
            found = model.generate(prompts, speculation=limit, **given)
            for a, b in zip(found.sequences, plain.sequences, strict=True):
                assert np.array_equal(a, b)
            assert found.finish_reasons == plain.finish_reasons
            for a, b in zip(found.scores, plain.scores, strict=True):
                assert np.array_equal(a, b, equal_nan=True)
            for a, b in zip(found.logprobs, plain.logprobs, strict=True):
                assert np.array_equal(a, b)
            assert found.speculation.accepted_tokens <= found.speculation.drafted_tokens
            if len(prompts) == 1:
                passes = found.speculation.passes + found.speculation.accepted_tokens
                assert passes == plain.speculation.passes
            accepted += found.speculation.accepted_tokens
    assert accepted > 20


def test_stop_strings_masks_and_states(model: CausalLM) -> None:
    """What ends or steers a sequence does so at the same token, and states hold no draft."""
    allowed = [7, 8, 9]
    for limit in (0, 6):
        session = model.session()
        session.append([7, 8, 9] * 10)
        out = session.generate(
            **PLAIN_GREEDY,
            max_new_tokens=40,
            speculation=limit,
            prefix_allowed_tokens_fn=lambda _, ids: [allowed[len(ids) % 3]],
            stopping_criteria=lambda ids, _: ids.shape[1] == 53,
        )
        assert list(out) == [allowed[i % 3] for i in range(30, 53)]
        assert len(session.tokens) == 53
        fresh = model.core.forward(model.core.new_state(), session.tokens, "last")[0]
        assert np.array_equal(session.logits(), fresh)


def test_the_option() -> None:
    assert GenerationConfig().speculation is None
    assert GenerationConfig(prompt_lookup_num_tokens=10).speculation == 10
    assert GenerationConfig.from_dict({"prompt_lookup_num_tokens": 4}).speculation == 4
    for wrong in (-1, 1.5, True, "yes"):
        with pytest.raises(ValueError, match="speculation"):
            GenerationConfig(speculation=wrong)
