"""The engine inside a process: signals, threads, forks, memory, and what else lives there."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden_models
from conftest import python_command
from golden_models import DTYPES, PLAIN_GREEDY, Golden
from lfm_engine import AutoModelForCausalLM, CausalLM, _core

pytestmark = pytest.mark.engine

RunPython = Callable[..., Any]


# -- Ctrl-C --


def interrupt(code: str) -> tuple[list[str], float]:
    """Run `code` until it prints "ready", send SIGINT; what it printed then, and after how long."""
    process = subprocess.Popen(
        python_command(code), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        output, _ = process.communicate(timeout=30)
        return output.split(), time.monotonic() - sent
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_generation_within_a_token(long_folder: Path, threads: int) -> None:
    words, seconds = interrupt(
        f"""
        import signal
        model = AutoModelForCausalLM.from_pretrained(
            {str(long_folder)!r}, dtype="float32", num_threads={threads})
        tokens = at_signal = 0
        class Streamer:
            def put(self, value):
                global tokens
                tokens += 1
                if tokens == 20:
                    print("ready", flush=True)
            def end(self): pass
        def handler(number, frame):
            global at_signal
            at_signal = tokens
            raise KeyboardInterrupt
        signal.signal(signal.SIGINT, handler)
        try:
            model.generate([1, 2, 3], max_new_tokens=1_000_000, eos_token_id=[],
                           streamer=Streamer())
        except KeyboardInterrupt:
            print("stopped", tokens - at_signal, tokens > 20)
        print(model.generate([1, 2, 3], max_new_tokens=4, eos_token_id=[]).shape[1])
        """
    )
    assert words == ["stopped", "0", "True", "7"]
    assert seconds < 5


@pytest.mark.parametrize(
    "call",
    ["model(long, logits_to_keep=1)", "model.generate(long, max_new_tokens=1)", "model(long)"],
)
def test_ctrl_c_stops_a_long_prompt(long_folder: Path, call: str) -> None:
    words, seconds = interrupt(
        f"""
        model = AutoModelForCausalLM.from_pretrained(
            {str(long_folder)!r}, dtype="float32", num_threads=1)
        long = np.arange(500_000) % 131
        try:
            print("ready", flush=True)
            {call}
        except KeyboardInterrupt:
            print("stopped")
        """
    )
    assert words == ["stopped"]
    assert seconds < 5


# -- threads --


def test_other_threads_run_while_the_engine_computes(long_model: CausalLM) -> None:
    ids = np.arange(2500) % 131
    count, done = 0, threading.Event()

    def counting() -> None:
        nonlocal count
        while not done.is_set():
            count += 1

    thread = threading.Thread(target=counting)
    thread.start()
    try:
        while count == 0:
            time.sleep(0.001)
        counted = 0
        for _ in range(20):  # on a busy machine the other thread may find no core during a step
            before = count
            # One single step: the lock is not taken in between.
            long_model.core.forward(long_model.core.new_state(), ids, "last", chunk=len(ids))
            counted = count - before
            if counted > 1000:
                break
        assert counted > 1000
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_share_a_model(base: Golden, dtype: str, num_threads: int) -> None:
    model = golden_models.load(base.name, dtype, num_threads)
    prompts = [np.roll(base.prompt, i)[: 5 + 3 * i] for i in range(8)]
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "seed": 1}

    def work(prompt: Any) -> tuple[Any, Any, Any]:
        return (
            model(prompt).logits,
            model.generate(prompt, max_new_tokens=20, **PLAIN_GREEDY),
            model.generate(prompt, max_new_tokens=20, **{**PLAIN_GREEDY, **sampling}),
        )

    expected = [work(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, prompts * 3))
    for one, other in zip(found, expected * 3, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_state_in_use_is_refused(long_model: CausalLM) -> None:
    core = long_model.core
    ids = np.arange(4000) % 131
    expected = core.forward(core.new_state(), ids, "last")

    def refused_uses() -> int:
        state, spare = core.new_state(), core.new_state()
        refused, served = 0, False
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(core.forward, state, ids, "last")
            while not (running.done() or served) and refused < 5:
                for use in (
                    lambda: core.forward(state, ids[:1]),
                    lambda: core.forward_batch([spare, state], [ids[:1], ids[:1]]),
                    state.snapshot,
                    lambda: state.restore(spare),
                    lambda: spare.restore(state),
                ):
                    try:
                        use()
                    except RuntimeError as error:
                        assert "in use by another thread" in str(error)
                        refused += 1
                    else:
                        served = True  # it came before the other, or just after
                    if running.done() or served:
                        break
            found = running.result()
        if served:
            return 0
        assert state.length == len(ids)
        assert np.array_equal(found, expected)
        return refused

    # On a busy machine this thread may find no core while the other computes.
    assert any(refused_uses() >= 5 for _ in range(20))


def test_a_streamer_may_use_the_model(model: CausalLM, base: Golden) -> None:
    inner: list[Any] = []

    class Streamer:
        def put(self, value: Any) -> None:
            inner.append(model.generate(base.prompt[:5], max_new_tokens=2, **PLAIN_GREEDY))

        def end(self) -> None:
            pass

    streamer = Streamer()
    found = model.generate(base.prompt, max_new_tokens=24, streamer=streamer, **PLAIN_GREEDY)
    assert found[0, 40:].tolist() == base.greedy.tolist()
    assert all(np.array_equal(one, inner[0]) for one in inner)


# -- forks --


def test_a_fork_after_use_computes_with_one_thread_and_says_so(run_python: RunPython) -> None:
    done = run_python(
        """
        import os, signal, warnings
        model = golden_models.load("lfm2-base", num_threads=2)
        golden = golden_models.golden("lfm2-base")
        run = lambda: model.generate(golden.prompt, max_new_tokens=24, **golden_models.PLAIN_GREEDY)
        expected = run()
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                same = np.array_equal(run(), expected)
            text = [str(w.message) for w in caught if w.category is RuntimeWarning]
            ok = same and len(text) == 1 and "one thread" in text[0]
            ok = ok and _core.forked_after_parallel()
            print(text, same, flush=True)
            os._exit(0 if ok else 1)
        status = os.waitpid(child, 0)[1]
        assert not _core.forked_after_parallel()
        assert np.array_equal(run(), expected)
        raise SystemExit(os.waitstatus_to_exitcode(status))
        """
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fork_before_use_is_free(run_python: RunPython) -> None:
    done = run_python(
        """
        import os, signal
        child = os.fork()
        signal.alarm(20)
        golden = golden_models.golden("lfm2-base")
        model = golden_models.load("lfm2-base", num_threads=2)
        found = model.generate(golden.prompt, max_new_tokens=24, **golden_models.PLAIN_GREEDY)
        assert found[0, 40:].tolist() == golden.greedy.tolist()
        assert not _core.forked_after_parallel()
        if child == 0:
            os._exit(0)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- OpenMP, libraries, memory --


