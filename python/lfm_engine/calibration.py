"""What int4 weights are weighted with: how large the inputs of each layer are on given texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint import Checkpoint
from .inputs import Ids, read_prompts

Importance = Mapping[str, npt.NDArray[np.float32]]


def measure_importance(
    checkpoint: Checkpoint,
    calibration: Sequence[Any],
    load_tokenizer: Callable[[], Any],
    num_threads: int,
) -> Importance:
    """The mean square of each input of each linear layer, by the layer's name.

    The model runs in float32 for this; its memory is given back before the int4 one is made.

    Args:
        checkpoint: with float weights.
        calibration: texts, or token ids [n], each run by itself.
        load_tokenizer: called if there are texts.
        num_threads: 0 for the default.

    Raises:
        ValueError: the checkpoint is quantized, or `calibration` is none of the above.
    """
    if checkpoint.stored_dtype in ("int8", "int4"):
        raise ValueError(
            f"{checkpoint.path}: its weights are quantized and stay as they are; calibration needs "
            "float weights"
        )
    sequences = _token_ids(calibration, load_tokenizer)
    model = _core.Model(checkpoint.config, checkpoint, "float32", "cpu", num_threads)
    return model.input_mean_squares(sequences)


def _token_ids(calibration: Sequence[Any], load_tokenizer: Callable[[], Any]) -> list[Ids]:
    if isinstance(calibration, (str, bytes)) or not hasattr(calibration, "__len__"):
        raise ValueError("calibration must be a list of texts or of token ids")
    if len(calibration) == 0:
        raise ValueError("calibration is empty: it takes some texts")
    tokenizer = load_tokenizer() if any(isinstance(text, str) for text in calibration) else None
    sequences = []
    for index, text in enumerate(calibration):
        ids = tokenizer.encode(text) if isinstance(text, str) and tokenizer else text
        try:
            sequences += read_prompts(ids).rows
        except ValueError as error:
            raise ValueError(f"calibration[{index}]: {error}") from None
    return sequences
