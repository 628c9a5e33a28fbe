"""The engine as a model of lm-eval (EleutherAI's lm-evaluation-harness), for all its tasks.

    import lm_eval
    from lfm_engine.evaluate.harness import EngineLM

    lm = EngineLM("LiquidAI/LFM2.5-350M", dtype="int8")
    lm_eval.simple_evaluate(model=lm, tasks=["mmlu_pro"], apply_chat_template=True)

Importing this enters it into lm-eval's list as "lfm-engine"; `lfm-engine eval lm-eval` is lm-eval's
own command line with it. What it scores is what lm-eval's `hf` model scores: texts are encoded,
split and cut in the same way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from .answering import BATCH_SIZE, Answer, Job, answer_all
from .extras import EXTRA, require

require("lm_eval", "lm-eval's tasks", EXTRA)

from lm_eval import utils as lm_utils  # noqa: E402
from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models.utils import (  # noqa: E402
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from tqdm import tqdm  # noqa: E402

NAME = "lfm-engine"
MAX_NEW_TOKENS = 256  # where a task does not say

_Pair = tuple[Any, list[int], list[int]]


@register_model(NAME)
class EngineLM(TemplateLM):  # type: ignore[misc]
    """A model of this engine for lm-eval.

    Args:
        pretrained: what `AutoModelForCausalLM.from_pretrained` takes, or a `CausalLM`.
        tokenizer: with a `CausalLM`; ours, or a fast one of transformers.
        dtype, kv_dtype, num_threads: as in `from_pretrained`.
        max_length: tokens of a context at most; None for the model's own.
        batch_size: prompts that are answered together.
        device, max_batch_size: passed by lm-eval, without a meaning here.

    Raises:
        OSError, ValueError: as `from_pretrained`.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        *,
        dtype: str = "auto",
        kv_dtype: str = "auto",
        num_threads: int | None = None,
        max_length: int | None = None,
        batch_size: int | str = BATCH_SIZE,
        device: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        from .. import AutoModelForCausalLM, AutoTokenizer

        if isinstance(pretrained, (str, os.PathLike)):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(pretrained)
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                pretrained, dtype=dtype, kv_dtype=kv_dtype, num_threads=num_threads
            )
            self._name = str(pretrained)
        else:
            if tokenizer is None:
                raise ValueError("a CausalLM needs tokenizer=")
            self.tokenizer, self.model, self._name = tokenizer, pretrained, NAME
        context = self.model.config.max_position_embeddings
        if max_length is not None and not 1 <= max_length <= context:
            raise ValueError(f"max_length must be between 1 and {context}, not {max_length}")
        self.max_length = context if max_length is None else max_length
        numeric = str(batch_size).isdigit() and int(batch_size) > 1  # lm-eval's default is 1
        self._batch_size = int(batch_size) if numeric else BATCH_SIZE

    # -- text --

    @property
    def eot_token_id(self) -> int:
        ids = self.model.config.eos_token_id
        token = self.tokenizer.eos_token_id
        return int(token if token is not None else ids[0])

    @property
    def prefix_token_id(self) -> int:
        """What comes before a text without a context."""
        token = self.tokenizer.bos_token_id
        return self.eot_token_id if token is None else int(token)

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        if add_special_tokens is None:
            # A rendered conversation has its first token already.
            first = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not string.startswith(first)
        ids = self.tokenizer(string, add_special_tokens=add_special_tokens).input_ids
        return [int(token) for token in ids]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    # -- lm-eval's three requests --

    def _loglikelihood_tokens(
        self, requests: Sequence[_Pair], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        out: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        # Those with one context come together: it is computed once.
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            # The last token is not fed, so that one more fits; what is too long loses its start.
            kept = max(0, self.max_length + 1 - len(continuation))
            if not continuation or kept == 0:
                raise ValueError(
                    f"lm-eval: a continuation has {len(continuation)} tokens; it needs 1 to "
                    f"{self.max_length}"
                )
            groups.setdefault(tuple(context[-kept:]), []).append((index, continuation))
        with tqdm(total=len(requests), desc="loglikelihood", disable=disable_tqdm) as bar:
            for prompt, members in groups.items():
                pairs = [(list(prompt), ids) for _, ids in members]
                results = self.model.loglikelihood(pairs)
                for (index, _), result in zip(members, results, strict=True):
                    out[index] = result
                    if requests[index][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], result)
                bar.update(len(members))
        return out

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        out = []
        texts = [str(request.args[0]) for request in requests]
        for text in tqdm(texts, desc="loglikelihood_rolling", disable=disable_tqdm):
            windows = lm_utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [(None, *lm_utils.make_disjoint_window(window)) for window in windows]
            total = sum(value for value, _ in self._loglikelihood_tokens(pairs, disable_tqdm=True))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            out.append(total)
        return out

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        out = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(index)
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:
            for members in alike.values():
                self._generate([requests[index].args for index in members], members, out, bar)
        return out

    def _generate(self, pairs: list[Any], places: list[int], out: list[str], bar: Any) -> None:
        """Answer requests with the same options; `out` gets them at their places."""
        options = normalize_gen_kwargs(pairs[0][1], MAX_NEW_TOKENS)
        until = [stop for stop in options.pop("until", []) if stop]
        limit = int(options.pop("max_gen_toks"))
        room = self.max_length - limit
        if room < 1:
            raise ValueError(
                f"lm-eval: max_gen_toks={limit} leaves no room in a context of {self.max_length}"
            )
        if not options.get("do_sample"):
            options.pop("temperature", None)
        config = self.model.generation_config.merged(
            **options, max_new_tokens=limit, stop_strings=until or None
        )
        jobs = (Job(self.tok_encode(text)[-room:]) for text, _ in pairs)

        def on_answer(answer: Answer) -> None:
            if answer.error is not None:
                raise RuntimeError(f"lm-eval: request {places[answer.index]}: {answer.error}")
            text = str(self.tokenizer.decode(answer.ids, skip_special_tokens=True))
            text = postprocess_generated_text(text, stop=until, think_end_token=None)
            out[places[answer.index]] = text
            self.cache_hook.add_partial("generate_until", pairs[answer.index], text)
            bar.update()

        answer_all(self.model, self.tokenizer, jobs, config, on_answer, batch_size=self._batch_size)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval puts into its results."""
        return {
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": self.model.dtype,
            "model_sha": f"{self.model.core.fingerprint():016x}",
        }


def run_command_line(model: str, model_args: dict[str, Any], arguments: Sequence[str]) -> None:
    """lm-eval's own command line, with this engine's model.

    Args:
        model: what `from_pretrained` takes.
        model_args: other arguments of `EngineLM`; None is left out.
        arguments: lm-eval's own, such as `--tasks`.

    Raises:
        ValueError: `model` has a comma or an equals sign, which lm-eval cannot pass on.
    """
    from lm_eval.__main__ import cli_evaluate

    if "," in model or "=" in model:
        raise ValueError(f"{model}: lm-eval cannot pass on a name with a comma or an equals sign")
    given = {"pretrained": model, **model_args}
    text = ",".join(f"{key}={value}" for key, value in given.items() if value is not None)
    before = sys.argv
    sys.argv = ["lm-eval", "run", "--model", NAME, "--model_args", text, *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
