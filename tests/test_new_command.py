"""`acestep-mlx new`: from a folder of songs to a run, without a file written by hand."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from click.testing import CliRunner

from acestep_mlx.cli import main, new
from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.read_run import load_config
from acestep_mlx.data.manifest import Manifest, build_manifest
from acestep_mlx.families import of_flavour
from acestep_mlx.training.pace import NOMINAL, Rates
from acestep_mlx.training.pace import step_seconds as pace_seconds
from acestep_mlx.training.proposal import (
    FULL,
    LADDER,
    Model,
    best,
    bits_of,
    propose,
    reasons,
    rough,
    step_seconds,
    steps_for,
)

from .data.songs import manifest, song

GB = 1e9


@pytest.fixture
def songs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three songs, one without a caption; the working directory is beside them."""
    monkeypatch.setattr("acestep_mlx.doctor.speed.glance", lambda bits: Rates(1e12, 1e11))
    folder = tmp_path / "my songs"
    song(folder, "a", 3.0, lyrics="[verse]\nla la")
    song(folder, "b", 4.0, caption=None)
    (folder / "c.wav").write_bytes(b"no sound")
    monkeypatch.chdir(tmp_path)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(one) for one in arguments])
    found = capsys.readouterr()
    return int(caught.value.code or 0), found.out, found.err


