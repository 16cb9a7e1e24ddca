"""Conversions that are made once: keyed by content and settings, found again, safe against two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acestep_mlx.convert import conversions as cache
from acestep_mlx.convert.conversions import cache_folder, ensure_model
from acestep_mlx.convert.converter import Settings
from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.model_folder import ModelFolder, Quantization
from acestep_mlx.io.progress import Advance

COMMIT = "89abcdef" * 5
QUANTIZED = Quantization.of(4)


class Notes(list[str]):
    """A progress that keeps its notes."""

    def __call__(self, advance: Advance) -> None:
        if not advance.total:
            self.append(advance.stage)


def test_made_once_and_found_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    notes = Notes()
    first = ensure_model(tiny_checkpoint, dtype="float32", cache_dir=tmp_path, progress=notes)
    assert any("once" in note and str(first) in note for note in notes)
    assert first.is_relative_to(tmp_path) and ModelFolder.open(first).config["dtype"] == "float32"
    assert ModelFolder.open(first).config["source"]["path_or_repo"] == str(tiny_checkpoint)
    stamp = (first / "config.json").stat().st_mtime_ns
    notes.clear()
    assert ensure_model(str(tiny_checkpoint), dtype="float32", cache_dir=tmp_path, progress=notes) == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    assert notes == [f"using the conversion of {tiny_checkpoint} in {first}"]


def test_settings_and_content_are_part_of_the_key(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    made = {ensure_model(source, cache_dir=tmp_path / "c", **settings) for settings in (
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "float32", "quantize": {"bits": 8}},
        {"dtype": "float32", "quantize": {"bits": 4}},
    )}  # fmt: skip
    assert len(made) == 4
    for component in ("text_encoder", "dcae", "vocoder"):  # caches made with them serve every precision
        prints = [ModelFolder.open(p).fingerprints[component] for p in made]
        assert len(set(prints)) == 2, "one per dtype"
    os.utime(source / "music_vocoder" / "config.json", ns=(1, 1))
    made.add(ensure_model(source, dtype="float32", cache_dir=tmp_path / "c"))
    assert len(made) == 5


def test_every_part_of_the_key_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder for each source, content, dtype, quantisation and version of the converter."""

    def place(
        source: str = "a/b",
        content: str = "commit 1",
        dtype: str | None = "float32",
        quantize: Quantization | None = QUANTIZED,
    ) -> Path:
        return cache._place(tmp_path, source, content, Settings(quantize, None, dtype))

    assert place() == place()
    places = [
        place(), place(source="a/c"), place(content="commit 2"), place(dtype="bfloat16"), place(dtype=None),
        place(quantize=None), place(quantize=Quantization.of(8)), place(quantize=Quantization.of(4, 32)),
        place(quantize=Quantization.of(mode="mxfp4")),
    ]  # fmt: skip
    monkeypatch.setattr(cache, "CONVERSION", "9.9.9")
    places.append(place())
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    "wanted", [Quantization.of(8, 32), Quantization.of(mode="mxfp8"), Quantization.of(mode="nvfp4")], ids=str
)
def test_all_of_the_quantisation_reaches_the_conversion(
    wanted: Quantization, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []
    monkeypatch.setattr(cache, "write_folder", lambda source, folder, how, progress: asked.append(how))
    ensure_model(tiny_checkpoint, quantize=wanted.as_dict(), dtype="float16", cache_dir=tmp_path / "c")
    assert asked == [Settings(wanted, ("transformer",), "float16")]


def test_an_mlx_folder_is_taken_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    assert ensure_model(tiny_model, dtype="bfloat16", cache_dir=tmp_path) == tiny_model
    assert list(tmp_path.iterdir()) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ACESTEP_MLX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "acestep-mlx"
    monkeypatch.setenv("ACESTEP_MLX_CACHE", "~/models")
    assert cache_folder() == tmp_path / "models"
    assert cache_folder(tmp_path / "x") == tmp_path / "x"


def test_a_broken_source_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    os.truncate(source / "music_vocoder" / "diffusion_pytorch_model.safetensors", 99)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        ensure_model(source, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "models").glob("[!.]*"))
    with pytest.raises(CheckpointError, match="no such folder"):
        ensure_model(tmp_path / "nothing", cache_dir=tmp_path / "cache")


@pytest.mark.slow
def test_two_processes_convert_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from acestep_mlx.convert.conversions import ensure_model\n"
        "notes = []\n"
        "tell = lambda advance: advance.total or notes.append(advance.stage)\n"
        "print(ensure_model(sys.argv[1], cache_dir=sys.argv[2], progress=tell))\n"
        "print(sum('once' in note for note in notes))\n"
    )
    command = [sys.executable, "-c", code, str(tiny_checkpoint), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=120)[0].split() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert answers[0][0] == answers[1][0] and sorted(a[1] for a in answers) == ["0", "1"]


@pytest.fixture
def hub(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A stand-in for the hub: one repository, whose commit and reachability a test may change."""
    from acestep_mlx.convert import source

    state: dict[str, object] = {"commit": COMMIT, "downloads": 0}

    def download(repo: str, revision: str | None, progress: object) -> source.Source:
        if state["commit"] is None:
            raise CheckpointError(f"{repo}: the hub cannot be reached")
        state["downloads"] = int(str(state["downloads"])) + 1
        return source.Source(tiny_checkpoint, repo, str(state["commit"]))

    monkeypatch.setattr(source, "_download", download)
    monkeypatch.setattr(cache, "hub_commit", lambda repo, revision: state["commit"])
    return state


def test_a_hub_repository_is_downloaded_once_per_commit(hub: dict[str, object], tmp_path: Path) -> None:
    first = ensure_model("someone/songs", cache_dir=tmp_path)
    assert ensure_model("someone/songs", cache_dir=tmp_path) == first and hub["downloads"] == 1
    source = json.loads((first / "config.json").read_text())["source"]
    assert source == {"path_or_repo": "someone/songs", "revision": COMMIT}
    hub["commit"] = "01234567" * 5
    second = ensure_model("someone/songs", cache_dir=tmp_path)
    assert second != first and hub["downloads"] == 2
    hub["commit"] = None  # offline: the newest conversion serves, another setting cannot be made
    os.utime(second / "config.json", (2e9, 2e9))
    assert ensure_model("someone/songs", cache_dir=tmp_path) == second
    with pytest.raises(CheckpointError, match="cannot be reached"):
        ensure_model("someone/songs", dtype="float16", cache_dir=tmp_path)
