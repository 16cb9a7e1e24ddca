"""Training ACE-Step 1.5 through the ordinary loop: every kind of LoRA, and what is of the other model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from mlx.utils import tree_flatten

from acestep_mlx.cli import main
from acestep_mlx.config.read_run import load_config
from acestep_mlx.data.batches import Batches
from acestep_mlx.data.encode import encode_dataset
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.errors import AceStepError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v15 import FAMILY
from acestep_mlx.families.v15.lora import ATTENTION, MLP
from acestep_mlx.io.audio import read_audio
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
from acestep_mlx.report.events import Evaluated, StepDone, ValidationClip
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.preflight import preflight
from acestep_mlx.training.step import StepSettings, TrainStep

from ..conftest import SHARED_AUDIO
from ..training import runs

FLAVOUR = {"model_flavour": "v15-base"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("v15-runs")


@pytest.fixture(scope="module")
def finished(root: Path, tiny_model_v15: Path) -> Any:
    """A run of three steps with a checkpoint, and its configuration."""
    config = runs.configuration(root, tiny_model_v15, "finished", **FLAVOUR, max_train_steps=3)
    return config, runs.run(config)[0]


KINDS: dict[str, dict[str, Any]] = {
    "evaluation, dropouts and accumulation": {
        "eval_loss_disable": False, "lora_dropout": 0.2, "gradient_accumulation_steps": 2,
        "caption_dropout_probability": 0.5, "train_batch_size": 2, "ace_step_timestep_draws": 1,
    },
    "DoRA": {"use_dora": True},
    "rsLoRA with the MLP": {"use_rslora": True, "acestep_lora_target": "attn_qkv+mlp", "lora_rank": 4},
    "8 bits, bf16": {"base_model_precision": "int8-quanto", "mixed_precision": "bf16"},
    "4 bits, no checkpointing": {"base_model_precision": "int4-quanto", "gradient_checkpointing": False},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains(kind: str, root: Path, tiny_model_v15: Path) -> None:
    options = {**FLAVOUR, "learning_rate": 1e-2, "max_train_steps": 8, **KINDS[kind]}
    result, seen = runs.run(runs.configuration(root, tiny_model_v15, kind.replace(" ", "-"), **options))
    assert result.finished and np.isfinite([event.loss for event in seen.of(StepDone)]).all()
    lora = read_lora(result.lora)
    assert lora.family is FAMILY and lora.is_trained and lora.is_dora == options.get("use_dora", False)
    per_layer = 11 if options.get("acestep_lora_target") else 8
    assert len(lora.modules) == 4 * per_layer
    evaluations = seen.of(Evaluated)
    assert len(evaluations) == (2 if "evaluation" in kind else 0)
    assert all(later.loss < first.loss for first, later in itertools.pairwise(evaluations))


@pytest.mark.slow
def test_clips_are_made_while_it_trains(root: Path, tiny_model_v15: Path) -> None:
    options = {"validation_disable": False, "validation_prompt": "a tone", "validation_audio_duration": 2}
    options |= {"validation_num_inference_steps": 2, "max_train_steps": 2, **FLAVOUR}
    _, seen = runs.run(runs.configuration(root, tiny_model_v15, "clips", **options))
    clips = seen.of(ValidationClip)
    assert [clip.with_lora for clip in clips] == [False, True]
    heard = [soundfile.read(clip.path) for clip in clips]
    assert all(rate == 48000 and sound.shape == (96000, 2) for sound, rate in heard)
    assert np.abs(heard[0][0] - heard[1][0]).max() > 0


@pytest.mark.slow
def test_it_goes_on_from_its_own_lora(root: Path, tiny_model_v15: Path, finished: Any) -> None:
    _, result = finished
    options = {**FLAVOUR, "init_lora": str(result.lora), "learning_rate": 0.0, "max_train_steps": 1}
    again, _ = runs.run(runs.configuration(root, tiny_model_v15, "from-lora", **options))
    before, after = read_lora(result.lora), read_lora(again.lora)
    for path, module in before.modules.items():
        assert mx.abs(module.delta() - after.modules[path].delta()).max().item() < 1e-6


@pytest.mark.slow
def test_what_is_of_another_model_is_one_line(
    root: Path, tiny_model_v15: Path, tiny_model: Path, finished: Any
) -> None:
    """A run of the other model that is gone on with, and its LoRA to start from; both ways."""
    given, result = finished
    v1 = runs.configuration(root, tiny_model, "v1", max_train_steps=1)
    other, _ = runs.run(v1)
    models = {"ACE-Step 1.5": (given, result), "ACE-Step v1": (v1, other)}
    for (name, (mine, _)), (their_name, (_, theirs)) in zip(
        models.items(), reversed(models.items()), strict=True
    ):
        resumed = {**mine, "resume_from_checkpoint": str(theirs.checkpoint), "output_dir": str(root / "new")}
        started = {**mine, "init_lora": str(theirs.lora), "output_dir": str(root / "new")}
        for config, messages in (
            (resumed, [f"a run of {their_name}", f"and {name} is trained"]),
            (started, [f"is for {their_name}, and this model is {name}"]),
        ):
            with pytest.raises(AceStepError) as error:
                preflight(load_config(config), lambda text, level: None)
            said = str(error.value)
            assert all(message in said for message in messages) and "\n" not in said, said


@pytest.mark.slow
def test_it_overfits_one_clip(tmp_path: Path, tiny_model_v15: Path) -> None:
    """The loss with fixed noise and times falls at least fivefold."""
    clip = SHARED_AUDIO / "test_track_001.mp3"
    runs.write_songs(tmp_path / "tones")
    clip = clip if clip.is_file() else tmp_path / "tones" / "low.wav"
    (tmp_path / "one").mkdir()
    soundfile.write(tmp_path / "one" / "clip.wav", read_audio(clip, duration=2.0), 44100)
    (tmp_path / "one" / "clip.txt").write_text("rock")
    backends = [{"id": "one", "instance_data_dir": str(tmp_path / "one")}]
    config = load_config(runs.configuration(tmp_path, tiny_model_v15, "run", **FLAVOUR, backends=backends))
    folder = ModelFolder.open(tiny_model_v15)
    batches = Batches(encode_dataset(build_manifest(config), config, folder), config)
    batch = {name: value for name, value in batches.next().items() if isinstance(value, mx.array)}
    batches.close()
    model = folder.load("transformer")
    inject(model, LoRASpec(rank=64, alpha=64.0, targets=(*ATTENTION, *MLP)))
    for layer in adapter_modules(model).values():
        layer.train()
    trained = [path for path, _ in tree_flatten(model.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-2), Schedule("constant", 1e-2, 0, 1), trained)
    step = TrainStep(model, [group], StepSettings(), FAMILY.objective(config), prepare=FAMILY.prepare(model))
    losses = [step(batch, update=True, step=i).loss.item() for i in range(200)]
    assert losses[-1] * 5 <= losses[0], (losses[0], losses[-1])


def test_info_sees_songs_as_the_model_does(
    tiny_model_v15: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.write_songs(tmp_path / "songs", 1.0)
    (tmp_path / "songs" / "low.json").write_text('{"bpm": 90}')
    for path, wanted in (("songs/low.wav", "25 latent frames"), ("songs", "known beside captions: bpm 1")):
        with pytest.raises(SystemExit) as ended:
            main(["info", str(tmp_path / path), "--model", str(tiny_model_v15)])
        assert ended.value.code == 0 and wanted in capsys.readouterr().out


def test_info_tells_family_variant_and_what_it_takes(
    tiny_model_v15: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["info", str(tiny_model_v15)])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert "  family: ACE-Step 1.5" in lines and "  variant: v15-base" in lines
    assert any(line.startswith("  base_model_precision=int4-quanto: about ") for line in lines)
