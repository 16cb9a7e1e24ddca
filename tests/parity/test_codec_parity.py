"""Autoencoder, vocoder, log-mel and the codec against the PyTorch reference, random weights, float32."""

from __future__ import annotations

import types
from dataclasses import asdict

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from acestep_mlx.convert.plan import translate
from acestep_mlx.families.v1.codec import Codec
from acestep_mlx.families.v1.dcae import AutoencoderDC, DCAEConfig
from acestep_mlx.families.v1.keymap import KEYMAPS
from acestep_mlx.families.v1.vocoder import Vocoder, VocoderConfig
from acestep_mlx.io.audio import log_mel
from tests.later import Later
from tests.parity import reference

from ..families.tiny import tiny

torch = Later("torch")
pytestmark = pytest.mark.parity

RES, VIT = "ResBlock", "EfficientViTBlock"
DCAE_CONFIGS = {
    # the released shape, made small
    "released": tiny(DCAEConfig),
    # diffusers' defaults: (un)shuffling, shortcuts with several group sizes, attention in the middle
    "shuffle": DCAEConfig(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=(RES, VIT, VIT),
        decoder_block_types=(VIT, RES, VIT),
        encoder_block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(8, 16, 32),
        encoder_layers_per_block=(1, 2, 1),
        decoder_layers_per_block=(2, 1, 1),
        encoder_qkv_multiscales=((), (3, 5), ()),
        decoder_qkv_multiscales=((5,), (), (3,)),
        decoder_act_fns=("relu", "gelu", "silu"),
    ),
    # no layers at the first level, no shortcuts at the ends, batch norm, mixed kinds
    "bare": DCAEConfig(
        in_channels=2,
        latent_channels=6,
        attention_head_dim=8,
        encoder_block_types=RES,
        decoder_block_types=(RES, RES, VIT),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(0, 1, 2),
        decoder_layers_per_block=(0, 2, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), (5,)),
        downsample_block_type="Conv",
        upsample_block_type="pixel_shuffle",
        decoder_norm_types=("rms_norm", "batch_norm", "batch_norm"),
        decoder_act_fns="mish",
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
        decoder_conv_act_fn="gelu",
    ),
    "unshuffle-interpolate": DCAEConfig(
        in_channels=1,
        latent_channels=2,
        attention_head_dim=8,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(16, 16),
        encoder_layers_per_block=(0, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        upsample_block_type="interpolate",
    ),
}


def error(got: mx.array, expected: torch.Tensor) -> float:
    a, b = np.array(got.astype(mx.float32)), expected.float().numpy()
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def shake(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of a size that keeps signals alive through the depth, none left at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "original0" in name or name.endswith("_g"):
                value.copy_(1.0 + 0.2 * noise.abs())
            elif value.ndim > 1:
                value.copy_(noise * value[0].numel() ** -0.5)
            else:
                value.copy_(value + 0.2 * noise)
        for name, value in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return model.eval()


def take_over(component: str, ours: nn.Module, theirs: torch.nn.Module) -> nn.Module:
    state = {k: mx.array(v.numpy()) for k, v in theirs.state_dict().items()}
    tensors = translate(component, KEYMAPS[component], ours, state)
    ours.load_weights(list(tensors.items()), strict=True)
    return ours


def pair_of_dcae(config: DCAEConfig) -> tuple[AutoencoderDC, torch.nn.Module]:
    reference.load("transformer")  # puts the reference's stand-ins in place before diffusers looks for them
    from diffusers import AutoencoderDC as Theirs

    theirs = shake(Theirs(**asdict(config)))
    return take_over("dcae", AutoencoderDC(DCAEConfig.from_dict(dict(theirs.config))), theirs), theirs


def pair_of_vocoders(config: VocoderConfig, old_weight_norm: bool = False) -> tuple[Vocoder, torch.nn.Module]:
    theirs = reference.load("music_dcae.music_vocoder")
    modern = torch.nn.utils.parametrizations.weight_norm
    with pytest.MonkeyPatch.context() as patch:  # other tests use the same module as it was
        patch.setattr(theirs, "weight_norm", torch.nn.utils.weight_norm if old_weight_norm else modern)
        model = shake(theirs.ADaMoSHiFiGANV1(**asdict(config)))
    names = model.state_dict()
    assert any(k.endswith("weight_g" if old_weight_norm else "original0") for k in names)
    return take_over("vocoder", Vocoder(config), model), model


@pytest.mark.slow
@pytest.mark.parametrize("name", DCAE_CONFIGS)
def test_autoencoder(name: str) -> None:
    ours, theirs = pair_of_dcae(DCAE_CONFIGS[name])
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, ours.config.in_channels, 16, 24), generator=generator)
    with torch.no_grad():
        z = theirs.encode(x).latent
        y = theirs.decode(z).sample
    assert error(ours.encode(mx.array(x.numpy())), z) < 1e-4
    assert error(ours.decode(mx.array(z.numpy())), y) < 1e-4
    assert ours.compression == x.shape[-1] // z.shape[-1]


