"""Train the demo model from scratch: `python train.py --out RUN`; run it again to resume.

Needs torch and tokenizers. Every batch is drawn from its step's number, so a resumed run is the
same run. When the last step is done the checkpoint is written to RUN/model (see export.py).

On CPUs each worker process trains one part of a batch on one thread and gradients are summed once
a step: at this size that is faster than threads that meet after each operation.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

import tokens
from data import TASK_NAMES, draw
from example import Example
from export import export
from model import Config, Model
from muon import Muon

SHORT_ANSWER = 16  # tokens; shorter answers, such as labels, weigh as much as one of this length
LENGTH = 512  # tokens of a row
PROMPT_WEIGHT = (
    0.1  # of the loss on a prompt's token, falling with the rate; an answer's is 1 or more
)
Encoded = tuple[list[int], list[tuple[int, int]]]  # tokens; begin and end of each answer


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # int64 [rows, length]
    documents: Tensor  # int64 [rows, length]: which example of the row a token is of
    targets: Tensor  # int64 [rows, length]
    weights: Tensor  # float32 [rows, length]


class Encoder:
    """Turns examples into packed rows."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.vocab_size = tokens.padded_size(self.tokenizer.get_vocab())

    def encode(self, example: Example) -> Encoded:
        """Return the tokens of the whole conversation, and where the answers begin and end."""
        ids: list[int] = []
        answers = []
        for text, said in example.parts():
            begin = len(ids)
            ids += self.tokenizer.encode(text, add_special_tokens=False).ids
            if said:
                answers.append((begin, len(ids)))
        return ids, answers

    def batch(self, encoded: list[Encoded], rows: int, prompt_weight: float) -> Batch:
        """Pack into rows, longest first; what finds no room is left out."""
        ids = torch.zeros(rows, LENGTH, dtype=torch.long)
        documents = torch.zeros_like(ids)
        targets = torch.zeros_like(ids)
        weights = torch.zeros(rows, LENGTH)
        used = [0] * rows
        for number, (text, answers) in enumerate(sorted(encoded, key=lambda e: -len(e[0])), 1):
            row = next((r for r in range(rows) if used[r] + len(text) <= LENGTH), None)
            if row is None:
                continue
            begin, end = used[row], used[row] + len(text)
            used[row] = end
            ids[row, begin:end] = torch.tensor(text)
            documents[row, begin:end] = number
            targets[row, begin : end - 1] = torch.tensor(text[1:])
            weights[row, begin : end - 1] = prompt_weight
            for a, b in answers:
                weight = max(1.0, SHORT_ANSWER / (b - a))
                weights[row, begin + a - 1 : begin + b - 1] = weight
        return Batch(ids, documents, targets, weights)

    def training_batch(
        self, seed: int, step: int, part: int, rows: int, level: float, prompt_weight: float
    ) -> Batch:
        """Draw enough examples for the rows; those longer than a row are passed over."""
        encoded: list[Encoded] = []
        room, index = rows * LENGTH, part << 10
        while room > 0:
            text, answers = self.encode(draw(seed, (step << 12) + index, level=level))
            index += 1
            if len(text) <= LENGTH:
                encoded.append((text, answers))
                room -= len(text)
        return self.batch(encoded, rows, prompt_weight)


