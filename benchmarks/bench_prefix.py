"""Time to the first token after a shared prefix, against a cold prefill of the same prompt.

    PYTHONPATH=python python benchmarks/bench_prefix.py FOLDER [--dtype int8] [--threads 2]

Prompts share their first 2,000 tokens and differ in the 20 after them. Rounds are interleaved;
prints medians in milliseconds and the ratio. FOLDER: a checkpoint, e.g. of make_model.py.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lfm_engine import AutoModelForCausalLM
from machine_lock import MachineLock
from tables import format_table


def milliseconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--prefix", type=int, default=2000, help="tokens that prompts share")
    parser.add_argument("--suffix", type=int, default=20, help="tokens of their own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lock", type=Path, help="a lock file to hold while measuring")
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=options.dtype, num_threads=options.threads
    )
    rng = np.random.default_rng(0)
    vocab = min(model.config.vocab_size, 64_000)
    prefix = rng.integers(0, vocab, options.prefix)

    def first_token(prompt: Any) -> Any:
        return model.generate(prompt, max_new_tokens=1, do_sample=False, eos_token_id=[])

    cold, warm, forked = [], [], []
    lock = MachineLock(options.lock)
    for _ in range(options.rounds + 1):  # the first one is not counted
        prompt = np.concatenate([prefix, rng.integers(0, vocab, options.suffix)])
        with lock:
            model.prefix_cache.clear()
            cold.append(milliseconds(lambda p=prompt: first_token(p)))
            prompt = np.concatenate([prefix, rng.integers(0, vocab, options.suffix)])
            warm.append(milliseconds(lambda p=prompt: first_token(p)))
            session = model.session()
            session.append(prompt)
            session.prefill()
            forked.append(milliseconds(session.fork))
    lock.release()
    times = {
        "cold prefill": statistics.median(cold[1:]),
        "shared prefix": statistics.median(warm[1:]),
        "fork of a session (no token)": statistics.median(forked[1:]),
    }
    rows = [
        [name, f"{value:.2f}", f"{times['cold prefill'] / value:.1f}"]
        for name, value in times.items()
    ]
    title = (
        f"First token after {options.prefix} + {options.suffix} tokens, {model.dtype}, "
        f"{model.num_threads} threads"
    )
    print(format_table(title, ["", "ms", "ratio"], rows))


if __name__ == "__main__":
    main()
