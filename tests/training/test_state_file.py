"""training_state.json, edited by hand: one line that names the place, never a traceback."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.errors import CheckpointError, NewerVersionError
from acestep_mlx.training import checkpoint
from acestep_mlx.training.trainer import Counters

from . import runs

HUGE = 10**400


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the loop writes it, of a run that accumulates over two micro-steps."""
    arrays = {"x": mx.zeros((2,))}
    state = {
        "tool_version": "9.9",
        "counters": Counters(step=6, micro=1).to_dict(),
        "batches": {"seed": 42, "epoch": 1, "position": 2, "signature": "abc"},
        "lora": {"rank": 4, "alpha": 8.0, "targets": ["to_q"]},
        "checkpointed_blocks": 2,
        "product_blocks": 1,
        "healthy": True,
        "evaluation": 0.5,
        "identity": {"gradient_accumulation_steps": 2, "transformer": "print"},
    }
    folder = tmp_path_factory.mktemp("state")
    return checkpoint.save(
        folder, 6, state=state, adapter=arrays, optimizer=arrays, sampler=arrays, config={"a": 1}
    )


def read(path: Path, content: Any) -> str:
    """The one line with which a checkpoint of that state is refused."""
    (path / checkpoint.STATE).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read(path)
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and len(line) < 600
    return line


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, one in inner for p in places(one, (*at, key)))]


