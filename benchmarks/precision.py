"""How far each compute type is from float32 on real weights, beside llama.cpp's types.

    PYTHONPATH=python python benchmarks/precision.py MODEL.gguf WORK [--tokens 4096] [--json OUT]

MODEL.gguf is a real instruct model (SmolLM2-135M-Instruct). Its weights are expanded to float32
once (WORK/model-F32.gguf) and everything starts from those: the reference is transformers in
float32; lfm-engine reads that file and quantizes by itself (once with calibration on text after
that of the measurement); llama.cpp reads the Q8_0, Q4_0 and Q4_K_M that its own quantizer makes of
it, and lfm-engine these files too. Printed for each: KL divergence from the reference in
nats (mean with its standard error, 99th percentile, largest) and how often the best token agrees,
over the tokens of --text (default: this repository's documents and IFEval's prompts where
../shared has them), in windows of 512.

Then both engines answer prompts greedily from the same Q4_0 file. Where their tokens part, the
distance of llama.cpp's two best logits is shown, beside how far that distance moves within
llama.cpp itself (token by token against one batch): a smaller one is a near-tie.

Needs torch, transformers, accelerate and llama-cpp-python. A compute type that this build of
lfm-engine does not have is skipped with a line. The exit status is 1 where lfm-engine's int8 or
int4 is further away than llama.cpp's Q8_0 or Q4_0, or greedy tokens part at a clear distance.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lfm_engine import AutoModelForCausalLM, AutoTokenizer
from machine_lock import MachineLock
from make_model import quantize_gguf
from parity import greedy_chats, load_transformers, log_softmax, transformers_logits
from tables import format_table

ROOT = Path(__file__).resolve().parent.parent
EVALS = ROOT.parent / "shared" / "data" / "evals"
WINDOW = 512


class Ours(NamedTuple):
    """How lfm-engine loads one of the files; calibrated: with text that is not measured on."""

    dtype: str
    kv_dtype: str = "auto"
    file: str = "F32"
    calibrated: bool = False

    @property
    def name(self) -> str:
        """For the table."""
        parts = [f"lfm-engine {self.dtype}"]
        if self.file != "F32":
            parts.append(f"from {self.file}")
        if self.kv_dtype != "auto":
            parts.append(f"kv {self.kv_dtype}")
        if self.calibrated:
            parts.append("calibrated")
        return ", ".join(parts)


OURS = (
    Ours("float32"),
    Ours("bfloat16"),
    Ours("int8"),
    Ours("int4"),
    Ours("int4", calibrated=True),
    Ours("bfloat16", "int8"),
    Ours("int8", "int8"),
    Ours("int4", "int8"),
    Ours("int8", file="Q8_0"),
    Ours("int4", file="Q4_0"),
    Ours("int4", file="Q4_K_M"),
)
CALIBRATION_WINDOWS = 16  # of the text after the measured ones
PEERS = ("F32", "Q8_0", "Q4_0", "Q4_K_M")
AIMS = (("lfm-engine int8", "llama.cpp Q8_0"), ("lfm-engine int4", "llama.cpp Q4_0"))
Floats = npt.NDArray[np.float32]
Logits = Callable[[list[int]], Floats]  # of all tokens of a window


def default_text() -> str:
    """The documents here and, where they are at hand, IFEval's prompts."""
    parts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")]
    prompts = EVALS / "ifeval_input_data.jsonl"
    if prompts.is_file():
        lines = prompts.read_text(encoding="utf-8").splitlines()
        parts.insert(0, "\n\n".join(json.loads(line)["prompt"] for line in lines))
    # Turn about, so that few tokens still hold some of each.
    pieces = [[part[i : i + 4000] for i in range(0, len(part), 4000)] for part in parts]
    turns = range(max(map(len, pieces)))
    return "\n\n".join(piece[i] for i in turns for piece in pieces if i < len(piece))


