"""Whole songs of ACE-Step 1.5 against diffusers' AceStepPipeline, from one checkpoint and the same noise.

The miniature is written in diffusers' layout, loaded there, and converted here, in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx import ACEStepPipeline
from acestep_mlx.convert.converter import convert
from acestep_mlx.families.v15.miniature import CHANNELS, write_checkpoint

from .v15 import normal, relative_error, torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]  # weight_norm

SONG = {
    "prompt": "slow jazz ballad, piano", "lyrics": "[verse]\nSoft notes in the morning light\n", "bpm": 97,
    "keyscale": "C minor", "timesignature": "3", "audio_duration": 1.9, "num_inference_steps": 4,
}  # fmt: skip


def reference(folder: Path) -> Any:
    import diffusers
    from diffusers.pipelines import ace_step
    from transformers import PreTrainedTokenizerFast, Qwen3Model

    return ace_step.AceStepPipeline(
        vae=diffusers.AutoencoderOobleck.from_pretrained(folder / "vae").eval(),
        text_encoder=Qwen3Model.from_pretrained(folder / "text_encoder").eval(),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"), pad_token="<|endoftext|>"
        ),
        transformer=diffusers.AceStepTransformer1DModel.from_pretrained(folder / "transformer").eval(),
        condition_encoder=ace_step.AceStepConditionEncoder.from_pretrained(
            folder / "condition_encoder"
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=ace_step.AceStepAudioTokenizer.from_pretrained(folder / "audio_tokenizer").eval(),
        audio_token_detokenizer=ace_step.AceStepAudioTokenDetokenizer.from_pretrained(
            folder / "audio_token_detokenizer"
        ).eval(),
    )


Pair = tuple[ACEStepPipeline, Any]


@pytest.fixture(scope="module", params=["base", "turbo", "xl-base"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    write_checkpoint(folder / "diffusers", layout="diffusers", flavour=request.param)
    convert(folder / "diffusers", folder / "mlx", dtype="float32")
    theirs = reference(folder / "diffusers")
    theirs.set_progress_bar_config(disable=True)
    return ACEStepPipeline.from_pretrained(folder / "mlx"), theirs


class Source:
    """In place of a song's sound: latents that the reference takes for those of its autoencoder."""

    def __init__(self, latents: np.ndarray) -> None:
        self.latents = latents

    def sample(self) -> Any:
        return torch.from_numpy(self.latents).transpose(1, 2)


def both(pair: Pair, source: np.ndarray | None = None, **changes: Any) -> tuple[mx.array, Any]:
    """Latents of the same song, ours and theirs, from the same noise."""
    ours, theirs = pair
    given = {**SONG, **changes}
    frames = int(np.ceil(given["audio_duration"] * 25)) if source is None else source.shape[1]
    noise = normal(1, frames, CHANNELS, seed=11)
    told: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        if source is not None:
            from types import SimpleNamespace

            patch.setattr(theirs.vae, "encode", lambda sound: SimpleNamespace(latent_dist=Source(source)))
            told["src_audio"] = torch.zeros(2, source.shape[1] * 1920)
        expected = theirs(**given, **told, latents=torch.from_numpy(noise), output_type="latent").audios
    sources = {} if source is None else {"src_latents": mx.array(source)}
    made = ours.generate(**given, **sources, latents=mx.array(noise), output_type="latent")
    assert made.shape == (1, frames, CHANNELS)
    return made, expected


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shift": 1.0, "audio_duration": 2.02, "num_inference_steps": 3},
        {"guidance_scale": 1.0, "lyrics": "", "bpm": None, "keyscale": " ", "timesignature": None},
        {"cfg_interval_start": 0.1, "cfg_interval_end": 0.6, "vocal_language": "de"},
        {"instruction": "Make it long", "audio_duration": 0.8},
        {"guidance_scale": 15.0, "audio_duration": 0.6, "vocal_language": "unknown"},
    ],
    ids=["as usual", "odd", "unguided", "interval", "instructed", "strong"],
)
def test_a_new_song(changes: dict[str, Any], pair: Pair) -> None:
    """A turbo model takes no guidance, whatever is asked for."""
    assert relative_error(*both(pair, **changes)) <= 1e-3


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("start", "end"), [(0.4, 1.2), (0.5, None), (1.0, -1), (0, None), (0.0, 0.13), (1.86, 9.0)], ids=str
)
def test_repaint(start: float, end: float | None, pair: Pair) -> None:
    source = normal(1, 47, CHANNELS, seed=5)
    changes = {"task_type": "repaint", "repainting_start": start, "repainting_end": end}
    assert relative_error(*both(pair, source, **changes)) <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "strength"), [(40, 1.0), (43, 1.0), (43, 0.3), (2, 0.0)])
def test_cover(frames: int, strength: float, pair: Pair) -> None:
    """The source's semantic tokens lead, the more the stronger."""
    source = normal(1, frames, CHANNELS, seed=6)
    changes = {"task_type": "cover", "audio_cover_strength": strength}
    assert relative_error(*both(pair, source, **changes)) <= 1e-3


