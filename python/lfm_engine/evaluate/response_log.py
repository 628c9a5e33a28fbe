"""Responses on disk: a JSONL that grows by one line with each, and that a later run goes on with.

The first line holds the settings of the run. Only a run with the same settings may go on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .data import Key

_FORMAT = 1


class ResponseLog:
    """The responses of one run; a context manager.

    Args:
        path: the file, made if it is missing, as are its folders. A last line that was only half
            written, since the run was killed or the disk was full, is removed.
        settings: what must not change between the runs that write into it.

    Attributes:
        records: by key, what is there.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is of another run (the message says what differs), it is damaged, or another
            process is writing into it.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.records: dict[Key, dict[str, Any]] = {}
        self._settings = json.loads(json.dumps(settings))  # as it will be read back
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open(self.path, "ab+", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ResponseLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was appended is in it already."""
        self._file.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one response, `{"key": ..., ...}`, at once.

        Raises:
            OSError: it cannot be written. Those before are kept, and the run can be repeated.
        """
        try:
            self._write(record)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.path}: {error.strerror}; {len(self.records)} responses are kept: the same "
                "command goes on from there",
            ) from error
        self.records[record["key"]] = dict(record)

    def _write(self, value: Mapping[str, Any]) -> None:
        line = (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            while written is not None and written < len(line):  # no room, or a signal
                line = line[written:]
                written = self._file.write(line)
        except OSError:
            # A line must not stay half written: others would follow it.
            os.ftruncate(self._file.fileno(), end)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{self.path}: another process is writing into it") from None
        except OSError:  # a file system without locks
            return

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            print(f"{self.path}: removed a last line that was cut off", file=sys.stderr)
            os.ftruncate(self._file.fileno(), whole)
        lines = content[:whole].split(b"\n")[:-1]
        if not lines:
            self._write({"lfm_engine_eval": _FORMAT, "settings": self._settings})
            return
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("not a JSON object")
                if number == 1:
                    self._check_settings(value)
                else:
                    self.records[value["key"]] = value
            except _OtherRunError:
                raise
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: not a response ({error}); remove this line to "
                    "make it anew"
                ) from None

    def _check_settings(self, header: Mapping[str, Any]) -> None:
        there = header.get("settings")
        if header.get("lfm_engine_eval") != _FORMAT or not isinstance(there, dict):
            raise _OtherRunError(f"{self.path}: exists and holds no responses of this program")
        differences = [
            f"{name} {there.get(name)!r}, now {self._settings.get(name)!r}"
            for name in dict.fromkeys([*there, *self._settings])
            if there.get(name) != self._settings.get(name)
        ]
        if differences:
            raise _OtherRunError(
                f"{self.path}: holds responses of another run ({'; '.join(differences)}): choose "
                "another folder, or remove the file"
            )


class _OtherRunError(ValueError):
    """The file is not this run's."""


def run_settings(
    benchmark: str, model: Any, model_name: str | None, template: str, generation: dict[str, Any]
) -> dict[str, Any]:
    """What every run's responses depend on: the model's weights and types, template, options."""
    return {
        "benchmark": benchmark,
        "model": model_name,
        "weights": f"{model.core.fingerprint():016x}",
        "dtype": model.dtype,
        "kv_dtype": model.kv_dtype,
        "chat_template": digest(template),
        "generation": generation,
    }


def digest(text: str) -> str:
    """Return 16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def save_json(value: Any, path: Path) -> None:
    """Write a JSON file; an old one is replaced when the new one is complete.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    try:
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        new.write_text(text, encoding="utf-8", errors="surrogatepass")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
