"""Where a checkpoint lies: a local folder, a .gguf or .lfm file, or a model id on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from .packed import PACKED_SUFFIX, is_packed

# The miniature model that is part of the package; tools/demo_model makes it.
DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo"

# org/name, optionally with the file to take: org/name:model-Q8_0.gguf
_HUB_ID = re.compile(
    r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<file>[^:]+\.(gguf|lfm)))?"
)


def resolve(
    path_or_id: str | os.PathLike[str],
    *,
    allow_patterns: Sequence[str],
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    gguf_file: str | None = None,
) -> Path:
    """The local folder or file (.gguf, .lfm) that `path_or_id` means, downloaded if need be.

    "demo" is the miniature in this package; otherwise what exists locally wins. A hub id
    ("org/name", or "org/name:file.gguf") goes through huggingface_hub: its cache, HF_HUB_OFFLINE,
    tokens and progress bars apply. A folder or repository without files that match
    `allow_patterns` but with one .gguf file is that file.

    Args:
        allow_patterns: the files that the caller needs, as shell patterns ("*.safetensors").
        revision: branch, tag or commit of the repository.
        cache_dir: instead of huggingface_hub's default.
        local_files_only: never use the network.
        token: as in huggingface_hub.
        gguf_file: name of the .gguf file to take from the folder or repository.

    Raises:
        OSError: nothing there, no network, no access; one line that names what was asked for.
        ValueError: several .gguf files to choose from, or not a kind of file that can be read.
    """
    text = os.fspath(path_or_id)
    if not text:
        raise ValueError("the model path or hub id is empty")
    local = Path(text).expanduser()
    # A folder of this name is taken only if it holds a model.
    if text == DEMO and not local.is_file() and not (local / "config.json").exists():
        local = DEMO_FOLDER
    if local.exists():
        return _local(local, allow_patterns, gguf_file)
    match = _HUB_ID.fullmatch(text)
    if match is None or _looks_like_path(text):
        hint = "" if _looks_like_path(text) else "; a hub id has the form org/name"
        raise FileNotFoundError(f"no such file or folder: {text!r}{hint}")
    hub = _Hub(match["id"], revision, cache_dir, local_files_only, token)
    return hub.resolve(allow_patterns, gguf_file or match["file"])


def _looks_like_path(text: str) -> bool:
    if text.startswith((".", "/", "~", os.sep)) or "\\" in text:
        return True
    return text.endswith((".gguf", PACKED_SUFFIX, ".safetensors", ".bin")) and ":" not in text


def _local(path: Path, allow_patterns: Sequence[str], gguf_file: str | None) -> Path:
    if path.is_file():
        if gguf_file is not None and gguf_file != path.name:
            raise ValueError(
                f"{path} is a file, so gguf_file={gguf_file!r} cannot be taken from it"
            )
        with open(path, "rb") as file:
            known = path.suffix.lower() in (".gguf", PACKED_SUFFIX) or file.read(4) == b"GGUF"
        if not known and not is_packed(path):
            raise ValueError(
                f"{path}: neither a folder nor a .gguf or {PACKED_SUFFIX} file (for safetensors, "
                "give the folder)"
            )
        return path
    if gguf_file is not None:
        chosen = path / gguf_file
        if not chosen.is_file():
            raise FileNotFoundError(f"there is no file {gguf_file!r} in {path}")
        return chosen
    if not _satisfied(path, allow_patterns):
        name = _only_gguf(_gguf_names(path), str(path))
        if name is not None:
            return path / name
    return path


def _satisfied(folder: Path, allow_patterns: Sequence[str]) -> bool:
    """Whether the folder has what the caller needs; configurations alone do not count."""
    return any(
        fnmatch(file.name, pattern) and not file.name.endswith("config.json")
        for file in folder.iterdir()
        for pattern in allow_patterns
    )


def _gguf_names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*.gguf")]


def _only_gguf(found: Sequence[str], where: str) -> str | None:
    """The only model among .gguf files; None without any; ValueError listing several."""
    models = sorted(name for name in found if not Path(name).name.startswith("mmproj"))
    if len(models) > 1:
        raise ValueError(
            f"{where} holds several .gguf files; choose one with gguf_file=: {', '.join(models)}"
        )
    return models[0] if models else None


class _Hub:
    """One repository, with the options that every call to huggingface_hub needs."""

    def __init__(
        self,
        repo_id: str,
        revision: str | None,
        cache_dir: str | os.PathLike[str] | None,
        local_files_only: bool,
        token: str | bool | None,
    ) -> None:
        self.repo_id = repo_id
        self.revision = revision
        self.cache_dir = cache_dir
        self.local_files_only = local_files_only
        self.token = token

    def resolve(self, allow_patterns: Sequence[str], gguf_file: str | None) -> Path:
        if gguf_file is not None:
            return self._file(gguf_file)
        folder = self._snapshot([*allow_patterns, "config.json"])
        if _satisfied(folder, allow_patterns):
            return folder
        name = _only_gguf(self._gguf_names(folder), f"the repository {self.repo_id}")
        return folder if name is None else self._file(name)

    def _file(self, name: str) -> Path:
        path = self._snapshot([name]) / name
        if not path.is_file():
            where = "in the local cache" if self.local_files_only else "in the repository"
            raise FileNotFoundError(f"{self.repo_id}: there is no file {name!r} {where}")
        return path

    def _snapshot(self, patterns: Sequence[str]) -> Path:
        from huggingface_hub import (
            snapshot_download,
        )  # imported late: slow, and local use needs none

        try:
            return Path(
                snapshot_download(
                    self.repo_id,
                    revision=self.revision,
                    cache_dir=None if self.cache_dir is None else Path(self.cache_dir),
                    local_files_only=self.local_files_only,
                    token=self.token,
                    allow_patterns=list(patterns),
                )
            )
        except Exception as error:
            raise self._error(error) from error

    def _gguf_names(self, folder: Path) -> list[str]:
        """The repository's .gguf files; those in the cache when there is no network."""
        from huggingface_hub import HfApi, constants

        if self.local_files_only or constants.HF_HUB_OFFLINE:
            return _gguf_names(folder)
        try:
            files = HfApi(token=self.token).list_repo_files(self.repo_id, revision=self.revision)
        except Exception as error:
            cached = _gguf_names(folder)
            if cached:
                return cached
            raise self._error(error) from error
        return [name for name in files if name.endswith(".gguf")]

    def _error(self, error: Exception) -> OSError:
        """What went wrong, in one line for people."""
        from huggingface_hub import errors

        subject = f"cannot load {self.repo_id!r}"
        if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
            if self.local_files_only or isinstance(error, errors.OfflineModeIsEnabled):
                return OSError(f"{subject}: not in the local cache, and offline mode is on")
            from huggingface_hub import constants

            if constants.HF_HUB_OFFLINE:
                return OSError(f"{subject}: not in the local cache, and HF_HUB_OFFLINE is set")
            return OSError(f"{subject}: no network connection to the hub, and not in the cache")
        if isinstance(error, errors.GatedRepoError):
            return OSError(f"{subject}: access is restricted; request it on the hub and log in")
        if isinstance(error, errors.RepositoryNotFoundError):
            return OSError(
                f"{subject}: no local folder of that name, and no such repository on the hub (or a "
                "private one, which needs a token)"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return OSError(f"{subject}: there is no revision {self.revision!r}")
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        return OSError(f"{subject}: {reason}")
