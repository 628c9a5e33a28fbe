"""Constraints: which token may come next.

`generate(constraint=...)` takes any `Constraint`; `response_format=` and tools make a
`GrammarConstraint`, whose work is done by llguidance. A mask takes it microseconds, next to the
milliseconds of a model step. It is imported where a grammar is made: most generations have none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import tokenizers

if TYPE_CHECKING:
    import llguidance

Words = npt.NDArray[np.uint32]

_MAX_MESSAGE = 400


class Constraint:
    """Says which token may come next, for one sequence; derive from it for your own.

        class Digits(Constraint):
            def allowed(self):
                return digit_ids + [eos_id]

        model.generate(ids, constraint=Digits())

    For each token `forced` is asked first, then `allowed`; every token that the sequence gets is
    told to `accept`, except those that end it.
    """

    def allowed(self) -> Any:
        """Return what may come next: ids, a boolean array [vocab_size], or None for any token.

        A uint32 array is a bitmask of ceil(vocab_size / 32) words, low bit first; it is not copied.
        What ends the sequence must be among them where it may end.
        """
        raise NotImplementedError

    def accept(self, token: int) -> None:
        """Take the token that came."""

    def forced(self) -> Sequence[int]:
        """Return the tokens that are certain to come next; they cost no model step each.

        They must be what repeated `allowed` would leave no choice about.
        """
        return ()

    @property
    def is_finished(self) -> bool:
        """True ends the sequence without a token, as "stop"."""
        return False


class PrefixConstraint(Constraint):
    """transformers' `prefix_allowed_tokens_fn(batch_id, input_ids)`, which returns allowed ids."""

    def __init__(
        self, function: Callable[[int, Any], Sequence[int]], batch_id: int, prompt: Any
    ) -> None:
        self._function = function
        self._batch_id = batch_id
        self._ids = [int(token) for token in prompt]
        self._next: list[int] | None = None

    def allowed(self) -> list[int]:
        """What the function returns for the tokens so far, prompt included (int64 [length])."""
        if self._next is None:
            ids = np.array(self._ids, np.int64)
            self._next = [int(token) for token in self._function(self._batch_id, ids)]
            if not self._next:
                raise ValueError("prefix_allowed_tokens_fn returned no token")
        return self._next

    def accept(self, token: int) -> None:
        self._ids.append(token)
        self._next = None

    def forced(self) -> list[int]:
        return self.allowed() if len(set(self.allowed())) == 1 else []


