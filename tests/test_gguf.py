"""The GGUF reader: the same weights as the folder a file was made from, and nothing but ValueError
from a damaged one."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf.constants import GGMLQuantizationType as GgmlType
from gguf.quants import dequantize

from gguf_writer import write_gguf
from lfm_engine import _core
from lfm_engine.checkpoint import Checkpoint, open_checkpoint
from lfm_engine.checkpoint.gguf import GgufCheckpoint
from lfm_engine.checkpoint.gguf_header import read_metadata

GOLDENS = Path(__file__).parent / "goldens"
FOLDERS = sorted(path.parent for path in GOLDENS.glob("*/golden.npz"))
BASE = GOLDENS / "lfm2-base"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def values(checkpoint: Checkpoint) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    for name, shape in checkpoint.config.tensor_shapes().items():
        tensor = checkpoint.tensor(name, shape)
        assert tensor.shape == shape
        assert tensor.data.flags.c_contiguous
        array = tensor.to_float32()
        assert array.shape == shape
        yield name, array
        checkpoint.release(name)


@pytest.fixture(scope="module")
def base_f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "base-F16.gguf"
    write_gguf(BASE, path, "F16")
    return path


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_f32_equals_the_folder(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(folder, path, "F32")
    with open_checkpoint(folder) as expected, open_checkpoint(path) as found:
        assert found.stored_dtype == "float32"
        assert found.config.tensor_shapes() == expected.config.tensor_shapes()
        assert found.config.layer_types == expected.config.layer_types
        frequencies = found.config.rope_inv_freq, expected.config.rope_inv_freq
        assert np.allclose(*frequencies, rtol=3e-7, atol=0)
        assert found.config.norm_eps == pytest.approx(expected.config.norm_eps, rel=1e-6)
        assert set(found.names()) == set(expected.names())
        for (name, one), (_, other) in zip(values(found), values(expected), strict=True):
            assert np.array_equal(one, other), name


@pytest.mark.parametrize(
    ("qtype", "stored", "tolerance"),
    [
        ("F16", "float16", 1e-3),
        ("BF16", "bfloat16", 0),
        ("Q8_0", "int8", 0.01),
        ("Q5_0", "int8", 0.08),
        ("Q5_1", "int8", 0.08),
        ("Q4_0", "int4", 0.15),
        ("Q4_1", "int4", 0.15),
    ],
)
def test_types_are_close_to_the_folder(
    qtype: str, stored: str, tolerance: float, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(BASE, path, qtype)
    with open_checkpoint(BASE) as expected, open_checkpoint(path) as found:
        assert found.stored_dtype == stored
        for (name, one), (_, other) in zip(values(found), values(expected), strict=True):
            assert np.abs(one - other).max() <= tolerance * np.abs(other).max(), name


@pytest.mark.parametrize("qtype", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_blocks_are_handed_out_as_they_lie(qtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(BASE, path, qtype)
    raw = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with open_checkpoint(path) as found:
        for name, gguf_name, shape in (
            (Q_PROJ, "blk.1.attn_q.weight", (64, 64)),
            ("model.layers.0.conv.in_proj.weight", "blk.0.shortconv.in_proj.weight", (192, 64)),
        ):
            tensor = found.tensor(name, shape)
            assert tensor.dtype == qtype.lower()
            assert np.array_equal(tensor.data, raw[gguf_name].data)
            expected = dequantize(raw[gguf_name].data, raw[gguf_name].tensor_type)
            assert np.array_equal(tensor.to_float32(), expected)


@pytest.mark.parametrize(
    "kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"], ids=str
)
def test_the_engine_reads_blocks_as_the_gguf_package(kind: str) -> None:
    """Any bits: subnormal, huge, infinite and NaN scales too."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[GgmlType[kind]]
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, (257, 3 * block_bytes), np.uint8)
    raw[0], raw[1] = 0, 255
    with np.errstate(all="ignore"):
        expected = dequantize(raw, GgmlType[kind])
    assert np.isfinite(expected).all(1).sum() > 50
    assert not np.isfinite(expected).all()
    found = _core.dequantize(raw, kind.lower())
    assert np.array_equal(found, expected, equal_nan=True)


def test_dequantize_checks_its_arguments() -> None:
    blocks = np.zeros((2, 34), np.uint8)
    assert _core.dequantize(blocks, "q8_0").shape == (2, 32)
    with pytest.raises(ValueError, match="rows of whole q4_0 blocks"):
        _core.dequantize(blocks, "q4_0")
    with pytest.raises(ValueError, match=r"uint8 \[rows, bytes\]"):
        _core.dequantize(blocks[0], "q8_0")
    with pytest.raises(ValueError, match="dtype q3_k"):
        _core.dequantize(blocks, "q3_k")


@pytest.mark.parametrize("qtype", ["Q8_0", "Q4_0"])
def test_llama_rows_are_put_back_in_order(qtype: str, tmp_path: Path) -> None:
    folder, path = GOLDENS / "llama-linear-rope", tmp_path / "model.gguf"
    write_gguf(folder, path, qtype)
    with open_checkpoint(folder) as expected, open_checkpoint(path) as found:
        for part in ("q", "k"):
            name = f"model.layers.0.self_attn.{part}_proj.weight"
            shape = expected.config.tensor_shapes()[name]
            plain = expected.tensor(name, shape).to_float32()
            tensor = found.tensor(name, shape)
            assert tensor.dtype == qtype.lower()
            assert np.abs(tensor.to_float32() - plain).max() < 0.15 * np.abs(plain).max()


