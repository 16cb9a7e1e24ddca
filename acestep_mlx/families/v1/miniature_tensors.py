"""Every tensor of an upstream checkpoint by name, shape and a size that keeps signals sane."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import prod, sqrt

from ..random_weights import Shape, Spec
from .geometry import Config, Geometry

# Bring random latents near zero mean and unit variance: the codec adds 1.9091 and multiplies by 0.1786.
LATENT_GAIN, LATENT_MEAN = 1.5, -1.9


def _dense(
    name: str, shape: Shape, gain: float = 1.0, bias: bool = True, mean: float = 0.0
) -> Iterator[Spec]:
    """A linear layer or convolution whose output is about `gain` times as large as its input, plus `mean`."""
    yield Spec(f"{name}.weight", shape, gain / sqrt(prod(shape[1:])))
    if bias:
        yield Spec(f"{name}.bias", shape[:1], 0.02, mean)


def _norm(name: str, width: int) -> Iterator[Spec]:
    yield Spec(f"{name}.weight", (width,), 0.05, mean=1.0)
    yield Spec(f"{name}.bias", (width,), 0.05)


def transformer(geometry: Geometry) -> Iterator[Spec]:
    """Every tensor of `ace_step_transformer`, also those that the forward pass never uses."""
    c = geometry.transformer
    D, L = c["num_attention_heads"] * c["attention_head_dim"], c["lyric_hidden_size"]
    hidden = int(D * c["mlp_ratio"])
    for i in range(c["num_layers"]):
        block = f"transformer_blocks.{i}"
        yield Spec(f"{block}.scale_shift_table", (6, D), D**-0.5)
        for layer in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _dense(f"{block}.attn.{layer}", (D, D))
        unused = ("add_k_proj", "add_v_proj", "add_q_proj")
        for layer in ("to_q", "to_k", "to_v", *unused, "to_out.0", "to_add_out"):
            yield from _dense(f"{block}.cross_attn.{layer}", (D, D))
        yield from _dense(f"{block}.ff.inverted_conv.conv", (2 * hidden, D, 1))
        yield from _dense(f"{block}.ff.depth_conv.conv", (2 * hidden, 1, 3))
        yield from _dense(f"{block}.ff.point_conv.conv", (D, hidden, 1), bias=False)
    yield from _dense("timestep_embedder.linear_1", (D, 256))
    yield from _dense("timestep_embedder.linear_2", (D, D))
    yield from _dense("t_block.1", (6 * D, D))
    yield from _dense("speaker_embedder", (D, c["speaker_embedding_dim"]))
    yield from _dense("genre_embedder", (D, c["text_embedding_dim"]))
    yield Spec("lyric_embs.weight", (c["lyric_encoder_vocab_size"], L), 1.0)
    yield from _lyric_encoder(L, geometry)
    yield from _dense("lyric_proj", (D, L))
    for i, width in enumerate(c["ssl_latent_dims"]):
        for position, shape in ((0, (2 * D, D)), (2, (2 * D, 2 * D)), (4, (width, 2 * D))):
            yield from _dense(f"projectors.{i}.{position}", shape)
    wide = 256 * c["in_channels"]
    yield from _dense("proj_in.early_conv_layers.0", (wide, c["in_channels"], *c["patch_size"]))
    yield from _norm("proj_in.early_conv_layers.1", wide)
    yield from _dense("proj_in.early_conv_layers.2", (D, wide, 1, 1))
    yield Spec("final_layer.scale_shift_table", (2, D), D**-0.5)
    yield from _dense("final_layer.linear", (prod(c["patch_size"]) * c["out_channels"], D), gain=0.5)


def _lyric_encoder(width: int, geometry: Geometry) -> Iterator[Spec]:
    heads = geometry.lyric_heads
    yield from _dense("lyric_encoder.embed.out.0", (width, width))
    yield from _norm("lyric_encoder.embed.out.1", width)
    yield from _norm("lyric_encoder.after_norm", width)
    for i in range(geometry.lyric_layers):
        layer = f"lyric_encoder.encoders.{i}"
        for name in ("pos_bias_u", "pos_bias_v"):
            yield Spec(f"{layer}.self_attn.{name}", (heads, width // heads), 0.1)
        for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
            yield from _dense(f"{layer}.self_attn.{name}", (width, width))
        yield from _dense(f"{layer}.self_attn.linear_pos", (width, width), bias=False)
        yield from _dense(f"{layer}.feed_forward.w_1", (geometry.lyric_ff, width))
        yield from _dense(f"{layer}.feed_forward.w_2", (width, geometry.lyric_ff))
        yield from _norm(f"{layer}.norm_ff", width)
        yield from _norm(f"{layer}.norm_mha", width)


def text_encoder(geometry: Geometry) -> Iterator[Spec]:
    """Every tensor of `umt5-base`: T5's initialisation, whose attention is not scaled."""
    c = geometry.text_encoder
    D, inner = c["d_model"], c["num_heads"] * c["d_kv"]
    yield Spec("shared.weight", (c["vocab_size"], D), 1.0)
    for i in range(c["num_layers"]):
        block = f"encoder.block.{i}.layer"
        yield from _dense(f"{block}.0.SelfAttention.q", (inner, D), gain=c["d_kv"] ** -0.5, bias=False)
        for name, shape in (("k", (inner, D)), ("v", (inner, D)), ("o", (D, inner))):
            yield from _dense(f"{block}.0.SelfAttention.{name}", shape, bias=False)
        buckets = (c["relative_attention_num_buckets"], c["num_heads"])
        yield Spec(f"{block}.0.SelfAttention.relative_attention_bias.weight", buckets, 0.5)
        yield Spec(f"{block}.0.layer_norm.weight", (D,), 0.05, mean=1.0)
        yield from _dense(f"{block}.1.DenseReluDense.wi_0", (c["d_ff"], D), bias=False)
        yield from _dense(f"{block}.1.DenseReluDense.wi_1", (c["d_ff"], D), bias=False)
        yield from _dense(f"{block}.1.DenseReluDense.wo", (D, c["d_ff"]), bias=False)
        yield Spec(f"{block}.1.layer_norm.weight", (D,), 0.05, mean=1.0)
    yield Spec("encoder.final_layer_norm.weight", (D,), 0.05, mean=1.0)


