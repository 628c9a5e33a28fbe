"""Finding a checkpoint: folders, files, hub ids in a cache; never with the network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from lfm_engine.checkpoint import WEIGHT_PATTERNS, open_checkpoint
from lfm_engine.checkpoint.hub import resolve

BASE = Path(__file__).parent / "goldens" / "lfm2-base"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def find(text: str | Path, **options: Any) -> Path:
    return resolve(text, allow_patterns=WEIGHT_PATTERNS, **options)


def cached(cache: Path, repo_id: str, *files: Path) -> Path:
    """Puts files into a hub cache as if they had been downloaded; the snapshot's folder."""
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(REVISION)
    for file in files:
        shutil.copy(file, snapshot / file.name)
    return snapshot


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model-Q8_0.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    return path


def test_local_folders_and_files_win(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(BASE) == BASE
    assert find(str(BASE)) == BASE
    assert find(gguf) == gguf
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert find("org/name") == Path("org/name")
    renamed = gguf.rename(tmp_path / "blob")  # as the hub's cache names its files
    assert find(renamed) == renamed


def test_a_folder_of_gguf_files(gguf: Path, tmp_path: Path) -> None:
    assert find(tmp_path) == gguf
    assert find(tmp_path, gguf_file=gguf.name) == gguf
    shutil.copy(gguf, tmp_path / "mmproj-model.gguf")  # a vision part is no model
    assert find(tmp_path) == gguf
    shutil.copy(gguf, tmp_path / "model-F16.gguf")
    with pytest.raises(ValueError, match=r"gguf_file=: model-F16\.gguf, model-Q8_0\.gguf"):
        find(tmp_path)
    assert find(tmp_path, gguf_file="model-F16.gguf") == tmp_path / "model-F16.gguf"
    with pytest.raises(OSError, match=r"no file 'other\.gguf'"):
        find(tmp_path, gguf_file="other.gguf")
    shutil.copy(BASE / "model.safetensors", tmp_path)  # safetensors go first
    assert find(tmp_path) == tmp_path


@pytest.mark.parametrize("text", ["./nothing", "/nothing/here", "../x", "~/nothing", "m.gguf"])
def test_paths_that_are_not_there(text: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find(text)


@pytest.mark.parametrize("text", ["name", "a/b/c", "org/name:file.bin", "-org/name"])
def test_neither_a_path_nor_an_id(text: str) -> None:
    with pytest.raises(FileNotFoundError, match="a hub id has the form org/name"):
        find(text)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the folder"):
        find(BASE / "model.safetensors")
    with pytest.raises(ValueError, match="empty"):
        find("")
    with pytest.raises(ValueError, match="is a file"):
        find(BASE / "config.json", gguf_file="a.gguf")


def test_a_repository_in_the_cache(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, "org/name", *BASE.iterdir())
    options: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    assert find("org/name", **options) == snapshot
    with open_checkpoint("org/name", **options) as checkpoint:
        assert checkpoint.config.vocab_size == 131
    with pytest.raises(OSError, match="'org/other': not in the local cache") as caught:
        find("org/other", **options)
    assert "\n" not in str(caught.value)


def test_a_gguf_repository_in_the_cache(gguf: Path, tmp_path: Path) -> None:
    snapshot = cached(tmp_path, "org/name", gguf)
    options: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    assert find("org/name", **options) == snapshot / gguf.name
    assert find(f"org/name:{gguf.name}", **options) == snapshot / gguf.name
    with pytest.raises(OSError, match=r"org/name: there is no file 'x\.gguf' in the local cache"):
        find("org/name:x.gguf", **options)
    shutil.copy(gguf, snapshot / "b.gguf")
    with pytest.raises(ValueError, match=r"repository org/name .* b\.gguf, model-Q8_0\.gguf"):
        find("org/name", **options)


def hub_error(name: str) -> Exception:
    """A huggingface_hub exception without the HTTP response that its constructor wants."""
    kind = getattr(huggingface_hub.errors, name)
    error: Exception = kind.__new__(kind)
    return error


ERRORS: list[tuple[Callable[[], Exception], str]] = [
    (lambda: hub_error("LocalEntryNotFoundError"), "no network connection"),
    (lambda: hub_error("OfflineModeIsEnabled"), "offline mode is on"),
    (lambda: hub_error("GatedRepoError"), "access is restricted"),
    (lambda: hub_error("RepositoryNotFoundError"), "no such repository"),
    (lambda: hub_error("RevisionNotFoundError"), "no revision 'v9'"),
    (lambda: ConnectionError("refused\nmany\nlines"), "'org/name': refused$"),
    (lambda: OSError(), "'org/name': OSError$"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors_are_one_line_and_name_the_id(
    make: Callable[[], Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise make()

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(OSError, match=message) as caught:
        find("org/name", revision="v9")
    assert "'org/name'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_repository_is_asked_for_gguf_files(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online, a repository without safetensors is listed, and its one .gguf file downloaded."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    asked: list[list[str]] = []

    def download(repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        assert (repo_id, options["token"], options["revision"]) == ("org/name", "secret", None)
        asked.append(allow_patterns)
        if gguf.name in allow_patterns:
            shutil.copy(gguf, folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: ["README.md", gguf.name]
    )
    assert find("org/name", token="secret") == folder / gguf.name
    assert asked == [[*WEIGHT_PATTERNS, "config.json"], [gguf.name]]