def test_a_run_is_written_that_trains_on_the_songs(
    songs: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in songs.iterdir()}
    code, out, err = run(capsys, "new", songs, "--model", tiny_model, "--trigger", "zyx")
    assert code == 0, err
    assert "2 songs, 0:07 in all" in out and "1 left out (c.wav: " in out
    assert "1 without a caption, so that no words call up their sound (b.wav)" in out
    for what in (
        "model: ",
        "memory: ",
        "precision: no_change: ",
        "rank: 32",
        "length: whole songs",
        "steps: 500",
    ):
        assert f"\n{what}" in out, what
    assert "\ntime: estimated, " in out and "\ntrigger: 'zyx'" in out
    prepare = f"acestep-mlx prepare {shlex.quote(str(songs))} --family v1"
    train = "acestep-mlx train 'my songs-lora'"
    assert out.endswith(f"next: {prepare}\n      {train} --dry-run\n      {train}\n")
    assert max(map(len, out.split("written: ")[0].splitlines())) <= 80
    made = songs.parent / "my songs-lora"
    assert sorted(path.name for path in made.iterdir()) == [
        "README.txt",
        "config.json",
        "multidatabackend.json",
    ]
    config = load_config(str(made))
    assert config.validation_prompt == "zyx pop, happy" and config.validation_lyrics == "[verse]\nla la"
    assert config.max_train_steps == 500 and config.output_path == made / "output"
    (one,) = read_datasets(config).audio
    assert (one.instance_prompt, one.prepend_instance_prompt, one.crop) == ("zyx", True, None)
    captions = [sample.captions for sample in build_manifest(config, remember=False).samples]
    assert captions == [("zyx pop, happy",), ("zyx",)]
    assert "Why each thing was chosen" in (made / "README.txt").read_text()
    assert {path.name: path.read_bytes() for path in songs.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_model", "tiny_model_v15"])
def test_the_run_trains_to_its_end(
    model: str, songs: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "new", songs, "--model", request.getfixturevalue(model))[0] == 0
    code, out, _ = run(capsys, "train", "my songs-lora", "--dry-run")
    assert code == 0 and "500 steps" in out
    short = ("--max_train_steps=2", "--validation_num_inference_steps=2", "--validation_audio_duration=3")
    code, _, err = run(capsys, "train", "my songs-lora", *short, "--validation_step_interval=2")
    assert code == 0, err
    made = songs.parent / "my songs-lora" / "output"
    assert (made / "pytorch_lora_weights.safetensors").is_file() and list((made / "validation").glob("*.wav"))


def test_nothing_is_replaced(songs: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = songs.parent / "here"
    here.mkdir()
    (here / "mine.txt").write_text("x")
    code, _, err = run(capsys, "new", songs, "--model", tiny_model, "-o", here)
    assert code == 1 and "--output" in err and [path.name for path in here.iterdir()] == ["mine.txt"]
    code, _, err = run(capsys, "new", songs / "a.wav")
    assert code == 1 and "a.wav is not a folder" in err
    (songs.parent / "empty").mkdir()
    code, _, err = run(capsys, "new", songs.parent / "empty")
    assert code == 1 and "no audio files" in err


def asked(monkeypatch: pytest.MonkeyPatch, answers: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What somebody at a terminal sees, and the config that is made."""
    monkeypatch.setattr(new, "on_terminal", lambda: True)
    result = CliRunner().invoke(new.command, list(arguments), input=answers)
    assert result.exit_code == 0, result.output
    return result.output, json.loads(Path("my songs-lora/config.json").read_text())


def test_at_most_three_questions_each_with_a_default(
    songs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, config = asked(monkeypatch, "zyx\n300\n", str(songs), "--model", str(tiny_model))
    assert seen.count("]: ") + seen.count("(Enter: none): ") == 2, "the model is known"
    assert config["max_train_steps"] == 300 and config["validation_prompt"] == "zyx pop, happy"


@pytest.mark.slow
def test_the_model_is_asked_for_where_none_is_named(songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, config = asked(monkeypatch, "v1\nzyx\n\n", str(songs))
    assert seen.count("]: ") + seen.count("(Enter: none): ") == 3
    seen = " ".join(seen.split())
    assert "Which model (v1 is ACE-Step" in seen and "GB are downloaded once" in seen
    assert config["model_flavour"] == "base" and config["max_train_steps"] == 500


@pytest.mark.slow
def test_no_answers_are_the_same_as_no_terminal(
    songs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, config = asked(monkeypatch, "\n\n", str(songs), "--model", str(tiny_model))
    code, _, _ = run(capsys, "new", songs, "--model", tiny_model, "--yes", "-o", "again")
    assert code == 0
    again = (Path("again") / "config.json").read_text().replace(str(Path.cwd() / "again"), "RUN")
    assert (
        json.dumps(config, indent=2) + "\n"
        == json.dumps(json.loads(again), indent=2).replace("RUN", str(Path.cwd() / "my songs-lora")) + "\n"
    )


def test_the_way_there_is_told_where_people_look_for_it(
    songs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "train")
    assert code == 2 and "acestep-mlx new FOLDER" in err
    code, _, err = run(capsys, "train", songs.name)
    assert code == 1 and "acestep-mlx new 'my songs'" in err
    assert run(capsys, "--help")[1].count("  new ") == 1


REFUSED = {
    "more steps than there may be": (["--steps", "2000000000"], "max_train_steps must be between"),
    "a character that no prompt has": (["--trigger", "z\0y"], "NUL"),
    "a path that a configuration fills in": (["-o", "run {id}"], "{id} in a path"),
    "another": (["-o", "a/{model_family}"], "{model_family} in a path"),
}


@pytest.mark.parametrize(("arguments", "told"), REFUSED.values(), ids=REFUSED)
def test_what_train_would_refuse_is_not_written(
    songs: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    before = sorted(songs.parent.rglob("*"))
    code, _, err = run(capsys, "new", songs, "--model", tiny_model, *arguments)
    assert code == 1 and told in err
    assert sorted(songs.parent.rglob("*")) == before


def test_songs_in_a_folder_whose_name_would_be_filled_in(
    songs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs.rename("{model_family}")
    code, _, err = run(capsys, "new", "{model_family}")
    assert code == 1 and "{model_family} in a path is filled in" in err and "rename it" in err


def test_the_next_command_can_be_pasted(
    songs: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs.rename("-mine")
    code, out, _ = run(capsys, "new", "--model", tiny_model, "--trigger", "two\n words", "--", "-mine")
    assert code == 0 and "acestep-mlx train ./-mine-lora --dry-run" in out
    assert (
        json.loads(Path("-mine-lora/config.json").read_text())["validation_prompt"] == "two words pop, happy"
    )


def test_what_is_downloaded_is_all_of_it(long_songs: Manifest) -> None:
    """The autoencoder and the text encoder of 1.5 are fetched beside, as the dry run says."""
    model = Model.released("v15-base")
    told = dict(reasons(propose(model, long_songs, 32 * GB), long_songs, 500, "", 1.0))
    assert "about 6.3 GB are downloaded once" in told["model"]


# ── what fits ────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def long_songs(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("long")
    song(folder / "songs", "a", 200.0)
    return manifest(folder, model_flavour="v15-base")


@pytest.mark.parametrize("flavour", ["base", "v15-base"])
def test_less_memory_means_fewer_bits_then_shorter_parts(flavour: str, long_songs: Manifest) -> None:
    model = Model.released(flavour)
    found = [propose(model, long_songs, room * GB) for room in (60, 12, 6, 4.5, 3, 1)]
    places = [one.place for one in found]
    assert places == sorted(places) and len(set(places)) >= 3
    assert found[0].precision == FULL and found[0].crop is None and found[0].fits
    assert not found[-1].fits and found[-1].rank == 16
    for one in found[:-1]:
        assert not one.fits or one.need <= 0.9 * one.room
        assert (one.precision, one.crop) in LADDER
    told = dict(reasons(found[-1], long_songs, 100, "", 1.0))
    assert "does not fit" in told["memory"] and told["length"].startswith("a random part of 30 s")
    assert steps_for(long_songs, found[0]) == 500


def test_of_models_that_fit_as_well_the_newer_one_is_taken(long_songs: Manifest) -> None:
    models = [Model.released("base"), Model.released("v15-base")]
    assert best(models, long_songs, 60 * GB).model is models[1]
    small = [propose(model, long_songs, 6 * GB).place for model in models]
    assert best(models, long_songs, 6 * GB).place == min(small)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "1 minute"), (3600, "60 minutes"), (7200, "2 hours"), (100_000, "28 hours"), (200_000, "2 days")],
)
def test_times_are_no_more_exact_than_they_are_known(seconds: float, text: str) -> None:
    assert rough(seconds) == text


@pytest.mark.parametrize("flavour", ["base", "v15-base"])
def test_a_step_s_estimate_is_the_one_that_doctor_and_the_readme_have(
    flavour: str, long_songs: Manifest
) -> None:
    model, rates, family = Model.released(flavour), NOMINAL["M1"].reached(), of_flavour(flavour)
    one = propose(model, long_songs, 60 * GB)
    for precision, room, bits, recomputed in ((FULL, 60, None, 0.0), ("int8-quanto", 1, 8, 1.0)):
        asked = replace(one, precision=precision, room=room * GB)
        assert bits_of(asked) == bits
        for part in (60.0, 90.0):
            ours = step_seconds(replace(asked, part=part), long_songs, rates)
            lengths = [min(part, song.seconds) for song in long_songs.samples]
            mean = fmean(pace_seconds(family, bits or 16, seconds, recomputed, rates) for seconds in lengths)
            assert ours == pytest.approx(mean, rel=1e-3)
    assert bits_of(replace(one, model=replace(model, bits=4))) == 4
