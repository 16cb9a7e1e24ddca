"""train(): learns, survives faults, shows what it does."""

from __future__ import annotations

import json
import sys
import types

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.errors import AceStepError, CheckpointError, ConfigError
from acestep_mlx.report.events import CheckpointSaved, Evaluated, Finished, Notice, StepDone, ValidationClip
from acestep_mlx.training import checkpoint, faults
from acestep_mlx.training.run import train
from acestep_mlx.training.step import TrainStep

from . import runs, tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def shown(root, tiny_model):
    """A run with everything that a run can show."""
    pytest.importorskip("tensorboard")
    config = runs.configuration(
        root,
        tiny_model,
        "shown",
        max_train_steps=4,
        checkpointing_steps=2,
        eval_loss_disable=False,
        num_eval_samples=2,
        validation_disable=False,
        validation_prompt="bright <house> & piano",
        validation_lyrics="[verse]\nRound and round\n",
        validation_audio_duration=3,
        validation_num_inference_steps=2,
        report_to="tensorboard",
        tracker_run_name="my run",
    )
    return config, *runs.run(config)


@pytest.mark.slow
def test_events_tell_the_whole_run(shown):
    _, result, seen = shown
    assert result.finished and result.step == 4
    assert [e.step for e in seen.of(StepDone)] == [1, 2, 3, 4]
    assert [e.step for e in seen.of(Evaluated)] == [0, 2, 4]
    assert [e.step for e in seen.of(CheckpointSaved)] == [2, 4]
    clips = seen.of(ValidationClip)
    assert all(e.lyrics == "[verse]\nRound and round\n" and -80 < e.loudness < 0 for e in clips)
    assert [(e.step, e.with_lora) for e in clips] == [(0, False), (2, True), (4, True)]
    assert len({e.seed for e in clips}) == 1
    assert isinstance(seen.events[-1], Finished) and seen.events[-1].lora == str(result.lora)
    for event in seen.of(StepDone):
        assert event.steps_per_second > 0 and event.audio_seconds_per_second > 0 and event.peak_memory > 0


@pytest.mark.slow
def test_metrics_file_has_what_a_log_line_has(shown, root):
    rows = [json.loads(line) for line in (root / "shown" / "metrics.jsonl").read_text().splitlines()]
    step = next(r for r in rows if r["event"] == "step")
    wanted = "step loss smoothed_loss learning_rate grad_norm peak_memory eta"
    assert {*wanted.split(), "steps_per_second", "audio_seconds_per_second"} <= set(step)
    assert {"0-200", "200-400", "400-600", "600-800", "800-1000"} == set(
        next(r for r in rows if r["event"] == "eval")["bins"]
    )


@pytest.mark.slow
def test_evaluation_is_the_same_number_every_time(shown, root, tiny_model):
    config, _, seen = shown
    again, seen_again = runs.run({**config, "output_dir": str(root / "shown-again"), "report_to": "none"})
    assert [e.loss for e in seen_again.of(Evaluated)] == [e.loss for e in seen.of(Evaluated)]
    runs.assert_identical(again.checkpoint, root / "shown" / "checkpoint-4")


@pytest.mark.slow
def test_report_is_one_file_without_network(shown):
    _, result, _ = shown
    page = result.report.read_text()
    assert (
        page.count("<svg") >= 7
        and page.count('"type": "audio/') == 3
        and page.count("data:image/png;base64,") == 3
    )
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert "bright &lt;house&gt; &amp; piano" in page and "<house>" not in page
    assert "my run" in page and "Without LoRA" in page


@pytest.mark.slow
def test_tensorboard_has_the_losses(shown, root):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(root / "shown" / "logs"))
    reader.Reload()
    assert [e.step for e in reader.Scalars("train/loss")] == [1, 2, 3, 4]
    assert reader.Scalars("eval/timestep_0-200")


@pytest.mark.slow
def test_wandb_gets_the_same_numbers(root, tiny_model, monkeypatch):
    logged = []
    fake = types.ModuleType("wandb")
    run = types.SimpleNamespace(
        log=lambda values, step=None: logged.append((step, values)),
        summary={},
        finish=lambda: logged.append("end"),
    )
    fake.init = lambda **given: logged.append(given["project"]) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    runs.run(runs.configuration(root, tiny_model, "wandb", report_to="wandb", max_train_steps=2))
    assert logged[0] == "acestep-mlx" and logged[-1] == "end"
    assert [step for step, values in logged[1:-1] if "train/loss" in values] == [1, 2]


