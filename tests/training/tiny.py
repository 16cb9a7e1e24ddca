"""A transformer of milliseconds with random weights, and batches for it."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from acestep_mlx.families.v1.dit import ACEStepTransformer, TransformerConfig
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.rollout import Rollout, RolloutSettings
from acestep_mlx.training.step import StepSettings, TrainStep

CONFIG = TransformerConfig(
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=4,
    mlp_ratio=2.0,
    speaker_embedding_dim=8,
    text_embedding_dim=16,
    lyric_encoder_vocab_size=64,
    lyric_hidden_size=16,
    lyric_encoder_layers=1,
    lyric_encoder_heads=2,
    lyric_encoder_ff=32,
)


def transformer(seed: int = 0, config: TransformerConfig = CONFIG) -> ACEStepTransformer:
    """Random weights everywhere (also where the constructor puts zeros), frozen."""
    mx.random.seed(seed)
    model = ACEStepTransformer(config)

    def fill(p: mx.array) -> mx.array:
        scale = 1 / max(1.0, p.size / p.shape[0]) ** 0.5 if p.ndim > 1 else 0.1
        return mx.random.normal(p.shape) * scale

    model.update(tree_map(fill, model.parameters()))
    model.freeze()
    model.eval()
    mx.eval(model.parameters())
    return model


def adapted(
    seed: int = 0, spec: LoRASpec | None = None, config: TransformerConfig = CONFIG
) -> ACEStepTransformer:
    """The same with LoRA layers in training mode whose B is not zero."""
    model = transformer(seed, config)
    inject(model, spec or LoRASpec(rank=2, alpha=3), seed=seed)
    for i, layer in enumerate(adapter_modules(model).values()):
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(i)) * 0.05
        layer.train()
    mx.eval(model.parameters())
    return model


def batch(seed: int = 0, B: int = 1, T: int = 12, text: int = 5, lyrics: int = 6) -> dict[str, mx.array]:
    """Random latents and conditions; the last frames and tokens of later samples are padding."""
    keys = mx.random.split(mx.random.key(seed), 3)
    frames = mx.array([T - (3 * i) % T for i in range(B)])
    tokens = mx.array([text - i % text for i in range(B)])
    words = mx.array([max(0, lyrics - 2 * i) for i in range(B)])
    mask = (mx.arange(T)[None] < frames[:, None]).astype(mx.float32)
    return {
        "latents": mx.random.normal((B, 8, 16, T), key=keys[0]) * mask[:, None, None],
        "latent_mask": mask,
        "text": mx.random.normal((B, text, CONFIG.text_embedding_dim), key=keys[1]),
        "text_mask": (mx.arange(text)[None] < tokens[:, None]).astype(mx.float32),
        "lyric_ids": mx.random.randint(1, 64, (B, lyrics), key=keys[2])
        * (mx.arange(lyrics)[None] < words[:, None]),
        "lyric_mask": (mx.arange(lyrics)[None] < words[:, None]).astype(mx.float32),
        "keys": mx.stack([mx.random.key(1000 * seed + i) for i in range(B)]),
    }


def rows(whole: dict[str, mx.array], start: int, stop: int) -> dict[str, mx.array]:
    """Samples start … stop−1 of a batch."""
    return {k: v[start:stop] for k, v in whole.items()}


def step(
    model: nn.Module, *, lr: float = 1e-2, optimizer: str = "adamw", total: int = 100, **options: object
) -> TrainStep:
    """A TrainStep with one group."""
    compiled = bool(options.pop("compiled", True))
    place = {k: options.pop(k) for k in ("world", "auxiliary") if k in options}
    rollout = options.pop("rollout", None)
    paths = [p for p, _ in _flat(model)]
    group = Group("lora", make_optimizer(optimizer, lr), Schedule("constant", lr, 0, total), paths)
    settings = StepSettings(**options)  # type: ignore[arg-type]
    if isinstance(rollout, RolloutSettings):
        dtype = settings.compute_dtype
        place["rollout"] = Rollout(model, FlowMatching(), rollout, dtype, compiled=compiled)
    return TrainStep(model, [group], settings, FlowMatching(), compiled=compiled, **place)  # type: ignore[arg-type]


def _flat(model: nn.Module) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return tree_flatten(model.trainable_parameters())


def weights(model: nn.Module) -> dict[str, mx.array]:
    """Trainable parameters, evaluated."""
    flat = dict(_flat(model))
    mx.eval(flat)
    return flat


def difference(a: dict[str, mx.array], b: dict[str, mx.array]) -> float:
    """Largest absolute difference of two parameter sets."""
    assert a.keys() == b.keys()
    return max(mx.abs(a[k].astype(mx.float32) - b[k].astype(mx.float32)).max().item() for k in a)


def tree(model: nn.Module) -> list[tuple[str, mx.array]]:
    """All parameters by path."""
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())
