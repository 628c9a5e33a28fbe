"""The sequences of a scheduler while they are generated: tokens out, constraints in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint import ModelConfig
from .constraint import Constraint, as_mask
from .generation import GenerationConfig
from .inputs import Ids
from .logits_processing import RowCallbacks, processor_params
from .streamers import IncrementalDecoder, StopStringMatcher

# Tokens drafted at most unless the caller says.
_SPECULATION = 8


@dataclass
class Row:
    """One sequence while it is generated.

    Attributes:
        prompt: its ids, int64 [length].
        tokens: what came.
        finish: why it ended; "" while it runs.
        error: the exception that ended it.
    """

    prompt: Ids
    config: GenerationConfig
    decoder: IncrementalDecoder | None
    matcher: StopStringMatcher | None
    constraint: Constraint | None
    mask: npt.NDArray[np.uint32]  # holds the constraint's answer where it is no bitmask
    callbacks: RowCallbacks
    on_token: Callable[[int], None] | None
    deadline: float | None
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    error: Exception | None = None

    def take(self, token: int, finish: str) -> None:
        """Take the next token; `finish` says that it is the last one."""
        self.tokens.append(token)
        self.callbacks.push(token)
        self.finish = finish
        if finish != "stop" and self.constraint is not None:
            self.constraint.accept(token)
        if finish:
            return
        # Incomplete characters wait: a stop string is text, not bytes.
        if (
            self.matcher is not None
            and self.decoder is not None
            and self.matcher.push(self.decoder.push(token))
        ) or self.callbacks.should_stop():
            self.finish = "stop"


class Rows:
    """The rows that share a scheduler, by the scheduler's ids.

    Args:
        return_exceptions: whether an exception of a row's callables ends this row only.
    """

    def __init__(
        self,
        core: _core.Model,
        model_config: ModelConfig,
        *,
        return_exceptions: bool,
        prefix_cache: _core.PrefixCache | None,
    ) -> None:
        self.scheduler = _core.Scheduler(core, prefix_cache=prefix_cache)
        self.rows: dict[int, Row] = {}
        self._new: list[int] = []  # those with a constraint that was not asked yet
        self._model_config = model_config
        self._return_exceptions = return_exceptions

    def add(
        self,
        prompt: Ids,
        config: GenerationConfig,
        *,
        seed: int | None = None,
        stream: int = 0,
        tokenizer: Any = None,
        constraint: Constraint | None = None,
        processors: Sequence[Callable[..., Any]] = (),
        criteria: Sequence[Callable[..., Any]] = (),
        on_token: Callable[[int], None] | None = None,
        state: _core.State | None = None,
    ) -> int:
        """Add a sequence and return its id.

        Args:
            seed: in place of the configuration's; random where there is none.
            stream: of the random numbers.
            state: what it may go on from.

        Raises:
            ValueError: bad ids or options, or a prompt that leaves no room in the context.
        """
        limit = new_token_limit(config, self._model_config, prompt)
        if seed is None:
            seed = random_seed() if config.seed is None else config.seed
        request = self.scheduler.add(
            prompt,
            max_new_tokens=limit,
            eos_token_ids=end_ids(config, self._model_config),
            do_sample=config.do_sample,
            temperature=config.temperature if config.do_sample else 1.0,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p or 0.0,
            typical_p=config.typical_p,
            epsilon_cutoff=config.epsilon_cutoff,
            eta_cutoff=config.eta_cutoff,
            seed=seed,
            stream=stream,
            processors=processor_params(config, prompt.size),
            speculation=_SPECULATION if config.speculation is None else config.speculation,
        )
        callbacks = RowCallbacks(config, prompt, limit, processors, criteria)
        callbacks.install(self.scheduler, request)
        if state is not None:
            self.scheduler.use_state(request, state)
        strings = config.stop_strings
        self.rows[request] = Row(
            prompt,
            config,
            IncrementalDecoder(tokenizer) if strings else None,
            StopStringMatcher(strings) if strings else None,
            constraint,
            np.empty((self._model_config.vocab_size + 31) // 32, np.uint32),
            callbacks,
            on_token,
            None if config.max_time is None else time.monotonic() + config.max_time,
        )
        if constraint is not None:
            self._new.append(request)
        return request

    def step(self) -> None:
        """One step of all sequences that run."""
        while self._new:
            request = self._new.pop()
            with self._failing(request):
                self._constrain(request)
        if self.scheduler.idle:
            return
        for request, token, finish in self.scheduler.step():
            with self._failing(request):
                self._take(request, token, finish)
                self._constrain(request)
        self._end_late()

    def end(self, request: int, finish: str, error: Exception | None = None) -> None:
        """End a sequence that may have ended already."""
        row = self.rows[request]
        if not row.finish:
            row.finish, row.error = finish, error
            self.scheduler.cancel(request)

    @contextmanager
    def _failing(self, request: int) -> Iterator[None]:
        """An exception ends the sequence; the others go on if the caller wants that."""
        try:
            yield
        except Exception as error:
            if not self._return_exceptions:
                raise
            row = self.rows[request]
            row.finish, row.error = "error", error
            self.scheduler.cancel(request)

    def _end_late(self) -> None:
        now = time.monotonic()
        for request, row in self.rows.items():
            if row.deadline is not None and now >= row.deadline:
                self.end(request, "length")

    def _take(self, request: int, token: int, finish: str) -> None:
        if finish.startswith("error"):
            raise self.scheduler.take_error(request) or RuntimeError(
                f"generation failed: {finish.removeprefix('error: ')}"
            )
        row = self.rows[request]
        row.take(token, finish)
        if row.finish and not finish:
            self.scheduler.cancel(request)
        if row.on_token is not None:
            row.on_token(token)

    def _constrain(self, request: int) -> None:
        """Append what is certain, then say what may be sampled next."""
        row = self.rows[request]
        if row.constraint is None:
            return
        # Where the logits of each token are wanted, the mask alone leaves the same choice.
        jump = not row.callbacks.see_logits
        while jump and not row.finish and (forced := row.constraint.forced()):
            for _, token, finish in self.scheduler.append(request, np.asarray(forced)):
                self._take(request, token, finish)
                if row.finish:
                    break
        if not row.finish and row.constraint.is_finished:
            row.finish = "stop"
            self.scheduler.cancel(request)
        if not row.finish:
            mask = as_mask(row.constraint.allowed(), self._model_config.vocab_size, row.mask)
            self.scheduler.set_mask(request, mask)


def random_seed() -> int:
    """Return a seed that nobody chose."""
    return int.from_bytes(os.urandom(8), "little")


def new_token_limit(config: GenerationConfig, model_config: ModelConfig, prompt: Ids) -> int:
    """Return how many tokens may follow the prompt.

    Raises:
        ValueError: none.
    """
    limit = config.new_token_limit(prompt.size, model_config.max_position_embeddings)
    if limit < 1:
        raise ValueError(
            f"the prompt has {prompt.size} tokens and leaves no room in the model's context "
            f"of {model_config.max_position_embeddings}"
        )
    return limit


def end_ids(config: GenerationConfig, model_config: ModelConfig) -> list[int]:
    """Return the ids that end a sequence."""
    ids = list(config.stop_ids(model_config.eos_token_id))
    if config.eos_token_id is None:
        # A checkpoint may name more special tokens than its vocabulary holds.
        ids = [i for i in ids if i < model_config.vocab_size]
    return ids
