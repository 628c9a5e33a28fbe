"""Packages and data that evaluation needs beyond the engine: found, or named when missing."""

from __future__ import annotations

import contextlib
import importlib
import io
import socket
from collections.abc import Iterator
from importlib import metadata
from typing import Any

EXTRA = "pip install 'lfm-engine[eval]'"
NLTK_WHEEL = "llama-index-core==0.14.25"
_NLTK_FOLDER = "llama_index/core/_static/nltk_cache"


class MissingExtraError(ImportError):
    """A package, or data of one, is not installed; the message has the command that installs it."""


def require(module: str, purpose: str, command: str = EXTRA) -> Any:
    """Import a module.

    Raises:
        MissingExtraError: it, or something that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingExtraError(
            f"{purpose} needs the package {missing.partition('.')[0]} ({error}): {command}"
        ) from error


def version(distribution: str) -> str:
    """Name and version of an installed distribution."""
    return f"{distribution} {metadata.version(distribution)}"


def find_nltk_data() -> None:
    """Make nltk find `punkt_tab`, which the checkers of IFEval and IFBench want when imported.

    Looked for are nltk's own folders, the wheel of llama-index-core, and at last the network.

    Raises:
        MissingExtraError: it is nowhere.
    """
    nltk = require("nltk", "the checkers of IFEval and IFBench")

    def found() -> bool:
        try:
            nltk.data.find("tokenizers/punkt_tab")
        except LookupError:
            return False
        return True

    if found():
        return
    with contextlib.suppress(metadata.PackageNotFoundError):
        wheel = metadata.distribution(NLTK_WHEEL.partition("=")[0])
        nltk.data.path.append(str(wheel.locate_file(_NLTK_FOLDER)))
        if found():
            return
    with quiet_downloads():
        nltk.download("punkt_tab")
    if not found():
        raise MissingExtraError(
            "the checkers of IFEval and IFBench need nltk's data punkt_tab: python -m "
            f"nltk.downloader punkt_tab; without a network: pip install --no-deps {NLTK_WHEEL}, "
            "whose wheel holds it"
        )


@contextlib.contextmanager
def quiet_downloads() -> Iterator[None]:
    """Within this, nltk's downloads that cannot be fail silently, and after seconds."""
    nltk = require("nltk", "the checkers of IFEval and IFBench")
    download, timeout = nltk.download, socket.getdefaulttimeout()

    def silent(name: str, quiet: bool = True) -> bool:
        return bool(download(name, quiet=quiet, print_error_to=io.StringIO()))

    nltk.download = silent
    socket.setdefaulttimeout(10)
    try:
        yield
    finally:
        nltk.download = download
        socket.setdefaulttimeout(timeout)
