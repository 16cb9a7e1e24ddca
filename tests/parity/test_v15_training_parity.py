"""Loss and LoRA gradients of ACE-Step 1.5 against PyTorch, through peft, on random weights in float32.

The reference is the original's training forward, written with diffusers' networks: whole condition encoder,
no masks, one song at a time.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.families.model_folder import Quantization, quantize_layers
from acestep_mlx.families.protocol import Draw
from acestep_mlx.families.songs import CachedSong, Shape, Words
from acestep_mlx.families.v15 import ACEStep15
from acestep_mlx.families.v15.conditions import ConditionEncoder
from acestep_mlx.families.v15.dit import ACEStep15Transformer, TransformerConfig
from acestep_mlx.families.v15.objective import FlowMatching
from acestep_mlx.families.v15.songs import texts
from acestep_mlx.lora.linear import dense_weight
from acestep_mlx.lora.surgery import LoRASpec, adapter_modules, inject
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep

from ..families.tiny import tiny
from ..families.v15 import Folder, song_encoders
from .test_v15_conditions_parity import TINY as CONDITIONS
from .test_v15_conditions_parity import settings
from .test_v15_transformer_parity import pair
from .v15 import normal, randomise, relative_error, same_weights, torch

pytestmark = pytest.mark.parity

FAMILY = ACEStep15()
CONFIG = dataclasses.replace(tiny(TransformerConfig), hidden_size=64)  # whole groups of 32
ALL = FAMILY.lora.presets["attn_qkv+mlp"]
SONGS = (
    (Words("pop", "[verse]\nla", 1.0), 33, False),
    (Words("a longer caption", None, 1.0, bpm=120), 24, False),
    (Words("dropped", "la la", 1.0), 9, True),
)


@pytest.fixture(scope="module")
def conditions() -> tuple[ConditionEncoder, Any]:
    from diffusers.pipelines.ace_step import AceStepConditionEncoder

    theirs = randomise(AceStepConditionEncoder(**settings(CONDITIONS, without=("timbre_fix_frame",))))
    theirs.silence_latent.normal_(generator=torch.Generator().manual_seed(9))
    return same_weights("condition_encoder", ConditionEncoder(CONDITIONS), theirs), theirs


class Example:
    """Songs through our encoders and into a batch, with a draw; the reference's loss of the same."""

    def __init__(self, conditions: tuple[ConditionEncoder, Any], path: Path, seed: int = 0) -> None:
        ours, self.encoder = conditions
        self.folder: Any = Folder(path, condition_encoder=ours)
        parts = song_encoders(self.folder)
        rng = np.random.default_rng(seed)
        songs, self.sound = [], []
        for i, (words, T, dropped) in enumerate(SONGS):
            mean, std = normal(T, 8, seed=seed + i), rng.uniform(0.1, 1, (T, 8)).astype(np.float32)
            source = np.array(ours.silence(T)[0])
            arrays = {"mean": mean, "std": std, "source": source}
            arrays |= parts.text.encode(words).arrays | parts.lyrics.encode(words).arrays
            songs.append(CachedSong(arrays, dropped, False))
            self.sound.append((mean, std))
        shape = Shape(34, 256, 128)
        self.batch = {name: mx.array(a) for name, a in FAMILY.collate(songs, shape).items()}
        self.batch["keys"] = mx.zeros((len(songs), 2), mx.uint32)
        self.noise, self.near = (normal(len(songs), 34, 8, seed=seed + n) for n in (20, 40))
        self.time = rng.uniform(0.05, 0.95, len(songs)).astype(np.float32)
        more = {"latents": mx.array(self.near)}
        self.draw = Draw(mx.array(self.noise), mx.array(self.time), mx.random.key(0), more)

    def condition(self, words: Words) -> Any:
        """What the reference's condition encoder makes of the whole song."""
        tokenizer, reader = self.folder.prompt_tokenizer(), self.folder.modules["text_encoder"]
        prompt, lyrics = texts(words)
        ids, mask = tokenizer([prompt], 256)
        lyric_ids, lyric_mask = tokenizer([lyrics], 2048)
        given = {
            "text_hidden_states": reader(ids, mask),
            "text_attention_mask": mask,
            "lyric_hidden_states": reader.embed_tokens(lyric_ids),
            "lyric_attention_mask": lyric_mask,
        }
        with torch.no_grad():
            states, _ = self.encoder(
                **{name: torch.from_numpy(np.array(value)) for name, value in given.items()},
                refer_audio_acoustic_hidden_states_packed=self.encoder.silence_latent[:, :750],
                refer_audio_order_mask=torch.zeros(1, dtype=torch.long),
            )
        return states

    def losses(self, model: Any) -> Any:
        """Of each song, (B,)."""
        found = []
        for i, (words, T, dropped) in enumerate(SONGS):
            mean, std, noise, near = (
                torch.from_numpy(x)[None] for x in (*self.sound[i], self.noise[i, :T], self.near[i, :T])
            )
            x0, t = mean + std * near, torch.from_numpy(self.time[i : i + 1])
            states = self.condition(words)
            if dropped:
                states = self.encoder.null_condition_emb.detach().expand_as(states)
            silence = self.encoder.silence_latent[:, :T]
            velocity = model(
                hidden_states=t * noise + (1 - t) * x0,
                timestep=t,
                timestep_r=t,
                encoder_hidden_states=states,
                context_latents=torch.cat([silence, torch.ones_like(silence)], dim=-1),
            ).sample
            found.append(torch.nn.functional.mse_loss(velocity, noise - x0))
        return torch.stack(found)


