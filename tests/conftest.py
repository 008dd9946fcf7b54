"""Shared by all tests: nobody is contacted, shapes are checked, shared data is found or skipped
with a reason.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
# here, so that the processes of pytest-xdist have the same
os.environ.setdefault("WINNOW_SEED", str(int(time.time()) // 86400))

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# All but the face and the recipes: beartype does not know `Self` in a pydantic class, nor aliases
# that name themselves.
TENSORS = [
    "models",
    "engine",
    "objectives",
    "generation",
    "evaluation.statistics",
    "training",
    "data",
]
# every annotated shape is executed
install_import_hook([f"winnow.{name}" for name in TENSORS], "beartype.beartype")
# no test is timed: machines are shared
settings.register_profile("winnow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("winnow")


def pytest_report_header() -> str:
    return f"soak seed: WINNOW_SEED={os.environ['WINNOW_SEED']}"


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a test's runs: 0, and another each day for the cases that are soak's."""
    return int(os.environ["WINNOW_SEED"]) if request.node.get_closest_marker("soak") else 0


@pytest.fixture(scope="module")
def brief():
    """For modules of which none of it is the subject: runs sample answers of 8 tokens, estimate no
    memory, and their reports have empty axes, which together take longer than all else.
    """
    from farm import shorten

    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        yield


@pytest.fixture(autouse=True)
def _gradual_underflow():
    """Loading a model on the CPU switches subnormal floats off for the whole process; hypothesis
    needs them back.
    """
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session", autouse=True)
def _no_users_cache(tmp_path_factory):
    """What fixtures of modules keep is not the user's, nor another session's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """What runs keep for each other stays within a test."""
    monkeypatch.setenv("WINNOW_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def call(monkeypatch, capsys):
    """(exit code, stdout, stderr) of a command in this process; never a traceback."""
    import runs

    def run(*words):
        code = runs.winnow(monkeypatch, *words)
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ../shared/data beside the project, or in $WINNOW_SHARED."""
    root = Path(os.environ.get("WINNOW_SHARED", Path(__file__).parents[2] / "shared"))
    folder = root / "data" if (root / "data").is_dir() else root
    if not (folder / "layouts").is_dir():
        pytest.skip(f"the shared test data is not at {folder}: set WINNOW_SHARED")
    return folder
