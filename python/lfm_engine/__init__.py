"""lfm-engine: native inference for Liquid AI's LFM2 family of hybrid language models."""

from ._core import __version__
from .generation import GenerationConfig
from .model import AutoModelForCausalLM, CausalLM, CausalLMOutput, GenerateOutput
from .streamers import BaseStreamer, TextIteratorStreamer, TextStreamer
from .tokenizer import AutoTokenizer

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
    "__version__",
]
