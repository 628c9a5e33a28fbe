"""The tiny checkpoints of tests/goldens, loaded once, and changed copies of them."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lfm_engine import AutoModelForCausalLM, CausalLM
from lfm_engine.checkpoint.config import from_hf

GOLDENS = Path(__file__).parent / "goldens"
NAMES = sorted(path.parent.name for path in GOLDENS.glob("*/golden.npz"))
DTYPES = ("float32", "bfloat16", "int8", "int4")
# Nothing that a generation_config.json says, and no end: what the goldens were made with.
PLAIN_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "repetition_penalty": 1.0,
    "eos_token_id": [],
}


@dataclass(frozen=True)
class Golden:
    """What transformers computed from one checkpoint in float32; see make_goldens.py.

    Attributes:
        prompt: int64 [40].
        logits: float32 [40, vocab], of the prompt.
        greedy: int64 [24], the continuation.
        min_gap: the smallest distance of the two best logits along it.
    """

    name: str
    path: Path
    prompt: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.int64]
    min_gap: float


@cache
def golden(name: str) -> Golden:
    with np.load(GOLDENS / name / "golden.npz") as data:
        return Golden(
            name,
            GOLDENS / name,
            data["prompt"],
            data["logits"],
            data["greedy"],
            float(data["min_gap"]),
        )


ACTIVATIONS = sorted(path.parent.name for path in GOLDENS.glob("*/activations.npz"))


@cache
def activations(name: str) -> dict[str, npt.NDArray[np.float32]]:
    """What transformers computes inside, see make_activation_goldens.py."""
    with np.load(GOLDENS / name / "activations.npz") as data:
        return dict(data)


@cache
def load(name: str, dtype: str = "float32", num_threads: int = 1) -> CausalLM:
    """The model of a golden; shared by all tests, which must not change it."""
    return AutoModelForCausalLM.from_pretrained(
        GOLDENS / name, dtype=dtype, num_threads=num_threads
    )


def changed_copy(name: str, folder: Path, **config: Any) -> Path:
    """A copy of a golden with other values in config.json."""
    copy = Path(shutil.copytree(GOLDENS / name, folder))
    options = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**options, **config}))
    return copy


def random_model(folder: Path, norm_spread: float = 0.1, **changes: Any) -> Path:
    """A folder with lfm2-base's configuration, changed, and random bfloat16 weights.

    `norm_spread`: how much the weights of norms differ.
    """
    folder.mkdir()
    options = json.loads((GOLDENS / "lfm2-base" / "config.json").read_text())
    options = {**options, "head_dim": None, **changes}
    (folder / "config.json").write_text(json.dumps(options))
    rng = np.random.default_rng(0)
    header: dict[str, Any] = {}
    parts, end = [], 0
    for name, shape in from_hf(options, "config.json").tensor_shapes().items():
        values = rng.standard_normal(shape, np.float32)
        values = values * shape[-1] ** -0.5 if len(shape) > 1 else 1 + norm_spread * values
        parts.append((values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())
        span = [end, end := end + len(parts[-1])]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": span}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(parts)
    return folder
