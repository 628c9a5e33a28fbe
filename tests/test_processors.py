"""Logits processors and warpers against transformers', and callables of the user's own."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import golden_models
from golden_models import PLAIN_GREEDY, Golden
from lfm_engine import CausalLM, GenerateOutput, GenerationConfig, _core
from lfm_engine.logits_processing import processor_params

pytestmark = pytest.mark.engine

FOLDER = golden_models.GOLDENS / "generation"
EOS = [2, 7]
MAX_NEW_TOKENS = 12
CASES = json.loads((FOLDER / "processors.json").read_text())
GENERATED = json.loads((FOLDER / "generate.json").read_text())


def scores_of(
    model: CausalLM, case: dict[str, Any], logits: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """What the engine makes of these logits: they are put in place of the model's."""
    config = GenerationConfig(**{"top_k": 0, **case["options"]})
    prompt_length, history = case["prompt_length"], np.array(case["history"])
    scheduler = _core.Scheduler(model.core)
    request = scheduler.add(
        history[:prompt_length],
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_ids=EOS,
        do_sample=config.do_sample,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p or 0.0,
        typical_p=config.typical_p,
        epsilon_cutoff=config.epsilon_cutoff,
        eta_cutoff=config.eta_cutoff,
        processors=processor_params(config, prompt_length),
    )
    scheduler.append(request, history[prompt_length:])
    rows: list[npt.NDArray[np.float32]] = []

    def replace(row: npt.NDArray[np.float32]) -> None:
        row[:] = logits

    scheduler.set_hook(request, "raw", replace)
    scheduler.set_hook(request, "scores", rows.append)
    scheduler.set_normalize_scores(request, config.renormalize_logits)
    events = scheduler.step()
    assert len(events) == 1
    assert not events[0][2].startswith("error"), events
    (row,) = rows
    assert row[0, events[0][1]] > -np.inf
    return row[0]


def test_scores_are_those_of_transformers(model: CausalLM) -> None:
    with np.load(FOLDER / "processors.npz") as data:
        all_logits, all_scores = data["logits"], data["scores"]
    used: set[str] = set()
    for case, logits, expected in zip(CASES, all_logits, all_scores, strict=True):
        found = scores_of(model, case, logits)
        kept = np.isfinite(expected)
        assert np.array_equal(np.isfinite(found), kept), case
        np.testing.assert_allclose(found[kept], expected[kept], rtol=1e-6, atol=1e-5, err_msg=case)
        if not np.array_equal(found, logits):
            used.update(case["options"])
    assert used >= {"typical_p", "epsilon_cutoff", "eta_cutoff", "sequence_bias", "bad_words_ids"}
    assert used >= {"forced_eos_token_id", "min_length", "exponential_decay_length_penalty"}


@pytest.mark.parametrize("case", GENERATED, ids=lambda case: "-".join(case["options"]) or "plain")
def test_generate_gives_transformers_tokens(
    model: CausalLM, base: Golden, case: dict[str, Any]
) -> None:
    options = {**PLAIN_GREEDY, "eos_token_id": EOS, **case["options"]}
    found = model.generate(base.prompt, max_new_tokens=24, **options)
    assert found[0, 40:].tolist() == case["tokens"]


def test_ids_outside_the_vocabulary_are_named(model: CausalLM, base: Golden) -> None:
    for name, value in (
        ("suppress_tokens", [131]),
        ("begin_suppress_tokens", [3, 131]),
        ("bad_words_ids", [[1], [2, 131]]),
        ("sequence_bias", {(131,): 1.0}),
        ("forced_eos_token_id", 131),
    ):
        with pytest.raises(ValueError, match=f"{name}: 131 is outside the vocabulary of 131"):
            model.generate(base.prompt, **{name: value})


# -- logits_processor --


def greedy(model: CausalLM, ids: Any, new: int = 24, **options: Any) -> Any:
    return model.generate(ids, max_new_tokens=new, **{**PLAIN_GREEDY, **options})


def test_a_processor_sees_and_changes_each_row(model: CausalLM, base: Golden) -> None:
    seen: list[tuple[list[int], Any]] = []

    def ban_first(input_ids: Any, scores: Any) -> Any:
        assert input_ids.dtype == np.int64
        assert scores.dtype == np.float32
        assert scores.shape == (1, 131)
        seen.append((input_ids[0].tolist(), scores))
        scores = scores.copy()
        scores[0, base.greedy[0]] = -np.inf
        return scores

    found = greedy(model, base.prompt, 5, logits_processor=[ban_first])
    assert found.tolist() == greedy(model, base.prompt, 5, suppress_tokens=base.greedy[:1]).tolist()
    assert base.greedy[0] not in found[0, 40:]
    assert [ids for ids, _ in seen] == [found[0, : 40 + n].tolist() for n in range(5)]
    # A row that is kept has what it was at the end of its step: later steps take other memory.
    expected = base.logits[-1].copy()
    expected[base.greedy[0]] = -np.inf
    np.testing.assert_allclose(seen[0][1][0], expected, atol=1e-4)


