"""Logits: those of transformers, and the same bits however the work is cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import golden_models
from gguf_writer import write_gguf
from golden_models import DTYPES, NAMES, PLAIN_GREEDY, Golden
from lfm_engine import AutoModelForCausalLM, CausalLM, _core

pytestmark = pytest.mark.engine

Logits = npt.NDArray[np.float32]

# Largest allowed distance from transformers' float32 logits. For float32 it is absolute; for the
# others in standard deviations of the logits, which these tiny models round worse than real ones:
# a sum of 24 to 96 products averages out less. Measured: bfloat16 0.04 to 0.20 (rms 0.008 to
# 0.020), int8 0.18 to 0.42 (rms 0.03 to 0.053).
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.3, "int8": 0.6, "int4": 2.5}
RMS_TOLERANCE = {"bfloat16": 0.03, "int8": 0.08, "int4": 0.5}


def in_chunks(model: CausalLM, ids: npt.NDArray[Any], chunk: int) -> Logits:
    """All logits through the core, `chunk` tokens a step."""
    return model.core.forward(model.core.new_state(), ids, "all", chunk=chunk)


def call_by_call(model: CausalLM, ids: npt.NDArray[Any], sizes: list[int]) -> Logits:
    """All logits, the state going from call to call; the last size repeats."""
    state = model.core.new_state()
    parts, begin = [], 0
    while begin < len(ids):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        parts.append(model.core.forward(state, ids[begin : begin + size]))
        begin += size
    assert state.length == len(ids)
    return np.concatenate(parts)


def test_prefill_equals_transformers(golden: Golden) -> None:
    logits = golden_models.load(golden.name)(golden.prompt[None]).logits
    assert logits.shape == (1, *golden.logits.shape)
    assert np.abs(logits[0] - golden.logits).max() < TOLERANCE["float32"]


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_chunked_prefill_equals_transformers(golden: Golden, chunk: int) -> None:
    logits = in_chunks(golden_models.load(golden.name), golden.prompt, chunk)
    assert np.abs(logits - golden.logits).max() < TOLERANCE["float32"]


def test_decode_equals_transformers(golden: Golden) -> None:
    logits = call_by_call(golden_models.load(golden.name), golden.prompt, [25, 1])
    assert np.abs(logits - golden.logits).max() < TOLERANCE["float32"]


@pytest.mark.parametrize("threads", [1, 2])
def test_greedy_continuations_equal_transformers(golden: Golden, threads: int) -> None:
    assert golden.min_gap > 100 * TOLERANCE["float32"]  # no near-ties: any difference is an error
    model = golden_models.load(golden.name, num_threads=threads)
    new = golden.greedy.size
    found = model.generate(golden.prompt, max_new_tokens=new, **PLAIN_GREEDY)
    assert found[0].tolist() == [*golden.prompt.tolist(), *golden.greedy.tolist()]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_dtypes_are_close(golden: Golden, dtype: str) -> None:
    logits = golden_models.load(golden.name, dtype)(golden.prompt).logits[0]
    difference = np.abs(logits - golden.logits)
    scale = float(golden.logits.std())
    largest, rms = difference.max() / scale, np.sqrt((difference**2).mean()) / scale
    print(f"{golden.name} {dtype}: largest {largest:.4f}, rms {rms:.4f} of the logits' deviation")
    assert largest < TOLERANCE[dtype]
    assert rms < RMS_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_in_any_chunk_and_thread_count(golden: Golden, dtype: str) -> None:
    ids = np.concatenate([golden.prompt, golden.greedy, golden.prompt[:16]])  # over a KV page
    expected = in_chunks(golden_models.load(golden.name, dtype), ids, len(ids))
    assert np.isfinite(expected).all()
    for threads in (1, 2, 3):
        model = golden_models.load(golden.name, dtype, threads)
        assert model.num_threads == threads
        assert np.array_equal(model(ids).logits[0], expected)
        for chunk in (1, 2, 7, 16, 17, 64):
            assert np.array_equal(in_chunks(model, ids, chunk), expected), (threads, chunk)
        assert np.array_equal(call_by_call(model, ids, [2, 5, 31, 1, 8]), expected), threads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_in_any_batch(golden: Golden, dtype: str, threads: int) -> None:
    model = golden_models.load(golden.name, dtype, threads)
    rng = np.random.default_rng(0)
    others = [rng.integers(0, model.config.vocab_size, size) for size in (1, 7, 40, 64, 100)]
    alone = in_chunks(model, golden.prompt, 256)
    last = [in_chunks(model, row, 256)[-1] for row in others]
    for batch in ([1], [0, 2], [0, 1, 2, 3, 4]):
        rows = [others[i] for i in batch]
        states = [model.core.new_state() for _ in range(len(rows) + 1)]
        # The prompt in the middle, all prefilled together; then each decodes beside the others.
        middle = len(rows) // 2
        ids = [*rows[:middle], golden.prompt[:-4], *rows[middle:]]
        found = model.core.forward_batch(states, ids)
        assert np.array_equal(found[middle], alone[-5])
        for place, which in enumerate(batch):
            row = place + (place >= middle)
            assert np.array_equal(found[row], last[which])
        for step in range(-4, 0):
            tokens = [golden.prompt[step : len(golden.prompt) + step + 1]] * len(states)
            assert np.array_equal(model.core.forward_batch(states, tokens)[middle], alone[step])
    if golden.prompt.size <= 40:
        pair = model(np.stack([golden.prompt[::-1], golden.prompt])).logits
        assert np.array_equal(pair[1], alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_in_long_contexts(long_folder: Path, dtype: str) -> None:
    """Long enough for attention to be split over the KV length."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 131, 2100)
    expected: Logits | None = None
    for threads, sizes in ((1, [256]), (2, [1000]), (3, [2090, 1]), (1, [61]), (2, [1999, 101])):
        model = AutoModelForCausalLM.from_pretrained(long_folder, dtype=dtype, num_threads=threads)
        logits = call_by_call(model, ids, list(sizes))
        expected = logits if expected is None else expected
        assert np.array_equal(logits, expected), (threads, sizes)


