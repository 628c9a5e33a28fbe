"""Session files: tokens with their K and V, and what tells whether they fit a model.

Parts, little-endian:

    header      see `_HEADER`; knows the size of the file
    metadata    JSON: what the model must have in common with the one that wrote it, and counts
    tokens      int32 [length]
    pages       K and V of 64 tokens each, as in memory: the same on every CPU

A checksum covers all of it. The conv state is not in the file: it follows from the last tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint import ModelConfig
from .checkpoint.config import to_packed
from .checkpoint.packed import write_atomically

# Like PNG's: what mangles line ends or the eighth bit of a copy is noticed at once.
_MAGIC = b"\x89LFS\r\n\x1a\n"
_VERSION = 1
# Magic, version, CRC-32 of all that follows the header, size of the file, size of the metadata.
_HEADER = struct.Struct("<8sIIQQ")
_PAGE = 64  # tokens

Tokens = npt.NDArray[np.int32]


def write_session(
    path: str | os.PathLike[str],
    core: _core.Model,
    config: ModelConfig,
    tokens: Tokens,
    state: _core.State,
    extra: Mapping[str, Any],
) -> None:
    """Write a session; the file appears when it is complete.

    Args:
        tokens: int32 [length], of which `state` holds the first ones.
        extra: JSON values, given back by `read_session`.

    Raises:
        OSError: the file cannot be written; names it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    pages = -(-state.length // _PAGE)

    def contents() -> Iterator[Any]:  # twice; a copy of one page at a time
        yield text
        yield tokens.astype("<i4").tobytes()
        for index in range(pages):
            yield state.page(index).data

    metadata = {
        "model": _model_facts(core, config),
        "isa": core.isa,
        "length": len(tokens),
        "computed": state.length,
        "page_nbytes": state.page(0).nbytes if pages else 0,
        "extra": dict(extra),
    }
    text = json.dumps(metadata).encode()
    crc, size = 0, _HEADER.size
    for content in contents():
        crc = zlib.crc32(content, crc)
        size += len(content)
    header = _HEADER.pack(_MAGIC, _VERSION, crc, size, len(text))
    write_atomically(path, chain([header], contents()))


def read_session(
    path: str | os.PathLike[str], core: _core.Model, config: ModelConfig
) -> tuple[Tokens, _core.State, dict[str, Any]]:
    """Read what `write_session` wrote: tokens [length], the state, and `extra`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is foreign, cut short, damaged, of a newer version, or of another model;
            names the file.
    """
    path = Path(path)
    with open(path, "rb") as file:
        crc, size = _read_header(file, path)
        reader = _Reader(file, path)
        text = reader.read(size)
        # Checked first: what follows believes the metadata.
        while reader.skip(1 << 20):
            pass
        if reader.crc != crc:
            raise ValueError(f"{path}: damaged: its checksum is wrong")
        file.seek(_HEADER.size + size)
        try:
            metadata = json.loads(text)
            saved = dict(metadata["model"])
            length, computed = int(metadata["length"]), int(metadata["computed"])
            nbytes = int(metadata["page_nbytes"])
            extra = {"isa": metadata["isa"], **metadata["extra"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged: its metadata cannot be read: {error!r}") from None
        _check_model(path, saved, _model_facts(core, config))
        tokens = np.frombuffer(reader.read(4 * length), "<i4").astype(np.int32)
        if length and not 0 <= tokens.min() <= tokens.max() < config.vocab_size:
            raise ValueError(f"{path}: damaged: tokens outside the vocabulary")
        state = core.new_state()
        try:
            for begin in range(0, computed, _PAGE):
                kv = np.frombuffer(reader.read(nbytes), np.uint8)
                state.append_page(tokens[begin : min(begin + _PAGE, computed)], kv)
        except ValueError as error:
            raise ValueError(f"{path}: damaged: {error}") from None
    return tokens, state, extra


class _Reader:
    """Reads on in a file and adds up its checksum."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = os.fstat(file.fileno()).st_size
        self.crc = 0

    def read(self, count: int) -> bytes:
        data = self._file.read(count) if 0 <= count <= self._size else b""
        if len(data) != count:
            raise ValueError(f"{self._path}: damaged: it has fewer bytes than it says")
        self.crc = zlib.crc32(data, self.crc)
        return data

    def skip(self, most: int) -> bool:
        data = self._file.read(most)
        self.crc = zlib.crc32(data, self.crc)
        return bool(data)


def _read_header(file: BinaryIO, path: Path) -> tuple[int, int]:
    """The checksum and the size of the metadata."""
    actual = os.fstat(file.fileno()).st_size
    head = file.read(_HEADER.size)
    if head[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{path}: not a session file of lfm-engine")
    if len(head) < _HEADER.size:
        raise ValueError(f"{path}: the file is cut short: it has {actual} bytes")
    _, version, crc, size, metadata = _HEADER.unpack(head)
    if version != _VERSION:
        raise ValueError(f"{path}: format version {version}; this lfm-engine reads {_VERSION}")
    if actual < size:
        raise ValueError(f"{path}: the file is cut short: it has {actual} bytes of {size}")
    if actual > size or metadata > size - _HEADER.size:
        raise ValueError(f"{path}: damaged: its header does not fit its {actual} bytes")
    return crc, metadata


def _model_facts(core: _core.Model, config: ModelConfig) -> dict[str, Any]:
    """What decides the values of K and V."""
    # A checkpoint may change its special tokens, and how long its context is said to be.
    numbers = {
        name: value
        for name, value in to_packed(config).items()
        if not name.endswith("token_id") and name != "max_position_embeddings"
    }
    text = json.dumps(numbers, sort_keys=True, default=list)
    return {
        "dtype": core.dtype,
        "kv_dtype": core.kv_dtype,
        "configuration": hashlib.sha256(text.encode()).hexdigest()[:32],
        "weights": f"{core.fingerprint():016x}",
    }


def _check_model(path: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    for name in ("configuration", "dtype", "kv_dtype", "weights"):
        if saved.get(name) == here[name]:
            continue
        if "dtype" in name:
            raise ValueError(
                f"{path}: saved with {name} {saved.get(name)}, but this model has {here[name]}"
            )
        raise ValueError(f"{path}: saved by another model: its {name} differ from this one's")
