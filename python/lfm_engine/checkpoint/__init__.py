"""Reading model checkpoints: Hugging Face folders, GGUF and packed files, also from the hub."""

from __future__ import annotations

import os

from .base import Checkpoint, PackedMatrix, StoredTensor
from .config import ModelConfig
from .hub import resolve
from .packed import PACKED_SUFFIX, PackedCheckpoint, is_packed

__all__ = [
    "WEIGHT_PATTERNS",
    "Checkpoint",
    "ModelConfig",
    "PackedCheckpoint",
    "PackedMatrix",
    "StoredTensor",
    "open_checkpoint",
]

# What a model needs from a repository; tokenizers ask for their own files.
WEIGHT_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
)


def open_checkpoint(
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    gguf_file: str | None = None,
) -> Checkpoint:
    """Opens a folder, a .gguf or .lfm file or a hub id; see `hub.resolve` for the arguments.

    The weights are mapped, not read. Close the checkpoint, or use it in a `with` statement.

    Raises:
        OSError: not found, no network or no access; one line that names what was asked for.
        ValueError: the files are corrupt, contradict each other or are of an unsupported kind.
    """
    path = resolve(
        path_or_id,
        allow_patterns=WEIGHT_PATTERNS,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        gguf_file=gguf_file,
    )
    if path.is_file() and (path.suffix.lower() == PACKED_SUFFIX or is_packed(path)):
        return PackedCheckpoint(path)
    if path.is_file():
        from .gguf import GgufCheckpoint  # imported late: only GGUF files need the package

        return GgufCheckpoint(path)
    from .safetensors import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path)
