"""Songs of ACE-Step 1.5 on the miniature: every setting and task, from Python and from the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from acestep_mlx import ACEStepPipeline
from acestep_mlx.cli import main
from acestep_mlx.config.request import Request
from acestep_mlx.convert.converter import convert
from acestep_mlx.errors import ConfigError
from acestep_mlx.families import family
from acestep_mlx.families.protocol import LyricsQuestion
from acestep_mlx.families.requests import request_for
from acestep_mlx.families.v15.generation import IDLE, language_of, texts
from acestep_mlx.families.v15.miniature import CHANNELS, write_checkpoint

FAST = {
    "prompt": "slow jazz", "lyrics": "[verse]\nhello my love", "duration": 1.2, "seeds": (3,), "steps": 2,
    "guidance_scale": 4.0,
}  # fmt: skip


def _model(folder: Path, flavour: str) -> Path:
    write_checkpoint(folder / "checkpoint", flavour=flavour)
    convert(folder / "checkpoint", folder / flavour, dtype="float32")
    return folder / flavour


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _model(tmp_path_factory.mktemp("v15"), "base")


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _model(tmp_path_factory.mktemp("v15"), "turbo")


@pytest.fixture(scope="module")
def pipe(base: Path) -> ACEStepPipeline:
    return ACEStepPipeline.from_pretrained(base)


SOURCE = mx.random.normal((1, 35, CHANNELS), key=mx.random.key(5))


def make(pipe: ACEStepPipeline, **changes: Any) -> np.ndarray:
    """Latents (songs, T, C)."""
    request = request_for(pipe.family, pipe.folder, {**FAST, **changes})
    source = pipe.family.source(request, SOURCE, pipe) if request.needs_source else None
    return np.array(pipe.sample(request, pipe.prepare(request), source))


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "fast rock"}, {"lyrics": "[verse]\ngoodbye"}, {"lyrics": ""}, {"vocal_language": "de"},
        {"bpm": 120}, {"keyscale": "C minor"}, {"timesignature": "3"}, {"seeds": (4,)}, {"steps": 3},
        {"shift": 1.0}, {"guidance_scale": 2.0}, {"guidance": "cfg"}, {"cfg_interval_start": 0.1},
        {"cfg_interval_end": 0.1}, {"scheduler": "heun"}, {"scheduler": "pingpong"}, {"oss_steps": (1, 3)},
        {"guidance_decay": 1.0}, {"task": "retake"}, {"duration": 2.3}, {"instruction": "Sing"},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_reaches_the_song(changes: dict[str, Any], pipe: ACEStepPipeline) -> None:
    song, other = make(pipe), make(pipe, **changes)
    assert np.isfinite(other).all()
    assert song.shape != other.shape or np.abs(song - other).max() > 1e-4


@pytest.mark.parametrize("name", sorted(IDLE))
def test_settings_of_other_models_change_nothing(name: str, pipe: ACEStepPipeline) -> None:
    """They are at their defaults, so that no record claims otherwise."""
    odd: dict[str, Any] = {"guidance_interval": 0.25, "omega": -7.0, "lyrics_language": "de"}
    value = odd.get(name, False if name.startswith("erg_") else 5 if "samples" in name else "x")
    value = 0.5 if name.startswith(("guidance_scale_", "edit_b", "edit_en")) else value
    settings = pipe.family.song_settings(pipe.folder)
    request = request_for(pipe.family, pipe.folder, {**FAST, name: value})
    assert getattr(request, name) == settings.defaults.get(name, getattr(Request(), name)) != value
    assert "1.5" in settings.idle[name]


def test_what_the_model_reads() -> None:
    request = Request(prompt="pop", lyrics="[verse]\nla", bpm=120.0, keyscale="C major", duration=61.7)
    text, lyrics = texts(request)
    assert "- bpm: 120\n- timesignature: N/A\n- keyscale: C major\n- duration: 61 seconds\n" in text
    assert texts(replace(request, bpm=97.5))[0].count("- bpm: 97.5\n") == 1
    assert lyrics.endswith("# Lyric\n[verse]\nla<|endoftext|>")
    assert texts(replace(request, task="cover"))[0].startswith("# Instruction\nGenerate audio semantic")
    assert texts(replace(request, task="retake"))[0] == text


@pytest.mark.parametrize(
    ("lyrics", "code"),
    [
        ("[verse]\nSoft notes in the morning light", "en"),
        ("[Verse]\nIch habe dich so lange nicht gesehen\n[Refrain]\nund die Nacht ist still", "de"),
        ("[verse]\n夜空の星を見上げて", "ja"),
        ("[Instrumental]", "unknown"),
        ("", "unknown"),
        ("♪ ♪\n...", "unknown"),
    ],
)
def test_the_language_of_lyrics(lyrics: str, code: str) -> None:
    assert language_of(lyrics) == code
    said = texts(Request(lyrics=lyrics))[1]
    assert (
        said.startswith(f"# Languages\n{code}\n")
        and "# Languages\nnl\n" in texts(Request(lyrics=lyrics, vocal_language="nl"))[1]
    )


def test_texts_that_are_cut(pipe: ACEStepPipeline) -> None:
    request = Request(prompt="pop, " * 300, lyrics="[verse]\n" + "la " * 3000, vocal_language="en")
    prompt, lyrics = pipe.family.remarks(request, pipe)
    assert prompt.startswith("prompt: cut to 256 of ") and lyrics.startswith("lyrics: cut to 2048 of ")
    said = pipe.family.remarks(Request(lyrics="[verse]\nhello my love"), pipe)
    assert said == ["lyrics: taken for en; vocal_language says it otherwise"]
    said = pipe.family.remarks(Request(lyrics="[00:01.00]hello my love"), pipe)
    assert said[0] == "lyrics: time stamps removed from 1 line"
    asked = LyricsQuestion("[verse]\nhello", None, pipe.folder, None, Path(), lambda advance: None)
    read, counted = pipe.family.lyrics_report(asked)
    assert read == "read as they are written, after the line 'en'"
    assert counted.endswith("tokens of at most 2048")
    assert "--model" in pipe.family.lyrics_report(replace(asked, folder=None))[1]


@pytest.mark.slow
def test_a_batch_is_so_many_single_songs(pipe: ACEStepPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from acestep_mlx.families.v15.generation import Conditioned

    request = {"seeds": (3, 11, 5), "task": "retake", "cfg_interval_end": 0.5}
    batch = make(pipe, **request)
    for i, seed in enumerate(request["seeds"]):
        alone = make(pipe, **{**request, "seeds": (seed,)})[0]
        assert np.linalg.norm(batch[i] - alone) / np.linalg.norm(alone) < 1e-5
    monkeypatch.setattr(Conditioned, "frames_at_once", 100)
    assert np.allclose(make(pipe, **request), batch, atol=1e-5), "made in groups"


@pytest.mark.slow
def test_extended_songs_keep_what_is_given(pipe: ACEStepPipeline) -> None:
    """Around it the model hears silence, and what it adds is its own."""
    made = make(pipe, task="extend", extend_left=0.4, extend_right=0.8)
    assert made.shape == (1, 10 + 35 + 20, CHANNELS)
    assert np.allclose(made[:, 10:45], SOURCE, atol=1e-5)
    silence = np.array(pipe.condition_encoder.silence_latent)
    assert min(np.abs(made[0, :10] - silence[0, :10]).max(), np.abs(made[0, 45:]).max()) > 1e-2


@pytest.mark.slow
def test_a_song_from_a_sound(pipe: ACEStepPipeline) -> None:
    """The stronger the source, the nearer the song is to it; the levels are shifted once."""
    far, near = (
        np.linalg.norm(make(pipe, task="audio2audio", reference_strength=s, steps=10) - SOURCE)
        for s in (0.1, 0.8)
    )
    assert near < 0.6 * far
    schedule = pipe.family.conditioned(pipe.transformer, None, Request()).schedule
    assert schedule.noise_level(0.5, 3.0) == pytest.approx(0.75) == schedule.timetable(5, 3.0, 0.5)[0]
    assert schedule.custom_timetable((1, 4), 3.0) == [schedule.timetable(4, 3.0)[i] for i in (0, 3)]


@pytest.mark.slow
def test_a_section_anew(pipe: ACEStepPipeline) -> None:
    """The model makes the whole song beside what it is told of it."""
    one, other = (make(pipe, task="repaint", repaint_start=s, repaint_end=1.0) for s in (0.2, 0.6))
    assert one.shape == other.shape == SOURCE.shape and np.abs(one - other).max() > 1e-3
    assert np.abs(one - make(pipe, duration=1.4)).max() > 1e-3
    settings = pipe.family.song_settings(pipe.folder)
    assert settings.reasons(["variance", "prompt"], "repaint") == {
        "variance": "ACE-Step 1.5 makes the section anew"
    }
    assert settings.reasons(["variance"], "retake") == {}


@pytest.mark.parametrize("task", ["edit", "lego"])
def test_tasks_that_it_does_not_have(task: str, pipe: ACEStepPipeline) -> None:
    with pytest.raises(ConfigError, match="text2music"):
        request_for(pipe.family, pipe.folder, {"task": task, "edit_prompt": "x"})
    with pytest.raises(ConfigError, match="has no task edit; choose one of text2music, retake"):
        pipe.run(Request(task="edit", edit_prompt="x"), source_audio=np.zeros((48000, 2), np.float32))


@pytest.mark.slow
def test_defaults_are_the_variant_s(base: Path, turbo: Path) -> None:
    for path, steps, scale in ((base, 50, 7.0), (turbo, 8, 1.0)):
        pipe = ACEStepPipeline.from_pretrained(path)
        request = request_for(pipe.family, pipe.folder, {})
        assert (request.steps, request.guidance_scale, request.shift) == (steps, scale, 3.0)
        assert request.lyrics == "[Instrumental]"
    with pytest.warns(UserWarning, match="guidance_scale changes nothing: turbo models"):
        pipe.generate("x", duration=0.2, guidance_scale=7.0, output_type="latent", seed=1)


def test_noise_of_another_length(pipe: ACEStepPipeline) -> None:
    with pytest.raises(ConfigError, match=r"first noise must be \(1, 31, 8\), got \(1, 30, 8\)"):
        pipe.generate(
            "x",
            audio_duration=1.21,
            num_inference_steps=1,
            latents=mx.zeros((1, 30, 8)),
            output_type="latent",
        )


def test_only_its_own_attributes(pipe: ACEStepPipeline) -> None:
    with pytest.raises(AttributeError, match=r"the pipeline of ACE-Step 1\.5 has no 'lyrics_encoder'"):
        _ = pipe.lyrics_encoder


@pytest.mark.slow
def test_little_memory_is_little(base: Path, pipe: ACEStepPipeline) -> None:
    """One network at a time, and the same song."""
    low = ACEStepPipeline.from_pretrained(base, low_memory=True)
    made = low.generate("jazz", "la", 1.0, seed=[1, 2], steps=2)
    assert np.array_equal(made, pipe.generate("jazz", "la", 1.0, seed=[1, 2], steps=2))
    assert made.shape == (2, 48000, 2) and set(low._loaded) == {"codec"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flavour", "given", "steps", "scale"),
    [
        ("turbo", {}, 8, 1.0),
        ("turbo", {"validation_num_inference_steps": 2, "validation_guidance": 4.0}, 2, 1.0),
        ("base", {"validation_num_inference_steps": 2, "validation_guidance": 4.0}, 2, 4.0),
    ],
)
def test_clips_of_a_training_run(
    flavour: str, given: dict[str, Any], steps: int, scale: float, base: Path, turbo: Path, tmp_path: Path
) -> None:
    """With the model's own steps and guidance unless the configuration says otherwise."""
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.families.model_folder import ModelFolder
    from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
    from acestep_mlx.report.events import Listeners
    from acestep_mlx.training.validation import Validation

    folder = ModelFolder.open({"base": base, "turbo": turbo}[flavour])
    config = load_config({"validation_prompt": "jazz", "validation_audio_duration": 1, **given})
    clips = Validation.encoded(config, folder, tmp_path)
    (request,) = clips.requests.values()
    assert (request.steps, request.guidance_scale) == (steps, scale)
    assert request.lyrics == "[Instrumental]"
    model = folder.load("transformer")
    inject(model, LoRASpec(rank=2, alpha=2.0, targets=folder.family.lora.default_targets))
    for layer in adapter_modules(model).values():
        layer.lora_b = mx.ones_like(layer.lora_b)
    clips(model, 3, Listeners())
    files = sorted(path.name for path in (tmp_path / "validation").iterdir())
    assert len(files) == 2 and files[1] == "step_3_validation_0.wav"
    sounds = [soundfile.read(tmp_path / "validation" / name) for name in files]
    assert {rate for _, rate in sounds} == {48000} and np.abs(sounds[0][0] - sounds[1][0]).max() > 1e-3


