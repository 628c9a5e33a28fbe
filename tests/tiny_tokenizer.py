"""A byte-level BPE tokenizer of 270 tokens, for tests that must run without a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from lfm_engine.tokenizer import AutoTokenizer, Tokenizer

SPECIAL = ["<pad>", "<bos>", "<eos>", "<im>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ġw", "o"), ("1", "2")]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<im>{{ message.role }}\n"
    "{{ message.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<im>assistant\n{% endif %}"
)
TOOL_TOKENS = ["<|tool_call_start|>", "<|tool_call_end|>"]
# As LFM2's: tools in the system message, results in messages of the role "tool".
TOOL_TEMPLATE = (
    "{{ bos_token }}{% if tools %}<im>system\nList of tools: {{ tools | tojson }}<eos>\n{% endif %}"
    "{% for message in messages %}<im>{{ message.role }}\n{{ message.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<im>assistant\n{% endif %}"
)
LFM2_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "lfm2_tokenizer"
GOLDENS = Path(__file__).parent / "goldens" / "tokenizer"


def tokens() -> list[str]:
    """The vocabulary in the order of its ids: 4 special tokens, 256 bytes, 7 merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL, *alphabet, *("".join(pair) for pair in MERGES)]


def backend() -> Backend:
    vocabulary = {token: index for index, token in enumerate(tokens())}
    result = Backend(models.BPE(vocab=vocabulary, merges=MERGES))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    result.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 1)]
    )
    return result


def write(folder: Path, template: Any = TEMPLATE, **config: Any) -> Path:
    """Write the tokenizer's files into `folder`; `config` goes into tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    backend().save(str(folder / "tokenizer.json"))
    content = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "pad_token": "<pad>"}
    if template is not None:
        content["chat_template"] = template
    text = json.dumps({**content, **config})
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return folder


def load(folder: Path, **config: Any) -> Tokenizer:
    return AutoTokenizer.from_pretrained(write(folder, **config))


def load_with_tools(folder: Path, template: str = TOOL_TEMPLATE) -> Tokenizer:
    """The tokenizer with two more special tokens, 267 and 268, and a template for tools."""
    added = {str(267 + i): {"content": t, "special": True} for i, t in enumerate(TOOL_TOKENS)}
    return load(folder, template=template, added_tokens_decoder=added)
