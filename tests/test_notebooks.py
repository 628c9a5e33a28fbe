"""Each notebook runs from top to bottom on a small model, and is saved with its outputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import golden_models
import lfm_engine
import tiny_tokenizer

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
DEMO = Path(lfm_engine.__file__).parent / "demo"
NEEDS = ("nbclient", "ipykernel", "matplotlib")
EVALUATION = "04_evaluation"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "evals"


def skip_without(*modules: str) -> None:
    for name in modules:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The miniature in the package, or a random hybrid of its size with a tokenizer."""
    if (DEMO / "model.safetensors").exists():
        return "demo"
    folder = golden_models.random_model(
        tmp_path_factory.mktemp("notebooks") / "model",
        vocab_size=300,
        eos_token_id=2,
        max_position_embeddings=4_096,
    )
    tiny_tokenizer.load_with_tools(folder)
    return str(folder)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without(*NEEDS)
    if path.stem == EVALUATION:
        skip_without("lfm_engine.evaluate", "if_verifiable", "bfcl_eval")
        if not DATA.exists():
            pytest.skip("../shared/data/evals is absent")
        monkeypatch.setenv("LFM_ENGINE_EVAL_DATA", str(DATA))
    spec = importlib.util.spec_from_file_location("run_notebooks", FOLDER / "run.py")
    assert spec is not None and spec.loader is not None
    run: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    # The kernel imports the package that is tested.
    monkeypatch.setenv("PYTHONPATH", str(Path(lfm_engine.__file__).parents[1]))
    monkeypatch.setenv("LFM_ENGINE_NOTEBOOK_MODEL", model)
    notebook = run.execute(path, model)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_with_its_outputs(path: Path) -> None:
    assert path.stat().st_size < 400_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    for cell in code:
        if "plt.show()" in "".join(cell["source"]):
            assert any("image/png" in output.get("data", {}) for output in cell["outputs"])
    assert outputs
    text = json.dumps(notebook)
    assert "/opt/" not in text and "/home/" not in text and "/tmp/" not in text
