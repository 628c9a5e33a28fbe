"""Many prompts through the engine; each answer is passed on when it is complete."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..constraint import Constraint
from ..engine import Engine, Request
from ..generation import GenerationConfig
from ..rows import end_ids

BATCH_SIZE = 64


@dataclass(frozen=True)
class Job:
    """A prompt to answer: its ids, and a constraint unless the answer is free."""

    prompt: list[int]
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Answer:
    """What a prompt got.

    Attributes:
        index: the prompt's.
        prompt_tokens: their count.
        ids: new tokens, without the one that ends the answer.
        new_tokens: their count, with it.
        finish_reason: "stop", "length" or "error".
        error: why there is no answer.
    """

    index: int
    prompt_tokens: int
    ids: list[int]
    new_tokens: int
    finish_reason: str
    error: str | None = None


def answer_all(
    model: Any,
    tokenizer: Any,
    jobs: Iterable[Job],
    config: GenerationConfig,
    on_answer: Callable[[Answer], None],
    *,
    batch_size: int = BATCH_SIZE,
) -> None:
    """Answer all prompts, up to `batch_size` of them at a time: when one ends the next begins.

    Args:
        model: a `CausalLM`.
        tokenizer: for stop strings.
        jobs: taken as they are needed.
        config: `max_new_tokens` must be set; it is less where the context ends.
        on_answer: gets each answer when it is complete. What it raises ends everything.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    context = model.config.max_position_embeddings
    limit = int(config.max_new_tokens or 0)
    eos_ids = frozenset(end_ids(config, model.config))
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    running: dict[int, Request] = {}
    upcoming = enumerate(jobs)

    with Engine(model, max_running=batch_size) as engine:

        def submit() -> bool:
            """Hand over the next prompt; False if there is none."""
            for index, job in upcoming:
                length = len(job.prompt)
                if length >= context:
                    reason = f"the prompt has {length} tokens, the model's context {context}"
                    on_answer(Answer(index, length, [], 0, "error", reason))
                    continue
                running[index] = engine.submit(
                    np.array(job.prompt, np.int64),
                    config,
                    tokenizer=tokenizer,
                    constraint=job.constraint,
                    streamer=_Bell(ended, index),
                    max_new_tokens=min(limit, context - length),
                )
                return True
            return False

        # Some wait in the engine, so that it never waits for us.
        more = True
        while more and len(running) < 2 * batch_size:
            more = submit()
        while running:
            index = ended.get()
            on_answer(_answer(index, running.pop(index), eos_ids))
            more = more and submit()


def _answer(index: int, request: Request, eos_ids: frozenset[int]) -> Answer:
    length = request.prompt.size
    try:
        out = request.result()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Answer(index, length, [], 0, "error", reason)
    ids = [int(token) for token in np.asarray(out.sequences)[0, length:]]
    count, finish = len(ids), out.finish_reasons[0]
    if finish == "stop" and ids and ids[-1] in eos_ids:
        ids = ids[:-1]
    return Answer(index, length, ids, count, finish)


class _Bell:
    """A streamer that only tells when its request has ended."""

    def __init__(self, ended: queue.SimpleQueue[int], index: int) -> None:
        self._ended = ended
        self._index = index

    def put(self, value: Any) -> None:
        pass

    def end(self) -> None:
        self._ended.put(self._index)

    def fail(self, error: BaseException) -> None:
        self._ended.put(self._index)