def test_missing_tracker_says_what_to_install(root, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"acestep-mlx\[wandb\]"):
        runs.run(runs.configuration(root, tiny_model, "no-wandb", report_to="wandb"))


@pytest.mark.slow
def test_a_tiny_model_overfits_one_clip(tmp_path, tiny_model):
    """The loss with fixed noise and timesteps falls at least fivefold."""
    from dataclasses import replace

    from acestep_mlx.families.model_folder import ModelFolder
    from acestep_mlx.families.v1.codec import Codec
    from acestep_mlx.io.audio import read_audio
    from acestep_mlx.lora.surgery import LoRASpec

    from ..conftest import SHARED_AUDIO

    clip = SHARED_AUDIO / "test_track_001.mp3"
    if not clip.is_file():
        runs.write_songs(tmp_path / "tones")
        clip = tmp_path / "tones" / "low.wav"
    folder = ModelFolder.open(tiny_model)
    codec = Codec(folder.load("dcae"), folder.load("vocoder"))
    latents = codec.encode(read_audio(clip, duration=3.0), 44100)
    # wide enough that the frozen final layer can express any velocity (16 × 8 values a frame)
    config = replace(tiny.CONFIG, attention_head_dim=40)
    spec = LoRASpec(
        rank=32, targets=("to_q", "to_k", "to_v", "to_out.0", "inverted_conv.conv", "point_conv.conv")
    )
    model = tiny.adapted(spec=spec, config=config)
    batch = {**tiny.batch(0, T=latents.shape[-1]), "latents": latents}  # its key fixes noise and timestep
    step = tiny.step(model, lr=5e-3)
    losses = []
    for i in range(120):
        losses.append(step(batch, update=True, step=i).loss)
        mx.eval(losses[-1], step.state)
    assert losses[-1].item() * 5 <= losses[0].item(), (losses[0], losses[-1])


@pytest.mark.slow
def test_non_finite_steps_are_skipped_counted_and_end_the_run(root, tiny_model, monkeypatch):
    original, calls = TrainStep.__call__, []

    def poisoned(self, batch, **kwargs):
        calls.append(1)
        bad = len(calls) == 2 or len(calls) >= 5
        factor = mx.array(float("nan") if bad else 1.0)
        return original(self, {**batch, "latents": batch["latents"] * factor}, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", poisoned)
    config = runs.configuration(root, tiny_model, "nan", max_train_steps=50, checkpointing_steps=4)
    recorder = runs.Recorder()
    from acestep_mlx.training.run import train

    with pytest.raises(AceStepError, match=r"step 9: 5 steps in a row .* not\s+finite"):
        train(config, on_event=recorder)
    skipped = [e.step for e in recorder.of(StepDone) if e.skipped]
    assert skipped == [2, 5, 6, 7, 8, 9]
    kept = runs.latest(root / "nan")
    assert kept.step in (4, 8) and all(mx.isfinite(v).all().item() for v in kept.adapter.values())
    rows = [json.loads(line) for line in (root / "nan" / "metrics.jsonl").read_text().splitlines()]
    assert [r["loss"] is None for r in rows if r["event"] == "step"][:3] == [False, True, False]


@pytest.mark.slow
def test_full_disk_leaves_the_previous_checkpoint(root, tiny_model, monkeypatch):
    import errno

    config = runs.configuration(root, tiny_model, "full", checkpointing_steps=2)
    original = checkpoint.write_tensors

    def failing(path, *rest):
        if "checkpoint-4" in str(path) and path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, *rest)

    monkeypatch.setattr(checkpoint, "write_tensors", failing)
    with pytest.raises(CheckpointError, match=r"checkpoint-4 could not be written: the disk is full"):
        runs.run(config)
    names = sorted(p.name for p in (root / "full").iterdir() if "checkpoint" in p.name)
    assert names == ["checkpoint-2"]
    checkpoint.verify(root / "full" / "checkpoint-2")


