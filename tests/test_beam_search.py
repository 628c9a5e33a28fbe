"""Beam search against transformers'."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import golden_models
from golden_models import GOLDENS, PLAIN_GREEDY
from lfm_engine import CausalLM

pytestmark = pytest.mark.engine

CASES = json.loads((GOLDENS / "beams.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_sequences_and_scores_are_transformers(case: dict[str, Any]) -> None:
    model = golden_models.load(case["model"])
    out = model.generate(
        [case["prompt"]],
        **{**PLAIN_GREEDY, "max_new_tokens": 12, "pad_token_id": 0, **case["options"]},
        return_dict_in_generate=True,
    )
    want = np.array(case["sequences"])
    assert np.array_equal(out.sequences, want)
    assert np.allclose(out.sequences_scores, case["scores"], rtol=1e-4, atol=1e-5)
    eos = case["options"]["eos_token_id"]
    for row, count, why in zip(out.sequences, out.new_tokens, out.finish_reasons, strict=True):
        last = row[len(case["prompt"]) + count - 1]
        assert why == ("stop" if last in eos else "length")


def test_prompts_of_a_batch_are_searched_apart(model: CausalLM) -> None:
    options: dict[str, Any] = {**PLAIN_GREEDY, "num_beams": 3, "num_return_sequences": 2}
    options["max_new_tokens"] = 6
    prompts = [[4, 5, 6], [9], [1, 2]]
    rows = model.generate(prompts, **options)
    assert len(rows) == 6
    for i, prompt in enumerate(prompts):
        for j, row in enumerate(model.generate([prompt], **options)):
            assert np.array_equal(rows[2 * i + j], row)


def test_callables(model: CausalLM) -> None:
    def only_even(ids: Any, scores: Any) -> Any:
        scores[:, 1::2] = -np.inf
        return scores

    options: dict[str, Any] = {**PLAIN_GREEDY, "num_beams": 3, "max_new_tokens": 8}
    out = model.generate([[4, 6]], logits_processor=only_even, **options)
    assert (out % 2 == 0).all()
    out = model.generate([[4, 6]], stopping_criteria=lambda ids, _: ids.shape[1] == 5, **options)
    assert out.shape == (1, 5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"do_sample": True}, "num_beams=2 does not work with do_sample"),
        ({"output_scores": True, "return_dict_in_generate": True}, "with output_scores"),
        ({"prefix_allowed_tokens_fn": lambda *_: [1]}, "with constraint"),
        ({"streamer": object()}, "with streamer"),
        ({"num_return_sequences": 3}, "num_return_sequences=3 is more than num_beams=2"),
        ({"early_stopping": "always"}, "early_stopping must be True, False or 'never'"),
        ({"early_stopping": 1}, "early_stopping"),
        ({"num_beams": 0}, "num_beams"),
        ({"length_penalty": "x"}, "length_penalty"),
    ],
)
def test_what_it_does_not_do(model: CausalLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate([[1, 2]], **{**PLAIN_GREEDY, "num_beams": 2, **options})
