"""Packed files: the same model and tokenizer as what was packed, and one clear error from a damaged
one."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import golden_models
import tiny_tokenizer
from conftest import RunPython
from gguf_writer import write_gguf
from golden_models import NAMES
from lfm_engine import AutoModelForCausalLM, AutoTokenizer, CausalLM, _core, cli
from lfm_engine.checkpoint import open_checkpoint
from lfm_engine.checkpoint.packed import PackedCheckpoint

pytestmark = pytest.mark.engine

DTYPES = ("int8", "int4")
EMBEDDING = "model.embed_tokens.weight"
HEADER = struct.Struct("<8sIIQQII")  # see packed.py
IDS = np.arange(3, 43)

Metadata = dict[str, Any]


def logits(model: CausalLM) -> npt.NDArray[np.float32]:
    return model(IDS[None]).logits


def pack(name: str, path: Path, dtype: str) -> CausalLM:
    """Pack a golden; the model that was packed."""
    model = golden_models.load(name, dtype)
    model.save_packed(path)
    return model


def load(path: Path, **options: Any) -> CausalLM:
    return AutoModelForCausalLM.from_pretrained(path, num_threads=1, **options)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in int4 with its tokenizer; tests must not change it."""
    folder = tmp_path_factory.mktemp("packed")
    source = golden_models.random_model(folder / "model", vocab_size=280)
    tiny_tokenizer.write(source)
    path = folder / "model.lfm"
    model = AutoModelForCausalLM.from_pretrained(source, dtype="int4", num_threads=1)
    model.save_packed(path, AutoTokenizer.from_pretrained(source))
    return path


