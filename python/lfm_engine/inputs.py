"""Prompts as users have them (lists, NumPy, torch, padded batches) to plain token arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts.

    Attributes:
        rows: the tokens of each prompt, int64 [length], without padding.
        padded: the rectangular batch as it was given, int64 [batch, sequence], or None for a list
            of prompts of different lengths.
        starts: where each row begins in `padded` (the length of its left padding).
    """

    rows: list[Ids]
    padded: Ids | None
    starts: list[int]

    def repeat(self, count: int) -> Prompts:
        """Each prompt `count` times in a row."""
        return Prompts(
            [row for row in self.rows for _ in range(count)],
            None if self.padded is None else np.repeat(self.padded, count, axis=0),
            [start for start in self.starts for _ in range(count)],
        )


def read_prompts(input_ids: Any, attention_mask: Any = None) -> Prompts:
    """Read `input_ids`: [sequence], [batch, sequence], or a list of prompts of different lengths.

    Args:
        input_ids: integers; anything that NumPy can read without a copy of meaning: lists, arrays
            of any stride, torch CPU tensors.
        attention_mask: [batch, sequence] of 0 and 1 (booleans too), 0 for padding on the left.

    Raises:
        ValueError: naming the argument: empty, not integers, ragged nesting, padding that is not
            on the left.
    """
    if input_ids is None:
        raise ValueError("input_ids is missing")
    if isinstance(input_ids, (str, bytes)):
        raise ValueError("input_ids must hold token ids, not text: tokenize it first")
    if _is_ragged(input_ids):
        if attention_mask is not None:
            raise ValueError("attention_mask needs a rectangular input_ids, not rows of a list")
        rows = [_integers("input_ids", row) for row in input_ids]
        if any(row.ndim != 1 for row in rows):
            raise ValueError("input_ids: each prompt of a list must have 1 dimension")
        _refuse_empty(rows)
        return Prompts(rows, None, [0] * len(rows))
    ids = _integers("input_ids", input_ids)
    if ids.ndim == 1:
        ids = ids[None, :]
    if ids.ndim != 2:
        raise ValueError(f"input_ids must have 1 or 2 dimensions, not {ids.ndim}")
    starts = [0] * len(ids)
    if attention_mask is not None:
        starts = _padding(attention_mask, ids.shape)
    rows = [row[start:] for row, start in zip(ids, starts, strict=True)]
    _refuse_empty(rows)
    return Prompts(rows, ids, starts)


def _is_ragged(value: Any) -> bool:
    if not isinstance(value, Sequence) or len(value) == 0:
        return False
    lengths = {len(row) if hasattr(row, "__len__") else -1 for row in value}
    return len(lengths) > 1 and -1 not in lengths


def _array(argument: str, value: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{argument} cannot be read as an array: {error}") from None


def _integers(argument: str, value: Any) -> Ids:
    array = _array(argument, value)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{argument} must hold integers, not {array.dtype}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{argument} holds {array.max()}, outside the vocabulary")
    return array.astype(np.int64, copy=False)


def _refuse_empty(rows: list[Ids]) -> None:
    if not rows:
        raise ValueError("input_ids is empty: at least one prompt is needed")
    for index, row in enumerate(rows):
        if row.size == 0:
            where = f" (row {index})" if len(rows) > 1 else ""
            raise ValueError(f"input_ids is empty{where}: at least one token is needed")


def _padding(attention_mask: Any, shape: tuple[int, ...]) -> list[int]:
    mask = _array("attention_mask", attention_mask)
    if mask.ndim == 1:
        mask = mask[None, :]
    if mask.shape != shape:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)}, input_ids has {list(shape)}"
        )
    if mask.dtype.kind not in "iubf" or not np.isin(mask, (0, 1)).all():
        raise ValueError("attention_mask must hold 0 and 1 only")
    mask = mask.astype(np.int8)
    if (np.diff(mask, axis=1) < 0).any():
        raise ValueError("attention_mask: padding must be on the left; set padding_side='left'")
    return [int(start) for start in mask.shape[1] - mask.sum(axis=1, dtype=np.int64)]
