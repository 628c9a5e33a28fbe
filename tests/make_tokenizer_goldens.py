"""Make goldens/tokenizer/*.json: what transformers does with LFM2's tokenizer and chat templates.

Needs transformers and the tokenizer's folder:
    python tests/make_tokenizer_goldens.py ../shared/data/lfm2_tokenizer
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TEXTS = [
    "",
    " ",
    "Hello world",
    "  leading, trailing  ",
    "I'm you're WE'LL it'S don'T",
    "0 12 123 1234 1234567890 3.14159 ½ ٣٤٥",
    "def f(x):\n    return x**2  # comment\n\n\tif x:\r\n\t\tpass\n",
    "Ünïcödé 你好，世界！ こんにちは 한국어 العربية हिन्दी ไทย",
    "😀👩‍👩‍👧‍👦🇩🇪 \u200b\ufeff e\u0301",
    "<|im_start|>user\nhi<|im_end|>\n<|startoftext|>x<|tool_call_start|>[f(a=1)]<|tool_call_end|>",
    "\x00\x01\x7f\x80\xff ſ K ’s",
]


def get_weather(city: str, unit: str = "c") -> dict[str, Any]:
    """Get the weather.

    Args:
        city: The city, e.g. "Zürich" & <others>
        unit: Unit (choices: ["c", "f"])
    """
    return {}


SCHEMA = {"type": "function", "function": {"name": "é", "parameters": {"<x>": "it's"}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"role": "user", "content": "Hi"}],
    "system": [
        {"role": "system", "content": 'Be <nice> & "good"\n'},
        {"role": "user", "content": "Hällo 😀 "},
    ],
    "thinking": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "<think>a\nb</think>  yes "},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "<think>z</think>fine"},
        {"role": "user", "content": "ok"},
    ],
    "tools": [
        {"role": "user", "content": "w?"},
        {"role": "assistant", "content": '<|tool_call_start|>[f(x="y")]<|tool_call_end|>'},
        {"role": "tool", "content": '{"t": 3}'},
        {"role": "tool", "content": {"t": [1, 2.5, None, True, "é<&>'"]}},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "multi ü"}]},
    ],
    "open": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is  "}],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "prompt": {"add_generation_prompt": True},
    "with_tools": {"add_generation_prompt": True, "tools": [get_weather, SCHEMA]},
    "no_tools": {"tools": []},
    "keep_thinking": {"keep_past_thinking": True},
    "continued": {"continue_final_message": True},
}


def cases() -> list[tuple[str, str]]:
    """Names of a conversation and of options that go together."""
    return [
        (chat, options)
        for chat in CONVERSATIONS
        for options in OPTIONS
        if options != "continued" or chat == "open"
    ]


def main(folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    chats = {}
    for name in ("lfm2", "lfm25"):
        template = (folder / f"chat_template_{name}.jinja").read_text(encoding="utf-8")
        for chat, options in cases():
            chats[f"{name}/{chat}/{options}"] = tokenizer.apply_chat_template(
                CONVERSATIONS[chat], chat_template=template, tokenize=False, **OPTIONS[options]
            )
    target = Path(__file__).parent / "goldens" / "tokenizer"
    target.mkdir(parents=True, exist_ok=True)
    for name, content in (("ids", ids), ("chats", chats)):
        text = json.dumps(content, ensure_ascii=True, indent=1) + "\n"
        (target / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