WIDTHS = {"wide-mlp": (256, 4608, 8), "wide": (1024, 768, 16)}  # hidden, intermediate, heads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_same_bits_at_real_widths(
    width: str, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Sums as long as LFM2-350M's, and enough features for matrices to be cut among threads."""
    hidden, intermediate, heads = WIDTHS[width]
    folder = golden_models.random_model(
        tmp_path_factory.mktemp(width) / "model",
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        layer_types=["conv", "full_attention"],
    )
    length = 12 if _core.cpu_info()["isa"] == "reference" else 40  # that one is slow
    ids = np.random.default_rng(2).integers(0, 1000, length)
    expected: Logits | None = None
    for threads in (1, 2, 3):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, num_threads=threads)
        for sizes in ([length], [length - 9, 4, 3, 2], [2, 1]):
            logits = call_by_call(model, ids, list(sizes))
            expected = logits if expected is None else expected
            assert np.array_equal(logits, expected), (threads, sizes)
        rows = [ids[:n] for n in (1, 2, 9)]
        found = model.core.forward_batch([model.core.new_state() for _ in rows], rows)
        assert np.array_equal(found, expected[[0, 1, 8]])


@pytest.mark.parametrize("name", NAMES)
def test_gguf_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    golden = golden_models.golden(name)
    write_gguf(golden.path, tmp_path / "model.gguf", "F32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model.gguf", num_threads=1)
    assert model.dtype == "float32"
    assert np.abs(model(golden.prompt).logits[0] - golden.logits).max() < TOLERANCE["float32"]
    found = model.generate(golden.prompt, max_new_tokens=24, **PLAIN_GREEDY)
    assert found[0, golden.prompt.size :].tolist() == golden.greedy.tolist()


@pytest.mark.parametrize(
    ("qtype", "dtype"),
    [
        ("Q8_0", "int8"),
        ("Q5_0", "int8"),
        ("Q5_1", "int8"),
        ("Q5_K", "int8"),
        ("Q6_K", "int8"),
        ("Q4_0", "int4"),
        ("Q4_1", "int4"),
        ("Q4_K_M", "int4"),
    ],
)
def test_quantized_gguf_runs_as_it_is(qtype: str, dtype: str, tmp_path: Path) -> None:
    """What the file holds is not rounded again, or not so that it could be seen: the difference
    from the same values in float32 is that of int8 activations, alike for all types."""
    folder = golden_models.random_model(
        tmp_path / "folder", hidden_size=256, intermediate_size=512, num_attention_heads=4
    )
    write_gguf(folder, tmp_path / "model.gguf", qtype)
    ids = np.random.default_rng(3).integers(0, 131, 24)
    logits = []
    for name in ("auto", dtype, "float32"):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model.gguf", dtype=name, num_threads=2
        )
        assert model.dtype == ("float32" if name == "float32" else dtype)
        logits.append(model(ids).logits[0])
    assert np.array_equal(logits[0], logits[1])
    assert np.sqrt(np.mean((logits[0] - logits[2]) ** 2)) < 0.06 * logits[2].std()


