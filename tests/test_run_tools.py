"""`model.run_tools`: calls are run, results and errors go back, the limit holds."""

from __future__ import annotations

from typing import Any

import pytest

import tiny_tokenizer
from lfm_engine import (
    AutoTokenizer,
    CausalLM,
    ChatOutput,
    render_tool_calls,
)
from lfm_engine.chat import run_tools
from lfm_engine.tokenizer import Tokenizer
from structured import SAMPLE
from tools import END, START, USER, add, get_weather, tool

# -- the loop --


class Scripted:
    """Answers with what it was given, and keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[list[Any], dict[str, Any]]] = []

    def chat(self, messages: Any, **options: Any) -> ChatOutput:
        self.asked.append((list(messages), options))
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        calls = answer if isinstance(answer, list) else []
        text = answer if isinstance(answer, str) else ""
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        content = render_tool_calls(calls) if calls else text
        message = {"role": "assistant", "content": content}
        return ChatOutput(text, calls, "tool_calls" if calls else "stop", usage, message)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def test_the_loop() -> None:
    model = Scripted([call("get_weather", city="Paris"), call("add", a=1, b=2)], "Sunny.")
    run = run_tools(
        model, USER, tokenizer=1, tools=[get_weather, add], seed=3, tool_choice="required"
    )
    assert run.text == "Sunny."
    assert run.finish_reason == "stop"
    assert run.messages == [
        *USER,
        {
            "role": "assistant",
            "content": f'{START}[get_weather(city="Paris"), add(a=1, b=2)]{END}',
        },
        {"role": "tool", "name": "get_weather", "content": "sunny in Paris, 20 celsius"},
        {"role": "tool", "name": "add", "content": "3"},
        {"role": "assistant", "content": "Sunny."},
    ]
    assert len(USER) == 1
    assert len(run.steps) == 2
    assert run.usage == {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    assert [options["tool_choice"] for _, options in model.asked] == ["required", "auto"]
    assert all(options["seed"] == 3 for _, options in model.asked)
    assert model.asked[1][0] == run.messages[:-1]


def test_the_step_limit() -> None:
    ran = []

    def note(text: str) -> None:
        """Note a text.

        Args:
            text: what.
        """
        ran.append(text)

    model = Scripted([call("note", text="x")])
    for steps in (1, 3):
        ran.clear()
        run = run_tools(model, USER, tokenizer=1, tools=[note], max_steps=steps)
        assert len(run.steps) == steps
        assert run.finish_reason == "tool_calls"
        assert ran == ["x"] * (steps - 1)
        assert run.messages[-1]["role"] == "assistant"
        assert all(m["content"] == "null" for m in run.messages if m["role"] == "tool")
    for bad in (0, -1, True, 1.5, "3"):
        with pytest.raises(ValueError, match="max_steps must be"):
            run_tools(model, USER, tokenizer=1, tools=[note], max_steps=bad)


def test_tools_that_fail_tell_the_model() -> None:
    def broken(x: int) -> int:
        """Fail.

        Args:
            x: what.
        """
        raise KeyError(f"no {x}")

    def strange() -> Any:
        """Return what JSON has no form for."""
        return {"a": {1, 2}.__class__, "b": "ü"}

    def stop() -> None:
        """Interrupt."""
        raise KeyboardInterrupt

    model = Scripted(
        [call("broken", x=1), call("broken"), call("absent"), call("strange"), call("broken", y=2)],
        "ok",
    )
    run = run_tools(model, USER, tokenizer=1, tools=[broken, strange])
    results = [m["content"] for m in run.messages if m["role"] == "tool"]
    assert results[0] == "Error: KeyError: 'no 1'"
    assert results[1].startswith("Error: TypeError: ")
    assert results[2] == "Error: there is no tool named absent"
    assert results[3] == '{"a": "<class \'set\'>", "b": "ü"}'
    assert results[4].startswith("Error: TypeError: ")
    with pytest.raises(KeyboardInterrupt):
        run_tools(Scripted([call("stop")]), USER, tokenizer=1, tools=[stop])


def test_schemas_with_their_functions() -> None:
    async def later() -> None:
        """Wait."""

    model = Scripted([call("f", x=1)], "ok")
    run = run_tools(
        model, USER, tokenizer=1, tools=[tool("f", x={})], functions={"f": lambda x: x + 1}
    )
    assert run.messages[2]["content"] == "2"
    for tools, functions, message in (
        ([tool("f")], None, "tool f is a schema: give its function"),
        ([tool("f")], {"f": print, "g": print}, "no tool named 'g'"),
        ([later], None, "later is a coroutine function"),
    ):
        with pytest.raises(ValueError, match=message):
            run_tools(model, USER, tokenizer=1, tools=tools, functions=functions)


def test_the_loop_with_a_model(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    results = []

    def twice(x: bool) -> bool:
        """Say it again.

        Args:
            x: what.
        """
        assert isinstance(x, bool)
        results.append(x)
        return x

    run = chat_model.run_tools(
        USER,
        tokenizer=chat_tokenizer,
        tools=[twice],
        tool_choice={"type": "function", "function": {"name": "twice"}},
        max_new_tokens=30,
        seed=1,
        **SAMPLE,
    )
    assert results
    assert run.messages[1]["content"] == f"{START}[twice(x={results[0]})]{END}"
    assert run.messages[2] == {"role": "tool", "name": "twice", "content": str(results[0]).lower()}
    assert run.steps[1].usage["prompt_tokens"] > run.steps[0].usage["prompt_tokens"]


@pytest.mark.parametrize("name", ["chat_template_lfm2.jinja", "chat_template_lfm25.jinja"])
def test_results_in_the_templates_of_lfm2(name: str) -> None:
    if not tiny_tokenizer.LFM2_FOLDER.is_dir():
        pytest.skip("needs ../shared")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.LFM2_FOLDER)
    template = (tiny_tokenizer.LFM2_FOLDER / name).read_text(encoding="utf-8")
    model = Scripted([call("add", a=1, b=2)], "3.")
    run = run_tools(model, USER, tokenizer=tokenizer, tools=[add])
    text = tokenizer.apply_chat_template(
        run.messages, tools=[add], chat_template=template, tokenize=False
    )
    result = "<|tool_response_start|>3<|tool_response_end|>" if name.endswith("lfm2.jinja") else "3"
    assert text.endswith(
        f"<|im_start|>user\nhello<|im_end|>\n"
        f"<|im_start|>assistant\n{START}[add(a=1, b=2)]{END}<|im_end|>\n"
        f"<|im_start|>tool\n{result}<|im_end|>\n"
        f"<|im_start|>assistant\n3.<|im_end|>\n"
    )
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids.count(10) == ids.count(11) == 1