@pytest.mark.slow
def test_few_positions() -> None:
    """With fewer positions than head channels the reference takes another path to the same numbers."""
    ours, theirs = pair_of_dcae(DCAE_CONFIGS["released"])
    z = torch.randn((1, 8, 2, 2), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = theirs.decode(z).sample
    assert error(ours.decode(mx.array(z.numpy())), y) < 1e-4


PARALLEL = VocoderConfig(
    depths=(1, 2),
    dims=(8, 16),
    kernel_sizes=(3, 7),
    num_mels=16,
    upsample_rates=(4, 2, 8, 8),
    upsample_kernel_sizes=(7 + 1, 6, 16, 8),
    upsample_initial_channel=32,
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2, 4), (1, 3, 5)),
    pre_conv_kernel_size=5,
    post_conv_kernel_size=7,
)


@pytest.mark.parametrize("old_weight_norm", [False, True], ids=["parametrizations", "weight_g"])
@pytest.mark.parametrize("config", [tiny(VocoderConfig), PARALLEL], ids=["released", "parallel"])
def test_vocoder(config: VocoderConfig, old_weight_norm: bool) -> None:
    ours, theirs = pair_of_vocoders(config, old_weight_norm)
    mel = torch.randn((2, 128, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wav = theirs.decode(mel)
    assert wav.shape == (2, 1, 9 * 512)
    assert error(ours(mx.array(mel.numpy())), wav) < 1e-4


def test_log_mel() -> None:
    theirs = reference.load("music_dcae.music_log_mel").LogMelSpectrogram(
        sample_rate=44100, n_fft=2048, win_length=2048, hop_length=512, n_mels=128, f_min=40, f_max=16000
    )
    generator = torch.Generator().manual_seed(1)
    wav = torch.randn((2, 8 * 512 * 3), generator=generator) * torch.tensor([[0.3], [1e-4]])
    with torch.no_grad():
        expected = theirs(wav)
    assert error(log_mel(mx.array(wav.numpy())), expected) < 1e-4


def test_codec_end_to_end() -> None:
    """wav → latents and latents → wav against the reference's whole pipeline, an odd number of samples."""
    dcae, their_dcae = pair_of_dcae(DCAE_CONFIGS["released"])
    vocoder, their_vocoder = pair_of_vocoders(tiny(VocoderConfig))
    ours = Codec(dcae, vocoder)
    pipeline = reference.load("music_dcae.music_dcae_pipeline")
    theirs = types.SimpleNamespace(dcae=their_dcae, vocoder=their_vocoder, resampler=torch.nn.Identity())
    theirs.transform = pipeline.transforms.Compose([pipeline.transforms.Normalize(0.5, 0.5)])
    theirs.min_mel_value, theirs.max_mel_value, theirs.time_dimention_multiple = -11.0, 3.0, 8
    theirs.scale_factor, theirs.shift_factor = 0.1786, -1.9091
    theirs.forward_mel = types.MethodType(pipeline.MusicDCAE.forward_mel, theirs)

    t = np.arange(30000) / 44100
    wav = np.stack([np.sin(2 * np.pi * 440 * t), np.sin(2 * np.pi * 90 * t * (1 + t))], axis=1) * 0.4
    wav = wav.astype(np.float32)
    latents, _ = pipeline.MusicDCAE.encode(theirs, torch.from_numpy(wav.T[None].copy()), sr=44100)
    got = ours.encode(wav)
    assert got.shape == (1, 8, 16, 8)
    assert error(got, latents) < 1e-3

    latents = torch.randn((2, 8, 16, 5), generator=torch.Generator().manual_seed(3))
    rate, wavs = pipeline.MusicDCAE.decode(theirs, latents)
    assert rate == 44100
    expected = torch.stack(wavs).transpose(1, 2)
    assert error(ours.decode(mx.array(latents.numpy())), expected) < 1e-3
