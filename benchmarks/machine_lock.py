"""Taking turns with others who measure on the same machine."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path


class MachineLock:
    """A lock file (as flock(1)'s) that is held while measuring; None: nothing is locked.

    It is given back between two measurements once it was held for `slice_s` seconds: others who
    measure on this machine get their turn, and never at the same time.
    """

    def __init__(self, path: Path | None, slice_s: float = 20.0) -> None:
        self._file = path.open("a") if path else None
        self._slice_s = slice_s
        self._since: float | None = None

    def __enter__(self) -> None:
        if self._file and self._since is None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._since is not None and time.monotonic() - self._since > self._slice_s:
            self.release()

    def release(self) -> None:
        """Give it back now."""
        if self._file and self._since is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._since = None
            time.sleep(0.1)  # or the next __enter__ may overtake those who wait
