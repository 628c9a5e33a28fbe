"""Chat templates: transformers' text, byte for byte, and clear errors."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest

import make_tokenizer_goldens as goldens
import tiny_tokenizer
from lfm_engine.chat_template import ChatTemplateError, render_chat
from lfm_engine.tokenizer import Tokenizer
from lfm_engine.tool_schema import get_json_schema

USER = [{"role": "user", "content": "hello"}]
LFM2_TOKENS: dict[str, Any] = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|pad|>",
}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return tiny_tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["lfm2", "lfm25"])
def test_lfm2_templates_equal_transformers(name: str) -> None:
    file = tiny_tokenizer.LFM2_FOLDER / f"chat_template_{name}.jinja"
    if not file.exists():
        pytest.skip("the LFM2 chat templates are not at hand")
    template = file.read_text(encoding="utf-8")
    expected = json.loads((tiny_tokenizer.GOLDENS / "chats.json").read_text(encoding="utf-8"))
    for chat, options in goldens.cases():
        text = render_chat(
            goldens.CONVERSATIONS[chat], template, **LFM2_TOKENS, **goldens.OPTIONS[options]
        )
        assert text == expected[f"{name}/{chat}/{options}"]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ {'b': 1, 'a': \"<é'>\"} | tojson }}", '{"b": 1, "a": "<é\'>"}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}{{ [1] | tojson(indent=1) }}", '"\\u00e9"[\n 1\n]'),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}{% set x = 1 %}in{% endgeneration %}{{ x is defined }}", "inFalse"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{{ custom }}{{ documents[0].title }}{{ tools is none }}", "7tTrue"),
    ],
)
def test_environment(template: str, text: str) -> None:
    assert render_chat(USER, template, custom=7, documents=[{"title": "t"}]) == text


def test_continues_the_final_message() -> None:
    chat = [*USER, {"role": "assistant", "content": "The answer is "}]
    kept = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    trimmed = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    assert render_chat(chat, kept, continue_final_message=True) == "[hello][The answer is "
    assert render_chat(chat, trimmed, continue_final_message="content") == "[hello][The answer is"
    assert chat[-1]["content"] == "The answer is "
    parts: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "ab"}]}]
    text = render_chat(parts, "{{ messages[0].content[0].text }}!", continue_final_message=True)
    assert text == "ab"
    for template in ("content", "none"):
        with pytest.raises(ValueError, match="continue_final_message"):
            render_chat(chat, template, continue_final_message=True)
    with pytest.raises(ValueError, match="exclude each other"):
        render_chat(chat, kept, continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(ValueError, match="no text in 'content'"):
        render_chat([{"role": "user"}], kept, continue_final_message=True)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages is empty"),
        ("hello", "not str"),
        ({"role": "user"}, "not dict"),
        (None, "not NoneType"),
        ([USER[0], 3], r"messages\[1\] must be a dict, not int"),
        ([{"content": "x"}], r"messages\[0\] has no 'role'"),
    ],
)
def test_malformed_messages(messages: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        render_chat(messages, "x")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("a\n{% if %}", "line 2"),
        ("{{ messages[0].content.no.thing }}", "has no attribute 'no'"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].nothing | tojson }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_failing_templates(template: str, problem: str) -> None:
    with pytest.raises(ChatTemplateError, match=problem):
        render_chat(USER, template)


def test_wrong_tools_and_documents() -> None:
    with pytest.raises(ValueError, match=r"tools\[0\] must be a JSON schema"):
        render_chat(USER, "x", tools=["f"])
    with pytest.raises(ValueError, match="tools must be a list"):
        render_chat(USER, "x", tools={"name": "f"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="documents"):
        render_chat(USER, "x", documents=["d"])  # type: ignore[list-item]


def test_apply_chat_template_returns_what_is_asked_for(tokenizer: Tokenizer) -> None:
    text = "<bos><im>user\nhello<eos>\n<im>assistant\n"
    prompt: dict[str, Any] = {"add_generation_prompt": True}
    assert tokenizer.apply_chat_template(USER, tokenize=False, **prompt) == text
    encoding = tokenizer.apply_chat_template(USER, **prompt)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert encoding.input_ids == ids
    assert encoding.attention_mask == [1] * len(ids)
    assert tokenizer.apply_chat_template(USER, return_dict=False, **prompt) == ids
    array = tokenizer.apply_chat_template(USER, return_tensors="np", **prompt).input_ids
    assert array.shape == (1, len(ids))
    batch = [USER, [*USER, *USER]]
    assert tokenizer.apply_chat_template(batch, tokenize=False, **prompt)[0] == text
    padded = tokenizer.apply_chat_template(batch, padding=True, return_tensors="np")
    assert padded.attention_mask[0, 0] == 0
    assert tokenizer.apply_chat_template(USER, tokenize=False, chat_template="own") == "own"
    with pytest.raises(ValueError, match="return_assistant_tokens_mask"):
        tokenizer.apply_chat_template(USER, return_assistant_tokens_mask=True)


def described(
    a: list[int],
    b: dict[str, float],
    c: tuple[int, str],
    d: Union[int, str],  # noqa: UP007
    e: Literal["x", "y"],
    f: Any,
    g: Optional[bool] = None,  # noqa: UP045
    h: str = "t",
) -> list[str]:
    """Do it all.

    In two paragraphs.

    Args:
        a: first
            and more
        b: second
        c: third
        d: fourth
        e: fifth
        f: sixth
        g: seventh
        h: eighth (choices: ["t", "u"])

    Returns:
        A list.
    """
    return []


def test_schema_of_a_function() -> None:
    schema = get_json_schema(described)
    # As transformers 5.18 gives it.
    assert schema == {
        "type": "function",
        "function": {
            "name": "described",
            "description": "Do it all.\n\nIn two paragraphs.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "description": "first and more",
                    },
                    "b": {
                        "type": "object",
                        "additionalProperties": {"type": "number"},
                        "description": "second",
                    },
                    "c": {
                        "type": "array",
                        "prefixItems": [{"type": "integer"}, {"type": "string"}],
                        "description": "third",
                    },
                    "d": {"type": ["integer", "string"], "description": "fourth"},
                    "e": {"type": "string", "enum": ["x", "y"], "description": "fifth"},
                    "f": {"description": "sixth"},
                    "g": {"type": "boolean", "nullable": True, "description": "seventh"},
                    "h": {"type": "string", "enum": ["t", "u"], "description": "eighth"},
                },
                "required": ["a", "b", "c", "d", "e", "f"],
            },
            "return": {
                "type": "array",
                "items": {"type": "string"},
                "description": "A list.",
            },
        },
    }


def test_undescribed_functions() -> None:
    def no_doc(a: int) -> None: ...

    def no_hint(a) -> None:  # type: ignore[no-untyped-def]
        """Doc."""

    def no_text(a: int) -> None:
        """Doc."""

    for function, problem in (
        (no_doc, "no docstring"),
        (no_hint, "type hint"),
        (no_text, "argument a"),
    ):
        with pytest.raises(ValueError, match=problem):
            get_json_schema(function)
