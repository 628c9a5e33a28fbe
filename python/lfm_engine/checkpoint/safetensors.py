"""Hugging Face folders: config.json and safetensors files, read through a memory map.

An own reader: NumPy has no bfloat16, and weights must neither be copied nor stay in memory once
they are packed. Everything a header says is checked against the file before it is used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from . import names
from .base import Checkpoint, MappedFile, StoredTensor, check_shape, element_count, missing
from .config import ModelConfig, eos_of, from_hf
from .fields import show

_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself
_MAX_JSON = 50_000_000  # bytes; far above any config.json or index

# Bits per element of every type that the format knows; only those in _READABLE can be used.
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_READABLE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class _Entry(NamedTuple):
    file: MappedFile
    dtype: str  # as the header spells it
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    nbytes: int


class SafetensorsCheckpoint(Checkpoint):
    """The checkpoint in a Hugging Face folder.

    Args:
        folder: has config.json and model.safetensors, or model.safetensors.index.json and its
            shards, or any other *.safetensors files.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is corrupt, of an unsupported kind, or contradicts another.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        config_path = folder / "config.json"
        if not config_path.is_file():
            raise ValueError(f"{folder}: there is no config.json, so this is no model folder")
        config = from_hf(read_json(config_path), str(config_path))
        generation_path = folder / "generation_config.json"
        self.generation_config = read_json(generation_path) if generation_path.is_file() else {}
        eos = eos_of(self.generation_config, str(generation_path))
        self.config: ModelConfig = config if eos is None else replace(config, eos_token_id=eos)
        self._files: list[MappedFile] = []
        self._entries: dict[str, _Entry] = {}
        try:
            for path, wanted in _weight_files(folder).items():
                self._add_file(path, wanted)
        except BaseException:
            self.close()
            raise
        weights: Counter[str] = Counter()
        for entry in self._entries.values():
            weights[entry.dtype] += element_count(entry.shape)
        found = [_READABLE[kind] for kind, _ in weights.most_common() if kind in _READABLE]
        self.stored_dtype = found[0] if found else "float32"

    def names(self) -> list[str]:
        return list(self._entries)

    def has(self, name: str) -> bool:
        return name in self._entries

    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def tensor_nbytes(self, name: str) -> int:
        return self._entry(name).nbytes

    def tensor(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        entry = self._entry(name)
        path = entry.file.path
        check_shape(path, name, entry.shape, shape)
        if entry.dtype not in _READABLE:
            raise ValueError(
                f"{path}: tensor {name!r} has dtype {entry.dtype}; supported are "
                f"{', '.join(_READABLE)}"
            )
        dtype = _READABLE[entry.dtype]
        data = entry.file.view(entry.offset, entry.nbytes, dtype, entry.shape)
        return StoredTensor(data, dtype, entry.shape)

    def release(self, name: str) -> None:
        entry = self._entry(name)
        entry.file.release(entry.offset, entry.nbytes)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise missing(self.path, name) from None

    def _add_file(self, path: Path, wanted: frozenset[str] | None) -> None:
        """Adds the tensors of one file; of these, `wanted` (None: all) must be there."""
        file = MappedFile(path)
        self._files.append(file)
        header = read_header(file)
        for raw_name in sorted(wanted - header.keys() if wanted is not None else ()):
            raise ValueError(f"{path}: tensor {raw_name!r}, which the index places here, is absent")
        for raw_name, entry in header.items():
            name = names.from_hf(raw_name)
            if name is None:
                continue
            if name in self._entries:
                other = self._entries[name].file.path
                raise ValueError(f"{path}: tensor {name!r} occurs a second time (also in {other})")
            self._entries[name] = entry


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. OSError: unreadable; ValueError: not a JSON object."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_JSON + 1)
        if len(raw) > _MAX_JSON:
            raise ValueError(f"more than {_MAX_JSON} bytes")
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSON's are ValueErrors
        raise ValueError(f"{path}: not valid JSON ({_first_line(error)})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must contain a JSON object")
    return value


def read_header(file: MappedFile) -> dict[str, _Entry]:
    """The checked tensor table of a safetensors file.

    The rules are those of the safetensors library: types known, sizes equal to shape x type, and
    the tensors covering the data without gap or overlap. ValueError says which one is broken.
    """
    path = file.path
    if file.size < 8:
        raise ValueError(f"{path}: not a safetensors file ({file.size} bytes)")
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > min(file.size - 8, _MAX_HEADER):
        raise ValueError(
            f"{path}: truncated, or not a safetensors file (its header claims {length} bytes, the "
            f"file has {file.size})"
        )
    try:
        table = json.loads(file.bytes(8, length), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the header is not valid JSON ({_first_line(error)})") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path}: the header is not a JSON object")
    table.pop("__metadata__", None)
    start = 8 + length
    entries = {name: _read_entry(file, name, value, start) for name, value in table.items()}

    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != position:
            kind = "overlaps another one" if entry.offset < position else "leaves a gap before it"
            raise ValueError(f"{path}: the data of tensor {show(name)} {kind}")
        position += entry.nbytes
    if position != file.size:
        raise ValueError(
            f"{path}: its tensors end at byte {position}, but the file has {file.size} bytes"
        )
    return entries


def _read_entry(file: MappedFile, name: str, value: Any, start: int) -> _Entry:
    where = f"{file.path}: tensor {show(name)}"
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not described by a JSON object")
    dtype: Any = value.get("dtype")
    shape: Any = value.get("shape")
    span: Any = value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{where} has the unknown dtype {show(dtype)}")
    if not _is_counts(shape):
        raise ValueError(f"{where} has the invalid shape {show(shape)}")
    if not _is_counts(span) or len(span) != 2:
        raise ValueError(f"{where} has the invalid data_offsets {show(span)}")
    begin, end = span
    if not begin <= end <= file.size - start:
        raise ValueError(
            f"{where} reaches beyond the end of the file (data_offsets {show(span)} in "
            f"{file.size - start} bytes of data): truncated?"
        )
    bits = element_count(tuple(shape)) * _BITS[dtype]
    if bits != (end - begin) * 8:
        raise ValueError(
            f"{where} has {end - begin} bytes of data, which is not {dtype} {show(shape)}"
        )
    return _Entry(file, dtype, tuple(shape), start + begin, end - begin)


def _is_counts(value: Any) -> bool:
    """Whether this is a list of a few integers that a real file could contain."""
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(type(item) is int and 0 <= item < 1 << 62 for item in value)
    )


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        name = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{show(name)} occurs twice")
    return table