def _dcae_block(kind: str, width: int, scales: list[int], head_dim: int, name: str) -> Iterator[Spec]:
    if kind == "ResBlock":
        yield from _dense(f"{name}.conv1", (width, width, 3, 3))
        yield from _dense(f"{name}.conv2", (width, width, 3, 3), bias=False)
        yield from _norm(f"{name}.norm", width)
        return
    for layer in ("to_q", "to_k", "to_v"):
        yield from _dense(f"{name}.attn.{layer}", (width, width), bias=False)
    for i, kernel in enumerate(scales):
        scale = f"{name}.attn.to_qkv_multiscale.{i}"
        yield from _dense(f"{scale}.proj_in", (3 * width, 1, kernel, kernel), bias=False)
        yield from _dense(f"{scale}.proj_out", (3 * width, head_dim, 1, 1), bias=False)
    yield from _dense(f"{name}.attn.to_out", (width, width * (1 + len(scales))), bias=False)
    yield from _norm(f"{name}.attn.norm_out", width)
    yield from _dense(f"{name}.conv_out.conv_inverted", (8 * width, width, 1, 1))
    yield from _dense(f"{name}.conv_out.conv_depth", (8 * width, 1, 3, 3))
    yield from _dense(f"{name}.conv_out.conv_point", (width, 4 * width, 1, 1), bias=False)
    yield from _norm(f"{name}.conv_out.norm", width)


def _dcae_levels(c: Config, side: str) -> Iterator[tuple[int, int, Callable[[str], Iterator[Spec]]]]:
    """Of each level its number, how many blocks it has, and what such a block of a name has."""
    facts = ("block_types", "block_out_channels", "qkv_multiscales", "layers_per_block")
    for i, (kind, width, scales, layers) in enumerate(
        zip(*(c[f"{side}_{fact}"] for fact in facts), strict=True)
    ):
        yield i, layers, partial(_dcae_block, kind, width, scales, c["attention_head_dim"])


