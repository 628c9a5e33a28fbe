"""The engine: requests from threads and asyncio get what each gets alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden_models
from golden_models import DTYPES, PLAIN_GREEDY
from lfm_engine import AutoModelForCausalLM, CausalLM, Engine
from lfm_engine.streamers import BaseStreamer

pytestmark = pytest.mark.engine

VOCAB = 131


def ids(count: int, seed: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, VOCAB, count).tolist()
    return tokens


@pytest.fixture(scope="module")
def endless(long_folder: Path) -> CausalLM:
    """A model whose sequences may go on for as long as one likes."""
    return AutoModelForCausalLM.from_pretrained(long_folder, dtype="float32", num_threads=1)


@pytest.fixture
def engine(endless: CausalLM) -> Iterator[Engine]:
    with Engine(endless) as engine:
        yield engine


FOREVER: dict[str, Any] = {**PLAIN_GREEDY, "max_new_tokens": 1_000_000}

REQUEST = st.fixed_dictionaries(
    {
        "length": st.integers(1, 90),
        "max_new_tokens": st.integers(1, 14),
        "do_sample": st.booleans(),
        "seed": st.integers(0, 3),
        "speculation": st.sampled_from([None, 0, 3]),
        "delay": st.sampled_from([0.0, 0.0, 0.002]),
        "cancel_after": st.sampled_from([None, None, None, 0, 1, 4]),
    }
)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=12)
@given(requests=st.lists(REQUEST, min_size=1, max_size=9), running=st.sampled_from([None, 1, 2, 5]))
def test_random_arrivals(dtype: str, requests: list[dict[str, Any]], running: int | None) -> None:
    """Any lengths, arrivals, cancellations and neighbours: the same tokens and the same logits."""
    model = golden_models.load("lfm2-base", dtype, 2)
    wanted, given_options = [], []
    for number, request in enumerate(requests):
        prompt = ids(request["length"], number % 4)  # some begin alike
        options: dict[str, Any] = {
            **PLAIN_GREEDY,
            "output_logits": True,
            **{k: request[k] for k in ("max_new_tokens", "do_sample", "seed", "speculation")},
        }
        given_options.append((prompt, options))
        model.prefix_cache.max_bytes = 0
        wanted.append(model.generate(prompt, return_dict_in_generate=True, **options))
    model.prefix_cache.max_bytes = 1 << 20
    with Engine(model, max_running=running) as engine:
        handles = []
        for (prompt, options), request in zip(given_options, requests, strict=True):
            time.sleep(request["delay"])
            handles.append(engine.submit(prompt, **options))
            if request["cancel_after"] is not None:
                for _, _ in zip(range(request["cancel_after"]), handles[-1], strict=False):
                    pass
                handles[-1].cancel()
        for handle, want, request in zip(handles, wanted, requests, strict=True):
            got = handle.result(60)
            count = got.sequences.shape[1]
            assert np.array_equal(got.sequences, want.sequences[:, :count])
            if got.finish_reasons == ["cancelled"]:
                assert request["cancel_after"] is not None
            else:
                assert got.finish_reasons == want.finish_reasons
                assert count == want.sequences.shape[1]
            for a, b in zip(got.logits or (), want.logits, strict=False):
                assert np.array_equal(a, b)


def test_tokens_come_one_by_one_in_threads(engine: Engine, endless: CausalLM) -> None:
    options: dict[str, Any] = {**PLAIN_GREEDY, "max_new_tokens": 12}
    want = [endless.generate([ids(20 + i, i)], **options)[0, 20 + i :].tolist() for i in range(8)]
    got: dict[int, list[int]] = {}

    def work(number: int) -> None:
        got[number] = list(engine.submit(ids(20 + number, number), **options))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(8)] == want


def test_asyncio(engine: Engine, endless: CausalLM) -> None:
    options: dict[str, Any] = {**PLAIN_GREEDY, "max_new_tokens": 9}
    want = endless.generate([5, 6, 7], **options)

    async def main() -> None:
        request = engine.submit([5, 6, 7], **options)
        both = await asyncio.gather(request, engine.submit([5, 6, 7], **options))
        assert all(np.array_equal(output.sequences, want) for output in both)
        assert [token async for token in request] == want[0, 3:].tolist()
        endless_one = engine.submit([1, 2], **FOREVER)
        seen = []
        async for token in endless_one:
            seen.append(token)
            if len(seen) == 5:
                endless_one.cancel()
        output = await endless_one
        assert output.finish_reasons == ["cancelled"]
        assert output.sequences[0, 2:].tolist() == seen
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await engine.submit([1, 99999])

    asyncio.run(main())


def test_a_callable_that_raises_ends_its_request_only(engine: Engine) -> None:
    def bad(ids: Any, scores: Any) -> Any:
        raise LookupError("mine")

    good = engine.submit(ids(9, 1), **PLAIN_GREEDY, max_new_tokens=30)
    wrong = engine.submit(ids(9, 1), logits_processor=bad, max_new_tokens=30)
    with pytest.raises(LookupError, match="mine"):
        wrong.result(30)
    with pytest.raises(LookupError, match="mine"):
        list(wrong)
    assert good.result(30).finish_reasons == ["length"]
    assert wrong.done


def test_streamers(engine: Engine) -> None:
    class Recorder(BaseStreamer):
        def __init__(self, fail_at: int = -1) -> None:
            self.got: list[Any] = []
            self.fail_at = fail_at

        def put(self, value: Any) -> None:
            self.got.append(np.asarray(value).tolist())
            if len(self.got) == self.fail_at:
                raise LookupError("streamer")

        def end(self) -> None:
            self.got.append("end")

    recorder, broken = Recorder(), Recorder(3)
    request = engine.submit([4, 5], streamer=recorder, **PLAIN_GREEDY, max_new_tokens=3)
    tokens = list(request)
    assert recorder.got == [[[4, 5]], *([token] for token in tokens), "end"]
    with pytest.raises(LookupError, match="streamer"):
        engine.submit([4, 5], streamer=broken, **PLAIN_GREEDY, max_new_tokens=9).result(30)


def test_memory_budget(endless: CausalLM) -> None:
    """Requests that would not fit wait; one that never fits is refused."""

    class Counter:
        """Called by the engine's thread alone."""

        started = running = peak = 0

        def put(self, ids: Any) -> None:
            if ids.ndim == 2:  # the prompt
                self.started += 1
                self.running += 1
                self.peak = max(self.peak, self.running)

        def end(self) -> None:
            self.running -= 1

    one = endless.state_nbytes(100)
    assert endless.state_nbytes(65) - endless.state_nbytes(64) > 0
    with Engine(endless, max_state_bytes=2 * one) as engine:
        with pytest.raises(ValueError, match=r"100064 tokens.*more than max_state_bytes"):
            engine.submit(ids(64, 1), max_new_tokens=100_000)
        counter = Counter()
        options: dict[str, Any] = {**PLAIN_GREEDY, "max_new_tokens": 36, "streamer": counter}
        requests = [engine.submit(ids(64, i), **options) for i in range(6)]
        for i, request in enumerate(requests):
            want = endless.generate(ids(64, i), **PLAIN_GREEDY, max_new_tokens=36)
            assert np.array_equal(request.result().sequences, want)
    assert counter.started == 6 and counter.running == 0
    assert counter.peak <= 2


