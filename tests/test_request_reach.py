"""Every setting of a song and every flag of `generate`, walked to what comes out.

And songs that are made together are the songs that are made alone. The model has one block of each kind, so
that ERG's are moved there; nothing is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from acestep_mlx import ACEStepPipeline, pipeline
from acestep_mlx.cli import generate, main
from acestep_mlx.config.request import GUIDANCE, SCHEDULERS, TASKS, Request
from acestep_mlx.errors import ConfigError
from acestep_mlx.families.requests import request_for
from acestep_mlx.families.v1 import FAMILY
from acestep_mlx.families.v1 import conditions as conditioning
from acestep_mlx.families.v1.conditions import SETTINGS, Encoded, Velocity
from acestep_mlx.io import audio
from acestep_mlx.io.hashes import hash_file
from acestep_mlx.sampling import record

from .reach import Walk
from .small import small_model

BASE = Request(
    prompt="slow jazz", lyrics="[verse]\nhello", duration=1.0, seeds=(3,), steps=4, guidance_interval=1.0,
    erg_tag=False, erg_lyric=False, erg_diffusion=False,
)  # fmt: skip
SOURCE_FRAMES = 14
LATENTS = conditioning.Conditioned.latents


class Lab:
    """Latents of requests, made with one pipeline and remembered."""

    def __init__(self, model: Path) -> None:
        self.pipe = ACEStepPipeline.from_pretrained(model)
        self.source = mx.random.normal((1, 8, 16, SOURCE_FRAMES), key=mx.random.key(9))
        self.kept: dict[Request, np.ndarray] = {}
        self.sigmas: list[float] = []

    def make(self, request: Request) -> np.ndarray:
        """(songs, 8, 16, T); the levels at which the model was asked are in `sigmas` afterwards."""
        source = self.source if request.needs_source else None
        self.sigmas.clear()
        return np.array(self.pipe.sample(request, self.pipe.prepare(request), source))

    def __call__(self, **changes: Any) -> np.ndarray:
        request = replace(BASE, **changes)
        if request not in self.kept:
            self.kept[request] = self.make(request)
        return self.kept[request]

    def differ(self, changes: dict[str, Any], **others: Any) -> None:
        """The song with `changes` is another than with `others` beside it."""
        one, other = self(**{**others, **changes}), self(**others)
        assert one.shape != other.shape or np.abs(one - other).max() > 1e-3, changes


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditioning, "LYRIC_LAYERS", (0, 1))
        patch.setattr(conditioning, "DIFFUSION_BLOCKS", (0, 1))
        patch.setattr(conditioning, "TEXT_BLOCKS", (0, 2))
        mx.disable_compile()
        try:
            made = Lab(small_model(tmp_path_factory.mktemp("request")))
            original = Velocity.__call__

            def watched(self: Velocity, latents: mx.array, sigma: float) -> mx.array:
                made.sigmas.append(sigma)
                return original(self, latents, sigma)

            patch.setattr(Velocity, "__call__", watched)
            yield made
        finally:
            mx.enable_compile()


WALK = Walk()
reaches = WALK.reaches


@pytest.mark.parametrize("name", [f.name for f in fields(Request)])
def test_every_setting_reaches_the_song(name: str, lab: Lab) -> None:
    WALK(name, lab)


def test_nothing_is_walked_that_is_not_there() -> None:
    assert set(WALK) == {f.name for f in fields(Request)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [f.name for f in fields(Request)])
def test_the_walk_notices_a_setting_that_is_lost(
    name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same walk with this one setting always at its default."""
    default = next(f.default for f in fields(Request) if f.name == name)
    read = Request.__getattribute__
    monkeypatch.setattr(
        Request, "__getattribute__", lambda self, asked: default if asked == name else read(self, asked)
    )
    monkeypatch.setattr(lab, "kept", {})
    with pytest.raises((Exception, pytest.fail.Exception)) as error:  # whatever it is that then goes wrong
        WALK(name, lab)
    assert not isinstance(error.value, AttributeError)


# ── what is asked for ────────────────────────────────────────────────────────────────────────────────
@reaches("prompt")
def _(lab: Lab) -> None:
    lab.differ({"prompt": "fast rock"})


