"""lfm-engine: native inference for Liquid AI's LFM2 family of hybrid language models."""

from ._core import __version__
from .generation import GenerationConfig
from .model import AutoModelForCausalLM, CausalLM, CausalLMOutput, GenerateOutput
from .streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
from .tokenizer import AutoTokenizer
from .tool_calls import ToolCallError, parse_tool_calls, render_tool_calls, split_tool_calls

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BaseStreamer",
    "CausalLM",
    "CausalLMOutput",
    "GenerateOutput",
    "GenerationConfig",
    "TextIteratorStreamer",
    "TextStreamer",
    "ToolCallError",
    "__version__",
    "parse_tool_calls",
    "render_tool_calls",
    "split_tool_calls",
]
