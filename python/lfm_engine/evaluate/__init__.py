"""Benchmarks on any model that the engine loads: IFEval, IFBench, BFCL, and lm-eval's tasks.

What they need beyond the engine is installed by `pip install 'lfm-engine[eval]'`.
"""

from .extras import MissingExtraError
from .instructions import run_instructions, score_responses

__all__ = ["MissingExtraError", "run_instructions", "score_responses"]
