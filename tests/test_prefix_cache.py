"""The prefix cache: it changes how much is computed, and nothing else."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_models import DTYPES, PLAIN_GREEDY
from lfm_engine import AutoModelForCausalLM, CausalLM, _core

pytestmark = pytest.mark.engine

VOCAB = 131


def load(folder: Path, dtype: str = "float32", kv_dtype: str = "auto") -> CausalLM:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, kv_dtype=kv_dtype, num_threads=2
    )


def random_ids(count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, VOCAB, count)


@pytest.mark.parametrize("dtype, kv_dtype", [*((d, "auto") for d in DTYPES), ("int8", "int8")])
@settings(max_examples=8)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 150), st.integers(1, 40)), min_size=1, max_size=5),
        min_size=2,
        max_size=4,
    ),
    budget=st.sampled_from([100_000, 1 << 30]),
)
def test_results_are_the_same_with_and_without(
    long_folder: Path,
    dtype: str,
    kv_dtype: str,
    batches: list[list[tuple[int, int]]],
    budget: int,
) -> None:
    """Prompts that share any number of tokens, in one call and in later ones."""
    key = (dtype, kv_dtype)
    if key not in MODELS:
        MODELS[key] = load(long_folder, *key)
    model = MODELS[key]
    shared = random_ids(150, 0)
    for batch in batches:
        prompts = [np.concatenate([shared[:n], random_ids(k, n + k)]) for n, k in batch]
        options: dict[str, Any] = {**PLAIN_GREEDY, "max_new_tokens": 5, "seed": 1}
        options["do_sample"] = len(batch) % 2 == 0
        model.prefix_cache.max_bytes = 0
        expected = [list(row) for row in model.generate([*prompts, [1]], **options)]
        assert model.prefix_cache.nbytes == 0
        model.prefix_cache.max_bytes = budget
        for _ in range(2):
            found = model.generate([*prompts, [1]], **options)
            assert [list(row) for row in found] == expected
            assert 0 < model.prefix_cache.nbytes <= budget


MODELS: dict[tuple[str, str], CausalLM] = {}


def test_a_shared_instruction_is_computed_once(long_folder: Path) -> None:
    model = load(long_folder)
    cache = model.prefix_cache
    instruction = random_ids(777, 1)
    prompts = [np.concatenate([instruction, random_ids(9, seed)]) for seed in range(20)]
    model.generate(prompts, max_new_tokens=2, **PLAIN_GREEDY)
    assert cache.reused_tokens == 19 * 777
    model.generate(prompts[3][:500], max_new_tokens=2, **PLAIN_GREEDY)
    assert cache.reused_tokens == 19 * 777 + 499
    assert cache.match(prompts[3]) == 786
    assert cache.match(random_ids(50, 99)) <= 1
    cache.clear()
    assert cache.nbytes == 0
    assert cache.match(prompts[3]) == 0


def test_a_session_uses_it_too(long_folder: Path) -> None:
    model = load(long_folder)
    model.generate(random_ids(300, 2), max_new_tokens=2, **PLAIN_GREEDY)
    session = model.session()
    session.append(random_ids(300, 2))
    session.generate(max_new_tokens=2, **PLAIN_GREEDY)
    assert model.prefix_cache.reused_tokens == 299
    expected = model.core.forward(model.core.new_state(), session.tokens, "last")[0]
    assert np.array_equal(session.logits(), expected)


def test_threads_share_it(long_folder: Path) -> None:
    model = load(long_folder)
    model.prefix_cache.max_bytes = 200_000  # too small for all
    shared = random_ids(200, 3)
    prompts = [np.concatenate([shared[: 40 * i], random_ids(30, i)]) for i in range(6)]
    plain: dict[str, Any] = {**PLAIN_GREEDY, "max_new_tokens": 4}
    expected = [model.generate(prompt, **plain).tolist() for prompt in prompts]
    failures: list[Any] = []

    def work(first: int) -> None:
        for turn in range(12):
            index = (first + turn) % len(prompts)
            if model.generate(prompts[index], **plain).tolist() != expected[index]:
                failures.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert model.prefix_cache.nbytes <= 200_000


def test_wrong_arguments(model: CausalLM, long_model: CausalLM) -> None:
    cache = _core.PrefixCache(model.core, 1000)
    with pytest.raises(ValueError, match="max_bytes must not be negative, not -1"):
        cache.max_bytes = -1
    with pytest.raises(ValueError, match="max_bytes must not be negative"):
        _core.PrefixCache(model.core, -5)
    with pytest.raises(ValueError, match="the prefix cache belongs to another model"):
        _core.Scheduler(long_model.core, prefix_cache=cache)
    assert cache.max_bytes == 1000
