"""The model as Hugging Face users know it: a call for logits, `generate`, `chat`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from .arrays import Weights
from .chat import ToolRun, chat, run_tools
from .chat_template import Message
from .checkpoint import (
    ModelConfig,
)
from .constraint import Constraint
from .generate import GenerateOutput, run_requests
from .generation import GenerationConfig
from .hidden_states import Layers, by_step, check_prompts, new_tokens
from .hooks import Capture, Hooks
from .inputs import Ids, read_prompts
from .response_format import make_constraints
from .rows import end_ids
from .scoring import Scoring
from .session import Session

__all__ = ["CausalLM", "CausalLMOutput", "GenerateOutput"]

DEFAULT_PREFIX_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class CausalLMOutput:
    """Result of calling a model.

    Attributes:
        logits: float32 [batch, sequence, vocab_size], written in place by the engine. Rows of
            padding are zero. With `logits_to_keep=n` the last n positions only.
        hidden_states: with `output_hidden_states`, as in transformers: float32 [batch, sequence,
            hidden_size] before each layer, and at last after the final norm, so layers + 1 of them.
        attentions: with `output_attentions`, for each attention layer float32 [batch, heads,
            sequence, sequence], 0 where nothing is seen.
    """

    logits: npt.NDArray[np.float32]
    hidden_states: tuple[npt.NDArray[np.float32], ...] | None = None
    attentions: tuple[npt.NDArray[np.float32], ...] | None = None


class CausalLM(Scoring):
    """A loaded model. Immutable but for its hooks, so threads may share it.

    Made by `AutoModelForCausalLM`.

    Attributes:
        config: sizes and layer types, see `checkpoint.ModelConfig`.
        generation_config: defaults of `generate`, from the checkpoint; may be changed.
        prefix_cache: what prompts of `generate`, `chat` and sessions have in common is computed
            once, from any token on, within `prefix_cache.max_bytes` of memory (256 MiB unless set;
            22,000 tokens of LFM2-350M); 0 turns it off. It never changes a result. It holds on to
            what prompts said: `prefix_cache.clear()` forgets.
        hooks: functions that see and change activations, see `Hooks`.
        weights: arrays by name, see `Weights`.
        core: the C++ model, for states and single steps (`new_state`, `forward`, `forward_batch`).
    """

    def __init__(
        self, core: _core.Model, config: ModelConfig, generation_config: GenerationConfig
    ) -> None:
        self.core = core
        self.config = config
        self.generation_config = generation_config
        self.prefix_cache = _core.PrefixCache(core, DEFAULT_PREFIX_CACHE_BYTES)
        self.hooks = Hooks(core)
        self.weights = Weights(core)

    @property
    def dtype(self) -> str:
        """Type that weights are stored and multiplied in, see `from_pretrained`."""
        return self.core.dtype

    @property
    def kv_dtype(self) -> str:
        """Type that states keep K and V in: "float32", "bfloat16" or "int8"."""
        return self.core.kv_dtype

    @property
    def device(self) -> str:
        """Where the model computes; always "cpu" in this build."""
        return "cpu"

    def state_nbytes(self, length: int) -> int:
        """Bytes of memory that the state of a sequence of `length` tokens takes."""
        return self.core.state_nbytes(length)

    @property
    def num_threads(self) -> int:
        """Threads that a step uses."""
        return self.core.num_threads

    def num_parameters(self) -> int:
        """Number of weights; tied embeddings count once."""
        return self.config.num_parameters

    def __repr__(self) -> str:
        return (
            f"CausalLM({self.config.architecture}, {self.num_parameters() / 1e6:.0f}M parameters, "
            f"dtype={self.dtype!r}, num_threads={self.num_threads}, isa={self.core.isa!r})"
        )

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> CausalLMOutput:
        """Logits of whole sequences.

        Args:
            input_ids: integers [batch, sequence] or [sequence]; lists, NumPy or torch.
            attention_mask: [batch, sequence], 0 for padding on the left.
            logits_to_keep: compute only the last n positions' logits to return; 0 for all.
            output_hidden_states, output_attentions: return these too. For those of an answer, call
                the model with what `generate` returned: the bits are the same.

        Returns:
            An output with `.logits`, float32 [batch, sequence or n, vocab_size], and what else was
            asked for.

        Raises:
            ValueError: bad ids, an empty or ragged batch, or a sequence over the context.
        """
        prompts = read_prompts(input_ids, attention_mask)
        if prompts.padded is None:
            raise ValueError(
                "input_ids: rows of different lengths; pad on the left and give attention_mask"
            )
        batch, length = prompts.padded.shape
        if isinstance(logits_to_keep, bool) or not isinstance(logits_to_keep, int):
            raise ValueError(f"logits_to_keep must be an integer, not {logits_to_keep!r}")
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep must not be negative, not {logits_to_keep}")
        capture = Capture(self.core, batch, length, output_hidden_states, output_attentions)
        last = logits_to_keep == 1
        logits = np.empty((batch, 1 if last else length, self.config.vocab_size), np.float32)
        for i, (row, start, out) in enumerate(
            zip(prompts.rows, prompts.starts, logits, strict=True)
        ):
            if not last:
                out[:start] = 0
            rows = out if last else out[start:]
            taps = capture.begin(i, start)
            state = self.core.new_state()
            self.core.forward(state, row, "last" if last else "all", out=rows, taps=taps)
        return CausalLMOutput(
            logits[:, -logits_to_keep:] if logits_to_keep else logits,
            capture.hidden_states,
            capture.attentions,
        )

    def _hidden_states(self, ids: Ids) -> Layers:
        states = self(ids[None, :], logits_to_keep=1, output_hidden_states=True).hidden_states
        assert states is not None
        return states

    def generate(
        self,
        input_ids: Any = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Any = None,
        streamer: Any = None,
        tokenizer: Any = None,
        response_format: Any = None,
        constraint: Constraint | Sequence[Constraint] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Any], Sequence[int]] | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        return_exceptions: bool = False,
        past_key_values: _core.State | None = None,
        **options: Any,
    ) -> Any:
        """Continue prompts; all of them run together, packed without padding.

        The output can be constrained, in one of three ways. Text that is certain costs no model
        step, and what cannot be kept raises: nothing goes on unconstrained.

            model.generate(ids, response_format={"type": "choice", "choice": ["yes", "no"]},
                           tokenizer=tokenizer)

        Args:
            input_ids: [batch, sequence], [sequence], or a list of prompts of different lengths.
            generation_config: in place of the model's own.
            attention_mask: [batch, sequence], 0 for padding on the left.
            streamer: gets the prompt and each token (`put`, `end`); one prompt only.
            tokenizer: needed for `stop_strings` and `response_format`.
            response_format: {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}},
                as at OpenAI; "json_object", "regex", "choice" and "lark" too, see
                `response_format.response_grammar`. The new text of each row matches it, unless it
                ends by "length" or a stop string first.
            constraint: your own rule of what may come next, one for each prompt.
            prefix_allowed_tokens_fn: as in transformers: (row, ids so far [length]) to allowed ids.
            logits_processor: callables processor(input_ids, scores) as in transformers, on NumPy:
                int64 [1, length] and float32 [1, vocab_size], the engine's own memory (copy what
                you keep). They return new scores, or these, changed. Called for each row.
            stopping_criteria: callables criterion(input_ids, scores) after each token; scores is a
                tuple with `output_scores`, else None. A true answer ends the row.
            return_exceptions: a row whose callable or constraint raises ends as "error", with the
                exception in the output's `.errors`, and the others go on; else generate raises.
            past_key_values: a state (`core.new_state()`) of this model, for one prompt: what both
                begin with is not computed again, and afterwards the state is that of the result
                (but for its last token). `session` does this for you.
            **options: any of `GenerationConfig`, going before it.

        Returns:
            int64 [batch, prompt + new tokens], rows that end early filled up with the padding id; a
            list of 1-D arrays for a list of prompts of different lengths. With
            `return_dict_in_generate` a `GenerateOutput` that holds this in `.sequences`.

        Raises:
            ValueError: bad ids or options, a prompt over the context, a response format that is
                malformed, not supported or impossible; the message names which.
            TypeError: an option that does not exist.
            RuntimeError: a constraint allows no token, or a grammar outgrows its limits.
        """
        try:
            config = generation_config or self.generation_config
            # None takes the checkpoint's value, as everywhere in GenerationConfig.
            config = config.merged(**options)
            prompts = read_prompts(input_ids, attention_mask).repeat(config.num_return_sequences)
            constraints = make_constraints(
                prompts,
                response_format=response_format,
                constraint=constraint,
                prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
                tokenizer=tokenizer,
                vocab_size=self.config.vocab_size,
                eos_ids=end_ids(config, self.config),
            )
            if config.output_hidden_states:
                check_prompts(prompts)
            result = run_requests(
                self.core,
                self.config,
                config,
                prompts,
                streamer=streamer,
                tokenizer=tokenizer,
                constraints=constraints,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                return_exceptions=return_exceptions,
                state=past_key_values,
                # It holds for the model as it is.
                prefix_cache=self.prefix_cache,
            )
            if config.output_hidden_states:
                states = by_step(prompts, new_tokens(result, prompts), self._hidden_states)
                result = replace(result, hidden_states=states)
            return result
        except BaseException as error:
            # A consumer in another thread would wait for ever.
            if streamer is not None and hasattr(streamer, "fail"):
                streamer.fail(error)
            raise

    def chat(
        self,
        messages: Sequence[Any],
        *,
        tokenizer: Any,
        tools: Sequence[Any] | None = None,
        tool_choice: Any = "auto",
        parallel_tool_calls: bool = True,
        response_format: Any = None,
        generation_config: GenerationConfig | None = None,
        chat_template: str | None = None,
        template_variables: Mapping[str, Any] | None = None,
        streamer: Any = None,
        **options: Any,
    ) -> Any:
        """Answer a conversation: render its prompt, generate, parse.

            answer = model.chat([{"role": "user", "content": "Weather in Paris?"}],
                                tokenizer=tokenizer, tools=[get_weather])
            answer.tool_calls  # [{"name": "get_weather", "arguments": {"city": "Paris"}}]

        Calls of tools are constrained: they parse, name a tool, and their arguments have the types
        that the tool's schema says.

        Args:
            messages: `{"role": ..., "content": ...}` each; or a list of conversations, answered
                together.
            tokenizer: ours or a fast one of transformers, with a chat template.
            tools: functions with type hints and a docstring, or JSON schemas (OpenAI's form).
            tool_choice: "auto" (text, calls or both), "required" (calls), "none" (text), or
                `{"type": "function", "function": {"name": ...}}` (one call of this one).
            parallel_tool_calls: whether an answer may hold several calls.
            response_format: as in `generate`; with `tool_choice="auto"` the answer either has this
                format or is a list of calls, with "required" and a function it is always calls.
            generation_config: in place of the model's own.
            chat_template: Jinja source, or the name of one of the checkpoint's templates.
            template_variables: whatever the template reads besides.
            streamer: gets the prompt's and the answer's tokens; one conversation only.
            **options: any of `GenerationConfig`. An answer has 1024 tokens at most unless
                `max_new_tokens` or `max_length` is given, here or by the checkpoint.

        Returns:
            A `ChatOutput`, or a list of them for a list of conversations.

        Raises:
            ValueError: malformed messages, tools, tool_choice or options; a tool's schema that is
                not supported; a prompt over the context.
        """
        return chat(
            self,
            messages,
            tokenizer=tokenizer,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            generation_config=generation_config,
            chat_template=chat_template,
            template_variables=template_variables,
            streamer=streamer,
            **options,
        )

    def run_tools(
        self,
        messages: Sequence[Message],
        *,
        tokenizer: Any,
        tools: Sequence[Any],
        functions: Mapping[str, Callable[..., Any]] | None = None,
        max_steps: int = 8,
        tool_choice: Any = "auto",
        **options: Any,
    ) -> ToolRun:
        """Answer, run the tools that the answer calls, and answer again with their results.

            run = model.run_tools([{"role": "user", "content": "Weather in Paris?"}],
                                  tokenizer=tokenizer, tools=[get_weather])
            run.text, run.messages

        The calls of an answer run in order. What a tool returns goes to the model as text (JSON
        unless it is a string), and so does the exception that it raises.

        Args:
            tools: functions, or JSON schemas of those in `functions`.
            functions: by the name of their tool.
            max_steps: answers at most; the calls of the last one are not run.
            tool_choice: for the first answer; later ones are free unless it is "none".
            **options: as in `chat`.

        Raises:
            ValueError: as `chat`; a tool has no function.
        """
        return run_tools(
            self,
            messages,
            tokenizer=tokenizer,
            tools=tools,
            functions=functions,
            max_steps=max_steps,
            tool_choice=tool_choice,
            **options,
        )

    def session(self, tokenizer: Any = None) -> Session:
        """Start a sequence that is kept between calls: see `Session`.

        Args:
            tokenizer: ours or one of transformers; for text, messages and stop strings.
        """
        return Session(self, tokenizer)

    def load_session(self, path: str | os.PathLike[str], tokenizer: Any = None) -> Session:
        """Read a session that `Session.save` wrote; see `Session.load`."""
        return Session.load(path, self, tokenizer)

    def save_packed(self, path: str | os.PathLike[str], tokenizer: Any = None) -> None:
        """Write the whole model as one file that opens in milliseconds, for any CPU.

        `AutoModelForCausalLM` and `AutoTokenizer` load it. An old file at `path` is replaced when
        the new one is complete.

        Args:
            path: by convention it ends in ".lfm".
            tokenizer: goes into the file, with its chat template; ours or one of transformers.

        Raises:
            ValueError: `dtype` is neither int8 nor int4.
            OSError: the file cannot be written.
        """
        from .checkpoint.packed import check_packable, write_packed
        from .tokenizer import tokenizer_files

        check_packable(self.dtype)
        files = {} if tokenizer is None else tokenizer_files(tokenizer)
        write_packed(path, self.core, self.config, self.generation_config.to_dict(), files)
