"""GGUF files of the architectures lfm2 and llama, read through a memory map.

Float tensors and Q8_0 are handed out as they lie. Q4_0 and Q5_0 are re-expressed as Q8_0 blocks,
which is exact: the same scale, and values that fit an int8. Other quantized types are expanded to
float32 by the `gguf` package, one tensor at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as GgmlType
from gguf.quants import dequantize

from . import names
from .base import (
    Q8_0_BYTES,
    Checkpoint,
    MappedFile,
    StoredTensor,
    check_shape,
    element_count,
    missing,
)
from .config import ModelConfig, from_gguf
from .gguf_header import GgufTensor, read

_FLOATS = {GgmlType.F32: "float32", GgmlType.F16: "float16", GgmlType.BF16: "bfloat16"}
_NOT_WEIGHTS = (
    GgmlType.I8,
    GgmlType.I16,
    GgmlType.I32,
    GgmlType.I64,
    GgmlType.F64,
)
_CHUNK_ROWS = 1024  # rows converted at once: bounds the temporary arrays


class GgufCheckpoint(Checkpoint):
    """The checkpoint in a .gguf file.

    Attributes:
        metadata: the file's metadata as Python values (tokenizer and chat template included).

    Raises:
        OSError: the file cannot be read.
        ValueError: it is corrupt, truncated, split or of an unsupported architecture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation_config = {}
        self._file = MappedFile(path)
        try:
            self.metadata, tensors = read(self._file)
            if self.metadata.get("split.count", 0) not in (0, 1):
                raise ValueError(f"{path}: one part of a split model; merge the parts first")
            self._tensors: dict[str, GgufTensor] = {}
            for gguf_name, tensor in tensors.items():
                name = names.from_gguf(gguf_name)
                if name in self._tensors:
                    raise ValueError(f"{path}: tensor {name!r} occurs a second time as {gguf_name}")
                if name is not None:
                    self._tensors[name] = tensor
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            self.config: ModelConfig = from_gguf(
                self.metadata, shapes, self._rope_factors(tensors), str(path)
            )
        except BaseException:
            self._file.close()
            raise
        self.stored_dtype = _stored_dtype(self._tensors)

    def names(self) -> list[str]:
        return list(self._tensors)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def tensor_nbytes(self, name: str) -> int:
        return self._entry(name).nbytes

    def tensor(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        entry = self._entry(name)
        expected = tuple(shape)
        if name.endswith(".conv.conv.weight") and len(expected) == 3 and expected[1] == 1:
            expected = (expected[0], expected[2])  # GGUF drops the axis of one input channel
        check_shape(self.path, name, entry.shape, expected)
        data, dtype = self._read(name, entry)
        if dtype != "q8_0":
            data = data.reshape(shape)
        if self.config.architecture == "llama":
            data = self._unpermuted(name, data)
        return StoredTensor(data, dtype, tuple(shape))

    def release(self, name: str) -> None:
        entry = self._entry(name)
        self._file.release(entry.offset, entry.nbytes)

    def close(self) -> None:
        self._file.close()

    def _entry(self, name: str) -> GgufTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise missing(self.path, name) from None

    def _read(self, name: str, entry: GgufTensor) -> tuple[npt.NDArray[Any], str]:
        if entry.type in _FLOATS:
            dtype = _FLOATS[entry.type]
            return self._file.view(entry.offset, entry.nbytes, dtype, entry.shape), dtype
        if entry.type in _NOT_WEIGHTS:
            raise ValueError(
                f"{self.path}: tensor {name!r} has the unsupported type {entry.type.name}"
            )
        rows = element_count(entry.shape[:-1])
        raw_shape = (rows, entry.nbytes // max(rows, 1))
        raw = self._file.view(entry.offset, entry.nbytes, "q8_0", raw_shape)
        if len(entry.shape) == 2 and entry.type == GgmlType.Q8_0:
            return raw, "q8_0"
        if len(entry.shape) == 2 and entry.type in (GgmlType.Q4_0, GgmlType.Q5_0):
            return _to_q8_0(raw, entry.type), "q8_0"
        out = np.empty((rows, entry.shape[-1]), np.float32)
        try:
            # Scales that overflow in a corrupt file are the model's problem (NaN), not a warning's.
            with np.errstate(all="ignore"):
                for start in range(0, rows, _CHUNK_ROWS):
                    part = slice(start, start + _CHUNK_ROWS)
                    out[part] = dequantize(raw[part], entry.type)
        except NotImplementedError:
            raise ValueError(
                f"{self.path}: tensor {name!r} has the type {entry.type.name}, which the installed "
                "gguf package cannot read"
            ) from None
        return out.reshape(entry.shape), "float32"

    def _rope_factors(self, tensors: dict[str, GgufTensor]) -> npt.NDArray[np.float32] | None:
        entry = tensors.get("rope_freqs.weight")
        if entry is None:
            return None
        if entry.type != GgmlType.F32:
            raise ValueError(f"{self.path}: rope_freqs.weight must be F32, not {entry.type.name}")
        view = self._file.view(entry.offset, entry.nbytes, "float32", (-1,))
        return view.copy()

    def _unpermuted(self, name: str, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Undoes the row order of Llama's q and k in GGUF, where RoPE pairs neighbouring rows."""
        if name.endswith(".self_attn.q_proj.weight"):
            heads = self.config.num_attention_heads
        elif name.endswith(".self_attn.k_proj.weight"):
            heads = self.config.num_key_value_heads
        else:
            return data
        rows, columns = data.shape
        if rows % (2 * heads):
            raise ValueError(f"{self.path}: tensor {name!r}: {rows} rows are not {heads} heads")
        pairs = data.reshape(heads, rows // heads // 2, 2, columns)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def _stored_dtype(tensors: dict[str, GgufTensor]) -> str:
    # Types with an offset or scales of scales have no exact int8 form: their values are expanded.
    weights: dict[str, int] = {}
    for tensor in tensors.values():
        exact = tensor.type in (GgmlType.Q8_0, GgmlType.Q4_0, GgmlType.Q5_0)
        kind = _FLOATS.get(tensor.type, "int8" if exact else "bfloat16")
        weights[kind] = weights.get(kind, 0) + element_count(tensor.shape)
    return max(weights, key=lambda kind: weights[kind]) if weights else "float32"


def _to_q8_0(raw: npt.NDArray[np.uint8], kind: GgmlType) -> npt.NDArray[np.uint8]:
    """Q4_0 or Q5_0 blocks ([rows, bytes]) as Q8_0 blocks of exactly the same values.

    A block is a float16 scale, for Q5_0 the 32 fifth bits, then 16 bytes: the low halves are the
    values 0 to 15, the high halves 16 to 31; the zero point is 8 (Q4_0) or 16 (Q5_0).
    """
    five_bits = kind == GgmlType.Q5_0
    block_bytes = 22 if five_bits else 18
    rows = raw.shape[0]
    blocks = raw.shape[1] // block_bytes
    out = np.empty((rows, blocks, Q8_0_BYTES), np.uint8)
    for start in range(0, rows, _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        source = raw[part].reshape(-1, blocks, block_bytes)
        nibbles = source[..., -16:]
        values = np.concatenate((nibbles & 0x0F, nibbles >> 4), axis=-1)
        if five_bits:
            values |= np.unpackbits(source[..., 2:6], axis=-1, bitorder="little") << 4
        out[part, :, :2] = source[..., :2]
        out[part, :, 2:] = values - np.uint8(16 if five_bits else 8)  # wraps: int8 bit patterns
    return out.reshape(rows, blocks * Q8_0_BYTES)
