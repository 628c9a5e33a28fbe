"""Writes python/lfm_engine/_core.pyi from the built module, or checks that it is up to date.

    python tests/make_stubs.py            write it
    python tests/make_stubs.py --check    exit 1 and show the difference if it is not up to date

Needs the `dev` extra, whose versions are pinned since each one spells types in its own way.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUB = ROOT / "python" / "lfm_engine" / "_core.pyi"
# What C++ signatures cannot say and mypy --strict wants to know.
REPLACED = {"-> dict:": "-> dict[str, typing.Any]:"}


def generate() -> str:
    """The stub of the module that `import lfm_engine` finds, in the project's format."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", "--exit-code", "-o", folder]
        subprocess.run([*command, "lfm_engine._core"], check=True)
        text = (Path(folder) / "lfm_engine" / "_core.pyi").read_text(encoding="utf-8")
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    for step in (["check", "--fix", "--quiet", "--select", "I"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *step, "--stdin-filename", str(STUB), "-"]
        done = subprocess.run(command, check=True, input=text, capture_output=True, text=True)
        text = done.stdout
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if different")
    options = parser.parse_args()
    new = generate()
    old = STUB.read_text(encoding="utf-8") if STUB.exists() else ""
    if not options.check:
        STUB.write_text(new, encoding="utf-8")
        return 0
    if new == old:
        return 0
    diff = difflib.unified_diff(
        old.splitlines(True), new.splitlines(True), "committed _core.pyi", "generated _core.pyi"
    )
    sys.stdout.writelines(diff)
    print("_core.pyi is not up to date: run python tests/make_stubs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
