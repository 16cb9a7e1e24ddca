"""`train --dry-run`: five lines that say whether to begin, and what is wrong before anything is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from acestep_mlx.cli import main
from acestep_mlx.cli.dry_run import beside_steps
from acestep_mlx.config.read_run import load_config
from acestep_mlx.convert import source
from acestep_mlx.convert.conversions import ensure_model
from acestep_mlx.data.encode import encode_dataset
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.families import families, released
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.training import footprint, hours, memory
from acestep_mlx.training.hours import Hours
from acestep_mlx.training.intervals import Agenda, Intervals, ToCome
from acestep_mlx.training.pace import Rates
from acestep_mlx.training.preflight import preflight
from acestep_mlx.training.proposal import Model, _fetched, between

from .data.songs import song
from .training import runs

NAMES = ["memory", "time", "disk", "songs", "next"]
Dry = Callable[..., dict[str, str]]


@pytest.fixture
def dry(tmp_path: Path, tiny_run: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Dry:
    """The five lines by their names, of a run of each family on four files."""
    songs = tmp_path / "songs"
    songs.mkdir()
    song(songs, "a", 3.0, lyrics="[verse]\nla")
    song(songs, "b", 2.0, caption=None)
    song(songs, "c", 3.0)
    (songs / "d.mp3").write_bytes(b"")
    config = runs.configuration(tmp_path, Path(), "out", max_train_steps=20, **tiny_run)
    (tmp_path / "config.json").write_text(json.dumps(config))

    def run(*arguments: str) -> dict[str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["train", str(tmp_path / "config.json"), "--dry-run", *arguments])
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        lines = out.splitlines()
        assert [line.split(":")[0] for line in lines[:5]] == NAMES
        assert len(lines) == 5 or "--verbose" in arguments
        return dict(line.split(": ", 1) for line in lines[:5])

    return run


@pytest.mark.slow
@pytest.mark.slow_after(1)
def test_five_lines_and_the_rest_when_it_is_asked_for(dry: Dry, tmp_path: Path) -> None:
    said = dry("--lora_rank=2", "--output_dir=a b")
    assert said["memory"].startswith("fits, ") and " to spare: about " in said["memory"]
    ends = (" % of the work in linear layers", ", while the songs are encoded")
    assert said["memory"].endswith(ends)
    assert "to encode the songs, " in said["time"] and "to train (20 steps), estimated" in said["time"]
    assert said["disk"].startswith("fits, ") and "caches" in said["disk"] and "checkpoints" in said["disk"]
    assert said["songs"].startswith("3 of 4 songs, 0:08; 1 left out (d.mp3: empty file); 1 without a caption")
    config = tmp_path / "config.json"
    prepare, train = said["next"].split(" (it drafts what songs lack), then ")
    assert prepare.startswith(f"acestep-mlx prepare {tmp_path / 'songs'}")
    assert train == f"acestep-mlx train {config} --lora_rank=2 '--output_dir=a b'"
    (tmp_path / "songs" / "b.txt").write_text("a song")
    assert dry()["next"] == f"acestep-mlx train {config}"
    assert dry("--verbose", "--lora_rank=2", "--output_dir=a b").keys() == said.keys()


def test_verbose_alone_means_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "config.json", "--verbose"])
    assert stop.value.code == 2 and "--verbose goes with --dry-run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("tiny_run", ["base"], indirect=True)
def test_what_does_not_fit_is_said_with_what_to_do(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "budget", lambda: 1e6)
    monkeypatch.setattr(footprint, "free_space", lambda path: 1000)
    said = dry()
    assert said["memory"].startswith("does not fit, ") and said["memory"].endswith("lets a run use")
    assert said["memory"].startswith("does not fit, ") and "of 1.00 MB" in said["memory"]
    assert "too much on the disk of " in said["disk"]
    assert said["next"].startswith("make it fit by base_model_precision=int8-quanto")
    monkeypatch.setattr(memory, "budget", lambda: 1e12)
    said = dry()
    assert said["next"].startswith("free ") and " then acestep-mlx train " in said["next"]


@pytest.mark.slow
@pytest.mark.parametrize("tiny_run", ["base"], indirect=True)
def test_a_run_that_goes_on_counts_what_is_left(dry: Dry, tmp_path: Path) -> None:
    options = json.loads((tmp_path / "config.json").read_text())
    runs.run({**options, "max_train_steps": 2, "lora_rank": 2})
    said = dry("--lora_rank=2", "--resume_from_checkpoint=latest")
    assert said["time"].startswith("the songs are encoded, about 1 minute to train (18 steps), ")
    assert "caches" not in said["disk"] and said["time"].endswith("s a step, as measured in this run")
    said = dry("--lora_rank=2", "--resume_from_checkpoint=latest", "--max_train_steps=2")
    assert said["time"].startswith("none") and said["next"].startswith("nothing left to train")


# ── disk ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_the_disk_line_agrees_with_what_is_written(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion to a few bytes; caches, whose texts are guessed, within a third."""
    monkeypatch.setenv("ACESTEP_MLX_CACHE", str(tmp_path / "models"))
    options = runs.configuration(tmp_path, tiny_checkpoint, "out", base_model_precision="int8-quanto")
    config = load_config(options)
    manifest = build_manifest(config, remember=False)
    found = preflight(config, lambda *_: None)
    there = footprint.encoded(config, found, manifest)
    use = footprint.disk_use(config, found, manifest, Agenda(Intervals.of(config), 6, 3), there)
    parts = {part.what: part.bytes for part in use.parts}
    assert list(parts) == ["converted model", "caches", "checkpoints"]
    model = ensure_model(tiny_checkpoint, quantize=config.quantization)
    written = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert parts["converted model"] == pytest.approx(written, rel=0.05)
    cache = encode_dataset(manifest, config, ModelFolder.open(model))
    assert parts["caches"] == pytest.approx(cache.disk_usage(), rel=0.34)
    again = preflight(config, lambda *_: None)
    there = footprint.encoded(config, again, manifest)
    assert there == {sample.id for sample in manifest.samples}
    use = footprint.disk_use(config, again, manifest, Agenda(Intervals.of(config), 6, 3), there)
    assert [part.what for part in use.parts] == ["checkpoints"], "nothing is converted or encoded twice"