class BannedTokens(Constraint):
    """Any token but these."""

    def __init__(self, banned: Sequence[int], vocab_size: int) -> None:
        self._words = np.full((vocab_size + 31) // 32, 0xFFFFFFFF, np.uint32)
        for token in banned:
            _set_bit(self._words, token, False)

    def allowed(self) -> Words:
        return self._words


class GrammarConstraint(Constraint):
    """A grammar in llguidance's form; see `compile_grammar`."""

    def __init__(
        self, matcher: llguidance.LLMatcher, size: int, end: int, eos_ids: Sequence[int]
    ) -> None:
        self._matcher = matcher
        self._size = size  # of the vocabulary
        self._end = end  # the token that ends a sequence to the matcher
        self._eos_ids = list(eos_ids)  # those that do for this request
        self._words = np.zeros((1, (size + 31) // 32), np.uint32)

    def copy(self) -> GrammarConstraint:
        """An independent constraint in the same state."""
        return GrammarConstraint(self._matcher.deep_copy(), self._size, self._end, self._eos_ids)

    @property
    def is_finished(self) -> bool:
        """Whether the grammar is complete and nothing may follow, and no token can say so."""
        return not self._eos_ids and self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> Words:
        """The bitmask of the grammar.

        Raises:
            RuntimeError: the grammar cannot go on; nothing is left unconstrained.
        """
        if self._matcher.is_stopped() and not self._matcher.is_error():
            self._words[:] = 0
            return self._with_ends(self._eos_ids[:1])
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._words.view(np.int32))
        self._check()
        may_end = bool(self._words[0, self._end // 32] >> (self._end % 32) & 1)
        return self._with_ends(self._eos_ids if may_end else ())

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            self._check()
            raise RuntimeError(f"structured output failed: token {token} does not fit")

    def forced(self) -> list[int]:
        """The tokens that the grammar leaves no choice about, as the tokenizer would cut them.

        `allowed` says the same: where the text is certain it lets only its canonical first token
        through, so that decoding without this shortcut gives the same tokens.
        """
        if self._matcher.is_stopped():
            self._check()
            return self._eos_ids[:1]
        tokens: list[int] = self._matcher.compute_ff_tokens()
        self._check()
        # A token that ends the sequence cannot stand inside the structure.
        ends = [index for index, token in enumerate(tokens) if token in self._eos_ids]
        return tokens[: ends[0]] if ends else tokens

    def _with_ends(self, ids: Sequence[int]) -> Words:
        words: Words = self._words[0]
        for token in (self._end, *self._eos_ids):
            _set_bit(words, token, token in ids)
        return words

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"structured output failed: {_one_line(self._matcher.get_error())}")


class TriggeredConstraint(Constraint):
    """Free text until a token comes, then a grammar until it is complete, then free text again.

    Args:
        trigger: the token that starts the grammar.
        grammar: what follows it; made without end-of-sequence ids.
        banned: allows any token but the trigger; used after the first time, None to allow more.
    """

    def __init__(
        self, trigger: int, grammar: GrammarConstraint, banned: BannedTokens | None
    ) -> None:
        self._trigger = trigger
        self._grammar = grammar
        self._banned = banned
        self._free: Constraint | None = None
        self._running: GrammarConstraint | None = None

    def allowed(self) -> Any:
        current = self._running or self._free
        return None if current is None else current.allowed()

    def accept(self, token: int) -> None:
        if self._running is not None:
            self._running.accept(token)
            if self._running.is_finished:
                self._running, self._free = None, self._banned
        elif token == self._trigger:
            self._running = self._grammar.copy()

    def forced(self) -> Sequence[int]:
        return () if self._running is None else self._running.forced()


def compile_grammar(
    grammars: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    vocab_size: int,
    eos_ids: Sequence[int],
    what: str,
) -> GrammarConstraint:
    """Compile grammars (`{"json_schema": ...}` or `{"lark_grammar": ...}`); the first is the start.

    Args:
        tokenizer: ours or a fast one of transformers.
        vocab_size: of the model.
        eos_ids: tokens that end the sequence.
        what: what to name in an error.

    Raises:
        ValueError: the grammar is wrong, uses what is not supported, or allows nothing.
    """
    import llguidance

    ll_tokenizer, size, end = _ll_tokenizer(tokenizer, vocab_size)
    try:
        text = json.dumps({"grammars": list(grammars)})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from None
    limits = llguidance.LLParserLimits(verbose_errors=False)
    matcher = llguidance.LLMatcher(ll_tokenizer, text, log_level=0, limits=limits)
    if matcher.is_error():
        raise ValueError(f"{what}: {_one_line(matcher.get_error())}")
    constraint = GrammarConstraint(matcher, size, end, eos_ids)
    try:
        constraint.copy().allowed()
    except RuntimeError:
        raise ValueError(f"{what} allows nothing") from None
    return constraint


def backend_of(tokenizer: Any) -> tokenizers.Tokenizer:
    """Return the tokenizers library's object inside a tokenizer.

    Raises:
        ValueError: there is none.
    """
    backend = getattr(tokenizer, "backend", None) or getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ValueError(
            "structured output needs tokenizer=, ours or a fast one of transformers, "
            f"not {type(tokenizer).__name__}"
        )
    return backend


def as_mask(allowed: Any, vocab_size: int, buffer: Words) -> Words | None:
    """Return `Constraint.allowed`'s answer as a bitmask; `buffer` holds it where it is not one.

    Raises:
        ValueError: ids outside the vocabulary, or an array of a wrong kind or length.
    """
    if allowed is None:
        return None
    if isinstance(allowed, np.ndarray) and allowed.dtype == np.uint32:
        if allowed.ndim != 1 or allowed.size < buffer.size:
            raise ValueError(
                f"constraint: a bitmask needs shape [{buffer.size}], not {list(allowed.shape)}"
            )
        return np.ascontiguousarray(allowed)
    array = np.asarray(allowed if isinstance(allowed, np.ndarray) else list(allowed))
    if array.dtype.kind == "b":
        if array.shape != (vocab_size,):
            raise ValueError(
                f"constraint: a boolean array needs shape [{vocab_size}], not {list(array.shape)}"
            )
        array = np.flatnonzero(array)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError("constraint: allowed() must return ids, booleans, a bitmask or None")
    ids = array.astype(np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"constraint: an id is outside the vocabulary of {vocab_size}")
    bits = np.zeros(buffer.size * 32, np.uint8)
    bits[ids] = 1
    buffer[:] = np.packbits(bits, bitorder="little").view("<u4")
    return buffer


def _set_bit(words: Words, token: int, value: bool) -> None:
    if not 0 <= token // 32 < words.size:
        return
    bit = np.uint32(1 << (token % 32))
    words[token // 32] = words[token // 32] | bit if value else words[token // 32] & ~bit


def _one_line(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + " ..."


# Half a second for 64k tokens: kept as long as the tokenizer itself.
_ll_tokenizers: WeakKeyDictionary[Any, tuple[llguidance.LLTokenizer, int, int]]
_ll_tokenizers = WeakKeyDictionary()


def _ll_tokenizer(tokenizer: Any, vocab_size: int) -> tuple[llguidance.LLTokenizer, int, int]:
    """llguidance's view of the tokenizer, the size of the vocabulary there, and its end token.

    Which tokens end a sequence is a matter of each request, so any special token will do as the
    end: grammars of text never allow one.
    """
    backend = backend_of(tokenizer)
    size = max(backend.get_vocab_size(with_added_tokens=True), vocab_size)
    found = _ll_tokenizers.get(tokenizer)
    if found is not None and found[1] == size:
        return found
    import llguidance

    plain = tokenizers.Tokenizer.from_str(backend.to_str())
    plain.no_padding()
    plain.no_truncation()
    special = [i for i, token in plain.get_added_tokens_decoder().items() if token.special]
    if not special:
        raise ValueError("structured output needs a tokenizer with a special token")
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in special else special[0]
    try:
        made = llguidance.LLTokenizer(plain.to_str(), n_vocab=size, eos_token=end)
    except ValueError as error:
        raise ValueError(f"structured output: tokenizer: {_one_line(str(error))}") from None
    _ll_tokenizers[tokenizer] = (made, size, end)
    return made, size, end
