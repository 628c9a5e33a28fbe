"""The safetensors reader: what it reads, what it refuses, and that nothing else comes out."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm_engine.checkpoint import Checkpoint, open_checkpoint
from lfm_engine.checkpoint.safetensors import SafetensorsCheckpoint

GOLDENS = Path(__file__).parent / "goldens"
FOLDERS = sorted(path.parent for path in GOLDENS.glob("*/golden.npz"))
BASE = GOLDENS / "lfm2-base"
SHARDED = GOLDENS / "lfm2-untied-sharded"
NORM = "model.embedding_norm.weight"

Header = dict[str, Any]


def read_all(checkpoint: Checkpoint) -> int:
    """Reads and releases every tensor that the model needs; the bytes that these have."""
    total = 0
    for name, shape in checkpoint.config.tensor_shapes().items():
        tensor = checkpoint.tensor(name, shape)
        assert tensor.shape == shape
        assert tensor.data.flags.c_contiguous
        tensor.to_float32().sum()
        checkpoint.release(name)
        total += checkpoint.tensor_nbytes(name)
    return total


def write(path: Path, header: Header | bytes, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def split(path: Path) -> tuple[Header, bytes]:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a golden folder, to be damaged."""
    return Path(shutil.copytree(BASE, tmp_path / "model"))


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.name)
def test_every_golden_is_read(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.config.tensor_shapes()) == set(checkpoint.names())
        assert read_all(checkpoint) == checkpoint.nbytes()
        expected = {"lfm2-hd128-f32": "float32", "llama-gqa3-rope3-f16": "float16"}
        assert checkpoint.stored_dtype == expected.get(path.name, "bfloat16")


def test_values_are_those_of_the_file() -> None:
    header, data = split(BASE / "model.safetensors")
    start, end = header[NORM]["data_offsets"]
    with open_checkpoint(BASE) as checkpoint:
        tensor = checkpoint.tensor(NORM, (64,))
        assert tensor.dtype == "bfloat16"
        assert tensor.data.dtype == np.uint16
        assert tensor.data.tobytes() == data[start:end]
        assert not tensor.data.flags.writeable
        values = tensor.to_float32()
        assert (np.abs(values - 1) <= 0.5).all()  # norms lie around 1
        checkpoint.release(NORM)
        assert tensor.data.tobytes() == data[start:end]  # comes back from the file


def test_generation_config_is_read_and_its_eos_wins() -> None:
    with open_checkpoint(BASE) as checkpoint:
        assert checkpoint.generation_config["top_k"] == 50
        assert checkpoint.config.eos_token_id == (7, 2)
    with open_checkpoint(SHARDED) as checkpoint:
        assert checkpoint.generation_config == {}
        assert checkpoint.config.eos_token_id == (2,)


def test_shape_and_presence_are_checked() -> None:
    with open_checkpoint(BASE) as checkpoint:
        with pytest.raises(ValueError, match=rf"{NORM}' has shape \[64\].*needs \[65\]"):
            checkpoint.tensor(NORM, (65,))
        with pytest.raises(ValueError, match=r"'lm_head\.weight' is missing"):
            checkpoint.tensor("lm_head.weight", (131, 64))
        assert checkpoint.has(NORM)
        assert not checkpoint.has("lm_head.weight")


def test_a_closed_checkpoint_says_so_and_arrays_outlive_it() -> None:
    checkpoint = open_checkpoint(BASE)
    tensor = checkpoint.tensor(NORM, (64,))
    before = tensor.data.copy()
    checkpoint.close()
    checkpoint.close()
    checkpoint.release(NORM)
    assert np.array_equal(tensor.data, before)
    with pytest.raises(ValueError, match="closed"):
        checkpoint.tensor(NORM, (64,))


def test_older_names_are_understood(folder: Path) -> None:
    header, data = split(folder / "model.safetensors")
    header = {name.removeprefix("model."): entry for name, entry in header.items()}
    write(folder / "model.safetensors", header, data)
    with open_checkpoint(folder) as checkpoint:
        read_all(checkpoint)