@pytest.mark.slow
def test_full_disk_while_writing_numbers_is_one_line_too(root, tiny_model, monkeypatch):
    import errno

    from acestep_mlx.report.events import MetricsFile

    original = MetricsFile.__call__

    def failing(self, event):
        if isinstance(event, StepDone) and event.step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, event)

    monkeypatch.setattr(MetricsFile, "__call__", failing)
    with pytest.raises(AceStepError, match=r"disk is full.*checkpoint-2"):
        runs.run(runs.configuration(root, tiny_model, "full-metrics", checkpointing_steps=2))


@pytest.mark.slow
def test_the_page_of_a_run_draws_and_plays_in_a_browser_without_network(shown, tmp_path):
    from ..browser import browser

    _, result, _ = shown
    with browser(tmp_path) as tab:
        tab.open(result.report)
        assert "Done: 4 steps" in tab.js("document.body.innerText")
        clips = tab.js("[...document.querySelectorAll('[data-clip]')].map(cell => cell.dataset.clip)")
        assert clips == ["0-base", "0-2", "0-4"]
        for clip in clips:
            tab.click(f"[data-clip='{clip}']")
            tab.wait(f"players['{clip}'].currentTime > 0.1")
            assert 2.5 < tab.js(f"players['{clip}'].duration") < 3.5
            assert tab.js("$('picture').naturalWidth") > 200
        assert "Round and round" in tab.js("document.querySelector('.clips pre').textContent")
        assert (
            tab.js("[...document.querySelectorAll('polyline')].filter(p => p.points.length > 1).length") >= 8
        )
        assert not tab.errors and not [
            url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))
        ]


@pytest.mark.slow
def test_the_page_is_there_while_a_run_goes_on_and_says_when_it_is_over(root, tiny_model):
    config, pages = runs.configuration(root, tiny_model, "going-on", max_train_steps=3), {}
    folder = root / "going-on"

    def read(event):
        if isinstance(event, StepDone) and event.step > 1:  # the page follows the event of a step
            pages[event.step] = (folder / "report.html").read_text()

    result = train(config, on_event=read)
    assert "Training: 1 of 3 steps" in pages[2] and "my songs" not in pages[2]
    assert pages[3] == pages[2], "what changes is in the news, every few seconds"
    assert "Done: 3 steps" in result.report.read_text() and "songs/low" in result.report.read_text()
    news = (folder / "report_live.js").read_text()
    assert '"running": false' in news and "Done: 3 steps" in news


@pytest.mark.slow
def test_the_page_says_what_has_ended_a_run(root, tiny_model):
    def fail(event):
        if isinstance(event, StepDone) and event.step == 2:
            raise AceStepError("the <sky> falls")

    with pytest.raises(AceStepError, match="the <sky> falls"):
        train(runs.configuration(root, tiny_model, "ended", max_train_steps=3), on_event=fail)
    page = (root / "ended" / "report.html").read_text()
    assert "Stopped: 1 of 3 steps" in page and "The &lt;sky&gt; falls" in page and 'data-live=""' in page


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[metal::malloc] Unable to allocate 9126805504 bytes."),
        RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008)"),
        RuntimeError("cudaMalloc failed: out of memory"),
        MemoryError(),
    ],
)  # fmt: skip
def test_out_of_memory_says_what_to_lower_in_order(root, tiny_model, monkeypatch, error):
    def fail(self, batch, **kwargs):
        raise error

    monkeypatch.setattr(TrainStep, "__call__", fail)
    config = runs.configuration(root, tiny_model, "oom", gradient_checkpointing=False, train_batch_size=2)
    with pytest.raises(faults.OutOfMemory) as caught:
        runs.run(config)
    text = str(caught.value)
    order = [
        "gradient_checkpointing=true",
        "int8-quanto",
        "train_batch_size=1",
        "max_duration",
        "mixed_precision=bf16",
    ]
    places = [text.index(piece) for piece in order]
    assert places == sorted(places) and "\n" not in text


def test_other_errors_are_not_disguised(root, tiny_model, monkeypatch):
    def fail(self, batch, **kwargs):
        raise RuntimeError("[matmul] shapes do not agree")

    monkeypatch.setattr(TrainStep, "__call__", fail)
    with pytest.raises(RuntimeError, match="matmul"):
        runs.run(runs.configuration(root, tiny_model, "bug"))


