"""Whisper (arXiv 2212.04356): thirty seconds of sound in, the text that is said or sung in them out.

Names of parameters are those of transformers' `WhisperModel`. Arrays are (B, L, D), channels last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..errors import CheckpointError, nearest
from ..families.keymap import KeyMap, to_layout
from ..families.model_folder import parameters_of
from ..formatting import problem_report
from ..io.audio import mel_filters
from ..io.schema import show
from ..io.shards import read_weights
from ..io.tensors import read_tensor
from ..nn.config import MANY, ComponentConfig, check_repeats
from ..nn.device import on_cpu

RATE, HOP, FFT = 16_000, 160, 400  # Hz, samples to a frame, and samples that a frame sees
WINDOW = 30  # seconds that it hears at once
FIXED = {"model_type": "whisper", "activation_function": "gelu", "scale_embedding": False}
NAMES = KeyMap(
    renames=((r"model\.(.+)", r"\1"),), drops=((r"proj_out\.weight", "the same tensor as embed_tokens"),)
)
Cache = list[tuple[mx.array, mx.array]]  # keys and values of each layer


@dataclass(frozen=True)
class WhisperConfig(ComponentConfig):
    """Sizes; the defaults are whisper-base's."""

    d_model: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    vocab_size: int = 51865
    num_mel_bins: int = 80
    max_source_positions: int = 1500
    max_target_positions: int = 448

    NAME: ClassVar = "Whisper"
    REPEATED: ClassVar = ("encoder_layers", "decoder_layers")
    LIMITS: ClassVar = {"vocab_size": MANY}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WhisperConfig:
        """From transformers' config.json. CheckpointError; what the weights do not show is compared here."""
        wrong = [f"{k} is {show(values.get(k, v))}, only {v!r} is supported" for k, v in FIXED.items()]
        wrong = [line for line, (k, v) in zip(wrong, FIXED.items(), strict=True) if values.get(k, v) != v]
        if wrong or "model_type" not in values:
            raise CheckpointError(f"not a Whisper: {'; '.join(wrong) or 'config.json has no model_type'}")
        return super().from_dict({key: value for key, value in values.items() if key in cls.fields()})

    def problems(self) -> list[str]:
        return [
            f"{self.d_model} is no multiple of {heads} heads"
            for heads in (self.encoder_attention_heads, self.decoder_attention_heads)
            if self.d_model % heads
        ]


class Attention(nn.Module):
    def __init__(self, D: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(D, D), nn.Linear(D, D, bias=False)
        self.v_proj, self.out_proj = nn.Linear(D, D), nn.Linear(D, D)

    def _by_head(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)  # [B, H, L, Dh]

    def seen(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values of what is looked at, each (B, H, L, Dh)."""
        return self._by_head(self.k_proj(x)), self._by_head(self.v_proj(x))

    def __call__(self, x: mx.array, keys: tuple[mx.array, mx.array], mask: str | None = None) -> mx.array:
        q = self._by_head(self.q_proj(x))
        y = mx.fast.scaled_dot_product_attention(q, *keys, scale=q.shape[-1] ** -0.5, mask=mask)
        found: mx.array = self.out_proj(y.swapaxes(1, 2).reshape(x.shape))
        return found


class Layer(nn.Module):
    """Attention and feed-forward behind norms; a decoder's also looks at what the encoder heard."""

    def __init__(self, D: int, heads: int, ff: int, decodes: bool) -> None:
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = Attention(D, heads), nn.LayerNorm(D)
        if decodes:
            self.encoder_attn, self.encoder_attn_layer_norm = Attention(D, heads), nn.LayerNorm(D)
        self.fc1, self.fc2, self.final_layer_norm = nn.Linear(D, ff), nn.Linear(ff, D), nn.LayerNorm(D)

    def __call__(
        self,
        x: mx.array,
        heard: tuple[mx.array, mx.array] | None = None,
        before: tuple[mx.array, mx.array] | None = None,
    ) -> tuple[mx.array, tuple[mx.array, mx.array]]:
        """before: keys and values of earlier tokens. Returns the states, and those with this call's."""
        y = self.self_attn_layer_norm(x)
        keys = self.self_attn.seen(y)
        if before is not None:
            keys = mx.concatenate([before[0], keys[0]], 2), mx.concatenate([before[1], keys[1]], 2)
        x = x + self.self_attn(y, keys, "causal" if heard is not None and x.shape[1] > 1 else None)
        if heard is not None:
            x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), heard)
        return x + self.fc2(nn.gelu(self.fc1(self.final_layer_norm(x)))), keys