@pytest.mark.parametrize("left", [0, 7, 40, 0.5, 0.99])
def test_a_file_of_which_a_part_is_missing_is_an_error_when_it_is_written(
    left: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX does not tell when a disk takes only the beginning; the next resume is too late."""
    write = mx.save_safetensors

    def short(path: str, *given: Any) -> None:
        write(path, *given)
        size = Path(path).stat().st_size
        os.truncate(path, int(left if left >= 1 else left * size))

    monkeypatch.setattr(mx, "save_safetensors", short)
    with pytest.raises(CheckpointError):
        checkpoint.write_tensors(tmp_path / "a.safetensors", {"x": mx.ones((50, 50))}, {})
    with pytest.raises(CheckpointError, match="could not be written"):
        checkpoint.save(
            tmp_path, 6, state={}, adapter={"x": mx.ones((50, 50))}, optimizer={}, sampler={}, config={}
        )
    assert not list(tmp_path.glob("checkpoint-*"))


STATE_FREE = ("identity", "lora")  # what a run merely compares or shows


def test_as_it_was_written_it_is_read(whole: Path) -> None:
    found = checkpoint.read(whole)
    assert found.step == 6 and Counters.from_dict(found.state["counters"]) == Counters(step=6, micro=1)


@pytest.mark.slow_after(1)
def test_every_place_with_every_kind_of_nonsense(whole: Path) -> None:
    good = json.loads((whole / checkpoint.STATE).read_text())
    try:
        for place in places(good):
            if place and place[0] in STATE_FREE:
                continue
            for odd in (None, True, -1, 2.5, HUGE, "x\ud800", [], {}, [[]], {"a": 1}):
                edited = copy.deepcopy(good)
                inner = edited
                for key in place[:-1]:
                    inner = inner[key]
                if place and isinstance(inner[place[-1]], float) and odd in (-1, 2.5):
                    continue  # a sum may be any number
                if (place, odd) in ((("evaluation",), None), (("healthy",), True)):
                    continue  # none was measured; as it was
                if place:
                    inner[place[-1]] = odd
                read(whole, json.dumps(edited if place else odd))
    finally:
        (whole / checkpoint.STATE).write_text(json.dumps(good))


def test_a_newer_checkpoint_is_not_passed_over_as_damaged(whole: Path, tmp_path: Path) -> None:
    older = shutil.copytree(whole, tmp_path / "checkpoint-5")
    newer = shutil.copytree(whole, tmp_path / "checkpoint-6") / checkpoint.STATE
    notices: list[str] = []
    newer.write_text("{}")
    assert checkpoint.newest(tmp_path, lambda text, level: notices.append(text)) == older
    assert len(notices) == 1 and "skipped a damaged checkpoint" in notices[0]
    newer.write_text(json.dumps({"format": checkpoint.FORMAT, "format_version": 2}))
    with pytest.raises(NewerVersionError, match="newer version of acestep-mlx"):
        checkpoint.newest(tmp_path, lambda text, level: None)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ({"counters": {"micro": 99}}, "counters.micro 99 of 2"),
        ({"counters": {"micro": 2}}, "counters.micro 2 of 2"),
        ({"counters": {"step": 5}}, "it says step 6, and counters.step 5"),
        ({"counters": {"skipped": 7}}, "counters.skipped 7"),
        ({"counters": {"skipped": 1, "skipped_in_a_row": 2}}, "skipped_in_a_row"),
        ({"counters": {"loss_sum": None}}, "counters.loss_sum must be a number, got null"),
        ({"counters": {"smoothed": [1.0]}}, "counters.smoothed must have 2 entries, got 1"),
        ({"counters": None}, "counters must be an object"),
        ({"batches": {"position": -1}}, "batches.position must be between"),
        ({"batches": {"more": 1}}, "'more' is not known"),
        ({"counters": {"more": 1}}, "'more' is not known"),
        ({"step": 10**12}, "step must be between 0 and 1000000000"),
        ({"format_version": 2}, "was written by a newer version of acestep-mlx"),
        ({"format": "other"}, "not written by acestep-mlx"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0"}}}, "leads out of the folder"),
        ({"files": {"a\0b": {"bytes": 1, "sha256": "0"}}}, "a name in files"),
    ],
)
def test_what_it_says(edit: dict[str, Any], why: str, whole: Path) -> None:
    good = json.loads((whole / checkpoint.STATE).read_text())
    edited = copy.deepcopy(good)
    for key, value in edit.items():
        edited[key] = {**edited[key], **value} if isinstance(value, dict) else value
    try:
        assert why in read(whole, edited)
    finally:
        (whole / checkpoint.STATE).write_text(json.dumps(good))


def test_missing_parts_and_what_is_no_json(whole: Path) -> None:
    good = json.loads((whole / checkpoint.STATE).read_text())
    try:
        for key in ("step", "files", "counters", "batches"):
            assert f"{key} is missing" in read(whole, {k: v for k, v in good.items() if k != key})
        for text in ("", "[]", "{", "\ufeff{}", '{"step": NaN}', "[" * 100_000, '{"a": %s}' % ("9" * 5000)):
            read(whole, text)
        (whole / checkpoint.STATE).unlink()
        os.mkfifo(whole / checkpoint.STATE)
        with pytest.raises(CheckpointError, match="not a checkpoint of this trainer"):
            checkpoint.read(whole)
        (whole / checkpoint.STATE).unlink()
    finally:
        (whole / checkpoint.STATE).write_text(json.dumps(good))


@pytest.mark.slow
def test_a_position_that_no_epoch_has(tmp_path: Path, tiny_model: Path) -> None:
    config = runs.configuration(tmp_path, tiny_model, "run", max_train_steps=1)
    runs.run(config)
    path = tmp_path / "run" / "checkpoint-1" / checkpoint.STATE
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "batches": {**good["batches"], "position": 1000}}))
    with pytest.raises(CheckpointError, match="batch 1001 of an epoch, and there are 3"):
        runs.run({**config, "resume_from_checkpoint": "latest", "max_train_steps": 2})


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_file_in_the_place_of_a_folder_is_an_error_of_its_own(depth: int, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.write_text("x")
    target = place.joinpath(*"ab"[:depth], "checkpoint-1")
    with pytest.raises(CheckpointError, match="checkpoint-1 could not be written: "):
        checkpoint.write_folder(target, lambda folder: None)
    assert place.read_text() == "x"


@pytest.mark.parametrize(("name", "said"), [("x.safetensors", "init_lora"), ("x.json", "not a checkpoint")])
def test_a_file_is_no_checkpoint(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"{name}: .*{said}"):
        checkpoint.verify(tmp_path / name)