def test_watchdog_points_to_the_display():
    lost = "resume_from_checkpoint=latest. The last one is 5"
    with pytest.raises(AceStepError, match=lost), faults.explained(load_config({}), "The last one is 5"):
        raise RuntimeError("[ring] connection to a peer was reset")
    with pytest.raises(AceStepError, match="display"), faults.explained(load_config({})):
        raise RuntimeError("[METAL] Command buffer execution failed: Impacting Interactivity")


@pytest.mark.slow
def test_init_lora_continues_from_any_lora_file(root, tiny_model):
    first, _ = runs.run(runs.configuration(root, tiny_model, "first", max_train_steps=2, lora_alpha=4))
    config = runs.configuration(
        root, tiny_model, "second", init_lora=str(first.lora), learning_rate=0, max_train_steps=1
    )
    second, _ = runs.run(config)
    from acestep_mlx.lora.formats.read import read_lora

    a, b = read_lora(first.lora), read_lora(second.lora)
    for path, module in a.modules.items():
        assert mx.abs(module.delta() - b.modules[path].delta()).max().item() < 1e-6


@pytest.mark.slow
def test_epochs_give_the_length_and_checkpoints(root, tiny_model):
    config = runs.configuration(
        root, tiny_model, "epochs", max_train_steps=0, num_train_epochs=2, checkpoint_epoch_interval=1
    )
    result, seen = runs.run(config)
    assert result.step == 6 and [e.step for e in seen.of(CheckpointSaved)] == [3, 6]
    assert [e.epoch for e in seen.of(StepDone)] == [0, 0, 0, 1, 1, 1]


def test_unwritable_output_is_one_line(root, tiny_model, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    config = runs.configuration(root, tiny_model, "x")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        runs.run({**config, "output_dir": str(blocker / "run")})


@pytest.mark.slow
def test_skipped_songs_are_named(root, tiny_model, tmp_path):
    songs = tmp_path / "songs"
    runs.write_songs(songs)
    (songs / "broken.wav").write_bytes(b"RIFF nonsense")
    backends = [{"id": "s", "instance_data_dir": str(songs)}]
    _, seen = runs.run(runs.configuration(root, tiny_model, "skips", max_train_steps=1, backends=backends))
    warnings = [e.text for e in seen.of(Notice) if e.level == "warning"]
    assert any(text.startswith("skipped s/broken.wav: ") for text in warnings)
    assert "1 song skipped, 3 songs left" in warnings


def test_mixed_lengths_trace_once_per_shape():
    model = tiny.adapted()
    step = tiny.step(model, accumulate=2)
    for i, T in enumerate([12, 12, 18, 18, 12, 12, 18, 18] * 2):
        step(tiny.batch(i, T=T), update=i % 2 == 1)
    assert step.traces == 4  # two lengths, with and without an update


def test_spectrogram_is_a_valid_picture(tmp_path):
    import zlib

    from acestep_mlx.report.spectrogram import log_mel_png

    data = log_mel_png(np.random.default_rng(0).standard_normal((128, 700)))
    assert data.startswith(b"\x89PNG") and zlib.crc32(data[12:29]).to_bytes(4, "big") == data[29:33]
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert (width, height) == (480, 128)


@pytest.mark.slow
def test_what_songs_lack_is_said_before_the_first_step(root, tiny_model, tmp_path):
    songs = tmp_path / "songs"
    runs.write_songs(songs)
    (songs / "low.txt").unlink()
    (songs / "low.lyrics").write_text("[Verse 1]\nla")
    (songs / "Set.band").mkdir()
    (songs / "Set.band" / "take.wav").write_bytes(b"RIFF")
    backends = [{"id": "s", "instance_data_dir": str(songs)}]
    _, seen = runs.run(runs.configuration(root, tiny_model, "lacks", max_train_steps=1, backends=backends))
    first = next(i for i, event in enumerate(seen.events) if isinstance(event, StepDone))
    said = "\n".join(event.text for event in seen.events[:first] if isinstance(event, Notice))
    for part in ("1 of 3 songs in s has no caption (low.wav): trained on an empty prompt",
                 "1 of 3 songs in s has no lyrics (middle.wav): trained as if nothing were sung",
                 "lyrics of 2 of 3 songs", "left out, no song: Set.band/ (package (.band))"):  # fmt: skip
        assert part in said
