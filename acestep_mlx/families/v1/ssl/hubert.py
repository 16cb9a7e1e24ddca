"""HuBERT (arXiv 2106.07447): sound in, frames out, 320 samples to a frame.

Seven convolutions, a convolution over 128 frames for the positions, and a transformer. The released networks
differ in size and in where they normalise: mHuBERT after each layer, MERT before it. Names of parameters are
those of transformers' `HubertModel`. Arrays are (B, L, D).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ....errors import CheckpointError, nearest
from ....formatting import problem_report
from ....io.safetensors import Header, read_header
from ....io.schema import read_json
from ....io.tensors import read_tensor
from ....nn.convolution import GroupedConv1d, StridedConv1d
from ...keymap import KeyMap, to_layout
from ...model_folder import parameters_of

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
HEAD = 64  # width of a head where no config.json says otherwise
NAMES = KeyMap(
    renames=((r"(?:hubert|model)\.(.+)", r"\1"),),
    drops=(
        (r"(hubert\.|model\.)?masked_spec_embed", "only pre-training masks frames"),
        (r"(final_proj|label_embs_concat|lm_head|projector|classifier)(\..*)?", "of pre-training, or a head"),
    ),
)
_CONV = "encoder.pos_conv_embed.conv"
_NORMED = (  # (magnitude, direction): weight normalisation in PyTorch's two spellings
    (f"{_CONV}.weight_g", f"{_CONV}.weight_v"),
    (f"{_CONV}.parametrizations.weight.original0", f"{_CONV}.parametrizations.weight.original1"),
)


@dataclass(frozen=True)
class HubertConfig:
    """Sizes; pre_norm: whether layers normalise what they take (`do_stable_layer_norm`)."""

    width: int
    layers: int
    heads: int
    ff: int
    channels: int
    window: int
    groups: int
    pre_norm: bool

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], pre_norm: bool, heads: int | None) -> HubertConfig:
        """Of a file's tensors. CheckpointError when they are no HuBERT's."""
        try:
            width, channels = shapes["feature_projection.projection.weight"]
            _, per_group, window = shapes[f"{_CONV}.weight"]
            ff = shapes["encoder.layers.0.feed_forward.intermediate_dense.weight"][0]
            groups = width // per_group
        except (KeyError, ValueError, ZeroDivisionError):
            raise CheckpointError("not a HuBERT: its projection, positions or layers are missing") from None
        layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
        heads = heads or max(1, width // HEAD)
        if width % heads or groups * per_group != width:
            raise CheckpointError(
                f"not a HuBERT: {width} is no multiple of {heads} heads and {groups} groups"
            )
        return cls(width, len(layers), heads, ff, channels, window, groups, pre_norm)


def frames(samples: int) -> int:
    """How many frames the network gives for so many samples."""
    for kernel, stride in zip(KERNELS, STRIDES, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


class TimeNorm(nn.Module):
    """Each channel normalised over time (GroupNorm with as many groups as channels), in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = mx.ones((channels,)), mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        x32 = x.astype(mx.float32)
        centred = x32 - mx.mean(x32, axis=1, keepdims=True)
        scale = mx.rsqrt(mx.mean(mx.square(centred), axis=1, keepdims=True) + 1e-5)
        return (centred * scale * self.weight + self.bias).astype(x.dtype)


