"""`model.chat`: tool_choice, response formats, what comes back, bad input."""

from __future__ import annotations

import json
import threading
from typing import Any

import jsonschema
import pytest

import tiny_tokenizer
from lfm_engine import (
    CausalLM,
    ChatOutput,
    TextIteratorStreamer,
)
from lfm_engine.tokenizer import Tokenizer
from structured import SAMPLE, json_format
from tools import END, FLAG, START, USER, add, chatted, get_weather, tool, validator

pytestmark = pytest.mark.engine


# -- tool_choice --


def test_auto_is_free_text_until_a_call(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    tools = [tool("now"), tool("f", ["x"], x=FLAG), tool("g", a={"enum": [1, "b"]})]
    schemas = dict(validator(entry) for entry in tools)
    reasons: dict[str, int] = {}
    blocks = 0
    for seed in range(60):
        options: dict[str, Any] = {"seed": seed, "eos_token_id": [2, 30]}
        found = chatted(chat_model, chat_tokenizer, tools=tools, **options)
        reasons[found.finish_reason] = reasons.get(found.finish_reason, 0) + 1
        raw = found.message["content"]
        blocks += raw.count(START)
        for call in found.tool_calls:
            jsonschema.validate(call["arguments"], schemas[call["name"]])
        if found.finish_reason == "tool_calls":
            assert raw.count(END) >= raw.count(START) > 0
            assert not any(token in found.text for token in (START, END, "<im>", "<pad>"))
        if START not in raw:
            # What constrains nothing changes nothing.
            ids = chat_tokenizer.apply_chat_template(
                USER, tools=tools, add_generation_prompt=True, return_dict=False
            )
            free = chat_model.generate(ids, max_new_tokens=400, **SAMPLE, **options)[0, len(ids) :]
            ended = int(free[-1]) in options["eos_token_id"]
            assert raw == chat_tokenizer.decode(free[:-1] if ended else free)
            assert found.usage["completion_tokens"] == len(free)
    assert blocks > 3
    assert reasons["tool_calls"] > 1
    assert reasons["stop"] > 1


def test_tool_choice(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    tools = [get_weather, tool("now"), add]
    options: dict[str, Any] = {"tools": tools}
    most = 0
    calls_of_none = 0
    for seed in range(20):
        options["seed"] = seed
        found = chatted(chat_model, chat_tokenizer, **options, tool_choice="required")
        most = max(most, len(found.tool_calls))
        found = chatted(
            chat_model,
            chat_tokenizer,
            **options,
            tool_choice="required",
            parallel_tool_calls=False,
        )
        assert found.finish_reason == "length" or len(found.tool_calls) == 1
        choice = {"type": "function", "function": {"name": "now"}}
        found = chatted(chat_model, chat_tokenizer, **options, tool_choice=choice)
        assert found.tool_calls == [{"name": "now", "arguments": {}}]
        # No model step is needed for it: the random model would not have said it.
        assert found.message["content"] == f"{START}[now()]{END}"
        found = chatted(chat_model, chat_tokenizer, **options, tool_choice="none")
        assert START not in found.message["content"]
        assert found.tool_calls == []
        free = chatted(chat_model, chat_tokenizer, seed=seed)
        calls_of_none += START in free.message["content"]
        once = chatted(
            chat_model, chat_tokenizer, **options, parallel_tool_calls=False, eos_token_id=[]
        )
        assert once.message["content"].count(START) <= 1
    assert most > 1
    assert calls_of_none > 1  # a free model does say the token


def test_response_format_in_a_chat(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": FLAG}, "required": ["a"]}
    texts = calls = 0
    for seed in range(12):
        found = chatted(chat_model, chat_tokenizer, response_format=json_format(schema), seed=seed)
        jsonschema.validate(json.loads(found.text), schema)
        assert found.finish_reason == "stop"
        for response_format in (json_format(schema), {"type": "lark", "lark": 'start: "x" /y+z/'}):
            both = chatted(
                chat_model,
                chat_tokenizer,
                tools=[tool("f", x=FLAG)],
                response_format=response_format,
                seed=seed,
            )
            if both.tool_calls:
                calls += 1
                assert both.text == ""
                assert {call["name"] for call in both.tool_calls} == {"f"}
            elif both.finish_reason == "stop":
                texts += 1
                if response_format["type"] == "lark":
                    assert both.text.startswith("xy")
                else:
                    jsonschema.validate(json.loads(both.text), schema)
        forced = chatted(
            chat_model,
            chat_tokenizer,
            tools=[tool("f")],
            tool_choice="required",
            response_format=json_format(schema),
            seed=seed,
        )
        assert forced.tool_calls or forced.finish_reason == "length"
    assert texts > 1
    assert calls > 1


def test_without_the_tokens_of_lfm2(chat_model: CausalLM, tmp_path: Any) -> None:
    tokenizer = tiny_tokenizer.load(tmp_path / "t", template=tiny_tokenizer.TOOL_TEMPLATE)
    with pytest.raises(ValueError, match=r'tool_choice="auto" needs a tokenizer with the tokens'):
        chatted(chat_model, tokenizer, tools=[add])
    found = chatted(chat_model, tokenizer, tools=[tool("f", ["x"], x=FLAG)], tool_choice="required")
    assert found.tool_calls
    assert found.message["content"].startswith("[f(x=")
    free = chatted(chat_model, tokenizer, tools=[add], tool_choice="none", max_new_tokens=5)
    assert free.tool_calls == []


# -- what comes back --


def test_the_output(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    ids = chat_tokenizer.apply_chat_template(USER, add_generation_prompt=True, return_dict=False)
    found = chatted(
        chat_model,
        chat_tokenizer,
        response_format={"type": "choice", "choice": ["hello world"]},
    )
    tokens = len(chat_tokenizer.encode("hello world", False)) + 1  # and the end
    assert found == ChatOutput(
        text="hello world",
        tool_calls=[],
        finish_reason="stop",
        usage={
            "prompt_tokens": len(ids),
            "completion_tokens": tokens,
            "total_tokens": len(ids) + tokens,
        },
        message={"role": "assistant", "content": "hello world"},
    )
    cut = chatted(
        chat_model,
        chat_tokenizer,
        max_new_tokens=3,
        response_format={"type": "choice", "choice": ["hello world"]},
    )
    assert cut.finish_reason == "length"
    assert cut.usage["completion_tokens"] == min(3, tokens)


def test_a_call_cut_off_by_the_limit(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    whole = f"{START}[now()]{END}"
    count = len(chat_tokenizer.encode(whole, False))
    for limit in range(1, count + 2):
        found = chatted(
            chat_model,
            chat_tokenizer,
            tools=[tool("now")],
            tool_choice=choice,
            max_new_tokens=limit,
        )
        raw = found.message["content"]
        assert whole.startswith(raw)
        assert found.finish_reason == ("tool_calls" if limit > count else "length")
        assert bool(found.tool_calls) == ("now()]" in raw)
        if not found.tool_calls:
            assert found.text == raw


def test_several_conversations(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    conversations = [USER, [{"role": "user", "content": "world 12"}], USER * 3]
    options: dict[str, Any] = {
        "tokenizer": chat_tokenizer,
        "max_new_tokens": 200,
        "do_sample": False,
        "repetition_penalty": 1.5,
        "tools": [add],
        "tool_choice": "required",
    }
    together = chat_model.chat(conversations, **options)
    assert together == [chat_model.chat(one, **options) for one in conversations]


def test_defaults(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    found = chat_model.chat(USER, tokenizer=chat_tokenizer, eos_token_id=[])
    assert found.usage["completion_tokens"] == 1024
    assert found.finish_reason == "length"
    long = [{"role": "user", "content": "x" * 19_500}]
    found = chat_model.chat(long, tokenizer=chat_tokenizer, eos_token_id=[])
    assert found.usage["total_tokens"] == 20_000  # what the context leaves
    assert (
        chat_model.chat(USER, tokenizer=chat_tokenizer, max_length=40, eos_token_id=[]).usage[
            "total_tokens"
        ]
        == 40
    )


def test_templates_that_know_tool_calls(chat_model: CausalLM, tmp_path: Any) -> None:
    template = tiny_tokenizer.TOOL_TEMPLATE.replace(
        "{{ message.content }}",
        "{{ message.content }}{{ message.tool_calls | default([]) | tojson }}",
    )
    tokenizer = tiny_tokenizer.load_with_tools(tmp_path / "t", template)
    found = chatted(
        chat_model,
        tokenizer,
        tools=[tool("now")],
        tool_choice={"type": "function", "function": {"name": "now"}},
    )
    assert found.message == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "call00000", "type": "function", "function": {"name": "now", "arguments": {}}}
        ],
    }


def test_template_variables(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    template = "{{ bos_token }}{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}"
    counts = [
        chatted(
            chat_model,
            chat_tokenizer,
            chat_template=template,
            template_variables={"mood": mood},
            max_new_tokens=1,
        ).usage["prompt_tokens"]
        for mood in ("", "abc")
    ]
    assert counts[1] == counts[0] + 3


def test_streaming(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    streamer = TextIteratorStreamer(chat_tokenizer, skip_prompt=True, timeout=30)
    options = {"response_format": {"type": "choice", "choice": ["hello world"]}}
    chatted(chat_model, chat_tokenizer, streamer=streamer, **options)
    assert "".join(streamer) == "hello world<eos>"
    # An error before the first token reaches the thread that waits.
    streamer = TextIteratorStreamer(chat_tokenizer, timeout=30)
    errors = []

    def run() -> None:
        try:
            chatted(chat_model, chat_tokenizer, streamer=streamer, tool_choice="all")
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with pytest.raises(ValueError, match="tool_choice must be"):
        list(streamer)
    thread.join()
    assert len(errors) == 1


# -- bad input --


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": [USER, []]}, "messages is empty"),
        ({"tools": "f"}, "tools must be a list"),
        ({"tools": [3]}, r"tools\[0\] must be a JSON schema"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\] has no name"),
        ({"tools": [tool("f"), tool("f")]}, "two tools named f"),
        ({"tools": [tool("f g")]}, "'f g' cannot be the name of a tool"),
        ({"tools": [tool("f")], "tool_choice": "any"}, "tool_choice must be"),
        ({"tools": [tool("f")], "tool_choice": {"type": "function"}}, "tool_choice must be"),
        (
            {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "no tool named 'g'",
        ),
        ({"tool_choice": "required"}, 'tool_choice="required" needs tools'),
        ({"tools": [], "tool_choice": "required"}, 'tool_choice="required" needs tools'),
        ({"response_format": {"type": "yaml"}}, "response_format: type"),
        ({"temprature": 1}, "temprature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, "context of 20000"),
    ],
)
def test_bad_input(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, options: Any, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        chatted(chat_model, chat_tokenizer, **options)
    with pytest.raises(ValueError, match="needs tokenizer="):
        chat_model.chat(USER, tokenizer=None)
