"""The generate loop: requests into the scheduler, tokens out to streamers and stop strings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint import ModelConfig
from .constraint import Constraint, as_mask
from .generation import GenerationConfig
from .inputs import Ids, Prompts
from .streamers import IncrementalDecoder, StopStringMatcher


@dataclass(frozen=True)
class GenerateOutput:
    """Result of `generate(..., return_dict_in_generate=True)`.

    Attributes:
        sequences: int64 [batch, prompt + new tokens], or a list of 1-D arrays.
        finish_reasons: per sequence "stop" (end-of-sequence token, stop string, or the end of a
            constraint) or "length".
        new_tokens: per sequence how many tokens were generated; padding does not count.
    """

    sequences: npt.NDArray[np.int64] | list[npt.NDArray[np.int64]]
    finish_reasons: list[str]
    new_tokens: list[int]


@dataclass
class _Row:
    """One sequence while it is generated."""

    decoder: IncrementalDecoder | None
    matcher: StopStringMatcher | None
    constraint: Constraint | None
    mask: npt.NDArray[np.uint32]  # holds the constraint's answer where it is no bitmask
    tokens: list[int] = field(default_factory=list)
    finish: str = ""

    def take(self, token: int, finish: str) -> None:
        self.tokens.append(token)
        self.finish = finish
        if finish != "stop" and self.constraint is not None:
            self.constraint.accept(token)
        if finish or self.decoder is None or self.matcher is None:
            return
        # Incomplete characters wait: a stop string is text, not bytes.
        if self.matcher.push(self.decoder.push(token)):
            self.finish = "stop"


class _Generation:
    """The scheduler with the rows of one call: passes tokens out and constraints in."""

    def __init__(self, core: _core.Model, vocab_size: int, streamer: Any) -> None:
        self.scheduler = _core.Scheduler(core)
        self.rows: dict[int, _Row] = {}
        self._vocab_size = vocab_size
        self._streamer = streamer

    def run(self) -> None:
        for request in self.rows:
            self._constrain(request)
        while not self.scheduler.idle:
            for request, token, finish in self.scheduler.step():
                self._take(request, token, finish)
                self._constrain(request)

    def _take(self, request: int, token: int, finish: str) -> None:
        if finish.startswith("error"):
            raise RuntimeError(f"generation failed: {finish.removeprefix('error: ')}")
        row = self.rows[request]
        row.take(token, finish)
        if row.finish and not finish:
            self.scheduler.cancel(request)
        if self._streamer is not None:
            self._streamer.put(np.array([token], np.int64))

    def _constrain(self, request: int) -> None:
        """Append what is certain, then say what may be sampled next."""
        row = self.rows[request]
        if row.constraint is None:
            return
        while not row.finish and (forced := row.constraint.forced()):
            for _, token, finish in self.scheduler.append(request, np.asarray(forced)):
                self._take(request, token, finish)
                if row.finish:
                    break
        if not row.finish and row.constraint.is_finished:
            row.finish = "stop"
            self.scheduler.cancel(request)
        if not row.finish:
            mask = as_mask(row.constraint.allowed(), self._vocab_size, row.mask)
            self.scheduler.set_mask(request, mask)


def run_requests(
    core: _core.Model,
    model_config: ModelConfig,
    config: GenerationConfig,
    prompts: Prompts,
    *,
    streamer: Any = None,
    tokenizer: Any = None,
    constraints: Sequence[Constraint | None] | None = None,
    state: _core.State | None = None,
) -> Any:
    """Generate for every prompt; see `CausalLM.generate` for the arguments and the result.

    `constraints` holds one for each prompt. `state` is for a single prompt, which goes on from what
    they have in common; when all is done it holds the result.
    """
    if streamer is not None and len(prompts.rows) > 1:
        raise ValueError("streamer works with one prompt, not with a batch")
    if state is not None and len(prompts.rows) > 1:
        raise ValueError("past_key_values works with one prompt, not with a batch")
    if config.stop_strings and tokenizer is None:
        raise ValueError("stop_strings needs tokenizer=, to know the text of the tokens")
    if core.num_threads > 1 and _core.forked_after_parallel():
        warnings.warn(
            "this process was forked after the engine ran: it computes with one thread; start "
            "workers with the 'spawn' method for more",
            RuntimeWarning,
            stacklevel=3,
        )
    eos = end_ids(config, model_config)
    seed = int.from_bytes(os.urandom(8), "little") if config.seed is None else config.seed

    vocab_size = model_config.vocab_size
    generation = _Generation(core, vocab_size, streamer)
    for stream, prompt in enumerate(prompts.rows):
        limit = config.new_token_limit(prompt.size, model_config.max_position_embeddings)
        if limit < 1:
            raise ValueError(
                f"the prompt has {prompt.size} tokens and leaves no room in the model's context "
                f"of {model_config.max_position_embeddings}"
            )
        request = generation.scheduler.add(
            prompt,
            max_new_tokens=limit,
            min_new_tokens=config.min_new_tokens or 0,
            eos_token_ids=eos,
            do_sample=config.do_sample,
            temperature=config.temperature if config.do_sample else 1.0,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p or 0.0,
            repetition_penalty=config.repetition_penalty,
            seed=seed,
            stream=stream,
        )
        if state is not None:
            generation.scheduler.use_state(request, state)
        strings = config.stop_strings
        generation.rows[request] = _Row(
            IncrementalDecoder(tokenizer) if strings else None,
            StopStringMatcher(strings) if strings else None,
            constraints[stream] if constraints else None,
            np.empty((vocab_size + 31) // 32, np.uint32),
        )

    if streamer is not None:
        streamer.put(prompts.rows[0][None, :])
    generation.run()
    if state is not None:
        state.restore(generation.scheduler.take_state(request))
    if streamer is not None:
        streamer.end()

    rows = list(generation.rows.values())
    sequences = _assemble(prompts, rows, _pad_id(config, model_config, eos))
    if not config.return_dict_in_generate:
        return sequences
    return GenerateOutput(
        sequences, [row.finish for row in rows], [len(row.tokens) for row in rows]
    )


def end_ids(config: GenerationConfig, model_config: ModelConfig) -> list[int]:
    """The ids that end a sequence."""
    ids = list(config.stop_ids(model_config.eos_token_id))
    if config.eos_token_id is None:
        # A checkpoint may name more special tokens than its vocabulary holds.
        ids = [i for i in ids if i < model_config.vocab_size]
    return ids


def _pad_id(config: GenerationConfig, model_config: ModelConfig, eos: Sequence[int]) -> int:
    for candidate in (config.pad_token_id, model_config.pad_token_id, *eos):
        if candidate is not None:
            return candidate
    return 0


def _assemble(prompts: Prompts, rows: list[_Row], pad: int) -> Ids | list[Ids]:
    if prompts.padded is None:
        return [
            np.concatenate([prompt, np.array(row.tokens, np.int64)])
            for prompt, row in zip(prompts.rows, rows, strict=True)
        ]
    batch, length = prompts.padded.shape
    longest = max(len(row.tokens) for row in rows)
    out = np.full((batch, length + longest), pad, np.int64)
    out[:, :length] = prompts.padded
    for index, row in enumerate(rows):
        out[index, length : length + len(row.tokens)] = row.tokens
    return out