def test_six_bits_of_gguf_are_kept_in_int4(tmp_path: Path) -> None:
    folder = golden_models.random_model(
        tmp_path / "folder", hidden_size=256, intermediate_size=512, num_attention_heads=4
    )
    for qtype, layouts in (("Q6_K", {"panels:q6"}), ("Q4_K_M", {"panels:q6", "panels:q4_mins"})):
        write_gguf(folder, tmp_path / "model.gguf", qtype)
        models = [
            AutoModelForCausalLM.from_pretrained(tmp_path / "model.gguf", dtype=dtype)
            for dtype in ("int4", "float32")
        ]
        found, stored = (model.weights for model in models)
        six_bits = [name for name in found if found.layout(name) == "panels:q6"]
        assert {found.layout(name) for name in found} >= layouts
        assert "model.embed_tokens.weight" in six_bits
        for name in six_bits:
            assert np.array_equal(found[name], stored[name]), name


def test_embedding_of_floats_has_six_bits_in_int4(base: Golden) -> None:
    found = golden_models.load("lfm2-base", "int4").weights
    layouts = {name: found.layout(name) for name in found}
    assert layouts.pop("model.embed_tokens.weight") == "panels:q6"
    assert set(layouts.values()) == {"float32", "panels:q4"}


def test_auto_dtype_keeps_the_stored_values() -> None:
    expected = {"lfm2-base": "bfloat16", "lfm2-hd128-f32": "float32"}
    expected["llama-gqa3-rope3-f16"] = "float32"
    for name, dtype in expected.items():
        model = AutoModelForCausalLM.from_pretrained(golden_models.GOLDENS / name)
        assert model.dtype == dtype
    assert golden_models.load("lfm2-base", "bfloat16").dtype == "bfloat16"


def test_a_dtype_may_be_spelled_as_torch_does(base: Golden) -> None:
    class Dtype:
        def __str__(self) -> str:
            return "torch.bfloat16"

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=Dtype(), num_threads=1)
    assert model.dtype == "bfloat16"


def test_attributes(model: CausalLM) -> None:
    assert model.device == "cpu"
    assert model.config.architecture == "lfm2"
    shapes = model.config.tensor_shapes().values()
    assert model.num_parameters() == sum(int(np.prod(shape)) for shape in shapes)
    assert "lfm2" in repr(model)
    assert model.core.isa in repr(model)


def test_batches_and_masks(model: CausalLM, base: Golden) -> None:
    one, other = base.prompt[:12], base.prompt[12:17]
    padded = np.zeros((2, 12), np.int64)
    padded[0], padded[1, 7:] = one, other
    mask = np.ones_like(padded)
    mask[1, :7] = 0
    logits = model(padded, attention_mask=mask).logits
    assert logits.shape == (2, 12, 131)
    assert np.array_equal(logits[0], model(one).logits[0])
    assert np.array_equal(logits[1, 7:], model(other).logits[0])
    assert not logits[1, :7].any()
    assert np.array_equal(logits, model(padded.tolist(), attention_mask=mask == 1).logits)


@pytest.mark.parametrize("keep", [0, 1, 2, 5, 12, 99])
def test_logits_to_keep(model: CausalLM, base: Golden, keep: int) -> None:
    rows = base.prompt[:24].reshape(2, 12)
    everything = model(rows).logits
    found = model(rows, logits_to_keep=keep).logits
    assert np.array_equal(found, everything[:, -keep:] if keep else everything)


def test_logits_are_a_plain_array_of_the_callers(model: CausalLM, base: Golden) -> None:
    for logits in (model(base.prompt).logits, in_chunks(model, base.prompt, 8)):
        assert type(logits) is np.ndarray
        assert logits.dtype == np.float32
        assert logits.flags.owndata
        assert logits.flags.writeable
        assert logits.flags.c_contiguous
        before = logits.copy()
        logits[:] = 7  # nobody else's memory
        again = (
            model(base.prompt).logits[0] if logits.ndim == 3 else in_chunks(model, base.prompt, 8)
        )
        assert np.array_equal(again, before.reshape(again.shape))


def test_out_is_written_in_place(model: CausalLM, base: Golden) -> None:
    expected = in_chunks(model, base.prompt, 256)
    out = np.full((40, 131), np.nan, np.float32)
    returned = model.core.forward(model.core.new_state(), base.prompt, "all", out=out)
    assert np.shares_memory(returned, out)
    assert np.array_equal(out, expected)
    last = np.empty((1, 131), np.float32)
    model.core.forward(model.core.new_state(), base.prompt, "last", out=last)
    assert np.array_equal(last[0], expected[-1])
