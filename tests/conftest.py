"""Fixtures that several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before libgomp is loaded: threads that spin at barriers make tests slow where cores are busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import golden_models
import tiny_tokenizer
from golden_models import Golden
from lfm_engine import AutoModelForCausalLM, CausalLM
from lfm_engine.tokenizer import Tokenizer

PREAMBLE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
import golden_models
from lfm_engine import AutoModelForCausalLM, _core
"""
# No test depends on how long something takes: these run on busy machines.
settings.register_profile(
    "tests",
    parent=settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tests")

LONG_CONTEXT = 2_000_000
CHAT_CONTEXT = 20_000

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(params=golden_models.NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each of the goldens."""
    return golden_models.golden(request.param)


@pytest.fixture(scope="session")
def base() -> Golden:
    """The golden for tests that need only one."""
    return golden_models.golden("lfm2-base")


@pytest.fixture(scope="session")
def model() -> CausalLM:
    """`base` in float32 on one thread."""
    return golden_models.load("lfm2-base")


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` with a context of two million tokens: for work that takes as long as one likes."""
    return golden_models.changed_copy(
        "lfm2-base",
        tmp_path_factory.mktemp("long") / "model",
        max_position_embeddings=LONG_CONTEXT,
    )


@pytest.fixture(scope="session")
def long_model(long_folder: Path) -> CausalLM:
    """The model of `long_folder`, in float32 on one thread."""
    return AutoModelForCausalLM.from_pretrained(long_folder, dtype="float32", num_threads=1)


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny tokenizer with LFM2's tokens for tool calls."""
    return tiny_tokenizer.load_with_tools(tmp_path_factory.mktemp("tokenizer") / "files")


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    """A random model with a few more ids than `chat_tokenizer` has tokens."""
    folder = golden_models.random_model(
        tmp_path_factory.mktemp("chat") / "model",
        vocab_size=300,
        eos_token_id=2,
        max_position_embeddings=CHAT_CONTEXT,
    )
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", num_threads=1)


def python_command(code: str) -> list[str]:
    """A command that runs `code`, with the modules of PREAMBLE imported, in a fresh interpreter."""
    return [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)]


@pytest.fixture
def run_python() -> RunPython:
    """run_python(code, **environment): runs code in a fresh interpreter, at most a minute."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            python_command(code),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