@reaches("lyrics")
def _(lab: Lab) -> None:
    lab.differ({"lyrics": "[verse]\ngoodbye my love"})
    lab.differ({"lyrics": ""})


@reaches("lyrics_language")
def _(lab: Lab) -> None:
    lab.differ({"lyrics_language": "de"}, lyrics="[verse]\nnun")


@reaches("vocal_language", "bpm", "keyscale", "timesignature", "instruction")
def _(lab: Lab) -> None:
    """Other models read them (`tests/families/test_v15_generation.py`)."""
    asked = Request(
        vocal_language="de", bpm=97.5, keyscale="C minor", timesignature="3", instruction="Cover it:"
    )
    for name, typed in (
        ("instruction", "Cover it:"),
        ("vocal_language", "de"),
        ("bpm", 97.5),
        ("keyscale", "C minor"),
        ("timesignature", "3"),
    ):
        assert getattr(asked, name) == typed
        assert request_for(FAMILY, None, {name: typed}) == Request() and "v1" in SETTINGS.idle[name]


@reaches("cfg_interval_start", "cfg_interval_end")
def _(lab: Lab) -> None:
    lab.differ({"cfg_interval_start": 0.2})
    lab.differ({"cfg_interval_end": 0.2})
    np.testing.assert_allclose(
        lab(cfg_interval_start=0.9999, cfg_interval_end=1.0), lab(guidance_scale=1.0), atol=1e-5
    )


@reaches("cover_strength")
def _(lab: Lab) -> None:
    """Of a task that v1 does not have."""
    assert "cover" in TASKS and Request(task="cover", cover_strength=0.5).cover_strength == 0.5
    with pytest.raises(ConfigError, match="v1 has no task cover; choose one of text2music, retake"):
        request_for(FAMILY, None, {"task": "cover"})


@reaches("negative_prompt")
def _(lab: Lab) -> None:
    lab.differ({"negative_prompt": "noise"})


@reaches("task")
def _(lab: Lab) -> None:
    more = {"extend": {"extend_right": 1.0}, "edit": {"edit_prompt": "rock"}, "repaint": {"repaint_end": 0.6}}
    songs = [lab(task=task, **more.get(task, {})) for task in SETTINGS.tasks]
    for i, one in enumerate(songs):
        for other in songs[i + 1 :]:
            assert one.shape != other.shape or np.abs(one - other).max() > 1e-3


@reaches("duration")
def _(lab: Lab) -> None:
    assert [lab(duration=s).shape[-1] for s in (1.0, 2.5)] == [
        LATENTS.whole_frames(1.0),
        LATENTS.whole_frames(2.5),
    ]


@reaches("seeds")
def _(lab: Lab) -> None:
    both = lab(seeds=(3, 4))
    np.testing.assert_allclose(both[0], lab()[0], atol=1e-4)
    assert len(both) == 2 and np.abs(both[1] - both[0]).max() > 0.1


@reaches("steps")
def _(lab: Lab) -> None:
    for steps in (2, 5):
        lab.make(replace(BASE, steps=steps))
        assert len(lab.sigmas) == steps


@reaches("scheduler")
def _(lab: Lab) -> None:
    counts = {}
    for name in SCHEDULERS:
        lab.make(replace(BASE, scheduler=name))
        counts[name] = len(lab.sigmas)
        if name != "euler":
            lab.differ({"scheduler": name})
    assert counts == {"euler": 4, "heun": 7, "pingpong": 4}


@reaches("shift")
def _(lab: Lab) -> None:
    """With shift s a level σ is s·σ/(1 + (s − 1)·σ), twice: the line from 1 to 1/1000 and its ends."""
    for shift in (1.0, 5.0):
        lab.make(replace(BASE, shift=shift))

        def moved(level: float, s: float = shift) -> float:
            return s * level / (1 + (s - 1) * level)

        line = np.linspace(1.0, moved(0.001), 4)
        assert lab.sigmas == pytest.approx([moved(level) for level in line], rel=1e-4)


@reaches("oss_steps")
def _(lab: Lab) -> None:
    lab.make(replace(BASE, oss_steps=(1, 2, 9)))
    assert len(lab.sigmas) == 3 and lab.sigmas[1] > 0.9


