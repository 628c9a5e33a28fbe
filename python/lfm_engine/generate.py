"""The generate loop: requests into the scheduler, tokens out to streamers and stop strings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .beam_search import beam_search
from .checkpoint import ModelConfig
from .constraint import Constraint
from .generation import GenerationConfig
from .inputs import Ids, Prompts
from .logits_processing import Scores, callables
from .rows import Row, Rows, end_ids, new_token_limit, random_seed

# What a result can keep of each row's logits.
_KEPT = ("output_scores", "output_logits", "logprobs", "top_logprobs")


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
        sequences_scores: with `num_beams`, the score of each sequence, see `beam_search`.
        hidden_states: with `output_hidden_states`, for each new position the states before each
            layer, and at last after the final norm: float32 [batch, prompt, hidden] for the first
            and [batch, 1, hidden] for each further one, NaN in rows that had ended.
        speculation: how many tokens were drafted, and how many of them came, in all sequences;
            None from an `Engine`.
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
    sequences_scores: list[float] | None = None
    hidden_states: tuple[tuple[Scores, ...], ...] | None = None


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
    processors = callables("logits_processor", logits_processor)
    criteria = callables("stopping_criteria", stopping_criteria)
    check_together(config, tokenizer, any(constraints or ()))
    if return_exceptions and not config.return_dict_in_generate:
        raise ValueError("return_exceptions=True needs return_dict_in_generate=True")
    if config.num_return_sequences > 1 and not config.do_sample and config.num_beams == 1:
        raise ValueError(
            f"num_return_sequences={config.num_return_sequences} needs do_sample=True: "
            "greedy decoding gives one sequence"
        )
    if streamer is not None and len(prompts.rows) > 1:
        raise ValueError("streamer works with one prompt, not with a batch")
    if state is not None and len(prompts.rows) > 1:
        raise ValueError("past_key_values works with one prompt, not with a batch")
    warn_if_forked(core)
    if config.num_beams > 1:
        given = {
            "do_sample": config.do_sample,
            "constraint": constraints,
            "streamer": streamer,
            "past_key_values": state,
            "return_exceptions": return_exceptions,
        }
        return _search_beams(core, model_config, config, prompts, processors, criteria, given)

    running = Rows(
        core, model_config, return_exceptions=return_exceptions, prefix_cache=prefix_cache
    )
    seed = random_seed() if config.seed is None else config.seed
    for stream, prompt in enumerate(prompts.rows):
        request = running.add(
            prompt,
            config,
            seed=seed,
            stream=stream,
            tokenizer=tokenizer,
            constraint=constraints[stream] if constraints else None,
            processors=processors,
            criteria=criteria,
            on_token=None if streamer is None else lambda token: streamer.put(as_ids(token)),
            state=state,
        )
    if streamer is not None:
        streamer.put(prompts.rows[0][None, :])
    while not running.scheduler.idle:
        running.step()
    if state is not None:
        state.restore(running.scheduler.take_state(request))
    if streamer is not None:
        streamer.end()

    rows = list(running.rows.values())
    new = [np.array(row.tokens, np.int64) for row in rows]
    sequences = _assemble(prompts, new, _pad_id(config, model_config))
    if not config.return_dict_in_generate:
        return sequences
    return output_of(
        rows,
        sequences,
        errors=[row.error for row in rows] if return_exceptions else None,
        speculation=SpeculationStats(
            running.scheduler.drafted_tokens,
            running.scheduler.accepted_tokens,
            running.scheduler.passes,
        ),
    )


def _search_beams(
    core: _core.Model,
    model_config: ModelConfig,
    config: GenerationConfig,
    prompts: Prompts,
    processors: list[Any],
    criteria: list[Any],
    given: dict[str, Any],
) -> Any:
    """Beam search for each prompt; `prompts` are repeated for each sequence to return."""
    options = ("stop_strings", "max_time", "output_hidden_states", *_KEPT)
    given |= {name: getattr(config, name) for name in options}
    for name, value in given.items():
        if value:
            raise ValueError(f"num_beams={config.num_beams} does not work with {name}")
    count = config.num_return_sequences
    if count > config.num_beams:
        raise ValueError(f"num_return_sequences={count} is more than num_beams={config.num_beams}")
    found: list[tuple[Ids, float, str]] = []
    for prompt in prompts.rows[::count]:
        found += beam_search(
            core,
            prompt,
            config,
            limit=new_token_limit(config, model_config, prompt),
            eos=end_ids(config, model_config),
            processors=processors,
            criteria=criteria,
        )
    sequences = _assemble(prompts, [new for new, _, _ in found], _pad_id(config, model_config))
    if not config.return_dict_in_generate:
        return sequences
    return GenerateOutput(
        sequences,
        [why for _, _, why in found],
        [new.size for new, _, _ in found],
        sequences_scores=[score for _, score, _ in found],
    )


def output_of(
    rows: list[Row],
    sequences: Ids | list[Ids],
    *,
    errors: list[Exception | None] | None = None,
    speculation: SpeculationStats | None = None,
) -> GenerateOutput:
    """Return the result of rows that share a configuration."""
    config = rows[0].config
    return GenerateOutput(
        sequences,
        [row.finish for row in rows],
        [len(row.tokens) for row in rows],
        _by_position([row.callbacks.scores for row in rows]) if config.output_scores else None,
        _by_position([row.callbacks.logits for row in rows]) if config.output_logits else None,
        errors,
        [np.array(row.callbacks.logprobs, np.float32) for row in rows] if config.logprobs else None,
        [row.callbacks.top_logprobs for row in rows] if config.top_logprobs else None,
        speculation,
    )


def as_ids(token: int) -> Ids:
    """Return a token as streamers take it, int64 [1]."""
    return np.array([token], np.int64)


def warn_if_forked(core: _core.Model) -> None:
    """Say that a forked process computes with one thread."""
    if core.num_threads > 1 and _core.forked_after_parallel():
        warnings.warn(
            "this process was forked after the engine ran: it computes with one thread; start "
            "workers with the 'spawn' method for more",
            RuntimeWarning,
            stacklevel=4,
        )


def check_together(config: GenerationConfig, tokenizer: Any, constrained: bool) -> None:
    """Refuse options that contradict each other.

    Raises:
        ValueError: naming the option.
    """
    if not config.return_dict_in_generate:
        for name in (*_KEPT, "output_hidden_states"):
            if value := getattr(config, name):
                raise ValueError(f"{name}={value} needs return_dict_in_generate=True")
    if config.stop_strings and tokenizer is None:
        raise ValueError("stop_strings needs tokenizer=, to know the text of the tokens")
    if constrained and config.forced_eos_token_id is not None:
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


def _pad_id(config: GenerationConfig, model_config: ModelConfig) -> int:
    eos = end_ids(config, model_config)
    for candidate in (config.pad_token_id, model_config.pad_token_id, *eos):
        if candidate is not None:
            return candidate
    return 0


def _assemble(prompts: Prompts, new: list[Ids], pad: int) -> Ids | list[Ids]:
    if prompts.padded is None:
        return [
            np.concatenate([prompt, tokens])
            for prompt, tokens in zip(prompts.rows, new, strict=True)
        ]
    batch, length = prompts.padded.shape
    longest = max(tokens.size for tokens in new)
    out = np.full((batch, length + longest), pad, np.int64)
    out[:, :length] = prompts.padded
    for index, tokens in enumerate(new):
        out[index, length : length + tokens.size] = tokens
    return out
