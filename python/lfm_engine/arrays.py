"""Arrays over the engine's memory: bfloat16, and the weights of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint import names

__all__ = ["BFloat16Array", "Weights"]


class BFloat16Array(np.ndarray):
    """A NumPy array of `ml_dtypes.bfloat16` that goes to other libraries by DLPack.

    NumPy cannot export this type; otherwise it is an array like any other. torch has no read-only
    tensors: do not write to what `torch.from_dlpack` makes of a read-only array.
    """

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[Any, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if self.dtype.name != "bfloat16":  # the result of an operation
            given: dict[str, Any] = {
                "max_version": max_version,
                "dl_device": dl_device,
                "copy": copy,
            }
            options = {key: value for key, value in given.items() if value is not None}
            return super().__dlpack__(stream=stream, **options)  # older NumPys know fewer
        if stream is not None:
            raise ValueError("stream must be None for arrays on the CPU")
        if dl_device is not None and tuple(dl_device) != (1, 0):
            raise BufferError(f"these arrays are on the CPU, not on device {dl_device}")
        versioned = max_version is not None and max_version[0] >= 1
        if not (versioned or copy or self.flags.writeable):
            raise BufferError("DLPack below version 1 cannot say that an array is read-only")
        return _core.bf16_to_dlpack(self.copy() if copy else self, versioned)


def as_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[Any]:
    """The same memory as bfloat16 where `ml_dtypes` is installed, else as it is."""
    try:
        import ml_dtypes
    except ImportError:
        return bits
    array: npt.NDArray[Any] = bits.view(ml_dtypes.bfloat16).view(BFloat16Array)
    return array


class Weights(Mapping[str, npt.NDArray[Any]]):
    """The weights of a model by name, as `model.weights`.

        model.weights["model.layers.0.conv.conv.weight"]   # a view: float32 [hidden, 1, taps]
        model.weights["model.layers.0.conv.in_proj.weight"]  # a copy: float32 [3 * hidden, hidden]

    Norms, convolution kernels and biases lie in memory as float32: they come as read-only views.
    Matrices are packed for multiplication, in the type of the model: they come as copies of the
    values that the model computes with (`is_view` says which is which), `rows` copies a part, and
    `memory` shows the packed bytes. Names are those of `Lfm2ForCausalLM`; those that other
    architectures have for the same weights work too.
    """

    def __init__(self, core: _core.Model) -> None:
        self._core = core
        self._known = core.describe_weights()

    def _name(self, name: str) -> str:
        if name in self._known:
            return name
        canonical = names.from_hf(name)
        if canonical is None or canonical not in self._known:
            raise KeyError(name)
        return canonical

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return (
            self._core.weight_in_place(self._name(name)) if self.is_view(name) else self.rows(name)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, without reading it."""
        return tuple(self._known[self._name(name)][0])

    def layout(self, name: str) -> str:
        """How a weight lies in memory: "float32", or what multiplies it, e.g. "panels:q8"."""
        return self._known[self._name(name)][1]

    def is_view(self, name: str) -> bool:
        """Whether `weights[name]` shares the model's memory, read-only, or is a copy."""
        return self.layout(name) == "float32"

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> npt.NDArray[np.float32]:
        """A copy of the rows [begin, end) of a matrix, float32 [end - begin, columns].

        Raises:
            ValueError: not a matrix, or it has fewer rows.
        """
        last = self.shape(name)[0] if end is None else end
        return self._core.weight_rows(self._name(name), begin, last)

    def memory(self, name: str) -> list[npt.NDArray[np.uint8]]:
        """The memory that holds a matrix in the engine's layout, read-only and without a copy.

        q, k and v of a layer lie in one matrix, and so do w1 and w3. int8 and int4 matrices have
        several parts: integers, scales, and minima where the type has them.
        """
        return list(self._core.weight_memory(self._name(name)))

    def __repr__(self) -> str:
        return f"Weights({len(self)} tensors)"
