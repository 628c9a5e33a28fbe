"""What every checkpoint reader shares: mapped files, stored tensors, the `Checkpoint` interface."""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import _core
from .config import ModelConfig

# NumPy's type for each `StoredTensor.dtype`.
_NUMPY_DTYPES: dict[str, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}


class StoredTensor(NamedTuple):
    """One tensor as the file holds it (or as it was converted on the way in).

    `data` is C-contiguous and may be a read-only view of the file map: it is valid until
    `Checkpoint.close`. By `dtype`:

    - ``"float32"``, ``"float16"``: `data` has that NumPy dtype and the shape `shape`;
    - ``"bfloat16"``: NumPy ``uint16`` bit patterns of the shape `shape`;
    - ``"q8_0"``, ``"q4_0"``, ``"q4_1"``, ``"q5_0"``, ``"q5_1"``, ``"q4_k"``, ``"q5_k"``,
      ``"q6_k"``: NumPy ``uint8`` ``[rows, bytes]``, blocks of GGUF's type of that name, and `shape`
      is the logical ``(rows, cols)``.

    `least_bits`: a model in int4 rounds floats to no fewer bits than these: 4, 6 or 8.
    """

    data: npt.NDArray[Any]
    dtype: str
    shape: tuple[int, ...]
    least_bits: int = 4

    def to_float32(self) -> npt.NDArray[np.float32]:
        """The values as a float32 array of the shape `shape`; a new array unless it is float32."""
        if self.dtype == "bfloat16":
            return (self.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
        if self.dtype not in _NUMPY_DTYPES:
            return _core.dequantize(self.data, self.dtype)
        return self.data.astype(np.float32, copy=False)


class PackedMatrix(NamedTuple):
    """A matrix in the layout that the kernels read, in place in a file.

    Attributes:
        layout: its name, as `_core.Model.export_weights` gives it.
        shape: rows and columns (outputs and inputs).
        parts: offset and bytes of each part in `map`.
    """

    layout: str
    shape: tuple[int, int]
    parts: tuple[tuple[int, int], ...]
    map: _core.FileMap


class MappedFile:
    """A whole file mapped read-only; hands out byte views and lets their pages go.

    Raises OSError when the file cannot be opened and ValueError when it is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.size = file.seek(0, 2)
            if self.size == 0:
                raise ValueError(f"{path}: the file is empty")
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def bytes(self, offset: int, count: int) -> bytes:
        """A copy of `count` bytes at `offset`, which must lie inside the file."""
        return self._open()[offset : offset + count]

    def view(self, offset: int, count: int, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A read-only array over `count` bytes at `offset`; copied only if it lies misaligned."""
        raw: npt.NDArray[Any] = np.frombuffer(self._open(), np.uint8, count, offset)
        array = raw.view(_NUMPY_DTYPES.get(dtype, np.uint8)).reshape(shape)
        return array if array.flags.aligned else array.copy()

    def release(self, offset: int, count: int) -> None:
        """Tells the system that the whole pages inside this range need not stay in memory.

        They are read again from the file when touched, so a call is never wrong, only slow.
        """
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + count) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def close(self) -> None:
        """Unmaps the file, or, while arrays over it are alive, leaves that to their deletion."""
        if self._map is not None:
            with suppress(BufferError):
                self._map.close()
            self._map = None

    def _open(self) -> mmap.mmap:
        if self._map is None:
            raise ValueError(f"{self.path}: the checkpoint is closed")
        return self._map


class Checkpoint(ABC):
    """Read access to a model's weights under canonical names (those of `Lfm2ForCausalLM`).

    Attributes:
        path: the folder or the .gguf file.
        config: the validated model configuration.
        generation_config: the contents of generation_config.json, ``{}`` if there is none.
        stored_dtype: "float32", "bfloat16" or "float16", whichever most of the weights have; for a
            quantized GGUF file "int4" if there are tensors of 4 bits (the others of such a file
            keep 8), else "int8"; for a packed file "int8" or "int4".
    """

    path: Path
    config: ModelConfig
    generation_config: dict[str, Any]
    stored_dtype: str

    @abstractmethod
    def names(self) -> list[str]:
        """Canonical names of all tensors that the model can use, in file order."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes in the file(s) of all tensors in `names()`, for a progress bar."""

    @abstractmethod
    def tensor_nbytes(self, name: str) -> int:
        """Bytes in the file of one tensor; ValueError if it is missing."""

    @abstractmethod
    def tensor(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        """The tensor `name`, which must have the shape `shape`.

        Raises ValueError, naming file and tensor, if it is missing, misshapen or of a type that
        cannot be read.
        """

    @abstractmethod
    def release(self, name: str) -> None:
        """Lets the tensor's pages leave memory; arrays over it stay valid (the file is reread)."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file map(s). Arrays that were handed out keep their memory until deleted."""

    def packed(self, name: str) -> PackedMatrix | None:
        """The matrix `name` to be used in place; None where `tensor` gives what it is made of.

        Names are those of the model's own matrices, q, k and v and also w1 and w3 being one
        ("...self_attn.qkv_proj.weight", "...feed_forward.w13.weight").
        """
        return None

    def will_be_used(self) -> None:
        """Tells the system that a model is going to read all weights in place, if it is."""
        return None

    def verify(self) -> None:
        """Compares all weights with their checksums. ValueError: one differs, or has none."""
        raise ValueError(f"{self.path}: has no checksums to verify; packed files have")

    def has(self, name: str) -> bool:
        """Whether the checkpoint contains a tensor of this canonical name."""
        return name in self.names()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_shape(path: Path, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """ValueError naming file and tensor if the shapes differ."""
    if tuple(found) != tuple(expected):
        raise ValueError(
            f"{path}: tensor {name!r} has shape {list(found)}, but the configuration needs "
            f"{list(expected)}"
        )


def missing(path: Path, name: str) -> ValueError:
    """The error for a tensor that is not there."""
    return ValueError(f"{path}: tensor {name!r} is missing")


def element_count(shape: tuple[int, ...]) -> int:
    """Number of elements; Python integers, so a lying shape cannot overflow."""
    return math.prod(shape)
