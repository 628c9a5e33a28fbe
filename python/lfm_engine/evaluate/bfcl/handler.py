"""The handler that answers BFCL's entries with the engine, in process.

Import this after `package.prepare()`.
"""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bfcl_eval.constants.enums import ModelStyle
from bfcl_eval.constants.type_mappings import GORILLA_TO_OPENAPI
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.model_handler.base_handler import BaseHandler
from bfcl_eval.model_handler.utils import (
    convert_to_tool,
    format_execution_results_prompting,
    system_prompt_pre_processing_chat_model,
)

from ...tool_calls import ToolCallError, split_tool_calls
from .package import REGISTRY

Tools = list[dict[str, Any]]


@dataclass(frozen=True)
class Reply:
    """An answer of the model, special tokens included, with its counts of tokens."""

    raw: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: str


Respond = Callable[[Sequence[Mapping[str, Any]], Tools, bool], Reply]


class EngineHandler(BaseHandler):  # type: ignore[misc]
    """Turns entries into conversations, answers into calls, and calls into what is scored.

    Where the chat template renders tools they go there, and results of calls come as messages of
    the role "tool"; else all is said in BFCL's own words for models without function calling.
    Answers are read by `split_tool_calls`. What is scored are the calls, `[{name: JSON arguments}]`
    as from OpenAI's API, or the text where there are none.

    Args:
        respond: called with messages, tools and whether the template is to render them.
        native_tools: the template renders tools.
        native_calls: the template renders `message["tool_calls"]`.

    Attributes:
        replies: all since the caller emptied it.
    """

    def __init__(
        self,
        respond: Respond | None = None,
        *,
        native_tools: bool = True,
        native_calls: bool = False,
        **_: Any,  # what the scorer passes on
    ) -> None:
        super().__init__(REGISTRY, 0, REGISTRY, native_tools)
        self.model_style = ModelStyle.OPENAI_COMPLETIONS
        self.replies: list[tuple[Reply, str]] = []
        self._respond = respond
        self._native_calls = native_calls

    # -- one entry --

    def conversation(self, entry: dict[str, Any]) -> tuple[list[dict[str, Any]], Tools]:
        """The messages and the tools of a single-turn entry, which is changed."""
        if self.is_fc_model:
            data = self._compile_tools(self._pre_query_processing_FC({}, entry), entry)
            data = self.add_first_turn_message_FC(data, entry["question"][0])
        else:
            data = self._pre_query_processing_prompting(entry)
            data = self.add_first_turn_message_prompting(data, entry["question"][0])
        return data["message"], data["tools"]

    def multi_turn(self, entry: dict[str, Any]) -> list[list[Any]]:
        """Play a multi-turn entry, which is changed; return each turn's results.

        Raises:
            Exception: what `respond` raises.
        """
        forget_instances()  # an earlier try at this entry must not be gone on with
        result, _ = self.inference(entry, include_input_log=False, exclude_state_log=True)
        return list(result)

    def read(self, reply: Reply, tools: Tools) -> tuple[Any, str]:
        """What is scored of a reply, and what it is: "calls", "text" or "broken".

        "broken": there is a call between LFM2's tokens that cannot be read.
        """
        try:
            _, calls = split_tool_calls(reply.raw, tools or None)
        except ToolCallError:
            return reply.raw, "broken"
        if not calls:
            return reply.raw, "text"
        return [{call["name"]: json.dumps(call["arguments"])} for call in calls], "calls"

    # -- what is scored --

    def decode_ast(self, result: Any, language: Any = None, has_tool_call_tag: bool = False) -> Any:
        return [
            {name: json.loads(arguments) for name, arguments in call.items()}
            for call in _calls(result)
        ]

    def decode_execute(self, result: Any, has_tool_call_tag: bool = False) -> list[str]:
        return [
            render_safely(name, json.loads(arguments))
            for call in _calls(result)
            for name, arguments in call.items()
        ]

    # -- with tools in the template --

    def _pre_query_processing_FC(self, inference_data: Any, test_entry: Any) -> Any:
        return {"message": []}

    def _compile_tools(self, inference_data: Any, test_entry: Any) -> Any:
        tools = convert_to_tool(test_entry["function"], GORILLA_TO_OPENAPI, self.model_style)
        return {**inference_data, "tools": tools}

    def _query_FC(self, inference_data: Any) -> Any:
        return self._query(inference_data)

    def _parse_query_response_FC(self, api_response: Any) -> Any:
        return self._parse(*api_response)

    def add_first_turn_message_FC(self, inference_data: Any, first_turn_message: Any) -> Any:
        inference_data["message"].extend(first_turn_message)
        return inference_data

    def _add_next_turn_user_message_FC(self, inference_data: Any, user_message: Any) -> Any:
        inference_data["message"].extend(user_message)
        return inference_data

    def _add_assistant_message_FC(self, inference_data: Any, model_response_data: Any) -> Any:
        inference_data["message"].append(model_response_data["message"])
        return inference_data

    def _add_execution_results_FC(
        self, inference_data: Any, execution_results: Any, model_response_data: Any
    ) -> Any:
        names = [name for call in model_response_data["model_responses"] for name in call]
        for index, (name, content) in enumerate(zip(names, execution_results, strict=True)):
            message = {"role": "tool", "name": name, "content": content}
            if self._native_calls:
                message["tool_call_id"] = f"call{index:05}"
            inference_data["message"].append(message)
        return inference_data

    # -- with tools in the text --

    def _pre_query_processing_prompting(self, test_entry: Any) -> Any:
        functions = list(test_entry["function"])
        test_entry["question"][0] = system_prompt_pre_processing_chat_model(
            test_entry["question"][0], functions, test_entry["id"]
        )
        for later in test_entry.get("missed_function", {}).values():
            functions.extend(later)
        tools = convert_to_tool(functions, GORILLA_TO_OPENAPI, self.model_style)
        for tool, function in zip(tools, functions, strict=True):
            tool["function"]["name"] = function["name"]  # the text has them with dots
        return {"message": [], "tools": tools}

    def _query_prompting(self, inference_data: Any) -> Any:
        return self._query(inference_data)

    def _parse_query_response_prompting(self, api_response: Any) -> Any:
        return self._parse(*api_response)

    def add_first_turn_message_prompting(self, inference_data: Any, first_turn_message: Any) -> Any:
        inference_data["message"].extend(first_turn_message)
        return inference_data

    def _add_next_turn_user_message_prompting(self, inference_data: Any, user_message: Any) -> Any:
        inference_data["message"].extend(user_message)
        return inference_data

    def _add_assistant_message_prompting(
        self, inference_data: Any, model_response_data: Any
    ) -> Any:
        inference_data["message"].append(model_response_data["message"])
        return inference_data

    def _add_execution_results_prompting(
        self, inference_data: Any, execution_results: Any, model_response_data: Any
    ) -> Any:
        content = format_execution_results_prompting(
            inference_data, execution_results, model_response_data
        )
        inference_data["message"].append({"role": "user", "content": content})
        return inference_data

    # -- both --

    def _query(self, inference_data: Any) -> Any:
        begun = time.monotonic()
        assert self._respond is not None, "this handler only decodes"
        tools = inference_data["tools"]
        reply = self._respond(inference_data["message"], tools, self.is_fc_model)
        return (reply, tools), time.monotonic() - begun

    def _parse(self, reply: Reply, tools: Tools) -> dict[str, Any]:
        result, kind = self.read(reply, tools)
        self.replies.append((reply, kind))
        message: dict[str, Any] = {"role": "assistant", "content": reply.raw}
        if kind == "calls" and self.is_fc_model and self._native_calls:
            text, calls = split_tool_calls(reply.raw, tools)
            message["content"] = text
            message["tool_calls"] = [
                {"id": f"call{index:05}", "type": "function", "function": call}
                for index, call in enumerate(calls)
            ]
        return {
            "model_responses": result,
            "message": message,
            "input_token": reply.prompt_tokens,
            "output_token": reply.new_tokens,
        }


def _calls(result: Any) -> list[dict[str, str]]:
    if not isinstance(result, list):
        raise ValueError(f"no call: {str(result)[:100]}")
    return result


def render_safely(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as BFCL executes it: by eval(), which must reach functions of the benchmark only."""
    name = name.replace(".", "_").replace("-", "_")
    if hasattr(builtins, name) or name in vars(multi_turn_utils):
        name += "_"  # is not defined, which the model is told
    plain = [f"{key}={value!r}" for key, value in arguments.items() if key.isidentifier()]
    other = {key: value for key, value in arguments.items() if not key.isidentifier()}
    return f"{name}({', '.join([*plain, *([f'**{other!r}'] if other else [])])})"


def forget_instances() -> None:
    """Remove the objects that entries act on: bfcl-eval keeps them for as long as it is loaded."""
    for name in [name for name in vars(multi_turn_utils) if name.endswith("_instance")]:
        delattr(multi_turn_utils, name)
