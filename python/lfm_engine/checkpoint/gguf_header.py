"""The header of a GGUF file: metadata and tensor table, each number checked before it is used.

The `gguf` package's own reader is not used for this: it loops over an array for as long as a
lying length says, and needs seconds for the header of a small model (a Python object for each of
its 100,000 tokens and merges) where this needs a tenth of one.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from .base import MappedFile, element_count
from .fields import show

_MAX_DIMS = 4
_MAX_NAME = 65535  # bytes of a key or tensor name (the format's own limit for keys)
_STRING, _ARRAY, _BOOL = 8, 9, 7
# Value types of the format -> NumPy's little-endian dtype.
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


class GgufTensor(NamedTuple):
    """Where a tensor lies: `shape` with the rows first, `offset` in bytes from the file's start."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufHeader(NamedTuple):
    """Metadata as Python values (int, float, bool, str, lists of these) and the tensor table."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, as `read` gives it. OSError, ValueError: as there."""
    file = MappedFile(path)
    try:
        return read(file).metadata
    finally:
        file.close()


def read(file: MappedFile) -> GgufHeader:
    """Reads and checks the header.

    Raises ValueError naming the file when it is no GGUF file (versions 2 and 3, little-endian),
    is truncated, or when a tensor is of unknown type, misaligned, overlapping or out of the file.
    """
    try:
        return _Reader(file).header()
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{file.path}: corrupt GGUF header ({error})") from None


class _Reader:
    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._offset = 0

    def header(self) -> GgufHeader:
        path = self._file.path
        if self._file.size < 24 or self._take(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file")
        version = self._number("<I")
        if version not in (2, 3):
            kind = "big-endian files" if version & 0xFFFF == 0 else f"version {version}"
            raise ValueError(f"{path}: GGUF {kind} cannot be read, only versions 2 and 3")
        tensor_count, key_count = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(self._bounded(key_count, 13, "metadata entries")):
            key = self._string(_MAX_NAME)
            if key in metadata:
                raise ValueError(f"{path}: the metadata key {show(key)} occurs twice")
            metadata[key] = self._value(key, self._number("<I"))

        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment % 8:
            raise ValueError(f"{path}: invalid general.alignment {show(alignment)}")
        relative: dict[str, GgufTensor] = {}
        for _ in range(self._bounded(tensor_count, 32, "tensors")):
            name = self._string(_MAX_NAME)
            if name in relative:
                raise ValueError(f"{path}: the tensor {show(name)} occurs twice")
            relative[name] = self._tensor(name)
        start = -(-self._offset // alignment) * alignment
        tensors = {
            name: tensor._replace(offset=start + tensor.offset) for name, tensor in relative.items()
        }
        self._check_extents(tensors, alignment, start)
        return GgufHeader(metadata, tensors)

    def _tensor(self, name: str) -> GgufTensor:
        where = f"{self._file.path}: tensor {show(name)}"
        count = self._number("<I")
        if not 1 <= count <= _MAX_DIMS:
            raise ValueError(f"{where} has {count} dimensions (1 to {_MAX_DIMS} are possible)")
        # The file lists the fastest dimension first.
        shape = tuple(self._number("<Q") for _ in range(count))[::-1]
        code, offset = self._number("<I"), self._number("<Q")
        try:
            kind = GGMLQuantizationType(code)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise ValueError(f"{where} has the unknown type {code}") from None
        if shape[-1] % block:
            raise ValueError(f"{where}: rows of {shape[-1]} are not whole blocks of {kind.name}")
        return GgufTensor(kind, shape, offset, element_count(shape) // block * block_bytes)

    def _check_extents(self, tensors: dict[str, GgufTensor], alignment: int, start: int) -> None:
        end = start
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
            where = f"{self._file.path}: tensor {show(name)}"
            if tensor.offset % alignment:
                raise ValueError(f"{where} is not aligned to {alignment} bytes")
            if tensor.offset < end:
                raise ValueError(f"{where} overlaps another one")
            end = tensor.offset + tensor.nbytes
            if end > self._file.size:
                raise ValueError(
                    f"{where} ends at byte {end}, but the file has {self._file.size}: truncated?"
                )

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            value = self._scalars(key, kind, 1)[0]
            return bool(value) if kind == _BOOL else value
        kind, count = self._number("<I"), self._number("<Q")
        if kind == _STRING:
            return [self._string() for _ in range(self._bounded(count, 8, f"items in {show(key)}"))]
        values = self._scalars(key, kind, count)
        return [bool(value) for value in values] if kind == _BOOL else values

    def _scalars(self, key: str, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise ValueError(f"{self._file.path}: {show(key)} has the unknown value type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        self._bounded(count, dtype.itemsize, f"items in {show(key)}")
        values: list[Any] = np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
        return values

    def _bounded(self, count: int, item_bytes: int, what: str) -> int:
        """`count`, if that many items of at least `item_bytes` can follow in the file."""
        if count > (self._file.size - self._offset) // item_bytes:
            raise ValueError(
                f"{self._file.path}: truncated or corrupt (it claims {count} {what}, the file has "
                f"{self._file.size} bytes)"
            )
        return count

    def _string(self, limit: int = 1 << 40) -> str:
        length = self._number("<Q")
        return self._take(self._bounded(min(length, limit + 1), 1, "bytes of text")).decode()

    def _number(self, form: str) -> int:
        value: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return value

    def _take(self, count: int) -> bytes:
        if count > self._file.size - self._offset:
            raise ValueError(f"{self._file.path}: truncated inside the GGUF header")
        taken = self._file.bytes(self._offset, count)
        self._offset += count
        return taken