def dcae(geometry: Geometry) -> Iterator[Spec]:
    """Every tensor of `music_dcae_f8c8` (downsampling `Conv`, upsampling `interpolate`).

    The last gains bring random latents near unit variance, and mel images near their range.
    """
    c = geometry.dcae
    C = c["encoder_block_out_channels"]
    yield from _dense("encoder.conv_in", (C[0], c["in_channels"], 3, 3))
    for i, layers, block in _dcae_levels(c, "encoder"):
        for j in range(layers):
            yield from block(f"encoder.down_blocks.{i}.{j}")
        if i + 1 < len(C):
            yield from _dense(f"encoder.down_blocks.{i}.{layers}.conv", (C[i + 1], C[i], 3, 3))
    yield from _dense(
        "encoder.conv_out", (c["latent_channels"], C[-1], 3, 3), gain=LATENT_GAIN, mean=LATENT_MEAN
    )
    C = c["decoder_block_out_channels"]
    yield from _dense("decoder.conv_in", (C[-1], c["latent_channels"], 3, 3))
    for i, layers, block in _dcae_levels(c, "decoder"):
        up = int(i + 1 < len(C))
        if up:
            yield from _dense(f"decoder.up_blocks.{i}.0.conv", (C[i], C[i + 1], 3, 3))
        for j in range(layers):
            yield from block(f"decoder.up_blocks.{i}.{j + up}")
    yield from _norm("decoder.norm_out", C[0])
    yield from _dense("decoder.conv_out", (c["in_channels"], C[0], 3, 3), gain=0.5)


def _weight_normed(name: str, shape: Shape, magnitude: float, new: bool) -> Iterator[Spec]:
    """A convolution under weight normalisation, in PyTorch's new or old spelling."""
    g, v = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    if not new:
        g, v = "weight_g", "weight_v"
    yield Spec(f"{name}.{g}", (shape[0], *(1 for _ in shape[1:])), 0.05 * magnitude, mean=magnitude)
    yield Spec(f"{name}.{v}", shape, 0.01)


def vocoder(geometry: Geometry, new_weight_norm: bool = True) -> Iterator[Spec]:
    """Every tensor of `music_vocoder`; random noise comes out neither silent nor clipped."""
    c = geometry.vocoder
    dims = c["dims"]
    yield from _dense("backbone.channel_layers.0.0", (dims[0], c["input_channels"], 7), gain=0.2)
    yield from _norm("backbone.channel_layers.0.1", dims[0])
    for i in range(1, len(dims)):
        yield from _norm(f"backbone.channel_layers.{i}.0", dims[i - 1])
        yield from _dense(f"backbone.channel_layers.{i}.1", (dims[i], dims[i - 1], 1))
    for i, (depth, width) in enumerate(zip(c["depths"], dims, strict=True)):
        for j in range(depth):
            block = f"backbone.stages.{i}.{j}"
            yield Spec(f"{block}.gamma", (width,), 0.05, mean=0.3)
            yield from _dense(f"{block}.dwconv", (width, 1, 7))
            yield from _norm(f"{block}.norm", width)
            yield from _dense(f"{block}.pwconv1", (4 * width, width))
            yield from _dense(f"{block}.pwconv2", (width, 4 * width))
    yield from _norm("backbone.norm", dims[-1])
    width = c["upsample_initial_channel"]

    def conv(name: str, shape: Shape, magnitude: float, out: int) -> Iterator[Spec]:
        yield Spec(f"{name}.bias", (out,), 0.02)
        yield from _weight_normed(name, shape, magnitude, new_weight_norm)

    yield from conv("head.conv_pre", (width, c["num_mels"], c["pre_conv_kernel_size"]), 1.0, width)
    for i, kernel in enumerate(c["upsample_kernel_sizes"]):
        half = width // 2
        yield from conv(f"head.ups.{i}", (width, half, kernel), sqrt(0.7 * kernel), half)
        for j, size in enumerate(c["resblock_kernel_sizes"]):
            block = f"head.resblocks.{i * len(c['resblock_kernel_sizes']) + j}"
            for convs in ("convs1", "convs2"):
                for k in range(3):
                    yield from conv(f"{block}.{convs}.{k}", (half, half, size), 0.7, half)
        width = half
    yield from conv("head.conv_post", (1, width, c["post_conv_kernel_size"]), 0.2, 1)
    yield Spec("mel_transform.spectrogram.window", (c["win_length"],), 0.0)
    yield Spec("mel_transform.mel_scale.fb", (c["n_fft"] // 2 + 1, c["n_mels"]), 0.0)
