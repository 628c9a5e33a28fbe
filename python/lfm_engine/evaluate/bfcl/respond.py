"""The engine's side of BFCL: prompts, constraints and, for many turns, a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...chat_template import Message
from ...constraint import BannedTokens, Constraint, TriggeredConstraint, compile_grammar
from ...generation import GenerationConfig
from ...rows import end_ids
from ...tokenizer_base import Tokenizer
from ...tool_calls import END, START
from ...tool_grammar import tool_grammar
from ...tool_schema import function_schemas
from ..answering import Answer
from ..closing import ClosingConstraint
from ..instructions import chat_ids
from .handler import Reply, Tools

MODES = ("free", "auto", "required")
_CLOSING = 256  # tokens that are kept for bringing calls to their end
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def renders_tools(tokenizer: Any) -> bool:
    """Whether the checkpoint's chat template says anything about tools."""
    messages: list[Message] = [{"role": "user", "content": "x"}]
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}

    def rendered(tools: Any) -> Any:
        return tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=False
        )

    return bool(rendered([tool]) != rendered(None))


def renders_calls(tokenizer: Any) -> bool:
    """Whether the template renders `message["tool_calls"]`; else calls are written out as text."""
    return "tool_calls" in str(tokenizer.get_chat_template(None, [{}]))


class Responder:
    """Answers conversations.

    Args:
        model, tokenizer: ours.
        config: how to generate; with `max_new_tokens`.
        mode: "free"; "auto": text, calls or both, and calls are constrained, in one list; then the
            answer ends; "required": only calls, constrained.

    Raises:
        ValueError: there is no such mode, or "auto" without LFM2's tokens for calls.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, config: GenerationConfig, mode: str):
        if mode not in MODES:
            raise ValueError(f"calls must be one of {', '.join(MODES)}, not {mode!r}")
        self.model = model
        self.tokenizer = tokenizer
        self.config = config
        self._mode = mode
        self._eos_ids = end_ids(config, model.config)
        ids = [tokenizer.backend.token_to_id(token) for token in (START, END)]
        self._marks: tuple[int, int] | None = None
        if ids[0] is not None and ids[1] is not None:
            self._marks = (ids[0], ids[1])
        if mode == "auto" and self._marks is None:
            raise ValueError(
                f'calls="auto" needs a tokenizer with the tokens {START} and {END}; without them '
                'use "free" or "required"'
            )
        # After its calls an answer ends: results are what comes next.
        others = set(range(model.config.vocab_size)).difference(self._eos_ids)
        self._only_end = BannedTokens(sorted(others), model.config.vocab_size)
        self._session: Any = None

    def prompt(self, messages: Sequence[Message], tools: Tools, native: bool) -> list[int]:
        """The ids of a conversation; `native`: the template gets the tools."""
        return chat_ids(self.tokenizer, messages, **_template(tools, native))

    def constraint(self, tools: Tools, prompt_length: int) -> Constraint | None:
        """The constraint of one answer, None where anything may be said."""
        if self._mode == "free" or not tools:
            return None
        functions = function_schemas([_without_contradictions(tool) for tool in tools])
        vocab_size = self.model.config.vocab_size
        # What may be open then takes less than half of a short answer, or _CLOSING tokens.
        room = self._room(prompt_length)
        limit = max(room // 2, room - _CLOSING)

        marked = self._marks is not None
        # Without tokens that end it, the answer is complete when the grammar is.
        grammar = tool_grammar(
            functions,
            start=START if marked and self._mode == "required" else "",
            end=END if marked else "",
        )
        inner = compile_grammar([grammar], self.tokenizer, vocab_size, (), "tools")
        calls: Constraint = inner
        if self._mode == "auto" and self._marks is not None:
            calls = TriggeredConstraint(self._marks[0], inner, self._only_end)
        return ClosingConstraint(calls, limit, self.tokenizer, vocab_size)

    def reply(self, answer: Answer) -> Reply:
        """What an answer of `answering` says."""
        raw = str(self.tokenizer.decode(answer.ids))
        return Reply(raw, answer.prompt_tokens, answer.new_tokens, answer.finish_reason)

    def respond(self, messages: Sequence[Mapping[str, Any]], tools: Tools, native: bool) -> Reply:
        """Answer one conversation in a session, which keeps what conversations have in common.

        Raises:
            ValueError: the conversation fills the model's context.
        """
        if self._session is None:
            self._session = self.model.session(self.tokenizer)
        session = self._session
        session.update(messages, **_template(tools, native))
        before = len(session)
        limit = self._room(before)
        if limit < 1:
            raise ValueError(f"the conversation has {before} tokens and fills the context")
        out = session.generate(
            self.config.merged(max_new_tokens=limit, return_dict_in_generate=True),
            constraint=self.constraint(tools, before),
        )
        ids = [int(token) for token in out.sequences[0][before:]]
        count, finish = len(ids), out.finish_reasons[0]
        if finish == "stop" and ids and ids[-1] in self._eos_ids:
            ids = ids[:-1]
        return Reply(str(self.tokenizer.decode(ids)), before, count, finish)

    def _room(self, prompt_length: int) -> int:
        context = int(self.model.config.max_position_embeddings)
        return min(context - prompt_length, int(self.config.max_new_tokens or 0))


def _template(tools: Tools, native: bool) -> dict[str, Any]:
    return {"tools": tools} if native and tools else {}


def _without_contradictions(value: Any) -> Any:
    """A schema without enums none of whose values has the type that stands beside them.

    BFCL has such: the call must have the type, and the checker knows which values are right.
    """
    if isinstance(value, list):
        return [_without_contradictions(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_contradictions(entry) for key, entry in value.items()}
    types = _JSON_TYPES.get(kept["type"]) if isinstance(kept.get("type"), str) else None
    enum = kept.get("enum")
    if types is not None and isinstance(enum, list):
        fitting = [
            entry
            for entry in enum
            if isinstance(entry, types) and (bool in types or not isinstance(entry, bool))
        ]
        if not fitting:
            del kept["enum"]
    return kept
