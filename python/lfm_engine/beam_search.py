"""Beam search, as transformers does it: each beam is a fork of one state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .generation import GenerationConfig
from .inputs import Ids
from .logits_processing import Scores, apply_processors, processor_params

# The score of what must not be chosen, as in transformers; finite, so that ties stay defined.
_NEVER = np.float32(-1e9)


def beam_search(
    core: _core.Model,
    prompt: Ids,
    config: GenerationConfig,
    *,
    limit: int,
    eos: Sequence[int],
    processors: Sequence[Callable[..., Any]] = (),
    criteria: Sequence[Callable[..., Any]] = (),
) -> list[tuple[Ids, float, str]]:
    """Search for the continuations of greatest score.

    A score is the sum of the tokens' log-probabilities over length ** `length_penalty`, where the
    length counts the new tokens. transformers' `_beam_search` is followed step by step, its
    heuristics of early stopping included.

    Args:
        prompt: int64 [length].
        limit: new tokens at most.
        eos: ids that end a beam.
        processors: callables on (ids [1, length], log-probabilities [1, vocab]) of each beam.
        criteria: callables on (ids [1, length], None); true ends the beam.

    Returns:
        `config.num_return_sequences` continuations, best first: their new tokens, score, and why
        they ended ("stop" or "length").
    """
    beams = config.num_beams
    params = processor_params(config, prompt.size)
    state = core.new_state()
    logits = np.repeat(core.forward(state, prompt, "last"), beams, axis=0)
    states = [state]
    running = [np.empty(0, np.int64)] * beams
    scores = np.full(beams, _NEVER, np.float32)
    scores[0] = 0  # all beams are the same as yet
    finished: list[tuple[np.float32, int, Ids, str]] = []
    keep = max(2, 1 + len(eos)) * beams
    for length in range(1, limit + 1):
        choices = np.empty(logits.shape, np.float32)
        for beam, row in enumerate(logits):
            choices[beam] = _log_softmax(row)
            ids = np.concatenate([prompt, running[beam]])
            _core.process_logits(
                params,
                choices[beam],
                ids,
                prompt_length=prompt.size,
                last=length == limit,
                eos_token_ids=list(eos),
            )
            choices[beam] = apply_processors(processors, ids[None, :], choices[beam : beam + 1])[0]
        choices += scores[:, None]
        best = _top(choices.ravel(), min(keep, choices.size))
        parents, tokens = np.divmod(best, logits.shape[1])
        sequences = [
            np.append(running[parent], token) for parent, token in zip(parents, tokens, strict=True)
        ]
        sums = choices.ravel()[best]
        stopped = np.isin(tokens, eos) | np.array(
            [_stops(criteria, np.concatenate([prompt, new])) for new in sequences]
        )
        ended = stopped | (length == limit)
        # Only those among the best `beams` may end; the others are there to go on with.
        for index in np.flatnonzero(ended[:beams]):
            score = np.float32(sums[index] / np.float32(length**config.length_penalty))
            why = "stop" if stopped[index] else "length"
            # An older one stays before an equal one.
            finished.append((score, len(finished), sequences[index], why))
        finished = sorted(finished, key=lambda entry: -entry[0])[:beams]
        open_sums = sums + np.where(ended, _NEVER, np.float32(0))
        chosen = _top(open_sums, min(beams, open_sums.size))
        running, scores = [sequences[i] for i in chosen], open_sums[chosen]
        if ended.all() or not _may_improve(config, finished, scores[0], length, limit):
            break
        if config.early_stopping is True and len(finished) == beams:
            break
        states = [states[min(parents[i], len(states) - 1)].snapshot() for i in chosen]
        logits = core.forward_batch(states, [new[-1:] for new in running])
    return [(new, float(score), why) for score, _, new, why in finished][
        : config.num_return_sequences
    ]


def _may_improve(
    config: GenerationConfig, finished: list[Any], best: np.float32, length: int, limit: int
) -> bool:
    """Whether a running beam could become better than the worst finished one."""
    if len(finished) < config.num_beams:
        return True
    never = config.early_stopping == "never" and config.length_penalty > 0
    possible = best / np.float32((limit if never else length) ** config.length_penalty)
    return bool(possible > finished[-1][0])


def _stops(criteria: Sequence[Callable[..., Any]], ids: Ids) -> bool:
    return any(bool(np.asarray(criterion(ids[None, :], None)).all()) for criterion in criteria)


def _log_softmax(row: Scores) -> Scores:
    shifted = row - row.max()
    logs: Scores = shifted - np.log(np.exp(shifted).sum(dtype=np.float32))
    return logs


def _top(values: Scores, count: int) -> npt.NDArray[np.int64]:
    """Return the indices of the greatest `count` values, in their order, equal ones too."""
    candidates = np.argpartition(-values, count - 1)[:count]
    least = values[candidates].min()
    candidates = np.flatnonzero(values >= least)
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]
