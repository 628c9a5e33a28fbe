"""Hidden states of what was generated, step by step as in transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .inputs import Ids, Prompts

Layers = tuple[npt.NDArray[np.float32], ...]


def check_prompts(prompts: Prompts) -> None:
    """Refuse prompts whose states do not make a rectangle.

    Raises:
        ValueError: naming the option.
    """
    if prompts.padded is None:
        raise ValueError(
            "output_hidden_states needs prompts of one length; pad on the left and give "
            "attention_mask"
        )


def by_step(
    prompts: Prompts, new: Sequence[Ids], run: Callable[[Ids], Layers]
) -> tuple[Layers, ...]:
    """Return for each step of the longest sequence the states that its token was chosen from.

    Args:
        prompts: as they were generated from, see `check_prompts`.
        new: the new tokens of each.
        run: ids [length] to the states of each layer, float32 [1, length, hidden].

    Returns:
        For the first token float32 [batch, prompt, hidden] of each layer, rows of padding zero; for
        each further one [batch, 1, hidden], NaN in rows that had ended.
    """
    assert prompts.padded is not None
    batch, length = prompts.padded.shape
    steps: list[list[npt.NDArray[np.float32]]] = []
    for row, (prompt, tokens) in enumerate(zip(prompts.rows, new, strict=True)):
        # The last token is chosen from the states of the one before it.
        layers = run(np.concatenate([prompt, tokens[:-1]]))
        while len(steps) < max(1, tokens.size):
            shape = (batch, 1 if steps else length, layers[0].shape[-1])
            fill = np.nan if steps else 0.0
            steps.append([np.full(shape, fill, np.float32) for _ in layers])
        for index, layer in enumerate(layers):
            steps[0][index][row, prompts.starts[row] :] = layer[0, : prompt.size]
            for step in range(1, tokens.size):
                steps[step][index][row, 0] = layer[0, prompt.size + step - 1]
    return tuple(tuple(arrays) for arrays in steps)


def new_tokens(output: Any, prompts: Prompts) -> list[Ids]:
    """Return the new tokens of each row of a `GenerateOutput`."""
    assert prompts.padded is not None
    start = prompts.padded.shape[1]
    return [
        row[start : start + count]
        for row, count in zip(output.sequences, output.new_tokens, strict=True)
    ]
