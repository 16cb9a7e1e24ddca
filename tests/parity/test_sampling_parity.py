"""The samplers against the reference pipeline: same weights, same noise, same latents after 8 steps."""

from __future__ import annotations

import functools
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.convert.translate import translate
from acestep_mlx.models.dit import ACEStepTransformer, TransformerConfig
from acestep_mlx.sampling.conditioning import Prompt
from acestep_mlx.sampling.request import Request
from acestep_mlx.sampling.sample import sample
from acestep_mlx.sampling.tasks import MAX_FRAMES, frames_of

from . import reference

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

TOLERANCE = 1e-3
STEPS = 8
SECONDS = 2.0  # 21 frames
CONFIG: dict[str, Any] = {
    "num_layers": 20,  # ERG weakens blocks 15 to 19
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "speaker_embedding_dim": 16,
    "text_embedding_dim": 24,
    "lyric_encoder_vocab_size": 50,
    "lyric_hidden_size": 32,
    "mlp_ratio": 2.5,
    "max_position": 4096,
    "rope_theta": 1000000.0,
}


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
    models = reference.load("transformer")
    encoder = reference.load("lyrics_utils.lyric_encoder").ConformerEncoder
    torch.manual_seed(0)
    models.LyricEncoder = functools.partial(
        encoder, output_size=CONFIG["lyric_hidden_size"], attention_heads=4, linear_units=48, num_blocks=6
    )
    try:
        theirs = models.ACEStepTransformer2DModel(ssl_latent_dims=[], ssl_names=[], **CONFIG).eval()
    finally:
        models.LyricEncoder = encoder
    with torch.no_grad():  # a velocity of about unit size that depends on every input
        for name, p in theirs.named_parameters():
            if "table" in name:
                p.mul_(0.3)
            elif p.ndim > 1:
                torch.nn.init.normal_(p, std=(p[0].numel()) ** -0.5)
    config = TransformerConfig.from_dict(
        {**CONFIG, "lyric_encoder_layers": 6, "lyric_encoder_heads": 4, "lyric_encoder_ff": 48}
    )
    ours = ACEStepTransformer(config)
    tensors = {k: mx.array(v.numpy()) for k, v in theirs.state_dict().items()}
    weights, _ = translate("transformer", ours, tensors)
    ours.load_weights(list(weights.items()), strict=True)
    ours.eval()

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
        speaker_embds=torch.zeros(songs, CONFIG["speaker_embedding_dim"]),
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

    latents = sample(
        pair.transformer,
        pair.prompt(null=request.erg_tag),
        request,
        source=None if source is None else mx.array(source),
        target=pair.prompt("target_"),
        noise=noise,
    )
    return np.array(latents)


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
