"""Generation options, with the names, defaults and checks of transformers' GenerationConfig."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .generation_checks import (
    biases,
    check_float,
    check_int,
    decay,
    id_list,
    id_lists,
    id_or_ids,
    optional,
    strings,
)

# The length when neither max_new_tokens nor max_length is given.
DEFAULT_NEW_TOKENS = 20

# The least value of each.
_INTEGERS = {
    "max_new_tokens": 1,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "num_beams": 1,
    "top_logprobs": 0,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "seed": 0,
    "speculation": 0,
}

# Names that transformers has for options of ours.
_ALIASES = {"prompt_lookup_num_tokens": "speculation"}
_BOOLEANS = (
    "do_sample",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_hidden_states",
    "logprobs",
)
_FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "max_time",
    "length_penalty",
)

# Options of transformers that the engine does not have: only these values, which change nothing,
# are accepted.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "assistant_ensemble_weight": (None,),
    "assistant_model": (None,),
    "constraints": (None,),
    "decoder_start_token_id": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "force_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "num_beam_groups": (None, 1),
    "output_attentions": (None, False),
    "penalty_alpha": (None, 0.0),
    "speculation_type": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "use_cache": (None, True),
    "use_mtp": (None, False),
    "watermarking_config": (None,),
}

# Book-keeping and settings of transformers' own machinery: any value is accepted and ignored.
_IGNORED = frozenset(
    {
        "_commit_hash",
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "is_assistant",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "prefill_chunk_size",
        "target_lookbehind",
        "transformers_version",
    }
)


@dataclass(init=False)
class GenerationConfig:
    """How to generate. None stands for an option's default.

    Attributes:
        max_new_tokens: tokens to generate at most.
        max_length: prompt and new tokens together at most; `max_new_tokens` goes before it. As in
            transformers, with neither given 20 tokens are generated.
        min_new_tokens: the end-of-sequence tokens cannot come before so many tokens.
        min_length: nor before prompt and new tokens together are so many.
        max_time: seconds after which generation ends, as "length", at the next token.
        do_sample: draw from the distribution; False takes the likeliest token, whatever the options
            below say.
        temperature: divides the logits; greater than 0 when sampling.
        top_k: draw from the k likeliest tokens; 0 for all.
        top_p: draw from the likeliest tokens that together reach this probability, in (0, 1].
        min_p: drop tokens less likely than this fraction of the likeliest, in [0, 1].
        typical_p: draw from the tokens whose information is closest to the expected one and that
            together reach this probability, in (0, 1].
        epsilon_cutoff: drop tokens less likely than this, in [0, 1); 0 for none.
        eta_cutoff: the same, with a bound that falls with the entropy (eta sampling).
        repetition_penalty: divides (positive) or multiplies (negative) the logits of tokens seen
            before, prompt included; 1 for none.
        no_repeat_ngram_size: no so many tokens in a row occur twice, prompt included; 0 for none.
        bad_words_ids: lists of ids that never occur in the new text.
        sequence_bias: is added to the logit of the last token of a sequence where the tokens before
            it precede: {(id, ...): bias} or [[[id, ...], bias], ...].
        suppress_tokens: ids that never come.
        begin_suppress_tokens: ids that do not come first.
        forced_eos_token_id: id or ids, one of which is the last token that the limit allows.
        exponential_decay_length_penalty: (start, factor): after `start` new tokens the
            end-of-sequence tokens become more likely, by a factor with each token.
        remove_invalid_values: replace NaN and infinite logits in place of an error.
        renormalize_logits: make `scores` log-probabilities; draws are the same.
        eos_token_id: id or ids that end the sequence; None for the checkpoint's, [] for none.
        pad_token_id: fills rows of a batch that end early.
        bos_token_id: what the checkpoint's sequences begin with.
        speculation: tokens that are drafted at most from repetitions in the text and verified in
            one step (prompt lookup); 0 for none. No token changes by it, only the time. Drafts
            shorten, and end, where they do not come true. None for the engine's choice: 8, and
            none in batches, where a step has tokens enough. transformers' name for it,
            `prompt_lookup_num_tokens`, works too.
        seed: of the random numbers, in [0, 2**64); None for a fresh one each time.
        stop_strings: end the sequence when its new text contains one of them.
        num_return_sequences: sequences drawn for each prompt, or beams returned, best first.
        num_beams: beams of a beam search; 1 for none. Greedy only, and not together with
            constraints, streamers, stop strings, scores or logprobs.
        length_penalty: of beam search: a beam's score is its log-probability over its length to
            this power; above 0 prefers longer beams.
        early_stopping: of beam search: True ends it when `num_beams` beams have ended, False when
            it is unlikely that better ones come, "never" when it is impossible.
        return_dict_in_generate: return an object with `.sequences` in place of the array.
        output_scores: keep what each token was chosen from in its `.scores`.
        output_logits: keep the model's logits in its `.logits`.
        output_hidden_states: keep hidden states in its `.hidden_states`, by one more pass over
            each sequence when it is complete.
        logprobs: keep the log-probability of each token in its `.logprobs`.
        top_logprobs: so many of the likeliest tokens of each position, in its `.top_logprobs`.

    Raises:
        ValueError: an option has a wrong value, or is one of transformers' that this engine does
            not have.
        TypeError: an option does not exist.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int = 0
    max_time: float | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: list[tuple[list[int], float]] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_eos_token_id: int | list[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    speculation: int | None = None
    seed: int | None = None
    stop_strings: str | list[str] | None = None
    num_return_sequences: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_hidden_states: bool = False
    logprobs: bool = False
    top_logprobs: int = 0

    def __init__(self, **options: Any) -> None:
        for field in fields(self):
            setattr(self, field.name, field.default)
        self.update(**options)

    def update(self, **options: Any) -> None:
        """Set options (None: to the default) and check the result; an error changes nothing."""
        changed = copy(self)
        defaults = {field.name: field.default for field in fields(self)}
        for given, value in options.items():
            name = _ALIASES.get(given, given)
            if name in defaults:
                setattr(changed, name, defaults[name] if value is None else value)
            elif name in _NEUTRAL:
                if not _is_neutral(name, value):
                    raise ValueError(f"{name}={value!r} is not supported by this engine")
            elif name not in _IGNORED:
                raise TypeError(f"unknown generation option {name!r}")
        changed.validate()
        self.__dict__.update(changed.__dict__)

    def merged(self, **options: Any) -> GenerationConfig:
        """Return a copy with these options set; None leaves an option as it is here."""
        config = copy(self)
        config.update(**{name: value for name, value in options.items() if value is not None})
        return config

    def validate(self) -> None:
        """Check every option and bring it to its plain Python type.

        Raises:
            ValueError: naming the option and its value.
        """
        for name, low in _INTEGERS.items():
            setattr(self, name, optional(check_int, name, getattr(self, name), low))
        if self.seed is not None and self.seed >= 1 << 64:
            raise ValueError(f"seed must be below 2**64, not {self.seed}")
        for name in _BOOLEANS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in _FLOATS:
            setattr(self, name, optional(check_float, name, getattr(self, name)))
        # Temperature 0 is how some ask for greedy decoding, where it plays no part.
        if self.temperature < 0 or (self.do_sample and self.temperature == 0):
            hint = "; for greedy decoding use do_sample=False" if self.do_sample else ""
            raise ValueError(f"temperature must be greater than 0, not {self.temperature}{hint}")
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], not {getattr(self, name)}")
        for name in ("epsilon_cutoff", "eta_cutoff"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], not {self.min_p}")
        for name in ("repetition_penalty", "max_time"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)}")
        if self.early_stopping not in (True, False, "never") or isinstance(
            self.early_stopping, (int, float)
        ) != isinstance(self.early_stopping, bool):
            raise ValueError(
                f"early_stopping must be True, False or 'never', not {self.early_stopping!r}"
            )
        for name in ("eos_token_id", "forced_eos_token_id"):
            setattr(self, name, optional(id_or_ids, name, getattr(self, name)))
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            setattr(self, name, optional(id_list, name, getattr(self, name)))
        self.bad_words_ids = optional(id_lists, "bad_words_ids", self.bad_words_ids)
        self.sequence_bias = optional(biases, "sequence_bias", self.sequence_bias)
        name = "exponential_decay_length_penalty"
        self.exponential_decay_length_penalty = optional(decay, name, getattr(self, name))
        self.stop_strings = optional(strings, "stop_strings", self.stop_strings)

    def stop_ids(self, checkpoint_ids: Sequence[int] = ()) -> tuple[int, ...]:
        """Return the ids that end a sequence; those of the checkpoint unless the option is set."""
        if self.eos_token_id is None:
            return tuple(checkpoint_ids)
        return (
            (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)
        )

    def new_token_limit(self, prompt_length: int, context_length: int | None = None) -> int:
        """Return how many tokens may follow a prompt of `prompt_length` tokens.

        Only the default of 20 is shortened to what fits into `context_length`.

        Raises:
            ValueError: `max_length` leaves room for none.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is not None:
            if self.max_length <= prompt_length:
                raise ValueError(
                    f"max_length={self.max_length} leaves no room after a prompt of "
                    f"{prompt_length} tokens; use max_new_tokens"
                )
            return self.max_length - prompt_length
        if context_length is None:
            return DEFAULT_NEW_TOKENS
        return max(0, min(DEFAULT_NEW_TOKENS, context_length - prompt_length))

    def to_dict(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            field.name: values[field.name]
            for field in fields(self)
            if values[field.name] != field.default
        }

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """Read the content of a generation_config.json.

        Keys that are not known are ignored. Options that the engine does not have bring a warning.

        Raises:
            ValueError: an option has a wrong value.
        """
        names = {field.name for field in fields(cls)} | set(_ALIASES)
        for name, value in options.items():
            if name in _NEUTRAL and not _is_neutral(name, value):
                warnings.warn(
                    f"generation_config: {name}={value!r} is not supported and is ignored",
                    stacklevel=2,
                )
        return cls(**{name: value for name, value in options.items() if name in names})

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> GenerationConfig:
        """Read generation_config.json in a folder.

        Raises:
            OSError: there is no such file.
            ValueError: it is malformed.
        """
        file = Path(folder) / "generation_config.json"
        try:
            options = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not JSON: {error}") from error
        if not isinstance(options, dict):
            raise ValueError(f"{file}: expected a JSON object, found {type(options).__name__}")
        try:
            return cls.from_dict(options)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write generation_config.json into a folder, which is made if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (Path(folder) / "generation_config.json").write_text(text, encoding="utf-8")


def _is_neutral(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, int, float, list, dict, type(None))):
        return False
    # 1 == True: compare as booleans only what is one.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in _NEUTRAL[name]
    )
