"""Loading tokenizers: from a folder, a hub id, a `.gguf` or a packed file.

What `AutoTokenizer.from_pretrained` returns has the Hugging Face interface; a `transformers`
tokenizer works in its place everywhere in this package.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import tokenizers

from . import _core
from .encoding import BatchEncoding
from .tokenizer_base import (
    TEMPLATE_FILE,
    TEMPLATE_FOLDERS,
    Tokenizer,
    read_added_token,
)

__all__ = ["AutoTokenizer", "BatchEncoding", "Tokenizer"]

_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    TEMPLATE_FILE,
    *(f"{folder}/*.jinja" for folder in TEMPLATE_FOLDERS),
)


class AutoTokenizer:
    """Loads the tokenizer of a checkpoint."""

    def __init__(self) -> None:
        raise TypeError("use AutoTokenizer.from_pretrained(path)")

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        gguf_file: str | None = None,
        padding_side: str = "left",
        chat_template: str | None = None,
        **hub_options: Any,
    ) -> Tokenizer:
        """Load the tokenizer of a hub id, a folder, a `.gguf` or a packed file.

        Args:
            pretrained_model_name_or_path: a folder with tokenizer.json, a `.gguf` file, a packed
                file (`CausalLM.save_packed`), or a hub id.
            gguf_file: the name of a `.gguf` file in the folder or hub repository.
            padding_side: "left", which generation needs, or "right".
            chat_template: used in place of the checkpoint's own.
            hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, for a hub id.

        Raises:
            OSError: a file is missing or cannot be read, or the hub cannot be reached.
            ValueError: a file is malformed, or describes a tokenizer that is not supported.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f'padding_side must be "left" or "right", not {padding_side!r}')
        for ignored in ("use_fast", "trust_remote_code", "legacy"):
            hub_options.pop(ignored, None)
        path = Path(pretrained_model_name_or_path).expanduser()
        if gguf_file or hub_options or not (path / "tokenizer.json").is_file():
            source = os.fspath(pretrained_model_name_or_path)
            path = _locate(source, gguf_file=gguf_file, **hub_options)
        tokenizer = _load(path)
        _core.release_free_memory()  # reading took much more than the tokenizer keeps
        tokenizer.name_or_path = os.fspath(pretrained_model_name_or_path)
        tokenizer.padding_side = padding_side
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        return tokenizer


def _locate(source: str, **options: Any) -> Path:
    from .checkpoint.hub import resolve

    path = Path(resolve(source, allow_patterns=_FILES, **options))
    if path.is_dir() and not (path / "tokenizer.json").exists():
        # Templates alone do not make a tokenizer: a .gguf file beside them may hold it.
        path = Path(resolve(source, allow_patterns=["tokenizer.json"], **options))
    return path


def _load(path: Path) -> Tokenizer:
    if path.is_dir():
        return _from_files(_folder_files(path), f"{path}{os.sep}")
    from .checkpoint.packed import PACKED_SUFFIX, PackedCheckpoint, is_packed

    if path.suffix.lower() == PACKED_SUFFIX or is_packed(path):
        with closing(PackedCheckpoint(path)) as checkpoint:
            return _from_files({n: checkpoint.read_file(n) for n in checkpoint.files}, f"{path}: ")
    from .gguf_tokenizer import load_gguf_tokenizer

    return load_gguf_tokenizer(path)


def _folder_files(folder: Path) -> dict[str, bytes]:
    """The contents of a folder's tokenizer files, by their names with forward slashes."""
    found = [file for pattern in _FILES for file in sorted(folder.glob(pattern))]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """The files that hold a tokenizer, ours or one of transformers, in a form that loads quickly.

    Raises:
        ValueError: it has no tokenizer.json.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = _folder_files(Path(folder))
    if "tokenizer.json" not in files:
        raise ValueError(f"{type(tokenizer).__name__} does not save a tokenizer.json")
    return {**files, "tokenizer.json": _quick(files["tokenizer.json"])}


def _quick(content: bytes) -> bytes:
    """A tokenizer.json that the library reads in about half the time and memory.

    It holds the vocabulary in a search tree first: tokens in order are the quickest to insert. In
    the older of its two spellings of merges a pair is one string, not a list of two.
    """
    options = json.loads(content)
    model = options["model"]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda item: item[0].encode()))
    merges = model.get("merges")
    if isinstance(merges, list) and all(isinstance(pair, list) for pair in merges):
        model["merges"] = [" ".join(pair) for pair in merges]
    quick = json.dumps(options, ensure_ascii=False, separators=(",", ":")).encode()
    # A token with a space in it is cut in the wrong place.
    with suppress(ValueError):
        if _backend(quick, "").to_str() == _backend(content, "").to_str():
            return quick
    return content


def _backend(content: bytes, label: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{label}: not a tokenizer: {error}") from error


def _from_files(files: Mapping[str, bytes], prefix: str) -> Tokenizer:
    """Build a tokenizer from the contents of its files; `prefix` + name is for messages."""
    if "tokenizer.json" not in files:
        raise FileNotFoundError(f"{prefix}tokenizer.json: no such file; a tokenizer needs it")
    backend = _backend(files["tokenizer.json"], f"{prefix}tokenizer.json")
    config = _object(files, "tokenizer_config.json", prefix)
    named = {**_object(files, "special_tokens_map.json", prefix), **config}
    special: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        token = read_added_token(named.get(name))
        if token is not None:
            special[name] = token.content
        config.pop(name, None)
    template = _templates(files, config.pop("chat_template", None), prefix)
    return Tokenizer(backend, special_tokens=special, chat_template=template, config=config)


def _object(files: Mapping[str, bytes], name: str, prefix: str) -> dict[str, Any]:
    """Return the object in a JSON file, {} when there is no such file."""
    if name not in files:
        return {}
    try:
        content = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{prefix}{name}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{prefix}{name}: expected a JSON object, found {type(content).__name__}")
    return content


def _templates(
    files: Mapping[str, bytes], configured: Any, prefix: str
) -> str | dict[str, str] | None:
    """Collect the chat templates; files win over tokenizer_config.json."""
    sources = {}
    for folder in TEMPLATE_FOLDERS:
        for name in files:
            if fnmatch(name, f"{folder}/*.jinja"):
                sources[Path(name).stem] = _text(files, name, prefix)
    if TEMPLATE_FILE in files:
        sources["default"] = _text(files, TEMPLATE_FILE, prefix)
    if sources:
        return sources["default"] if list(sources) == ["default"] else sources
    if configured is None or isinstance(configured, str):
        return configured
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in configured}
    except (TypeError, KeyError):
        raise ValueError(
            f"{prefix}tokenizer_config.json: chat_template must be a string or a list of named "
            "templates"
        ) from None


def _text(files: Mapping[str, bytes], name: str, prefix: str) -> str:
    try:
        return files[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{prefix}{name}: not UTF-8: {error}") from error
