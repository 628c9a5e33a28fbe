"""Many prompts through the engine, in batches; each answer is passed on when it is complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..constraint import Constraint
from ..generate import end_ids
from ..generation import GenerationConfig

BATCH_SIZE = 64


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
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    on_answer: Callable[[Answer], None],
    *,
    batch_size: int = BATCH_SIZE,
    constraints: Sequence[Constraint | None] | None = None,
) -> None:
    """Answer all prompts, `batch_size` of them at a time, in order.

    Args:
        model: a `CausalLM`.
        tokenizer: for stop strings.
        prompts: ids.
        config: `max_new_tokens` must be set; it is less where the context ends.
        on_answer: gets each answer when it is complete, before its batch is. What it raises ends
            everything.
        constraints: one for each prompt, or None for one that is free.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    context = model.config.max_position_embeddings
    limit = int(config.max_new_tokens or 0)
    for begin in range(0, len(prompts), batch_size):
        together: list[int] = []
        alone: list[int] = []
        for index in range(begin, min(begin + batch_size, len(prompts))):
            length = len(prompts[index])
            if length >= context:
                reason = f"the prompt has {length} tokens, the model's context {context}"
                on_answer(Answer(index, length, [], 0, "error", reason))
            else:
                (together if length + limit <= context else alone).append(index)
        for group in (together, *([index] for index in alone)):
            if group:
                room = context - max(len(prompts[index]) for index in group)
                _Batch(
                    model,
                    tokenizer,
                    {index: prompts[index] for index in group},
                    config.merged(max_new_tokens=min(limit, room)),
                    on_answer,
                    None if constraints is None else [constraints[index] for index in group],
                ).run()


class _Batch:
    """One call of `generate`, which tells of each row's tokens through a stopping criterion.

    A criterion is not asked about the token that ends a row. So it is the criterion that ends rows,
    at the same tokens, unless an option needs the engine to know them. Rows that reach the limit
    are told of when all are done, which is then.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: dict[int, Sequence[int]],
        config: GenerationConfig,
        on_answer: Callable[[Answer], None],
        constraints: list[Constraint | None] | None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._config = config.merged(return_dict_in_generate=True)
        self._on_answer = on_answer
        self._constraints: dict[int, Constraint] = {}
        if constraints is not None:
            self._constraints = {
                index: _Free() if constraint is None else constraint
                for index, constraint in zip(prompts, constraints, strict=True)
            }
        self._ends = frozenset(end_ids(config, model.config))
        self._rows: dict[int, int] = {}  # where a row's ids lie in memory: its prompt
        self._unseen: dict[bytes, list[int]] = {}
        for index, prompt in prompts.items():
            self._unseen.setdefault(np.array(prompt, np.int64).tobytes(), []).append(index)
        self._told: set[int] = set()
        self._failure: BaseException | None = None

    def run(self) -> None:
        config = self._config
        needs_ends = (
            bool(config.min_new_tokens)
            or config.min_length > 0
            or config.forced_eos_token_id is not None
            or config.exponential_decay_length_penalty is not None
            or bool(config.stop_strings)
        )
        out = self._model.generate(
            [np.array(prompt, np.int64) for prompt in self._prompts.values()],
            config if needs_ends else config.merged(eos_token_id=[]),
            tokenizer=self._tokenizer,
            constraint=list(self._constraints.values()) or None,
            stopping_criteria=None if needs_ends else self._criterion,
            return_exceptions=True,
        )
        if self._failure is not None:
            raise self._failure
        rows = zip(
            self._prompts.items(),
            out.sequences,
            out.new_tokens,
            out.finish_reasons,
            out.errors,
            strict=True,
        )
        for (index, prompt), sequence, count, finish, error in rows:
            if index not in self._told:
                ids = [int(token) for token in sequence[len(prompt) :][:count]]
                self._tell(index, ids, finish, None if error is None else _describe(error))

    def _criterion(self, input_ids: npt.NDArray[np.int64], scores: Any) -> bool:
        if self._failure is not None:
            return True
        row = input_ids.__array_interface__["data"][0]
        index = self._rows.get(row)
        if index is None:  # its first token
            index = self._rows[row] = self._unseen[input_ids[0, :-1].tobytes()].pop()
        begin = len(self._prompts[index])
        constraint = self._constraints.get(index)
        ended = int(input_ids[0, -1]) in self._ends or (
            constraint is not None and constraint.is_finished
        )
        if not ended:
            return False
        try:
            ids = [int(token) for token in input_ids[0, begin:]]
            self._tell(index, ids, "stop", None)
        except BaseException as failure:  # generate would take it for the row's
            self._failure = failure
        return True

    def _tell(self, index: int, ids: list[int], finish: str, error: str | None) -> None:
        self._told.add(index)
        count = len(ids)
        if finish == "stop" and ids and ids[-1] in self._ends:
            ids = ids[:-1]
        length = len(self._prompts[index])
        self._on_answer(Answer(index, length, ids, count, finish, error))


class _Free(Constraint):
    """Allows everything, for prompts beside some that are constrained."""

    def allowed(self) -> None:
        return None


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
