"""Conversations: render, generate and parse in one call, and a loop that runs tools."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .chat_template import Message, check_messages, is_batch
from .constraint import (
    BannedTokens,
    Constraint,
    GrammarConstraint,
    TriggeredConstraint,
    backend_of,
    compile_grammar,
)
from .response_format import response_grammar
from .rows import end_ids
from .tool_calls import END, START, ToolCall, ToolCallError, split_tool_calls
from .tool_grammar import tool_grammar
from .tool_schema import function_schemas, tool_schemas

DEFAULT_NEW_TOKENS = 1024  # of an answer, when neither max_new_tokens nor max_length is given

FunctionSchemas = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ChatOutput:
    """An answer of `model.chat`.

    Attributes:
        text: what was said outside of tool calls, without special tokens.
        tool_calls: `{"name": ..., "arguments": {...}}` each.
        finish_reason: "stop", "length" (cut off by the limit, or by the context), or "tool_calls".
        usage: counts: "prompt_tokens", "completion_tokens", "total_tokens".
        message: the answer as a message, to append to the conversation.
    """

    text: str
    tool_calls: list[ToolCall]
    finish_reason: str
    usage: dict[str, int]
    message: dict[str, Any]


@dataclass(frozen=True)
class ToolRun:
    """Result of `model.run_tools`.

    Attributes:
        text: the last answer.
        finish_reason: of the last answer; "tool_calls" means that the step limit was reached.
        messages: the whole conversation: what was given, answers, results of tools.
        steps: each answer.
        usage: counts over all steps.
    """

    text: str
    finish_reason: str
    messages: list[Message]
    steps: list[ChatOutput]
    usage: dict[str, int]


def chat(
    model: Any,
    messages: Sequence[Any],
    *,
    tokenizer: Any,
    tools: Sequence[Any] | None = None,
    tool_choice: Any = "auto",
    parallel_tool_calls: bool = True,
    response_format: Any = None,
    generation_config: Any = None,
    chat_template: str | None = None,
    template_variables: Mapping[str, Any] | None = None,
    streamer: Any = None,
    **options: Any,
) -> Any:
    """Answer a conversation; see `CausalLM.chat`."""
    try:
        if tokenizer is None:
            raise ValueError("chat needs tokenizer=")
        conversations = messages if is_batch(messages) else [messages]
        for conversation in conversations:
            check_messages(conversation)
        schemas = tool_schemas(tools) or None
        functions = function_schemas(schemas or ())
        config = (generation_config or model.generation_config).merged(
            **options, return_dict_in_generate=True
        )
        variables = template_variables or {}
        prompts = [
            _prompt_ids(tokenizer, conversation, schemas, chat_template, variables)
            for conversation in conversations
        ]
        if config.max_new_tokens is None and config.max_length is None:
            room = model.config.max_position_embeddings - max(len(prompt) for prompt in prompts)
            config.update(max_new_tokens=max(1, min(DEFAULT_NEW_TOKENS, room)))
        eos_ids = end_ids(config, model.config)
        make = _constraint_maker(
            functions,
            _read_tool_choice(tool_choice, functions),
            parallel_tool_calls,
            response_format,
            tokenizer=tokenizer,
            vocab_size=model.config.vocab_size,
            eos_ids=eos_ids,
        )
    except BaseException as error:
        # As in generate: a consumer in another thread would wait for ever.
        if streamer is not None and hasattr(streamer, "fail"):
            streamer.fail(error)
        raise
    result = model.generate(
        prompts,
        config,
        tokenizer=tokenizer,
        streamer=streamer,
        constraint=None if make is None else [make() for _ in prompts],
    )
    reader = _AnswerReader(
        tokenizer,
        eos_ids,
        functions if tool_choice != "none" else {},
        "tool_calls" in str(tokenizer.get_chat_template(chat_template, schemas)),
    )
    rows = zip(prompts, result.sequences, result.new_tokens, result.finish_reasons, strict=True)
    outputs = [
        reader.read(len(prompt), [int(i) for i in sequence[len(prompt) :][:count]], finish)
        for prompt, sequence, count, finish in rows
    ]
    return outputs if is_batch(messages) else outputs[0]


def run_tools(
    model: Any,
    messages: Sequence[Message],
    *,
    tokenizer: Any,
    tools: Sequence[Any],
    functions: Mapping[str, Callable[..., Any]] | None = None,
    max_steps: int = 8,
    tool_choice: Any = "auto",
    **options: Any,
) -> ToolRun:
    """Answer, run the tools that the answer calls, answer again; see `CausalLM.run_tools`."""
    check_messages(messages)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be an integer of at least 1, not {max_steps!r}")
    callables = _callables(tools, functions or {})
    conversation: list[Message] = list(messages)
    steps: list[ChatOutput] = []
    while True:
        # A choice that forces calls would never end: it is meant for the first answer.
        answer: ChatOutput = model.chat(
            conversation,
            tokenizer=tokenizer,
            tools=tools,
            tool_choice=tool_choice if not steps or tool_choice == "none" else "auto",
            **options,
        )
        steps.append(answer)
        conversation.append(answer.message)
        if not answer.tool_calls or answer.finish_reason != "tool_calls":
            break
        if len(steps) == max_steps:
            break
        for call in answer.tool_calls:
            content = _run_tool(callables, call)
            conversation.append({"role": "tool", "name": call["name"], "content": content})
    usage = {key: sum(step.usage[key] for step in steps) for key in steps[0].usage}
    return ToolRun(steps[-1].text, steps[-1].finish_reason, conversation, steps, usage)


# -- before generating --


def _prompt_ids(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Any] | None,
    chat_template: str | None,
    variables: Mapping[str, Any],
) -> list[int]:
    text = tokenizer.apply_chat_template(
        messages,
        tools=tools,
        chat_template=chat_template,
        add_generation_prompt=True,
        tokenize=False,
        **variables,
    )
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _read_tool_choice(choice: Any, functions: FunctionSchemas) -> str:
    """Return "auto", "required" or "none", or "=" and the name of the function to call."""
    if isinstance(choice, Mapping):
        inner = choice.get("function")
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if choice.get("type") != "function" or not isinstance(name, str):
            raise ValueError(
                'tool_choice must be "auto", "required", "none" or '
                f'{{"type": "function", "function": {{"name": ...}}}}, not {choice!r}'
            )
        if name not in functions:
            raise ValueError(f"tool_choice: there is no tool named {name!r}")
        return f"={name}"
    if choice not in ("auto", "required", "none"):
        raise ValueError(
            f'tool_choice must be "auto", "required", "none" or a function, not {choice!r}'
        )
    if choice == "required" and not functions:
        raise ValueError('tool_choice="required" needs tools')
    return str(choice)


def _constraint_maker(
    functions: FunctionSchemas,
    choice: str,
    parallel: bool,
    response_format: Any,
    *,
    tokenizer: Any,
    vocab_size: int,
    eos_ids: Sequence[int],
) -> Callable[[], Constraint] | None:
    """Return what makes the constraint of one answer, None where any text will do."""

    def compiled(
        what: str, *grammars: Mapping[str, Any], ends: Sequence[int] = eos_ids
    ) -> GrammarConstraint:
        return compile_grammar(grammars, tokenizer, vocab_size, ends, what)

    answer = None if response_format is None else response_grammar(response_format)
    if not functions or choice == "none":
        if answer is not None:
            return compiled("response_format", answer).copy
        start_id = backend_of(tokenizer).token_to_id(START) if functions else None
        return None if start_id is None else lambda: BannedTokens([start_id], vocab_size)

    token_ids = [backend_of(tokenizer).token_to_id(token) for token in (START, END)]
    marked = None not in token_ids
    if choice != "auto":
        if choice != "required":
            functions = {choice[1:]: functions[choice[1:]]}
            parallel = False
        markers = {"start": START, "end": END} if marked else {}
        return compiled("tools", tool_grammar(functions, parallel=parallel, **markers)).copy
    if not marked:
        raise ValueError(
            f'tool_choice="auto" needs a tokenizer with the tokens {START} and {END}; '
            'without them use "required", "none" or a function'
        )
    if answer is not None:
        calls = tool_grammar(functions, parallel=parallel, start=START, end=END)
        either = {"lark_grammar": "start: @calls | @answer"}
        named = {"name": "calls", **calls}, {"name": "answer", **answer}
        return compiled("tools and response_format", either, *named).copy
    calls = tool_grammar(functions, parallel=parallel, end=END)
    inner = compiled("tools", calls, ends=())
    trigger = int(token_ids[0])  # type: ignore[arg-type]
    banned = None if parallel else BannedTokens([trigger], vocab_size)
    return lambda: TriggeredConstraint(trigger, inner, banned)


# -- after generating --


@dataclass(frozen=True)
class _AnswerReader:
    """Turns generated tokens into a `ChatOutput`.

    Attributes:
        functions: what may have been called.
        native: the chat template renders `message["tool_calls"]` by itself.
    """

    tokenizer: Any
    eos_ids: Sequence[int]
    functions: FunctionSchemas
    native: bool

    def read(self, prompt_tokens: int, ids: list[int], finish: str) -> ChatOutput:
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(ids),
            "total_tokens": prompt_tokens + len(ids),
        }
        if finish == "stop" and ids and ids[-1] in self.eos_ids:
            ids = ids[:-1]
        raw = str(self.tokenizer.decode(ids))
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        calls: list[ToolCall] = []
        if self.functions:
            try:
                around, calls = split_tool_calls(raw, list(self.functions.values()))
            except ToolCallError:  # cut off by the limit
                around = raw
            # A list without LFM2's tokens was not constrained: it may be mere text.
            if START not in raw and not all(_fits(call, self.functions) for call in calls):
                calls = []
            elif calls or START in raw:
                text = around if not calls else self._without_special_tokens(around, ids)
        message: dict[str, Any] = {"role": "assistant", "content": raw}
        if calls and self.native:
            message["content"] = text
            message["tool_calls"] = [
                {"id": f"call{index:05}", "type": "function", "function": call}
                for index, call in enumerate(calls)
            ]
        reason = "tool_calls" if calls and finish == "stop" else finish
        return ChatOutput(text, calls, reason, usage, message)

    def _without_special_tokens(self, text: str, ids: list[int]) -> str:
        for token in set(ids).intersection(self.tokenizer.all_special_ids):
            text = text.replace(str(self.tokenizer.convert_ids_to_tokens(token)), "")
        return text


def _fits(call: ToolCall, functions: FunctionSchemas) -> bool:
    parameters = functions[call["name"]]["parameters"]
    given = set(call["arguments"])
    required = set(parameters.get("required") or ())
    return required <= given and given <= required.union(parameters.get("properties") or ())


# -- tools --


def _callables(
    tools: Sequence[Any], functions: Mapping[str, Callable[..., Any]]
) -> dict[str, Callable[..., Any]]:
    names = function_schemas(tools)
    found = {
        name: functions.get(name, tool)
        for name, tool in zip(names, tools, strict=True)
        if name in functions or callable(tool)
    }
    for name in names:
        if name not in found:
            raise ValueError(f"tool {name} is a schema: give its function in functions=")
        if inspect.iscoroutinefunction(found[name]):
            raise ValueError(f"tool {name} is a coroutine function, which cannot be run here")
    for name in functions:
        if name not in names:
            raise ValueError(f"functions: there is no tool named {name!r}")
    return found


def _run_tool(callables: Mapping[str, Callable[..., Any]], call: ToolCall) -> str:
    """Return the tool's result as text; its exception too, for the model to read."""
    function = callables.get(call["name"])
    if function is None:
        return f"Error: there is no tool named {call['name']}"
    try:
        result = function(**call["arguments"])
        if isinstance(result, str):
            return result
        return json.dumps(result, ensure_ascii=False, default=str)
    except Exception as error:
        return f"Error: {type(error).__name__}: {error}"
