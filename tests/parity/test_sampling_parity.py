"""The samplers against the reference pipeline: same weights, same noise, same latents after 8 steps."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.request import Request
from acestep_mlx.families import family
from acestep_mlx.families.v1.conditions import Conditioned, Conditions, Prompt
from acestep_mlx.families.v1.dit import ACEStepTransformer, TransformerConfig
from acestep_mlx.sampling.sample import sample

from ..later import Later
from . import reference
from .test_transformer_parity import make_ours, make_reference

pytestmark = pytest.mark.parity
torch = Later("torch")

TOLERANCE = 1e-3
STEPS = 8
frames_of = family("v1").latents.whole_frames
MAX_FRAMES = frames_of(240)
SECONDS = 2.0  # 21 frames
CONFIG = TransformerConfig(
    num_layers=20,  # ERG weakens blocks 15 to 19
    # Linear attention jumps where all of a query's numbers turn negative: to be met one time in 2^head_dim.
    attention_head_dim=32,
    num_attention_heads=2,
    speaker_embedding_dim=16,
    text_embedding_dim=24,
    lyric_encoder_vocab_size=50,
    lyric_hidden_size=32,
    lyric_encoder_layers=6,  # and layers 4 and 5 of this
    lyric_encoder_heads=4,
    lyric_encoder_ff=48,
)


def _stand_ins() -> None:
    """What the reference pipeline imports for logging only."""
    if "loguru" not in sys.modules:
        loguru = types.ModuleType("loguru")
        loguru.__spec__ = importlib.machinery.ModuleSpec("loguru", None)
        loguru.logger = types.SimpleNamespace(info=lambda *_: None, warning=lambda *_: None)
        sys.modules["loguru"] = loguru


class Draws:
    """Random numbers of the reference, in the order in which it asked for them."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.made: list[np.ndarray] = []

    def __call__(self, shape: tuple[int, ...]) -> Any:
        values = self._rng.standard_normal(shape).astype(np.float32)
        self.made.append(values)
        return torch.from_numpy(values)


@dataclass
class Pair:
    """The reference pipeline and our transformer with the same weights."""

    pipeline: Any
    module: Any
    transformer: ACEStepTransformer
    inputs: dict[str, np.ndarray]

    def prompt(self, name: str = "", *, null: bool = False, rows: slice = slice(0, 1)) -> Prompt:
        ids, mask = self.inputs[name + "lyric_ids"][rows], self.inputs[name + "lyric_mask"][rows]
        return Prompt(
            mx.array(self.inputs[name + "text"][rows]),
            mx.array(self.inputs[name + "text_mask"][rows]),
            mx.array(ids.astype(np.int32)),
            mx.array(mask),
            mx.array(self.inputs["null_text"][rows]) if null else None,
        )


@pytest.fixture(scope="module")
def pair() -> Pair:
    _stand_ins()
    module = reference.load("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        theirs = make_reference(CONFIG, patch)
    ours = make_ours(CONFIG, theirs)

    pipeline = object.__new__(module.ACEStepPipeline)
    pipeline.device, pipeline.dtype, pipeline.cpu_offload = torch.device("cpu"), torch.float32, False
    pipeline.ace_step_transformer = theirs

    rng = np.random.default_rng(1)
    inputs = {}
    for name in ("", "target_"):
        inputs[name + "text"] = rng.standard_normal((1, 5, 24)).astype(np.float32)
        inputs[name + "text_mask"] = np.ones((1, 5), np.float32)
        inputs[name + "lyric_ids"] = rng.integers(1, 50, (1, 7))
        inputs[name + "lyric_mask"] = np.ones((1, 7), np.float32)
    inputs["null_text"] = rng.standard_normal((1, 5, 24)).astype(np.float32)
    return Pair(pipeline, module, ours, inputs)


@pytest.fixture
def draws(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Draws]:
    source = Draws(5)
    monkeypatch.setattr(pair.module, "randn_tensor", lambda shape, **_: source(tuple(shape)))
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, **_: self.copy_(source(tuple(self.shape))))
    monkeypatch.setattr(pair.module, "tqdm", lambda it, **_: it)
    return source


