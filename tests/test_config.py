"""ModelConfig from config.json and from GGUF metadata: spellings, defaults, rejections."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm_engine.checkpoint.config import ModelConfig, eos_of, from_gguf, from_hf
from lfm_engine.checkpoint.rope import inverse_frequencies

GOLDENS = Path(__file__).parent / "goldens"
FOLDERS = sorted(path.parent for path in GOLDENS.glob("*/golden.npz"))

LFM2_350M: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "vocab_size": 65536,
    "hidden_size": 1024,
    "block_ff_dim": 6656,
    "block_auto_adjust_ff_dim": True,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 128000,
    "tie_embedding": True,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def lfm2(**changes: Any) -> ModelConfig:
    return from_hf({**LFM2_350M, **changes}, "config.json")


def llama(**changes: Any) -> ModelConfig:
    return from_hf({**LLAMA, **changes}, "config.json")


def test_the_350m_checkpoint() -> None:
    config = lfm2()
    assert config.num_parameters == 354_483_968
    assert config.intermediate_size == 4608
    assert config.head_dim == 64
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == [
        *(2, 5, 8, 10, 12, 14)
    ]
    assert config.eos_token_id == (7,)
    assert config.max_position_embeddings == 128_000
    assert config.qk_norm
    assert config.tie_word_embeddings


def test_configurations_are_values() -> None:
    assert lfm2() == lfm2()
    assert hash(lfm2()) == hash(lfm2())
    assert lfm2() != lfm2(norm_eps=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        lfm2().rope_inv_freq[0] = 2


def test_both_spellings_give_the_same_configuration() -> None:
    renamed = {
        "hidden_size": "block_dim",
        "num_attention_heads": "num_heads",
        "norm_eps": "block_norm_eps",
        "rope_theta": "theta",
    }
    block = {renamed.get(key, key): value for key, value in LFM2_350M.items()}
    plain = dict(LFM2_350M)
    plain["intermediate_size"] = plain.pop("block_ff_dim")
    plain["tie_word_embeddings"] = plain.pop("tie_embedding")
    indices = plain.pop("full_attn_idxs")
    plain["layer_types"] = ["full_attention" if i in indices else "conv" for i in range(16)]
    plain["rope_parameters"] = {"rope_theta": plain.pop("rope_theta"), "rope_type": "default"}
    for spelling in (block, plain):
        found = from_hf(spelling, "config.json")
        assert found == lfm2()
        assert np.array_equal(found.rope_inv_freq, lfm2().rope_inv_freq)


def test_the_spelling_that_transformers_uses_wins() -> None:
    assert lfm2(intermediate_size=3000).intermediate_size == 4608
    assert not lfm2(tie_embedding=False, tie_word_embeddings=True).tie_word_embeddings
    assert lfm2(layer_types=["conv"] * 15 + ["full_attention"]).layer_types[2] == "conv"
    first = lfm2(rope_theta=5.0, theta=6.0, rope_parameters={"rope_theta": 1e4}).rope_inv_freq
    assert np.array_equal(first, inverse_frequencies(1e4, 64))
    second = lfm2(rope_theta=1e4, theta=6.0).rope_inv_freq
    assert np.array_equal(second, inverse_frequencies(1e4, 64))


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({"block_auto_adjust_ff_dim": False}, 6656),
        ({"block_ffn_dim_multiplier": None}, 4437),
        ({"block_ffn_dim_multiplier": 1.3}, 5888),
        ({"block_multiple_of": 1000}, 5000),
        ({"block_ff_dim": 12288}, 8192),  # the 1.2B model
    ],
)
def test_ffn_width_adjustment(changes: dict[str, Any], width: int) -> None:
    assert lfm2(**changes).intermediate_size == width


def test_defaults_are_those_of_transformers() -> None:
    few = {k: LFM2_350M[k] for k in ("model_type", "vocab_size", "hidden_size", "block_ff_dim")}
    config = from_hf({**few, "num_hidden_layers": 2, "num_attention_heads": 16}, "config.json")
    assert config.layer_types == ("full_attention",) * 2
    assert (config.num_key_value_heads, config.conv_L_cache) == (8, 3)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, (2,), 0)
    config = llama()
    assert (config.norm_eps, config.tie_word_embeddings, config.qk_norm) == (1e-6, False, False)
    assert (config.head_dim, config.max_position_embeddings) == (16, 2048)
    assert llama(num_key_value_heads=None).num_key_value_heads == 4


def test_token_ids() -> None:
    assert lfm2(eos_token_id=[7, 2, 7]).eos_token_id == (7, 2)
    assert lfm2(eos_token_id=None).eos_token_id == ()
    assert llama(pad_token_id=-1).pad_token_id is None
    assert eos_of({}, "g") is None
    assert eos_of({"eos_token_id": [3, 4]}, "g") == (3, 4)
    with pytest.raises(ValueError, match=r"g: 'eos_token_id'"):
        eos_of({"eos_token_id": "7"}, "g")


def test_default_rope_is_exact_to_the_last_place() -> None:
    found = inverse_frequencies(1e6, 64)
    exact = np.array([1e6 ** -(2 * i / 64) for i in range(32)])
    assert found.dtype == np.float32
    assert np.allclose(found, exact, rtol=1.2e-7, atol=0)


def test_llama3_rope_keeps_short_wavelengths_and_stretches_long_ones() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = llama(head_dim=128, rope_theta=500000.0, rope_scaling=scaling)
    ratio = inverse_frequencies(500000.0, 128) / config.rope_inv_freq
    wavelength = 2 * math.pi / inverse_frequencies(500000.0, 128)
    assert np.all(ratio[wavelength < 8192 / 4] == 1)
    assert np.allclose(ratio[wavelength > 8192], 8)
    assert np.all(np.diff(ratio) >= -1e-6)


def test_linear_rope() -> None:
    for scaling in ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4}):
        config = llama(rope_scaling=scaling)
        assert np.array_equal(config.rope_inv_freq, inverse_frequencies(1e4, 16) / np.float32(4))


REJECTED: list[tuple[str, dict[str, Any], str]] = [
    ("lfm2", {"model_type": "qwen2"}, "architecture 'qwen2'; supported are lfm2, llama"),
    ("lfm2", {"model_type": None, "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
    ("lfm2", {"model_type": None, "architectures": None}, "no architecture is named"),
    ("lfm2", {"model_type": ["lfm2"]}, "architecture"),
    ("lfm2", {"vocab_size": None}, "'vocab_size' is missing"),
    ("lfm2", {"vocab_size": True}, "'vocab_size' must be an integer"),
    ("lfm2", {"vocab_size": "65536"}, "'vocab_size' must be an integer"),
    ("lfm2", {"vocab_size": 65536.0}, "'vocab_size' must be an integer"),
    ("lfm2", {"vocab_size": 0}, "'vocab_size' must be between 1"),
    ("lfm2", {"hidden_size": -1024}, "'hidden_size' must be between 1"),
    ("lfm2", {"hidden_size": 10**30}, "'hidden_size' must be between 1"),
    ("lfm2", {"num_hidden_layers": 10**6}, "'num_hidden_layers'"),
    ("lfm2", {"hidden_size": 1000}, "hidden_size 1000 is not a multiple of 16"),
    ("lfm2", {"num_key_value_heads": 3}, "16 attention heads cannot share 3"),
    ("lfm2", {"head_dim": 63}, "must be even"),
    ("lfm2", {"layer_types": ["conv"] * 3}, "must list 16 layers"),
    ("lfm2", {"layer_types": ["sliding_attention"] * 16}, "layer type 'sliding_attention'"),
    ("lfm2", {"full_attn_idxs": [16]}, "'full_attn_idxs'"),
    ("lfm2", {"full_attn_idxs": "all"}, "'full_attn_idxs'"),
    ("lfm2", {"conv_L_cache": 1}, "'conv_L_cache' must be between 2"),
    ("lfm2", {"conv_bias": 1}, "'conv_bias' must be true or false"),
    ("lfm2", {"norm_eps": float("nan")}, "'norm_eps' must be a positive finite number"),
    ("lfm2", {"norm_eps": 2.0}, "below 1"),
    ("lfm2", {"rope_theta": 0}, "'rope_theta'"),
    ("lfm2", {"rope_theta": float("inf")}, "'rope_theta'"),
    ("lfm2", {"rope_theta": 10**400}, "'rope_theta'"),
    ("lfm2", {"rope_parameters": {"rope_type": "yarn"}}, "RoPE type 'yarn' is not supported"),
    ("lfm2", {"rope_parameters": {"conv": {"rope_type": "default"}}}, "differ between layers"),
    ("lfm2", {"rope_parameters": [1]}, "'rope_parameters' must be an object"),
    ("lfm2", {"block_ffn_dim_multiplier": 1e20}, "FFN width"),
    ("lfm2", {"block_multiple_of": 0}, "'block_multiple_of'"),
    ("lfm2", {"eos_token_id": [7, -2]}, "'eos_token_id'"),
    ("lfm2", {"bos_token_id": -5}, "'bos_token_id'"),
    ("lfm2", {"quantization_config": {"quant_method": "gptq"}}, "quantized by 'gptq'"),
    ("llama", {"attention_bias": True}, "attention_bias=true is not supported"),
    ("llama", {"mlp_bias": True}, "mlp_bias=true is not supported"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial RoPE"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "RoPE: 'factor' is missing"),
    (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 0}},
        "RoPE: 'factor' must be a positive finite",
    ),
]


@pytest.mark.parametrize(("base", "changes", "message"), REJECTED)
def test_rejections_name_the_file_and_the_field(
    base: str, changes: dict[str, Any], message: str
) -> None:
    values = {**(LFM2_350M if base == "lfm2" else LLAMA), **changes}
    with pytest.raises(ValueError, match=message) as caught:
        from_hf(values, "dir/config.json")
    assert str(caught.value).startswith("dir/config.json: ")
    assert "\n" not in str(caught.value)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.sampled_from(["", "lfm2", "linear", "llama3", "default", "conv", 0, 1, 2, 16, 1e-300]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
KEYS = sorted({*LFM2_350M, *LLAMA, "layer_types", "head_dim", "rope_parameters", "rope_scaling"})
ROPE_KEYS = ["rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"]


@settings(max_examples=300)
@given(
    st.sampled_from([LFM2_350M, LLAMA]),
    st.dictionaries(st.sampled_from(KEYS), ANYTHING, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(ROPE_KEYS), ANYTHING, max_size=5),
)
def test_any_value_gives_a_configuration_or_a_value_error(
    base: dict[str, Any], changes: dict[str, Any], rope: dict[str, Any]
) -> None:
    try:
        config = from_hf({"rope_parameters": rope, **base, **changes}, "config.json")
    except ValueError as error:
        message = str(error)
        assert len(message) < 400
    else:
        assert config.num_parameters > 0
        assert np.isfinite(config.rope_inv_freq).all()


GGUF_LFM2: dict[str, Any] = {
    "general.architecture": "lfm2",
    "lfm2.block_count": 3,
    "lfm2.context_length": 128,
    "lfm2.embedding_length": 64,
    "lfm2.feed_forward_length": 48,
    "lfm2.attention.head_count": 2,
    "lfm2.attention.head_count_kv": [0, 1, 0],
    "lfm2.attention.layer_norm_rms_epsilon": 1e-5,
    "lfm2.rope.freq_base": 1e6,
    "lfm2.shortconv.l_cache": 4,
    "lfm2.vocab_size": 100,
    "tokenizer.ggml.eos_token_id": 7,
}


def gguf(**changes: Any) -> ModelConfig:
    values = {**GGUF_LFM2, **{key.replace("__", "."): value for key, value in changes.items()}}
    values = {key: value for key, value in values.items() if value is not None}
    return from_gguf(values, {"token_embd.weight": (100, 64)}, None, "m.gguf")


def test_gguf_metadata() -> None:
    config = gguf()
    assert config.layer_types == ("conv", "full_attention", "conv")
    assert (config.num_attention_heads, config.num_key_value_heads) == (2, 1)
    assert (config.intermediate_size, config.conv_L_cache, config.head_dim) == (48, 4, 32)
    assert (config.eos_token_id, config.bos_token_id) == ((7,), None)
    assert config.tie_word_embeddings
    assert gguf(lfm2__vocab_size=None).vocab_size == 100
    assert gguf(tokenizer__ggml__eot_token_id=9).eos_token_id == (7, 9)
    assert gguf(lfm2__feed_forward_length=[48] * 3).intermediate_size == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": "lfm2moe"}, "architecture 'lfm2moe'; supported are"),
        ({"general__architecture": None}, "no architecture"),
        ({"lfm2__block_count": 0}, "'block_count'"),
        ({"lfm2__attention__head_count_kv": [0, 1]}, "must hold 3 numbers"),
        ({"lfm2__attention__head_count_kv": [0, 1, 2]}, "differs between layers"),
        ({"lfm2__attention__head_count_kv": [0, 0, 0]}, "without attention layers"),
        ({"lfm2__attention__head_count": [2, 0, 2]}, "differs between layers"),
        ({"lfm2__attention__key_length": 33}, "must be even"),
        ({"lfm2__attention__value_length": 16}, "value_length differ"),
        ({"lfm2__rope__dimension_count": 16}, "partial RoPE"),
        ({"lfm2__rope__scaling__type": "yarn"}, "RoPE scaling 'yarn'"),
        ({"lfm2__expert_count": 8}, "mixture-of-experts"),
        ({"lfm2__attention__causal": False}, "bidirectional"),
        ({"lfm2__attention__sliding_window": 512}, "sliding-window"),
        ({"lfm2__attention__layer_norm_rms_epsilon": None}, "is missing"),
        ({"lfm2__context_length": "many"}, "'context_length' must be an integer"),
    ],
)
def test_gguf_rejections(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        gguf(**changes)
    assert str(caught.value).startswith("m.gguf: ")


def test_gguf_rope_factors_are_checked() -> None:
    factors = np.full(16, 2, np.float32)
    config = from_gguf(GGUF_LFM2, {}, factors, "m.gguf")
    assert np.array_equal(config.rope_inv_freq, inverse_frequencies(1e6, 32) / np.float32(2))
    with pytest.raises(ValueError, match="8 factors"):
        from_gguf(GGUF_LFM2, {}, factors[:8], "m.gguf")
    with pytest.raises(ValueError, match="positive factors"):
        from_gguf(GGUF_LFM2, {}, -factors, "m.gguf")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_goldens_parse(folder: Path) -> None:
    config = from_hf(json.loads((folder / "config.json").read_text()), "config.json")
    golden = np.load(folder / "golden.npz")
    assert golden["logits"].shape == (len(golden["prompt"]), config.vocab_size)