# ── the command line ─────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["generate", *arguments])
        return int(stop.value.code or 0), capsys.readouterr().err

    return run


@pytest.mark.slow
def test_generate(command: Any, base: Path, turbo: Path) -> None:
    asked = ["--prompt", "jazz", "--duration", "1", "--steps", "2", "--seed", "4", "--bpm", "98"]
    code, said = command(
        "--model", str(base), *asked, "-o", "a.wav", "--omega", "3", "--lyrics-language", "de"
    )
    assert code == 0
    assert "--omega changes nothing: ACE-Step 1.5 has no granularity" in said
    assert "--lyrics-language changes nothing: ACE-Step 1.5 takes vocal_language" in said
    info = soundfile.info("a.wav")
    assert (info.samplerate, info.frames) == (48000, 48000), "the model's own rate"
    request = json.loads(Path("a.json").read_text())["acestep_mlx"]["request"]
    assert (request["bpm"], request["omega"], request["guidance_scale"]) == (98, 0.0, 7.0)
    assert command("--from-json", "a.json", "-o", "b.wav")[0] == 0
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()
    repaint = ["--task", "repaint", "--source", "a.wav", "--repaint-end", "0.5", "--steps", "1"]
    code, said = command(
        "--model", str(turbo), "--prompt", "x", *repaint, "-o", "c.wav", "--guidance-scale", "3"
    )
    assert code == 0 and "--guidance-scale changes nothing: turbo models" in said
    assert soundfile.info("c.wav").frames == 48000