# ── guidance ─────────────────────────────────────────────────────────────────────────────────────────
@reaches("guidance")
def _(lab: Lab) -> None:
    one, two, three = (lab(guidance=name, zero_init=False) for name in GUIDANCE)
    assert min(np.abs(a - b).max() for a, b in ((one, two), (two, three), (one, three))) > 1e-3


@reaches("guidance_scale")
def _(lab: Lab) -> None:
    """With plain guidance the song of one step lies on a line through the scales."""
    low, middle, high = (lab(guidance="cfg", guidance_scale=s, steps=1, omega=0.0) for s in (2.0, 3.0, 4.0))
    np.testing.assert_allclose(middle, (low + high) / 2, atol=1e-3)
    assert np.abs(high - low).max() > 1e-2


@reaches("guidance_interval")
def _(lab: Lab) -> None:
    lab.differ({"guidance_interval": 0.5}, steps=8)
    np.testing.assert_allclose(lab(guidance_interval=0.0), lab(guidance_scale=1.0), atol=1e-5)


@reaches("guidance_decay", "min_guidance_scale")
def _(lab: Lab) -> None:
    lab.differ({"guidance_decay": 1.0})
    lab.differ({"min_guidance_scale": 14.0}, guidance_decay=1.0)
    np.testing.assert_array_equal(lab(guidance_decay=1.0, min_guidance_scale=15.0), lab())


@reaches("guidance_scale_text", "guidance_scale_lyric")
def _(lab: Lab) -> None:
    both = {"guidance_scale_text": 5.0, "guidance_scale_lyric": 2.0}
    lab.differ(both)
    lab.differ({"guidance_scale_text": 9.0}, **both)
    lab.differ({"guidance_scale_lyric": 4.0}, **both)
    np.testing.assert_array_equal(lab(guidance_scale_text=5.0), lab())


@reaches("zero_steps", "zero_init")
def _(lab: Lab) -> None:
    star = {"guidance": "cfg_star"}
    lab.differ({"zero_steps": 2}, **star)
    lab.differ({"zero_init": False}, **star)
    np.testing.assert_array_equal(lab(**star, zero_init=False, zero_steps=3), lab(**star, zero_init=False))


@reaches("omega")
def _(lab: Lab) -> None:
    lab.differ({"omega": -50.0})


@reaches("erg_tag")
def _(lab: Lab) -> None:
    lab.differ({"erg_tag": True})


@reaches("erg_lyric")
def _(lab: Lab) -> None:
    lab.differ({"erg_lyric": True})


@reaches("erg_diffusion")
def _(lab: Lab) -> None:
    lab.differ({"erg_diffusion": True})


# ── tasks with a source, and retakes ─────────────────────────────────────────────────────────────────
@reaches("source")
def _(lab: Lab) -> None:
    heard: list[np.ndarray] = []

    class Codec:
        def encode(self, sound: np.ndarray, **options: Any) -> mx.array:
            heard.append(sound)
            return lab.source

        def decode(self, latents: mx.array, **options: Any) -> mx.array:
            return mx.zeros((latents.shape[0], latents.shape[-1] * 4096, 2))

    path = Path(str(lab.pipe.folder.path)).parent / "source.wav"
    sound = (0.1 * np.random.default_rng(0).standard_normal((57000, 2))).astype(np.float32)
    soundfile.write(path, sound, 44100, subtype="FLOAT")
    pipe = ACEStepPipeline(lab.pipe.folder, codec=Codec(), transformer=lab.pipe.transformer)
    made = pipe.run(replace(BASE, task="audio2audio", source=str(path)))
    assert made.shape == (1, 57000, 2)
    np.testing.assert_array_equal(heard[0], sound)


@reaches("variance")
def _(lab: Lab) -> None:
    plain = lab()
    distances = [np.linalg.norm(lab(task="retake", variance=v) - plain) for v in (0.0, 0.2, 1.0)]
    assert distances[0] < 1e-3 < distances[1] < distances[2]
    kept = lab(task="retake", variance=0.0, scheduler="pingpong", retake_seeds=(77,))
    np.testing.assert_allclose(kept, lab(scheduler="pingpong"), atol=1e-4)  # fresh noise is the song's own