class ConvLayer(nn.Module):
    """A strided convolution and GELU; the first normalises in between."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, normed: bool) -> None:
        super().__init__()
        self.conv = StridedConv1d(inputs, outputs, kernel, stride)
        if normed:
            self.layer_norm = TimeNorm(outputs)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv(x)
        return nn.gelu(self.layer_norm(x) if "layer_norm" in self else x)


class FeatureExtractor(nn.Module):
    """(B, m, 1) samples → (B, L, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = zip((1, *[channels] * 6), KERNELS, STRIDES, strict=True)
        self.conv_layers = [ConvLayer(c, channels, k, s, i == 0) for i, (c, k, s) in enumerate(sizes)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.conv_layers:
            x = layer(x)
        return x


class FeatureProjection(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.channels)
        self.projection = nn.Linear(config.channels, config.width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.projection(self.layer_norm(x))


class Positions(nn.Module):
    """A grouped convolution over `window` frames."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.conv = GroupedConv1d(config.width, config.window, config.groups)

    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu(self.conv(x))


class Attention(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        D = config.width
        self.heads = config.heads
        self.q_proj, self.k_proj = nn.Linear(D, D), nn.Linear(D, D)
        self.v_proj, self.out_proj = nn.Linear(D, D), nn.Linear(D, D)

    def __call__(self, x: mx.array) -> mx.array:
        B, L, D = x.shape
        q, k, v = (
            project(x).reshape(B, L, self.heads, -1).swapaxes(1, 2)  # [B, H, L, Dh]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=(D // self.heads) ** -0.5)
        return self.out_proj(y.swapaxes(1, 2).reshape(B, L, D))


class FeedForward(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(config.width, config.ff)
        self.output_dense = nn.Linear(config.ff, config.width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.output_dense(nn.gelu(self.intermediate_dense(x)))


class Layer(nn.Module):
    """Attention and feed-forward, each with its norm before or behind."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = Attention(config)
        self.layer_norm = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array
        if self.pre_norm:
            x = x + self.attention(self.layer_norm(x))
            y = x + self.feed_forward(self.final_layer_norm(x))
            return y
        x = self.layer_norm(x + self.attention(x))
        y = self.final_layer_norm(x + self.feed_forward(x))
        return y


class Encoder(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.pos_conv_embed = Positions(config)
        self.layer_norm = nn.LayerNorm(config.width)
        self.layers = [Layer(config) for _ in range(config.layers)]

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.pos_conv_embed(x)
        x = x if self.pre_norm else self.layer_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x) if self.pre_norm else x


class Hubert(nn.Module):
    """Normalised sound (B, m), m ≥ 400 → the last layer's states (B, (m − 400) // 320 + 1, width)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = FeatureExtractor(config.channels)
        self.feature_projection = FeatureProjection(config)
        self.encoder = Encoder(config)

    def __call__(self, sound: mx.array) -> mx.array:
        states: mx.array = self.encoder(self.feature_projection(self.feature_extractor(sound[..., None])))
        return states


@dataclass(frozen=True)
class HubertFile:
    """A checked safetensors file of a HuBERT; nothing of it is in memory. names: ours → the file's."""

    path: Path
    header: Header
    names: dict[str, tuple[str, ...]]
    config: HubertConfig

    @property
    def parameters(self) -> int:
        """How many numbers the network has."""
        return sum(self.header.tensors[theirs[-1]].size for theirs in self.names.values())

    def load(self) -> Hubert:
        """The network in float32. CheckpointError for values that are not finite."""
        module = Hubert(self.config)
        owners = dict(module.named_modules())
        weights = []
        for name, sources in self.names.items():
            parts = [read_tensor(self.header.tensors[one]).astype(mx.float32) for one in sources]
            value = parts[0] if len(parts) == 1 else _weight_normed(*parts)
            owner, _, leaf = name.rpartition(".")
            weights.append((name, to_layout(owners[owner], leaf, value)))
            mx.eval(weights[-1][1])
            if not mx.isfinite(weights[-1][1]).all().item():
                raise CheckpointError(f"{self.path}: {sources[-1]!r} has values that are not finite")
        module.load_weights(weights, strict=True)
        module.freeze()
        module.eval()
        return module


def _weight_normed(g: mx.array, v: mx.array) -> mx.array:
    """g · v / ‖v‖, one magnitude for each place of the kernel."""
    axes = [axis for axis in range(v.ndim) if g.shape[axis] == 1]
    return g * v / mx.sqrt(mx.sum(mx.square(v), axis=axes, keepdims=True))


def open_hubert(path: Path, pre_norm: bool) -> HubertFile:
    """Check a file's header, and the config.json beside it where there is one; CheckpointError names all that
    is wrong. Reads no tensor.
    """
    header = read_header(path)
    said = _said_beside(path, pre_norm)
    names = _names(header)
    shapes = {ours: header.tensors[theirs[-1]].shape for ours, theirs in names.items()}
    try:
        config = HubertConfig.of(shapes, pre_norm, said.get("num_attention_heads"))
        wanted = parameters_of(Hubert(config))
    except (CheckpointError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    problems = [f"unknown tensor {name!r}{nearest(name, wanted)}" for name in names if name not in wanted]
    problems += [f"missing tensor {name!r}" for name in wanted if name not in names]
    owners = dict(Hubert(config).named_modules())
    for name in wanted.keys() & names.keys():
        owner, _, leaf = name.rpartition(".")
        got = to_layout(owners[owner], leaf, mx.zeros(shapes[name])).shape  # lazy: nothing is computed
        if got != wanted[name].shape:
            problems.append(f"{name!r} has shape {shapes[name]}, in our layout {got}")
    if problems:
        raise problem_report(str(path), problems)
    return HubertFile(path, header, names, config)


def _names(header: Header) -> dict[str, tuple[str, ...]]:
    """Our names of a file's tensors; a weight that is normalised has two sources."""
    found: dict[str, tuple[str, ...]] = {}
    for theirs in header.tensors:
        if NAMES.dropped(theirs) is None:
            found[NAMES.rename(theirs)] = (theirs,)
    for g, v in _NORMED:
        if g in found and v in found:
            found[f"{_CONV}.weight"] = found.pop(g) + found.pop(v)
    return found


def _said_beside(path: Path, pre_norm: bool) -> dict[str, Any]:
    """The config.json beside a file. CheckpointError when it is another kind of network's."""
    file = path.with_name("config.json")
    said: dict[str, Any] = read_json(file) if file.is_file() else {}
    wanted = {
        "do_stable_layer_norm": pre_norm,
        "feat_extract_norm": "group",
        "conv_bias": False,
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "conv_pos_batch_norm": False,
        "feature_extractor_cqt": False,
    }
    wrong = [
        f"{key} is {said[key]!r}, not {value!r}"
        for key, value in wanted.items()
        if said.get(key, value) != value
    ]
    heads = said.get("num_attention_heads")
    if heads is not None and (type(heads) is not int or not 0 < heads <= 1024):
        wrong.append(f"num_attention_heads is {heads!r}")
    if wrong:
        raise CheckpointError(f"{file}: not this network: {'; '.join(wrong)}")
    return said