class LlamaCpp:
    """llama.cpp by its high-level binding; logits of every token."""

    def __init__(self, path: Path, threads: int | None) -> None:
        from llama_cpp import Llama

        self._model = Llama(
            str(path),
            n_ctx=2 * WINDOW,
            n_batch=WINDOW,
            n_ubatch=WINDOW,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            verbose=False,
        )

    def logits(self, ids: list[int]) -> Floats:
        """Float32 [tokens, vocab], in one batch."""
        self._model.reset()
        self._model.eval(ids)
        return np.array(self._model.scores[: len(ids)], np.float32)

    def greedy(self, prompt: list[int], new: int, eos: list[int]) -> tuple[list[int], Floats]:
        """Tokens, and the logits they were taken from; evaluated token by token."""
        self._model.reset()
        self._model.eval(prompt)
        tokens, rows = [], []
        while True:
            rows.append(np.array(self._model.scores[self._model.n_tokens - 1], np.float32))
            tokens.append(int(rows[-1].argmax()))
            if len(tokens) == new or tokens[-1] in eos:
                return tokens, np.array(rows)
            self._model.eval(tokens[-1:])

    def close(self) -> None:
        """Frees the model."""
        self._model.close()


@dataclass(frozen=True)
class Divergence:
    """Per token: KL(reference || found) in nats, and whether the best token agrees."""

    name: str
    kl: npt.NDArray[np.float64]
    same: npt.NDArray[np.bool_]

    @property
    def mean(self) -> float:
        """Mean KL."""
        return float(self.kl.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(self.kl.std(ddof=1) / len(self.kl) ** 0.5)

    def row(self) -> list[str]:
        """For the table."""
        high = np.quantile(self.kl, 0.99)
        cells = [f"{v:.2e}" for v in (self.mean, self.error, high, self.kl.max())]
        return [self.name, *cells, f"{self.same.mean():.2%}"]


def measure(name: str, logits: Logits, windows: list[list[int]], references: Floats) -> Divergence:
    """Runs all windows; `references` [windows, WINDOW, vocab]."""
    kl, same = [], []
    for window, reference in zip(tqdm(windows, name, disable=None), references, strict=True):
        found = logits(window)
        p, q = log_softmax(reference), log_softmax(found)
        kl.append((np.exp(p) * (p - q)).sum(-1))
        same.append(found.argmax(-1) == reference.argmax(-1))
    return Divergence(name, np.concatenate(kl), np.concatenate(same))


def engine(path: Path, ours: Ours, calibration: list[list[int]], threads: int | None) -> Any:
    """lfm-engine's model, or None with a line that says why not."""
    try:
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype=ours.dtype,
            kv_dtype=ours.kv_dtype,
            num_threads=threads,
            progress=False,
            calibration=calibration if ours.calibrated else None,
        )
    except (TypeError, ValueError) as error:
        print(f"skipped: {ours.name} ({error})")
        return None


def engine_logits(model: Any, ids: list[int]) -> Floats:
    """Of all tokens, float32 [tokens, vocab]."""
    result: Floats = model([ids]).logits[0]
    return result


def make_files(source: Path, work: Path) -> dict[str, Path]:
    """WORK/model-<type>.gguf of every type; the others from F32."""
    work.mkdir(parents=True, exist_ok=True)
    files = {kind: work / f"model-{kind}.gguf" for kind in PEERS}
    for kind, path in files.items():
        if not path.is_file():
            quantize_gguf(source if kind == "F32" else files["F32"], path, kind)
    return files


def all_divergences(
    files: dict[str, Path],
    windows: list[list[int]],
    calibration: list[list[int]],
    work: Path,
    threads: int | None,
    lock: MachineLock,
) -> Iterator[Divergence]:
    """One model is in memory at a time; the reference's logits are in a file."""
    path = work / "reference.f32"
    with lock:
        oracle = load_transformers(files["F32"], "float32", threads)
        shape = (len(windows), WINDOW, oracle.config.vocab_size)
        references: Floats = np.memmap(path, np.float32, "w+", shape=shape)
        for index, window in enumerate(tqdm(windows, "transformers float32", disable=None)):
            references[index] = transformers_logits(oracle, window)
        del oracle
        gc.collect()
    try:
        for ours in OURS:
            with lock:
                model = engine(files[ours.file], ours, calibration, threads)
                if model is None:
                    continue
                yield measure(ours.name, partial(engine_logits, model), windows, references)
                del model
        for kind in PEERS:
            with lock:
                peer = LlamaCpp(files[kind], threads)
                yield measure(f"llama.cpp {kind}", peer.logits, windows, references)
                peer.close()
    finally:
        path.unlink()


def gaps(rows: Floats) -> npt.NDArray[np.float32]:
    """Distance of the two best of each row."""
    best = np.partition(rows, -2)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0])


