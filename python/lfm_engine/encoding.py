"""Containers of token ids: what the tokenizer takes and what it gives."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

TokenIds: TypeAlias = "int | Sequence[int] | np.ndarray[Any, Any] | Any"


class BatchEncoding(dict[str, Any]):
    """Encoded text: a dict with `input_ids` and `attention_mask`, which are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name!r}") from None


def plain_ids(ids: Any) -> Any:
    """Turn ids in any container into an int, a list of ints or a list of such lists."""
    if isinstance(ids, Mapping):
        ids = ids["input_ids"]
    if hasattr(ids, "tolist"):  # NumPy arrays and scalars, torch tensors
        ids = ids.tolist()
    if isinstance(ids, int):
        return ids
    return [entry if type(entry) is int else plain_ids(entry) for entry in ids]


def as_tensors(rows: list[list[int]], masks: list[list[int]], kind: str) -> BatchEncoding:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("return_tensors: the texts have different lengths; pass padding=True")
    arrays = {
        "input_ids": np.array(rows, dtype=np.int64),
        "attention_mask": np.array(masks, dtype=np.int64),
    }
    if kind == "np":
        return BatchEncoding(arrays)
    if kind == "pt":
        torch = importlib.import_module("torch")
        return BatchEncoding({name: torch.from_numpy(array) for name, array in arrays.items()})
    raise ValueError(f'return_tensors must be None, "np" or "pt", not {kind!r}')
