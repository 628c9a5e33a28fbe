"""The generate loop: requests into the scheduler, tokens out to streamers and stop strings."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .checkpoint import ModelConfig
from .constraint import Constraint, as_mask
from .generation import GenerationConfig
from .inputs import Ids, Prompts
from .logits_processing import RowCallbacks, Scores, callables, processor_params
from .streamers import IncrementalDecoder, StopStringMatcher

# Tokens drafted at most unless the caller says.
_SPECULATION = 8


@dataclass(frozen=True)
class SpeculationStats:
    """What became of drafts, see `GenerationConfig.speculation`.

    Attributes:
        drafted_tokens: tokens that were drafted.
        accepted_tokens: those of them that came.
        passes: forward passes of the call, those over the prompts included.
    """

    drafted_tokens: int
    accepted_tokens: int
    passes: int


@dataclass(frozen=True)
class GenerateOutput:
    """Result of `generate(..., return_dict_in_generate=True)`.

    Attributes:
        sequences: int64 [batch, prompt + new tokens], or a list of 1-D arrays.
        finish_reasons: per sequence "stop" (end-of-sequence token, stop string, or the end of a
            constraint or a stopping criterion), "length" (a limit of tokens or time) or "error".
        new_tokens: per sequence how many tokens were generated; padding does not count.
        scores: with `output_scores`, what each token was chosen from: for each new position float32
            [batch, vocab_size], NaN in rows that had ended. As in transformers these are logits
            after all processors, minus infinity where a token was not to be chosen.
        logits: with `output_logits`, the model's own, in the same form.
        logprobs: with `logprobs`, per sequence the log-probabilities of its new tokens by the
            model's own logits (before temperature and processors), float32 [new tokens].
        top_logprobs: with `top_logprobs=n`, per sequence and new token the n likeliest ids int64
            [n] and their log-probabilities float32 [n].
        errors: with `return_exceptions`, per sequence the exception that ended it, or None.
        speculation: how many tokens were drafted, and how many of them came, in all sequences.
    """

    sequences: npt.NDArray[np.int64] | list[npt.NDArray[np.int64]]
    finish_reasons: list[str]
    new_tokens: list[int]
    scores: tuple[Scores, ...] | None = None
    logits: tuple[Scores, ...] | None = None
    errors: list[Exception | None] | None = None
    logprobs: list[npt.NDArray[np.float32]] | None = None
    top_logprobs: list[list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]] | None = None
    speculation: SpeculationStats | None = None


@dataclass
class _Row:
    """One sequence while it is generated."""

    decoder: IncrementalDecoder | None
    matcher: StopStringMatcher | None
    constraint: Constraint | None
    mask: npt.NDArray[np.uint32]  # holds the constraint's answer where it is no bitmask
    callbacks: RowCallbacks
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    error: Exception | None = None

    def take(self, token: int, finish: str) -> None:
        self.tokens.append(token)
        self.callbacks.push(token)
        self.finish = finish
        if finish != "stop" and self.constraint is not None:
            self.constraint.accept(token)
        if finish:
            return
        # Incomplete characters wait: a stop string is text, not bytes.
        if (
            self.matcher is not None
            and self.decoder is not None
            and self.matcher.push(self.decoder.push(token))
        ) or self.callbacks.should_stop():
            self.finish = "stop"


class _Generation:
    """The scheduler with the rows of one call: passes tokens out and constraints in."""

    def __init__(
        self,
        core: _core.Model,
        vocab_size: int,
        streamer: Any,
        return_exceptions: bool,
        prefix_cache: _core.PrefixCache | None,
    ) -> None:
        self.scheduler = _core.Scheduler(core, prefix_cache=prefix_cache)
        self.rows: dict[int, _Row] = {}
        self._vocab_size = vocab_size
        self._streamer = streamer
        self._return_exceptions = return_exceptions

    def run(self, deadline: float | None) -> None:
        for request in self.rows:
            with self._failing(request):
                self._constrain(request)
        while not self.scheduler.idle:
            for request, token, finish in self.scheduler.step():
                with self._failing(request):
                    self._take(request, token, finish)
                    self._constrain(request)
            if deadline is not None and time.monotonic() >= deadline:
                self._end_all()

    @contextmanager
    def _failing(self, request: int) -> Iterator[None]:
        """An exception ends the request; the others go on if the caller wants that."""
        try:
            yield
        except Exception as error:
            if not self._return_exceptions:
                raise
            row = self.rows[request]
            row.finish, row.error = "error", error
            self.scheduler.cancel(request)

    def _end_all(self) -> None:
        for request, row in self.rows.items():
            if not row.finish:
                row.finish = "length"
                self.scheduler.cancel(request)

    def _take(self, request: int, token: int, finish: str) -> None:
        if finish.startswith("error"):
            raise self.scheduler.take_error(request) or RuntimeError(
                f"generation failed: {finish.removeprefix('error: ')}"
            )
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
        # Where the logits of each token are wanted, the mask alone leaves the same choice.
        jump = not row.callbacks.see_logits
        while jump and not row.finish and (forced := row.constraint.forced()):
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
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    return_exceptions: bool = False,
    state: _core.State | None = None,
    prefix_cache: _core.PrefixCache | None = None,
) -> Any:
    """Generate for every prompt; see `CausalLM.generate` for the arguments and the result.

    `prompts` are repeated and `constraints` holds one for each of them. `state` is for a single
    prompt, which goes on from what they have in common; when all is done it holds the result.
    """
    begun = time.monotonic()
    processors = callables("logits_processor", logits_processor)
    criteria = callables("stopping_criteria", stopping_criteria)
    _check_together(config, constraints, return_exceptions)
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
    generation = _Generation(core, vocab_size, streamer, return_exceptions, prefix_cache)
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
            eos_token_ids=eos,
            do_sample=config.do_sample,
            temperature=config.temperature if config.do_sample else 1.0,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p or 0.0,
            typical_p=config.typical_p,
            epsilon_cutoff=config.epsilon_cutoff,
            eta_cutoff=config.eta_cutoff,
            seed=seed,
            stream=stream,
            processors=processor_params(config, prompt.size),
            speculation=_SPECULATION if config.speculation is None else config.speculation,
        )
        callbacks = RowCallbacks(config, prompt, limit, processors, criteria)
        callbacks.install(generation.scheduler, request)
        if state is not None:
            generation.scheduler.use_state(request, state)
        strings = config.stop_strings
        generation.rows[request] = _Row(
            IncrementalDecoder(tokenizer) if strings else None,
            StopStringMatcher(strings) if strings else None,
            constraints[stream] if constraints else None,
            np.empty((vocab_size + 31) // 32, np.uint32),
            callbacks,
        )

    if streamer is not None:
        streamer.put(prompts.rows[0][None, :])
    generation.run(None if config.max_time is None else begun + config.max_time)
    if state is not None:
        state.restore(generation.scheduler.take_state(request))
    if streamer is not None:
        streamer.end()

    rows = list(generation.rows.values())
    sequences = _assemble(prompts, rows, _pad_id(config, model_config, eos))
    if not config.return_dict_in_generate:
        return sequences
    return GenerateOutput(
        sequences,
        [row.finish for row in rows],
        [len(row.tokens) for row in rows],
        _by_position([row.callbacks.scores for row in rows]) if config.output_scores else None,
        _by_position([row.callbacks.logits for row in rows]) if config.output_logits else None,
        [row.error for row in rows] if return_exceptions else None,
        [np.array(row.callbacks.logprobs, np.float32) for row in rows] if config.logprobs else None,
        [row.callbacks.top_logprobs for row in rows] if config.top_logprobs else None,
        SpeculationStats(
            generation.scheduler.drafted_tokens,
            generation.scheduler.accepted_tokens,
            generation.scheduler.passes,
        ),
    )


def _check_together(
    config: GenerationConfig,
    constraints: Sequence[Constraint | None] | None,
    return_exceptions: bool,
) -> None:
    """Refuse options that contradict each other."""
    if not config.return_dict_in_generate:
        for name in ("output_scores", "output_logits", "logprobs", "top_logprobs"):
            if value := getattr(config, name):
                raise ValueError(f"{name}={value} needs return_dict_in_generate=True")
        if return_exceptions:
            raise ValueError("return_exceptions=True needs return_dict_in_generate=True")
    if config.num_return_sequences > 1 and not config.do_sample:
        raise ValueError(
            f"num_return_sequences={config.num_return_sequences} needs do_sample=True: "
            "greedy decoding gives one sequence"
        )
    if constraints and config.forced_eos_token_id is not None:
        raise ValueError("forced_eos_token_id would cut off what a constraint must complete")


def _by_position(rows: list[list[Scores]]) -> tuple[Scores, ...]:
    """Arrays [1, vocab] of each row as [rows, vocab] of each position."""
    if len(rows) == 1:
        return tuple(rows[0])
    longest = max(rows, key=len)
    out = []
    for position, example in enumerate(longest):
        values = np.full((len(rows), example.shape[1]), np.nan, np.float32)
        for index, row in enumerate(rows):
            if position < len(row):
                values[index] = row[position][0]
        out.append(values)
    return tuple(out)


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
