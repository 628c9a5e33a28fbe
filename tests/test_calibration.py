"""calibration=: what it measures, what it does to int4 weights, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import golden_models
import tiny_tokenizer
from gguf_writer import write_gguf
from lfm_engine import AutoModelForCausalLM, CausalLM, _core
from lfm_engine.checkpoint import open_checkpoint

RNG = np.random.default_rng(5)
TEXTS = [RNG.integers(0, 131, length) for length in (300, 7, 64)]  # over a chunk of 256 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with inputs that differ much in size, as in trained models."""
    path = tmp_path_factory.mktemp("calibration") / "model"
    golden_models.random_model(
        path, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        layer_types=["conv", "full_attention"], num_attention_heads=4, num_key_value_heads=2,
        norm_spread=2.0, max_position_embeddings=512,
    )  # fmt: skip
    return path


def measure(folder: Path, ids: list[Any], threads: int) -> dict[str, npt.NDArray[np.float32]]:
    with open_checkpoint(folder) as checkpoint:
        model = _core.Model(checkpoint.config, checkpoint, "float32", "cpu", threads)
        return model.input_mean_squares(ids)


def load(folder: Path, **options: Any) -> CausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, num_threads=2, **options)


def test_mean_squares_of_a_layers_inputs(folder: Path) -> None:
    found = measure(folder, TEXTS, 1)
    assert {name.removeprefix("model.layers.") for name in found} == {
        "0.conv.in_proj.weight",
        "0.conv.out_proj.weight",
        "0.feed_forward.w13.weight",
        "0.feed_forward.w2.weight",
        "1.self_attn.qkv_proj.weight",
        "1.self_attn.out_proj.weight",
        "1.feed_forward.w13.weight",
        "1.feed_forward.w2.weight",
    }
    assert found["model.layers.0.feed_forward.w2.weight"].shape == (256,)
    with open_checkpoint(folder) as checkpoint:
        embedding = checkpoint.tensor("model.embed_tokens.weight", (131, 128)).to_float32()
        norm = checkpoint.tensor("model.layers.0.operator_norm.weight", (128,)).to_float32()
    x = embedding[np.concatenate(TEXTS)].astype(np.float64)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * norm
    expected = (x**2).mean(0)
    assert np.allclose(found["model.layers.0.conv.in_proj.weight"], expected, rtol=1e-4)


def test_the_same_bits_on_any_threads(folder: Path) -> None:
    one, three = measure(folder, TEXTS, 1), measure(folder, TEXTS, 3)
    assert all(np.array_equal(one[name], three[name]) for name in one)


def test_int4_is_closer_with_calibration(folder: Path) -> None:
    ids = RNG.integers(0, 131, 100)
    exact = load(folder, dtype="float32")(ids).logits
    errors = []
    for calibration in (None, TEXTS, [text.tolist() for text in TEXTS]):
        model = load(folder, dtype="int4", calibration=calibration)
        assert model.dtype == "int4"
        errors.append(float(np.mean((model(ids).logits - exact) ** 2)))
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] == errors[1]


def test_texts_are_tokenized(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    golden_models.random_model(path, vocab_size=300)
    tokenizer = tiny_tokenizer.load(path)
    texts = ["hello world", "12 hello"]
    ids = np.arange(40)
    found = load(path, dtype="int4", calibration=texts)(ids).logits
    same = load(path, dtype="int4", calibration=[tokenizer.encode(text) for text in texts])
    assert np.array_equal(found, same(ids).logits)
    assert not np.array_equal(found, load(path, dtype="int4")(ids).logits)


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        ("one text", "calibration must be a list"),
        (7, "calibration must be a list"),
        ([], "calibration is empty"),
        ([[1, 2], [0.5]], r"calibration\[1\]: input_ids"),
        ([[1, 2], []], r"calibration\[1\]: input_ids"),
        ([[1, 131]], "outside the vocabulary"),
    ]
    for calibration, message in cases:
        with pytest.raises(ValueError, match=message):
            load(folder, dtype="int4", calibration=calibration)
    with pytest.raises(ValueError, match="calibration is for dtype='int4', not 'bfloat16'"):
        load(folder, calibration=TEXTS)
    with pytest.raises(ValueError, match="inputs are measured in float32, not int4"):
        load(folder, dtype="int4").core.input_mean_squares([np.arange(3)])
    write_gguf(folder, tmp_path / "model.gguf", "Q8_0")
    with pytest.raises(ValueError, match="its weights are quantized"):
        load(tmp_path / "model.gguf", dtype="int4", calibration=TEXTS)


def test_the_core_checks_importance(folder: Path) -> None:
    name = "model.layers.0.conv.in_proj.weight"
    with open_checkpoint(folder) as checkpoint:
        for values, message in (
            (np.ones(127), "importance of tensor 'model.layers.0.conv.in_proj.weight' has 127"),
            (np.full(128, np.nan), "holds nan"),
            (np.full(128, -1.0), "holds -1"),
            (np.ones((1, 128)), "must have 1 dimension"),
        ):
            with pytest.raises(ValueError, match=message):
                _core.Model(checkpoint.config, checkpoint, "int4", importance={name: values})
