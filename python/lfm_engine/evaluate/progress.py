"""The progress bar of a run."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Counts responses and tokens; a context manager.

    Args:
        name: what is shown before the bar.
        total: responses in all.
        done: of them there already.
        show: None for terminals only.
    """

    def __init__(self, name: str, total: int, done: int, show: bool | None) -> None:
        self._bar: Any = None
        self._tokens = 0
        self._begun = time.monotonic()
        if show if show is not None else sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=name, unit="response")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, tokens: int) -> None:
        """One more response, of so many new tokens."""
        self._tokens += tokens
        if self._bar is not None:
            speed = self._tokens / max(time.monotonic() - self._begun, 1e-9)
            self._bar.set_postfix_str(f"{speed:.0f} tokens/s", refresh=False)
            self._bar.update()