@reaches("retake_seeds")
def _(lab: Lab) -> None:
    for more in (
        {"task": "retake"},
        {"task": "repaint", "repaint_end": 0.6},
        {"task": "extend", "extend_right": 1.0},
        {"task": "edit", "edit_prompt": "rock"},
    ):
        lab.differ({"retake_seeds": (77,)}, **more)
        np.testing.assert_array_equal(lab(retake_seeds=(4,), **more), lab(**more))  # seed + 1


@reaches("repaint_start", "repaint_end")
def _(lab: Lab) -> None:
    source = np.array(lab.source)
    first, last = LATENTS.whole_frames(0.3), LATENTS.whole_frames(0.7)
    made = lab(task="repaint", repaint_start=0.3, repaint_end=0.7)
    kept = [i for i in range(SOURCE_FRAMES) if np.array_equal(made[..., i], source[..., i])]
    assert kept == [i for i in range(SOURCE_FRAMES) if not first <= i < last]


@reaches("extend_left", "extend_right")
def _(lab: Lab) -> None:
    source = np.array(lab.source)
    left, right = LATENTS.whole_frames(1.0), LATENTS.whole_frames(2.0)
    made = lab(task="extend", extend_left=1.0, extend_right=2.0)
    assert made.shape[-1] == left + SOURCE_FRAMES + right
    np.testing.assert_array_equal(made[..., left:-right], source)
    np.testing.assert_array_equal(lab(task="extend", extend_left=1.0)[..., left:], source)


@reaches("edit_prompt", "edit_lyrics")
def _(lab: Lab) -> None:
    same = lab(task="edit", edit_prompt=BASE.prompt)
    for change in ({"edit_prompt": "rock"}, {"edit_prompt": None, "edit_lyrics": "[verse]\nother words"}):
        assert np.abs(lab(task="edit", **change) - same).max() > 1e-3
    np.testing.assert_array_equal(lab(task="edit", edit_prompt=None, edit_lyrics=BASE.lyrics), same)


@reaches("edit_begin", "edit_end", "edit_samples")
def _(lab: Lab) -> None:
    edit = {"task": "edit", "edit_prompt": "rock"}
    for change in ({"edit_begin": 0.5}, {"edit_end": 0.5}, {"edit_samples": 3}):
        lab.differ(change, **edit)
    counts = []
    for change in ({}, {"edit_begin": 0.5}, {"edit_samples": 3}):
        lab.make(replace(BASE, **edit, **change))
        counts.append(len(lab.sigmas))
    assert counts == [4, 2, 12]
    np.testing.assert_array_equal(lab(**edit, edit_begin=1.0), np.array(lab.source))


@reaches("reference_strength")
def _(lab: Lab) -> None:
    source = np.array(lab.source)
    distances = [
        np.linalg.norm(lab(task="audio2audio", steps=8, reference_strength=s) - source)
        for s in (0.1, 0.5, 0.8)
    ]
    assert distances[0] > distances[1] > distances[2]
    lab.make(replace(BASE, task="audio2audio", steps=8, reference_strength=0.75))
    assert len(lab.sigmas) == 2


# ── made together, made alone ────────────────────────────────────────────────────────────────────────
SEVERAL = {"seeds": (3, 11, 5), "retake_seeds": (70, 20, 90), "steps": 2}
TOGETHER: list[dict[str, Any]] = [
    {},
    {"scheduler": "pingpong"},
    {"erg_tag": True, "erg_lyric": True, "erg_diffusion": True, "scheduler": "heun"},
    {"guidance": "cfg_star", "zero_init": False},
    {"guidance_scale_text": 5.0, "guidance_scale_lyric": 2.0},
    {"task": "retake", "variance": 0.4},
    {"task": "repaint", "repaint_start": 0.3, "repaint_end": 0.9},
    {"task": "repaint"},
    {"task": "extend", "extend_left": 0.5, "extend_right": 1.0},
    {"task": "audio2audio", "reference_strength": 0.3},
    {"task": "edit", "edit_prompt": "loud rock with many drums and a long, long description of them"},
    {
        "task": "edit",
        "edit_lyrics": "[verse]\nother words\nand more of them\nthan there were",
        "edit_samples": 2,
    },
    {"task": "edit", "edit_prompt": "x", "edit_end": 0.5, "scheduler": "pingpong"},
    {"negative_prompt": "a longer text than the prompt is, by some words"},
]


