"""Loss, LoRA gradients and whole trajectories against PyTorch, through peft, on random weights in float32."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.families import family
from acestep_mlx.families.model_folder import Quantization, quantize_layers
from acestep_mlx.families.protocol import Draw
from acestep_mlx.families.v1 import objective as flow
from acestep_mlx.families.v1.dit import TransformerConfig
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.lora.linear import dense_weight
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep

from ..later import Later
from .test_transformer_parity import make_inputs, make_ours, make_reference, relative_error

torch = Later("torch")
pytestmark = pytest.mark.parity

CONFIG = TransformerConfig(
    num_layers=2,
    attention_head_dim=32,  # narrow heads make linear attention jump, see test_sampling_parity
    num_attention_heads=2,
    mlp_ratio=2.5,
    speaker_embedding_dim=16,
    text_embedding_dim=32,
    lyric_encoder_vocab_size=50,
    lyric_hidden_size=32,
    lyric_encoder_layers=2,
    lyric_encoder_heads=4,
    lyric_encoder_ff=64,
)
SPEC = LoRASpec(rank=3, alpha=5.0, use_rslora=True)


def example(seed: int, **sizes):
    """A micro-batch in our names, a fixed draw, and the same as torch arguments."""
    values = make_inputs(CONFIG, seed=seed, **sizes)
    rng = np.random.default_rng(seed + 100)
    B = values["hidden_states"].shape[0]
    sigma = np.array(flow.sigmas(3.0))[rng.integers(0, 1000, B)]
    noise = rng.standard_normal(values["hidden_states"].shape, dtype=np.float32)
    keep = rng.random((3, B)) > 0.4
    batch = {
        "latents": values["hidden_states"],
        "latent_mask": values["attention_mask"],
        "text": values["encoder_text_hidden_states"]
        * keep[0][:, None, None],  # dropped: zero states, mask stays
        "text_mask": values["text_attention_mask"],
        "speaker": values["speaker_embeds"] * keep[1][:, None],
        "lyric_ids": (values["lyric_token_idx"] * keep[2][:, None]).astype(np.int32),
        "lyric_mask": values["lyric_mask"] * keep[2][:, None],
        "keys": np.zeros((B, 2), np.uint32),
    }
    batch = {k: mx.array(v) for k, v in batch.items()}
    d = Draw(mx.array(noise), mx.array(sigma), mx.random.key(0), {})
    return batch, d, values, noise, sigma, keep


def reference_loss(model, values, noise, sigma, keep):
    """MODEL: x0_hat = x_t − σ·v, loss = mean((mask·(x0_hat − x0))²) · mean(mask) per sample, mean over the
    batch."""
    t = {k: torch.from_numpy(np.asarray(v)) for k, v in values.items()}
    x0, eps, s = t["hidden_states"], torch.from_numpy(noise), torch.from_numpy(sigma)[:, None, None, None]
    text, speaker, lyrics = (torch.from_numpy(k) for k in keep)
    noisy = s * eps + (1 - s) * x0
    v = model(
        hidden_states=noisy,
        attention_mask=t["attention_mask"],
        encoder_text_hidden_states=torch.where(text[:, None, None], t["encoder_text_hidden_states"], 0.0),
        text_attention_mask=t["text_attention_mask"],
        speaker_embeds=torch.where(speaker[:, None], t["speaker_embeds"], 0.0),
        lyric_token_idx=torch.where(lyrics[:, None], t["lyric_token_idx"], 0),
        lyric_mask=torch.where(lyrics[:, None], t["lyric_mask"], 0.0),
        timestep=torch.from_numpy(sigma * 1000),
    ).sample
    mask = t["attention_mask"][:, None, None].expand_as(x0)
    error = torch.nn.functional.mse_loss((noisy - s * v) * mask, x0 * mask, reduction="none")
    B = x0.shape[0]
    return (error.reshape(B, -1).mean(1) * mask.reshape(B, -1).mean(1)).mean()


def adapted_pair(monkeypatch, *, quantize: int | None = None, config: TransformerConfig = CONFIG, taps=()):
    """Our model with a LoRA, and the reference with the same LoRA through peft."""
    import peft

    theirs = make_reference(config, monkeypatch, taps=taps)
    ours = make_ours(config, theirs)
    ours.freeze()
    if quantize:
        names = quantize_layers(family("v1").components["transformer"], ours, Quantization.of(quantize, 32))
        modules, parameters = dict(ours.named_modules()), dict(theirs.named_parameters())
        with torch.no_grad():
            for name in names:
                target = parameters[f"{name}.weight"]
                dense = np.array(dense_weight(modules[name]).astype(mx.float32))
                target.copy_(torch.from_numpy(dense).reshape(target.shape))
    paths = inject(ours, SPEC)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=SPEC.rank, lora_alpha=SPEC.alpha, use_rslora=True, target_modules=paths),
        theirs,
        "x",
    )
    layers = dict(theirs.named_modules())
    for i, (path, layer) in enumerate(adapter_modules(ours).items()):
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(i))
        layer.train()
        with torch.no_grad():
            layers[path].lora_A["x"].weight.copy_(torch.from_numpy(np.array(layer.lora_a.T)))
            layers[path].lora_B["x"].weight.copy_(torch.from_numpy(np.array(layer.lora_b.T)))
    return ours, theirs, paths, layers


class Drawn(FlowMatching):
    """The objective with given draws, one after the other."""

    def __init__(self, draws):
        super().__init__()
        remaining = iter(draws)
        object.__setattr__(self, "draw", lambda batch: next(remaining))


def train_step(ours, draws, **options):
    paths = [p for p, _ in tree_flatten(ours.trainable_parameters())]
    lr = options.pop("lr", 1e-3)
    optimizer = make_optimizer("adamw", lr, betas=(0.8, 0.9), weight_decay=0.02)
    group = Group("lora", optimizer, Schedule("constant", lr, 0, 1), paths)
    auxiliary = options.pop("auxiliary", None)
    return TrainStep(
        ours, [group], StepSettings(**options), Drawn(draws), compiled=False, auxiliary=auxiliary
    )


def compare_gradients(gradients, paths, layers):
    for path in paths:
        for ours, theirs in (("lora_a", layers[path].lora_A), ("lora_b", layers[path].lora_B)):
            assert relative_error(gradients[f"{path}.{ours}"].T, theirs["x"].weight.grad) <= 1e-3, path


@pytest.mark.parametrize("sizes", [{}, {"frames": 9, "lyrics": 0, "lengths": ((9, 5), (7, 7), (0, 0))}])
def test_loss(sizes, monkeypatch):
    theirs = make_reference(CONFIG, monkeypatch)
    ours = make_ours(CONFIG, theirs)
    for seed in range(3):
        if sizes.get("lyrics") == 0:  # the reference needs one token; a masked one is no lyrics
            batch, d, values, *rest = example(seed, **{**sizes, "lyrics": 1})
            batch["lyric_ids"], batch["lyric_mask"] = batch["lyric_ids"][:, :0], batch["lyric_mask"][:, :0]
        else:
            batch, d, values, *rest = example(seed, **sizes)
        with torch.no_grad():
            expected = reference_loss(theirs, values, *rest).item()
        loss = mx.mean(FlowMatching().losses(ours, batch, d, mx.float32)).item()
        assert abs(loss - expected) <= 1e-5 * max(1.0, expected)


@pytest.mark.slow_after(4)
@pytest.mark.parametrize(("checkpoint_blocks", "product_blocks"), [(0, 0), (2, 0), (0, 2)])
@pytest.mark.parametrize("quantize", [None, 8, 4])
def test_every_lora_gradient(quantize, checkpoint_blocks, product_blocks, monkeypatch):
    ours, theirs, paths, layers = adapted_pair(monkeypatch, quantize=quantize)
    assert len(paths) == 2 * 8 + 2 * 3
    ours.checkpoint_blocks, ours.product_blocks = checkpoint_blocks, product_blocks
    batch, d, values, *rest = example(1)
    loss = reference_loss(theirs, values, *rest)
    loss.backward()
    step = train_step(ours, [d], accumulate=2)
    result = step(batch, update=False)
    assert abs(result.loss.item() - loss.item()) <= 1e-5 * max(1.0, loss.item())
    weight = step.carry["weight"]
    compare_gradients({k: g / weight for k, g in step.gradient().items()}, paths, layers)


def test_accumulated_gradients_with_uneven_batches(monkeypatch):
    ours, theirs, paths, layers = adapted_pair(monkeypatch)
    examples = [
        example(3),
        example(4, frames=12, batch=3, lengths=((12, 9, 7), (7, 2, 5), (11, 4, 9))),
    ]
    total = sum(e[2]["hidden_states"].shape[0] for e in examples)
    for _, _, values, *rest in examples:
        (reference_loss(theirs, values, *rest) * values["hidden_states"].shape[0] / total).backward()
    step = train_step(ours, [e[1] for e in examples], accumulate=3)
    for batch, *_ in examples:
        step(batch, update=False)
    assert step.carry["weight"].item() == total
    compare_gradients({k: g / total for k, g in step.gradient().items()}, paths, layers)


def test_trajectory_with_clipping_and_accumulation(monkeypatch):
    ours, theirs, paths, layers = adapted_pair(monkeypatch)
    trained = [p for n, p in theirs.named_parameters() if "lora_" in n]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.8, 0.9), weight_decay=0.02)
    examples = [example(seed) for seed in range(8)]
    start = {p: np.array(m.lora_b.T) for p, m in adapter_modules(ours).items()}
    step = train_step(ours, [e[1] for e in examples], accumulate=2, max_grad_norm=0.5)
    for i, (batch, _, values, *rest) in enumerate(examples):
        result = step(batch, update=i % 2 == 1, step=i // 2)
        (reference_loss(theirs, values, *rest) / 2).backward()
        if i % 2:
            norm = torch.nn.utils.clip_grad_norm_(trained, 0.5)
            assert abs(result.grad_norm.item() - norm.item()) <= 1e-3 * norm.item()
            optimizer.step()
            optimizer.zero_grad()
    for path in paths:
        moved = np.array(adapter_modules(ours)[path].lora_b.T) - start[path]
        theirs_moved = layers[path].lora_B["x"].weight.detach().numpy() - start[path]
        # Adam divides by the gradient's size, so tiny gradients' rounding shows in full
        assert np.linalg.norm(moved - theirs_moved) <= 5e-3 * np.linalg.norm(theirs_moved), path