@pytest.mark.slow
@pytest.mark.parametrize("tiny_run", ["base"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"use_ema": True, "optimizer": "lion"}])
def test_a_checkpoint_takes_what_is_said(
    options: dict[str, Any], tmp_path: Path, tiny_run: dict[str, str]
) -> None:
    values = runs.configuration(tmp_path, Path(), "out", max_train_steps=1, lora_rank=8, **tiny_run)
    config = load_config(values | options)
    said, lora = footprint.checkpoint_bytes(config, preflight(config, lambda *_: None).model)
    result, _ = runs.run(values | options)
    written = sum(path.stat().st_size for path in result.checkpoint.rglob("*") if path.is_file())
    assert said == pytest.approx(written, rel=0.2)
    assert lora == pytest.approx(result.lora.stat().st_size * (2 if config.use_ema else 1), rel=0.2)


class Refused(Exception):
    """As transports have them: of no kind that anybody else knows."""


class Hub:
    """A hub with these files: repository → name → bytes. None: out of reach."""

    def __init__(self, repositories: dict[str, dict[str, int]] | None) -> None:
        self.repositories = repositories

    def model_info(self, repo: str, revision: Any, timeout: float, files_metadata: bool = False) -> Any:
        assert timeout <= 10
        if self.repositories is None:
            raise Refused("no network")
        files = self.repositories[repo].items()
        return SimpleNamespace(
            sha="0" * 40, siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in files]
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], None]:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return lambda repositories: monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(repositories))


