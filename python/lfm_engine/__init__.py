"""lfm-engine: native inference for Liquid AI's LFM2 family of hybrid language models."""

from ._core import __version__
from .auto_model import AutoModelForCausalLM
from .chat import ChatOutput, ToolRun
from .constraint import Constraint
from .engine import Engine, Request
from .generation import GenerationConfig
from .model import CausalLM, CausalLMOutput, GenerateOutput
from .session import Session
from .streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
from .tokenizer import AutoTokenizer
from .tool_calls import ToolCallError, parse_tool_calls, render_tool_calls, split_tool_calls

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BaseStreamer",
    "CausalLM",
    "CausalLMOutput",
    "ChatOutput",
    "Constraint",
    "Engine",
    "GenerateOutput",
    "GenerationConfig",
    "Request",
    "Session",
    "TextIteratorStreamer",
    "TextStreamer",
    "ToolCallError",
    "ToolRun",
    "__version__",
    "parse_tool_calls",
    "render_tool_calls",
    "split_tool_calls",
]
