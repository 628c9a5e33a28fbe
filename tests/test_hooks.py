"""Hooks against transformers, bit for bit where they change nothing, and their lifetimes."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import golden_models
from golden_models import ACTIVATIONS, DTYPES, PLAIN_GREEDY, Golden
from lfm_engine import AutoModelForCausalLM, CausalLM, _core

pytestmark = pytest.mark.engine

TOKENS = 12  # of make_activation_goldens.py
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=ACTIVATIONS)
def inside(request: pytest.FixtureRequest) -> tuple[CausalLM, Any, dict[str, Any]]:
    """A model in float32, the ids, and what transformers computes from them."""
    name = request.param
    ids = golden_models.golden(name).prompt[:TOKENS]
    return golden_models.load(name), ids, golden_models.activations(name)


def test_hidden_states_and_attentions_are_those_of_transformers(inside: Any) -> None:
    model, ids, expected = inside
    out = model(ids, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    for found, wanted in zip(out.hidden_states, expected["hidden_states"], strict=True):
        assert found.shape == (1, *wanted.shape)
        np.testing.assert_allclose(found[0], wanted, **CLOSE)
    wanted = [expected[name] for name in sorted(expected) if name.endswith("attention.probs")]
    assert len(out.attentions) == len(wanted)
    for found, probs in zip(out.attentions, wanted, strict=True):
        assert found.shape == (1, *probs.shape)
        np.testing.assert_allclose(found[0], probs, **CLOSE)
    assert model(ids).hidden_states is None and model(ids).attentions is None


def test_activations_are_those_of_transformers(inside: Any) -> None:
    model, ids, expected = inside
    with model.hooks.record("*") as record:
        model(ids)
    assert list(record) == model.hooks.points
    compared = 0
    for name, wanted in expected.items():
        if name in record:
            found = record[name].reshape(wanted.shape)
            np.testing.assert_allclose(found, wanted, err_msg=name, **CLOSE)
            compared += 1
        if name.endswith("conv.in_proj"):
            b, _, x = np.split(wanted, 3, axis=1)
            found = record[name.replace("in_proj", "input")]
            np.testing.assert_allclose(found, b * x, **CLOSE)
        if name.endswith((".keys", ".values")):
            point = name.replace("keys", "attention.k").replace("values", "attention.v")
            np.testing.assert_allclose(record[point].swapaxes(0, 1), wanted, **CLOSE)
    assert compared >= 2 * model.config.num_hidden_layers
    streams = [record[f"layers.{i}.output"] for i in range(model.config.num_hidden_layers)]
    for found, wanted in zip(streams, expected["hidden_states"][1:-1], strict=False):
        np.testing.assert_allclose(found, wanted, **CLOSE)
    np.testing.assert_allclose(record["norm"], expected["hidden_states"][-1], **CLOSE)


def test_points_of_a_layer_add_up(inside: Any) -> None:
    """What has no counterpart in transformers' modules fits together with what has one."""
    model, ids, _ = inside
    with model.hooks.record("*") as record:
        logits = model(ids).logits[0]
    assert np.array_equal(record["logits"], logits)
    for i, kind in enumerate(model.config.layer_types):
        at = {name: record[f"layers.{i}.{name}"] for name in ("input", "middle", "output")}
        block = "conv" if kind == "conv" else "attention"
        added = record[f"layers.{i}.{block}.output"]
        np.testing.assert_allclose(at["input"] + added, at["middle"], **CLOSE)
        added = record[f"layers.{i}.mlp.output"]
        np.testing.assert_allclose(at["middle"] + added, at["output"], **CLOSE)
        weight = model.weights[f"model.layers.{i}.feed_forward.w2.weight"]
        np.testing.assert_allclose(record[f"layers.{i}.mlp.gated"] @ weight.T, added, **CLOSE)
        norm = model.weights[f"model.layers.{i}.ffn_norm.weight"]
        x = at["middle"]
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + model.config.norm_eps) * norm
        np.testing.assert_allclose(record[f"layers.{i}.ffn_norm"], x, **CLOSE)
        if kind == "conv":
            continue
        q, k, v, probs, heads = (
            record[f"layers.{i}.attention.{name}"] for name in ("q", "k", "v", "probs", "heads")
        )
        group = q.shape[1] // k.shape[1]
        scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, group, 1))
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(2, keepdims=True))
        np.testing.assert_allclose(weights / weights.sum(2, keepdims=True), probs, **CLOSE)
        mixed = np.einsum("hqk,khd->qhd", probs, np.repeat(v, group, 1))
        np.testing.assert_allclose(mixed, heads, **CLOSE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hook_that_changes_nothing_changes_no_bit(golden: Golden, dtype: str) -> None:
    model = golden_models.load(golden.name, dtype)
    expected = model(golden.prompt).logits
    seen: list[str] = []

    def look(x: npt.NDArray[np.float32], site: _core.HookSite) -> None:
        seen.append(site.name)

    for point in model.hooks.points:
        with model.hooks.add(point, look):
            assert np.array_equal(model(golden.prompt).logits, expected), point
    assert seen == model.hooks.points
    with model.hooks.add("*", look):
        assert np.array_equal(model(golden.prompt).logits, expected)
        new = model.generate(golden.prompt, max_new_tokens=24, **PLAIN_GREEDY)
    assert np.array_equal(new, model.generate(golden.prompt, max_new_tokens=24, **PLAIN_GREEDY))


def test_every_point_but_the_probabilities_can_be_changed(golden: Golden) -> None:
    model = golden_models.load(golden.name)
    expected = model(golden.prompt).logits
    for point in model.hooks.points:

        def change(x: npt.NDArray[np.float32], _site: _core.HookSite) -> None:
            x[5:] *= 1.5  # of the tokens from the sixth on

        if point.endswith("probs"):
            with model.hooks.add(point, change), pytest.raises(ValueError, match="read-only"):
                model(golden.prompt)
            continue
        with model.hooks.add(point, change):
            found = model(golden.prompt).logits
        assert np.array_equal(found[:, :5], expected[:, :5]), point  # causal, and row by row
        # The norm before a layer's blocks takes a common factor of the stream away again.
        assert not np.array_equal(found[:, 5:], expected[:, 5:]), point
    assert np.array_equal(model(golden.prompt).logits, expected)


def test_an_ablation_is_that_of_transformers(inside: Any) -> None:
    model, ids, expected = inside
    with model.hooks.add("layers.1.mlp.output", lambda x, site: np.zeros_like(x)):
        found = model(ids).logits[0]
    np.testing.assert_allclose(found, expected["ablated"], rtol=1e-4, atol=1e-4)
    assert np.abs(found - model(ids).logits[0]).max() > 0.01


@pytest.mark.parametrize("point", ["conv.input", "conv.in_proj"])
def test_a_changed_convolution_input_is_what_the_state_keeps(model: CausalLM, point: str) -> None:
    ids = golden_models.golden("lfm2-base").prompt[:TOKENS]
    state = model.core.new_state()

    def change(x: npt.NDArray[np.float32], _site: _core.HookSite) -> None:
        x[...] = 2.0

    with model.hooks.add(f"layers.0.{point}", change):
        model.core.forward(state, ids)
    assert np.all(state.conv(0) == (2.0 if point == "conv.input" else 4.0))


def test_changed_keys_and_values_are_what_the_state_keeps(model: CausalLM) -> None:
    ids = golden_models.golden("lfm2-base").prompt[:TOKENS]
    state = model.core.new_state()
    with (
        model.hooks.add("layers.1.attention.k", lambda x, site: np.full_like(x, 3)),
        model.hooks.add("layers.1.attention.v", lambda x, site: np.full_like(x, 4)),
    ):
        model.core.forward(state, ids)
    assert np.all(state.keys(1) == 3) and np.all(state.values(1) == 4)
    assert not np.all(state.keys(3) == 3)


def test_arrays_are_the_engines_memory_and_stay_when_kept(model: CausalLM) -> None:
    ids = golden_models.golden("lfm2-base").prompt
    addresses: dict[str, list[int]] = {}

    def look(x: npt.NDArray[np.float32], site: _core.HookSite) -> None:
        assert not x.flags.owndata
        addresses.setdefault(site.name.split(".")[-1], []).append(x.ctypes.data)

    streams = "layers.*.middle", "layers.*.output"
    with model.hooks.add(list(streams), look):
        model(ids)
    # One residual stream for all layers, that nobody kept and nobody copied.
    assert len(set(addresses["middle"] + addresses["output"])) == 1
    with model.hooks.record(*streams) as record:
        out = model(ids, output_hidden_states=True)
    assert len({array.ctypes.data for array in record.values()}) == len(record)
    for i in range(1, model.config.num_hidden_layers):
        kept = record[f"layers.{i - 1}.output"]
        assert np.array_equal(kept, out.hidden_states[i][0])
    kept = record["layers.0.output"]
    before = kept.copy()
    kept[...] = 0  # ours now
    assert np.array_equal(model(ids).logits, out.logits)
    assert not np.array_equal(kept, before)


def test_kept_activations_are_freed_with_their_last_view(long_model: CausalLM) -> None:
    ids = np.arange(2_000) % 131
    long_model(ids, logits_to_keep=1)

    def run() -> None:
        with long_model.hooks.record("layers.*.output") as record:
            long_model(ids, logits_to_keep=1)
        part = record.passes("layers.2.output")[3][:4]
        alive = weakref.ref(record)
        del record
        gc.collect()
        assert alive() is None
        assert np.isfinite(part).all()  # it alone keeps its memory

    run()
    before = resident_bytes()
    for _ in range(40):  # 2 MB of activations each
        run()
    assert resident_bytes() - before < 20_000_000


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_a_model_with_hooks_that_refer_to_it_is_freed(base: Golden) -> None:
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype="float32", num_threads=1)

    def hook(_x: npt.NDArray[np.float32], _site: _core.HookSite, owner: Any = model) -> None:
        assert owner.config is not None

    model.hooks.add("norm", hook)
    model(base.prompt)
    alive, core = weakref.ref(model), weakref.ref(model.hooks)
    del model, hook
    gc.collect()
    assert alive() is None and core() is None


