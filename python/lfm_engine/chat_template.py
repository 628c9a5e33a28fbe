"""Chat templates: messages in, the text of a prompt out, by the rules of `transformers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import jinja2

from .jinja_environment import compile_template
from .tool_schema import tool_schemas

Message = Mapping[str, Any]

# The same mark as in transformers: a template may look at the message that carries it.
_CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplateError(ValueError):
    """A chat template is missing or wrong, or it refuses the messages given."""


def is_batch(conversation: Any) -> bool:
    """Tell a list of conversations from one conversation."""
    return (
        isinstance(conversation, (list, tuple))
        and len(conversation) > 0
        and isinstance(conversation[0], (list, tuple))
    )


def render_chat(
    messages: Sequence[Message],
    template: str,
    *,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    **variables: Any,
) -> str:
    """Render one conversation to the text of its prompt.

    Args:
        messages: mappings with a `role` and usually a `content`.
        template: Jinja source.
        tools: JSON schemas or documented functions.
        documents: mappings, passed to the template.
        add_generation_prompt: ask the template for the header of the assistant's answer.
        continue_final_message: leave the last message open, to be continued; a string names its
            field.
        variables: whatever else the template reads (`bos_token`, `keep_past_thinking`, ...).

    Raises:
        ValueError: malformed messages, tools or documents, or a template that fails
            (`ChatTemplateError`).
    """
    check_messages(messages)
    if documents is not None and not all(isinstance(document, Mapping) for document in documents):
        raise ValueError("documents must be a list of dicts")
    chat: list[Any] = list(messages)
    text_to_continue = ""
    if continue_final_message:
        if add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        field = continue_final_message if isinstance(continue_final_message, str) else "content"
        if field not in template:
            raise ValueError(
                f"continue_final_message: the chat template does not use the field {field!r}"
            )
        chat[-1], text_to_continue = _mark_final_message(chat[-1], field)
    schemas = tool_schemas(tools)
    try:
        compiled = compile_template(template)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(f"chat template, line {error.lineno}: {error.message}") from error
    try:
        rendered = compiled.render(
            messages=chat,
            tools=schemas,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except jinja2.TemplateError as error:
        raise ChatTemplateError(
            f"chat template: {error.message or type(error).__name__}"
        ) from error
    except Exception as error:  # a template runs arbitrary expressions on the caller's messages
        raise ChatTemplateError(
            f"chat template failed on these messages: {type(error).__name__}: {error}"
        ) from error
    return _cut_at_mark(rendered, text_to_continue) if continue_final_message else rendered


def check_messages(messages: Any) -> None:
    """Raise ValueError unless `messages` is a non-empty list of mappings with a `role` string."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(
            'messages must be a list of {"role": ..., "content": ...}, '
            f"not {type(messages).__name__}"
        )
    if not messages:
        raise ValueError("messages is empty: a conversation needs at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"messages[{index}] must be a dict, not {type(message).__name__}")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{index}] has no 'role' string")


def _mark_final_message(message: Message, field: str) -> tuple[dict[str, Any], str]:
    """Return a copy of the last message whose text ends in the mark, and the text without it."""
    marked: dict[str, Any] = deepcopy(dict(message))
    content = marked.get(field)
    if isinstance(content, str):
        marked[field] = content + _CONTINUE_MARK
        return marked, content
    for block in reversed(content if isinstance(content, (list, tuple)) else ()):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text: str = block["text"]
            block["text"] = text + _CONTINUE_MARK
            return marked, text
    raise ValueError(
        f"continue_final_message: the last message has no text in {field!r} to continue"
    )


def _cut_at_mark(rendered: str, text: str) -> str:
    position = rendered.rfind(_CONTINUE_MARK.strip())
    if position < 0 or text.strip() not in rendered:
        raise ChatTemplateError(
            "continue_final_message: the chat template does not keep the last message's text"
        )
    if rendered.startswith(_CONTINUE_MARK, position):
        return rendered[:position]
    # The template trimmed the message, so the text before the mark is trimmed as well.
    return rendered[:position].rstrip()
