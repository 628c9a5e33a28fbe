"""Packed files (.lfm): a whole model in one file, weights in the layout that the kernels read.

A file is mapped and its weights are used in place: opening takes milliseconds, and processes share
the memory. Its parts, little-endian:

    header      40 bytes, see `_HEADER`; knows the size of the file
    metadata    JSON: `config`, `generation_config`, `dtype`, and three tables whose sections are
                [offset, nbytes, crc32]: `files` (the tokenizer's, by name), `vectors` (small
                tensors, float32) and `matrices` (a layout's name and its parts)
    data        sections at multiples of 64 bytes; offsets count from its beginning

Header and metadata are checked each time a file is opened, files and vectors when they are read,
matrices by `verify` alone: that reads all of them. int8 and int4 layouts are the same on every CPU;
a layout that changes gets another name.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .base import Checkpoint, PackedMatrix, StoredTensor, check_shape, element_count, missing
from .config import ModelConfig, from_packed, to_packed
from .fields import Fields, show

PACKED_SUFFIX = ".lfm"
PACKED_DTYPES = ("int8", "int4")

# Like PNG's: what mangles line ends or the eighth bit of a copy is noticed at once.
_MAGIC = b"\x89LFM\r\n\x1a\n"
_VERSION = 2  # 1 had scales of zero
# Magic, version, CRC-32 of the header with zeros here, size of the file, size of the metadata, its
# CRC-32, zeros.
_HEADER = struct.Struct("<8sIIQQII")
_ALIGNMENT = 64  # what the kernels' loads want
_MAX_METADATA = 100_000_000  # bytes; far above any real one
# Written in pieces of a huge page, at multiples of it: Linux then keeps the file in huge pages too,
# and mapping it costs a hundredth of the page faults and of the TLB misses.
_PIECE = 1 << 21


class _Section(NamedTuple):
    offset: int  # from the start of the file
    nbytes: int
    crc: int


def check_packable(dtype: str) -> None:
    """ValueError, saying why, for a dtype that packed files do not hold."""
    if dtype not in PACKED_DTYPES:
        raise ValueError(
            f"dtype {dtype} cannot be packed: its layout differs from CPU to CPU, and packed files "
            f"are used in place; use {' or '.join(PACKED_DTYPES)}"
        )


def is_packed(path: Path) -> bool:
    """Whether a file begins like a packed one. OSError: it cannot be read."""
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


# -- reading --


class PackedCheckpoint(Checkpoint):
    """The model in a packed file.

    Attributes:
        files: names of the tokenizer's files inside.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is foreign, cut, corrupt, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            try:
                self._map = _core.FileMap(file.fileno())
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
        self._bytes = self._map.bytes.data
        metadata, self._start = _read_metadata(self._bytes, path)
        fields = Fields(metadata, str(path))
        self.stored_dtype = fields.find("dtype")[1]
        if self.stored_dtype not in PACKED_DTYPES:
            raise fields.error(f"packed as the unknown dtype {show(self.stored_dtype)}")
        self.generation_config = dict(fields.mapping("generation_config"))
        self.config: ModelConfig = from_packed(fields.mapping("config"), str(path))

        self._sections: list[tuple[str, _Section]] = []
        self._files: dict[str, _Section] = {}
        self._vectors: dict[str, tuple[tuple[int, ...], _Section]] = {}
        self._matrices: dict[str, PackedMatrix] = {}
        for name, value in fields.mapping("files").items():
            self._files[name] = self._section(name, value)
        for name, value in fields.mapping("vectors").items():
            entry = self._entry(name, value)
            section = self._section(name, entry.find("section")[1])
            shape = self._shape(name, entry)
            if section.nbytes != 4 * element_count(shape):
                raise self._error(name, f"has {section.nbytes} bytes, not float32 {list(shape)}")
            self._vectors[name] = (shape, section)
        for name, value in fields.mapping("matrices").items():
            self._matrices[name] = self._matrix(name, self._entry(name, value))
        self._check_overlaps()

    @property
    def files(self) -> list[str]:
        return list(self._files)

    def read_file(self, name: str) -> bytes:
        """One of `files`. ValueError: its checksum is wrong."""
        return bytes(self._checked(name, self._files[name]))

    def names(self) -> list[str]:
        return [*self._vectors, *self._matrices]

    def nbytes(self) -> int:
        return sum(self.tensor_nbytes(name) for name in self.names())

    def tensor_nbytes(self, name: str) -> int:
        if name in self._matrices:
            return sum(nbytes for _, nbytes in self._matrices[name].parts)
        return self._vector(name)[1].nbytes

    def tensor(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        found, section = self._vector(name)
        check_shape(self.path, name, found, shape)
        data = np.frombuffer(self._checked(name, section), np.float32).reshape(found)
        return StoredTensor(data, "float32", found)

    def packed(self, name: str) -> PackedMatrix:
        try:
            return self._matrices[name]
        except KeyError:
            raise missing(self.path, name) from None

    def will_be_used(self) -> None:
        matrices = [offset for matrix in self._matrices.values() for offset, _ in matrix.parts]
        self._map.populate(min(matrices, default=0))

    def release(self, name: str) -> None:
        pass  # a model uses the file in place

    def verify(self) -> None:
        for name, section in self._sections:
            self._checked(name, section)

    def close(self) -> None:
        # Whoever uses the map keeps it: models, arrays.
        with suppress(BufferError):
            self._bytes.release()

    def _vector(self, name: str) -> tuple[tuple[int, ...], _Section]:
        try:
            return self._vectors[name]
        except KeyError:
            raise missing(self.path, name) from None

    def _checked(self, name: str, section: _Section) -> memoryview:
        data = self._bytes[section.offset : section.offset + section.nbytes]
        if zlib.crc32(data) != section.crc:
            raise self._error(name, "is corrupt: its checksum differs")
        return data

    def _error(self, name: str, problem: str) -> ValueError:
        return ValueError(f"{self.path}: {show(name)} {problem}")

    def _entry(self, name: str, value: Any) -> Fields:
        if not isinstance(value, dict):
            raise self._error(name, "is not described by a JSON object")
        return Fields(value, f"{self.path}: {show(name)}")

    def _matrix(self, name: str, entry: Fields) -> PackedMatrix:
        layout, parts = entry.find("layout")[1], entry.find("parts")[1]
        shape = self._shape(name, entry)
        if not isinstance(layout, str) or not isinstance(parts, list) or len(shape) != 2:
            raise self._error(name, "is no matrix of a layout and parts")
        found = [self._section(name, part) for part in parts]
        spans = tuple((section.offset, section.nbytes) for section in found)
        return PackedMatrix(layout, (shape[0], shape[1]), spans, self._map)

    def _shape(self, name: str, entry: Fields) -> tuple[int, ...]:
        shape = entry.find("shape")[1]
        if not isinstance(shape, list) or not _are_counts(shape):
            raise self._error(name, f"has the invalid shape {show(shape)}")
        return tuple(shape)

    def _section(self, name: str, value: Any) -> _Section:
        """The checked section of a tensor or file; remembered for `verify` and overlaps."""
        if not isinstance(value, list) or len(value) != 3 or not _are_counts(value):
            raise self._error(name, f"has the invalid section {show(value)}")
        offset, nbytes, crc = value
        if offset % _ALIGNMENT:
            raise self._error(name, f"is not aligned to {_ALIGNMENT} bytes")
        size = len(self._bytes) - self._start
        if offset > size or nbytes > size - offset:
            raise self._error(name, f"ends at byte {offset + nbytes} of {size} bytes of data")
        section = _Section(self._start + offset, nbytes, crc)
        self._sections.append((name, section))
        return section

    def _check_overlaps(self) -> None:
        end = 0
        for name, section in sorted(self._sections, key=lambda item: item[1].offset):
            if section.offset < end:
                raise self._error(name, "overlaps another section")
            end = section.offset + section.nbytes


def _read_metadata(data: memoryview, path: Path) -> tuple[dict[str, Any], int]:
    """The checked metadata of a packed file, and where its data begins."""
    if len(data) < _HEADER.size or data[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{path}: not a packed model ({PACKED_SUFFIX} file)")
    raw = bytes(data[: _HEADER.size])
    _, version, crc, size, length, metadata_crc, rest = _HEADER.unpack(raw)
    if version > _VERSION:
        raise ValueError(
            f"{path}: packed as version {version}, which a newer lfm-engine wrote; this one reads "
            f"version {_VERSION}"
        )
    if version < 1 or rest or zlib.crc32(raw[:12] + bytes(4) + raw[16:]) != crc:
        raise ValueError(f"{path}: the header is corrupt")
    if version < _VERSION:
        raise ValueError(
            f"{path}: packed as version {version} by an earlier lfm-engine; this one reads version "
            f"{_VERSION}: pack the model again"
        )
    if size != len(data):
        problem = "it was cut off" if len(data) < size else "something was appended"
        raise ValueError(f"{path}: has {len(data)} bytes instead of {size}: {problem}")
    if length > min(_MAX_METADATA, size - _HEADER.size):
        raise ValueError(f"{path}: the header claims {length} bytes of metadata")
    text = bytes(data[_HEADER.size : _HEADER.size + length])
    if zlib.crc32(text) != metadata_crc:
        raise ValueError(f"{path}: the metadata is corrupt: its checksum differs")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: the metadata is not valid JSON") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: the metadata is not a JSON object")
    start = _aligned(_HEADER.size + length)
    if start > size:
        raise ValueError(f"{path}: there is no data behind the metadata")
    return metadata, start


def _are_counts(values: Sequence[Any]) -> bool:
    return len(values) <= 8 and all(type(item) is int and 0 <= item < 1 << 60 for item in values)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


# -- writing --


def write_packed(
    path: str | os.PathLike[str],
    core: _core.Model,
    config: ModelConfig,
    generation_config: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> None:
    """Writes a model of dtype int8 or int4 as one file.

    The file appears when it is complete; one that was there is replaced.

    Args:
        core: whose weights to write.
        generation_config: the contents of a generation_config.json.
        files: those of the tokenizer, by name.

    Raises:
        ValueError: another dtype.
        OSError: the file cannot be written; names it.
    """
    check_packable(core.dtype)
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    matrices, vectors = core.export_weights()
    table = _Table()
    metadata = {
        "engine": _core.__version__,
        "dtype": core.dtype,
        "config": to_packed(config),
        "generation_config": dict(generation_config),
        "files": {name: table.add(content) for name, content in files.items()},
        "vectors": {
            name: {"shape": values.shape, "section": table.add(values)}
            for name, values in vectors.items()
        },
        "matrices": {
            name: {"layout": layout, "shape": shape, "parts": [table.add(part) for part in parts]}
            for name, layout, shape, parts in matrices
        },
    }
    text = json.dumps(metadata, separators=(",", ":"), allow_nan=False).encode()
    start = _aligned(_HEADER.size + len(text))
    fields = (start + table.nbytes, len(text), zlib.crc32(text), 0)
    crc = zlib.crc32(_HEADER.pack(_MAGIC, _VERSION, 0, *fields))
    head = _HEADER.pack(_MAGIC, _VERSION, crc, *fields) + text
    write_atomically(path, [head, bytes(start - len(head)), *table.contents])


class _Table:
    """Sections in the order in which they are written, padded to the alignment."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.contents: list[Any] = []

    def add(self, content: Any) -> tuple[int, int, int]:
        """Offset, bytes and checksum of `content`: bytes or a C-contiguous array."""
        data = memoryview(content).cast("B")
        section = (self.nbytes, data.nbytes, zlib.crc32(data))
        end = _aligned(self.nbytes + data.nbytes)
        self.contents += [data, bytes(end - self.nbytes - data.nbytes)]
        self.nbytes = end
        return section


def write_atomically(path: Path, contents: Iterable[Any]) -> None:
    """Writes a file beside `path` and gives it that name once it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        try:
            try:
                for piece in _pieces(contents):
                    while piece:
                        piece = piece[os.write(file, piece) :]
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _pieces(contents: Iterable[Any]) -> Iterator[memoryview]:
    """The contents one after the other, cut at multiples of `_PIECE`."""
    buffer = memoryview(bytearray(_PIECE))
    used = 0
    for content in contents:
        data = memoryview(content)
        while data:
            count = min(len(data), _PIECE - used)
            buffer[used : used + count] = data[:count]
            used, data = used + count, data[count:]
            if used == _PIECE:
                yield buffer
                used = 0
    if used:
        yield buffer[:used]
