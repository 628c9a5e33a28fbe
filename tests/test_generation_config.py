"""Generation options: defaults, checks, and what transformers has that the engine has not."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm_engine.generation import GenerationConfig


def test_defaults_are_those_of_transformers() -> None:
    config = GenerationConfig()
    assert config.to_dict() == {}
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (
        False,
        1.0,
        50,
        1.0,
    )
    assert (config.repetition_penalty, config.min_p, config.max_new_tokens) == (1.0, None, None)
    assert config == GenerationConfig(temperature=None, top_k=None, num_beams=None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("max_new_tokens", 2.5),
        ("max_length", -1),
        ("min_new_tokens", -1),
        ("do_sample", 1),
        ("do_sample", "yes"),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "warm"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", float("inf")),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("eos_token_id", -1),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, True]),
        ("pad_token_id", -1),
        ("seed", 1 << 64),
        ("seed", "a"),
        ("stop_strings", ""),
        ("stop_strings", ["a", 3]),
        ("stop_strings", 3),
        ("return_dict_in_generate", None.__class__),
        ("output_scores", 1),
        ("min_length", -1),
        ("max_time", 0),
        ("max_time", "soon"),
        ("typical_p", 0),
        ("typical_p", 1.5),
        ("epsilon_cutoff", 1),
        ("eta_cutoff", -0.1),
        ("no_repeat_ngram_size", -1),
        ("num_return_sequences", 0),
        ("bad_words_ids", [1, 2]),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", "ab"),
        ("sequence_bias", {(): 1.0}),
        ("sequence_bias", {(1,): float("nan")}),
        ("sequence_bias", {(1,): "a"}),
        ("sequence_bias", [[[1]]]),
        ("sequence_bias", 3),
        ("suppress_tokens", 5),
        ("suppress_tokens", [-1]),
        ("begin_suppress_tokens", ["a"]),
        ("forced_eos_token_id", -1),
        ("exponential_decay_length_penalty", 3),
        ("exponential_decay_length_penalty", (3, 0)),
        ("exponential_decay_length_penalty", (-1, 1.5)),
    ],
)
def test_wrong_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        GenerationConfig(**{name: value})


def test_temperature_zero_only_without_sampling() -> None:
    assert GenerationConfig(temperature=0).temperature == 0.0
    with pytest.raises(ValueError, match=r"temperature must be greater than 0, not 0\.0"):
        GenerationConfig(temperature=0, do_sample=True)


def test_numpy_values_become_plain() -> None:
    config = GenerationConfig(
        top_k=np.int32(5), temperature=np.float32(0.5), eos_token_id=np.array([2, 3]), top_p=1
    )
    assert (type(config.top_k), type(config.temperature), type(config.top_p)) == (int, float, float)
    assert config.eos_token_id == [2, 3]
    with pytest.raises(ValueError, match="top_k"):
        GenerationConfig(top_k=np.bool_(True))
    with pytest.raises(ValueError, match="temperature"):
        GenerationConfig(temperature=np.bool_(True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beam_groups", 4),
        ("num_beam_groups", True),
        ("use_cache", False),
        ("assistant_model", object()),
        ("output_attentions", True),
        ("guidance_scale", 1.5),
        ("top_h", 0.5),
    ],
)
def test_options_of_transformers_that_are_missing(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.* is not supported"):
        GenerationConfig(**{name: value})


def test_neutral_and_unknown_options() -> None:
    GenerationConfig(num_beams=1, use_cache=True, typical_p=1, output_scores=False, min_length=0)
    GenerationConfig(transformers_version="5.18.0", _from_model_config=True, suppress_tokens=[])
    with pytest.raises(TypeError, match="'temprature'"):
        GenerationConfig(temprature=1.0)


def test_forms_of_sequence_bias() -> None:
    expected = [([3], 1.5), ([4, 5], float("-inf"))]
    for given in (
        {(3,): 1.5, (4, 5): float("-inf")},
        [[[3], 1.5], [[4, 5], float("-inf")]],
        expected,
    ):
        config = GenerationConfig(sequence_bias=given)
        assert config.sequence_bias == expected
        assert GenerationConfig(**config.to_dict()) == config


def test_update_is_all_or_nothing() -> None:
    config = GenerationConfig(top_k=7)
    with pytest.raises(ValueError, match="top_p"):
        config.update(top_k=9, top_p=3)
    assert config.top_k == 7
    merged = config.merged(top_k=9, seed=1)
    assert (merged.top_k, merged.seed, config.top_k, config.seed) == (9, 1, 7, None)
    assert config.merged(top_k=None).top_k == 7
    config.update(top_k=None)
    assert config.top_k == 50


def test_stop_ids() -> None:
    assert GenerationConfig().stop_ids((7,)) == (7,)
    assert GenerationConfig(eos_token_id=3).stop_ids((7,)) == (3,)
    assert GenerationConfig(eos_token_id=[3, 4]).stop_ids((7,)) == (3, 4)
    assert GenerationConfig(eos_token_id=[]).stop_ids((7,)) == ()


def test_lengths_are_those_of_transformers() -> None:
    assert GenerationConfig().new_token_limit(100) == 20
    assert GenerationConfig().new_token_limit(100, context_length=105) == 5
    assert GenerationConfig().new_token_limit(100, context_length=50) == 0
    assert GenerationConfig(max_length=120).new_token_limit(100) == 20
    assert GenerationConfig(max_length=50, max_new_tokens=3).new_token_limit(100) == 3
    with pytest.raises(ValueError, match="max_length=100 leaves no room"):
        GenerationConfig(max_length=100).new_token_limit(100)


def test_generation_config_json(tmp_path: Path) -> None:
    content = {
        "_from_model_config": True,
        "eos_token_id": [7, 2],
        "do_sample": True,
        "temperature": 0.3,
        "some_future_key": 1,
        "num_beams": 1,
    }
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = GenerationConfig.from_pretrained(tmp_path)
    assert config.to_dict() == {"do_sample": True, "temperature": 0.3, "eos_token_id": [7, 2]}
    config.save_pretrained(tmp_path / "again")
    assert GenerationConfig.from_pretrained(tmp_path / "again") == config
    with pytest.warns(UserWarning, match="num_beam_groups=4"):
        GenerationConfig.from_dict({"num_beam_groups": 4})

    file.write_text('{"top_p": 2}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"generation_config.json: top_p"):
        GenerationConfig.from_pretrained(tmp_path)
    for wrong in ("[]", "{"):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match=r"generation_config.json"):
            GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path / "nowhere")
