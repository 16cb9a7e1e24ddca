"""The transformer and its lyric encoder against the PyTorch reference, random weights, float32."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from acestep_mlx.convert.plan import plan, translate
from acestep_mlx.families.v1.dit import ACEStepTransformer, TransformerConfig
from acestep_mlx.families.v1.keymap import KEYMAPS

from ..families.tiny import tiny
from ..later import Later
from . import reference

torch = Later("torch")
pytestmark = pytest.mark.parity


def relative_error(ours: mx.array, theirs: torch.Tensor) -> float:
    a, b = np.array(ours.astype(mx.float32)), theirs.detach().float().numpy()
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Every parameter random, biases, tables and norms too, of sizes that keep signals alive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and parameter.shape[0] > 8:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise + (parameter if parameter.ndim == 1 else 0))


def make_reference(
    config: TransformerConfig,
    monkeypatch: pytest.MonkeyPatch,
    seed: int = 0,
    taps: tuple[tuple[str, int, int], ...] = (),
) -> torch.nn.Module:
    """The reference in the given geometry, with the masks that upstream's blocks use.

    The packaged copy hands its blocks no masks ("to avoid shape mismatches"), while its attention
    processors still implement them; hooks hand them over as upstream's own block does. taps: encoder, block
    and width of each projector.
    """
    lyric = reference.load("lyrics_utils.lyric_encoder")
    defaults = list(lyric.ConformerEncoder.__init__.__defaults__)
    defaults[:4] = [
        config.lyric_hidden_size,
        config.lyric_encoder_heads,
        config.lyric_encoder_ff,
        config.lyric_encoder_layers,
    ]
    monkeypatch.setattr(lyric.ConformerEncoder.__init__, "__defaults__", tuple(defaults))
    model = (
        reference.load("transformer")
        .ACEStepTransformer2DModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.num_layers,
            inner_dim=config.dim,
            attention_head_dim=config.attention_head_dim,
            num_attention_heads=config.num_attention_heads,
            mlp_ratio=config.mlp_ratio,
            max_position=512,
            rope_theta=config.rope_theta,
            speaker_embedding_dim=config.speaker_embedding_dim,
            text_embedding_dim=config.text_embedding_dim,
            ssl_encoder_depths=[depth for _, depth, _ in taps],
            ssl_names=[name for name, _, _ in taps],
            ssl_latent_dims=[width for _, _, width in taps],
            lyric_encoder_vocab_size=config.lyric_encoder_vocab_size,
            lyric_hidden_size=config.lyric_hidden_size,
            patch_size=list(config.patch_size),
        )
        .eval()
    )
    randomise(model, seed)

    for block in model.transformer_blocks:
        masks: dict[str, torch.Tensor] = {}

        def remember(_module, _args, kwargs, masks=masks):
            masks.update(audio=kwargs["attention_mask"], encoder=kwargs["encoder_attention_mask"])

        def hand_over(_module, args, kwargs, masks=masks):
            cross = kwargs["encoder_hidden_states"] is not None
            given = {
                "attention_mask": masks["audio"],
                "encoder_attention_mask": masks["encoder"] if cross else None,
            }
            return args, {**kwargs, **given}

        block.register_forward_pre_hook(remember, with_kwargs=True)
        block.attn.register_forward_pre_hook(hand_over, with_kwargs=True)
        block.cross_attn.register_forward_pre_hook(hand_over, with_kwargs=True)
    return model


def make_ours(config: TransformerConfig, model: torch.nn.Module) -> ACEStepTransformer:
    ours = ACEStepTransformer(config)
    state = {k: mx.array(v.numpy()) for k, v in model.state_dict().items()}
    keymap = KEYMAPS["transformer"]
    tensors = translate("transformer", keymap, ours, state)
    dropped = plan("transformer", keymap, ours, {k: v.shape for k, v in state.items()}).dropped
    assert all("add_" in k or "projectors" in k for k in dropped)
    ours.load_weights(list(tensors.items()), strict=True)
    ours.eval()
    return ours


def make_inputs(
    config: TransformerConfig,
    *,
    frames: int = 23,
    text: int = 7,
    lyrics: int = 11,
    batch: int = 2,
    lengths: tuple[tuple[int, ...], ...] = ((23, 16), (7, 4), (11, 6)),
    seed: int = 1,
) -> dict[str, np.ndarray]:
    """Inputs by upstream's names; `lengths`: valid frames, text tokens and lyric tokens of each sample."""
    rng = np.random.default_rng(seed)

    def mask(size: int, valid: tuple[int, ...]) -> np.ndarray:
        return (np.arange(size)[None] < np.array(valid)[:, None]).astype(np.float32)

    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    return {
        "hidden_states": normal(batch, config.in_channels, config.patch_size[0], frames),
        "attention_mask": mask(frames, lengths[0]),
        "encoder_text_hidden_states": normal(batch, text, config.text_embedding_dim),
        "text_attention_mask": mask(text, lengths[1]),
        "speaker_embeds": normal(batch, config.speaker_embedding_dim),
        "lyric_token_idx": rng.integers(0, config.lyric_encoder_vocab_size, (batch, lyrics)).astype(np.int64),
        "lyric_mask": mask(lyrics, lengths[2]),
        "timestep": rng.uniform(0, 1000, batch).astype(np.float32),
    }


