"""Log-probabilities: in `generate`, of candidates, of labels, and lm-eval's requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import golden_models
from golden_models import DTYPES, PLAIN_GREEDY, Golden
from lfm_engine import CausalLM
from lfm_engine.tokenizer import Tokenizer

pytestmark = pytest.mark.engine


def direct(model: CausalLM, prompt: Any, candidate: Any) -> tuple[list[float], bool]:
    """By one plain forward pass, in float64."""
    ids = [*map(int, prompt), *map(int, candidate)]
    logits = model(ids).logits[0].astype(np.float64)
    values, greedy = [], True
    for position in range(len(ids) - len(candidate), len(ids)):
        row = logits[position - 1]
        values.append(row[ids[position]] - row.max() - np.log(np.exp(row - row.max()).sum()))
        greedy = greedy and int(row.argmax()) == ids[position]
    return values, greedy


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_those_of_a_plain_forward(base: Golden, dtype: str) -> None:
    model = golden_models.load(base.name, dtype)
    rng = np.random.default_rng(1)
    first = base.greedy[:3].tolist()
    candidates = [first, [*first, 5], [*first, 5, 6, 7], first[:1], [9], [9, 8], first]
    candidates += [rng.integers(0, 131, n).tolist() for n in (1, 2, 9, 60)]
    scores = model.score(base.prompt, candidates)
    for candidate, score in zip(candidates, scores, strict=True):
        values, greedy = direct(model, base.prompt, candidate)
        np.testing.assert_allclose(score.token_logprobs, values, atol=1e-5)
        assert score.logprob == pytest.approx(sum(values), abs=1e-4)
        assert score.is_greedy == greedy
        (alone,) = model.score(base.prompt, [candidate])
        assert np.array_equal(alone.token_logprobs, score.token_logprobs)  # the same bits
        assert alone.logprob == score.logprob
    if dtype == "float32":
        assert scores[0].is_greedy
        row = base.logits[-1].astype(np.float64)
        expected = row[first[0]] - np.log(np.exp(row).sum())
        assert scores[0].token_logprobs[0] == pytest.approx(expected, abs=1e-5)


def test_bad_candidates(model: CausalLM, base: Golden) -> None:
    for candidates, message in (
        ([], "at least one continuation"),
        ("abc", "at least one continuation"),
        ([[1], []], "empty"),
        ([[131]], "131, outside the vocabulary"),
        (["a"], "candidates is text: tokenizer= is needed"),
        ([[1] * 90], "more than the model's context of 128"),
    ):
        with pytest.raises(ValueError, match=message):
            model.score(base.prompt, candidates)
    assert len(model.score(base.prompt, [[1] * 89])[0].token_logprobs) == 89


def test_logprobs_of_generate(model: CausalLM, base: Golden) -> None:
    prompts = [base.prompt, base.prompt[:7]]
    out = model.generate(
        prompts,
        max_new_tokens=6,
        logprobs=True,
        top_logprobs=4,
        return_dict_in_generate=True,
        **{**PLAIN_GREEDY, "repetition_penalty": 1.3},
    )
    for prompt, row, logprobs, top in zip(
        prompts, out.sequences, out.logprobs, out.top_logprobs, strict=True
    ):
        new = row[len(prompt) :]
        (score,) = model.score(prompt, [new])
        assert np.array_equal(logprobs, score.token_logprobs)
        for position, (ids, values) in enumerate(top):
            logits = model(row[: len(prompt) + position]).logits[0, -1]
            assert ids.tolist() == np.argsort(-logits, kind="stable")[:4].tolist()
            expected = [model.score(row[: len(prompt) + position], [[i]])[0].logprob for i in ids]
            np.testing.assert_allclose(values, expected, atol=1e-6)
    with pytest.raises(ValueError, match="logprobs=True needs return_dict"):
        model.generate(base.prompt, logprobs=True)


def test_classify(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    texts = [f"text {n} " + "word " * (n % 5) for n in range(40)]
    labels = ["yes", "no", "not", "maybe"]  # "no" may begin "not"
    together = chat_model.classify(texts, labels, tokenizer=chat_tokenizer, instruction="Which?")
    assert len(together) == 40
    for text, found in list(zip(texts, together, strict=True))[::13]:
        (alone,) = chat_model.classify(
            [text], labels, tokenizer=chat_tokenizer, instruction="Which?"
        )
        assert alone == found
        assert sum(found.probabilities.values()) == pytest.approx(1)
        assert found.label == max(labels, key=found.probabilities.__getitem__)
        assert list(found.probabilities) == labels
    prompt = chat_tokenizer.apply_chat_template(
        [{"role": "system", "content": "Which?"}, {"role": "user", "content": texts[0]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = chat_tokenizer(prompt, add_special_tokens=False).input_ids
    ends = [*chat_tokenizer("maybe", add_special_tokens=False).input_ids]
    values, _ = direct(chat_model, ids, ends)
    plain = chat_model.classify(
        texts[:1], ["yes", "maybe"], tokenizer=chat_tokenizer, instruction="Which?"
    )
    assert plain[0].logprobs["maybe"] == pytest.approx(sum(values), abs=1e-4)
    assert chat_model.classify([], labels, tokenizer=chat_tokenizer) == []
    for bad in (["a"], ["a", "a"], "ab"):
        with pytest.raises(ValueError, match="labels must be at least two"):
            chat_model.classify(texts, bad, tokenizer=chat_tokenizer)


def test_loglikelihood(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    def encode(text: str) -> list[int]:
        return list(chat_tokenizer(text, add_special_tokens=False).input_ids)

    requests = [("the word ", "is"), ("the word", " is"), ("the word", " not"), ("", "alone")]
    found = chat_model.loglikelihood(requests, tokenizer=chat_tokenizer)
    assert found[0] == found[1]  # spaces at the end count to the continuation
    whole = encode("the word not")
    context = encode("the word")
    values, greedy = direct(chat_model, context, whole[len(context) :])
    assert found[2] == (pytest.approx(sum(values), abs=1e-4), greedy)
    bos = chat_tokenizer.bos_token_id
    values, greedy = direct(chat_model, [bos], encode("alone"))
    assert found[3] == (pytest.approx(sum(values), abs=1e-4), greedy)
    assert chat_model.loglikelihood([]) == []


def test_loglikelihood_rolling(model: CausalLM, base: Golden) -> None:
    bos = model.config.bos_token_id
    whole = [bos, *base.prompt.tolist()]
    (found,) = model.loglikelihood_rolling([base.prompt])
    assert found == pytest.approx(sum(direct(model, [bos], base.prompt)[0]), abs=1e-3)
    # Windows of 16 over 40 tokens: 16, 16, and 8 with 16 - 8 tokens before them again.
    (found,) = model.loglikelihood_rolling([base.prompt], max_length=16)
    expected = sum(direct(model, whole[:1], whole[1:17])[0])
    expected += sum(direct(model, whole[16:17], whole[17:33])[0])
    expected += sum(direct(model, whole[24:33], whole[33:41])[0])
    assert found == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match="max_length must be between 1 and 128"):
        model.loglikelihood_rolling([base.prompt], max_length=129)