@pytest.mark.slow_after(6)
@pytest.mark.parametrize("changes", TOGETHER, ids=str)
def test_each_song_of_several_is_the_song_made_alone(changes: dict[str, Any], lab: Lab) -> None:
    request = replace(BASE, **{**SEVERAL, **changes, "retake_seeds": ()})  # those that follow the seeds
    together = lab.make(request)
    for i in range(3):
        alone = lab.make(request.for_seed(i))[0]
        assert np.linalg.norm(together[i] - alone) < 1e-4 * np.linalg.norm(alone), i


@pytest.mark.slow_after(6)
@pytest.mark.parametrize("changes", TOGETHER, ids=str)
def test_each_song_is_the_same_in_groups_of_any_size(
    changes: dict[str, Any], lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(BASE, **{**SEVERAL, **changes})
    together = lab.make(request)
    rows = 4 if request.task == "edit" else 3 if request.guidance_scale_text else 2
    frames = together.shape[-1]
    seen: list[int] = []
    velocity = Velocity.__call__

    def counted(self: Velocity, latents: mx.array, sigma: float) -> mx.array:
        seen.append(latents.shape[0] * latents.shape[-1])
        return velocity(self, latents, sigma)

    monkeypatch.setattr(Velocity, "__call__", counted)
    for songs in (1, 2):
        seen.clear()
        monkeypatch.setattr(conditioning.Conditioned, "frames_at_once", frames * rows * songs)
        grouped = lab.make(request)
        assert np.linalg.norm(grouped - together) < 1e-4 * np.linalg.norm(together), songs
        assert max(seen) == frames * rows * songs  # frames of one evaluation: as many as fit, and no more


def test_conditions_of_unequal_length_do_not_touch_each_other(lab: Lab) -> None:
    """Velocities of rows with 3, 9 and 5 tokens, some masked, together and one by one."""
    model = lab.pipe.transformer
    width, latents = model.config.dim, mx.random.normal((3, 8, 16, 7), key=mx.random.key(1))
    rows = []
    for i, length in enumerate((3, 9, 5)):
        states = mx.random.normal((1, length, width), key=mx.random.key(10 + i))
        mask = mx.ones((1, length)) if i != 1 else (mx.arange(length)[None] < 7).astype(mx.float32)
        rows.append(Encoded(states, mask))
    together = np.array(Velocity(model, rows)(latents, 0.6))
    for i, row in enumerate(rows):
        alone = np.array(Velocity(model, [row])(latents[i : i + 1], 0.6))[0]
        np.testing.assert_allclose(together[i], alone, atol=1e-4)
        part = np.array(Velocity(model, rows).part(i, i + 1)(latents[i : i + 1], 0.6))[0]
        np.testing.assert_allclose(part, alone, atol=1e-4)
    short = Encoded(rows[1].states[:, :7], rows[1].mask[:, :7])
    np.testing.assert_allclose(
        np.array(Velocity(model, [short])(latents[1:2], 0.6))[0], together[1], atol=1e-4
    )
    assert np.abs(together[1] - np.array(Velocity(model, [rows[0]])(latents[1:2], 0.6))[0]).max() > 1e-3


# ── the flags of `generate` ──────────────────────────────────────────────────────────────────────────
#: A value for each setting that is not its default, as typed; they need not make sense together.
TYPED: dict[str, tuple[str, Any]] = {
    "prompt": ("slow jazz", "slow jazz"), "lyrics": ("[verse]", "[verse]"), "lyrics_language": ("de", "de"),
    "negative_prompt": ("noise", "noise"), "task": ("retake", "retake"), "duration": ("12.5", 12.5),
    "seeds": ("7,8", (7, 8)), "steps": ("11", 11), "scheduler": ("heun", "heun"), "shift": ("2.5", 2.5),
    "oss_steps": ("1,3", (1, 3)), "guidance": ("cfg", "cfg"), "guidance_scale": ("4.5", 4.5),
    "guidance_interval": ("0.25", 0.25), "guidance_decay": ("0.75", 0.75), "min_guidance_scale": ("1.5", 1.5),
    "guidance_scale_text": ("5.5", 5.5), "guidance_scale_lyric": ("6.5", 6.5), "zero_steps": ("3", 3),
    "zero_init": ("", False), "omega": ("-7", -7.0), "erg_tag": ("", False), "erg_lyric": ("", False),
    "erg_diffusion": ("", False), "source": ("s.wav", "s.wav"), "variance": ("0.3", 0.3),
    "retake_seeds": ("9,10", (9, 10)), "repaint_start": ("1.5", 1.5), "repaint_end": ("3.5", 3.5),
    "extend_left": ("4.5", 4.5), "extend_right": ("5.5", 5.5), "edit_prompt": ("rock", "rock"),
    "edit_lyrics": ("la", "la"), "edit_begin": ("0.2", 0.2), "edit_end": ("0.8", 0.8),
    "edit_samples": ("2", 2), "reference_strength": ("0.6", 0.6), "cover_strength": ("0.7", 0.7),
}  # fmt: skip


class Heard:
    """Stands for the pipeline: what `generate` asked of it."""

    def __init__(self, model: Path) -> None:
        self.model, self.opened, self.loras = model, [], []  # type: ignore[var-annotated]
        self.requests: list[Request] = []

    def from_pretrained(self, path: str, **options: Any) -> Any:
        from acestep_mlx.families.model_folder import ModelFolder

        self.opened.append((path, options))
        heard = self

        class Pipe:
            folder, loras, lyric_tokenizer = ModelFolder.open(heard.model), (), None
            family, fuse_loras = folder.family, False

            def load_lora(self, path: str, scale: float) -> None:
                heard.loras.append((path, scale))

            def read_source(self, request: Request, say: Any = None) -> np.ndarray | None:
                return None if request.source is None else np.zeros((44100, 2), np.float32)

            def run(self, request: Request, **options: Any) -> np.ndarray:
                heard.requests.append(request)
                return np.full((len(request.seeds), 4410, 2), 0.25, np.float32)

        return Pipe()


@pytest.fixture
def heard(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Heard:
    found = Heard(tiny_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "ACEStepPipeline", SimpleNamespace(from_pretrained=found.from_pretrained))
    monkeypatch.setattr(generate, "_remark", lambda *_: None)
    (tmp_path / "s.wav").write_bytes(b"")
    return found


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *arguments])
    return int(stop.value.code or 0)