def test_the_hub_says_how_much_is_downloaded(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is fetched: no pickle, no picture, no other model's folder, and nothing that is there."""
    import huggingface_hub

    v1 = released().repository
    weights = {
        "ace_step_transformer/diffusion_pytorch_model.safetensors": 6_000,
        "ace_step_transformer/x.bin": 9,
    }
    weights |= {"music_dcae_f8c8/config.json": 10, "umt5-base/model.safetensors": 700, "assets/cover.png": 5}
    hub({v1: weights})
    assert source.download(v1, None) == (6_710, True)
    there = {"umt5-base/model.safetensors"}
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, name, revision: "/x" if name in there else None,
    )
    assert source.download(v1, None) == (6_010, True)


def test_a_variant_s_download_counts_what_is_in_another_repository(hub: Any) -> None:
    variant = next(v for f in families() for name, v in f.variants.items() if name == "v15-base")
    own = {"config.json": 1, "model.safetensors": 5_000, "README.md": 7}
    beside = {"vae/diffusion_pytorch_model.safetensors": 300, "Qwen3-Embedding-0.6B/model.safetensors": 1_200}
    others = {"acestep-v15-turbo/model.safetensors": 5_000, "acestep-5Hz-lm-1.7B/model.safetensors": 4_000}
    assert variant.beside is not None
    hub({variant.repository: own, variant.beside: beside | others})
    assert source.download(variant.repository, None) == (6_501, True)