def test_close(endless: CausalLM) -> None:
    engine = Engine(endless, max_running=1)
    running, waiting = engine.submit([1], **FOREVER), engine.submit([2], **FOREVER)
    next(iter(running))
    with pytest.raises(TimeoutError, match="did not end within"):
        waiting.result(0.01)
    engine.close(cancel=True)
    assert running.result().finish_reasons == waiting.result().finish_reasons == ["cancelled"]
    assert waiting.result().sequences.tolist() == [[2]]
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.submit([1])
    running.cancel()
    engine.close()
    with pytest.raises(LookupError), Engine(endless) as other:
        request = other.submit([1], **FOREVER)
        raise LookupError
    assert request.result().finish_reasons == ["cancelled"]


def test_close_while_a_request_starts(endless: CausalLM) -> None:
    engine = Engine(endless)

    class Closes:
        """First called by the engine's thread between a request's leaving the queue and its run."""

        called = False

        def put(self, ids: Any) -> None:
            if not self.called:
                self.called = True
                engine.close(cancel=True)

        def end(self) -> None:
            pass

    request = engine.submit([1], streamer=Closes(), **FOREVER)
    try:
        assert request.result(30).finish_reasons == ["cancelled"]
    finally:
        request.cancel()
    engine.close()


def test_a_result_that_cannot_be_made_is_an_error_of_its_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("mine")

    with monkeypatch.context() as patch:
        patch.setattr("lfm_engine.engine.output_of", fail)
        with pytest.raises(MemoryError, match="mine"):
            engine.submit([1], **PLAIN_GREEDY, max_new_tokens=3).result(30)
    again = engine.submit([1], **PLAIN_GREEDY, max_new_tokens=3)
    assert again.result(30).finish_reasons == ["length"]


def test_a_fault_of_the_engine_reaches_all_who_wait(
    endless: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(endless, max_running=1)
    running, waiting = engine.submit([1], **FOREVER), engine.submit([2], **FOREVER)
    next(iter(running))
    monkeypatch.setattr(engine._rows, "end", lambda *_: {}["mine"])
    running.cancel()
    for request in (running, waiting):
        with pytest.raises(KeyError, match="mine"):
            request.result(30)
    with pytest.raises(RuntimeError, match="closed") as caught:
        engine.submit([1])
    assert isinstance(caught.value.__cause__, KeyError)


def test_wrong_arguments(engine: Engine, endless: CausalLM) -> None:
    for name in ("max_state_bytes", "max_running"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            Engine(endless, **{name: 0})
    for wrong, message in (
        ({"input_ids": [[1, 2], [3, 4]]}, "takes one prompt, not 2"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [1], "num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ({"input_ids": [1], "stop_strings": "x"}, "stop_strings needs tokenizer="),
        ({"input_ids": [1], "constraint": 5}, "constraint"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            engine.submit(**wrong)
    with pytest.raises(ValueError, match="-1"):
        engine.submit([-1]).result(30)


def test_a_program_that_forgets_it_ends(run_python: Any) -> None:
    done = run_python("""
        from lfm_engine import Engine
        model = golden_models.load("lfm2-base")
        request = Engine(model).submit([1, 2], max_new_tokens=90, eos_token_id=[])
        next(iter(request))
        print("left")
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["left"]