def test_an_exception_reaches_the_caller_and_changes_no_state(model: CausalLM) -> None:
    ids = golden_models.golden("lfm2-base").prompt
    state = model.core.new_state()
    model.core.forward(state, ids[:10], "last")
    snapshot = state.snapshot()
    for point in model.hooks.points:

        def fail(_x: npt.NDArray[np.float32], site: _core.HookSite) -> None:
            raise KeyError(site.name)

        with model.hooks.add(point, fail):
            with pytest.raises(KeyError, match=point):
                model.core.forward(state, ids[10:20])
            with pytest.raises(KeyError, match=point):
                model.generate(ids, max_new_tokens=2)
        assert state.length == 10
        assert np.array_equal(state.conv(0), snapshot.conv(0))
    expected = model.core.forward(snapshot, ids[10:20])
    assert np.array_equal(model.core.forward(state, ids[10:20]), expected)


def test_a_batch_in_one_pass_says_whose_rows_are_whose(model: CausalLM) -> None:
    ids = golden_models.golden("lfm2-base").prompt
    states = [model.core.new_state() for _ in range(2)]
    model.core.forward(states[0], ids[:3], "last")
    sites: dict[str, list[Any]] = {"norm": [], "logits": [], "layers.1.attention.probs": []}

    def look(x: npt.NDArray[np.float32], site: _core.HookSite) -> None:
        sites[site.name].append((x.shape, site.sequences.tolist(), site.positions.tolist()))

    with model.hooks.add(list(sites), look):
        model.core.forward_batch(states, [ids[:2], ids[:3]])
    assert sites["norm"] == [((5, 64), [0, 0, 1, 1, 1], [3, 4, 0, 1, 2])]
    assert sites["logits"] == [((2, 131), [0, 1], [4, 2])]
    assert sites["layers.1.attention.probs"] == [
        ((2, 2, 5), [0, 0], [3, 4]),
        ((2, 3, 3), [1, 1, 1], [0, 1, 2]),
    ]