def run_reference(pair: Pair, request: Request, *, songs: int = 1, **arguments: Any) -> np.ndarray:
    """Latents of `text2music_diffusion_process` for what `request` says."""

    def tensor(name: str) -> Any:
        return torch.from_numpy(pair.inputs[name]).repeat(songs, *[1] * (pair.inputs[name].ndim - 1))

    latents = pair.pipeline.text2music_diffusion_process(
        duration=request.duration,
        encoder_text_hidden_states=tensor("text"),
        text_attention_mask=tensor("text_mask"),
        speaker_embds=torch.zeros(songs, CONFIG.speaker_embedding_dim),
        lyric_token_ids=tensor("lyric_ids"),
        lyric_mask=tensor("lyric_mask"),
        random_generators=[None] * songs,
        infer_steps=request.steps,
        guidance_scale=request.guidance_scale,
        omega_scale=request.omega,
        scheduler_type=request.scheduler,
        cfg_type=request.guidance,
        zero_steps=request.zero_steps,
        use_zero_init=request.zero_init,
        guidance_interval=request.guidance_interval,
        guidance_interval_decay=request.guidance_decay,
        min_guidance_scale=request.min_guidance_scale,
        oss_steps=list(request.oss_steps),
        encoder_text_hidden_states_null=tensor("null_text") if request.erg_tag else None,
        use_erg_lyric=request.erg_lyric,
        use_erg_diffusion=request.erg_diffusion,
        guidance_scale_text=request.guidance_scale_text,
        guidance_scale_lyric=request.guidance_scale_lyric,
        **{"retake_variance": request.change, **arguments},
    )
    return latents.numpy()


def run_ours(
    pair: Pair, request: Request, draws: dict[str, np.ndarray], source: np.ndarray | None = None
) -> np.ndarray:
    """Our latents with given noise; keys are purposes, or `purpose-index`."""

    def noise(purpose: str, frames: int, index: int = 0) -> mx.array:
        found = draws[purpose] if purpose in draws else draws[f"{purpose}-{index}"]
        assert found.shape[-1] == frames
        return mx.array(found)

    conditions = Conditions(pair.prompt(null=request.erg_tag), pair.prompt("target_"))
    model = Conditioned(pair.transformer, conditions, request)
    return np.array(sample(model, request, source=None if source is None else mx.array(source), noise=noise))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


PLAIN = Request(
    steps=STEPS, duration=SECONDS, erg_tag=False, erg_lyric=False, erg_diffusion=False, guidance_interval=0.5
)
ERG = {"erg_tag": True, "erg_lyric": True, "erg_diffusion": True}
DOUBLE = {"guidance_scale_text": 4.0, "guidance_scale_lyric": 2.0}
CASES = {
    **{
        f"{scheduler}-{kind}": {"scheduler": scheduler, "guidance": kind, "guidance_scale": 5.0}
        for scheduler in ("euler", "heun", "pingpong")
        for kind in ("apg", "cfg", "cfg_star")
    },
    **{
        f"{scheduler}-double": {
            "scheduler": scheduler, "guidance_scale": 5.0, **DOUBLE,
        }
        for scheduler in ("euler", "heun", "pingpong")
    },
    "defaults": {**ERG},
    "unguided": {"guidance_scale": 1.0},
    "omega": {"omega": -30.0, "guidance_scale": 3.0},
    "decay": {"guidance_decay": 1.0, "guidance_interval": 0.9},
    "half-decay-heun": {"guidance_decay": 0.5, "min_guidance_scale": 1.5, "scheduler": "heun"},
    "whole-run": {"guidance_interval": 1.0, "guidance_scale": 3.0},
    "cfg_star-zero-init": {
        "guidance": "cfg_star", "guidance_interval": 1.0, "zero_steps": 2, "guidance_scale": 3.0
    },
    "cfg_star-no-zero-init": {
        "guidance": "cfg_star", "guidance_interval": 1.0, "zero_init": False, "guidance_scale": 3.0
    },
    "oss-steps": {"oss_steps": (2, 3, 5, 9, 12, 15, 18, 20)},
    "oss-steps-pingpong": {"oss_steps": (1, 4, 9, 16), "scheduler": "pingpong"},
    "erg-lyric": {"erg_lyric": True},
    "erg-diffusion": {"erg_diffusion": True, "guidance": "cfg", "guidance_scale": 4.0},
    "erg-tag-and-lyric": {"erg_tag": True, "erg_lyric": True},
    "erg-double": {
        **ERG, **DOUBLE, "guidance_scale": 5.0, "scheduler": "heun"
    },
}  # fmt: skip


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("case", CASES)
def test_text2music(pair: Pair, draws: Draws, case: str) -> None:
    request = replace(PLAIN, **CASES[case])
    theirs = run_reference(pair, request)
    given = {"initial": draws.made[0]}
    given |= {f"step-{i}": noise for i, noise in enumerate(draws.made[1:])}
    assert len(draws.made) == 1 + (request.scheduler == "pingpong") * len(request.oss_steps or range(STEPS))
    ours = run_ours(pair, request, given)
    assert distance(ours, theirs) < TOLERANCE
    # The comparison can fail: without the options the song is another one.
    if CASES[case] and case != "defaults":
        assert (
            distance(run_ours(pair, replace(PLAIN, guidance_scale=0.0, steps=STEPS + 1), given), theirs)
            > 0.01
        )