def flags(name: str, typed: str) -> list[str]:
    flag = {"seeds": "seed", "retake_seeds": "retake-seed"}.get(name, name.replace("_", "-"))
    return [f"--{flag}", typed] if typed else [f"--no-{flag}"]


@pytest.mark.parametrize("name", [f.name for f in fields(Request) if f.name not in SETTINGS.idle])
def test_every_flag_of_a_setting_arrives(name: str, heard: Heard) -> None:
    assert name in TYPED, f"{name} is a setting: type it here"
    typed, value = TYPED[name]
    more = {"source": ["--task", "audio2audio"], "retake_seeds": ["--seed", "1,2"]}.get(name, [])
    prompt = [] if name == "prompt" else ["--prompt", "x"]
    assert run("--model", "m", *prompt, "-o", "out.wav", *more, *flags(name, typed)) == 0
    (request,) = heard.requests
    wanted = str(Path("s.wav").resolve()) if name == "source" else value
    assert getattr(request, name) == wanted != getattr(Request(), name)
    rest = {f.name for f in fields(Request)} - {name, "prompt", "seeds", "task" if more else name}
    assert {n: getattr(request, n) for n in rest} == {n: getattr(Request(), n) for n in rest}


def _command(heard: Heard, *arguments: str) -> Request:
    assert run("--model", "m", "--prompt", "x", *arguments) == 0
    return heard.requests[-1]