def test_left_padding_of_hidden_states(model: CausalLM) -> None:
    ids = golden_models.golden("lfm2-base").prompt[:8]
    rows = np.stack([ids, np.concatenate([np.zeros(3, ids.dtype), ids[:5]])])
    mask = np.array([[1] * 8, [0] * 3 + [1] * 5])
    out = model(rows, mask, output_hidden_states=True, output_attentions=True)
    alone = model(ids[:5], output_hidden_states=True, output_attentions=True)
    for both, one in zip(out.hidden_states, alone.hidden_states, strict=True):
        assert np.array_equal(both[1, 3:], one[0]) and not both[1, :3].any()
    for both, one in zip(out.attentions, alone.attentions, strict=True):
        assert np.array_equal(both[1, :, 3:, 3:], one[0]) and not both[1, :, :3].any()


def test_chunks_change_no_bit_of_what_is_captured(long_model: CausalLM) -> None:
    ids = np.arange(600) % 131  # three passes
    with long_model.hooks.record("layers.1.attention.probs", "norm", "layers.0.conv.input") as r:
        out = long_model(ids, output_hidden_states=True, output_attentions=True)
    assert [array.shape[0] for array in r.passes("norm")] == [256, 256, 88]
    assert np.array_equal(r["norm"], out.hidden_states[-1][0])
    assert np.array_equal(r["layers.1.attention.probs"], out.attentions[0][0])
    np.testing.assert_allclose(out.attentions[0].sum(-1), 1, rtol=1e-5)
    small = long_model.core.new_state()
    with long_model.hooks.record("*") as chunked:
        long_model.core.forward(small, ids, chunk=7)
    for name in r:
        assert np.array_equal(chunked[name], r[name]), name