@pytest.mark.slow
def test_what_it_reads(pair: Pair) -> None:
    """Strings, token ids (ragged and cut), text states and embeddings, packed conditions."""
    ours, theirs = pair
    words = {"vocal_language": "de", "audio_duration": 61.9, "bpm": 120, "keyscale": "F# major"}
    texts = [ours.format_prompt(p, lyrics, **words) for p, lyrics in (("pop " * 300, "la\n"), ("x", ""))]
    assert texts[0] == theirs._format_prompt("pop " * 300, "la\n", **words)
    read = theirs.encode_prompt(["pop " * 300, "x"], ["la\n", ""], torch.device("cpu"), **words)
    states, lyrics = [], []
    for texts_of, most, into in (([t for t, _ in texts], 256, states), ([s for _, s in texts], 2048, lyrics)):
        ids, mask = ours.tokenize(texts_of, most)
        expected = theirs.tokenizer(
            texts_of, padding="longest", truncation=True, max_length=most, return_tensors="np"
        )
        assert (
            ids.tolist() == expected.input_ids.tolist() and mask.tolist() == expected.attention_mask.tolist()
        )
        into += [ids, mask]
    given = {
        "text_hidden_states": ours.text_encoder(input_ids=states[0], attention_mask=states[1]),
        "text_attention_mask": states[1],
        "lyric_hidden_states": ours.text_encoder.embed_tokens(lyrics[0]),
        "lyric_attention_mask": lyrics[1],
    }
    valid = np.array(states[1]) > 0
    assert relative_error(mx.array(np.array(given["text_hidden_states"])[valid]), read[0][valid]) <= 1e-5
    assert np.array_equal(given["lyric_hidden_states"], read[2].detach().numpy())
    silence = ours.condition_encoder.silence_latent[:, :750]
    packed, mask = ours.condition_encoder(
        **given,
        refer_audio_acoustic_hidden_states_packed=mx.concatenate([silence, silence]),
        refer_audio_order_mask=mx.array([0, 1]),
    )
    references = torch.from_numpy(np.array(silence)).expand(2, -1, -1)
    with torch.no_grad():
        expected, expected_mask = theirs.condition_encoder(*read, references, torch.arange(2))
    valid = np.array(mask) > 0
    assert (valid == expected_mask.numpy()).all()
    assert relative_error(mx.array(np.array(packed)[valid]), expected[expected_mask]) <= 1e-5


@pytest.mark.slow
def test_sound_and_semantic_tokens(pair: Pair) -> None:
    ours, theirs = pair
    sound = 0.3 * normal(2, 4 * 1920 + 700, 2, seed=3)
    with torch.no_grad():
        wanted = theirs.vae.encode(torch.from_numpy(sound).transpose(1, 2)).latent_dist
    mean, std = ours.codec.encode(mx.array(sound), 48000)
    assert mean.shape == std.shape == (2, 4, CHANNELS)
    assert relative_error(mean, wanted.mean.transpose(1, 2)) <= 1e-4
    assert relative_error(std, wanted.std.transpose(1, 2)) <= 1e-4
    assert ours.codec.encode(sound[0], 24000)[0].shape == (1, 8, CHANNELS), "resampled"
    with torch.no_grad():
        back = theirs.vae.decode(wanted.mean).sample.transpose(1, 2)
    decoded = ours.codec.decode(mx.array(wanted.mean.transpose(1, 2).numpy()))
    assert decoded.shape == (2, 4 * 1920, 2) and relative_error(decoded, back) <= 1e-3
    latents = normal(2, 23, CHANNELS, seed=4)
    with torch.no_grad():
        codes, numbers = theirs.audio_tokenizer.tokenize(
            torch.from_numpy(latents), theirs.condition_encoder.silence_latent
        )
        again = theirs.audio_token_detokenizer(codes)
    quantized, ids = ours.audio_tokenizer(mx.array(latents))
    assert ids.tolist() == numbers.tolist() and relative_error(quantized, codes) <= 1e-5
    assert relative_error(ours.audio_token_detokenizer(quantized), again) <= 1e-5


@pytest.mark.slow
def test_a_finished_song_is_as_loud(pair: Pair) -> None:
    ours, theirs = pair
    noise = normal(1, 25, CHANNELS, seed=11)
    given = {**SONG, "audio_duration": 1.0, "num_inference_steps": 1}
    expected = theirs(**given, latents=torch.from_numpy(noise)).audios.transpose(1, 2)
    made = ours.generate(**given, latents=mx.array(noise))
    assert made.shape == (25 * 1920, 2) and np.abs(made).max() == pytest.approx(10 ** (-1 / 20))
    assert relative_error(mx.array(made[None]), expected) <= 1e-3


@pytest.mark.slow
def test_levels(pair: Pair) -> None:
    ours, theirs = pair
    for steps, shift in ((8, 3.0), (50, 1.0), (7, 2.0)):
        levels = theirs._get_timestep_schedule(steps, shift, torch.device("cpu"), torch.float32)
        made = ours.schedule(steps, shift)
        assert made.dtype == mx.float32 and made.tolist() == [*levels.tolist(), 0.0]


@pytest.mark.slow
def test_a_lora_is_heard(pair: Pair, tmp_path: Path) -> None:
    """A PEFT folder, at its scale, as in the reference with its matrices in the weights; then it is gone."""
    from peft import LoraConfig, get_peft_model

    ours, theirs = pair
    alone, expected = both(pair)
    kept = theirs.transformer
    wrapped = get_peft_model(kept, LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"]))
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = torch.from_numpy(0.3 * normal(*weight.shape, seed=len(name)))
    wrapped.save_pretrained(str(tmp_path / "lora"))
    try:
        ours.load_lora(tmp_path / "lora")
        with_lora, expected_lora = both(pair)
    finally:
        ours.unload_loras()
        wrapped.unload()
    assert relative_error(with_lora, expected_lora) <= 1e-3
    assert relative_error(with_lora, alone) > 1e-2
    assert np.array_equal(both(pair)[0], alone) and relative_error(alone, expected) <= 1e-3
