"""Streaming: text while it is being generated.

The streamers have the interface of transformers' own and print the same text in total, only sooner:
a piece is given out as soon as its characters are complete, not when a word is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from queue import Queue
from typing import Any

# What decoders put for bytes that are no complete character.
_INCOMPLETE = "\ufffd"
# Decoding the next token needs the tokens before it only for their first character's sake.
_CONTEXT_TOKENS = 8
# A character has at most four bytes, hence at most four tokens.
_LONGEST_CHARACTER = 4


class IncrementalDecoder:
    """Decodes a sequence token by token, in constant time for each, never splitting a character.

    The pieces joined equal the text that decoding everything at once gives. (They can differ only
    for SentencePiece byte tokens that are no UTF-8: there one bad byte spoils those before it.)

    Args:
        tokenizer: has `decode(list_of_ids, **decode_kwargs) -> str`; ours or a transformers
            tokenizer.
        decode_kwargs: passed on, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: Any, **decode_kwargs: Any) -> None:
        self._tokenizer = tokenizer
        self._kwargs = decode_kwargs
        skip = bool(decode_kwargs.get("skip_special_tokens"))
        self._skipped = (
            frozenset(getattr(tokenizer, "all_special_ids", ())) if skip else frozenset()
        )
        self._context: list[int] = []  # tokens whose text was given out
        self._shown = ""  # the text of the context alone
        self._pending: list[int] = []  # tokens whose text is incomplete

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is complete with it, "" when there is none yet."""
        return self.extend([token_id])

    def extend(self, token_ids: Iterable[int]) -> str:
        """Take several tokens at once; return the text that is complete with them."""
        new = [token for token in token_ids if token not in self._skipped]
        if not new:
            return ""
        self._pending += new
        text = self._decode(self._context + self._pending)
        if text.endswith(_INCOMPLETE):
            return self._give_out_invalid() if len(self._pending) > 2 * _LONGEST_CHARACTER else ""
        piece = text[len(self._shown) :]
        if piece:
            self._restart((self._context + self._pending)[-_CONTEXT_TOKENS:], [])
        return piece

    def flush(self) -> str:
        """End the sequence: return what was held back, complete or not. Another may follow."""
        piece = (
            self._decode(self._context + self._pending)[len(self._shown) :] if self._pending else ""
        )
        self._restart([], [])
        return piece

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, **self._kwargs))

    def _restart(self, context: list[int], pending: list[int]) -> None:
        self._context, self._pending = context, pending
        self._shown = self._decode(context) if context else ""

    def _give_out_invalid(self) -> str:
        """Give out bytes that make no character; keep the last tokens, which may become one."""
        tokens = self._context + self._pending
        text = self._decode(tokens)
        for kept in range(_LONGEST_CHARACTER, 2 * _LONGEST_CHARACTER):
            head, tail = tokens[:-kept], tokens[-kept:]
            head_text = self._decode(head)
            # Equal only where the cut goes through no character.
            if head_text + self._decode(tail) == text:
                piece = head_text[len(self._shown) :]
                self._restart([], tail)
                return piece
        return ""


class StopStringMatcher:
    """Finds stop strings in generated text, also those that span tokens.

    Args:
        stop_strings: one string or several; none of them empty.
    """

    def __init__(self, stop_strings: str | Sequence[str]) -> None:
        self._strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        for entry in self._strings:
            if not isinstance(entry, str) or not entry:
                raise ValueError(f"stop_strings must be non-empty strings, not {entry!r}")
        self._overlap = max((len(entry) for entry in self._strings), default=1) - 1
        self._tail = ""
        self.found = False

    def push(self, text: str) -> bool:
        """Take the next piece of text; return whether a stop string has occurred by its end."""
        if not self.found and text:
            seen = self._tail + text
            self.found = any(entry in seen for entry in self._strings)
            self._tail = seen[-self._overlap :] if self._overlap else ""
        return self.found


class BaseStreamer:
    """What `generate(streamer=...)` calls: `put` for the prompt and each token, then `end`."""

    def put(self, value: Any) -> None:
        """Receive ids: the prompt's first ([1, prompt] or [prompt]), then a token at a time."""
        raise NotImplementedError

    def end(self) -> None:
        """The generation is complete."""
        raise NotImplementedError


class TextStreamer(BaseStreamer):
    """Prints the text to stdout as it is generated.

    Args:
        tokenizer: decodes the ids.
        skip_prompt: do not print the prompt.
        decode_kwargs: for `tokenizer.decode`, such as `skip_special_tokens=True`.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.next_tokens_are_prompt = True
        self._decoder = IncrementalDecoder(tokenizer, **decode_kwargs)

    def put(self, value: Any) -> None:
        """Decode the ids and pass on the text that is complete with them.

        Raises:
            ValueError: `value` holds more than one sequence.
        """
        ids = _flat_ids(value)
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self.on_finalized_text(self._decoder.extend(ids))

    def end(self) -> None:
        """Pass on what was held back; the streamer can be used again."""
        self.next_tokens_are_prompt = True
        self.on_finalized_text(self._decoder.flush(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of text, and a newline at the end; override it to send text elsewhere."""
        sys.stdout.write(text + "\n" if stream_end else text)
        sys.stdout.flush()


class TextIteratorStreamer(TextStreamer):
    """Hands the text to another thread: iterate over it there while `generate` runs here.

    Args:
        tokenizer: decodes the ids.
        skip_prompt: leave the prompt out.
        timeout: seconds that the iterator waits for the next piece before it raises `queue.Empty`;
            None for ever.
        decode_kwargs: for `tokenizer.decode`.

    An exception in `generate` is raised again in the iterating thread (see `fail`).
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        # None ends the stream, an exception fails it.
        self.text_queue: Queue[str | BaseException | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue a piece of text, and the end."""
        if text:
            self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(None)

    def fail(self, error: BaseException) -> None:
        """End the stream with an exception; the iterator raises it after the text before it."""
        self.next_tokens_are_prompt = True
        self._decoder.flush()
        self.text_queue.put(error)

    def __iter__(self) -> TextIteratorStreamer:
        return self

    def __next__(self) -> str:
        value = self.text_queue.get(timeout=self.timeout)
        if value is None:
            raise StopIteration
        if isinstance(value, BaseException):
            raise value
        return value


def _flat_ids(value: Any) -> list[int]:
    """Turn an id, ids, or one row of ids [1, n] into a list."""
    ids = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(ids, int):
        return [ids]
    ids = list(ids)
    if ids and isinstance(ids[0], (list, tuple)):
        if len(ids) > 1:
            raise ValueError(f"a text streamer takes one sequence, not a batch of {len(ids)}")
        ids = list(ids[0])
    return [int(token) for token in ids]