def test_hooks_do_not_meet_the_prefix_cache(base: Golden) -> None:
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype="float32", num_threads=1)
    prompt = np.concatenate([base.prompt, base.prompt])
    plain = model.generate(prompt, max_new_tokens=8, **PLAIN_GREEDY)
    assert model.prefix_cache.match(prompt) > 0
    with model.hooks.add("layers.1.attention.v", lambda x, site: -x):
        with model.hooks.record("norm") as record:
            changed = model.generate(prompt, max_new_tokens=8, **PLAIN_GREEDY)
        assert record["norm"].shape[0] == prompt.size + 7  # the whole prompt was computed
    assert not np.array_equal(changed, plain)
    assert np.array_equal(model.generate(prompt, max_new_tokens=8, **PLAIN_GREEDY), plain)


def test_a_rewind_replays_with_its_hooks(model: CausalLM) -> None:
    """The conv state is rebuilt by running tokens again: the hooks must see them, too."""
    ids = golden_models.golden("lfm2-base").prompt
    with model.hooks.add("layers.*.conv.input", lambda x, site: x * 1.25):
        straight, rewound = model.core.new_state(), model.core.new_state()
        expected = model.core.forward(straight, ids)
        model.core.forward(rewound, ids)
        rewound.truncate(20)
        assert np.array_equal(model.core.forward(rewound, ids[20:]), expected[20:])
    model.core.forward(rewound := model.core.new_state(), ids)
    with model.hooks.record("layers.1.attention.k", "norm") as record:
        model.core.forward(rewound, ids[:1])  # nothing to replay
        rewound.truncate(20)
        model.core.forward(rewound, ids[20:24])
    one, replayed = record.passes("layers.1.attention.k")
    assert one.shape[0] == 1
    assert replayed.shape[0] == 4 + 4  # two convolutions that look two tokens back
    assert np.array_equal(replayed.swapaxes(0, 1)[:, 2:], rewound.keys(1)[:, 18:])


def test_records_see_what_other_hooks_leave(model: CausalLM, base: Golden) -> None:
    with (
        model.hooks.record("norm") as record,
        model.hooks.add("norm", lambda x, site: x.fill(2)),
        model.hooks.add("norm", lambda x, site: x + 1),
    ):
        model(base.prompt)
    assert np.all(record["norm"] == 3)


