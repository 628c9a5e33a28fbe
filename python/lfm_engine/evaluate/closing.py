"""A constraint that comes to an end before the limit of tokens does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..constraint import Constraint, Words
from ..tool_calls import END

_CLOSING = frozenset('")]}')
_GOING_ON = frozenset(", ")


class ClosingConstraint(Constraint):
    """Another constraint that, after so many tokens, closes what is open as soon as it may.

    A weak model loses itself in a string or in ever more calls, and an answer that is cut off there
    is no call. From the limit on only tokens that close something can come where there are such,
    quotes first, since inside a string brackets are text; then those that lead to what is still
    required. Where none of these fits, all is as the inner constraint has it.

    Args:
        inner: the constraint; what it leaves free stays free.
        after: tokens of the answer after which to close.
        tokenizer: ours, of the model.
        vocab_size: of the model.
    """

    def __init__(self, inner: Constraint, after: int, tokenizer: Any, vocab_size: int) -> None:
        self._inner = inner
        self._after = after
        self._tiers = _tiers(tokenizer, vocab_size)
        self._count = 0

    @property
    def is_finished(self) -> bool:
        return self._inner.is_finished

    def accept(self, token: int) -> None:
        self._count += 1
        self._inner.accept(token)

    def forced(self) -> Sequence[int]:
        return self._inner.forced()

    def allowed(self) -> Any:
        allowed = self._inner.allowed()
        if allowed is None or self._count < self._after:
            return allowed
        for tier in self._tiers:
            size = min(tier.size, allowed.size)
            words: Words = np.zeros_like(allowed)
            words[:size] = allowed[:size] & tier[:size]
            if words.any():
                return words
        return allowed


@lru_cache(maxsize=4)
def _tiers(tokenizer: Any, vocab_size: int) -> tuple[npt.NDArray[np.uint32], ...]:
    """Bitmasks of the tokens that close with a quote, that close without, and that lead on."""
    bits = np.zeros((3, (vocab_size + 31) // 32 * 32), np.uint8)
    end = tokenizer.backend.token_to_id(END)
    for token in range(min(vocab_size, len(tokenizer))):
        text = set(str(tokenizer.decode([token])))
        if token == end:
            bits[1, token] = 1
        elif text and text <= _CLOSING:
            bits[0 if '"' in text else 1, token] = 1
        elif text and text <= _GOING_ON:
            bits[2, token] = 1
    words: npt.NDArray[np.uint32] = np.packbits(bits, axis=1, bitorder="little").view("<u4")
    return tuple(words)
