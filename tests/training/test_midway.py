"""Songs, disks and other programs that go away in the middle of a run, and what is said before it."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import sys
import types

import pytest

from acestep_mlx.errors import AceStepError, CheckpointError, ConfigError, DataError
from acestep_mlx.report.events import CheckpointSaved, MetricsFile, Notice, StepDone, ValidationClip
from acestep_mlx.training import checkpoint

from ..small import small_model
from . import runs

GONE = {
    "full": (errno.ENOSPC, "the disk is full"),
    "quota": (errno.EDQUOT, "the disk is full"),
    "limit": (errno.EFBIG, "ulimit -f"),
    "unplugged": (errno.EIO, "Input/output error"),
    "read only": (errno.EROFS, "Read-only file system"),
    "stale": (errno.ESTALE, "Stale file handle"),
}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """Its runs need no second block."""
    return small_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("midway")


# ── songs ─────────────────────────────────────────────────────────────────────────────────────────────
def at(step, act):
    return lambda event: act() if isinstance(event, StepDone) and event.step == step else None


ON_DEMAND: dict[str, dict] = {
    "no caches": {"vae_cache_disable": True},
    "encoded on demand": {"vae_cache_ondemand": True},
    "in the middle of an update": {"vae_cache_ondemand": True, "gradient_accumulation_steps": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c == "encoded on demand" else pytest.mark.slow) for c in ON_DEMAND]
)
def test_songs_that_go_away_end_with_a_checkpoint_and_it_goes_on_when_they_are_back(
    root, tmp_path, tiny_model, case
):
    def options(name):
        made = runs.configuration(tmp_path, tiny_model, name, max_train_steps=3, **ON_DEMAND[case])
        return {**made, "cache_dir": str(tmp_path / f"{name}-cache"), "resume_from_checkpoint": "latest"}

    straight, _ = runs.run(options("straight"))
    config, songs = options("run"), tmp_path / "songs"

    def unplug():
        songs.rename(tmp_path / "unplugged")
        shutil.rmtree(config["cache_dir"], ignore_errors=True)

    with pytest.raises(DataError) as stopped:
        runs.run(config, at(1, unplug))
    message = str(stopped.value)
    kept = checkpoint.checkpoints(tmp_path / "run")[-1]
    assert f"training stopped at step {checkpoint.verify(kept)['step']}: " in message
    assert f"{kept} is complete" in message and "--resume_from_checkpoint=latest" in message
    assert "\n" not in message
    (tmp_path / "unplugged").rename(songs)
    resumed, _ = runs.run(config)
    assert resumed.finished
    runs.assert_identical(straight.checkpoint, resumed.checkpoint)


@pytest.mark.slow
def test_a_cache_that_is_deleted_meanwhile_is_made_again(root, tmp_path, tiny_model):
    config = runs.configuration(tmp_path, tiny_model, "run", max_train_steps=4)
    result, _ = runs.run(config, at(1, lambda: shutil.rmtree(tmp_path / "cache")))
    assert result.finished and (tmp_path / "cache").is_dir()


@pytest.mark.slow
def test_songs_and_the_disk_of_the_checkpoint_gone_name_both(root, tmp_path, tiny_model, monkeypatch):
    config = runs.configuration(tmp_path, tiny_model, "run", vae_cache_disable=True)

    def both():
        shutil.rmtree(tmp_path / "songs")
        monkeypatch.setattr(checkpoint, "write_tensors", failing(errno.EIO))

    said = r"training stopped at step (\d): .*; then .*checkpoint-\1 could not be written: Input/output error"
    with pytest.raises(DataError, match=said):
        runs.run(config, at(1, both))


# ── the disk ──────────────────────────────────────────────────────────────────────────────────────────
def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


class Full:
    """A file that takes `room` bytes more, then refuses; what it took is kept."""

    def __init__(self, file, room, number):
        self.file, self.room, self.number = file, room, number

    def write(self, data):
        if self.room <= 0:
            failing(self.number)()
        taken = data[: self.room]
        self.room -= len(taken)
        return self.file.write(taken)

    def close(self):
        self.file.close()


def fill_up(monkeypatch, number, after=3, room=50):
    """metrics.jsonl takes only `room` bytes of the line of step `after`."""
    original = MetricsFile.__call__

    def call(self, event):
        if isinstance(event, StepDone) and event.step == after:
            self._file = Full(self._file, room, number)
        original(self, event)

    monkeypatch.setattr(MetricsFile, "__call__", call)


@pytest.mark.slow
@pytest.mark.parametrize("case", GONE)
def test_numbers_that_cannot_be_written_end_in_one_line_and_a_checkpoint(root, tiny_model, monkeypatch, case):
    number, words = GONE[case]
    fill_up(monkeypatch, number)
    config = runs.configuration(root, tiny_model, f"numbers {case}", max_train_steps=50)
    with pytest.raises(AceStepError) as stopped:
        runs.run(config)
    message = str(stopped.value)
    kept = checkpoint.checkpoints(root / f"numbers {case}")[-1]
    assert words in message and "\n" not in message and checkpoint.verify(kept)["step"] <= 5
    assert f"The last complete checkpoint is {kept}" in message


@pytest.mark.slow
def test_numbers_that_waited_for_room_are_written_whole(root, tiny_model, monkeypatch):
    """The disk is full for a moment: the run ends with a checkpoint, and no number is missing."""
    fill_up(monkeypatch, errno.ENOSPC)
    config = runs.configuration(root, tiny_model, "waited", max_train_steps=8)
    original = MetricsFile.__call__

    def call(self, event):
        if isinstance(event, CheckpointSaved):
            self._file = getattr(self._file, "file", self._file)  # somebody made room
        original(self, event)

    monkeypatch.setattr(MetricsFile, "__call__", call)
    first, _ = runs.run(config)
    assert not first.finished
    second, _ = runs.run({**config, "resume_from_checkpoint": "latest"})
    assert second.finished and [s for s, _ in runs.losses(root / "waited")] == list(range(1, 9))


@pytest.mark.slow
@pytest.mark.parametrize("case", GONE)
def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before(root, tiny_model, monkeypatch, case):
    number, words = GONE[case]
    original = checkpoint.write_tensors

    def write(path, *rest):
        if "checkpoint-4" in str(path):
            failing(number)()
        original(path, *rest)

    monkeypatch.setattr(checkpoint, "write_tensors", write)
    config = runs.configuration(root, tiny_model, f"save {case}", checkpointing_steps=2)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-4 could not be written: .*are untouched"
    ) as stopped:
        runs.run(config)
    assert words in str(stopped.value)
    assert [p.name for p in (root / f"save {case}").glob("*checkpoint*")] == ["checkpoint-2"]
    checkpoint.verify(root / f"save {case}" / "checkpoint-2")


@pytest.mark.slow
def test_a_final_lora_that_cannot_be_written_is_in_the_checkpoint(root, tiny_model):
    config = runs.configuration(root, tiny_model, "final", max_train_steps=1)

    def block(event):
        if isinstance(event, StepDone):
            (root / "final" / checkpoint.LORA).mkdir()

    with pytest.raises(CheckpointError, match=r"cannot be written.*checkpoint-1\. It holds this LoRA too"):
        runs.run(config, block)
    assert (root / "final" / "checkpoint-1" / checkpoint.LORA).is_file()


@pytest.mark.slow
def test_a_clip_that_cannot_be_written_is_named_and_the_run_goes_on(root, tiny_model):
    options = {"max_train_steps": 2, "validation_disable": False, "validation_prompt": "a tone"}
    options |= {"validation_audio_duration": 1, "validation_num_inference_steps": 1}
    config = runs.configuration(root, tiny_model, "clip", **options)
    result, seen = runs.run(config, at(1, lambda: (root / "clip" / "validation").write_text("in the way")))
    assert result.finished and not seen.of(ValidationClip)
    warnings = [e.text for e in seen.of(Notice) if e.level == "warning"]
    assert len(warnings) == 1 and warnings[0].startswith("validation clip: ")


@pytest.mark.slow
def test_a_report_that_cannot_be_drawn_is_a_warning(root, tiny_model, monkeypatch):
    monkeypatch.setattr("acestep_mlx.report.page.write_bytes", failing(errno.ENOSPC))
    result, seen = runs.run(runs.configuration(root, tiny_model, "report", max_train_steps=1))
    assert result.finished and result.report is None
    assert any("report.html could not be written: the disk is full" in e.text for e in seen.of(Notice))


@pytest.mark.slow
def test_a_tracker_that_fails_ends_its_curves_and_not_the_run(root, tiny_model, monkeypatch):
    fake = types.ModuleType("wandb")

    def log(values, step=None):
        raise ConnectionResetError("the network is down")

    run = types.SimpleNamespace(log=log, summary={}, finish=failing(errno.EPIPE))
    fake.init = lambda **_: run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = runs.configuration(root, tiny_model, "tracker", report_to="wandb", max_train_steps=2)
    result, seen = runs.run(config)
    assert result.finished
    told = [e.text for e in seen.of(Notice) if "gets no more numbers" in e.text]
    assert len(told) == 1 and "the network is down" in told[0]


# ── said before the first step ────────────────────────────────────────────────────────────────────────
def refused(config) -> str:
    seen = runs.Recorder()
    from acestep_mlx.training.run import train

    with pytest.raises(ConfigError) as stopped:
        train(config, on_event=seen)
    assert not seen.of(StepDone)
    return str(stopped.value)


@pytest.mark.slow
def test_a_disk_that_has_no_room_for_one_checkpoint(root, tiny_model, monkeypatch):
    config = runs.configuration(root, tiny_model, "no room", max_train_steps=1)
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    message = refused(config)
    assert "1.00 kB are left in" in message and "a checkpoint takes" in message
    assert not (root / "no room").exists()


def test_room_for_one_checkpoint_but_not_for_all(root, tiny_model, monkeypatch):
    config = runs.configuration(root, tiny_model, "little", max_train_steps=1)
    done, _ = runs.run({**config, "output_dir": str(root / "measured")})
    files = ("adapter", "adapter", "optimizer", "sampler")
    one = sum((done.checkpoint / f"{name}.safetensors").stat().st_size for name in files)
    usage = types.SimpleNamespace(free=2 * one)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(checkpoint, "_why", lambda *_: "")
    result, seen = runs.run(config)
    assert result.finished
    assert any("6 checkpoints may take" in e.text for e in seen.of(Notice) if e.level == "warning")


def test_a_limit_below_the_size_of_a_checkpoints_files(root, tiny_model, monkeypatch):
    config = runs.configuration(root, tiny_model, "limit", max_train_steps=1)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, resource.RLIM_INFINITY))
    message = refused(config)
    assert "files of at most 1.00 kB (ulimit -f)" in message


@pytest.mark.parametrize("name", ["x" * 300, "ä" * 200, "fine/" + "x" * 300, "x" * 5000])
@pytest.mark.parametrize("absolute", [True, False])
def test_an_output_dir_with_a_name_that_is_too_long(root, tiny_model, tmp_path, monkeypatch, name, absolute):
    monkeypatch.chdir(tmp_path)
    config = runs.configuration(root, tiny_model, "long", max_train_steps=1)
    message = refused({**config, "output_dir": str(tmp_path / name) if absolute else name})
    assert message.startswith("output_dir") and "too long" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["p" * 300, "猫" * 120])
def test_a_validation_prompt_with_a_long_name_gives_files_that_fit(root, tiny_model, tmp_path, name):
    library = tmp_path / "library.json"
    library.write_text(json.dumps({name: "a tone", "short": "another"}), encoding="utf-8")
    options = {"max_train_steps": 1, "validation_disable": False, "validation_audio_duration": 1}
    options |= {"validation_num_inference_steps": 1, "user_prompt_library": str(library)}
    result, seen = runs.run(runs.configuration(tmp_path, tiny_model, "run", **options))
    assert result.finished and len(seen.of(ValidationClip)) == 4
    assert not [e for e in seen.of(Notice) if e.level == "warning" and "clip" in e.text]


def test_two_long_names_that_would_share_a_file_are_refused(root, tiny_model, tmp_path):
    library = tmp_path / "library.json"
    library.write_text(json.dumps({"p" * 200 + "a": "one", "p" * 200 + "b": "two"}))
    config = runs.configuration(root, tiny_model, "two", max_train_steps=1, validation_disable=False)
    assert "share a file name" in refused({**config, "user_prompt_library": str(library)})