KINDS = {**{kind: {"guidance": kind, "guidance_scale": 5.0} for kind in ("apg", "cfg", "cfg_star")},
         "double": {"guidance_scale": 5.0, **DOUBLE}}  # fmt: skip
SHAPED = {"omega": -30.0, "guidance_interval": 0.9, "guidance_decay": 0.5, "min_guidance_scale": 1.5}
DEFAULTS = Request()


@pytest.mark.slow
@pytest.mark.parametrize("options", [SHAPED, ERG], ids=["shaped", "erg"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", ["euler", "heun", "pingpong"])
def test_options_with_every_scheduler_and_guidance(
    pair: Pair, draws: Draws, scheduler: str, kind: str, options: dict
) -> None:
    request = replace(PLAIN, scheduler=scheduler, **KINDS[kind], **options)
    theirs = run_reference(pair, request)
    given = {"initial": draws.made[0]}
    given |= {f"step-{i}": noise for i, noise in enumerate(draws.made[1:])}
    assert distance(run_ours(pair, request, given), theirs) < TOLERANCE
    if (scheduler, kind) == ("euler", "apg"):  # each option alone matters to the comparison
        for name in options:
            neutral = getattr(PLAIN, name) if options is ERG else getattr(DEFAULTS, name)
            without = run_ours(pair, replace(request, **{name: neutral}), given)
            assert distance(without, theirs) > TOLERANCE, name


SOURCE = np.random.default_rng(9).standard_normal((1, 8, 16, frames_of(SECONDS))).astype(np.float32)
WHOLE_RUN = {"guidance_interval": 1.0, "guidance_scale": 3.0}


@pytest.mark.slow
def test_retake(pair: Pair, draws: Draws) -> None:
    request = replace(PLAIN, task="retake", variance=0.3)
    theirs = run_reference(pair, request, add_retake_noise=True, repaint_end=request.duration)
    initial, other = draws.made
    assert distance(run_ours(pair, request, {"initial": initial, "retake": other}), theirs) < TOLERANCE
    assert distance(run_ours(pair, request, {"initial": initial, "retake": initial}), theirs) > 0.01


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("scheduler", ["euler", "pingpong"])
@pytest.mark.parametrize("variance", [0.3, 1.0])
def test_repaint(pair: Pair, draws: Draws, scheduler: str, variance: float) -> None:
    request = replace(
        PLAIN,
        task="repaint",
        repaint_start=0.6,
        repaint_end=1.5,
        variance=variance,
        scheduler=scheduler,
        **WHOLE_RUN,
    )
    theirs = run_reference(
        pair,
        request,
        add_retake_noise=True,
        repaint_start=0.6,
        repaint_end=1.5,
        src_latents=torch.from_numpy(SOURCE),
    )
    given = {"initial": draws.made[0], "retake": draws.made[1]}
    ours = run_ours(pair, request, given, SOURCE)
    assert distance(ours, theirs) < TOLERANCE
    start, end = frames_of(0.6), frames_of(1.5)
    assert np.array_equal(ours[..., :start], SOURCE[..., :start])  # what is kept is kept exactly
    assert np.array_equal(ours[..., end:], SOURCE[..., end:])
    assert distance(ours[..., start:end], SOURCE[..., start:end]) > 0.1


@pytest.mark.slow
def test_repaint_with_heun_is_heun(pair: Pair, draws: Draws) -> None:
    """The reference takes Heun's list of times, most of them twice, for Euler's: it evaluates the model twice
    as often and moves like Euler. Ours is Heun there too."""
    request = replace(
        PLAIN, task="repaint", repaint_start=0.6, variance=1.0, scheduler="heun", guidance_scale=1.0, steps=4
    )
    arguments = {"repaint_start": 0.6, "repaint_end": SECONDS, "src_latents": torch.from_numpy(SOURCE)}
    theirs = run_reference(pair, request, add_retake_noise=True, **arguments)
    given = {"initial": draws.made[0], "retake": draws.made[1]}
    assert distance(run_ours(pair, replace(request, scheduler="euler"), given, SOURCE), theirs) < TOLERANCE
    ours = run_ours(pair, request, given, SOURCE)
    assert distance(ours, theirs) > 0.01
    assert np.array_equal(ours[..., : frames_of(0.6)], SOURCE[..., : frames_of(0.6)])


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_extend(pair: Pair, draws: Draws, side: str) -> None:
    request = replace(PLAIN, task="extend", **{f"extend_{side}": 1.0}, **WHOLE_RUN)
    added, frames = frames_of(1.0), SOURCE.shape[-1]
    edges = {"left": (-1.0, SECONDS), "right": (0.0, SECONDS + 1.05)}[side]
    theirs = run_reference(
        pair,
        request,
        add_retake_noise=True,
        repaint_start=edges[0],
        repaint_end=edges[1],
        src_latents=torch.from_numpy(SOURCE),
    )
    if side == "right":
        assert theirs.shape[-1] - frames == frames_of(SECONDS + 1.05) - frames
        request = replace(request, extend_right=1.05)
        added = theirs.shape[-1] - frames
    initial, other = draws.made
    given = {"initial": initial, "left": other[..., :0], "right": other[..., :0]}
    given[side] = other[..., :added] if side == "left" else other[..., -added:]
    ours = run_ours(pair, request, given, SOURCE)
    assert distance(ours, theirs) < TOLERANCE
    kept = slice(added, None) if side == "left" else slice(0, frames)
    assert np.array_equal(ours[..., kept], SOURCE)


@pytest.mark.slow
def test_extend_both_sides_where_the_reference_is_wrong(pair: Pair, draws: Draws) -> None:
    """Upstream counts the left part again when it measures the right one: asked for 0.5 s on each side, it
    adds nothing on the right. Ours adds both."""
    request = replace(PLAIN, task="extend", extend_left=0.5, extend_right=0.5, **WHOLE_RUN)
    frames, added = SOURCE.shape[-1], frames_of(0.5)
    theirs = run_reference(
        pair,
        request,
        add_retake_noise=True,
        repaint_start=-0.5,
        repaint_end=SECONDS + 0.5,
        src_latents=torch.from_numpy(SOURCE),
    )
    assert theirs.shape[-1] < frames + 2 * added
    rng = np.random.default_rng(3)
    noise = {
        name: rng.standard_normal((1, 8, 16, n)).astype(np.float32)
        for name, n in (("initial", frames), ("left", added), ("right", added))
    }
    ours = run_ours(pair, request, noise, SOURCE)
    assert ours.shape[-1] == frames + 2 * added
    assert np.array_equal(ours[..., added:-added], SOURCE)


@pytest.mark.slow
def test_extend_beyond_the_longest_window(pair: Pair, draws: Draws) -> None:
    """Far frames are kept aside. Upstream puts other frames than those back; in the window both agree."""
    long = np.random.default_rng(2).standard_normal((1, 8, 16, MAX_FRAMES - 5)).astype(np.float32)
    request = replace(PLAIN, task="extend", extend_left=1.0, steps=2, guidance_scale=1.0)
    added = frames_of(1.0)
    theirs = run_reference(
        pair,
        request,
        add_retake_noise=True,
        repaint_start=-1.0,
        repaint_end=239.0,
        src_latents=torch.from_numpy(long),
    )
    initial, other = draws.made
    given = {"initial": initial, "left": other[..., :added], "right": other[..., :0]}
    ours = run_ours(pair, request, given, long)
    assert ours.shape[-1] == added + long.shape[-1]
    assert distance(ours[..., :MAX_FRAMES], theirs[..., :MAX_FRAMES]) < TOLERANCE
    assert np.array_equal(ours[..., added:], long)
    assert not np.allclose(theirs[..., MAX_FRAMES:], long[..., -added + 5 :])


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["euler", "heun", "pingpong"])
@pytest.mark.parametrize("strength", [0.25, 0.5])
def test_audio2audio(pair: Pair, draws: Draws, scheduler: str, strength: float) -> None:
    request = replace(PLAIN, task="audio2audio", scheduler=scheduler, reference_strength=strength, steps=10)
    theirs = run_reference(
        pair,
        request,
        audio2audio_enable=True,
        ref_audio_strength=strength,
        ref_latents=torch.from_numpy(SOURCE),
    )
    given = {"initial": draws.made[0]} | {f"step-{i}": noise for i, noise in enumerate(draws.made[1:])}
    assert distance(run_ours(pair, request, given, SOURCE), theirs) < TOLERANCE


EDITS = {
    "whole": {},
    "part": {"edit_begin": 0.25, "edit_end": 0.75},
    "samples": {"edit_samples": 2},
    "unguided": {"guidance_scale": 1.0},
    "heun-is-euler": {"scheduler": "heun", "edit_end": 0.5},
    "pingpong-only-in-the-end": {"scheduler": "pingpong", "edit_end": 0.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", EDITS)
def test_edit(pair: Pair, draws: Draws, case: str) -> None:
    request = replace(
        PLAIN, task="edit", edit_prompt="", edit_lyrics="", **{"guidance_scale": 4.0, **EDITS[case]}
    )

    def tensors(name: str) -> dict[str, Any]:
        target = name == "target_"
        return {
            f"{name}encoder_text_hidden_states": torch.from_numpy(pair.inputs[name + "text"]),
            f"{name}text_attention_mask": torch.from_numpy(pair.inputs[name + "text_mask"]),
            ("target_speaker_embeds" if target else "speaker_embds"): torch.zeros(1, 16),
            f"{name}lyric_token_ids": torch.from_numpy(pair.inputs[name + "lyric_ids"]),
            f"{name}lyric_mask": torch.from_numpy(pair.inputs[name + "lyric_mask"]),
        }

    theirs = pair.pipeline.flowedit_diffusion_process(
        **tensors(""),
        **tensors("target_"),
        src_latents=torch.from_numpy(SOURCE),
        infer_steps=request.steps,
        guidance_scale=request.guidance_scale,
        n_min=request.edit_begin,
        n_max=request.edit_end,
        n_avg=request.edit_samples,
        scheduler_type=request.scheduler,
    ).numpy()
    made = list(draws.made)
    first, last = int(STEPS * request.edit_begin), int(STEPS * request.edit_end)
    given = {}
    for step in range(first, last):
        for k in range(request.edit_samples):
            given[f"edit-{step * request.edit_samples + k}"] = made.pop(0)
    if last < STEPS:
        given["edit-start-0"] = made.pop(0)
    given |= {f"step-{last + i}": noise for i, noise in enumerate(made)}
    ours = run_ours(pair, request, given, SOURCE)
    assert distance(ours, theirs) < TOLERANCE
    assert distance(ours, SOURCE) > 0.01


@pytest.mark.slow
def test_edit_with_pingpong_moves_the_song(pair: Pair, draws: Draws) -> None:
    """Upstream computes a pingpong step of the edit and throws it away: its song stays the source."""
    request = replace(PLAIN, task="edit", edit_prompt="", scheduler="pingpong", guidance_scale=4.0)
    given = {f"edit-{i}": draws(SOURCE.shape).numpy() for i in range(STEPS)}
    ours = run_ours(pair, request, given, SOURCE)
    assert np.array_equal(ours, run_ours(pair, replace(request, scheduler="euler"), given, SOURCE))
    assert distance(ours, SOURCE) > 0.01


@pytest.mark.slow
def test_the_reference_mixes_songs_of_a_batch_and_ours_does_not(pair: Pair, draws: Draws) -> None:
    """Upstream's omega takes its mean over the whole batch. Ours: each song as if it were alone."""
    request = replace(PLAIN, omega=-50.0, guidance_scale=3.0, seeds=(1, 2))
    theirs = run_reference(pair, request, songs=2)
    both = draws.made[0]
    ours = run_ours(pair, request, {"initial": both})
    for song in (0, 1):
        alone = run_ours(pair, replace(request, seeds=(song,)), {"initial": both[song : song + 1]})
        assert distance(ours[song : song + 1], alone) < 1e-5
        draws.__init__(0)
        single = run_reference_with(pair, replace(request, seeds=(song,)), both[song : song + 1])
        assert distance(ours[song : song + 1], single) < TOLERANCE
        assert distance(theirs[song : song + 1], single) > distance(ours[song : song + 1], single)


def run_reference_with(pair: Pair, request: Request, initial: np.ndarray) -> np.ndarray:
    """The reference with a given first noise."""
    before = pair.module.randn_tensor
    pair.module.randn_tensor = lambda shape, **_: torch.from_numpy(initial)
    try:
        return run_reference(pair, request)
    finally:
        pair.module.randn_tensor = before


@pytest.mark.slow
def test_erg_tag_works_without_erg_lyric(pair: Pair, draws: Draws) -> None:
    """Upstream drops the weakened prompt unless the lyrics are weakened too; ours uses what was asked for."""
    request = replace(PLAIN, erg_tag=True)
    theirs = run_reference(pair, request)
    given = {"initial": draws.made[0]}
    without = run_ours(pair, replace(request, erg_tag=False), given)
    assert distance(without, theirs) < TOLERANCE
    assert distance(run_ours(pair, request, given), theirs) > 0.01
