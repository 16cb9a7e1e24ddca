"""The codec on its own: windows, shapes, odd audio, precision, memory. Parity is in tests/parity."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from acestep_mlx.errors import CheckpointError, DataError
from acestep_mlx.families.v1 import codec as module
from acestep_mlx.families.v1.codec import Codec, latent_frames
from acestep_mlx.families.v1.dcae import AutoencoderDC, DCAEConfig
from acestep_mlx.families.v1.vocoder import Vocoder, VocoderConfig
from acestep_mlx.io.progress import Advance
from acestep_mlx.nn import convolution
from acestep_mlx.nn.activations import silu_value
from acestep_mlx.nn.convolution import Conv1d, Conv2d, DepthwiseConv2d, UpsampledConv2d, UpsamplingConv1d
from acestep_mlx.nn.windows import reach, windowed, windows

from .tiny import tiny

TYPES = ("ResBlock", "EfficientViTBlock", "EfficientViTBlock")
NESTED = DCAEConfig(  # attention at two levels, (un)shuffling, several scales
    in_channels=2,
    latent_channels=4,
    attention_head_dim=16,  # narrower heads: a query's ReLU may be all zero, and the last bit decides
    encoder_block_types=TYPES,
    decoder_block_types=TYPES,
    encoder_block_out_channels=(16, 16, 32),
    decoder_block_out_channels=(16, 16, 32),
    encoder_layers_per_block=(0, 2, 1),
    decoder_layers_per_block=(0, 2, 1),
    encoder_qkv_multiscales=((), (3, 5), (5,)),
    decoder_qkv_multiscales=((), (3, 5), (5,)),
)


def shake(model, seed: int = 0):
    """Random weights that keep a signal alive through the depth."""
    keys = iter(mx.random.split(mx.random.key(seed), 1000))

    def noise(value: mx.array) -> mx.array:
        x = mx.random.normal(value.shape, key=next(keys))
        return x * (value.size / value.shape[0]) ** -0.5 if value.ndim > 1 else value + 0.2 * x

    model.update(tree_map(noise, model.parameters()))
    return model.eval()


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(shake(AutoencoderDC(tiny(DCAEConfig))), shake(Vocoder(tiny(VocoderConfig))))


def sweep(seconds: float, rate: int = 44100) -> np.ndarray:
    """A sine from 100 Hz to 8 kHz, the right channel half as loud."""
    t = np.arange(round(seconds * rate)) / rate
    x = 0.5 * np.sin(2 * np.pi * 100 * seconds / np.log(80) * (80 ** (t / seconds) - 1))
    return np.stack([x, x / 2], axis=1).astype(np.float32)


def difference(a: mx.array, b: mx.array) -> float:
    """The largest difference over the size of the signal."""
    return float(mx.abs(a - b).max() / mx.sqrt(mx.square(b).mean()))


def test_windows_cover_everything_once() -> None:
    for length in (1, 7, 64, 1000):
        for size in (1, 5, 64, None):
            for align in (1, 2, 8):
                got = list(windows(length, size, 3, align))
                assert got[0].start == 0 and got[-1].stop == length
                assert all(a.stop == b.start for a, b in pairwise(got))
                assert all(w.start % align == 0 and w.low % align == 0 for w in got)
                assert all(w.low == 0 or w.start - w.low >= 3 for w in got)
                assert all(w.high == length or w.high - w.stop >= 3 for w in got)


@pytest.mark.slow_after(2)
@pytest.mark.parametrize("config", [tiny(DCAEConfig), NESTED], ids=["released", "nested"])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_autoencoder_in_windows(config: DCAEConfig, window: int) -> None:
    """The same numbers everywhere, ends and seams included, whatever the window."""
    model = shake(AutoencoderDC(config))
    f = model.compression
    x = mx.random.normal((2, 2, 8 * f, 21 * f), key=mx.random.key(1))
    whole = model.encode(x)
    assert difference(model.encode(x, window), whole) < 1e-4
    z = mx.random.normal(whole.shape, key=mx.random.key(2))
    assert difference(model.decode(z, window), model.decode(z)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 5, 64])
def test_vocoder_in_windows(window: int) -> None:
    model = shake(Vocoder(tiny(VocoderConfig)))
    mel = mx.random.normal((2, 128, 131), key=mx.random.key(1))
    assert difference(model(mel, window), model(mel)) < 1e-4


def reached(layers, x: mx.array, axis: int) -> int:
    """Input frames on each side that really change an output frame, found by disturbing one frame."""
    middle = x.shape[axis] // 2
    place = [slice(None)] * x.ndim
    place[axis] = slice(middle, middle + 1)
    bump = mx.zeros_like(x)
    bump[tuple(place)] = 1.0

    def run(y: mx.array) -> mx.array:
        for layer in layers:
            y = layer(y)
        return y

    moved = np.abs(np.array(run(x + bump) - run(x))).max(axis=tuple(i for i in range(x.ndim) if i != axis))
    rate = len(moved) / x.shape[axis]
    touched = np.flatnonzero(moved > 1e-9) / rate
    return int(np.ceil(max(middle - touched.min(), touched.max() + 1 / rate - (middle + 1))))


def test_overlaps_cover_the_true_receptive_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declared overlaps are not smaller than what is really seen (and not wastefully larger)."""
    monkeypatch.setattr(convolution, "on_cpu", lambda: False)  # a tile's rounding would count as seeing
    head = shake(Vocoder(tiny(VocoderConfig))).head
    layers = head.layers()
    halo, rate = reach(layers)
    seen = reached(layers, mx.random.normal((1, 4 * halo, 16), key=mx.random.key(0)), 1)
    assert rate == 512 and seen <= halo <= seen + 3
    model = shake(AutoencoderDC(replace(tiny(DCAEConfig), encoder_block_types="ResBlock")))
    layers = model.encoder.layers()
    halo, rate = reach(layers)
    x = mx.random.normal((1, 8, 8 * (halo // 2), 2), key=mx.random.key(0))
    seen = reached(layers, x, 2)
    assert rate == Fraction(1, 8) and seen <= halo + 8 <= seen + 16


def test_windowed_refuses_nothing_and_reports() -> None:
    done: list[Advance] = []
    x = mx.arange(10.0)[None]
    layer = SimpleNamespace(halo=1, rate=Fraction(1))
    y = windowed(lambda low, high: 2 * x[:, low:high], 10, [layer], axis=1, size=3, progress=done.append)
    assert mx.array_equal(y, 2 * x)
    assert done[-1] == Advance(done=10, total=10) and len(done) == 4


@pytest.mark.slow
def test_long_audio_has_no_seams(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """wav → latents → wav of a sweep: the same in windows as in one go, at every sample."""
    wav = sweep(6.0)
    monkeypatch.setattr(module, "DCAE_WINDOW", None)
    monkeypatch.setattr(module, "VOCODER_WINDOW", None)
    latents = codec.encode(wav)
    whole = codec.decode(latents)
    monkeypatch.setattr(module, "DCAE_WINDOW", 9)
    monkeypatch.setattr(module, "VOCODER_WINDOW", 37)
    assert difference(codec.encode(wav), latents) < 1e-4
    cut = codec.decode(latents)
    assert difference(cut, whole) < 1e-4
    # The largest step from sample to sample is no larger in windows: there is no click.
    steps = [float(mx.abs(x[:, 1:] - x[:, :-1]).max()) for x in (cut, whole)]
    assert steps[0] <= steps[1] * 1.001
    assert mx.array_equal(codec.decode(latents), cut)  # and it is the same each time


@pytest.mark.slow
def test_windows_bound_the_memory(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what grows with the length, only the thin ends are left."""
    wav = sweep(10.0)
    latents = codec.encode(wav)
    peaks = []
    for frames in (None, 16):
        monkeypatch.setattr(module, "DCAE_WINDOW", frames)
        monkeypatch.setattr(module, "VOCODER_WINDOW", frames and 8 * frames)
        for work, x in ((codec.encode, wav), (codec.decode, latents)):
            mx.clear_cache()
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            mx.eval(work(x))
            peaks.append(mx.get_peak_memory() - before)
    assert peaks[2] < peaks[0] / 2 and peaks[3] < peaks[1] / 2, peaks


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (4096, 1), (4097, 2), (44100, 11)])
def test_shapes(codec: Codec, samples: int, frames: int) -> None:
    wav = sweep(1.0)[:samples]
    assert latent_frames(samples) == frames
    latents = codec.encode(wav)
    assert latents.shape == (1, 8, 16, frames) and latents.dtype == mx.float32
    out = codec.decode(latents)
    assert out.shape == (1, 4096 * frames, 2) and out.dtype == mx.float32
    assert bool(mx.isfinite(out).all()) and float(mx.abs(out).max()) <= 1


@pytest.mark.parametrize("samples", [2000, 4095, 5000, 12287])
def test_the_last_frame_is_filled_up_with_silence_at_its_end(codec: Codec, samples: int) -> None:
    wav = sweep(1.0)[:samples]
    whole = np.pad(wav, ((0, 4096 * latent_frames(samples) - samples), (0, 0)))
    assert mx.array_equal(codec.encode(wav), codec.encode(whole))


def test_accepted_layouts(codec: Codec) -> None:
    wav = sweep(0.5)
    latents = codec.encode(wav)
    assert mx.array_equal(codec.encode(mx.array(wav)), latents)
    assert mx.array_equal(codec.encode(wav[None]), latents)
    mono = codec.encode(wav[:, 0])
    assert mx.array_equal(codec.encode(wav[:, :1]), mono)
    assert mx.array_equal(codec.encode(np.repeat(wav[:, :1], 2, axis=1)), mono)
    both = codec.encode(np.stack([wav, wav[::-1]]))
    assert both.shape[0] == 2 and mx.array_equal(both[:1], latents)
    assert mx.allclose(codec.decode(both)[:1], codec.decode(latents), atol=1e-6)


def test_other_rates_are_resampled(codec: Codec) -> None:
    reference = codec.encode(sweep(1.0))
    for rate in (22050, 48000, 96000):
        latents = codec.encode(sweep(1.0, rate), rate)
        assert latents.shape == reference.shape
        assert float(mx.abs(latents - reference).mean() / mx.abs(reference).mean()) < 0.05


def test_silence_is_finite(codec: Codec) -> None:
    latents = codec.encode(np.zeros((10000, 2), np.float32))
    assert bool(mx.isfinite(latents).all())
    assert bool(mx.isfinite(codec.decode(latents)).all())


def test_refused_audio(codec: Codec) -> None:
    wav = sweep(0.1)
    for bad, why in (
        (wav[:0], "empty"),
        (np.zeros((0, 10, 2)), "empty"),
        (np.where(np.arange(len(wav))[:, None] == 5, np.nan, wav), "not finite"),
        (np.zeros((100, 8)), "must be"),
        (np.zeros((1, 1, 1, 2)), "must be"),
    ):
        with pytest.raises(DataError, match=why):
            codec.encode(bad)
    for shape in ((8, 16, 4), (1, 7, 16, 4), (1, 8, 16, 0), (1, 8, 15, 4)):
        with pytest.raises(DataError, match="latents must be"):
            codec.decode(mx.zeros(shape))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision(codec: Codec, dtype: mx.Dtype) -> None:
    half = Codec(AutoencoderDC(tiny(DCAEConfig)), Vocoder(tiny(VocoderConfig)))
    for ours, theirs in ((half.dcae, codec.dcae), (half.vocoder, codec.vocoder)):
        ours.update(tree_map(lambda w: w.astype(dtype), theirs.parameters()))
        assert all(w.dtype == dtype for _, w in tree_flatten(ours.parameters()))
    wav = sweep(0.5)
    exact, rough = codec.encode(wav), half.encode(wav)
    assert rough.dtype == mx.float32
    bound = 0.02 if dtype == mx.float16 else 0.1
    assert float(mx.linalg.norm(rough - exact) / mx.linalg.norm(exact)) < bound
    a, b = codec.decode(exact), half.decode(exact)
    assert float(mx.linalg.norm(a - b) / mx.linalg.norm(a)) < bound


def test_progress(codec: Codec) -> None:
    told: list[Advance] = []
    latents = codec.encode(sweep(1.0)[None].repeat(2, axis=0), progress=told.append)
    codec.decode(latents, progress=told.append)
    seen = [advance.done / advance.total for advance in told]
    assert seen.count(1.0) == 2
    assert all(0 < f <= 1 for f in seen)


@pytest.mark.parametrize(
    ("config", "changes", "why"),
    [
        (DCAEConfig, {"latent_chanels": 8}, "did you mean 'latent_channels'"),
        (DCAEConfig, {"encoder_block_types": "VGG"}, "'VGG' is not one of"),
        (DCAEConfig, {"decoder_norm_types": "layer_norm"}, "layer_norm"),
        (DCAEConfig, {"decoder_act_fns": ["silu"]}, "1 entries for 6 levels"),
        (DCAEConfig, {"encoder_layers_per_block": [1]}, "1 entries for 6 levels"),
        (VocoderConfig, {"hop": 1}, "unknown key 'hop'"),
        (VocoderConfig, {"use_template": True}, "use_template"),
        (VocoderConfig, {"hop_length": 256}, "not to hop_length 256"),
        (VocoderConfig, {"resblock_kernel_sizes": [4, 7, 11, 13]}, "odd"),
    ],
)
def test_refused_configs(config: type, changes: dict, why: str) -> None:
    assert config.from_dict({"_class_name": "anything"}) == config()
    with pytest.raises(CheckpointError, match=why):
        config.from_dict(changes)


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(CheckpointError, match="8 frames per latent"):
        Codec(AutoencoderDC(NESTED), Vocoder(tiny(VocoderConfig)))


CONVOLUTIONS = {
    "conv2d": (lambda: Conv2d(16, 10), (2, 5, 7, 16)),
    "conv2d without bias": (lambda: Conv2d(20, 10, bias=False), (1, 5, 7, 20)),
    "upsampled": (lambda: UpsampledConv2d(6, 4), (2, 3, 5, 6)),
    "depthwise 3": (lambda: DepthwiseConv2d(6, 3), (2, 5, 7, 6)),
    "depthwise 5": (lambda: DepthwiseConv2d(6, 5, bias=False), (2, 5, 3, 6)),
    "dilated": (lambda: Conv1d(6, 8, 7, dilation=3), (2, 20, 6)),
    "dilated more than long": (lambda: Conv1d(6, 8, 3, dilation=5), (1, 4, 6)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_both_arrangements_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums arranged for the CPU against MLX's own kernels, which a GPU uses."""
    make, shape = CONVOLUTIONS[name]
    layer = shake(make())
    x = mx.random.normal(shape, key=mx.random.key(1))
    monkeypatch.setattr(convolution, "on_cpu", lambda: True)
    ours = layer(x)
    mx.eval(ours)
    monkeypatch.setattr(convolution, "on_cpu", lambda: False)
    assert difference(ours, layer(x)) < 1e-5


@pytest.mark.parametrize(("kernel", "rate"), [(8, 4), (4, 2), (16, 8), (6, 2), (3, 1), (4, 4)])
def test_transposed_convolution(kernel: int, rate: int) -> None:
    layer = shake(UpsamplingConv1d(5, 3, kernel, rate))
    x = mx.random.normal((2, 9, 5), key=mx.random.key(1))
    expected = mx.conv_transpose1d(x, layer.weight, stride=rate, padding=(kernel - rate) // 2) + layer.bias
    assert layer(x).shape == expected.shape == (2, 9 * rate, 3)
    assert difference(layer(x), expected) < 1e-5


def test_silu() -> None:
    x = mx.linspace(-80, 80, 10001)
    exact = np.array(x).astype(np.float64)
    exact /= 1 + np.exp(-exact)
    assert np.abs(np.array(silu_value(x)) - exact).max() < 1e-5
    near = mx.linspace(-8, 8, 10001)
    exact = np.array(near).astype(np.float64)
    exact /= 1 + np.exp(-exact)
    assert np.abs(np.array(silu_value(near)) - exact).max() < 2e-6
    rest = np.array(silu_value(mx.array([0.0, -0.0, 1e6, -1e6, float("nan")])))
    assert np.allclose(rest, [0, 0, 1e6, 0, np.nan], atol=1, equal_nan=True)  # a millionth
    for dtype in (mx.float16, mx.bfloat16):
        assert silu_value(mx.ones(3, dtype=dtype)).dtype == dtype


@pytest.mark.slow
def test_winograd_is_exact_enough() -> None:
    """Against float64, at a wide layer; whatever the size is a multiple of."""
    for H, W in ((8, 12), (5, 3), (1, 1), (7, 10)):
        x = mx.random.normal((2, H, W, 96), key=mx.random.key(1))
        layer = shake(Conv2d(96, 64))
        padded = np.pad(np.array(x).astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        w, expected = np.array(layer.weight).astype(np.float64), np.array(layer.bias).astype(np.float64)
        for i in range(3):
            for j in range(3):
                expected = expected + padded[:, i : i + H, j : j + W] @ w[:, i, j].T
        error = np.sqrt(np.square(np.array(layer(x)) - expected).mean())
        assert error < 3e-6 * np.sqrt(np.square(expected).mean())


def test_a_changed_weight_is_used() -> None:
    layer = shake(Conv2d(16, 16))
    x = mx.random.normal((1, 5, 6, 16), key=mx.random.key(1))
    before = layer(x)
    layer.update({"weight": 2 * layer.weight, "bias": 2 * layer.bias})
    assert difference(layer(x), 2 * before) < 1e-5
    assert set(layer.parameters()) == {"weight", "bias"}  # what is kept is no parameter


def test_streams_in_another_thread() -> None:
    """A stream belongs to its thread; encoding works in each."""
    model = shake(AutoencoderDC(tiny(DCAEConfig)))
    x = mx.random.normal((1, 2, 64, 168), key=mx.random.key(1))
    expected = np.array(model.encode(x, 3))
    mx.eval(model.parameters(), x)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: np.array(model.encode(x, 3))).result()
    assert np.array_equal(found, expected)
