"""The generate loop: requests into the scheduler, tokens out to streamers and stop strings."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint import ModelConfig
from .generation import GenerationConfig
from .inputs import Ids, Prompts
from .streamers import IncrementalDecoder, StopStringMatcher


@dataclass(frozen=True)
class GenerateOutput:
    """Result of `generate(..., return_dict_in_generate=True)`.

    Attributes:
        sequences: int64 [batch, prompt + new tokens], or a list of 1-D arrays.
        finish_reasons: per sequence "stop" (end-of-sequence token or stop string) or "length".
    """

    sequences: npt.NDArray[np.int64] | list[npt.NDArray[np.int64]]
    finish_reasons: list[str]


@dataclass
class _Row:
    """One sequence while it is generated."""

    decoder: IncrementalDecoder | None
    matcher: StopStringMatcher | None
    tokens: list[int] = field(default_factory=list)
    finish: str = ""

    def take(self, token: int, finish: str) -> None:
        self.tokens.append(token)
        self.finish = finish
        if finish or self.decoder is None or self.matcher is None:
            return
        # Incomplete characters wait: a stop string is text, not bytes.
        if self.matcher.push(self.decoder.push(token)):
            self.finish = "stop"


def run_requests(
    core: _core.Model,
    model_config: ModelConfig,
    config: GenerationConfig,
    prompts: Prompts,
    *,
    streamer: Any = None,
    tokenizer: Any = None,
) -> Any:
    """Generate for every prompt; see `CausalLM.generate` for the arguments and the result."""
    if streamer is not None and len(prompts.rows) > 1:
        raise ValueError("streamer works with one prompt, not with a batch")
    if config.stop_strings and tokenizer is None:
        raise ValueError("stop_strings needs tokenizer=, to know the text of the tokens")
    if core.num_threads > 1 and _core.forked_after_parallel():
        warnings.warn(
            "this process was forked after the engine ran: it computes with one thread; start "
            "workers with the 'spawn' method for more",
            RuntimeWarning,
            stacklevel=3,
        )
    eos = list(config.stop_ids(model_config.eos_token_id))
    if config.eos_token_id is None:
        # A checkpoint may name more special tokens than its vocabulary holds.
        eos = [i for i in eos if i < model_config.vocab_size]
    seed = secrets.randbits(64) if config.seed is None else config.seed

    scheduler = _core.Scheduler(core)
    rows: dict[int, _Row] = {}
    for stream, prompt in enumerate(prompts.rows):
        limit = config.new_token_limit(prompt.size, model_config.max_position_embeddings)
        if limit < 1:
            raise ValueError(
                f"the prompt has {prompt.size} tokens and leaves no room in the model's context "
                f"of {model_config.max_position_embeddings}"
            )
        request = scheduler.add(
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
        strings = config.stop_strings
        rows[request] = _Row(
            IncrementalDecoder(tokenizer) if strings else None,
            StopStringMatcher(strings) if strings else None,
        )

    if streamer is not None:
        streamer.put(prompts.rows[0][None, :])
    while not scheduler.idle:
        for request, token, finish in scheduler.step():
            if finish.startswith("error"):
                raise RuntimeError(f"generation failed: {finish.removeprefix('error: ')}")
            row = rows[request]
            row.take(token, finish)
            if row.finish and not finish:
                scheduler.cancel(request)
            if streamer is not None:
                streamer.put(np.array([token], np.int64))
    if streamer is not None:
        streamer.end()

    sequences = _assemble(prompts, list(rows.values()), _pad_id(config, model_config, eos))
    if not config.return_dict_in_generate:
        return sequences
    return GenerateOutput(sequences, [row.finish for row in rows.values()])


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
