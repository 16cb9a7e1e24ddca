"""The path that users run is the path that is tested: what a GPU computes is what the CPU computes.

Every choice between the two is `nn.device.on_cpu`; here it is taken the other way, on the same machine.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import acestep_mlx
from acestep_mlx import ACEStepPipeline
from acestep_mlx.families.requests import request_for
from acestep_mlx.families.v1.codec import Codec
from acestep_mlx.families.v1.dcae import AutoencoderDC, DCAEConfig
from acestep_mlx.families.v1.umt5 import UMT5Config, UMT5Encoder
from acestep_mlx.families.v1.vocoder import Vocoder, VocoderConfig
from acestep_mlx.families.v15.oobleck import Oobleck, OobleckConfig
from acestep_mlx.nn import activations, convolution, cpu, device, windows

from .families import v15
from .families.test_codec import shake, sweep
from .families.tiny import tiny
from .gpu import gpu_side
from .training import test_step_graph as steps

ROOT = Path(acestep_mlx.__file__).parent
#: Where something is computed; what only tells of the machine may ask it what it is.
ROOMS = ("nn", "families", "lora", "data", "sampling", "training", "convert")
FILES = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


def both(work: Callable[[], Any]) -> tuple[Any, Any]:
    """What `work` gives, as NumPy's arrays, on the CPU's side and on the GPU's."""
    found = [np.array(value) for value in _several(work())]
    with gpu_side():
        return found, [np.array(value) for value in _several(work())]


def _several(found: Any) -> list[mx.array]:
    return [found] if isinstance(found, (mx.array, np.ndarray)) else list(found)


def equal(work: Callable[[], Any], tolerance: float = 1e-5) -> bool:
    """Both up to float32's rounding, of the size of the signal; and there is one."""
    pairs = zip(*both(work), strict=True)
    return all(
        np.isfinite(a).all() and np.abs(a - b).max() <= tolerance * np.abs(a).max() != 0 for a, b in pairs
    )


# ── one place ────────────────────────────────────────────────────────────────────────────────────────
#: Code by which one back end may be told from another.
TOLD = re.compile(r"\bon_cpu\(|\bmx\.(?:default_device|DeviceType|metal|cuda|device_info|is_available)\b")


def test_the_choice_is_made_in_one_place() -> None:
    found = {path.relative_to(ROOT).as_posix(): set(TOLD.findall(path.read_text())) for path in FILES}
    found = {path: {name.rstrip("(") for name in names} for path, names in found.items() if names}
    assert found.pop("nn/device.py") >= {"mx.default_device", "on_cpu"}
    assert found == {
        "nn/convolution.py": {"on_cpu"},
        "nn/cpu.py": {"on_cpu"},
        "nn/windows.py": {"on_cpu", "mx.default_device"},  # whose default stream is taken
        "training/distributed.py": {"mx.cuda"},  # NCCL has a stream of its own
        "training/macos.py": {"mx.device_info"},
        "training/memory.py": {"mx.device_info"},
    }


def test_the_other_side_is_taken_and_left_again() -> None:
    x = mx.ones((2, 16))
    for _ in range(2):
        assert device.on_cpu() and cpu.by_arithmetic(x) and convolution.by_products(x)
        assert len(windows.streams()) == 2
        with gpu_side():
            assert not cpu.by_arithmetic(x) and not convolution.by_products(x)
            assert len(windows.streams()) == 1
            with pytest.raises(AssertionError, match="softmax is not for a GPU"):
                cpu.softmax(x)
        cpu.softmax(x)


def test_what_was_compiled_for_one_side_is_not_used_on_the_other() -> None:
    """`swiglu` and its like are compiled once for the whole program."""
    gate = mx.linspace(-3, 3, 16)
    assert equal(lambda: activations.swiglu(gate, gate + 1))
    assert equal(lambda: mx.grad(lambda x: activations.swiglu(x, x).sum())(gate))


# ── models ───────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("family", [steps.first, steps.second])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.slow_after(1)
def test_a_training_step(family: Any, recompute: bool) -> None:
    """Compiled: loss, gradient norm, and what plain gradient descent makes of the gradient."""

    def work() -> list[mx.array]:
        step, batch = family(1, recompute)
        before = step.parameters()
        result = step(batch, update=True)
        moved = [value - before[path] for path, value in step.parameters().items()]
        return [result.loss, result.grad_norm, *(m for m in moved if mx.abs(m).max() > 0)]

    a, b = both(work)
    assert a[0] == pytest.approx(b[0], rel=1e-5) and a[1] == pytest.approx(b[1], rel=1e-4)
    assert len(a) == len(b) > 4
    # Adam's first step is the gradient's sign times the rate: where a gradient is rounding, so is its sign.
    assert np.mean([np.abs(x - y).max() < 1e-4 for x, y in zip(a[2:], b[2:], strict=True)]) > 0.9


MODELS: dict[str, Callable[[], Callable[[], Any]]] = {}


def model(make: Callable[[], Callable[[], Any]]) -> Callable[[], Callable[[], Any]]:
    MODELS[make.__name__.strip("_")] = make
    return make


@model
def v1_codec() -> Callable[[], Any]:
    codec = Codec(shake(AutoencoderDC(tiny(DCAEConfig))), shake(Vocoder(tiny(VocoderConfig))))
    latents = mx.random.normal((1, 8, 16, 4), key=mx.random.key(1))
    return lambda: [codec.encode(sweep(0.4), 44100), codec.decode(latents)]


@model
def v1_text() -> Callable[[], Any]:
    encoder = shake(UMT5Encoder(tiny(UMT5Config)))
    ids, mask = mx.arange(9)[None], mx.array([[1.0] * 7 + [0.0] * 2])
    return lambda: encoder(input_ids=ids, attention_mask=mask)


@model
def v15_codec() -> Callable[[], Any]:
    codec = v15.random(Oobleck(tiny(OobleckConfig)))
    sound = mx.random.normal((1, 3 * 1920, 2), key=mx.random.key(1)) * 0.2
    latents = mx.random.normal((1, 3, 8), key=mx.random.key(2))
    return lambda: [*codec.encode(sound), codec.decode(latents)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model(name: str) -> None:
    assert equal(MODELS[name](), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tiny_model", "tiny_model_v15"])
def test_a_song(folder: str, request: pytest.FixtureRequest) -> None:
    """From texts to latents: encoders and the compiled sampler."""
    place = request.getfixturevalue(folder)

    def work() -> mx.array:
        pipe = ACEStepPipeline.from_pretrained(place)
        given = {
            "prompt": "slow jazz",
            "lyrics": "[verse]\nla la\n",
            "duration": 2,
            "steps": 2,
            "seeds": (3,),
        }
        asked = request_for(pipe.family, pipe.folder, given)
        return pipe.sample(asked, pipe.prepare(asked))

    assert equal(work, 1e-3)