def run_reference(model: torch.nn.Module, inputs: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """(velocity, encoder states)."""
    given = {k: torch.from_numpy(v) for k, v in inputs.items()}
    condition = {k: v for k, v in given.items() if k not in ("hidden_states", "attention_mask", "timestep")}
    with torch.no_grad():
        return model(**given).sample, model.encode(**condition)[0]


def run_ours(model: ACEStepTransformer, inputs: dict[str, np.ndarray]) -> tuple[mx.array, mx.array]:
    given = {k: mx.array(v) for k, v in inputs.items()}
    condition = {k: v for k, v in given.items() if k not in ("hidden_states", "attention_mask", "timestep")}
    return model(**given), model.encode(**condition)[0]


@pytest.mark.parametrize(
    "case",
    [
        {"lengths": ((23, 23), (7, 7), (11, 11))},
        {"lengths": ((23, 16), (7, 4), (11, 6))},
        {"lengths": ((23, 9), (7, 1), (11, 0))},
        {"lyrics": 0, "lengths": ((20, 23), (7, 4), (0, 0))},
        {"lyrics": 1, "lengths": ((20, 23), (7, 4), (1, 0))},
        {"batch": 1, "frames": 1, "lengths": ((1,), (3,), (5,))},
    ],
    ids=["full", "ragged", "one row without lyrics", "no lyrics", "one lyric token", "one frame"],
)
def test_velocity_and_encoder_states(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(TransformerConfig)
    theirs = make_reference(config, monkeypatch)
    inputs = make_inputs(config, **case)
    velocity, states = run_ours(make_ours(config, theirs), inputs)
    expected_velocity, expected_states = run_reference(theirs, inputs)
    assert relative_error(states, expected_states) <= 1e-4
    assert relative_error(velocity, expected_velocity) <= 1e-4


def test_every_mask_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parity above would be empty if the hooks did not reach the reference's masks."""
    config = tiny(TransformerConfig)
    theirs = make_reference(config, monkeypatch)
    ragged = make_inputs(config)
    expected, _ = run_reference(theirs, ragged)
    for name in ("attention_mask", "text_attention_mask", "lyric_mask"):
        changed, _ = run_reference(theirs, {**ragged, name: np.ones_like(ragged[name])})
        assert float((changed - expected).norm() / expected.norm()) > 1e-3, name


@pytest.mark.slow
def test_true_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of 2560 and the true lyric encoder."""
    config = TransformerConfig(num_layers=1, lyric_encoder_vocab_size=64)
    theirs = make_reference(config, monkeypatch)
    inputs = make_inputs(config, frames=13, text=4, lyrics=9, lengths=((13, 8), (4, 3), (9, 5)))
    velocity, states = run_ours(make_ours(config, theirs), inputs)
    expected_velocity, expected_states = run_reference(theirs, inputs)
    assert relative_error(states, expected_states) <= 1e-4
    assert relative_error(velocity, expected_velocity) <= 1e-4


def test_scaled_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """ERG: our `query_scale` against the forward hooks that upstream registers."""
    config = tiny(TransformerConfig)
    theirs = make_reference(config, monkeypatch)
    ours = make_ours(config, theirs)
    inputs = make_inputs(config)
    given = {k: mx.array(v) for k, v in inputs.items()}
    latents, frames, timestep = (given.pop(k) for k in ("hidden_states", "attention_mask", "timestep"))
    plain_states, mask = ours.encode(**given)
    scaled_states, _ = ours.encode(**given, query_scale=(0.01, 1, 2))
    scaled = ours.decode(latents, frames, scaled_states, mask, timestep, query_scale=(0.01, 0, 1))

    def shrink(_module, _inputs, output):
        return output * 0.01

    theirs.lyric_encoder.encoders[1].self_attn.linear_q.register_forward_hook(shrink)
    theirs.transformer_blocks[0].attn.to_q.register_forward_hook(shrink)
    theirs.transformer_blocks[0].cross_attn.to_q.register_forward_hook(shrink)
    expected, expected_states = run_reference(theirs, inputs)
    assert relative_error(scaled_states, expected_states) <= 1e-4
    assert relative_error(scaled, expected) <= 1e-4
    assert relative_error(plain_states, expected_states) > 1e-3


@pytest.mark.parametrize("checkpoint_blocks", [0, 2])
def test_gradients(checkpoint_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every weight that a LoRA may sit on, and of the lyrics embedder, ragged masks and batch 2."""
    config = tiny(TransformerConfig)
    theirs = make_reference(config, monkeypatch)
    ours = make_ours(config, theirs)
    ours.checkpoint_blocks = checkpoint_blocks
    inputs = make_inputs(config)
    weight = np.random.default_rng(3).standard_normal(inputs["hidden_states"].shape, dtype=np.float32)

    theirs.requires_grad_(True)
    (
        theirs(**{k: torch.from_numpy(v) for k, v in inputs.items()}).sample * torch.from_numpy(weight)
    ).sum().backward()
    given = {k: mx.array(v) for k, v in inputs.items()}

    def loss(parameters: dict) -> mx.array:
        ours.update(parameters)
        return mx.sum(ours(**given) * mx.array(weight))

    gradients = dict(tree_flatten(mx.grad(loss)(ours.trainable_parameters())))
    expected = {k: p.grad for k, p in theirs.named_parameters()}
    linears = [k for k, m in ours.named_modules() if isinstance(m, (nn.Linear, nn.Embedding))]
    assert len(linears) >= 40
    for name in linears:
        theirs_gradient = expected[f"{name}.weight"]
        while theirs_gradient.ndim > 2:  # a 1×1 convolution upstream
            theirs_gradient = theirs_gradient[..., 0]
        assert relative_error(gradients[f"{name}.weight"], theirs_gradient) <= 1e-3, name
