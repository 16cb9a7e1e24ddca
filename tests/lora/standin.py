"""A stand-in with the transformer's module names, and the tools that the LoRA tests share."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from acestep_mlx.families.v1.lora import LORA
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject

WIDTH = 64


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = [nn.Linear(width, width)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.to_out[0](mx.tanh(self.to_q(x)) * self.to_k(x) + self.to_v(x))


class Pointwise(nn.Module):
    def __init__(self, inputs: int, out: int, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Linear(inputs, out, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(x)


class Depthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inverted_conv = Pointwise(width, 2 * width, True)
        self.depth_conv = Depthwise(2 * width)
        self.point_conv = Pointwise(2 * width, width, False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.point_conv(nn.silu(self.inverted_conv(x)))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn, self.cross_attn = Attention(width), Attention(width)
        self.ff = FeedForward(width)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.attn(x)
        x = x + self.cross_attn(x)
        return x + self.ff(x)


class LyricAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(width, width) for _ in range(3))
        self.pos_bias_u = mx.zeros((2, width // 2))

    def __call__(self, x: mx.array) -> mx.array:
        return nn.silu(self.linear_q(x)) * self.linear_k(x) + self.linear_v(x) + self.pos_bias_u.reshape(-1)


class LyricLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = LyricAttention(width)


class LyricEncoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoders = [LyricLayer(width)]
        self.after_norm = nn.LayerNorm(width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.after_norm(x + self.encoders[0].self_attn(x))


class FinalLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)  # a plain layer whose name is a wrapper's attribute


class StandIn(nn.Module):
    """tokens (B, L) int → (B, L, WIDTH)."""

    lora = LORA

    def __init__(self, width: int = WIDTH, blocks: int = 2) -> None:
        super().__init__()
        self.lyric_embs = nn.Embedding(10, width)
        self.lyric_encoder = LyricEncoder(width)
        self.lyric_proj = nn.Linear(width, width)
        self.speaker_embedder = nn.Linear(32, width)
        self.transformer_blocks = [Block(width) for _ in range(blocks)]
        self.final_layer = FinalLayer(width)

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.lyric_proj(self.lyric_encoder(self.lyric_embs(tokens)))
        for block in self.transformer_blocks:
            x = block(x)
        return self.final_layer.linear(x)


TOKENS = mx.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]])
KINDS = ("float32", "bfloat16", "q8", "q4")


def make(kind: str = "float32", **sizes: int) -> StandIn:
    """A frozen stand-in in float32, bfloat16, or quantised over bfloat16."""
    mx.random.seed(3)
    model = StandIn(**sizes)
    if kind != "float32":
        model.set_dtype(mx.bfloat16)
    if kind.startswith("q"):
        nn.quantize(
            model, group_size=32, bits=int(kind[1:]), class_predicate=lambda _, m: isinstance(m, nn.Linear)
        )
    model.freeze()
    model.eval()
    mx.eval(model.parameters())
    return model


def disturb(model: nn.Module, seed: int = 1, size: float = 0.05) -> None:
    """Give every adapter weights as if it had been trained."""
    for i, layer in enumerate(adapter_modules(model).values()):
        key = mx.random.key(seed * 1000 + i)
        layer.lora_b = size * mx.random.normal(layer.lora_b.shape, key=key)
        if "m" in layer:
            layer.m = layer.m * (1 + 0.1 * mx.random.normal(layer.m.shape, key=key))


def trained(spec: LoRASpec, kind: str = "float32", seed: int = 1) -> StandIn:
    model = make(kind)
    inject(model, spec, seed=seed)
    disturb(model, seed)
    return model
