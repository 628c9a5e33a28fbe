"""Sequence states: snapshot, restore, branches, and steps of several sequences at once."""

from __future__ import annotations

import numpy as np
import pytest

import golden_models
from golden_models import DTYPES, Golden
from lfm_engine import CausalLM

pytestmark = pytest.mark.engine


def test_a_new_state_is_empty_and_grows_with_the_tokens(model: CausalLM, base: Golden) -> None:
    state = model.core.new_state()
    assert state.length == 0
    empty = state.nbytes
    model.core.forward(state, base.prompt, "last")
    assert state.length == base.prompt.size
    one_page = state.nbytes
    assert one_page > empty
    model.core.forward(state, base.prompt[:24], "last")  # 64 tokens fill the page
    assert state.nbytes == one_page
    model.core.forward(state, base.prompt[:1], "last")
    assert state.nbytes == 2 * one_page - empty


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", [1, 20, 63, 64, 65])
def test_restore_is_bit_equal_to_a_fresh_prefill(golden: Golden, dtype: str, cut: int) -> None:
    core = golden_models.load(golden.name, dtype).core
    text = np.concatenate([golden.prompt, golden.greedy, golden.prompt])
    head, tail, other = text[:cut], text[cut : cut + 30], text[::-1][:30]
    state = core.new_state()
    core.forward(state, head, "last")
    snapshot = state.snapshot()
    expected = core.forward(core.new_state(), np.concatenate([head, tail]))[cut:]
    for detour in (other, other[:1], tail):
        core.forward(state, detour, "last")
        state.restore(snapshot)
        assert state.length == cut
        assert np.array_equal(core.forward(state, tail), expected)
        state.restore(snapshot)
    assert np.array_equal(core.forward(snapshot, tail), expected)  # itself a state


def test_branches_do_not_touch_each_other(model: CausalLM, base: Golden) -> None:
    """Pages are shared until one side writes: both continue in the middle of one page."""
    core = model.core
    trunk = core.new_state()
    core.forward(trunk, base.prompt, "last")
    branches = [trunk.snapshot() for _ in range(3)]
    tokens = [np.array([i, 2 * i, 3 * i]) for i in range(1, 4)]
    found = [core.forward(b, t) for b, t in zip(branches, tokens, strict=True)]
    del trunk
    for branch, row, logits in zip(branches, tokens, found, strict=True):
        fresh = core.forward(core.new_state(), np.concatenate([base.prompt, row, row]))
        assert np.array_equal(logits, fresh[-6:-3])
        assert np.array_equal(core.forward(branch, row), fresh[-3:])


def test_a_snapshot_costs_little(long_model: CausalLM) -> None:
    core = long_model.core
    state = core.new_state()
    core.forward(state, np.arange(4_000) % 131, "last")
    assert state.nbytes > 1_500_000
    before = resident_bytes()
    snapshots = [state.snapshot() for _ in range(100)]
    assert resident_bytes() - before < state.nbytes
    assert all(snapshot.length == state.length for snapshot in snapshots)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_restore_can_go_forward_and_to_itself(model: CausalLM, base: Golden) -> None:
    core = model.core
    state, other = core.new_state(), core.new_state()
    core.forward(state, base.prompt[:30], "last")
    core.forward(other, base.prompt[:10], "last")
    other.restore(state)
    state.restore(state)
    rest = base.prompt[30:]
    assert np.array_equal(core.forward(other, rest), core.forward(state, rest))


def test_forward_batch_advances_every_state(model: CausalLM, base: Golden) -> None:
    core = model.core
    rows = [base.prompt[:1], base.prompt[:9], base.prompt]
    states = [core.new_state() for _ in rows]
    logits = core.forward_batch(states, rows)
    assert logits.shape == (3, 131)
    assert logits.dtype == np.float32
    assert [state.length for state in states] == [1, 9, 40]
    for row, found in zip(rows, logits, strict=True):
        assert np.array_equal(core.forward(core.new_state(), row, "last")[0], found)
    assert core.forward_batch([], []).shape == (0, 131)


def test_errors_leave_states_as_they_were(model: CausalLM, base: Golden) -> None:
    core = model.core
    states = [core.new_state(), core.new_state()]
    core.forward_batch(states, [base.prompt[:5], base.prompt[:6]])
    bad = [
        ([base.prompt[:1]], "differ in length"),
        ([base.prompt[:1], np.array([131])], "input_ids holds 131, outside the vocabulary of 131"),
        ([np.array([-1]), base.prompt[:1]], "input_ids holds -1"),
        ([base.prompt[:1], np.zeros(0, np.int64)], "input_ids is empty"),
        ([base.prompt[:1], np.zeros(123, np.int64)], "129 tokens, more than the model's context"),
        ([base.prompt[:1], np.array([1.0])], "must hold integers"),
        ([base.prompt[:1], np.zeros((1, 1), np.int64)], "1 dimension"),
    ]
    for ids, message in bad:
        with pytest.raises(ValueError, match=message):
            core.forward_batch(states, ids)
    with pytest.raises(RuntimeError, match="each may occur once"):
        core.forward_batch([states[0], states[0]], [base.prompt[:1], base.prompt[:1]])
    assert [state.length for state in states] == [5, 6]
    expected = core.forward(core.new_state(), base.prompt[:7])
    assert np.array_equal(core.forward(states[0], base.prompt[5:7]), expected[5:])
    assert np.array_equal(core.forward(states[1], base.prompt[6:7]), expected[6:])


def test_wrong_arguments_of_forward(model: CausalLM, base: Golden) -> None:
    core = model.core
    prompt = base.prompt
    state = core.new_state()
    with pytest.raises(ValueError, match="logits must be 'all' or 'last', not 'some'"):
        core.forward(state, prompt, "some")
    with pytest.raises(ValueError, match="chunk must be >= 1, not 0"):
        core.forward(state, prompt, chunk=0)
    with pytest.raises(ValueError, match=r"out must be .* float32 array of shape \[40, 131\]"):
        core.forward(state, prompt, out=np.empty((39, 131), np.float32))
    with pytest.raises(ValueError, match="out must be a C-contiguous"):
        core.forward(state, prompt, out=np.empty((131, 40), np.float32).T)
    with pytest.raises(TypeError):
        core.forward(state, prompt, out=np.empty((40, 131), np.float64))  # type: ignore[arg-type]
    readonly = np.empty((40, 131), np.float32)
    readonly.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        core.forward(state, prompt, out=readonly)
    assert state.length == 0


def test_states_belong_to_their_model(model: CausalLM, base: Golden) -> None:
    other = golden_models.load("lfm2-base", "bfloat16").core
    with pytest.raises(ValueError, match="the state belongs to another model"):
        model.core.forward(other.new_state(), base.prompt)
    with pytest.raises(ValueError, match="the state belongs to another model"):
        model.core.forward_batch(
            [model.core.new_state(), other.new_state()], [base.prompt, base.prompt]
        )
    state = model.core.new_state()
    model.core.forward(state, base.prompt, "last")
    foreign = other.new_state()
    foreign.restore(state)  # takes over what it is: then it is of the first model
    with pytest.raises(ValueError, match="another model"):
        other.forward(foreign, base.prompt)


def test_a_state_outlives_its_model(base: Golden) -> None:
    model = golden_models.load.__wrapped__("lfm2-base")
    state = model.core.new_state()
    model.core.forward(state, base.prompt, "last")
    del model
    assert state.snapshot().length == 40
