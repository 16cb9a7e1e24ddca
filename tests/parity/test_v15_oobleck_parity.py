"""The autoencoder of ACE-Step 1.5 against diffusers, random weights, float32."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.errors import DataError
from acestep_mlx.families.v15.oobleck import Oobleck, OobleckConfig
from acestep_mlx.io.progress import Advance
from acestep_mlx.nn.windows import reach

from ..families.tiny import tiny
from .v15 import normal, randomise, relative_error, same_weights, torch

pytestmark = pytest.mark.parity
TINY = tiny(OobleckConfig)
HOP = TINY.hop


def pair(config: OobleckConfig) -> tuple[Oobleck, Any]:
    from diffusers import AutoencoderOobleck

    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm
        theirs = randomise(AutoencoderOobleck(**values))
    return same_weights("vae", Oobleck(config), theirs), theirs


@pytest.fixture(scope="module")
def models() -> tuple[Oobleck, Any]:
    return pair(TINY)


def sound(samples: int, batch: int = 1) -> np.ndarray:
    return 0.3 * normal(batch, samples, 2, seed=7)


@pytest.mark.parametrize("samples", [HOP, 3 * HOP + 1, 2 * HOP + 1919])
def test_encode(samples: int, models: tuple) -> None:
    """Nothing is padded; what is left of an incomplete frame is still seen by the last one."""
    ours, theirs = models
    wav = sound(samples, batch=2)
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(wav).swapaxes(1, 2)).latent_dist
    mean, std = ours.encode(mx.array(wav))
    assert mean.shape == std.shape == (2, samples // HOP, 8)
    assert relative_error(mean, expected.mean.swapaxes(1, 2)) <= 1e-5
    assert relative_error(std, expected.std.swapaxes(1, 2)) <= 1e-5


@pytest.mark.parametrize("frames", [1, 4])
def test_decode(frames: int, models: tuple) -> None:
    ours, theirs = models
    latents = normal(2, frames, 8)
    with torch.no_grad():
        expected = theirs.decode(torch.from_numpy(latents).swapaxes(1, 2)).sample.swapaxes(1, 2)
    wav = ours.decode(mx.array(latents))
    assert wav.shape == (2, frames * HOP, 2)
    assert relative_error(wav, expected) <= 1e-5


@pytest.mark.parametrize("window", [7, 30])
def test_windows_are_one_pass(window: int) -> None:
    """Up to rounding, at lengths that no window divides; every layer looks over the edges of its window."""
    config = dataclasses.replace(TINY, downsampling_ratios=(2, 2, 4), channel_multiples=(1, 2, 2))
    ours, frames = pair(config)[0], 101
    wav = mx.array(sound(frames * config.hop + 13))
    whole, whole_std = ours.encode(wav, window=None)
    mean, std = ours.encode(wav, window=window)
    assert relative_error(mean, np.array(whole)) <= 2e-6
    assert relative_error(std, np.array(whole_std)) <= 2e-6
    done: list[Advance] = []
    again = ours.decode(mean, window=window, progress=done.append)
    assert (done[-1].done, done[-1].total) == (frames, frames) and len(done) > 1
    assert relative_error(again, np.array(ours.decode(mean, window=None))) <= 2e-6


def test_the_overlap_is_what_the_layers_see() -> None:
    """What is not a number spreads to everything that sees it: no farther than the overlap, and as far.

    Far taps have tiny weights together, so that the comparison with one pass would not miss the last of them.
    """
    config = dataclasses.replace(TINY, downsampling_ratios=(2, 4), channel_multiples=(1, 2))
    ours, hop, frames = Oobleck(config), config.hop, 120
    halo, _ = reach(ours.decoder.steps())
    at = np.arange(frames) == frames // 2
    wav = ours.decode(mx.where(mx.array(at)[None, :, None], mx.nan, mx.zeros((1, frames, 8))), window=None)
    hit = np.flatnonzero(np.isnan(np.array(wav)[0, :, 0])) // hop
    assert halo - 1 <= frames // 2 - hit.min() <= halo and halo - 1 <= hit.max() - frames // 2 <= halo

    halo, _ = reach(ours.encoder.steps())
    at = np.arange(frames * hop) == frames * hop // 2
    mean, _ = ours.encode(
        mx.where(mx.array(at)[None, :, None], mx.nan, mx.zeros((1, at.size, 2))), window=None
    )
    hit = np.flatnonzero(np.isnan(np.array(mean)[0, :, 0])) * hop
    before, after = at.size // 2 - (hit.min() + hop - 1), hit.max() - at.size // 2
    assert halo - hop < after <= halo and halo - hop < before <= halo


def test_other_geometries() -> None:
    """Ratios and widths of their own: nothing about 1920 is built in."""
    config = dataclasses.replace(
        TINY, downsampling_ratios=(2, 6), channel_multiples=(2, 1), decoder_channels=4, audio_channels=1
    )
    ours, theirs = pair(config)
    wav = normal(1, 12 * 9 + 5, 1, seed=8)
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(wav).swapaxes(1, 2)).latent_dist.mean.swapaxes(1, 2)
        back = theirs.decode(expected.swapaxes(1, 2)).sample.swapaxes(1, 2)
    mean, _ = ours.encode(mx.array(wav), window=2)
    assert relative_error(mean, expected) <= 1e-5
    assert relative_error(ours.decode(mean, window=3), back) <= 1e-5


@pytest.mark.parametrize("shape", [(HOP, 2), (1, HOP, 1), (1, HOP - 1, 2), (1, 2, HOP)])
def test_audio_of_another_shape_is_an_error(shape: tuple, models: tuple) -> None:
    with pytest.raises(DataError, match=r"audio must be \(B, 1920 or more samples, 2\), got"):
        models[0].encode(mx.zeros(shape))


@pytest.mark.parametrize("shape", [(5, 8), (1, 8, 5), (1, 0, 8)])
def test_latents_of_another_shape_are_an_error(shape: tuple, models: tuple) -> None:
    with pytest.raises(DataError, match=r"latents must be \(B, T, 8\), got"):
        models[0].decode(mx.zeros(shape))


@pytest.mark.slow
def test_the_true_geometry() -> None:
    ours, theirs = pair(OobleckConfig())
    wav, latents = sound(2 * HOP), normal(1, 2, 64)
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(wav).swapaxes(1, 2)).latent_dist
        decoded = theirs.decode(torch.from_numpy(latents).swapaxes(1, 2)).sample.swapaxes(1, 2)
    mean, std = ours.encode(mx.array(wav))
    assert relative_error(mean, expected.mean.swapaxes(1, 2)) <= 1e-4
    assert relative_error(std, expected.std.swapaxes(1, 2)) <= 1e-4
    assert relative_error(ours.decode(mx.array(latents)), decoded) <= 1e-3