def check_greedy(path: Path, dtype: str, new: int, threads: int | None) -> bool:
    """Both engines' greedy answers from one file; prints the table."""
    model = engine(path, Ours(dtype), [], threads)
    if model is None:
        return True
    prompts, found, eos = greedy_chats(model, path, new)
    del model
    peer = LlamaCpp(path, threads)
    parted, moved, total = [], 0.0, 0
    for index, (prompt, tokens) in enumerate(zip(prompts, found, strict=True)):
        expected, rows = peer.greedy(prompt, new, eos)
        total += len(expected)
        own = gaps(rows)
        if len(prompt) + len(expected) <= 2 * WINDOW:
            batch = peer.logits([*prompt, *expected])[len(prompt) - 1 : -1]
            moved = max(moved, float(np.abs(_same_gap(batch, rows) - own).max()))
        pairs = enumerate(zip(tokens, expected, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), None)
        if first is None and len(tokens) != len(expected):
            first = min(len(tokens), len(expected))
        if first is not None:
            parted.append((index + 1, first, float(own[min(first, len(own) - 1)])))
    peer.close()
    rows_ = [
        [f"prompt {i}", str(at), f"{gap:.3f}", "near-tie" if gap <= moved else "CLEAR"]
        for i, at, gap in parted
    ]
    title = f"{path.name}, {dtype}: greedy answers against llama.cpp, {total} tokens"
    print(format_table(title, ["", "parts at", "llama.cpp's top-2 gap", ""], rows_))
    print(
        f"{len(prompts) - len(parted)} of {len(prompts)} answers equal; llama.cpp's own gaps move "
        f"by up to {moved:.3f} between decoding and one batch"
    )
    return all(gap <= moved for *_, gap in parted)


def _same_gap(rows: Floats, other: Floats) -> npt.NDArray[np.float32]:
    """In `rows`, the distance of the tokens that are the two best in `other`."""
    best = np.argpartition(other, -2)[:, -2:]
    pair = np.take_along_axis(rows, best, 1)
    order = np.take_along_axis(other, best, 1)
    sign = np.where(order[:, 1] >= order[:, 0], 1, -1)
    return np.asarray(sign * (pair[:, 1] - pair[:, 0]))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, help="a .gguf file of an instruct model")
    parser.add_argument("work", type=Path, help="a folder for the files made of it (2 GB)")
    parser.add_argument("--text", type=Path, help="a text file to measure on")
    parser.add_argument("--tokens", type=int, default=4096, help="at least; whole windows")
    parser.add_argument("--new", type=int, default=64, help="tokens of a greedy answer, at most")
    parser.add_argument("--threads", type=int, help="default: each engine's own")
    parser.add_argument("--lock", type=Path, help="hold this lock file while computing")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    options = parser.parse_args()
    lock = MachineLock(options.lock)
    with lock:
        files = make_files(options.model, options.work)
    text = options.text.read_text(encoding="utf-8") if options.text else default_text()
    ids = AutoTokenizer.from_pretrained(options.model).encode(text)
    count = -(-options.tokens // WINDOW)
    if len(ids) < count * WINDOW:
        parser.error(f"the text has {len(ids)} tokens, {count * WINDOW} are needed")
    pieces = [list(ids[i : i + WINDOW]) for i in range(0, len(ids), WINDOW)]
    windows, calibration = pieces[:count], pieces[count : count + CALIBRATION_WINDOWS]
    found = list(all_divergences(files, windows, calibration, options.work, options.threads, lock))
    header = ["", "mean KL", "std. error", "99%", "max", "same best"]
    title = f"{options.model.stem}: {count * WINDOW} tokens against transformers float32"
    print(format_table(title, header, [divergence.row() for divergence in found]))
    means = {divergence.name: divergence.mean for divergence in found}
    good = True
    for ours, peer in AIMS:
        if ours in means:
            met = means[ours] <= means[peer]
            good &= met
            text = f"{ours} / {peer}: {means[ours] / means[peer]:.3f}, at most 1"
            print(f"{text}: {'met' if met else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps(means, indent=1) + "\n")
    for dtype in ("auto", "int4"):
        with lock:
            good &= check_greedy(files["Q4_0"], dtype, options.new, options.threads)
    lock.release()
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
