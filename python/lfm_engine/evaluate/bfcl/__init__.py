"""BFCL, the Berkeley function calling leaderboard, with an in-process handler.

Prompts, checkers and score files are those of the package bfcl-eval. `package` imports that, and
must do so before `handler` is imported.
"""

from .run import run_bfcl

__all__ = ["run_bfcl"]