@pytest.mark.slow
def test_generate_refuses(command: Any, base: Path, tiny_model: Path) -> None:
    edit = ["--task", "edit", "--edit-prompt", "y", "--source", "a.wav"]
    code, said = command("--model", str(base), "--prompt", "x", *edit)
    assert code == 1 and "error: ACE-Step 1.5 has no task edit; choose one of text2music" in said
    code, said = command("--model", str(tiny_model), "--prompt", "x", "--task", "cover", "--source", "a.wav")
    assert code == 1 and "ACE-Step v1 has no task cover" in said
    code, said = command(
        "--model", str(tiny_model), "--prompt", "x", "--duration", "1", "--steps", "1", "--bpm", "9"
    )
    assert code == 0 and "--bpm changes nothing: ACE-Step v1 hears of it in the prompt alone" in said


@pytest.mark.parametrize(
    ("given", "told"),
    [({"keyscale": "f# min"}, {"keyscale": "F# minor"}), ({"timesignature": "3/4"}, {"timesignature": "3"}),
     ({"bpm": 96.0}, {"bpm": 96}), ({"vocal_language": "German"}, {"vocal_language": "de"}),
     ({"vocal_language": "unknown"}, {"vocal_language": "unknown"}), ({"bpm": 0}, {"bpm": 0})],
)  # fmt: skip
def test_what_is_told_of_a_song_has_the_form_that_the_model_learned(
    given: dict[str, Any], told: dict[str, Any]
) -> None:
    """As a data set's metadata have it."""
    request = request_for(family("v15"), None, given)
    assert {name: getattr(request, name) for name in told} == told


@pytest.mark.parametrize(
    "given",
    [{"bpm": 9}, {"bpm": 999}, {"keyscale": "H"}, {"keyscale": "C lydian"}, {"timesignature": "7"},
     {"vocal_language": "12"}],
)  # fmt: skip
def test_what_the_model_cannot_be_told_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not"):
        request_for(family("v15"), None, given)


@pytest.mark.parametrize(
    "nonsense",
    [{"omega": "x"}, {"edit_begin": 2}, {"erg_tag": "perhaps"}, {"guidance_scale_text": float("nan")}],
)
def test_a_setting_that_changes_nothing_is_checked_as_well(nonsense: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(nonsense)).replace("_", ".")):
        request_for(family("v15"), None, nonsense)
