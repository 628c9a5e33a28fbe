"""Tokenizers from Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny_tokenizer
from lfm_engine.tokenizer import AutoTokenizer, Tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return tiny_tokenizer.load(tmp_path)


@pytest.fixture(scope="module")
def lfm2() -> Tokenizer:
    if not tiny_tokenizer.LFM2_FOLDER.exists():
        pytest.skip("the LFM2 tokenizer is not at hand")
    return AutoTokenizer.from_pretrained(tiny_tokenizer.LFM2_FOLDER)


def test_lfm2_ids_equal_transformers(lfm2: Tokenizer) -> None:
    goldens = json.loads((tiny_tokenizer.GOLDENS / "ids.json").read_text(encoding="utf-8"))
    for case in goldens:
        assert lfm2(case["text"]).input_ids == case["ids"]
        assert lfm2.decode(case["ids"], skip_special_tokens=False).endswith(case["text"])
    texts = [case["text"] for case in goldens]
    assert lfm2(texts)["input_ids"] == [case["ids"] for case in goldens]
    assert (lfm2.bos_token_id, lfm2.eos_token_id, lfm2.pad_token_id) == (1, 7, 0)
    assert (lfm2.vocab_size, len(lfm2)) == (64400, 64400)


def test_encodes_one_text_and_several(tokenizer: Tokenizer) -> None:
    one = tokenizer("hello")
    assert one.input_ids == one["input_ids"] == [1, tokenizer.convert_tokens_to_ids("hello")]
    assert one.attention_mask == [1, 1]
    assert tokenizer("hello", add_special_tokens=False).input_ids == one.input_ids[1:]
    assert tokenizer(["hello", "hello hello"]).input_ids[0] == one.input_ids
    assert tokenizer.encode("hello") == one.input_ids
    assert tokenizer([]).input_ids == []
    with pytest.raises(AttributeError, match="token_type_ids"):
        _ = one.token_type_ids


def test_pads_on_the_left_by_default(tokenizer: Tokenizer) -> None:
    batch = tokenizer(["hello", "hello hello"], padding=True, return_tensors="np")
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    missing = batch.input_ids.shape[1] - 2
    assert batch.input_ids[0].tolist()[:missing] == [0] * missing
    assert batch.attention_mask.tolist() == [[0] * missing + [1, 1], [1] * (missing + 2)]
    right = tokenizer(["hello", "hello hello"], padding="longest", padding_side="right")
    assert right.attention_mask[0] == [1, 1] + [0] * missing
    wide = tokenizer("hello", padding="max_length", max_length=5)
    assert wide.attention_mask == [0, 0, 0, 1, 1]


def test_truncates_with_the_special_tokens_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    full = tokenizer("abcdef").input_ids
    assert tokenizer("abcdef", truncation=True, max_length=3).input_ids == full[:3]
    assert tokenizer("abcdef", truncation=True).input_ids == full
    limited = tiny_tokenizer.load(tmp_path / "b", model_max_length=4, truncation_side="left")
    assert limited("abcdef", truncation=True).input_ids == [1, *full[-3:]]
    assert limited("abcdef").input_ids == full


def test_wrong_options_are_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="padding=True"):
        tokenizer(["a", "ab"], return_tensors="np")
    with pytest.raises(ValueError, match="padding must be"):
        tokenizer("a", padding="left")
    with pytest.raises(ValueError, match="padding_side"):
        tokenizer(["a", "ab"], padding=True, padding_side="top")
    with pytest.raises(ValueError, match="return_tensors"):
        tokenizer("a", return_tensors="tf")
    with pytest.raises(ValueError, match=r"text\[1\] must be a string, not int"):
        tokenizer(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="max_length"):
        tokenizer("abc", truncation=True, max_length=0)
    with pytest.raises(ValueError, match="token_ids"):
        tokenizer.decode([-1])


def test_decodes_any_container(tokenizer: Tokenizer) -> None:
    ids = tokenizer("hello wo 12 é").input_ids
    assert tokenizer.decode(ids) == "<bos>hello wo 12 é"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello wo 12 é"
    array = np.array(ids)
    assert tokenizer.decode(array, True, clean_up_tokenization_spaces=True) == "hello wo 12 é"
    assert tokenizer.decode(array[1]) == tokenizer.decode(ids[1]) == "hello"
    assert tokenizer.decode(np.array([ids, ids]), skip_special_tokens=True) == ["hello wo 12 é"] * 2
    assert tokenizer.batch_decode([ids[1:2], array[1:2]]) == ["hello", "hello"]


def test_vocabulary(tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab()) == 267
    assert tokenizer.all_special_ids == [0, 1, 2, 3]
    assert tokenizer.all_special_tokens == tiny_tokenizer.SPECIAL
    ids = tokenizer("hello").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "hello"]
    assert tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True) == ["hello"]
    assert tokenizer.convert_tokens_to_ids(["<eos>", "no such token"]) == [2, None]
    assert tokenizer.convert_ids_to_tokens(2) == "<eos>"
    assert tokenizer.tokenize("hello") == ["hello"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<bos>",
        "<eos>",
        None,
    )
    tokenizer.pad_token = "<eos>"
    assert tokenizer.pad_token_id == 2
    with pytest.raises(ValueError, match="pad_token"):
        tokenizer.pad_token = "nothing"


def test_special_tokens_of_the_configuration_are_kept_whole(tmp_path: Path) -> None:
    extra = {"267": {"content": "<new>", "special": True, "normalized": False}}
    tokenizer = tiny_tokenizer.load(tmp_path, added_tokens_decoder=extra, unk_token="hello")
    assert tokenizer("a<new>b").input_ids[2] == 267
    assert tokenizer.unk_token_id in tokenizer.all_special_ids
    (tmp_path / "special_tokens_map.json").write_text('{"sep_token": "wo"}', encoding="utf-8")
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.special_tokens_map["sep_token"] == "wo"


def test_chat_templates_of_every_spelling(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    several = tiny_tokenizer.load(tmp_path / "list", template=named)
    assert several.get_chat_template() == "D"
    assert several.get_chat_template(tools=[]) == several.get_chat_template("tool_use") == "T"
    assert several.get_chat_template("{{ 1 }}") == "{{ 1 }}"
    folder = tiny_tokenizer.write(tmp_path / "files")
    (folder / "chat_template.jinja").write_text("F", encoding="utf-8")
    assert AutoTokenizer.from_pretrained(folder).chat_template == "F"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R", encoding="utf-8")
    assert AutoTokenizer.from_pretrained(folder).chat_template == {"default": "F", "rag": "R"}
    none = tiny_tokenizer.load(tmp_path / "none", template=None)
    with pytest.raises(ValueError, match="no chat template"):
        none.get_chat_template()


def test_save_and_load_again(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "D\n"}, {"name": "rag", "template": "R"}]
    tokenizer = tiny_tokenizer.load(tmp_path / "a", template=templates, model_max_length=9)
    files = tokenizer.save_pretrained(tmp_path / "b")
    assert all(Path(file).is_file() for file in files)
    again = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert again.chat_template == {"default": "D\n", "rag": "R"}
    assert again("hello 12 ü").input_ids == tokenizer("hello 12 ü").input_ids
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert again.model_max_length == 9
    tokenizer.chat_template = {"../x": "T"}
    with pytest.raises(ValueError, match="file name"):
        tokenizer.save_pretrained(tmp_path / "c")


def test_malformed_files_are_named(tmp_path: Path) -> None:
    folder = tiny_tokenizer.write(tmp_path)
    (folder / "tokenizer_config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: expected a JSON object"):
        AutoTokenizer.from_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: not JSON"):
        AutoTokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
        AutoTokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(OSError, match=r"tokenizer.json"):
        AutoTokenizer.from_pretrained(folder)
    with pytest.raises(OSError, match="nowhere"):
        AutoTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="padding_side"):
        AutoTokenizer.from_pretrained(folder, padding_side="up")