def adapted(quantize: int | None) -> tuple[ACEStep15Transformer, Any, list[str]]:
    """Our transformer with a LoRA on everything that can carry one by a preset, and theirs through peft."""
    import peft

    ours, theirs = pair(CONFIG)
    ours.freeze()
    if quantize:
        component = FAMILY.components["transformer"]
        modules, parameters = dict(ours.named_modules()), dict(theirs.named_parameters())
        paths = quantize_layers(component, ours, Quantization.of(quantize, 32))
        assert len(paths) == 4 * (4 + 4 + 3), "the layers' own, and no embedding of the time"
        modules = dict(ours.named_modules())
        with torch.no_grad():
            for path in paths:
                target = parameters[f"{their_name(path)}.weight"]
                target.copy_(torch.from_numpy(np.array(dense_weight(modules[path]).astype(mx.float32))))
    spec = LoRASpec(rank=3, alpha=5.0, use_rslora=True, targets=ALL)
    paths = inject(ours, spec)
    config = peft.LoraConfig(
        r=3, lora_alpha=5.0, use_rslora=True, target_modules=[their_name(path) for path in paths]
    )
    peft.inject_adapter_in_model(config, theirs, "x")
    layers = dict(theirs.named_modules())
    for i, (path, layer) in enumerate(adapter_modules(ours).items()):
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(i))
        layer.train()
        other = layers[their_name(path)]
        with torch.no_grad():
            other.lora_A["x"].weight.copy_(torch.from_numpy(np.array(layer.lora_a.T)))
            other.lora_B["x"].weight.copy_(torch.from_numpy(np.array(layer.lora_b.T)))
    return ours, theirs, paths


def their_name(path: str) -> str:
    """diffusers' name of our module."""
    head, _, leaf = path.rpartition(".")
    if not head.endswith("_attn"):
        return path
    return f"{head}.{'to_out.0' if leaf == 'o_proj' else 'to_' + leaf[0]}"


class Drawn(FlowMatching):
    """The objective with a given draw."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        object.__setattr__(self, "draw", lambda batch: draw)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loss(seed: int, conditions: tuple, tmp_path: Path) -> None:
    """Of each song of a padded batch, one of them without its condition: as the reference's of it alone."""
    example = Example(conditions, tmp_path, seed)
    ours, theirs = pair()
    with torch.no_grad():
        expected = example.losses(theirs)
    losses = FlowMatching().losses(ours, example.batch, example.draw, mx.float32)
    np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-5)


@pytest.mark.slow_after(4)
@pytest.mark.parametrize(("checkpoint_blocks", "product_blocks"), [(0, 0), (3, 0), (1, 3)])
@pytest.mark.parametrize("quantize", [None, 8, 4])
def test_every_lora_gradient(
    quantize: int | None, checkpoint_blocks: int, product_blocks: int, conditions: tuple, tmp_path: Path
) -> None:
    """Through the training step, of q, k, v, o of both attentions and of the MLP in every layer."""
    example = Example(conditions, tmp_path)
    ours, theirs, paths = adapted(quantize)
    assert len(paths) == 4 * (4 + 4 + 3)
    ours.checkpoint_blocks, ours.product_blocks = checkpoint_blocks, product_blocks
    loss = example.losses(theirs).mean()
    loss.backward()
    trained = [path for path, _ in tree_flatten(ours.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-3), Schedule("constant", 1e-3, 0, 1), trained)
    step = TrainStep(ours, [group], StepSettings(accumulate=2), Drawn(example.draw), compiled=False)
    result = step(example.batch, update=False)
    assert abs(result.loss.item() - loss.item()) <= 1e-5 * loss.item()
    gradient, layers = step.gradient(), dict(theirs.named_modules())
    for path in paths:
        other = layers[their_name(path)]
        for name, weight in (("lora_a", other.lora_A["x"].weight), ("lora_b", other.lora_B["x"].weight)):
            got = gradient[f"{path}.{name}"].T / len(SONGS)
            assert relative_error(got, weight.grad) <= 1e-3, (path, name)
