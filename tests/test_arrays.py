"""Arrays over the engine's memory: states, weights, logits; views, lifetimes, DLPack."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import golden_models
from golden_models import ACTIVATIONS, DTYPES, Golden
from lfm_engine import AutoModelForCausalLM, CausalLM
from lfm_engine.arrays import BFloat16Array

pytestmark = pytest.mark.engine

TOKENS = 12  # of make_activation_goldens.py
PAGE = 64
KV_TYPES = ("float32", "bfloat16", "int8")


def load(name: str, **options: Any) -> CausalLM:
    path = golden_models.GOLDENS / name
    return AutoModelForCausalLM.from_pretrained(path, num_threads=1, **options)


# ---- states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_states_are_those_of_transformers(name: str) -> None:
    model, expected = golden_models.load(name), golden_models.activations(name)
    state = model.core.new_state()
    model.core.forward(state, golden_models.golden(name).prompt[:TOKENS])
    compared = 0
    for i, kind in enumerate(model.config.layer_types):
        if kind == "conv":
            found = {"conv_state": state.conv(i)}
        else:
            found = {"keys": state.keys(i), "values": state.values(i)}
        for part, array in found.items():
            wanted = expected[f"layers.{i}.{part}"]
            assert array.shape == wanted.shape
            np.testing.assert_allclose(array, wanted, rtol=1e-5, atol=1e-5)
            compared += 1
    assert compared >= model.config.num_hidden_layers


@pytest.mark.parametrize("kv_dtype", KV_TYPES)
@pytest.mark.parametrize("name", ["lfm2-base", "lfm2-block-spelling"])  # head_dim 32 and 36
def test_pages_are_views_with_the_values_that_copies_have(name: str, kv_dtype: str) -> None:
    model = load(name, dtype="float32", kv_dtype=kv_dtype)
    state = model.core.new_state()
    ids = np.arange(100) % 90
    model.core.forward(state, ids)
    layer = model.config.layer_types.index("full_attention")
    kv_heads, head_dim = model.config.num_key_value_heads, model.config.head_dim
    pair = 1 if kv_dtype == "float32" else 2
    for page in range(2):
        keys, values = state.key_page(layer, page), state.value_page(layer, page)
        assert keys.shape == (kv_heads, PAGE, head_dim // pair, pair)
        assert values.shape == (kv_heads, PAGE // pair, pair, head_dim)
        for view in (keys, values):
            assert view.dtype.name == kv_dtype
            assert not view.flags.owndata and not view.flags.writeable
        assert np.shares_memory(keys, state.key_page(layer, page))  # no copy
        assert np.shares_memory(values, state.value_page(layer, page))
        flat = {
            "keys": keys.reshape(kv_heads, PAGE, head_dim).astype(np.float32),
            "values": values.reshape(kv_heads, PAGE, head_dim).astype(np.float32),
        }
        if kv_dtype == "int8":
            for part, scales in (("keys", state.key_scales), ("values", state.value_scales)):
                assert np.shares_memory(scales(layer, page), scales(layer, page))
                flat[part] *= scales(layer, page).astype(np.float32)[..., None]
        count = min(PAGE, 100 - page * PAGE)
        for part, found in flat.items():
            copy = getattr(state, part)(layer)
            assert copy.shape == (kv_heads, 100, head_dim) and copy.flags.writeable
            expected = copy[:, page * PAGE :][:, :count]
            assert np.array_equal(found[:, :count], expected), part
    # The stored values are the activations, rounded.
    with model.hooks.record("layers.*.attention.[kv]") as record:
        model.core.forward(model.core.new_state(), ids)
    tolerance = {"float32": 0, "bfloat16": 2**-8, "int8": 0.01}[kv_dtype]
    for part, point in (("keys", "k"), ("values", "v")):
        exact = record[f"layers.{layer}.attention.{point}"].swapaxes(0, 1)
        found = getattr(state, part)(layer)
        assert np.abs(found - exact).max() <= tolerance * np.abs(exact).max()


def test_the_conv_state_is_a_view(model: CausalLM, base: Golden) -> None:
    state = model.core.new_state()
    assert not state.conv(0).any()
    with model.hooks.record("layers.[02].conv.input") as record:
        model.core.forward(state, base.prompt)
    for layer in (0, 2):
        view = state.conv(layer)
        assert view.shape == (2, 64) and view.dtype == np.float32
        assert np.array_equal(view, record[f"layers.{layer}.conv.input"][-2:])
        assert np.shares_memory(view, state.conv(layer))
        assert not view.flags.owndata
    assert state.conv(2).ctypes.data - state.conv(0).ctypes.data == 2 * 64 * 4
    branch = state.snapshot()
    assert np.shares_memory(branch.conv(0), state.conv(0))  # until one goes on


def test_views_of_a_state_stay_as_they_are(model: CausalLM, base: Golden) -> None:
    core = model.core
    state, other = core.new_state(), core.new_state()
    core.forward(state, base.prompt)
    core.forward(other, base.prompt)
    views = [state.conv(0), state.key_page(1, 0), state.value_page(1, 0)]
    before = [view.copy() for view in views]
    assert np.array_equal(core.forward(state, base.greedy), core.forward(other, base.greedy))
    for view, copy in zip(views, before, strict=True):
        assert np.array_equal(view, copy)
    for view, now in zip(views, [state.conv(0), state.key_page(1, 0)], strict=False):
        assert not np.shares_memory(view, now) and not np.array_equal(view, now)
    # Nobody looks: the next token goes into the same memory.
    del views, view, now
    address = other.key_page(1, 0).ctypes.data
    core.forward(other, base.prompt[:3])
    assert other.key_page(1, 0).ctypes.data == address
    other.truncate(5)
    other.restore(state)
    del state
    gc.collect()
    assert np.isfinite(other.conv(0)).all()


def test_a_write_to_a_read_only_view_raises(base: Golden) -> None:
    model = load("lfm2-base", dtype="int8", kv_dtype="int8")
    state = model.core.new_state()
    model.core.forward(state, base.prompt)
    name = "model.layers.0.conv.in_proj.weight"
    views = [
        state.conv(0),
        state.key_page(1, 0),
        state.value_page(1, 0),
        state.key_scales(1, 0),
        state.value_scales(1, 0),
        model.weights["model.embedding_norm.weight"],
        model.weights["model.layers.0.conv.conv.weight"],
        *model.weights.memory(name),
    ]
    for view in views:
        assert view.size > 0
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
        with pytest.raises(ValueError, match="cannot set WRITEABLE"):
            view.flags.writeable = True
        if view.dtype.name != "bfloat16":
            assert memoryview(view).readonly


def test_views_keep_their_memory_and_nothing_keeps_it_longer(long_folder: Any) -> None:
    def views() -> list[Any]:
        model = AutoModelForCausalLM.from_pretrained(long_folder, dtype="float32", num_threads=1)
        state = model.core.new_state()
        model.core.forward(state, np.arange(8_000) % 131, "last")
        alive.extend([weakref.ref(model), weakref.ref(model.hooks)])
        return [state.conv(0), state.key_page(1, 7), model.weights["model.embedding_norm.weight"]]

    alive: list[Any] = []
    kept = views()
    copies = [view.copy() for view in kept]
    gc.collect()
    assert all(ref() is None for ref in alive)
    churn = [np.full(100_000, 7.0, np.float32) for _ in range(20)]
    for view, copy in zip(kept, copies, strict=True):  # model and state are gone
        assert np.array_equal(view, copy)
    del churn, kept, view
    views()
    before = resident_bytes()
    for _ in range(10):  # 4 MB of pages each
        views()
    assert resident_bytes() - before < 10_000_000


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_what_a_state_does_not_have_is_named(model: CausalLM, base: Golden) -> None:
    state = model.core.new_state()
    model.core.forward(state, base.prompt)
    for call, message in (
        (lambda: state.conv(1), "layer 1 is attention: it has no conv state"),
        (lambda: state.keys(0), "layer 0 is a convolution: it has no K and V"),
        (lambda: state.key_page(4, 0), "layer must be between 0 and 3, not 4"),
        (lambda: state.key_page(1, 1), "page must be between 0 and 0, not 1"),
        (lambda: state.key_page(1, -1), "page must be between 0 and 0, not -1"),
        (lambda: state.key_scales(1, 0), "only int8 K and V have scales, not float32"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    state.truncate(20)
    with pytest.raises(ValueError, match="rebuilt by the next forward pass"):
        state.conv(0)
    model.core.forward(state, base.prompt[20:21])
    fresh = model.core.new_state()
    model.core.forward(fresh, base.prompt[:21])
    assert np.array_equal(state.conv(0), fresh.conv(0))


def test_logits_are_written_where_they_are_asked_for(model: CausalLM, base: Golden) -> None:
    out = np.empty((base.prompt.size, model.config.vocab_size), np.float32)
    found = model.core.forward(model.core.new_state(), base.prompt, out=out)
    assert np.shares_memory(found, out) and found.ctypes.data == out.ctypes.data
    assert np.array_equal(out, model(base.prompt).logits[0])


# ---- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_what_the_model_computes_with(golden: Golden, dtype: str) -> None:
    from lfm_engine.checkpoint import open_checkpoint

    model = golden_models.load(golden.name, dtype)
    tolerance = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.01, "int4": 0.15}[dtype]
    with open_checkpoint(golden.path) as checkpoint:
        shapes = checkpoint.config.tensor_shapes()
        assert set(model.weights) == set(shapes)
        for name, shape in shapes.items():
            stored = checkpoint.tensor(name, shape).to_float32()
            found = model.weights[name]
            assert model.weights.shape(name) == shape == found.shape
            assert found.dtype == np.float32
            matrix = len(shape) == 2
            assert model.weights.is_view(name) == (not matrix)
            assert found.flags.writeable == found.flags.owndata == matrix
            error = np.abs(found - stored).max()
            assert error <= (tolerance if matrix else 0) * np.abs(stored).max(), name
            if matrix:
                assert np.array_equal(model.weights.rows(name, 2, 5), found[2:5])
            else:
                assert np.shares_memory(found, model.weights[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_memory_of_packed_weights(dtype: str) -> None:
    model = golden_models.load("lfm2-base", dtype)
    q, k = (f"model.layers.1.self_attn.{part}_proj.weight" for part in "qk")
    parts = model.weights.memory(q)
    assert sum(part.nbytes for part in parts) >= 64 * 128 // 2
    for part, same in zip(parts, model.weights.memory(k), strict=True):
        assert part.dtype == np.uint8 and not part.flags.owndata
        assert part.ctypes.data == same.ctypes.data  # q, k and v lie in one matrix
    counted = {
        part.ctypes.data: part.nbytes
        for name in model.weights
        if not model.weights.is_view(name)
        for part in model.weights.memory(name)
    }
    # weight_nbytes counts matrices, convolution kernels and the last norm.
    small = sum(model.weights[n].nbytes for n in model.weights if n.endswith("conv.conv.weight"))
    small += model.weights["model.embedding_norm.weight"].nbytes
    assert sum(counted.values()) + small == model.core.weight_nbytes
    assert model.weights.layout(q) not in ("", "float32")


def test_names_of_other_architectures_work() -> None:
    model = golden_models.load("llama-gqa3-rope3-f16")
    same = {
        "model.layers.1.mlp.gate_proj.weight": "model.layers.1.feed_forward.w1.weight",
        "model.layers.0.self_attn.o_proj.weight": "model.layers.0.self_attn.out_proj.weight",
        "model.norm.weight": "model.embedding_norm.weight",
    }
    for theirs, ours in same.items():
        assert np.array_equal(model.weights[theirs], model.weights[ours])
    for wrong in ("model.layers.9.mlp.gate_proj.weight", "nothing"):
        assert wrong not in model.weights
        with pytest.raises(KeyError, match=wrong):
            model.weights[wrong]
    with pytest.raises(ValueError, match="is not a matrix"):
        model.weights.rows("model.norm.weight")
    with pytest.raises(ValueError, match="rows must lie between 0 and 110, not 5 to 111"):
        model.weights.rows("lm_head.weight", 5, 111)


# ---- DLPack ------------------------------------------------------------------------------------


def test_dlpack_of_float_views(model: CausalLM, base: Golden) -> None:
    state = model.core.new_state()
    model.core.forward(state, base.prompt)
    for view in (state.conv(0), state.key_page(1, 0), model.weights["model.norm.weight"]):
        other = np.from_dlpack(view)
        assert other.ctypes.data == view.ctypes.data and np.array_equal(other, view)
        assert not other.flags.writeable


def bfloat16_page(base: Golden) -> Any:
    pytest.importorskip("ml_dtypes")
    model = load("lfm2-base", dtype="bfloat16")
    state = model.core.new_state()
    model.core.forward(state, base.prompt)
    page = state.key_page(1, 0)
    assert isinstance(page, BFloat16Array) and page.dtype.name == "bfloat16"
    return page


def test_dlpack_of_bfloat16(base: Golden) -> None:
    page = bfloat16_page(base)
    with pytest.raises(BufferError, match="cannot say that an array is read-only"):
        page.__dlpack__()
    with pytest.raises(BufferError, match="on the CPU, not on device"):
        page.__dlpack__(max_version=(1, 0), dl_device=(2, 0))
    assert "dltensor_versioned" in repr(page.__dlpack__(max_version=(1, 0)))
    assert '"dltensor"' in repr(page.copy().__dlpack__())
    assert page.__dlpack_device__() == (1, 0)
    part = page[:, ::2]
    assert isinstance(part, BFloat16Array) and np.shares_memory(part, page)
    wide = page.astype(np.float32)
    assert np.array_equal(np.from_dlpack(wide), wide)  # a type that NumPy exports itself
    # A capsule that nobody took frees what it holds.
    copy = page.copy()
    alive = weakref.ref(copy)
    capsule = copy.__dlpack__(max_version=(1, 0))
    del copy
    gc.collect()
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None


def test_torch_takes_bfloat16(base: Golden) -> None:
    torch = pytest.importorskip("torch")
    page = bfloat16_page(base)
    for array in (page, page[:, ::2], page.copy()):
        tensor = torch.from_dlpack(array)
        assert tensor.dtype == torch.bfloat16 and tensor.data_ptr() == array.ctypes.data
        assert tensor.shape == array.shape
        assert np.array_equal(tensor.float().numpy(), array.astype(np.float32))
    alive = weakref.ref(array)
    del array, page
    gc.collect()
    assert alive() is not None  # the tensor keeps it
    del tensor
    gc.collect()
    assert alive() is None


def test_torch_takes_activations_and_changes_them(model: CausalLM, base: Golden) -> None:
    torch = pytest.importorskip("torch")

    def scale(x: Any, _site: Any) -> None:
        torch.from_dlpack(x).mul_(0.5)

    expected = model(base.prompt).logits
    with model.hooks.add("logits", scale):
        assert np.array_equal(model(base.prompt).logits, expected * np.float32(0.5))


def test_without_ml_dtypes_bfloat16_comes_as_its_bits(run_python: Any) -> None:
    done = run_python("""
        sys.modules["ml_dtypes"] = None
        model = golden_models.load("lfm2-base", "bfloat16")
        state = model.core.new_state()
        model.core.forward(state, np.arange(10))
        page = state.key_page(1, 0)
        assert page.dtype == np.uint16 and not page.flags.writeable
        bits = page.reshape(1, 64, 32)[:, :10].astype(np.uint32) << 16
        assert np.array_equal(bits.view(np.float32), state.keys(1))
    """)
    assert done.returncode == 0, done.stderr