def test_processors_in_place_in_order_and_alone(model: CausalLM, base: Golden) -> None:
    order: list[int] = []

    def only(token: int) -> Any:
        def processor(_: Any, scores: Any) -> Any:
            order.append(token)
            scores[:] = -np.inf
            scores[0, token] = 0
            return scores

        return processor

    found = greedy(model, base.prompt, 2, logits_processor=[only(3), only(4)])
    assert found[0, 40:].tolist() == [4, 4]
    assert order == [3, 4, 3, 4]
    assert greedy(model, base.prompt, 1, logits_processor=only(5))[0, -1] == 5
    doubled = greedy(model, base.prompt, logits_processor=lambda _, s: s.astype(np.float64) * 2)
    assert doubled[0, 40:].tolist() == base.greedy.tolist()


def test_a_processor_comes_before_the_temperature(model: CausalLM, base: Golden) -> None:
    out = greedy(
        model,
        base.prompt,
        1,
        do_sample=True,
        temperature=0.5,
        top_k=0,
        seed=1,
        logits_processor=[lambda _, scores: scores + 3],
        return_dict_in_generate=True,
        output_scores=True,
    )
    np.testing.assert_allclose(out.scores[0][0], (base.logits[-1] + 3) / 0.5, atol=1e-3)


@pytest.mark.parametrize("result", [None, np.zeros(131), np.zeros((1, 130)), "abc"])
def test_wrong_answers_of_a_processor(model: CausalLM, base: Golden, result: Any) -> None:
    with pytest.raises(ValueError, match=r"logits_processor: .* must return scores of shape"):
        greedy(model, base.prompt, logits_processor=[lambda *_: result])
    with pytest.raises(ValueError, match="logits_processor must hold callables, not 3"):
        greedy(model, base.prompt, logits_processor=[3])


def test_not_a_number_is_an_error_or_removed(model: CausalLM, base: Golden) -> None:
    def spoil(_: Any, scores: Any) -> Any:
        scores[0, :5] = np.nan, np.inf, -np.inf, 0, 0
        return scores

    with pytest.raises(RuntimeError, match="NaN"):
        greedy(model, base.prompt, logits_processor=spoil)
    with pytest.raises(RuntimeError, match="a logit is infinite"):
        greedy(model, base.prompt, logits_processor=lambda _, s: np.where(s == s.max(), np.inf, s))


def failing(length: int, error: BaseException) -> Any:
    """A processor that raises at the row that is so long."""

    def processor(input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] == length:
            raise error
        return scores

    return processor


def test_a_processor_that_raises_fails_its_row_alone(model: CausalLM, base: Golden) -> None:
    prompts = [base.prompt[:5], base.prompt, base.prompt[:3]]
    error = BufferError("full")
    processor = failing(44, error)
    with pytest.raises(BufferError, match="full") as caught:
        greedy(model, prompts, 12, logits_processor=processor)
    assert caught.value is error
    assert any(entry.name == "processor" for entry in caught.traceback)
    out = greedy(
        model,
        prompts,
        12,
        logits_processor=processor,
        return_dict_in_generate=True,
        return_exceptions=True,
    )
    assert isinstance(out, GenerateOutput)
    assert out.finish_reasons == ["length", "error", "length"]
    assert out.errors == [None, error, None]
    assert out.new_tokens == [12, 4, 12]
    assert out.sequences[1][40:].tolist() == base.greedy[:4].tolist()
    for index in (0, 2):
        assert np.array_equal(out.sequences[index], greedy(model, prompts[index], 12)[0])
    with pytest.raises(KeyboardInterrupt):  # not an error of the row
        greedy(
            model,
            prompts,
            logits_processor=failing(44, KeyboardInterrupt()),
            return_dict_in_generate=True,
            return_exceptions=True,
        )
    with pytest.raises(ValueError, match="return_exceptions=True needs return_dict"):
        greedy(model, prompts, return_exceptions=True)
    assert greedy(model, base.prompt)[0, 40:].tolist() == base.greedy.tolist()


def test_a_processor_cannot_lift_a_constraint(model: CausalLM, base: Golden) -> None:
    found = greedy(
        model,
        base.prompt,
        6,
        prefix_allowed_tokens_fn=lambda *_: [3, 9],
        logits_processor=[lambda _, scores: np.arange(131, dtype=np.float32)[None]],
    )
    assert found[0, 40:].tolist() == [9] * 6
    with pytest.raises(ValueError, match="forced_eos_token_id would cut off"):
        greedy(model, base.prompt, prefix_allowed_tokens_fn=lambda *_: [3], forced_eos_token_id=7)


