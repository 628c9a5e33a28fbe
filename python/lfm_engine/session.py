"""A sequence that is kept between calls: append, generate, fork, go back, save."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .chat_template import Message, check_messages
from .generate import GenerateOutput
from .inputs import Ids, read_prompts
from .rows import end_ids
from .session_file import read_session, write_session

if TYPE_CHECKING:
    from .generation import GenerationConfig
    from .model import CausalLM


class Session:
    """Tokens with their state, made by `CausalLM.session`.

    Nothing that was computed is computed again, whatever is done: every operation leaves the state
    that a prefill of `tokens` from scratch would give, bit for bit.

        session = model.session(tokenizer)
        session.append([{"role": "user", "content": "Name a city."}])
        answer = session.generate(max_new_tokens=32)  # the new ids
        other = session.fork()  # shares all memory until one of them goes on
        other.append([{"role": "user", "content": "Another one."}])
        session.rewind(len(answer))  # as before the answer

    What is appended is computed when it is needed first: by `generate`, `logits`, `fork`, `save` or
    `prefill`. A call that fails, or that Ctrl-C stops, leaves the tokens as they were.

    One thread at a time may use a session; a second one gets a RuntimeError.
    """

    def __init__(self, model: CausalLM, tokenizer: Any = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._tokens: Ids = np.zeros(0, np.int64)
        self._state = model.core.new_state()  # of a prefix of the tokens
        self._messages: list[Message] | None = []  # None: the tokens are no rendered conversation
        self._lock = threading.Lock()

    @property
    def tokens(self) -> Ids:
        """All tokens, int64 [length], read-only."""
        view = self._tokens.view()
        view.flags.writeable = False
        return view

    def __len__(self) -> int:
        return self._tokens.size

    @property
    def messages(self) -> list[Message]:
        """The conversation that was appended, answers included; empty for text and ids."""
        return list(self._messages or ())

    @property
    def nbytes(self) -> int:
        """Bytes of K, V and conv state, memory that is shared with others included."""
        return self._state.nbytes

    @property
    def shared_nbytes(self) -> int:
        """How many of `nbytes` are shared with forks, or with other sessions and caches."""
        return self._state.shared_nbytes

    def __repr__(self) -> str:
        return f"Session({len(self)} tokens, {self.nbytes / 1e6:.1f} MB)"

    # -- changing the tokens --

    def append(self, content: Any, **template: Any) -> int:
        """Append ids, text or messages.

        Messages go on with the conversation so far, answers included: all of it is rendered by the
        tokenizer's chat template, with the beginning of the next answer, and takes the place of
        the tokens, from where they differ.

        Args:
            content: ids [n] (list, NumPy, torch), a string, or a list of messages.
            **template: for messages, as in `apply_chat_template`: `tools` and whatever the
                template reads. Every call takes its own.

        Returns:
            By how many tokens the session has grown.

        Raises:
            ValueError: no token, ids outside the vocabulary, more tokens than the model's context,
                malformed messages, text without a tokenizer, messages after something else.
        """
        with self._exclusive():
            before = len(self)
            if _is_messages(content):
                if self._messages is None:
                    raise ValueError(
                        "the session holds tokens that are not a conversation: give all messages "
                        "to update()"
                    )
                self._update_messages([*self._messages, *content], template)
            else:
                _refuse(template)
                self._replace(np.concatenate([self._tokens, self._read(content)]))
                self._messages = None
            return len(self) - before

    def update(self, content: Any, **template: Any) -> int:
        """Make this the session's whole content, keeping what it has in common with it.

        The way to edit an earlier turn: only what follows the first difference is computed.

        Args:
            content: as in `append`.
            **template: as in `append`.

        Returns:
            How many tokens were kept.

        Raises:
            ValueError: as in `append`; the session is unchanged then.
        """
        with self._exclusive():
            before = self._tokens
            if _is_messages(content):
                self._update_messages(list(content), template)
            else:
                _refuse(template)
                self._replace(self._read(content, whole=True))
                self._messages = None
            most = min(before.size, len(self))
            differ = np.flatnonzero(before[:most] != self._tokens[:most])
            return int(differ[0]) if differ.size else most

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens, from 0 to `len(session)`; any token will do.

        Raises:
            ValueError: there are fewer.
        """
        with self._exclusive():
            self._truncate(_count("length", length, len(self)))

    def rewind(self, count: int) -> None:
        """Go back by `count` tokens.

        Raises:
            ValueError: there are fewer.
        """
        with self._exclusive():
            self._truncate(len(self) - _count("count", count, len(self)))

    # -- computing --

    def generate(
        self,
        generation_config: GenerationConfig | None = None,
        *,
        tokenizer: Any = None,
        **options: Any,
    ) -> Any:
        """Continue the sequence; what is generated becomes a part of it.

        Args:
            generation_config: in place of the model's own.
            tokenizer: in place of the session's own.
            **options: all that `CausalLM.generate` takes for one prompt: those of
                `GenerationConfig`, `streamer`, `response_format`, `constraint` and so on.

        Returns:
            The new ids, int64 [n]; with `return_dict_in_generate` a `GenerateOutput` as
            `CausalLM.generate` gives it, prompt included.

        Raises:
            ValueError: the session is empty; and what `CausalLM.generate` raises.
        """
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        with self._exclusive():
            if not len(self):
                raise ValueError("the session is empty: append something first")
            state = self._state.snapshot()
            result = self.model.generate(
                self._tokens,
                generation_config,
                tokenizer=tokenizer,
                past_key_values=state,
                **options,
            )
            plain = not isinstance(result, GenerateOutput)
            sequence = np.asarray(result if plain else result.sequences)[0]
            new = sequence[len(self) :]
            messages = self._messages
            if messages and messages[-1].get("role") != "assistant" and tokenizer is not None:
                text = _answer_text(new, tokenizer, self._end_ids(generation_config, options))
                messages = [*messages, {"role": "assistant", "content": text}]
            self._tokens, self._state, self._messages = sequence, state, messages
            return new.copy() if plain else result

    def logits(self) -> npt.NDArray[np.float32]:
        """Logits of the next token, float32 [vocab_size].

        Raises:
            ValueError: the session is empty.
        """
        with self._exclusive():
            if not len(self):
                raise ValueError("the session is empty: append something first")
            # The last token must be among those that are computed.
            self._state.truncate(min(self._state.length, len(self) - 1))
            logits: npt.NDArray[np.float32] = self.model.core.forward(
                self._state, self._pending(), "last"
            )
            return logits.reshape(-1)

    def prefill(self) -> None:
        """Compute what was appended, but for the last token, which the next call computes."""
        with self._exclusive():
            self._prefill()

    # -- copies --

    def fork(self) -> Session:
        """Return an independent copy that shares the memory of all tokens until one side goes on.

        It costs microseconds and a few bytes for each 64 tokens; tokens that were appended and not
        yet computed are computed first.
        """
        with self._exclusive():
            self._prefill()
            fork = Session(self.model, self.tokenizer)
            fork._tokens = self._tokens
            fork._state = self._state.snapshot()
            fork._messages = None if self._messages is None else list(self._messages)
            return fork

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session to a file, which `load` goes on from without computing it again.

        The file appears when it is complete; one that was there is replaced. It has the size of
        `nbytes` and holds the session's tokens: treat it like their text.

        Raises:
            OSError: it cannot be written.
            TypeError: a message of the conversation holds what JSON cannot.
        """
        with self._exclusive():
            self._prefill()
            model = self.model
            tokens = self._tokens.astype(np.int32)
            extra = {"messages": self._messages}
            write_session(path, model.core, model.config, tokens, self._state, extra)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: CausalLM, tokenizer: Any = None) -> Session:
        """Read a session that `save` wrote.

        The model must have the same configuration, weights, dtype and kv_dtype. On a CPU of
        another level (`core.isa`) it goes on with a RuntimeWarning: what was computed there can
        differ in its last bits from what this CPU would have computed.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is foreign, cut short, damaged, of a newer version or of another model;
                the message names it.
        """
        tokens, state, extra = read_session(path, model.core, model.config)
        if extra["isa"] != model.core.isa:
            warnings.warn(
                f"{path}: computed with {extra['isa']}, this model runs with {model.core.isa}: "
                "the last bits may differ",
                RuntimeWarning,
                stacklevel=2,
            )
        session = cls(model, tokenizer)
        session._tokens = tokens.astype(np.int64)
        session._state = state
        session._messages = extra.get("messages")
        return session

    # -- inside; the caller holds the lock --

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("the session is in use by another call")
        try:
            yield
        finally:
            self._lock.release()

    def _pending(self) -> Ids:
        return self._tokens[self._state.length :]

    def _prefill(self) -> None:
        if self._pending().size > 1:
            self.model.core.forward(self._state, self._pending()[:-1], "last")

    def _truncate(self, length: int) -> None:
        if length == len(self):
            return
        self._state.truncate(min(length, self._state.length))
        self._tokens = self._tokens[:length]
        self._messages = None if length else []

    def _replace(self, tokens: Ids) -> None:
        config = self.model.config
        for bad in tokens[(tokens < 0) | (tokens >= config.vocab_size)][:1]:
            raise ValueError(
                f"input_ids holds {bad}, outside the vocabulary of {config.vocab_size}"
            )
        if tokens.size > config.max_position_embeddings:
            raise ValueError(
                f"the session would have {tokens.size} tokens, more than the model's context of "
                f"{config.max_position_embeddings}"
            )
        self._state.truncate(self._state.common_prefix(tokens))
        self._tokens = tokens

    def _read(self, content: Any, whole: bool = False) -> Ids:
        if isinstance(content, str):
            if self.tokenizer is None:
                raise ValueError("text needs a tokenizer: model.session(tokenizer)")
            first = whole or not len(self)
            content = self.tokenizer(content, add_special_tokens=first).input_ids
        prompts = read_prompts(content)
        if len(prompts.rows) != 1:
            raise ValueError("a session holds one sequence, not a batch")
        return prompts.rows[0]

    def _update_messages(self, messages: list[Message], template: Mapping[str, Any]) -> None:
        if self.tokenizer is None:
            raise ValueError("messages need a tokenizer: model.session(tokenizer)")
        check_messages(messages)
        options = {"add_generation_prompt": True, **template, "tokenize": False}
        text = self.tokenizer.apply_chat_template(messages, **options)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        self._replace(read_prompts(ids).rows[0])
        self._messages = messages

    def _end_ids(
        self, generation_config: GenerationConfig | None, options: Mapping[str, Any]
    ) -> list[int]:
        config = generation_config or self.model.generation_config
        return end_ids(config.merged(eos_token_id=options.get("eos_token_id")), self.model.config)


def _answer_text(new: Ids, tokenizer: Any, eos_ids: Sequence[int]) -> str:
    ids = [int(i) for i in new]
    if ids and ids[-1] in eos_ids:
        ids.pop()
    return str(tokenizer.decode(ids))  # with special tokens: the marks of tool calls are some


def _is_messages(content: Any) -> bool:
    return (
        isinstance(content, Sequence)
        and len(content) > 0
        and all(isinstance(entry, Mapping) for entry in content)
    )


def _refuse(template: Mapping[str, Any]) -> None:
    for name in template:
        raise TypeError(f"{name}= is for messages only")


def _count(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be an integer, not {value!r}")
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be between 0 and {most}, not {value}")
    return int(value)