class Trainer:
    """One worker of the run; `rank` 0 logs, tests and saves."""

    def __init__(
        self, options: argparse.Namespace, config: Config, encoder: Encoder, rank: int
    ) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.rank = rank
        self.encoder = encoder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Model(config).to(self.device)
        self.rope = tuple(t.to(self.device) for t in self.model.rope(LENGTH, torch.bfloat16))
        matrices, rest = self.model.parameter_groups()
        self.muon = Muon(matrices, lr=options.lr, weight_decay=options.weight_decay)
        self.adam = torch.optim.AdamW(
            rest, lr=options.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self.causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool, device=self.device).tril()
        self.compiled = torch.compile(self._loss) if options.compile else self._loss

    def _loss(self, ids: Tensor, documents: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            mask = (documents[:, None, :, None] == documents[:, None, None, :]) & self.causal
            logits = self.model.logits(self.model(ids, mask, self.rope))
        each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
        loss: Tensor = (each * weights.flatten()).sum() / weights.numel()
        return loss

    def rate(self) -> float:
        """Warm up, stay, then fall linearly to nothing over the last part of the run."""
        return min((self.step + 1) / self.options.warmup, self.fall())

    def fall(self) -> float:
        steps = self.options.steps
        return min(1.0, (steps - self.step) / max(1.0, steps * self.options.decay))

    def level(self) -> float:
        """Of the curriculum: from few symbols to all of them."""
        return min(1.0, self.step / self.options.curriculum)

    def train_step(self) -> float:
        options = self.options
        batch = self.encoder.training_batch(
            options.seed,
            self.step,
            self.rank,
            options.rows // options.workers,
            self.level(),
            PROMPT_WEIGHT * self.fall(),
        )
        rate = self.rate()
        for optimizer, base in ((self.muon, options.lr), (self.adam, options.adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
        parts = (batch.ids, batch.documents, batch.targets, batch.weights)
        loss = self.compiled(*(part.to(self.device) for part in parts))
        loss.backward()
        totals = torch.tensor(
            [float(loss.detach()), float(batch.weights.mean()), float((batch.documents > 0).sum())]
        )
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if options.workers > 1:
            flat = torch.cat([g.flatten() for g in gradients] + [totals])
            dist.all_reduce(flat)
            *summed, totals = flat.split([g.numel() for g in gradients] + [len(totals)])
            for gradient, value in zip(gradients, summed, strict=True):
                gradient.copy_(value.view_as(gradient))
        for gradient in gradients:
            gradient.div_(totals[1])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += int(totals[2])
        return float(totals[0] / totals[1])

    @torch.no_grad()
    def exact(self, count: int, held: bool) -> dict[str, tuple[int, int]]:
        """Count answers of which greedy decoding gets every token: task -> (right, of)."""
        found: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for task in TASK_NAMES:
            for start in range(0, count, 16):
                examples = [
                    draw(7_000_001, index, task=task, held=held)
                    for index in range(start, min(count, start + 16))
                ]
                encoded = [self.encoder.encode(example) for example in examples]
                length = max(len(text) for text, _ in encoded)
                ids = torch.zeros(len(encoded), length, dtype=torch.long)
                for row, (text, _) in enumerate(encoded):
                    ids[row, : len(text)] = torch.tensor(text)
                mask = torch.ones(length, length, dtype=torch.bool).tril().to(self.device)
                rope = tuple(t.to(self.device) for t in self.model.rope(length, torch.bfloat16))
                with torch.autocast(self.device.type, torch.bfloat16):
                    hidden = self.model(ids.to(self.device), mask, rope)
                    best = self.model.logits(hidden).argmax(-1).cpu()
                for row, (text, answers) in enumerate(encoded):
                    prompt = answers[-1][0]
                    wanted = torch.tensor(text[prompt:])
                    right = torch.equal(best[row, prompt - 1 : len(text) - 1], wanted)
                    found[examples[row].task] += int(right)
                    total[examples[row].task] += 1
        return {task: (found[task], total[task]) for task in total}

    def save(self, path: Path) -> None:
        state = {
            "config": self.model.sizes(),
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=15_500)
    parser.add_argument("--rows", type=int, default=8, help=f"of {LENGTH} tokens, each step")
    parser.add_argument("--lr", type=float, default=0.02, help="of the matrices (Muon)")
    parser.add_argument("--adam-lr", type=float, default=0.004, help="of all else (AdamW)")
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--decay", type=float, default=0.62, help="part of the steps")
    parser.add_argument("--curriculum", type=int, default=400, help="steps until all symbols")
    parser.add_argument("--layers", default="ccacacacac")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--ffn", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--stop-at", type=int, help="stop there, to be resumed")
    parser.add_argument("--test-every", type=int, default=500, help="steps")
    parser.add_argument("--test-count", type=int, default=16, help="examples of each task")
    parser.add_argument("--save-every", type=int, default=120, help="seconds")
    parser.add_argument("--workers", type=int, help="default: 2, on a GPU 1")
    options = parser.parse_args()

    if options.workers is None:
        options.workers = 1 if torch.cuda.is_available() else 2
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "tokenizer.json").exists():
        tokens.write(options.out, options.seed)
    # Read by a process at its start: large blocks are kept, not given back after each operation.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 30))
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        workers = [
            mp.get_context("spawn").Process(target=work, args=(options, rank, meeting), daemon=True)
            for rank in range(options.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed; run the command again to resume")


def work(options: argparse.Namespace, rank: int, meeting: str) -> None:
    """Be one of the workers."""
    if options.workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.workers)
    encoder = Encoder(options.out)
    config = Config(
        vocab_size=encoder.vocab_size,
        layers=options.layers,
        hidden=options.hidden,
        ffn=options.ffn,
        heads=options.hidden // 32,
    )
    trainer = Trainer(options, config, encoder, rank)
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    if options.workers > 1:
        dist.barrier()  # nobody may save before all have loaded
    if rank == 0:
        print(f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters", flush=True)
    run(trainer, checkpoint)
    if rank == 0 and trainer.step == options.steps:
        export(trainer.model, options.out, options.out / "model")
    if options.workers > 1:
        dist.destroy_process_group()


def run(trainer: Trainer, checkpoint: Path) -> None:
    """Train until the last step; log, test and save on the way."""
    options = trainer.options
    saved = begun = time.perf_counter()
    before, at_start = trainer.seconds, trainer.tokens
    mean = None
    stop = min(options.steps, options.stop_at or options.steps)
    parent = os.getppid()
    while trainer.step < stop and os.getppid() == parent:
        loss = trainer.train_step()
        mean = loss if mean is None else 0.95 * mean + 0.05 * loss
        now = time.perf_counter()
        trainer.seconds = before + now - begun
        if trainer.rank != 0:
            continue
        if trainer.step % 10 == 0:
            speed = (trainer.tokens - at_start) / (now - begun)
            print(
                f"step {trainer.step} loss {mean:.4f} tokens {trainer.tokens / 1e6:.2f}M "
                f"{speed:.0f}/s {trainer.seconds / 60:.1f} min level {trainer.level():.2f}",
                flush=True,
            )
        if trainer.step % options.test_every == 0:
            for held in (False, True):
                scores = trainer.exact(options.test_count, held)
                shown = {task: f"{right}/{of}" for task, (right, of) in scores.items()}
                print("held out" if held else "seen kinds", json.dumps(shown), flush=True)
        if now - saved > options.save_every:
            trainer.save(checkpoint)
            saved = now
    if trainer.rank == 0:
        trainer.save(checkpoint)


if __name__ == "__main__":
    main()