@pytest.mark.parametrize("flavour", [name for one in families() for name in one.variants])
def test_without_a_network_it_is_what_the_family_knows(flavour: str, hub: Any) -> None:
    hub(None)
    variant = next(v for f in families() for name, v in f.variants.items() if name == flavour)
    found = source.download(variant.repository, None)
    assert not found.asked and 6e9 < found.bytes < 13e9
    assert source.hub_commit("nobody/model", None) is None
    assert f"about {found.bytes / 1e9:g} GB are downloaded" in _fetched(Model.released(flavour)), "says new"
    config = load_config({"model_flavour": flavour, "pretrained_model_name_or_path": variant.repository})
    model = footprint.BaseModel("", None, None, None)
    parts = list(footprint._model(config, model, variant.repository, None, Path("/")))
    assert [part.what for part in parts] == ["download", "converted model"]
    assert 0.55 < parts[1].bytes / parts[0].bytes < 1.1


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("intervals", "step", "want"),
    [
        (Intervals(500), 0, ToCome(4, 4, 4)),
        (Intervals(500), 500, ToCome(3, 3, 3)),
        (Intervals(300, evaluation_steps=100, validation_steps=1000), 999, ToCome(11, 4, 2)),
        (Intervals(0, evaluation_steps=0), 0, ToCome(1, 1, 1)),
        (Intervals(0, 4), 0, ToCome(13, 13, 13)),
        (Intervals(500, validation_steps=0, validation_epochs=10), 0, ToCome(4, 4, 5)),
        (Intervals(1), 2000, ToCome(0, 0, 0)),
    ],
)
def test_what_is_still_to_come(intervals: Intervals, step: int, want: ToCome) -> None:
    """Of 2000 steps, 40 to an epoch; and the same as asking after every single step."""
    agenda = Agenda(intervals, 2000, 40)
    assert agenda.after(step) == want
    asked = [
        sum(due(n, n // 40 if n % 40 == 0 else None, n == 2000) for n in range(step + 1, 2001))
        for due in (intervals.evaluation_due, intervals.checkpoint_due, intervals.validation_due)
    ]
    assert asked == list(want)


def test_very_long_runs_are_counted_at_once() -> None:
    assert Agenda(Intervals(1), 10**9, 7).after(5).checkpoints == 10**9 - 5


HEARD = {"validation_prompt": "jazz", "validation_step_interval": 2}


@pytest.mark.parametrize(
    ("options", "resumed", "want"),
    [
        ({}, False, (3, 0)),  # that before the first step, and two
        ({}, True, (2, 0)),
        ({"num_eval_images": 0}, False, (0, 0)),
        ({"eval_loss_disable": True}, False, (0, 0)),
        (HEARD, False, (3, 3)),  # that without the LoRA, and two
        (HEARD, True, (2, 2)),
        ({**HEARD, "validation_on_startup": True}, False, (3, 4)),
        ({**HEARD, "use_ema": True}, False, (3, 5)),  # with both weights
        ({**HEARD, "use_ema": True, "ema_validation": "ema_only"}, False, (3, 3)),
    ],
)
def test_evaluations_and_clips_are_all_counted(
    options: dict[str, Any], resumed: bool, want: tuple[int, int]
) -> None:
    """Of four steps, a checkpoint after every other one; so many were counted in runs of the miniature."""
    config = load_config({"max_train_steps": 4, "checkpoint_step_interval": 2, **options})
    ready: Any = SimpleNamespace(step=0, resume=Path("old") if resumed else None)
    told = beside_steps(config, ready, Agenda(Intervals.of(config), 4, 3))
    assert (told["evaluation"], told["clip"]) == want


@pytest.mark.slow_after(1)
def test_hours_count_steps_evaluations_and_clips(
    tmp_path: Path, tiny_run: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step on a song takes 2 s here, whatever it is of, and 3 s where all is computed again: a pass forward
    1 s.
    """

    def song_seconds(_config: Any, _length: float, again: memory.Recomputed, *_: Any, **__: Any) -> float:
        return 3.0 if again.wholly else 2.0

    monkeypatch.setattr(hours, "song_seconds", song_seconds)
    rates = (Rates(1e12, 1e11), Rates(2e12, 1e11))

    def found(**options: Any) -> Hours:
        values = {"eval_loss_disable": True, "validation_disable": True, "max_train_steps": 10, **options}
        config = load_config(runs.configuration(tmp_path, Path(), "out", **values, **tiny_run))
        ready, manifest = preflight(config, lambda *_: None), build_manifest(config, remember=False)
        agenda = Agenda(Intervals.of(config), config.max_train_steps, 3)
        return hours.hours(config, ready, manifest, agenda, set(), rates, memory.Recomputed())

    assert found().train == 20 and found(train_batch_size=2, gradient_accumulation_steps=2).train == 80
    evaluated = found(eval_loss_disable=False, eval_steps_interval=5, num_eval_images=2)
    assert evaluated.train == 20 + (1 + 2) * 2 * 5 * 1.0
    (tmp_path / "apart").mkdir()
    song(tmp_path / "apart", "x", 3.0)
    sets = [
        {"id": "songs", "instance_data_dir": str(tmp_path / "songs")},
        {"id": "apart", "dataset_type": "eval", "instance_data_dir": str(tmp_path / "apart")},
    ]
    apart = found(eval_loss_disable=False, eval_steps_interval=5, num_eval_images=2, backends=sets)
    assert apart.train == 20 + (1 + 2) * 1 * 5 * 1.0
    clips = {"validation_prompt": "jazz", "validation_num_inference_steps": 8, "validation_guidance": 1.0}
    heard = found(validation_disable=False, validation_steps=5, **clips)
    assert heard.train == 20 + (1 + 2) * 8 * 1.0
    average = {"use_ema": True, "validation_disable": False, "validation_steps": 5, **clips}
    assert found(**average).train == 20 + (1 + 2 * 2) * 8 * 1.0, "and with the averaged weights"
    assert found(**average, ema_validation="ema_only").train == heard.train
    assert found().encode > 0 and "estimated" in found().basis


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(1, "a minute at most"), (600, "7 to 20 minutes"), (5 * 3600, "3 to 10 hours"),
     (3600, "40 minutes to 2 hours")],
)  # fmt: skip
def test_an_estimate_is_a_range(seconds: float, said: str) -> None:
    assert between(seconds) == said