def _weight_files(folder: Path) -> Mapping[Path, frozenset[str] | None]:
    """The safetensors files of a folder, each with the tensors that an index expects in it."""
    index_path = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return {single: None}
    if index_path.is_file():
        return _indexed_files(folder, index_path)
    others = sorted(folder.glob("*.safetensors"))
    adapters = [path for path in others if path.name.startswith("adapter_")]
    if others and len(adapters) == len(others):
        raise ValueError(f"{folder}: holds only a LoRA adapter; merge it into its base model first")
    if others:
        return {path: None for path in others if path not in adapters}
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise ValueError(
            f"{folder}: holds only pickled weights, which are not safe to load; convert them to "
            "safetensors"
        )
    raise ValueError(f"{folder}: there are no weights (*.safetensors) in this folder")


def _indexed_files(folder: Path, index_path: Path) -> dict[Path, frozenset[str] | None]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index_path}: there is no 'weight_map' object")
    by_file: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        # A plain file name: an index must not make us read elsewhere.
        if not isinstance(shard, str) or not shard or Path(shard).name != shard or "\0" in shard:
            raise ValueError(f"{index_path}: {show(shard)} is not the name of a file in the folder")
        by_file.setdefault(shard, set()).add(name)
    for shard in sorted(by_file):
        if not (folder / shard).is_file():
            raise ValueError(f"{index_path}: the shard {show(shard)} is missing from the folder")
    return {folder / shard: frozenset(found) for shard, found in sorted(by_file.items())}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
