"""Benchmarks on any model that the engine loads: IFEval, IFBench, BFCL, and lm-eval's tasks.

What they need beyond the engine is installed by `pip install 'lfm-engine[eval]'`; BFCL wants one
more command, which its first error names.
"""

from .bfcl import run_bfcl
from .compare import compare_reports
from .extras import MissingExtraError
from .instructions import run_instructions, score_responses

__all__ = [
    "MissingExtraError",
    "compare_reports",
    "run_bfcl",
    "run_instructions",
    "score_responses",
]
