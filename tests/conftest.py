"""Fixtures that many tests share: one miniature checkpoint and its MLX folder per session."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import pytest

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # as importing acestep_mlx does: before the first product
_kept = tempfile.TemporaryDirectory(prefix="acestep-mlx-tests-")
os.environ["ACESTEP_MLX_CACHE"] = _kept.name  # also of processes that tests start: nothing of the user's

SHARED_AUDIO = Path(__file__).resolve().parents[2] / "shared" / "audio"


def require(program: str) -> str:
    """The path of `program`; without it the test is skipped, or fails in CI, which must have all."""
    found = shutil.which(program)
    return found if found is not None else not_installed(program)


def not_installed(name: str) -> NoReturn:
    """Skip the test; or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{name} is not installed, and CI must not skip this test")
    pytest.skip(f"{name} is not installed")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which cases of a parametrised test the quick tier takes: see `slow_after` and `slow_cases`."""
    cases: Counter[str] = Counter()
    for item in items:
        if (mark := item.get_closest_marker("slow_after")) is not None:
            test = item.nodeid.partition("[")[0]
            cases[test] += 1
            if cases[test] > mark.args[0]:
                item.add_marker(pytest.mark.slow)
        case = item.name.partition("[")[2].removesuffix("]")
        if (mark := item.get_closest_marker("slow_cases")) is not None and case in mark.args[0].split():
            item.add_marker(pytest.mark.slow)


#: Where PyTorch is used in the quick tier; one process imports it, in seconds, and not each.
PYTORCH = ("tests/parity/", "tests/training/test_optim.py", "tests/convert/test_translate.py")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, in which the files with PyTorch are as one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "PyTorch" if nodeid.startswith(PYTORCH) else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """What is imported stays: searching it in every collection of garbage costs a tenth of a second each."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # of what tests import later, rarely


@pytest.fixture(autouse=True, scope="module")
def seeded_module() -> None:
    """Weights that MLX draws are the same in every run, whatever ran before."""
    mx.random.seed(0)


@pytest.fixture(autouse=True)
def seeded(seeded_module: None) -> None:
    """As for the module's fixtures, for each test."""
    mx.random.seed(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature checkpoint with random weights in the upstream PyTorch layout. Treat it as read-only."""
    from acestep_mlx.families.v1.miniature import write_checkpoint

    folder = tmp_path_factory.mktemp("miniature") / "checkpoint"
    write_checkpoint(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature checkpoint as an MLX folder in float32. Treat it as read-only."""
    from acestep_mlx.convert.converter import convert

    folder = tmp_path_factory.mktemp("mlx") / "model"
    convert(tiny_checkpoint, folder, dtype="float32")
    return folder


@pytest.fixture(scope="session")
def tiny_model_v15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of ACE-Step 1.5 base as an MLX folder in float32. Treat it as read-only."""
    from acestep_mlx.convert.converter import convert
    from acestep_mlx.families.v15.miniature import write_checkpoint

    folder = tmp_path_factory.mktemp("mlx-v15")
    checkpoint = write_checkpoint(folder / "checkpoint", flavour="base")
    return convert(checkpoint, folder / "model", dtype="float32").path


@pytest.fixture(params=["base", "v15-base"])
def tiny_run(request: pytest.FixtureRequest) -> dict[str, str]:
    """Options of a run on the miniature of each family."""
    folder = "tiny_model" if request.param == "base" else "tiny_model_v15"
    model = request.getfixturevalue(folder)
    return {"model_flavour": request.param, "pretrained_model_name_or_path": str(model)}


@pytest.fixture(scope="session")
def real_song() -> Path:
    """A folder with one real song, its prompt and its lyrics, where the checkout has it beside it."""
    if not SHARED_AUDIO.is_dir():
        pytest.skip("no ../shared/audio beside this checkout")
    return SHARED_AUDIO
