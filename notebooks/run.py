"""Executes the notebooks and saves them with their outputs and plots.

    python notebooks/run.py [--model MODEL] [NOTEBOOK ...]

Needs nbclient, ipykernel and matplotlib, which the extra `dev` installs.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image  # matplotlib needs it too

FOLDER = Path(__file__).resolve().parent
MOST_BYTES = 400_000


def execute(path: Path, model: str | None = None, timeout: int = 300) -> Any:
    """The notebook, executed in its folder; an error in a cell raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    if model is not None:
        os.environ["LFM_ENGINE_NOTEBOOK_MODEL"] = model  # the kernel inherits it
    NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    return notebook


def _smaller(png: str) -> str:
    """The same picture in 256 colors, which is what plots have."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        out = io.BytesIO()
        image.convert("RGB").quantize(256).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def clean(notebook: Any) -> None:
    """Drops what differs from run to run and tells a reader nothing."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            # Progress bars and the like.
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = _smaller(output.data["image/png"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument("--model", help="hub id, folder or file; by default what they say")
    options = parser.parse_args()
    for path in options.notebooks or sorted(FOLDER.glob("*.ipynb")):
        notebook = execute(path.resolve(), options.model)
        clean(notebook)
        nbformat.write(notebook, path)
        size = path.stat().st_size
        print(f"{path.name}: {size // 1000} kB")
        if size > MOST_BYTES:
            raise SystemExit(f"{path.name} has {size} bytes, more than {MOST_BYTES}")


if __name__ == "__main__":
    main()