def test_every_other_flag_arrives(heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: dict[str, Callable[[], None]] = {}

    def flag(check: Callable[[], None]) -> None:
        checks[check.__name__] = check

    @flag
    def model() -> None:
        _command(heard, "-o", "model.wav")
        assert heard.opened[-1] == ("m", {"low_memory": True, "fuse_loras": False})

    @flag
    def fuse_loras() -> None:
        _command(heard, "-o", "fused.wav", "--fuse-loras")
        assert heard.opened[-1][1]["fuse_loras"] is True

    @flag
    def output() -> None:
        _command(heard, "-o", "folder/named.flac")
        assert soundfile.info("folder/named.flac").frames == 4410 and Path("folder/named.json").is_file()

    @flag
    def lyrics_file() -> None:
        Path("words.txt").write_text("[verse]\nfrom a file")
        assert _command(heard, "-o", "l.wav", "--lyrics-file", "words.txt").lyrics == "[verse]\nfrom a file"

    @flag
    def batch() -> None:
        assert _command(heard, "-o", "many.wav", "--seed", "5", "--batch", "3").seeds == (5, 6, 7)

    @flag
    def loras() -> None:
        _command(heard, "-o", "lora.wav", "--lora", "a.safetensors", "--lora", "b.safetensors")
        assert heard.loras[-2:] == [("a.safetensors", 1.0), ("b.safetensors", 1.0)]

    @flag
    def lora_scales() -> None:
        both = ["--lora", "a", "--lora", "b"]
        _command(heard, "-o", "one.wav", *both, "--lora-scale", "0.5")
        assert heard.loras[-2:] == [("a", 0.5), ("b", 0.5)]
        _command(heard, "-o", "each.wav", *both, "--lora-scale", "0.5", "--lora-scale", "-2")
        assert heard.loras[-2:] == [("a", 0.5), ("b", -2.0)]

    @flag
    def sample_rate() -> None:
        _command(heard, "-o", "rate.wav", "--sample-rate", "48000")
        assert soundfile.info("rate.wav").samplerate == 48000 and soundfile.info("rate.wav").frames == 4800

    @flag
    def from_json() -> None:
        first = _command(heard, "-o", "first.wav", "--seed", "9", "--steps", "7", "--omega", "3")
        assert run("--from-json", "first.json", "-o", "again.wav") == 0
        assert heard.requests[-1] == replace(first, retake_seeds=first.other_seeds)
        assert run("--from-json", "first.json", "-o", "other.wav", "--steps", "8") == 0
        assert heard.requests[-1].steps == 8 and heard.requests[-1].omega == 3
        assert run("--from-json", "first.json", "-o", "seeded.wav", "--seed", "20") == 0
        assert heard.requests[-1] == replace(first, seeds=(20,))  # a retake's seed follows the new one

    @flag
    def plot() -> None:
        _command(heard, "-o", "seen.wav", "--plot")
        assert Path("seen.png").read_bytes().startswith(b"\x89PNG")
        _command(heard, "-o", "unseen.wav")
        assert not Path("unseen.png").exists()

    @flag
    def opening() -> None:
        opened: list[Path] = []
        monkeypatch.setattr(generate, "open_file", opened.append)
        _command(heard, "-o", "quiet.wav")
        _command(heard, "-o", "played.wav", "--open")
        assert [path.name for path in opened] == ["played.wav"]

    @flag
    def force() -> None:
        Path("mine.wav").write_bytes(b"mine")
        assert run("--model", "m", "--prompt", "x", "-o", "mine.wav") == 1
        assert Path("mine.wav").read_bytes() == b"mine"
        _command(heard, "-o", "mine.wav", "--force")
        assert soundfile.info("mine.wav").frames == 4410

    settings = {f.name for f in fields(Request)}
    assert {p.name for p in generate.command.params} - settings == set(checks), "show what a new flag does"
    for check in checks.values():
        check()


def test_the_record_of_a_song_has_every_setting(heard: Heard) -> None:
    """What is stored beside a song is the request that made it, setting by setting."""
    typed = [part for name in ("negative_prompt", "steps", "omega", "erg_tag", "guidance_decay")
             for part in flags(name, TYPED[name][0])]  # fmt: skip
    request = _command(heard, "-o", "song.wav", "--seed", "4", *typed)
    stored = json.loads(Path("song.json").read_text())["acestep_mlx"]
    assert set(stored["request"]) == {f.name for f in fields(Request)}
    assert Request.from_dict(stored["request"]) == request.for_seed(0)
    assert stored["sample_rate"] == 44100


def test_the_record_has_the_loras_with_their_scales_and_contents(tmp_path: Path) -> None:
    files = {tmp_path / f"{name}.safetensors": scale for name, scale in (("a", 0.5), ("b", -2.0), ("c", 1.0))}
    for path in files:
        path.write_bytes(path.name.encode())
    folder: Any = SimpleNamespace(
        path=tmp_path / "model", config={"source": {"revision": "r"}}, quantization={"bits": 4},
        fingerprints={"transformer": "0"},
    )  # fmt: skip
    loras = [SimpleNamespace(path=path, scale=scale) for path, scale in files.items()]
    facts = generate._facts(SimpleNamespace(folder=folder, loras=loras))  # type: ignore[arg-type]
    assert [(Path(one["path"]), one["scale"]) for one in facts["loras"]] == list(files.items())
    assert [one["sha256"] for one in facts["loras"]] == [hash_file(path) for path in files]
    assert facts["model"] == {
        "path": str(tmp_path / "model"), "source": {"revision": "r"}, "quantization": {"bits": 4},
        "fingerprints": {"transformer": "0"},
    }  # fmt: skip


def test_a_repeat_takes_what_is_no_setting_from_the_record_too(heard: Heard) -> None:
    """Sample rate, LoRAs and their strengths; what is typed wins."""
    _command(heard, "-o", "first.wav", "--sample-rate", "48000")
    story = json.loads(Path("first.json").read_text())
    story["acestep_mlx"]["loras"] = [{"path": "a", "scale": 0.5}, {"path": "b", "scale": -2.0}]
    Path("first.json").write_text(json.dumps(story))
    for name, typed, rate, loras in (
        ("same", [], 48000, [("a", 0.5), ("b", -2.0)]),
        ("rate", ["--sample-rate", "44100"], 44100, [("a", 0.5), ("b", -2.0)]),
        ("scale", ["--lora-scale", "0.25"], 48000, [("a", 0.25), ("b", 0.25)]),
        ("lora", ["--lora", "c"], 48000, [("c", 1.0)]),
    ):
        heard.loras.clear()
        assert run("--from-json", "first.json", "-o", f"{name}.wav", *typed) == 0
        assert soundfile.info(f"{name}.wav").samplerate == rate, name
        assert heard.loras == loras, name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"model": {"path": "m", "fingerprints": {"transformer": "0"}}}, "note: the model is another one"),
        ({"model": {"path": "m"}}, "note: the model is another one"),
        (
            {"loras": [{"path": "a", "scale": 1.0, "sha256": "0"}]},
            "note: the LoRAs or their scales are others",
        ),
    ],
    ids=str,
)
def test_a_repeat_with_another_model_says_so(
    change: dict[str, Any], words: str, heard: Heard, capfd: pytest.CaptureFixture[str]
) -> None:
    _command(heard, "-o", "first.wav")
    story = json.loads(Path("first.json").read_text())
    story["acestep_mlx"].update(change)
    Path("first.json").write_text(json.dumps(story))
    capfd.readouterr()
    assert run("--from-json", "first.json", "-o", "again.wav") == 0
    notes = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == bool(words) and all(line.startswith(words) for line in notes)