def test_openmp_settings_of_others_are_left_alone(base: Golden) -> None:
    """NumPy and torch set and read these through the same libgomp."""
    openmp = ctypes.CDLL("libgomp.so.1")
    before = openmp.omp_get_max_threads()
    try:
        for setting in (5, 1):
            openmp.omp_set_num_threads(setting)
            for num_threads in (1, 2, 3):
                model = AutoModelForCausalLM.from_pretrained(base.path, num_threads=num_threads)
                model(base.prompt)
                with suppress(ValueError):
                    model([500])
                model.generate(base.prompt, max_new_tokens=3)
                assert openmp.omp_get_max_threads() == setting
                assert openmp.omp_get_dynamic() == 0
    finally:
        openmp.omp_set_num_threads(before)


def test_thread_pools_of_others_are_left_alone(base: Golden) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    before = threadpoolctl.threadpool_info()
    golden_models.load(base.name, num_threads=1).generate(base.prompt, max_new_tokens=3)
    known = {pool["filepath"] for pool in before}
    after = [pool for pool in threadpoolctl.threadpool_info() if pool["filepath"] in known]
    assert after == before


def test_onednn_is_the_one_that_lies_beside_the_module() -> None:
    assert _core.__file__ is not None
    if "site-packages" not in _core.__file__:
        pytest.skip("a development build uses oneDNN where it was found")
    if not _core.measure_gemm("float32", 64, 64, 64, 1):
        pytest.skip("not used on this instruction set")
    maps = Path("/proc/self/maps").read_text().splitlines()
    found = {line.split(maxsplit=5)[5] for line in maps if "libdnnl" in line}
    assert found == {str(Path(_core.__file__).resolve().parent / "libdnnl.so.3")}


def private_bytes() -> int:
    """Memory of this process that is its own, after a collection."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Private_Dirty")


@contextmanager
def memory_stays(limit: int) -> Iterator[None]:
    before = private_bytes()
    yield
    grown = private_bytes() - before
    assert grown < limit, f"grew by {grown} bytes"


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_does_not_grow_with_use(base: Golden, dtype: str) -> None:
    model = golden_models.load(base.name, dtype)
    batch = [base.prompt, base.prompt[:9], np.resize(base.prompt, 90)]

    def use(times: int) -> None:
        for _ in range(times):
            model.generate(batch, max_new_tokens=12, **PLAIN_GREEDY)
            model(base.prompt)
            for bad in ([131], np.zeros(129, np.int64), []):
                with pytest.raises(ValueError, match=r"input_ids|the sequence"):
                    model(bad)
            state = model.core.new_state()
            model.core.forward(state, base.prompt, "last")
            snapshots = [state.snapshot() for _ in range(3)]
            model.core.forward(state, base.prompt, "last")
            state.restore(snapshots[1])

    use(20)
    # One state has 32 KiB or more, and there are 9 in each round.
    with memory_stays(1_500_000):
        use(50 if _core.cpu_info()["isa"] == "reference" else 200)


@pytest.mark.parametrize("dtype", DTYPES)
def test_models_give_their_memory_back(base: Golden, tmp_path: Path, dtype: str) -> None:
    lying = golden_models.changed_copy("lfm2-base", tmp_path / "model", vocab_size=132)

    def load(times: int) -> None:
        for _ in range(times):
            model = AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype, num_threads=2)
            model.generate([1, 2], max_new_tokens=2)
            with pytest.raises(ValueError, match="embed_tokens"):
                AutoModelForCausalLM.from_pretrained(lying, dtype=dtype, num_threads=2)

    load(10)
    # The weights have 100 to 400 kB: 30 lost models would be 3 MB or more.
    with memory_stays(2_000_000):
        load(30)
    open_files = os.listdir("/proc/self/fd")
    load(3)
    assert len(os.listdir("/proc/self/fd")) <= len(open_files)


def test_loading_warns_of_nothing(base: Golden) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoModelForCausalLM.from_pretrained(base.path).generate([1, 2], max_new_tokens=2)
