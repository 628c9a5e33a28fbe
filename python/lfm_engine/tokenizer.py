"""Loading tokenizers: from a folder, a hub id or a `.gguf` file.

What `AutoTokenizer.from_pretrained` returns has the Hugging Face interface; a `transformers`
tokenizer works in its place everywhere in this package.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import tokenizers

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
        """Load the tokenizer of a hub id, a folder or a `.gguf` file.

        Args:
            pretrained_model_name_or_path: a folder with tokenizer.json, a `.gguf` file, or a hub
                id.
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
        if path.is_dir():
            tokenizer = _load_folder(path)
        else:
            from .gguf_tokenizer import load_gguf_tokenizer

            tokenizer = load_gguf_tokenizer(path)
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


def _load_folder(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a tokenizer needs it")
    try:
        backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{file}: not a tokenizer: {error}") from error
    config = _read_json(folder / "tokenizer_config.json")
    named = {**_read_json(folder / "special_tokens_map.json"), **config}
    special: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        token = read_added_token(named.get(name))
        if token is not None:
            special[name] = token.content
        config.pop(name, None)
    template = _read_templates(folder, config.pop("chat_template", None))
    return Tokenizer(backend, special_tokens=special, chat_template=template, config=config)


def _read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} when there is no such file."""
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_templates(folder: Path, configured: Any) -> str | dict[str, str] | None:
    """Collect the chat templates; files win over tokenizer_config.json."""
    files = {
        file.stem: file
        for name in TEMPLATE_FOLDERS
        for file in sorted((folder / name).glob("*.jinja"))
    }
    if (folder / TEMPLATE_FILE).exists():
        files["default"] = folder / TEMPLATE_FILE
    if files:
        sources = {name: file.read_text(encoding="utf-8") for name, file in files.items()}
        return sources["default"] if list(sources) == ["default"] else sources
    if configured is None or isinstance(configured, str):
        return configured
    try:
        named = {str(entry["name"]): str(entry["template"]) for entry in configured}
    except (TypeError, KeyError):
        where = folder / "tokenizer_config.json"
        raise ValueError(
            f"{where}: chat_template must be a string or a list of named templates"
        ) from None
    return named