# -- what is packed comes back --


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_and_configuration(name: str, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.lfm"
    model = pack(name, path, dtype)
    packed = load(path, verify=True)
    assert packed.dtype == dtype
    assert packed.config == model.config
    assert np.array_equal(packed.config.rope_inv_freq, model.config.rope_inv_freq)
    assert packed.core.weight_nbytes == model.core.weight_nbytes
    assert np.array_equal(logits(packed), logits(model))


@pytest.mark.parametrize(
    ("qtype", "layout"),
    [
        ("Q4_0", "panels:q4"),
        ("Q4_1", "panels:q4_mins"),
        ("Q8_0", "panels:q8"),
        ("Q4_K_M", "panels:q6"),
    ],
)
def test_quantized_gguf_files(qtype: str, layout: str, tmp_path: Path) -> None:
    source = golden_models.random_model(
        tmp_path / "folder", hidden_size=256, intermediate_size=512, num_attention_heads=4
    )
    write_gguf(source, tmp_path / "model.gguf", qtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model.gguf", num_threads=1)
    model.save_packed(tmp_path / "model.lfm")
    packed = load(tmp_path / "model.lfm")
    assert packed.dtype == model.dtype == ("int8" if qtype == "Q8_0" else "int4")
    assert layout in {matrix[1] for matrix in packed.core.export_weights()[0]}
    assert np.array_equal(logits(packed), logits(model))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_a_packed_model_changes_nothing(dtype: str, tmp_path: Path) -> None:
    pack("lfm2-bias-hd64", tmp_path / "one.lfm", dtype)
    load(tmp_path / "one.lfm").save_packed(tmp_path / "two.lfm")
    assert (tmp_path / "one.lfm").read_bytes() == (tmp_path / "two.lfm").read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_file_for_every_isa(dtype: str, tmp_path: Path, run_python: RunPython) -> None:
    path = tmp_path / "model.lfm"
    pack("lfm2-base", path, dtype)
    isas = _core.cpu_info()["isas"]
    for isa in isas[: isas.index(_core.cpu_info()["isa"]) + 1]:
        result = run_python(
            f"""
            from pathlib import Path
            path, dtype = Path({str(path)!r}), {dtype!r}
            model = golden_models.load("lfm2-base", dtype)
            packed = AutoModelForCausalLM.from_pretrained(path, num_threads=1)
            ids = np.arange(3, 43)[None]
            assert np.array_equal(packed(ids).logits, model(ids).logits)
            model.save_packed(path.with_suffix(".again"))
            assert path.with_suffix(".again").read_bytes() == path.read_bytes()
            print(packed.core.isa)
            """,
            LFM_ENGINE_ISA=isa,
        )
        assert result.stdout.split() == [isa], result.stderr


@pytest.mark.parametrize("template", [tiny_tokenizer.TEMPLATE, {"default": "a", "tool_use": "b"}])
def test_tokenizer_and_template(template: Any, tmp_path: Path) -> None:
    if isinstance(template, dict):
        named = [{"name": name, "template": text} for name, text in template.items()]
    else:
        named = template
    tokenizer = tiny_tokenizer.load(tmp_path / "files", template=named, model_max_length=77)
    path = tmp_path / "model.lfm"
    golden_models.load("lfm2-base", "int8").save_packed(path, tokenizer)
    packed = AutoTokenizer.from_pretrained(path)
    text = "hello world 12 <im>\u00e9\U0001f600"
    assert packed(text) == tokenizer(text)
    assert packed.decode(packed(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
    assert packed.get_vocab() == tokenizer.get_vocab()
    assert packed.backend.to_str() == tokenizer.backend.to_str()
    assert packed.special_tokens_map == tokenizer.special_tokens_map
    assert packed.all_special_ids == tokenizer.all_special_ids
    assert packed.chat_template == template
    assert packed.model_max_length == 77
    assert packed.name_or_path == str(path)


def test_merges_of_tokens_with_spaces(tmp_path: Path) -> None:
    """The short spelling of merges cannot hold these."""
    folder = tiny_tokenizer.write(tmp_path / "files")
    options = json.loads((folder / "tokenizer.json").read_text())
    options["model"]["vocab"].update({"a b": 267, "a bc": 268})
    options["model"]["merges"].append(["a b", "c"])
    (folder / "tokenizer.json").write_text(json.dumps(options))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    golden_models.load("lfm2-base", "int8").save_packed(tmp_path / "model.lfm", tokenizer)
    packed = AutoTokenizer.from_pretrained(tmp_path / "model.lfm")
    assert packed.backend.to_str() == tokenizer.backend.to_str()


def test_without_a_tokenizer(tmp_path: Path) -> None:
    pack("lfm2-base", tmp_path / "model.lfm", "int8")
    with pytest.raises(FileNotFoundError, match=r"model\.lfm: tokenizer\.json"):
        AutoTokenizer.from_pretrained(tmp_path / "model.lfm")


def test_generation_config(tmp_path: Path) -> None:
    folder = golden_models.changed_copy("lfm2-base", tmp_path / "model")
    options = {"temperature": 0.3, "do_sample": True, "min_p": 0.15, "eos_token_id": [7, 9]}
    (folder / "generation_config.json").write_text(json.dumps(options))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="int4", num_threads=1)
    model.save_packed(tmp_path / "model.lfm")
    packed = load(tmp_path / "model.lfm")
    assert packed.generation_config == model.generation_config
    assert packed.generation_config.min_p == 0.15
    assert packed.config.eos_token_id == model.config.eos_token_id
    one, other = (m.generate(IDS[None], seed=5, max_new_tokens=20) for m in (model, packed))
    assert np.array_equal(one, other)


def test_dtypes_that_cannot_be_packed_or_changed(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype float32 cannot be packed"):
        pack("lfm2-base", tmp_path / "model.lfm", "float32")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"model\.lfm: packed as int4, .* loaded as int8"):
        load(file, dtype="int8")
    assert load(file, dtype="int4").dtype == "int4"


# -- the file on the disk --


def test_a_file_without_its_suffix(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(file.read_bytes())
    assert np.array_equal(logits(load(path)), logits(load(file)))
    assert len(AutoTokenizer.from_pretrained(path)) == 267


def test_read_only(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.lfm"
    path.write_bytes(file.read_bytes())
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        model = load(path)
        expected = logits(model)
        lines = [
            line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line
        ]
        assert lines and all(line.split()[1] == "r--s" for line in lines)
        assert os.listdir(tmp_path) == ["model.lfm"]
        for part in model.core.export_weights()[0][0][3]:
            assert not part.flags.writeable
    finally:
        tmp_path.chmod(0o755)
    path.unlink()  # the map stays
    assert np.array_equal(logits(model), expected)


def test_replacing_a_file_in_use(tmp_path: Path) -> None:
    path = tmp_path / "model.lfm"
    pack("lfm2-base", path, "int4")
    model = load(path)
    before = logits(model)
    pack("lfm2-base", path, "int8")
    assert load(path).dtype == "int8"
    assert np.array_equal(logits(model), before)
    model.save_packed(path)  # from the map of the file that it replaced
    assert np.array_equal(logits(load(path, verify=True)), before)
    assert os.listdir(tmp_path) == ["model.lfm"]


def test_a_write_that_fails_leaves_the_old_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.lfm"
    path.write_bytes(b"old")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = load(file)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"No space left on device: .*model\.lfm"):
            model.save_packed(path)
    assert os.listdir(tmp_path) == ["model.lfm"] and path.read_bytes() == b"old"
    with pytest.raises(OSError, match=r"absent/model\.lfm"):
        model.save_packed(tmp_path / "absent" / "model.lfm")
    with pytest.raises(IsADirectoryError, match="folder"):
        model.save_packed(tmp_path)


def test_processes_share_pages(tmp_path: Path, run_python: RunPython) -> None:
    folder = golden_models.random_model(tmp_path / "model", vocab_size=40_000)
    path = tmp_path / "model.lfm"
    AutoModelForCausalLM.from_pretrained(folder, dtype="int4").save_packed(path)
    model = load(path, verify=True)  # touches all of it
    result = run_python(
        f"""
        import json
        model = AutoModelForCausalLM.from_pretrained({str(path)!r}, num_threads=1, verify=True)
        model(np.arange(3, 43)[None])
        maps, sizes = open("/proc/self/smaps").read().splitlines(), {{}}
        for line in maps[next(i for i, line in enumerate(maps) if {str(path)!r} in line) + 1 :]:
            name, value = line.split(":")[:2]
            if not value.endswith("kB"):
                break
            sizes[name] = int(value.split()[0]) * 1024
        print(json.dumps(sizes))
        """
    )
    assert result.returncode == 0, result.stderr
    sizes = json.loads(result.stdout)
    size = path.stat().st_size
    assert size > 2_000_000
    assert sizes["Rss"] > 0.9 * size
    assert sizes["Anonymous"] == sizes["Private_Dirty"] == sizes["Private_Clean"] == 0
    assert sizes["Pss"] < 0.6 * sizes["Rss"]
    assert model.num_threads == 1  # held until here


# -- damage --


def split(content: bytes) -> tuple[Metadata, bytes]:
    """Metadata and data of a packed file."""
    length = HEADER.unpack(content[: HEADER.size])[4]
    end = HEADER.size + length
    return json.loads(content[HEADER.size : end]), content[-(-end // 64) * 64 :]


def join(metadata: Any, data: bytes, version: int = 2, size: int | None = None) -> bytes:
    """A packed file with the right checksums of header and metadata."""
    text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    start = -(-(HEADER.size + len(text)) // 64) * 64
    fields = (start + len(data) if size is None else size, len(text), zlib.crc32(text), 0)
    crc = zlib.crc32(HEADER.pack(b"\x89LFM\r\n\x1a\n", version, 0, *fields))
    head = HEADER.pack(b"\x89LFM\r\n\x1a\n", version, crc, *fields) + text
    return head + bytes(start - len(head)) + data


def refused(path: Path, content: bytes, message: str, **options: Any) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(path, **options)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_cut_foreign_and_newer_files(file: Path, tmp_path: Path) -> None:
    content, path = file.read_bytes(), tmp_path / "bad.lfm"
    metadata, data = split(content)
    assert join(metadata, data)[:8] == content[:8]
    for size in (1, 7, 8, HEADER.size - 1):
        refused(path, content[:size], "not a packed model")
    refused(path, b"", "empty")
    refused(path, b"GGUF" + content, "not a packed model")
    for size in (HEADER.size, 100, len(content) // 2, len(content) - 1):
        refused(path, content[:size], "cut off")
    refused(path, content + b"x", "something was appended")
    refused(path, join(metadata, data, version=3), "version 3, which a newer lfm-engine wrote")
    refused(path, join(metadata, data, version=1), "version 1 by an earlier lfm-engine.*again")
    refused(path, join(metadata, data, version=0), "header is corrupt")
    refused(path, content.replace(b"\r\n", b"\n", 1), "not a packed model")
    for offset in range(12, HEADER.size):
        damaged = bytearray(content)
        damaged[offset] ^= 0x10
        refused(path, bytes(damaged), "header is corrupt")
    for text in (b"{", b"[]", b"\xff", b"[" * 100_000, b"{}"):
        refused(path, join(text, data), "metadata|missing|dtype")
    huge = HEADER.pack(b"\x89LFM\r\n\x1a\n", 2, 0, len(content), 1 << 40, 0, 0)
    crc = struct.pack("<I", zlib.crc32(huge))
    refused(path, huge[:12] + crc + huge[16:] + content[HEADER.size :], "1099511627776 bytes")


def change(path: str, value: Any) -> Callable[[Metadata], None]:
    """Sets (or, for a function, replaces) what lies at a path like "matrices/NAME/parts/0/1"."""

    def apply(metadata: Metadata) -> None:
        *parents, last = path.replace("EMBEDDING", EMBEDDING).split("/")
        at: Any = metadata
        for key in parents:
            at = at[int(key) if isinstance(at, list) else key]
        index: Any = int(last) if isinstance(at, list) else last
        at[index] = value(at[index]) if callable(value) else value

    return apply


NORM = "vectors/model.embedding_norm.weight"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dtype", "int2", "unknown dtype 'int2'"),
        ("dtype", ["int4"], "unknown dtype"),
        ("config", None, "config"),
        ("config/architecture", "gpt", "gpt"),
        ("config/vocab_size", 281, r"embed_tokens.* has the shape \[280, 64\], .* \[281, 64\]"),
        ("config/hidden_size", 32, "embed_tokens"),
        ("config/num_hidden_layers", 5, "layer"),
        ("config/rope_inv_freq", [1.0], "rope_inv_freq"),
        ("config/rope_inv_freq/0", "x", "rope_inv_freq"),
        ("config/tie_word_embeddings", False, "tensor 'lm_head.weight' is missing"),
        ("config/qk_norm", "yes", "qk_norm"),
        ("matrices", [], "matrices"),
        ("matrices/EMBEDDING", 7, "embed_tokens.* not described"),
        ("matrices/EMBEDDING/layout", "panels:q3", "embed_tokens.* unknown layout 'panels:q3'"),
        ("matrices/EMBEDDING/layout", "panels:q4", "embed_tokens.* 3 parts instead of 2"),
        ("matrices/EMBEDDING/layout", "panels:q4_mins", "embed_tokens.* bytes instead of"),
        ("matrices/EMBEDDING/layout", None, "embed_tokens"),
        ("matrices/EMBEDDING/shape", [64, 280], "embed_tokens.* has the shape"),
        ("matrices/EMBEDDING/shape", [280], "embed_tokens.* no matrix"),
        ("matrices/EMBEDDING/shape", [280, -64], "embed_tokens.* invalid shape"),
        ("matrices/EMBEDDING/shape", [280.0, 64], "embed_tokens.* invalid shape"),
        ("matrices/EMBEDDING/parts", [], "embed_tokens.* 0 parts instead of 3"),
        ("matrices/EMBEDDING/parts/0", [0, 1], "embed_tokens.* invalid section"),
        ("matrices/EMBEDDING/parts/0/0", lambda x: x + 1, "embed_tokens.* not aligned"),
        ("matrices/EMBEDDING/parts/0/0", lambda x: x + (1 << 40), "embed_tokens.* ends at byte"),
        ("matrices/EMBEDDING/parts/0/0", 0, "overlaps"),
        ("matrices/EMBEDDING/parts/0/0", True, "embed_tokens.* invalid section"),
        ("matrices/EMBEDDING/parts/0/1", lambda x: x - 1, "embed_tokens.* bytes instead of"),
        ("matrices/EMBEDDING/parts/0/1", 1 << 59, "embed_tokens.* ends at byte"),
        (NORM + "/shape", [63], "embedding_norm.* not float32"),
        (NORM + "/shape", [8, 8], "embedding_norm.* has shape"),
        (NORM + "/section/2", 7, "embedding_norm.* checksum differs"),
        ("files", {"tokenizer.json": None}, "tokenizer.json.* invalid section"),
    ],
)
def test_metadata_that_lies(
    file: Path, tmp_path: Path, path: str, value: Any, message: str
) -> None:
    metadata, data = split(file.read_bytes())
    change(path, value)(metadata)
    refused(tmp_path / "bad.lfm", join(metadata, data), message)


def test_missing_tensors(file: Path, tmp_path: Path) -> None:
    for table in ("vectors", "matrices"):
        for name in split(file.read_bytes())[0][table]:
            metadata, data = split(file.read_bytes())
            del metadata[table][name]
            refused(tmp_path / "bad.lfm", join(metadata, data), f"{name}.* is missing")


def test_verify_finds_every_flipped_bit_that_counts(file: Path, tmp_path: Path) -> None:
    content, path, rng = file.read_bytes(), tmp_path / "bad.lfm", random.Random(0)
    expected = logits(load(file))
    with PackedCheckpoint(file) as checkpoint:
        start = checkpoint.packed(EMBEDDING).parts[0][0]
    found = 0
    for offset in [start, *(rng.randrange(len(content)) for _ in range(60))]:
        damaged = bytearray(content)
        damaged[offset] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            model = load(path, verify=True)
        except ValueError as error:
            assert str(path) in str(error)
            found += 1
        else:  # between two sections
            assert np.array_equal(logits(model), expected)
    assert found >= 50


def test_verify_of_other_checkpoints() -> None:
    with pytest.raises(ValueError, match="no checksums"):
        load(golden_models.GOLDENS / "lfm2-base", verify=True)


def use(path: Path) -> None:
    """Everything that reads a packed file; what it holds may be wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer("hello")
        load(path).core.new_state()
        model = load(path)
        ids = np.arange(min(3, model.config.vocab_size, model.config.max_position_embeddings))
        model.core.forward(model.core.new_state(), ids)


def random_bytes(content: bytes, rng: random.Random) -> bytes:
    """Random damage anywhere, mostly in the first part."""
    damaged = bytearray(content)
    begin = rng.randrange(len(content) if rng.random() < 0.3 else 6000)
    count = min(rng.choice((1, 4, 64, 4096)), len(content) - begin)
    kind = rng.randrange(4)
    if kind == 0:
        damaged[begin : begin + count] = bytes(count)
    elif kind == 1:
        damaged[begin : begin + count] = rng.randbytes(count)
    elif kind == 2:
        del damaged[begin : begin + count]
    else:
        damaged[begin:begin] = rng.randbytes(count)
    return bytes(damaged)


def random_metadata(content: bytes, rng: random.Random) -> bytes:
    """Random values in the metadata, under right checksums."""
    metadata, data = split(content)
    for _ in range(rng.choice((1, 1, 3))):
        at: Any = metadata
        while True:
            key: Any = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.1:
                break
            at = at[key]
        junk = [None, -1, 0, 1, 64, 1 << 40, 1 << 70, 1.5, "x", [], {}, True, [1, 2, 3], {"a": 1}]
        if isinstance(at[key], int):
            junk += [at[key] + 64, at[key] - 64, at[key] * 2]
        if rng.random() < 0.15:
            del at[key]
        else:
            at[key] = rng.choice(junk)
    return join(metadata, data)


@pytest.mark.parametrize("damage", [random_bytes, random_metadata])
def test_random_damage_is_refused_or_harmless(
    file: Path, tmp_path: Path, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    content, path, rng = file.read_bytes(), tmp_path / "bad.lfm", random.Random(1)
    refusals = 0
    for _ in range(300):
        path.write_bytes(damage(content, rng))
        try:
            use(path)
        except (ValueError, OSError) as error:
            assert str(path) in str(error), error
            refusals += 1
    assert refusals > 200


# -- the command --


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = golden_models.random_model(tmp_path / "model", vocab_size=280)
    tiny_tokenizer.write(source)
    path = tmp_path / "model.lfm"
    assert cli.main(["pack", str(source), "-o", str(path), "--dtype", "int8"]) == 0
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    assert capsys.readouterr().out == f"{path}: int8, {size}\n"
    assert cli.main(["pack", str(path), "--verify"]) == 0
    assert "checksums are right" in capsys.readouterr().out
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.stored_dtype == "int8"
    for model in (source, path):
        arguments = ["--dtype", "int8", "--greedy", "--max-new-tokens", "4", "--threads", "1"]
        assert cli.main(["generate", str(model), "-p", "hello", "--json", *arguments]) == 0
    one, other = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert one["text"] == other["text"] and one["prompt_tokens"] == other["prompt_tokens"]
    assert cli.main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["auto dtype"] == "int8" and facts["tokenizer"].startswith("267 tokens")
    assert facts["files"] == {"model.lfm": path.stat().st_size}


def test_the_command_complains_in_one_line(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = bytearray(file.read_bytes())
    damaged[-200] ^= 1
    (tmp_path / "bad.lfm").write_bytes(damaged)
    base = str(golden_models.GOLDENS / "lfm2-base")
    for arguments, message in [
        ([base, "-o", str(tmp_path / "x.lfm"), "--dtype", "bfloat16"], "dtype bfloat16 cannot"),
        ([base, "-o", str(tmp_path / "absent" / "x.lfm")], "absent"),
        ([str(tmp_path / "bad.lfm"), "--verify"], r"bad.lfm: 'model.*' is corrupt"),
        ([base, "--verify"], "no checksums"),
        ([base], "required"),
    ]:
        assert cli.main(["pack", *arguments]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert "Traceback" not in error
    assert sorted(os.listdir(tmp_path)) == ["bad.lfm"]
    # A model without a tokenizer is packed, and says so.
    assert cli.main(["pack", base, "-o", str(tmp_path / "x.lfm")]) == 0
    assert "without a tokenizer" in capsys.readouterr().err


# -- loading is light --


def test_opening_imports_nothing_slow(file: Path, run_python: RunPython) -> None:
    result = run_python(
        f"""
        AutoModelForCausalLM.from_pretrained({str(file)!r})
        slow = "asyncio", "gguf", "huggingface_hub", "llguidance", "tqdm"
        print([name for name in slow if name in sys.modules])
        print("libdnnl" in open("/proc/self/maps").read())
        """
    )
    assert result.stdout.split() == ["[]", "False"], (result.stdout, result.stderr)