@pytest.mark.parametrize("rate", [44100, 48000])
@pytest.mark.parametrize("seconds", [1.0, 12.5, 240.0])
def test_the_room_that_is_asked_for_is_what_the_largest_file_takes(
    rate: int, seconds: float, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(record, "check_writable", lambda paths, *, force, largest: asked.append(largest))
    _command(heard, "-o", "a.wav", "--duration", str(seconds), "--sample-rate", str(rate))
    audio.write_audio("b.wav", np.zeros((rate, 2), np.float32), rate)
    assert asked[0] == pytest.approx(seconds * Path("b.wav").stat().st_size, rel=1e-2)


@pytest.mark.parametrize("refused", [(0,), (1,), (0, 1)])
def test_a_song_that_was_not_saved_is_exit_code_1(
    refused: tuple[int, ...], heard: Heard, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With each reason on a line, and the other songs written."""
    songs = iter(range(2))

    def save(path: Path, *rest: Any, **more: Any) -> tuple[Path | None, list[str]]:
        i = next(songs)
        return (None, [f"reason {i}"]) if i in refused else (path, [])

    monkeypatch.setattr(record, "save_song", save)
    assert run("--model", "m", "--prompt", "x", "-o", "a.wav", "--seed", "7,8") == 1
    out, err = capfd.readouterr()
    assert [line.split(" (")[0] for line in out.splitlines()] == [
        f"a-{7 + i}.wav" for i in (0, 1) if i not in refused
    ]
    assert all(f"reason {i}" in err for i in refused) and "Traceback" not in err
