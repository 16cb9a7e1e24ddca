"""Small things that a user reads: true, in plain words, and only when they matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.cli import main
from acestep_mlx.cli.events import TrainDisplay
from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.read_run import load_config
from acestep_mlx.data import manifest
from acestep_mlx.data.manifest import own_folders
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.weights import LoRAModule, LoRAWeights
from acestep_mlx.report.events import Started, ValidationClip
from acestep_mlx.testing.demo_songs import write_configs
from acestep_mlx.training import memory as plan
from acestep_mlx.training.faults import same_again

from .training import runs


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert not stop.value.code, err
    return out, err


@pytest.mark.parametrize(
    ("step", "total", "words"),
    [
        (6, 6, "nothing left to train: step 6 is the last one"),
        (24, 5, "nothing left to train: this run ends at step 5, and the checkpoint is of step 24"),
    ],
)
def test_a_run_that_is_over(step: int, total: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainDisplay() as display:
        display(Started(step, total, 1234, 1, "out"))
    err = capsys.readouterr().err
    assert err.startswith(words) and "in out" in err and f"{step + 1}" not in err


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    runs.write_songs(tmp_path / "songs")
    return tmp_path / "songs"


def config_file(root: Path, model: Path, **options: Any) -> Path:
    path = root / "config.json"
    path.write_text(json.dumps(runs.configuration(root, model, "out", **options)))
    return path


def test_a_dry_run_writes_nothing(
    songs: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, tiny_model)
    before = everything(tmp_path)
    out, _ = command(capsys, "train", config, "--dry-run")
    assert "3 of 3 songs" in out and everything(tmp_path) == before


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("command_line", ["train --dry-run", "cache", "train"])
def test_the_file_of_data_sets_is_read_once(
    command_line: str,
    songs: Path,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *flags = command_line.split()
    config = config_file(tmp_path, tiny_model, max_train_steps=1)
    monkeypatch.setattr(manifest, "read_datasets", lambda config: pytest.fail("read again"))
    assert command(capsys, name, config, *flags)


@pytest.mark.slow
def test_a_dry_run_counts_the_lyrics(
    songs: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path, tiny_model)

    def said() -> str:
        out, _ = command(capsys, "train", config, "--dry-run", "--verbose")
        return next(line for line in out.splitlines() if "at the worst step" in line)

    few = said()
    assert "3 s of music with 64 lyric tokens × 1" in few
    (songs / "middle.lyrics").write_text("[verse]\n" + "under the moon we were dancing\n" * 20_000)
    many = said()
    assert "3 s of music with 4,096 lyric tokens × 1" in many
    model = ModelFolder.open(tiny_model).component_config("transformer")
    expected = plan.estimate(load_config(config), plan.Load(48, 1, lyrics=4096), model=model).total
    shown = float(many.split("about ")[1].split()[0]) * (1e9 if " GB at" in many else 1e6)
    assert (
        shown == pytest.approx(expected, rel=0.01)
        and shown > 2 * float(few.split("about ")[1].split()[0]) * 1e6
    )


def test_the_worst_batch_is_the_one_that_takes_most(tiny_model: Path) -> None:
    folder = ModelFolder.open(tiny_model)
    lyrics = "\n".join(["under the moon we were dancing"] * 300)
    for which in (folder, None):
        short, long = plan.loads([(100, lyrics), (100, "la"), (900, None)], 2, V1, which)
        assert (short.frames, long.frames, short.batch, long.lyrics) == (100, 900, 2, 0)
        assert 1000 < short.lyrics <= 4096 and short.lyrics % 64 == 0
    assert plan.loads([(100, "雨" * 5000)], 1, V1, None)[0].lyrics == 4096
    lines = plan.verdict(load_config({}), None, [plan.Load(100, 1, lyrics=4096), plan.Load(200, 1)])
    assert "with 4,096 lyric tokens" in lines[0]


@pytest.mark.slow
def test_a_dry_run_of_a_finished_run(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = runs.configuration(
        tmp_path, tiny_model, "out", max_train_steps=2, resume_from_checkpoint="latest"
    )
    runs.run(values)
    path = tmp_path / "config.json"
    for steps, words in (
        (2, "step 2 is the last one"),
        (1, "ends at step 1, and the checkpoint is of step 2"),
    ):
        path.write_text(json.dumps({**values, "max_train_steps": steps}))
        before = everything(tmp_path)
        out, _ = command(capsys, "train", path, "--dry-run")
        assert words in out and everything(tmp_path) == before
    path.write_text(json.dumps({**values, "max_train_steps": 3}))
    assert "nothing left" not in command(capsys, "train", path, "--dry-run")[0]


@pytest.mark.slow
def test_clips_that_were_made_long_ago_are_not_named_again(tmp_path: Path, tiny_model: Path) -> None:
    config = runs.configuration(
        tmp_path,
        tiny_model,
        "out",
        max_train_steps=1,
        resume_from_checkpoint="latest",
        validation_disable=False,
        validation_prompt="jazz",
        validation_audio_duration=1,
        validation_num_inference_steps=1,
    )
    _, seen = runs.run(config)
    assert [clip.with_lora for clip in seen.of(ValidationClip)] == [False, True]
    _, seen = runs.run({**config, "max_train_steps": 2})
    assert [(clip.with_lora, clip.step) for clip in seen.of(ValidationClip)] == [(True, 2)]
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["with_lora"] for row in rows if row["event"] == "clip"] == [False, True, True]


def test_what_goes_on_is_said_as_the_configuration_has_it() -> None:
    def said(resume: str | None) -> str:
        return same_again(load_config({"data_backend_config": "sets.json", "resume_from_checkpoint": resume}))

    assert said("latest") == "the same command"
    for other in (None, "checkpoint-5"):
        assert said(other) == "--resume_from_checkpoint=latest"


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    width = ModelFolder.open(tiny_model).component_config("transformer").dim
    a, b = (mx.random.normal(shape, key=mx.random.key(0)) for shape in ((2, width), (width, 2)))
    path = tmp_path_factory.mktemp("lora") / "mine.safetensors"
    write_lora(path, LoRAWeights({"transformer_blocks.0.attn.to_v": LoRAModule(a, b, 1.0)}))
    return path


def test_an_exact_export_is_not_said_to_differ(
    lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = command(capsys, "export", lora, "-o", tmp_path / "a.safetensors")
    assert "read back and compared: the update is the same, bit for bit" in out and "0.0e" not in out
    out, _ = command(capsys, "export", lora, "-o", tmp_path / "b.safetensors", "--dtype", "bfloat16")
    assert "of itself at most" in out and "0.0e" not in out


def test_fused_loras_in_words(
    lora: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--lora", lora, "--lora", lora, "--lora-scale", 0.5, "--lora-scale", 2]
    command(capsys, "fuse", "--model", tiny_model, *flags, "-o", tmp_path / "fused")
    out, _ = command(capsys, "info", tmp_path / "fused")
    lines = [line for line in out.splitlines() if "fused" in line][1:]
    assert [line.split(", SHA")[0] for line in lines] == [
        '  fused LoRA: "mine.safetensors" at 0.5',
        '  fused LoRA: "mine.safetensors" at 2',
    ]
    assert "{" not in out


def test_the_demo_keeps_to_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    (folder / "songs").mkdir(parents=True)
    config = load_config(write_configs(folder, model=folder / "model", songs=folder / "songs"))
    places = [*own_folders(config, read_datasets(config)), config.output_path.resolve()]
    assert len(places) > 3 and all(place.is_relative_to(folder.resolve()) for place in places)


def test_the_miniatures_vocabulary_is_no_warning(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from acestep_mlx.families.v1.lyrics.vocabulary import find

    said: list[str] = []
    find(None, tiny_checkpoint, 6693, lambda advance: said.append(advance.stage))
    assert len(said) == 1 and "the miniature's own" in said[0] and "warning" not in said[0]


def test_lyrics_without_a_network(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from acestep_mlx.families.v1.lyrics import vocabulary as lyric_vocab

    (tmp_path / "song.lyrics").write_text("[verse]\nHarbour lights\n")
    monkeypatch.setenv("ACESTEP_MLX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lyric_vocab, "PACKAGES", ())
    monkeypatch.setattr(lyric_vocab, "URL", "file:///nowhere")
    with pytest.raises(SystemExit) as stop:
        main(["info", str(tmp_path / "song.lyrics")])
    err = capsys.readouterr().err
    assert stop.value.code == 1 and "--model MLX_FOLDER" in err and "--lyric-vocab" in err
    # a model that was converted before has it
    content = json.loads((tiny_model / "lyric_vocab.json").read_text())
    monkeypatch.setattr(lyric_vocab, "SHA256", lyric_vocab.content_hash(content))
    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    (models / "mine").symlink_to(tiny_model)
    out, err = command(capsys, "info", tmp_path / "song.lyrics")
    assert "harbour lights" in out and "fetching" not in err
