"""Tokenizers from GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny_tokenizer
from lfm_engine.gguf_tokenizer import tokenizer_from_metadata
from lfm_engine.tokenizer import AutoTokenizer, Tokenizer

gguf = pytest.importorskip("gguf")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
TEXTS = [
    "hello wo 12 123 1234 x1y22",
    "  two  spaces\n\n\ttab\r\n",
    "<im>user\nhello<eos>\n<pad>",
    "I'm WE'LL Ünï 你好 😀 e\u0301 \u00a0 ٣٤½",
    "",
]


def byte_level(pre: str | None, **changes: Any) -> dict[str, Any]:
    """The metadata of the tiny tokenizer."""
    tokens = tiny_tokenizer.tokens()
    fields = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": [CONTROL] * 4 + [NORMAL] * (len(tokens) - 4),
        "merges": [" ".join(pair) for pair in tiny_tokenizer.MERGES],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 0,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items() if value is not None}


def sentencepiece(**changes: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    pieces = {"▁a": -1, "bc": -2, "ab": -3, "▁": -10, "a": -11, "b": -12, "c": -13, "▁ab": -14}
    fields = {
        "model": "llama",
        "tokens": [*tokens, *pieces, "<tool>"],
        "token_type": [*types, *[NORMAL] * len(pieces), USER_DEFINED],
        "scores": [0.0] * len(tokens) + [float(score) for score in pieces.values()] + [0.0],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items() if value is not None}


def load(metadata: dict[str, Any]) -> Tokenizer:
    return tokenizer_from_metadata(metadata, "model.gguf")


def write(path: Path, metadata: dict[str, Any]) -> Path:
    writer = gguf.GGUFWriter(path, "lfm2")
    for name, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    splitter = tokenizer.backend.pre_tokenizer
    assert splitter is not None
    return [text[start:end] for _, (start, end) in splitter.pre_tokenize_str(text)]


def test_equals_the_tokenizer_it_was_written_from(tmp_path: Path) -> None:
    reference = tiny_tokenizer.load(tmp_path / "folder")
    metadata = byte_level("gpt-2", add_bos_token=True)
    metadata["tokenizer.chat_template"] = tiny_tokenizer.TEMPLATE
    path = write(tmp_path / "model.gguf", metadata)
    for source in (path, tmp_path / "only_gguf"):
        if source != path:
            source.mkdir()
            path.rename(source / "model.gguf")
        tokenizer = AutoTokenizer.from_pretrained(source)
        for text in TEXTS:
            assert tokenizer(text).input_ids == reference(text).input_ids
        assert tokenizer.get_vocab() == reference.get_vocab()
        assert tokenizer.special_tokens_map == reference.special_tokens_map
        assert tokenizer.all_special_ids == reference.all_special_ids
        assert tokenizer.chat_template == reference.chat_template


@pytest.mark.parametrize(
    ("pre", "text", "split"),
    [
        ("gpt-2", "I'm 1234  x", ["I", "'m", " 1234", " ", " x"]),
        ("smollm", "I'm 12a ½3", ["I", "'m", " ", "1", "2", "a", " ", "½", "3"]),
        ("lfm2", "I'M 1234.\n\nb", ["I", "'M", " ", "123", "4", ".\n\n", "b"]),
        ("llama-bpe", "(word)  x 1234", ["(word", ")", " ", " x", " ", "123", "4"]),
        ("qwen2", "a12 34", ["a", "1", "2", " ", "3", "4"]),
    ],
)
def test_splits_as_the_named_model_does(pre: str | None, text: str, split: list[str]) -> None:
    assert words(load(byte_level(pre)), text) == split


@pytest.mark.parametrize("pre", [None, "default"])
def test_an_unnamed_splitter_is_said_to_be_a_guess(pre: str | None) -> None:
    with pytest.warns(UserWarning, match=r"model\.gguf: .*tokenizer\.ggml\.pre"):
        tokenizer = load(byte_level(pre))
    assert words(tokenizer, "I'm 1234") == ["I", "'m", " 1234"]


def test_first_token_depends_on_the_splitter_unless_stated() -> None:
    assert load(byte_level("smollm"))("a").input_ids[0] != 1
    assert load(byte_level("lfm2"))("a").input_ids[0] == 1
    assert load(byte_level("lfm2", add_bos_token=False))("a").input_ids[0] != 1
    ends = load(byte_level("smollm", add_bos_token=True, add_eos_token=True))("a").input_ids
    assert (ends[0], ends[-1]) == (1, 2)


def test_token_types() -> None:
    tokens = [*tiny_tokenizer.tokens(), "<think>", "two words", "[PAD269]"]
    types = [CONTROL] * 4 + [NORMAL] * 263 + [USER_DEFINED, USER_DEFINED, UNUSED]
    tokenizer = load(byte_level("gpt-2", tokens=tokens, token_type=types))
    assert tokenizer("<think>two words").input_ids == [267, 268]
    assert tokenizer.decode([267, 1], skip_special_tokens=True) == "<think>"
    assert len(tokenizer) == 269


def test_sentencepiece() -> None:
    tokenizer = load(sentencepiece())
    tokens = tokenizer.convert_ids_to_tokens
    assert tokens(tokenizer("abc").input_ids) == ["<s>", "▁a", "bc"]
    assert tokens(tokenizer("a é", add_special_tokens=False).input_ids) == [
        "▁a",
        "▁",
        "<0xC3>",
        "<0xA9>",
    ]
    assert tokens(tokenizer("a<tool>b", add_special_tokens=False).input_ids) == [
        "▁a",
        "<tool>",
        "b",
    ]
    for text in ("abc", "a é 你好 😀", "a  b\n", "<tool>ab"):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    bare = load(sentencepiece(add_space_prefix=False, add_bos_token=False))
    assert bare.convert_ids_to_tokens(bare("abc").input_ids) == ["a", "bc"]


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        (byte_level("deepseek-llm"), r"model.gguf: tokenizer.ggml.pre 'deepseek-llm'"),
        (byte_level("gpt-2", model="t5"), r"tokenizer.ggml.model 't5' is not supported"),
        (byte_level("gpt-2", model=None), r"tokenizer.ggml.model None"),
        (byte_level("gpt-2", tokens=None), r"no tokenizer.ggml.tokens"),
        (byte_level("gpt-2", merges=None), r"no tokenizer.ggml.merges"),
        (byte_level("gpt-2", merges=["h e", "nospace"]), r"bad entry 'nospace'"),
        (byte_level("gpt-2", merges=["h x"]), r"bad entry 'h x'"),
        (byte_level("gpt-2", token_type=[1, 1]), r"267 tokens but 2 in tokenizer.ggml.token_type"),
        (byte_level("gpt-2", eos_token_id=999), r"eos_token_id 999 is outside the 267 tokens"),
        (byte_level("gpt-2", tokens=["a", "a"], token_type=None), r"tokens 0 and 1 are both 'a'"),
        (byte_level("gpt-2", token_type="x"), r"token_type must be an array of numbers"),
        (byte_level("gpt-2", bos_token_id="1"), r"bos_token_id 1 is outside"),
        (sentencepiece(scores=[1.0]), r"tokenizer.ggml.scores"),
        (sentencepiece(scores=None), r"no tokenizer.ggml.scores"),
    ],
)
def test_wrong_metadata_is_named(metadata: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load(metadata)


def test_files_that_are_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(3))
    with pytest.raises(ValueError, match=r"model\.gguf"):
        AutoTokenizer.from_pretrained(tmp_path / "model.gguf")
    with pytest.raises(OSError, match=r"missing\.gguf"):
        AutoTokenizer.from_pretrained(tmp_path / "missing.gguf")


def test_lfm2_equals_its_tokenizer_json(tmp_path: Path) -> None:
    folder = tiny_tokenizer.LFM2_FOLDER
    if not folder.exists():
        pytest.skip("the LFM2 tokenizer is not at hand")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {index: token for token, index in content["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    ids.update({index: entry["content"] for index, entry in added.items()})
    size = 65536
    kinds = {True: CONTROL, False: USER_DEFINED}
    metadata = byte_level(
        "lfm2",
        tokens=[ids.get(index, f"[PAD{index}]") for index in range(size)],
        token_type=[
            kinds[added[index]["special"]] if index in added else NORMAL if index in ids else UNUSED
            for index in range(size)
        ],
        merges=[
            pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
        ],
        eos_token_id=7,
    )
    tokenizer = AutoTokenizer.from_pretrained(write(tmp_path / "lfm2.gguf", metadata))
    reference = AutoTokenizer.from_pretrained(folder)
    goldens = json.loads((tiny_tokenizer.GOLDENS / "ids.json").read_text(encoding="utf-8"))
    for case in goldens:
        assert tokenizer(case["text"]).input_ids == case["ids"]
    assert tokenizer.get_vocab() == reference.get_vocab()
    assert tokenizer.all_special_ids == reference.all_special_ids
    assert tokenizer.special_tokens_map == reference.special_tokens_map
