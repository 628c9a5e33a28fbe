"""Tokenizers from the metadata of a GGUF file.

GGUF stores the vocabulary, the merges or scores, and the name of a text splitter
(`tokenizer.ggml.pre`), whose rule lives in the program that reads the file. A splitter that is not
known here is an error: a wrong split gives wrong tokens without any sign of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)
from tokenizers import (
    Tokenizer as Backend,
)

from .tokenizer_base import Tokenizer, set_affixes

# Values of tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_SPLIT = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2_SPLIT = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"


@dataclass(frozen=True)
class _Splitter:
    """How a `tokenizer.ggml.pre` cuts text into words, and what goes with it.

    `split` None is GPT-2's own rule. `ignore_merges`: a word that is a token as a whole is not cut.
    """

    split: str | None = None
    single_digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


# Each as in the tokenizer.json of the models that carry the name.
_SPLITTERS = {
    "gpt-2": _Splitter(),
    "default": _Splitter(),
    "smollm": _Splitter(single_digits=True),
    "lfm2": _Splitter(_LLAMA3_SPLIT, add_bos=True),
    "llama-bpe": _Splitter(_LLAMA3_SPLIT, ignore_merges=True, add_bos=True),
    "llama3": _Splitter(_LLAMA3_SPLIT, ignore_merges=True, add_bos=True),
    "llama-v3": _Splitter(_LLAMA3_SPLIT, ignore_merges=True, add_bos=True),
    "qwen2": _Splitter(_QWEN2_SPLIT, nfc=True),
}


def load_gguf_tokenizer(path: Path) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no GGUF file, or its tokenizer is incomplete or of a kind not supported.
    """
    from .checkpoint.gguf_header import read_metadata  # late: brings the gguf package

    return tokenizer_from_metadata(read_metadata(path), str(path))


def tokenizer_from_metadata(metadata: dict[str, Any], source: str) -> Tokenizer:
    """Build a tokenizer from a file's metadata; `source` names the file in errors.

    Raises:
        ValueError: the metadata is incomplete, contradicts itself, or names a kind that is not
            supported.
    """
    prefix = "tokenizer.ggml."
    fields = {
        name.removeprefix(prefix): metadata[name] for name in metadata if name.startswith(prefix)
    }
    tokens = _strings(fields, "tokens", source)
    types = _numbers(fields, "token_type", len(tokens), source) or [_NORMAL] * len(tokens)
    vocabulary = _vocabulary(tokens, types, source)
    kind = fields.get("model")
    if kind == "gpt2":
        backend, add_bos = _byte_level(fields, vocabulary, source)
    elif kind == "llama":
        backend, add_bos = _sentencepiece(fields, vocabulary, types, source), True
    else:
        raise ValueError(
            f"{source}: tokenizer.ggml.model {kind!r} is not supported (gpt2 and llama are)"
        )

    added = [
        AddedToken(token, special=token_type != _USER_DEFINED, normalized=False)
        for token, token_type in zip(tokens, types, strict=True)
        if token_type in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token
    ]
    backend.add_tokens(added)
    special = _named_tokens(fields, tokens, source)
    tokenizer = Tokenizer(backend, special_tokens=special, chat_template=_chat_templates(metadata))
    bos = special.get("bos_token") if fields.get("add_bos_token", add_bos) else None
    eos = special.get("eos_token") if fields.get("add_eos_token", False) else None
    set_affixes(backend, bos, eos)
    return tokenizer


def _byte_level(
    fields: dict[str, Any], vocabulary: dict[str, int], source: str
) -> tuple[Backend, bool]:
    name = fields.get("pre", "default")
    if name == "default":
        warnings.warn(
            f"{source}: the file does not say how to split text into words (tokenizer.ggml.pre); "
            "GPT-2's rule is used",
            stacklevel=2,
        )
    if name not in _SPLITTERS:
        known = ", ".join(sorted(_SPLITTERS))
        raise ValueError(f"{source}: tokenizer.ggml.pre {name!r} is not supported (known: {known})")
    splitter = _SPLITTERS[name]
    merges = []
    for line in _strings(fields, "merges", source):
        left, space, right = line.partition(" ")
        if not (left and space and right) or left + right not in vocabulary:
            raise ValueError(f"{source}: tokenizer.ggml.merges has the bad entry {line!r}")
        merges.append((left, right))
    backend = Backend(_bpe(source, vocabulary, merges, ignore_merges=splitter.ignore_merges))
    if splitter.nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[Any] = []
    if splitter.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if splitter.split is not None:
        steps.append(pre_tokenizers.Split(Regex(splitter.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitter.split is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend, splitter.add_bos


def _sentencepiece(
    fields: dict[str, Any], vocabulary: dict[str, int], types: list[int], source: str
) -> Backend:
    scores = _numbers(fields, "scores", len(types), source)
    if not scores:
        raise ValueError(f"{source}: the file has no tokenizer.ggml.scores")
    plain = {
        token: index
        for token, index in vocabulary.items()
        if types[index] in (_NORMAL, _USER_DEFINED)
    }
    unknown = next((token for token, index in vocabulary.items() if types[index] == _UNKNOWN), None)
    backend = Backend(
        _bpe(
            source,
            vocabulary,
            _merges_from_scores(plain, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(fields.get("add_space_prefix", True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="\u2581", prepend_scheme="first" if prefix else "never", split=False
    )
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_from_scores(
    vocabulary: dict[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Write SentencePiece's rule, "join the pair whose token scores best", as a list of merges."""
    ranked = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append(
                    (-scores[index], index, vocabulary[left], vocabulary[right], left, right)
                )
    return [(left, right) for *_, left, right in sorted(ranked)]


def _bpe(
    source: str, vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: Any
) -> models.BPE:
    try:
        return models.BPE(vocab=vocabulary, merges=merges, **options)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{source}: the vocabulary and its merges do not fit: {error}") from error


def _vocabulary(tokens: list[str], types: list[int], source: str) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if types[index] == _UNUSED and token == f"[PAD{index}]":
            continue  # fills the embedding's rows up to a round number; it has no text
        if vocabulary.setdefault(token, index) != index:
            raise ValueError(f"{source}: tokens {vocabulary[token]} and {index} are both {token!r}")
    return vocabulary


def _named_tokens(fields: dict[str, Any], tokens: list[str], source: str) -> dict[str, str]:
    named = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = fields.get(f"{key}_token_id")
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise ValueError(
                f"{source}: {key}_token_id {index} is outside the {len(tokens)} tokens"
            )
        named[f"{name}_token"] = tokens[index]
    return named


def _chat_templates(metadata: dict[str, Any]) -> str | dict[str, str] | None:
    default = metadata.get("tokenizer.chat_template")
    prefix = "tokenizer.chat_template."
    named = {
        name.removeprefix(prefix): text
        for name, text in metadata.items()
        if name.startswith(prefix)
    }
    if not named:
        return default if isinstance(default, str) else None
    return {"default": default, **named} if isinstance(default, str) else named


def _strings(fields: dict[str, Any], name: str, source: str) -> list[str]:
    values = fields.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{source}: the file has no tokenizer.ggml.{name}")
    return values


def _numbers(fields: dict[str, Any], name: str, count: int, source: str) -> list[Any]:
    """Return the array `name`, [] when there is none."""
    values = fields.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, (int, float)) for value in values):
        raise ValueError(f"{source}: tokenizer.ggml.{name} must be an array of numbers")
    if len(values) != count:
        raise ValueError(f"{source}: {count} tokens but {len(values)} in tokenizer.ggml.{name}")
    return values
