"""From files to a model: `AutoModelForCausalLM.from_pretrained`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _core
from .calibration import Importance, measure_importance
from .checkpoint import (
    Checkpoint,
    PackedCheckpoint,
    PackedMatrix,
    StoredTensor,
    open_checkpoint,
)
from .generation import GenerationConfig
from .model import CausalLM
from .tokenizer import AutoTokenizer

# dtype="auto": the type that keeps the stored values (fp16 has no exact smaller home than fp32).
_AUTO_DTYPE = {
    "float32": "float32",
    "float16": "float32",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "int4": "int4",
}

_MAX_THREADS = 1024


def auto_dtype(checkpoint: Checkpoint) -> str:
    """What `dtype="auto"` means for this checkpoint."""
    return _AUTO_DTYPE[checkpoint.stored_dtype]


class _WithProgress:
    """A checkpoint that moves a progress bar, if there is one: what the core reads from."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, progress: bool | None) -> None:
        self._checkpoint = checkpoint
        self._bar = None
        size = checkpoint.nbytes()
        if progress is None:
            progress = size > 200_000_000 and sys.stderr.isatty()
        if progress:
            from tqdm import tqdm  # imported late: it takes longer than opening a packed file

            self._bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"Loading {dtype}")

    def __enter__(self) -> _WithProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def packed(self, name: str) -> PackedMatrix | None:
        matrix = self._checkpoint.packed(name)
        if matrix is not None:
            self._advance(name)
        return matrix

    def tensor(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        return self._checkpoint.tensor(name, shape)

    def release(self, name: str) -> None:
        self._checkpoint.release(name)
        self._advance(name)

    def _advance(self, name: str) -> None:
        if self._bar is not None:
            self._bar.update(self._checkpoint.tensor_nbytes(name))


def _check_num_threads(value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"num_threads must be an integer, not {value!r}")
    # libgomp ends the process when it cannot start as many as it is told to.
    if not 1 <= value <= _MAX_THREADS:
        raise ValueError(f"num_threads must be between 1 and {_MAX_THREADS}, not {value}")


class AutoModelForCausalLM:
    """Loads models; see `from_pretrained`."""

    @staticmethod
    def from_pretrained(
        path: str | os.PathLike[str],
        *,
        dtype: Any = "auto",
        device: str = "cpu",
        num_threads: int | None = None,
        kv_dtype: Any = "auto",
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        gguf_file: str | None = None,
        progress: bool | None = None,
        verify: bool = False,
        calibration: Sequence[Any] | None = None,
    ) -> CausalLM:
        """Load a checkpoint.

        Args:
            path: a folder (safetensors), a .gguf file, a packed file (`CausalLM.save_packed`), or
                an id on the Hugging Face hub.
            dtype: "float32", "bfloat16", "int8" (groups of 32 weights and activations, Q8_0's
                arithmetic), "int4" (weights as in Q4_0 and Q4_1, activations in block floating
                point of 8 bits), or "auto": the smallest that keeps the stored values (float16
                becomes float32, quantized GGUF files int4 or int8). torch dtypes work too. In int4,
                embedding and output head have 6 bits (as in Q6_K), and tensors that a GGUF file has
                in more than 4 have 6 or 8.
            device: "cpu".
            num_threads: default: the physical cores that this process may use.
            kv_dtype: type that states keep K and V in: "float32", "bfloat16", "int8" (one scale per
                token and head), or "auto": float32 for float32 weights, else bfloat16.
            revision, cache_dir, local_files_only, token: as in huggingface_hub.
            gguf_file: which file of a folder or repository of .gguf files.
            progress: show a progress bar; None for terminals and models that take a moment.
            verify: read all of a packed file first and compare it with its checksums; without, a
                file that was damaged after its first pages gives wrong tokens.
            calibration: for dtype="int4" and float checkpoints: texts, or lists of token ids, like
                those that the model is for (10,000 tokens are plenty). They run through the model
                in float32 first, and weights are rounded with more care where inputs are large.

        Raises:
            OSError: not found, or no network; one line that names what was asked for.
            ValueError: the files are corrupt or of an unsupported kind (names file and tensor), or
                an argument is not one of those above.
        """
        _check_num_threads(num_threads)
        with open_checkpoint(
            path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            gguf_file=gguf_file,
        ) as checkpoint:
            name = str(dtype).removeprefix("torch.")
            stored = auto_dtype(checkpoint)
            if name == "auto":
                name = stored
            if isinstance(checkpoint, PackedCheckpoint) and name != stored:
                raise ValueError(
                    f"{checkpoint.path}: packed as {stored}, which cannot be loaded as {name}; "
                    "that takes the original checkpoint"
                )
            if verify:
                checkpoint.verify()
            importance: Importance = {}
            if calibration is not None:
                if name != "int4":
                    raise ValueError(f"calibration is for dtype='int4', not {name!r}")
                importance = measure_importance(
                    checkpoint,
                    calibration,
                    lambda: AutoTokenizer.from_pretrained(
                        path,
                        revision=revision,
                        cache_dir=cache_dir,
                        local_files_only=local_files_only,
                        token=token,
                        gguf_file=gguf_file,
                    ),
                    num_threads or 0,
                )
            checkpoint.will_be_used()
            with _WithProgress(checkpoint, name, progress) as source:
                try:
                    core = _core.Model(
                        checkpoint.config,
                        source,
                        name,
                        device,
                        num_threads or 0,
                        str(kv_dtype).removeprefix("torch."),
                        importance,
                    )
                except ValueError as error:
                    # The core knows tensors, not files.
                    file = str(checkpoint.path)
                    if str(error).startswith("tensor"):
                        raise ValueError(f"{file}: {error}") from None
                    raise
            config = checkpoint.config
            try:
                generation = GenerationConfig.from_dict(checkpoint.generation_config)
            except ValueError as error:
                warnings.warn(f"{checkpoint.path}: generation_config: {error}", stacklevel=2)
                generation = GenerationConfig()
        return CausalLM(core, config, generation)
