"""What bench_speed.py measures: tasks, and the engines with their model files."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace
from pathlib import Path

ENGINES = ("lfm-engine", "transformers", "llama.cpp", "onnxruntime-genai", "openvino")
NO_LIMIT = 1 << 30
SHORT = (
    1024  # tokens: an engine's second file of its fastest kind is left out of what takes minutes
)
GGUF_TYPES = (("BF16", "bfloat16"), ("Q8_0", "int8"), ("Q4_0", "int4"), ("Q4_K_M", "int4"))
EXPORTS = (
    ("onnxruntime-genai", "int4", "model.onnx"),
    ("openvino", "int8", "openvino_model.xml"),
    ("openvino", "int4", "openvino_model.xml"),
)


@dataclass(frozen=True)
class Task:
    """What one timing covers: `batch` sequences of `depth` tokens."""

    kind: str
    batch: int
    depth: int

    @staticmethod
    def parse(text: str) -> Task:
        """From "prefill:512", "decode:4096" or "decode:32x128"."""
        kind, _, size = text.partition(":")
        batch, _, depth = size.rpartition("x")
        if kind not in ("prefill", "decode") or not depth.isdigit():
            raise ValueError(f"task {text!r}: expected prefill:DEPTH or decode:[BATCHx]DEPTH")
        return Task(kind, int(batch or 1), int(depth))

    def __str__(self) -> str:
        return f"{self.kind}:{f'{self.batch}x' if self.batch > 1 else ''}{self.depth}"


@dataclass(frozen=True)
class Candidate:
    """An engine with a model file.

    Attributes:
        weights: "bfloat16", "int8" or "int4": what it is compared with.
        file: must exist.
        place: what the engine opens: the file or its folder.
        max_tokens: tasks with more tokens of context are left out.
        min_depth: shorter contexts too (a variant that differs in long ones only).
    """

    name: str
    engine: str
    weights: str
    file: Path
    place: Path
    dtype: str = ""
    kv_dtype: str = ""
    max_tokens: int = NO_LIMIT
    min_depth: int = 0

    def takes(self, task: Task) -> bool:
        """Whether the task is for it."""
        return self.min_depth <= task.depth and task.batch * task.depth <= self.max_tokens


def candidates(folder: Path, dtypes: list[str], engines: list[str]) -> list[Candidate]:
    """All that could run, from the files that a user starts with."""
    weights, q4 = folder / "model.safetensors", folder / "model-Q4_0.gguf"
    found: list[Candidate] = []
    for d in dtypes:
        file, place = (q4, q4) if d == "int4" and q4.is_file() else (weights, folder)
        found.append(Candidate(f"lfm-engine {d}", "lfm-engine", d, file, place, d))
    name, d = "transformers bfloat16", "bfloat16"
    found.append(Candidate(name, "transformers", d, weights, folder, d, max_tokens=4096))
    for kind, d in GGUF_TYPES:
        path = folder / f"model-{kind}.gguf"
        limit = SHORT if kind == "Q4_K_M" else NO_LIMIT
        found.append(Candidate(f"llama.cpp {kind}", "llama.cpp", d, path, path, max_tokens=limit))
    for engine, d, file_name in EXPORTS:
        place = folder / f"{engine.split('-')[0]}-{d}"
        file = place / file_name
        limit = SHORT if engine == "openvino" and d == "int8" else 4096
        found.append(Candidate(f"{engine} {d}", engine, d, file, place, max_tokens=limit))
    return [c for c in found if c.engine in engines and c.weights in dtypes]


def packed(folder: Path, candidate: Candidate) -> Candidate | None:
    """The same weights as lfm-engine's packed file, where there is one."""
    path = folder / f"model-{candidate.dtype}.lfm"
    if candidate.engine != "lfm-engine" or not path.is_file():
        return None
    return replace(candidate, name=f"{candidate.name}, packed", file=path, place=path)


def for_speed(folder: Path, found: list[Candidate]) -> list[Candidate]:
    """The candidates, from the files that load fastest, and variants for long contexts."""
    result = []
    for c in found:
        best = replace(packed(folder, c) or c, name=c.name)
        result.append(best)
        if c.engine == "lfm-engine" and c.dtype == "int4":
            name = f"{c.name}, kv int8"
            result.append(replace(best, name=name, kv_dtype="int8", min_depth=8192))
    return result


def settle(path: Path) -> None:
    """Has a packed file read into the page cache anew, in huge pages where the system has them.

    That is how it lies there after a reboot. A file that was just copied lies there in small pages,
    which one core reads a fifth slower.
    """
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            view.madvise(mmap.MADV_HUGEPAGE)
            for offset in range(0, len(view), mmap.PAGESIZE):
                view[offset]


def for_loads(folder: Path, found: list[Candidate]) -> list[Candidate]:
    """The candidates, and lfm-engine's packed files after them."""
    return found + [p for p in (packed(folder, c) for c in found) if p]


def files(candidate: Candidate) -> list[Path]:
    """What the engine reads its weights from."""
    if candidate.engine in ("onnxruntime-genai", "openvino"):
        names = {"model.onnx.data", "openvino_model.bin"}
        return [p for p in candidate.place.iterdir() if p.name in names]
    return [candidate.file]
