"""The tokenizer: LFM2's byte-level pre-tokenizer and special tokens over a small vocabulary.

An entry is a whole word of the templates and instructions, or a byte. `ignore_merges` takes a word
that is an entry as it is; any other word falls into its bytes. Names of tools, keys and all values
are kept out of the vocabulary, so copying them is the same skill over the same few symbols,
whether the word stands after a space, a quote, a bracket or an underscore.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

import values
import words
from data import draw

SPECIAL = [
    "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>",
    "<|im_start|>", "<|im_end|>", "<|tool_list_start|>", "<|tool_list_end|>",
    "<|tool_call_start|>", "<|tool_call_end|>", "<|tool_response_start|>",
    "<|tool_response_end|>", "<|reserved_0|>", "<|reserved_1|>",
]  # fmt: skip
PAD, BOS, EOS = 0, 1, 7
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
_BYTES = {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_SAMPLES, _ENOUGH = 9_000, 9
# Words that made-up values may happen to be, but that matter more as words.
_KEPT = set("the for to name please this that not no do she we me so one use the be he".split())
_ROLES = ("system", "user", "assistant", "tool", "List")
_VOCAB_MULTIPLE = 64
_MADE_UP = re.compile(
    f"(({'|'.join(values.ONSETS)})({'|'.join(values.VOWELS)})){{1,2}}({'|'.join(values.CODAS)})"
)


def _spelled_words() -> set[str]:
    """Return the words that must not be entries: parts of names, keys and values."""
    lists = [
        words.FIRST_NAMES, words.PLACES, words.THINGS, words.CURRENCIES, words.UNITS,
        words.LANGUAGES, words.STREETS, words.NOUNS, words.HELD_NOUNS,
    ]  # fmt: skip
    found = {word.lower() for entries in lists for word in entries}
    found.update(verb for group in words.VERBS for verb in group.split())
    for entry in re.split(r"[;\n]", words.KEYS + words.HELD_KEYS):
        found.update(entry.split()[0].split("_") if entry.strip() else [])
    for line in words.TOOLS + words.HELD_TOOLS:
        name, _, parameters, _ = line.split(" | ")
        found.update(name.split("_"))
        for parameter in parameters.split():
            key, kind = parameter.split(":")
            found.update(key.split("_"))
            found.update(kind.rstrip("?").split("/") if "/" in kind else [])
    return found - {"a", "on", "off"}


def _describe(vocabulary: dict[str, int]) -> dict[str, Any]:
    """Return the content of tokenizer.json."""
    special = [
        {"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for index, text in enumerate(SPECIAL)
    ]  # fmt: skip
    bos = SPECIAL[BOS]
    template = [
        {"SpecialToken": {"id": bos, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    pair = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZER,
        "post_processor": {
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", **_BYTES, "trim_offsets": False},
                {
                    "type": "TemplateProcessing",
                    "single": template,
                    "pair": template + pair,
                    "special_tokens": {bos: {"id": bos, "ids": [BOS], "tokens": [bos]}},
                },
            ],
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel", **_BYTES}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def build(seed: int) -> dict[str, Any]:
    """Count the words of examples, keep the frequent ones, return the content of tokenizer.json."""
    bytes_only = {text: index for index, text in enumerate(SPECIAL)}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        bytes_only[letter] = len(bytes_only)
    splitter = Tokenizer.from_str(json.dumps(_describe(bytes_only))).pre_tokenizer
    spelled = _spelled_words()
    special = re.compile("|".join(re.escape(text) for text in SPECIAL))
    counts: Counter[str] = Counter()
    for index in range(_SAMPLES):
        # Half of them classifications: their words are what their labels hang on.
        example = draw(seed, index, task="classify" if index % 2 else None)
        for part in special.split(example.prompt() + example.answer):
            counts.update(text for text, _ in splitter.pre_tokenize_str(part))
    vocabulary = dict(bytes_only)
    for text, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        if count < _ENOUGH or text in vocabulary:
            continue
        letters = re.sub(r"[^a-z]", "", text.lower())
        value = letters in spelled or _MADE_UP.fullmatch(letters) or re.search(r"\d|.[A-Z]$", text)
        if value and text not in _ROLES and letters not in _KEPT:
            continue
        vocabulary[text] = len(vocabulary)
    return _describe(vocabulary)


def padded_size(vocabulary: dict[str, int]) -> int:
    return -(-len(vocabulary) // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def write(folder: Path, seed: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(build(seed), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    config = {
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "pad_token": SPECIAL[PAD],
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
