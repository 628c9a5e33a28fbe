"""Generation options, with the names, defaults and checks of transformers' GenerationConfig."""

from __future__ import annotations

import json
import math
import operator
import os
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

# The length when neither max_new_tokens nor max_length is given.
DEFAULT_NEW_TOKENS = 20
_MAX_INT = 2**31 - 1  # ids and counts; sums of them cannot overflow in the core

# Options of transformers that the engine does not have: only these values, which change nothing,
# are accepted.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "assistant_ensemble_weight": (None,),
    "assistant_model": (None,),
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "constraints": (None,),
    "decoder_start_token_id": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "early_stopping": (None, False),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1.0),
    "length_penalty": (None, 1.0),
    "logits_processor": (None, []),
    "max_time": (None,),
    "min_length": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beam_groups": (None, 1),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "output_logits": (None, False),
    "output_scores": (None, False),
    "penalty_alpha": (None, 0.0),
    "prefix_allowed_tokens_fn": (None,),
    "prompt_lookup_num_tokens": (None,),
    "remove_invalid_values": (None, False),
    "renormalize_logits": (None, False, True),  # sampling always normalizes
    "sequence_bias": (None, {}, []),
    "speculation_type": (None,),
    "stopping_criteria": (None, []),
    "suppress_tokens": (None, []),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1.0),
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
        do_sample: draw from the distribution; False takes the likeliest token, whatever the options
            below say.
        temperature: divides the logits; greater than 0 when sampling.
        top_k: draw from the k likeliest tokens; 0 for all.
        top_p: draw from the likeliest tokens that together reach this probability, in (0, 1].
        min_p: drop tokens less likely than this fraction of the likeliest, in [0, 1].
        repetition_penalty: divides (positive) or multiplies (negative) the logits of tokens seen
            before, prompt included; 1 for none.
        eos_token_id: id or ids that end the sequence; None for the checkpoint's, [] for none.
        pad_token_id: fills rows of a batch that end early.
        bos_token_id: what the checkpoint's sequences begin with.
        seed: of the random numbers, in [0, 2**64); None for a fresh one each time.
        stop_strings: end the sequence when its new text contains one of them.
        return_dict_in_generate: return an object with `.sequences` in place of the array.

    Raises:
        ValueError: an option has a wrong value, or is one of transformers' that this engine does
            not have.
        TypeError: an option does not exist.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    seed: int | None = None
    stop_strings: str | list[str] | None = None
    return_dict_in_generate: bool = False

    def __init__(self, **options: Any) -> None:
        for field in fields(self):
            setattr(self, field.name, field.default)
        self.update(**options)

    def update(self, **options: Any) -> None:
        """Set options (None: to the default) and check the result; an error changes nothing."""
        changed = copy(self)
        defaults = {field.name: field.default for field in fields(self)}
        for name, value in options.items():
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
        for name, low in (
            ("max_new_tokens", 1),
            ("max_length", 1),
            ("min_new_tokens", 0),
            ("top_k", 0),
        ):
            self._check_int(name, low)
        for name in ("pad_token_id", "bos_token_id", "seed"):
            self._check_int(name, 0)
        if self.seed is not None and self.seed >= 1 << 64:
            raise ValueError(f"seed must be below 2**64, not {self.seed}")
        for name in ("do_sample", "return_dict_in_generate"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            self._check_float(name)
        # Temperature 0 is how some ask for greedy decoding, where it plays no part.
        if self.temperature < 0 or (self.do_sample and self.temperature == 0):
            hint = "; for greedy decoding use do_sample=False" if self.do_sample else ""
            raise ValueError(f"temperature must be greater than 0, not {self.temperature}{hint}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], not {self.min_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(
                f"repetition_penalty must be greater than 0, not {self.repetition_penalty}"
            )
        if self.eos_token_id is not None:
            self.eos_token_id = _token_ids(self.eos_token_id)
        if self.stop_strings is not None:
            self.stop_strings = _stop_strings(self.stop_strings)

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
        names = {field.name for field in fields(cls)}
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

    def _check_int(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if value is None:
            return
        number = _as_int(name, value)
        if number < low:
            raise ValueError(f"{name} must be at least {low}, not {number}")
        if number > _MAX_INT and name != "seed":
            raise ValueError(f"{name} must be at most {_MAX_INT}, not {number}")
        setattr(self, name, number)

    def _check_float(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if _is_bool(value) or isinstance(value, (str, bytes)):
            raise ValueError(f"{name} must be a number, not {value!r}")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be a number, not {value!r}") from None
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, not {number}")
        setattr(self, name, number)


def _is_neutral(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, int, float, list, dict, type(None))):
        return False
    # 1 == True: compare as booleans only what is one.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in _NEUTRAL[name]
    )


def _is_bool(value: Any) -> bool:
    """Whether this is Python's bool or NumPy's, which older versions call bool_."""
    return type(value).__name__ in ("bool", "bool_")


def _as_int(name: str, value: Any) -> int:
    if not _is_bool(value):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError(f"{name} must be an integer, not {value!r}")


def _token_ids(value: Any) -> int | list[int]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (str, bytes, Mapping)):
        raise ValueError(f"eos_token_id must be an id or a list of ids, not {value!r}")
    many = isinstance(value, (Sequence, set, frozenset))
    ids = [_as_int("eos_token_id", entry) for entry in (value if many else [value])]
    if any(entry < 0 for entry in ids):
        raise ValueError(f"eos_token_id must not be negative: {value!r}")
    if any(entry > _MAX_INT for entry in ids):
        raise ValueError(f"eos_token_id must be at most {_MAX_INT}: {value!r}")
    return ids if many else ids[0]


def _stop_strings(value: Any) -> str | list[str]:
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, Sequence) or not all(
        isinstance(entry, str) and entry for entry in entries
    ):
        raise ValueError(
            f"stop_strings must be a non-empty string or a list of them, not {value!r}"
        )
    return value if isinstance(value, str) else list(entries)
