"""From generation options to the core's logits processors, and callables of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .generation import GenerationConfig

Scores = npt.NDArray[np.float32]


def processor_params(config: GenerationConfig, prompt_length: int) -> _core.ProcessorParams:
    """The core's processors for a prompt of this length."""
    params = _core.ProcessorParams()
    params.sequence_bias = config.sequence_bias or []
    params.repetition_penalty = config.repetition_penalty
    params.no_repeat_ngram_size = config.no_repeat_ngram_size
    params.bad_words_ids = config.bad_words_ids or []
    params.min_new_tokens = max(config.min_new_tokens or 0, config.min_length - prompt_length)
    forced = config.forced_eos_token_id
    params.forced_eos_token_ids = [forced] if isinstance(forced, int) else forced or []
    params.remove_invalid_values = config.remove_invalid_values
    if config.exponential_decay_length_penalty is not None:
        start, factor = config.exponential_decay_length_penalty
        params.exponential_decay_start, params.exponential_decay_factor = start, factor
    params.suppress_tokens = config.suppress_tokens or []
    params.begin_suppress_tokens = config.begin_suppress_tokens or []
    return params


def callables(name: str, value: Any) -> list[Callable[..., Any]]:
    """Return a list of callables; one alone is a list of one, None is an empty list.

    Raises:
        ValueError: an entry cannot be called.
    """
    if value is None:
        return []
    entries = list(value) if isinstance(value, Sequence) else [value]
    for entry in entries:
        if not callable(entry):
            raise ValueError(f"{name} must hold callables, not {entry!r}")
    return entries


def log_softmax(row: Scores) -> Scores:
    """Log-probabilities of one row of logits, float32 [vocab]."""
    shifted = row - row.max()
    total = np.exp(shifted).sum(dtype=np.float64)
    logs: Scores = (shifted - np.log(total)).astype(np.float32)
    return logs


class RowCallbacks:
    """What is called and kept for one sequence while it is generated.

    Args:
        prompt: its ids.
        limit: new tokens at most.
        processors: each called as processor(input_ids int64 [1, length], scores float32
            [1, vocab]), which lie in memory of the engine; scores are returned or changed in place.
        criteria: each called as criterion(input_ids, scores) after a token; true ends the sequence.

    Attributes:
        logits: of each token the model's, float32 [1, vocab], if `config.output_logits`.
        scores: what it was chosen from, if `config.output_scores`.
        logprobs: its log-probability by the model's logits, if `config.logprobs`.
        top_logprobs: the likeliest tokens there: ids and log-probabilities, `config.top_logprobs`.
    """

    def __init__(
        self,
        config: GenerationConfig,
        prompt: npt.NDArray[np.int64],
        limit: int,
        processors: Sequence[Callable[..., Any]],
        criteria: Sequence[Callable[..., Any]],
    ) -> None:
        self._config = config
        self._processors = processors
        self._criteria = criteria
        self._length = prompt.size
        self._ids = np.empty(
            (1, prompt.size + limit if processors or criteria else prompt.size), np.int64
        )
        self._ids[0, : prompt.size] = prompt
        self.logits: list[Scores] = []
        self.scores: list[Scores] = []
        self.logprobs: list[float] = []
        self.top_logprobs: list[tuple[npt.NDArray[np.int64], Scores]] = []
        self._row: Scores | None = None  # log-probabilities where the next token is chosen

    @property
    def see_logits(self) -> bool:
        """Whether every token must be sampled, also where it is certain."""
        config = self._config
        return (
            bool(self._processors)
            or config.output_logits
            or config.output_scores
            or config.logprobs
            or config.top_logprobs > 0
        )

    def install(self, scheduler: _core.Scheduler, request: int) -> None:
        """Have the scheduler call what there is."""
        config = self._config
        if config.output_logits or config.logprobs or config.top_logprobs > 0:
            scheduler.set_hook(request, "raw", self._see)
        if self._processors:
            scheduler.set_hook(request, "processed", self._process)
        if self._config.output_scores:
            scheduler.set_hook(request, "scores", self.scores.append)
            scheduler.set_normalize_scores(request, self._config.renormalize_logits)

    def push(self, token: int) -> None:
        """Take the token that came."""
        if self._row is not None:
            self.logprobs.append(float(self._row[token]))
            count = min(self._config.top_logprobs, self._row.size)
            if count:
                # Likeliest first, the lowest id of a tie.
                near = np.flatnonzero(self._row >= np.partition(self._row, -count)[-count])
                ids = near[np.argsort(-self._row[near], kind="stable")][:count]
                self.top_logprobs.append((ids, self._row[ids]))
            self._row = None
        if self._length < self._ids.shape[1]:
            self._ids[0, self._length] = token
            self._length += 1

    def should_stop(self) -> bool:
        """Whether a stopping criterion says so."""
        if not self._criteria:
            return False
        scores = tuple(self.scores) if self._config.output_scores else None
        ids = self._ids[:, : self._length]
        answers = [np.asarray(criterion(ids, scores)) for criterion in self._criteria]
        return any(bool(answer.all()) for answer in answers)

    def _see(self, row: Scores) -> None:
        if self._config.output_logits:
            self.logits.append(row.copy())
        if self._config.logprobs or self._config.top_logprobs:
            self._row = log_softmax(row[0])

    def _process(self, row: Scores) -> None:
        scores = apply_processors(self._processors, self._ids[:, : self._length], row)
        if scores is not row:
            row[:] = scores


def apply_processors(
    processors: Sequence[Callable[..., Any]], ids: npt.NDArray[np.int64], row: Scores
) -> Scores:
    """Return what the processors, in turn, make of `row`, float32 [1, vocab].

    Raises:
        ValueError: one returns something else than scores of this shape.
    """
    scores = row
    for processor in processors:
        result = np.asarray(processor(ids, scores))
        if result.dtype.kind not in "fiu" or result.shape != row.shape:
            raise ValueError(
                f"logits_processor: {processor!r} must return scores of shape "
                f"{list(row.shape)}, not {result.dtype} {list(result.shape)}"
            )
        scores = result.astype(np.float32, copy=False)
    return scores