def test_any_file_name_and_a_misaligned_header_will_do(folder: Path) -> None:
    header, data = split(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    text = json.dumps(header).encode()
    write(folder / "weights.safetensors", text + b" " * (1 - len(text) % 2), data)
    with open_checkpoint(folder) as checkpoint:
        read_all(checkpoint)
        assert checkpoint.tensor(NORM, (64,)).data.flags.aligned


def entry(header: Header, **changes: Any) -> Header:
    return {**header, NORM: {**header[NORM], **changes}}


LIES: list[tuple[Callable[[Header], Any], str]] = [
    (lambda h: entry(h, dtype="F99"), "unknown dtype 'F99'"),
    (lambda h: entry(h, dtype=7), "unknown dtype 7"),
    (lambda h: entry(h, dtype="F32"), r"bytes of data, which is not F32 \[64\]"),
    (lambda h: entry(h, shape=[1 << 61, 64]), "which is not BF16"),
    (lambda h: entry(h, shape=[-64]), "invalid shape"),
    (lambda h: entry(h, shape=[64.0]), "invalid shape"),
    (lambda h: entry(h, shape=[True, 64]), "invalid shape"),
    (lambda h: entry(h, shape="64"), "invalid shape"),
    (lambda h: entry(h, data_offsets=[0, 128]), "overlaps|gap"),
    (lambda h: entry(h, data_offsets=[0]), "invalid data_offsets"),
    (lambda h: entry(h, data_offsets=[128, 0]), "beyond the end"),
    (lambda h: entry(h, data_offsets=[1 << 50, (1 << 50) + 128]), "beyond the end"),
    (lambda h: {**h, NORM: None}, "not described by a JSON object"),
    (lambda h: {k: v for k, v in h.items() if k != NORM}, "gap|its tensors end at byte"),
    (lambda h: [h], "not a JSON object"),
    (lambda h: b"\xff" + json.dumps(h).encode(), "not valid JSON"),
    (lambda h: b"[" * 200_000, "not valid JSON"),
    (lambda h: b'{"a": 1, "a": 2}', "'a' occurs twice"),
    (lambda h: {**h, NORM[6:]: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, "second"),
]


@pytest.mark.parametrize(("lie", "message"), LIES)
def test_lying_headers(folder: Path, lie: Callable[[Header], Any], message: str) -> None:
    path = folder / "model.safetensors"
    header, data = split(path)
    write(path, lie(header), data)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(folder)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, -1, -1000])
def test_truncated_files(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=str(path)):
        open_checkpoint(folder)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 10**9, 0])
def test_a_lying_header_length(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    header, data = split(path)
    write(path, header, data, length)
    with pytest.raises(ValueError, match=str(path)):
        open_checkpoint(folder)


def test_trailing_bytes_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="its tensors end at byte"):
        open_checkpoint(folder)


def test_other_dtypes_are_refused_when_asked_for(folder: Path) -> None:
    header, data = split(folder / "model.safetensors")
    write(folder / "model.safetensors", entry(header, dtype="I16"), data)
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(ValueError, match=f"{NORM}' has dtype I16; supported are F32, F16, BF16"),
    ):
        checkpoint.tensor(NORM, (64,))


def test_folders_without_usable_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.rename(folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="LoRA adapter"):
        open_checkpoint(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="there are no weights"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match="convert them to safetensors"):
        open_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[]", "must contain a JSON object"),
        ("config.json", "[" * 200_000, "not valid JSON"),
        ("config.json", '{"model_type": "gpt2"}', "architecture 'gpt2'"),
        ("generation_config.json", '{"eos_token_id": {}}', "'eos_token_id'"),
        ("generation_config.json", "", "not valid JSON"),
    ],
)
def test_broken_configurations(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(folder)
    assert str(folder / name) in str(caught.value)


def test_shards(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHARDED, tmp_path / "model"))
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = weight_map[NORM]

    def opens(changed: Any) -> None:
        index.write_text(json.dumps(changed))
        with open_checkpoint(folder) as checkpoint:
            read_all(checkpoint)

    opens({"weight_map": weight_map})
    with pytest.raises(ValueError, match="no 'weight_map'"):
        opens({"weight_map": []})
    for name in ("../config.json", "/etc/passwd", "", 3, "a\0b"):
        with pytest.raises(ValueError, match="not the name of a file"):
            opens({"weight_map": {**weight_map, NORM: name}})
    with pytest.raises(ValueError, match=r"the shard 'gone\.safetensors' is missing"):
        opens({"weight_map": {**weight_map, NORM: "gone.safetensors"}})
    other = next(value for value in weight_map.values() if value != shard)
    with pytest.raises(ValueError, match=f"{other}: tensor '{NORM}'.*absent"):
        opens({"weight_map": {**weight_map, NORM: other}})
    (folder / shard).unlink()
    with pytest.raises(ValueError, match=f"the shard '{shard}' is missing"):
        opens({"weight_map": weight_map})
    index.unlink()
    with pytest.raises(ValueError, match="is missing"):
        opens_without_index(folder)


def opens_without_index(folder: Path) -> None:
    """Without an index every *.safetensors counts; here one shard of them is gone."""
    with open_checkpoint(folder) as checkpoint:
        read_all(checkpoint)


def test_duplicates_across_files(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    with pytest.raises(ValueError, match="occurs a second time"):
        open_checkpoint(folder)


def test_damage_gives_only_value_errors(folder: Path) -> None:
    """Flipped bytes and cut ends: an error that says what, or a checkpoint that can be read."""
    path = folder / "model.safetensors"
    good = path.read_bytes()
    header_end = 8 + struct.unpack("<Q", good[:8])[0]
    rng = random.Random(0)
    outcomes = {"error": 0, "read": 0}
    for _ in range(400):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(header_end)] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            with SafetensorsCheckpoint(folder) as checkpoint:
                read_all(checkpoint)
            outcomes["read"] += 1
        except (ValueError, OSError) as error:
            message = str(error)
            assert str(folder) in message
            outcomes["error"] += 1
    assert outcomes["error"] > 300