class Encoder(nn.Module):
    """Log-mel frames (B, 2 L, mels) → states (B, L, D)."""

    def __init__(self, c: WhisperConfig) -> None:
        super().__init__()
        D = c.d_model
        self.conv1 = nn.Conv1d(c.num_mel_bins, D, 3, padding=1)
        self.conv2 = nn.Conv1d(D, D, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(c.max_source_positions, D)
        heads, ff = c.encoder_attention_heads, c.encoder_ffn_dim
        self.layers = [Layer(D, heads, ff, decodes=False) for _ in range(c.encoder_layers)]
        self.layer_norm = nn.LayerNorm(D)

    def __call__(self, frames: mx.array) -> mx.array:
        x = nn.gelu(self.conv2(nn.gelu(self.conv1(frames))))
        x = x + self.embed_positions.weight[: x.shape[1]]
        for layer in self.layers:
            x, _ = layer(x)
        found: mx.array = self.layer_norm(x)
        return found


class Decoder(nn.Module):
    """Tokens (B, L) after those of `cache` → logits (B, L, V) float32, and the cache with them."""

    def __init__(self, c: WhisperConfig) -> None:
        super().__init__()
        D = c.d_model
        self.embed_tokens = nn.Embedding(c.vocab_size, D)
        self.embed_positions = nn.Embedding(c.max_target_positions, D)
        heads, ff = c.decoder_attention_heads, c.decoder_ffn_dim
        self.layers = [Layer(D, heads, ff, decodes=True) for _ in range(c.decoder_layers)]
        self.layer_norm = nn.LayerNorm(D)

    def hears(self, states: mx.array) -> Cache:
        """What each layer looks at of an encoder's states (B, L, D); once for all tokens."""
        return [layer.encoder_attn.seen(states) for layer in self.layers]

    def __call__(self, tokens: mx.array, heard: Cache, cache: Cache | None = None) -> tuple[mx.array, Cache]:
        first = cache[0][0].shape[2] if cache else 0
        x = self.embed_tokens(tokens) + self.embed_positions.weight[first : first + tokens.shape[1]]
        kept = []
        for i, layer in enumerate(self.layers):
            x, keys = layer(x, heard[i], cache[i] if cache else None)
            kept.append(keys)
        return self.embed_tokens.as_linear(self.layer_norm(x)).astype(mx.float32), kept


class Whisper(nn.Module):
    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)


def log_mel(sound: np.ndarray, mels: int) -> np.ndarray:
    """(samples,) at `RATE` → (samples // HOP, mels) float32, as Whisper hears it.

    Power of a Hann window's spectrum on Slaney's mel scale, log10, no more than 8 below the loudest.
    """
    padded = np.pad(sound.astype(np.float32), FFT // 2, mode="reflect")
    window = np.hanning(FFT + 1)[:-1].astype(np.float32)
    filters = mel_filters(RATE, FFT, mels, 0.0, RATE / 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][: len(sound) // HOP]
    blocks = (frames[i : i + 3000] for i in range(0, len(frames), 3000))
    power = np.concatenate([np.abs(np.fft.rfft(block * window)) ** 2 @ filters for block in blocks])
    logs = np.log10(np.maximum(power, 1e-10))
    found: np.ndarray = (np.maximum(logs, logs.max() - 8.0) / 4 + 1).astype(np.float32)
    return found


def load_whisper(folder: Path, config: Mapping[str, Any]) -> Whisper:
    """The network of a folder in transformers' layout: float32 on a CPU, float16 on a GPU.

    CheckpointError names everything that is missing, unknown or of another size.
    """
    sizes, tensors = WhisperConfig.from_dict(config), read_weights(folder)
    check_repeats(sizes.NAME, sizes, sizes.REPEATED, len(tensors))
    module = Whisper(sizes)
    wanted, owners = parameters_of(module), dict(module.named_modules())
    sources = {NAMES.rename(name): name for name in tensors if NAMES.dropped(name) is None}
    problems = [f"unknown tensor {name!r}{nearest(name, wanted)}" for name in sources if name not in wanted]
    problems += [f"missing tensor {name!r}" for name in wanted if name not in sources]
    weights = []
    for name in wanted.keys() & sources.keys():
        owner, _, leaf = name.rpartition(".")
        info = tensors[sources[name]]
        shape = to_layout(owners[owner], leaf, mx.zeros(info.shape)).shape  # lazy: nothing is computed
        if shape != wanted[name].shape:
            problems.append(f"{name!r} has shape {info.shape}, in our layout {shape}")
        weights.append((name, info, owners[owner], leaf))
    if problems:
        raise problem_report(str(folder), problems)
    dtype = mx.float32 if on_cpu() else mx.float16
    for name, info, layer, leaf in weights:
        value = to_layout(layer, leaf, read_tensor(info).astype(dtype))
        mx.eval(value)
        if not mx.isfinite(value).all().item():
            raise CheckpointError(f"{folder}: {name!r} has values that are not finite")
        module.load_weights([(name, value)], strict=False)
    module.freeze()
    module.eval()
    return module
