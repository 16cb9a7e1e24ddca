"""What PyTorch's reference makes of the miniatures with known numbers (`acestep_mlx.families.known`).

python -m tests.parity.known        writes acestep_mlx/families/*/known.json again
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from acestep_mlx.doctor.selfcheck import STEP, build
from acestep_mlx.families import family
from acestep_mlx.families.known import Example, adapter, known_file, summary, tensors
from acestep_mlx.families.v15.miniature import NOT_IN_DIFFUSERS

from ..later import Later
from . import reference
from .test_training_parity import reference_loss
from .test_transformer_parity import make_reference
from .test_v15_training_parity import their_name

torch = Later("torch")
Outputs = dict[str, np.ndarray]


def _loaded(module: Any, example: Example) -> Any:
    """The reference's module with the example's weights: all of them, and no others."""
    state = {name: torch.from_numpy(value) for name, value in tensors(example).items()}
    module.load_state_dict(state, strict=False)
    left = {name for name, _ in module.named_parameters()} - state.keys()
    assert not left, left
    return module.eval()


def _given(example: Example) -> dict[str, Any]:
    """Inputs; ids as PyTorch wants them."""
    found = {name: torch.from_numpy(value) for name, value in example.given.items()}
    return {n: v.long() if v.dtype == torch.int32 else v for n, v in found.items()}


# ── v1 ───────────────────────────────────────────────────────────────────────────────────────────────
def _v1_transformer(example: Example) -> Any:
    config = build(family("v1"), example).config
    with pytest.MonkeyPatch.context() as patch:
        return _loaded(make_reference(config, patch), example)


def _v1(example: Example) -> Outputs:
    given = _given(example)
    if example.component == "transformer":
        model = _v1_transformer(example)
        told = {k: v for k, v in given.items() if k not in ("hidden_states", "attention_mask", "timestep")}
        states, mask = model.encode(**told)
        return _numpy(velocity=model(**given).sample, states=states * mask[..., None])
    if example.component == "text_encoder":
        from transformers import UMT5Config, UMT5EncoderModel

        model = _loaded(UMT5EncoderModel(UMT5Config(**example.config)), example)
        return _numpy(states=model(given["input_ids"], given["attention_mask"].long()).last_hidden_state)
    if example.component == "dcae":
        reference.load("transformer")  # puts the stand-ins in place before diffusers looks for them
        from diffusers import AutoencoderDC

        model = _loaded(AutoencoderDC.from_config(dict(example.config)), example)
        latents, image = model.encode(given["image"]).latent, model.decode(given["latents"]).sample
        return _numpy(latents=latents, image=image)
    theirs, config = reference.load("music_dcae.music_vocoder"), build(family("v1"), example).config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "weight_norm", torch.nn.utils.parametrizations.weight_norm)
        model = _loaded(theirs.ADaMoSHiFiGANV1(**dataclasses.asdict(config)), example)
    return _numpy(sound=model.decode(given["mel"]))


def _v1_loss(model: Any) -> Any:
    step, (song, *_) = family("v1").examples().step, family("v1").examples().components
    values = {**song.given, "lyric_token_idx": song.given["lyric_token_idx"].astype(np.int64)}
    return reference_loss(model, values, step.noise, step.sigma, np.ones((3, 2), bool))


# ── 1.5 ──────────────────────────────────────────────────────────────────────────────────────────────
def _v15_module(example: Example) -> Any:
    import diffusers
    from diffusers.pipelines import ace_step

    settings = {k: v for k, v in example.config.items() if k not in NOT_IN_DIFFUSERS}
    if example.component == "text_encoder":
        from transformers import AutoConfig, Qwen3Model

        return _loaded(Qwen3Model(AutoConfig.for_model(**settings)), example)
    classes = {
        "transformer": diffusers.AceStepTransformer1DModel,
        "condition_encoder": ace_step.AceStepConditionEncoder,
        "audio_tokenizer": ace_step.AceStepAudioTokenizer,
        "audio_token_detokenizer": ace_step.AceStepAudioTokenDetokenizer,
        "vae": diffusers.AutoencoderOobleck,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm
        return _loaded(classes[example.component].from_config(settings), example)


def _v15(example: Example) -> Outputs:
    model, given = _v15_module(example), _given(example)
    if example.component == "transformer":
        return _numpy(velocity=model(**given).sample)
    if example.component == "condition_encoder":
        states, mask = model(**given)
        return _numpy(states=states * mask[..., None])
    if example.component == "audio_tokenizer":
        quantised, _ = model.tokenize(given["latents"], given["silence"])
        near, _ = model.tokenize(given["latents"] * (1 + 1e-3), given["silence"])
        assert torch.equal(quantised, near), "a number lies where rounding decides: take other ones"
        return _numpy(quantised=quantised)
    if example.component == "audio_token_detokenizer":
        return _numpy(latents=model(given["tokens"]))
    if example.component == "vae":
        found = model.encode(given["sound"].swapaxes(1, 2)).latent_dist
        sound = model.decode(given["latents"].swapaxes(1, 2)).sample
        return _numpy(mean=found.mean.mT, std=found.std.mT, sound=sound.mT)
    states = model(input_ids=given["input_ids"]).last_hidden_state
    return _numpy(states=states * given["attention_mask"][..., None])


def _v15_loss(model: Any) -> Any:
    """One song after the other, without masks."""
    step, losses = family("v15").examples().step, []
    arrays = {**step.batch, **step.more, "noise": step.noise}
    for i, sigma in enumerate(step.sigma):
        frames, rows = (int(step.batch[name][i].sum()) for name in ("latent_mask", "states_mask"))
        own = {
            name: torch.from_numpy(value[i : i + 1, : rows if name == "states" else frames])
            for name, value in arrays.items()
            if not name.endswith("mask")
        }
        x0, t = own["mean"] + own["std"] * own["latents"], torch.tensor([sigma])
        velocity = model(
            hidden_states=t * own["noise"] + (1 - t) * x0,
            timestep=t,
            timestep_r=t,
            encoder_hidden_states=own["states"],
            context_latents=torch.cat([own["source"], torch.ones_like(own["source"])], dim=-1),
        ).sample
        losses.append(torch.nn.functional.mse_loss(velocity, own["noise"] - x0))
    return torch.stack(losses).mean()


# ── both ─────────────────────────────────────────────────────────────────────────────────────────────
def _numpy(**outputs: Any) -> Outputs:
    return {name: value.detach().float().numpy() for name, value in outputs.items()}


def _step(name: str, model: Any, loss: Callable[[Any], Any], renamed: Callable[[str], str]) -> Outputs:
    """Loss and gradients of a LoRA that peft puts on the default targets."""
    import peft

    from acestep_mlx.lora.surgery import find_targets

    one = family(name)
    examples = one.examples()
    step = examples.step
    paths = sorted(find_targets(build(one, examples.transformer), one.lora.default_targets))
    settings = peft.LoraConfig(
        r=step.rank, lora_alpha=step.alpha, target_modules=[renamed(path) for path in paths]
    )
    peft.inject_adapter_in_model(settings, model, "x")
    layers, weights = dict(model.named_modules()), []
    for path in paths:
        layer = layers[renamed(path)]
        pair = layer.lora_A["x"].weight, layer.lora_B["x"].weight
        sizes = layer.in_features, layer.out_features
        with torch.no_grad():
            for weight, values in zip(pair, adapter(path, *sizes, step.rank), strict=True):
                weight.copy_(torch.from_numpy(values.T.copy()))
        weights += pair
    found = loss(model)
    found.backward()
    gradient = [weight.grad.T.contiguous().numpy() for weight in weights]
    return {
        "loss": found.detach().reshape(1).numpy(),
        "gradient": np.concatenate([g.reshape(-1) for g in gradient]),
        "norms": np.array([np.linalg.norm(g) for g in gradient]),
    }


def reference_numbers(name: str) -> dict[str, Mapping[str, Any]]:
    """Everything of a family, as `known.json` has it."""
    examples = family(name).examples()
    make: Callable[[Example], Outputs] = {"v1": _v1, "v15": _v15}[name]
    with torch.no_grad():
        found = {one.component: make(one) for one in examples.components}
    if name == "v1":
        found[STEP] = _step(name, _v1_transformer(examples.transformer), _v1_loss, str)
    else:
        found[STEP] = _step(name, _v15_module(examples.transformer), _v15_loss, their_name)
    return {what: {out: summary(value) for out, value in outputs.items()} for what, outputs in found.items()}


def main() -> None:
    """Write the files."""
    for name in ("v1", "v15"):
        lines = json.dumps(reference_numbers(name), indent=1)
        known_file(name).write_text(lines + "\n")
        print(known_file(name), len(lines))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    main()