@pytest.mark.parametrize("kind", [GgmlType.Q2_K, GgmlType.Q3_K, GgmlType.IQ4_NL])
def test_other_types_are_dequantized(kind: GgmlType, tmp_path: Path, base_f16: Path) -> None:
    """Random blocks in place of the embedding: what comes out is what the package makes of them."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 131, 256
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (rows, columns // block * block_bytes), np.uint8)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "lfm2")
    changed = {"lfm2.embedding_length": 256, "lfm2.rope.dimension_count": 128}
    for key, value in read_metadata(base_f16).items():
        if key.startswith("lfm2.") and isinstance(value, int):
            writer.add_uint32(key, changed.get(key, value))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_head_count_kv([0, 1, 0, 1])
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_checkpoint(path) as found:
        assert found.stored_dtype == "int8"
        tensor = found.tensor("model.embed_tokens.weight", (rows, columns))
        assert tensor.dtype == "float32"
        assert tensor.least_bits == 8
        with np.errstate(all="ignore"):
            assert np.array_equal(tensor.data, dequantize(raw, kind), equal_nan=True)
        with pytest.raises(ValueError, match="is missing"):
            found.tensor(Q_PROJ, (64, 256))


def test_metadata_equals_the_gguf_packages(base_f16: Path) -> None:
    fields = gguf.GGUFReader(base_f16).fields
    ours = read_metadata(base_f16)
    assert ours == {key: f.contents() for key, f in fields.items() if not key.startswith("GGUF.")}
    assert ours["lfm2.attention.head_count_kv"] == [0, 1, 0, 1]


def test_shapes_are_checked(base_f16: Path) -> None:
    with open_checkpoint(base_f16) as found:
        with pytest.raises(ValueError, match=rf"{base_f16.name}: tensor '{Q_PROJ}' has shape"):
            found.tensor(Q_PROJ, (64, 65))
        with pytest.raises(ValueError, match=r"conv\.conv\.weight' has shape"):
            found.tensor("model.layers.0.conv.conv.weight", (64, 1, 4))
        with pytest.raises(ValueError, match=r"'lm_head\.weight' is missing"):
            found.tensor("lm_head.weight", (131, 64))


def patched(path: Path, tmp_path: Path, *edits: tuple[bytes, bytes]) -> Path:
    raw = path.read_bytes()
    for old, new in edits:
        assert raw.count(old) == 1, old
        raw = raw.replace(old, new)
    out = tmp_path / "patched.gguf"
    out.write_bytes(raw)
    return out


def counted(name: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name


def info(name: bytes, *dims: int) -> bytes:
    return counted(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)


def test_lying_headers(base_f16: Path, tmp_path: Path) -> None:
    norm = info(b"token_embd_norm.weight", 64)
    array = counted(b"lfm2.attention.head_count_kv") + struct.pack("<IIQ", 9, 5, 4)
    cases: list[tuple[bytes, bytes, str]] = [
        (b"GGUF", b"FUGG", "not a GGUF file"),
        (b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0", "GGUF version 1 cannot be read"),
        (b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03", "big-endian"),
        (array, array[:-8] + struct.pack("<Q", 1 << 60), "claims 1152921504606846976 items"),
        (array, array[:-16] + struct.pack("<IQ", 77, 4), "truncated|unknown value type"),
        (norm, info(b"token_embd_norm.weight", 1 << 62), "ends at byte|overlaps"),
        (norm, info(b"token_embd_norm.weighU", 64), "tensor 'model.embedding_norm.weight'"),
        (norm, counted(b"token_embd_norm.weight") + struct.pack("<IQ", 99, 64), "99 dimensions"),
        (norm + struct.pack("<I", 0), norm + struct.pack("<I", 250), "unknown type 250"),
        (norm + struct.pack("<I", 0), norm + struct.pack("<I", 24), "unsupported type I8|overlaps"),
        (counted(b"lfm2.block_count"), counted(b"lfm2.block_c\xffunt"), "corrupt GGUF header"),
    ]
    for old, new, message in cases:
        path = patched(base_f16, tmp_path, (old, new))
        with pytest.raises(ValueError, match=message) as caught:
            dict(values(open_checkpoint(path)))
        assert str(path) in str(caught.value)


def test_foreign_and_truncated_files(base_f16: Path, tmp_path: Path) -> None:
    raw = base_f16.read_bytes()
    path = tmp_path / "bad.gguf"
    for content in (b"", b"GGUF", b"\0" * 100, b"PK" + raw, raw[:30], raw[:2000], raw[:-40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            open_checkpoint(path)


def test_split_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    writer = gguf.GGUFWriter(path, "lfm2")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="split model; merge"):
        open_checkpoint(path)


def test_damage_gives_only_value_errors(base_f16: Path, tmp_path: Path) -> None:
    """Flipped bytes and cut ends: an error that says what, or a checkpoint that can be read."""
    good = base_f16.read_bytes()
    header_end = good.index(counted(b"token_embd_norm.weight")) + 200
    path = tmp_path / "damaged.gguf"
    rng = random.Random(0)
    outcomes = {"error": 0, "read": 0}
    for _ in range(600):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            position = rng.randrange(header_end)
            damaged[position] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            with GgufCheckpoint(path) as checkpoint:
                for _ in values(checkpoint):
                    pass
            outcomes["read"] += 1
        except (ValueError, OSError) as error:
            message = str(error)
            assert str(path) in message
            outcomes["error"] += 1
    assert outcomes["error"] > 300