# -- stopping_criteria and max_time --


def test_stopping_criteria(model: CausalLM, base: Golden) -> None:
    calls: list[tuple[int, Any]] = []

    def at_45(input_ids: Any, scores: Any) -> Any:
        calls.append((input_ids.shape[1], scores))
        return np.array([input_ids.shape[1] >= 45])

    out = greedy(model, base.prompt, stopping_criteria=[at_45], return_dict_in_generate=True)
    assert out.sequences[0, 40:].tolist() == base.greedy[:5].tolist()
    assert out.finish_reasons == ["stop"]
    assert calls == [(n, None) for n in range(41, 46)]
    rows = greedy(model, [base.prompt, base.prompt[:7]], 10, stopping_criteria=at_45)
    assert [len(row) for row in rows] == [45, 17]
    with pytest.raises(BufferError, match="full"):
        greedy(model, base.prompt, stopping_criteria=[failing(42, BufferError("full"))])
    seen: list[int] = []
    greedy(
        model,
        base.prompt,
        3,
        stopping_criteria=lambda _, scores: bool(seen.append(len(scores))),  # type: ignore[func-returns-value]
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert seen == [1, 2]


def test_max_time(long_model: CausalLM, base: Golden) -> None:
    begun = time.monotonic()
    out = greedy(long_model, base.prompt, 1_000_000, max_time=0.2, return_dict_in_generate=True)
    assert 0.2 <= time.monotonic() - begun < 10
    assert out.finish_reasons == ["length"]
    assert 1 <= out.new_tokens[0] < 1_000_000


# -- what comes back --


def test_scores_and_logits(model: CausalLM, base: Golden) -> None:
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    out = greedy(model, base.prompt, 4, output_scores=True, suppress_tokens=[3], **options)
    assert len(out.scores) == len(out.logits) == 4
    full = model(out.sequences).logits[0, 39:43]
    assert np.array_equal(np.concatenate(out.logits), full)  # the same bits
    scores = np.concatenate(out.scores)
    assert (scores[:, 3] == -np.inf).all()
    scores[:, 3] = full[:, 3]
    assert np.array_equal(scores, full)
    normalized = greedy(
        model, base.prompt, 1, output_scores=True, renormalize_logits=True, **options
    ).scores[0]
    np.testing.assert_allclose(np.exp(normalized).sum(), 1, atol=1e-5)
    assert greedy(model, base.prompt, 4, **options).scores is None
    for name in ("output_scores", "output_logits"):
        with pytest.raises(ValueError, match=f"{name}=True needs return_dict_in_generate"):
            greedy(model, base.prompt, **{name: True})


def test_scores_of_a_batch(model: CausalLM, base: Golden) -> None:
    prompts = [base.prompt, base.prompt[:9]]
    stop = [lambda ids, _: ids.shape[1] == 42]
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}
    out = greedy(model, prompts, 4, stopping_criteria=stop, **options)
    assert [scores.shape for scores in out.scores] == [(2, 131)] * 4
    assert np.isnan(out.scores[2][0]).all()
    for index, prompt in enumerate(prompts):
        alone = greedy(model, prompt, 4, stopping_criteria=stop, **options)
        for together, one in zip(out.scores, alone.scores, strict=False):
            assert np.array_equal(together[index], one[0])


def test_num_return_sequences(model: CausalLM, base: Golden) -> None:
    fixed: dict[str, Any] = {"do_sample": True, "top_k": 0, "temperature": 1.0, "seed": 4}
    rows = greedy(
        model, np.stack([base.prompt, base.prompt[::-1]]), num_return_sequences=3, **fixed
    )
    assert rows.shape == (6, 64)
    assert np.array_equal(rows[:3, :40], np.stack([base.prompt] * 3))
    assert np.array_equal(rows[3:, :40], np.stack([base.prompt[::-1]] * 3))
    assert len({tuple(row) for row in rows}) == 6
    ragged = greedy(model, [base.prompt, base.prompt[:4]], num_return_sequences=2, **fixed)
    assert [len(row) for row in ragged] == [64, 64, 28, 28]
    assert np.array_equal(ragged[0], rows[0])
    with pytest.raises(ValueError, match="num_return_sequences=2 needs do_sample=True"):
        greedy(model, base.prompt, num_return_sequences=2)


def test_scores_under_a_constraint_are_of_every_token(model: CausalLM, base: Golden) -> None:
    """Certain tokens, which cost no model step otherwise, have scores too."""
    allowed = iter([[5], [6, 8], [9], [10]] * 2)
    out = greedy(
        model,
        base.prompt,
        4,
        prefix_allowed_tokens_fn=lambda *_: next(allowed),
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert len(out.scores) == 4
    assert [int(np.isfinite(scores).sum()) for scores in out.scores] == [1, 2, 1, 1]
