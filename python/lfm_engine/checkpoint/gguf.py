"""GGUF files of the architectures lfm2 and llama, read through a memory map.

Float tensors and the quantized types of `_BLOCKS` are handed out as they lie. Other quantized types
are expanded to float32 by the `gguf` package, one tensor at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as GgmlType
from gguf.quants import dequantize

from . import names
from .base import Checkpoint, MappedFile, StoredTensor, check_shape, element_count, missing
from .config import ModelConfig, from_gguf
from .gguf_header import GgufTensor, read

_FLOATS = {GgmlType.F32: "float32", GgmlType.F16: "float16", GgmlType.BF16: "bfloat16"}
_FOUR_BITS = {GgmlType.Q4_0: "q4_0", GgmlType.Q4_1: "q4_1", GgmlType.Q4_K: "q4_k"}
_BLOCKS = {
    **_FOUR_BITS,
    GgmlType.Q8_0: "q8_0",
    GgmlType.Q5_0: "q5_0",
    GgmlType.Q5_1: "q5_1",
    GgmlType.Q5_K: "q5_k",
    GgmlType.Q6_K: "q6_k",
}
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
        if dtype not in _BLOCKS.values():
            data = data.reshape(shape)
        if self.config.architecture == "llama":
            data = self._unpermuted(name, data)
        # What a quantized file has as floats, or in types that were expanded, is not for 4 bits.
        least_bits = 8 if self.stored_dtype in ("int8", "int4") else 4
        return StoredTensor(data, dtype, tuple(shape), least_bits)

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
        raw = self._file.view(entry.offset, entry.nbytes, "uint8", raw_shape)
        if len(entry.shape) == 2 and entry.type in _BLOCKS:
            return raw, _BLOCKS[entry.type]
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
    weights: dict[str, int] = {}
    for tensor in tensors.values():
        kind = _FLOATS.get(tensor.type, "int8")
        weights[kind] = weights.get(kind, 0) + element_count(tensor.shape)
    most = max(weights, key=lambda kind: weights[kind]) if weights else "float32"
    if most == "int8" and any(tensor.type in _FOUR_BITS for tensor in tensors.values()):
        return "int4"
    return most
