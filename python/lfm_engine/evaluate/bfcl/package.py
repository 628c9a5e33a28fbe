"""bfcl-eval without the vendors' SDKs that it wants: imported, or its installation named.

Its model list imports the client of every vendor, and its pins exclude NumPy 2. Neither is needed
for its data and its checkers: it is installed without dependencies, and a module with our one
handler stands where it looks for the list.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..extras import EXTRA, require, version

COMMAND = f"{EXTRA} && pip install --no-deps bfcl-eval==2026.3.23"
# bfcl-eval turns "_" and "/" of names into each other.
REGISTRY = "lfm-engine"
_MODELS = "bfcl_eval.constants.model_config"

SINGLE_TURN = (
    *("simple_python", "simple_java", "simple_javascript", "multiple", "parallel"),
    *("parallel_multiple", "irrelevance", "live_simple", "live_multiple", "live_parallel"),
    *("live_parallel_multiple", "live_irrelevance", "live_relevance"),
)
MULTI_TURN = (
    *("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param"),
    "multi_turn_long_context",
)
GROUPS = {
    "all": (*SINGLE_TURN, *MULTI_TURN),
    "single_turn": SINGLE_TURN,
    "multi_turn": MULTI_TURN,
    "non_live": SINGLE_TURN[:7],
    "non_live_python": tuple(c for c in SINGLE_TURN[:7] if "java" not in c),
    "live": SINGLE_TURN[7:],
}


def prepare() -> str:
    """Make bfcl_eval importable; return its name and version.

    Raises:
        MissingExtraError: it, or something that it needs, is not installed.
    """
    if "BFCL_PROJECT_ROOT" not in os.environ and "bfcl_eval.constants.eval_config" not in (
        sys.modules
    ):
        # It makes folders when imported, by default beside itself.
        folder = tempfile.mkdtemp(prefix="lfm-engine-bfcl-")
        os.environ["BFCL_PROJECT_ROOT"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if _MODELS not in sys.modules:
        require("bfcl_eval", "BFCL", COMMAND)
        stub = types.ModuleType(_MODELS, "Stands for the list of all vendors' models.")
        stub.MODEL_CONFIG_MAPPING = {}  # type: ignore[attr-defined]
        sys.modules[_MODELS] = stub
    require("bfcl_eval.eval_checker.eval_runner", "BFCL", COMMAND)
    return version("bfcl-eval")


def register(make_handler: Callable[..., Any], name: str, underscores: bool) -> None:
    """Enter our model into bfcl-eval's list.

    Args:
        make_handler: the handler that decodes results when they are scored.
        name: what score files call the model.
        underscores: names of functions have "_" in place of ".", as calls by OpenAI's API do.
    """
    models = importlib.import_module(_MODELS).MODEL_CONFIG_MAPPING
    models[REGISTRY] = SimpleNamespace(
        model_name=REGISTRY,
        display_name=name.replace(",", " "),
        url="",
        org="",
        license="",
        model_handler=make_handler,
        input_price=None,
        output_price=None,
        is_fc_model=True,
        underscore_to_dot=underscores,
    )


def read_categories(names: list[str]) -> list[str]:
    """Return the categories of some names of categories and groups, in BFCL's order.

    Raises:
        ValueError: a name is neither, or is one that does not run offline.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in GROUPS["all"]:
            raise ValueError(
                f"there is no category {name!r} that runs offline; these are groups: "
                f"{', '.join(GROUPS)}; and these categories: {', '.join(GROUPS['all'])}"
            )
        wanted.update(GROUPS.get(name, (name,)))
    return [category for category in GROUPS["all"] if category in wanted]