def test_order_patterns_and_removal(model: CausalLM) -> None:
    ids = golden_models.golden("lfm2-base").prompt[:4]
    calls: list[str] = []
    first = model.hooks.add("layers.[02].conv.*", lambda x, site: calls.append(f"a {site.name}"))
    second = model.hooks.add("layers.0.conv.input", lambda x, site: calls.append(f"b {site.name}"))
    assert len(model.hooks) == 2 and len(first.points) == 8
    model(ids)
    points = ("in_proj", "input", "gated", "output")
    expected = [f"a layers.{i}.conv.{point}" for i in (0, 2) for point in points]
    expected.insert(2, "b layers.0.conv.input")
    assert calls == expected
    first.remove()
    first.remove()
    calls.clear()
    model(ids)
    assert calls == ["b layers.0.conv.input"]
    model.hooks.clear()
    second.remove()
    model(ids)
    assert calls == ["b layers.0.conv.input"] and len(model.hooks) == 0


def test_misuse_is_named(model: CausalLM) -> None:
    ids = golden_models.golden("lfm2-base").prompt[:4]
    for wrong in ("layers.1.conv.input", "layers.9.input", "nothing", ["norm", "layers.x"]):
        with pytest.raises(ValueError, match="no point of this model matches"):
            model.hooks.add(wrong, lambda x, site: None)
    with (
        model.hooks.add("norm", lambda x, site: x[:1]),
        pytest.raises(ValueError, match=r"hook at norm: it returned the shape \(1, 64\)"),
    ):
        model(ids)
    with (
        model.hooks.add("layers.1.attention.probs", lambda x, site: x * 2),
        pytest.raises(ValueError, match="cannot be changed"),
    ):
        model(ids)
    state = model.core.new_state()
    with (
        model.hooks.add("norm", lambda x, site: state.conv(0)),
        pytest.raises(RuntimeError, match="the state is in use"),
    ):
        model.core.forward(state, ids)
    with pytest.raises(ValueError, match="there is no point 'x'"):
        model.core.set_taps(type("Taps", (), {"names": ["x"]})())
    assert len(model.hooks) == 0


def test_threads_share_a_model_with_hooks(model: CausalLM) -> None:
    ids = golden_models.golden("lfm2-base").prompt
    expected = model(ids, output_hidden_states=True)
    found: list[bool] = []

    def work() -> None:
        for _ in range(20):
            out = model(ids, output_hidden_states=True)
            same = zip(out.hidden_states, expected.hidden_states, strict=True)
            found.append(all(np.array_equal(a, b) for a, b in same))

    threads = [threading.Thread(target=work) for _ in range(3)]
    with model.hooks.add("layers.*.middle", lambda x, site: x):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 60


def test_generate_gives_the_states_of_each_step(model: CausalLM) -> None:
    """As transformers': the prompt's first, then those of each new token but the last."""
    padded = np.array([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    options: dict[str, Any] = {**PLAIN_GREEDY, "max_new_tokens": 6, "attention_mask": mask}
    options |= {"return_dict_in_generate": True, "output_hidden_states": True}
    free = model.generate(padded, **options)
    stop = int(free.sequences[0, 6])  # ends the first row after three tokens, at the latest
    out = model.generate(padded, **{**options, "eos_token_id": [stop]})
    assert len(out.hidden_states) == max(out.new_tokens)
    layers = model.config.num_hidden_layers
    for row, (start, count) in enumerate(zip((2, 0), out.new_tokens, strict=True)):
        ids = out.sequences[row, start : 4 + count - 1]
        want = model(ids[None], output_hidden_states=True).hidden_states
        for layer in range(layers + 1):
            first = out.hidden_states[0][layer]
            assert first.shape == (2, 4, model.config.hidden_size)
            assert not first[row, :start].any()
            assert np.array_equal(first[row, start:], want[layer][0, : 4 - start])
            for step in range(1, len(out.hidden_states)):
                got = out.hidden_states[step][layer]
                assert got.shape == (2, 1, model.config.hidden_size)
                if step < count:
                    assert np.array_equal(got[row, 0], want[layer][0, 4 - start + step - 1])
                else:
                    assert np.isnan(got[row]).all()
    with pytest.raises(ValueError, match="needs return_dict_in_generate"):
        model.generate(padded, output_hidden_states=True)
    with pytest.raises(ValueError, match="needs prompts of one length"):
        model.generate([[1, 2], [3]], output_hidden_states=True, return_dict_in_generate=True)
