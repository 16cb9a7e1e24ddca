"""The pipeline on the miniature model: what a song depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from mlx.utils import tree_flatten

from acestep_mlx import ACEStepPipeline, pipeline
from acestep_mlx.config.request import Request
from acestep_mlx.errors import AceStepError, CheckpointError, ConfigError, DataError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.io.progress import Advance
from acestep_mlx.lora.apply import AppliedLoRA
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.weights import LoRAModule, LoRAWeights
from acestep_mlx.nn.device import cache_limit

FAST = Request(prompt="slow jazz", lyrics="[verse]\nhello", duration=2.0, seeds=(3,), steps=3)


@pytest.fixture(scope="module")
def pipe(tiny_model: Path) -> ACEStepPipeline:
    return ACEStepPipeline.from_pretrained(tiny_model)


def latents(pipe: ACEStepPipeline, request: Request, source: mx.array | None = None) -> np.ndarray:
    return np.array(pipe.sample(request, pipe.prepare(request), source))


def song(seconds: float = 2.0) -> np.ndarray:
    t = np.arange(int(seconds * 44100)) / 44100
    return (0.3 * np.stack([np.sin(2 * np.pi * 220 * t), np.sin(2 * np.pi * 330 * t)], axis=1)).astype(
        np.float32
    )


def save_lora(path: Path, width: int, *, seed: int = 0, module: str = "attn.to_q") -> Path:
    """A LoRA of rank 2 on the miniature model's first block, strong enough to hear."""
    a = mx.random.normal((2, width), key=mx.random.key(seed))
    b = mx.random.normal((width, 2), key=mx.random.key(seed + 1))
    write_lora(path, LoRAWeights({f"transformer_blocks.0.{module}": LoRAModule(a, b, 1.0)}))
    return path


@pytest.fixture(scope="module")
def width(tiny_model: Path) -> int:
    return ModelFolder.open(tiny_model).component_config("transformer").dim


def test_sound_has_the_shape_that_was_asked_for(pipe: ACEStepPipeline) -> None:
    heard: list[Advance] = []
    audio = pipe.generate("jazz", "[verse]\nla", duration=2.5, seed=7, steps=2, progress=heard.append)
    assert audio.shape == (int(2.5 * 44100 / 4096) * 4096, 2) and audio.dtype == np.float32
    assert np.isfinite(audio).all() and np.abs(audio).max() > 1e-4
    assert {advance.stage for advance in heard} == {"reading prompt and lyrics", "denoising", "decoding"}
    assert heard[1] == Advance("denoising", 0.5, 1, "share") and heard[-1].done == 1.0


@pytest.mark.slow
def test_everything_that_is_asked_for_matters(pipe: ACEStepPipeline) -> None:
    # The miniature has fewer layers than ERG begins at, so that its weakened condition is the condition.
    plain = replace(FAST, erg_tag=False, erg_lyric=False)
    base = latents(pipe, plain)
    assert np.array_equal(latents(pipe, plain), base)
    changes: list[dict[str, Any]] = [
        {"seeds": (4,)},
        {"prompt": "fast rock"},
        {"lyrics": "[verse]\ngoodbye"},
        {"lyrics": ""},
        {"negative_prompt": "noise"},
        {"scheduler": "heun"},
        {"scheduler": "pingpong"},
        {"guidance": "cfg"},
        {"guidance_scale": 2.0},
        {"guidance_interval": 1.0},
        {"omega": -50.0},
        {"shift": 1.0},
        {"oss_steps": (1, 2, 5)},
        {"task": "retake"},
        {"guidance_scale_text": 3.0, "guidance_scale_lyric": 2.0},
        {"erg_tag": True, "erg_lyric": True},
        {"steps": 4},
    ]
    for change in changes:
        other = latents(pipe, replace(plain, **change))
        assert other.shape == base.shape and not np.allclose(other, base, atol=1e-4), change


@pytest.mark.slow
def test_a_batch_is_so_many_single_songs(pipe: ACEStepPipeline) -> None:
    for scheduler in ("euler", "pingpong"):
        request = replace(FAST, seeds=(3, 11, 5, 8), scheduler=scheduler, guidance_interval=1.0)
        batch = latents(pipe, request)
        for i in range(4):
            alone = latents(pipe, request.for_seed(i))[0]
            assert np.linalg.norm(batch[i] - alone) / np.linalg.norm(alone) < 1e-5
    assert np.linalg.norm(batch[0] - batch[1]) > 1


def test_several_seeds_give_several_songs(pipe: ACEStepPipeline) -> None:
    two = pipe.generate("jazz", duration=1, seed=[1, 2], steps=1)
    one = pipe.generate("jazz", duration=1, seed=2, steps=1)
    assert two.shape == (2, *one.shape)
    assert np.allclose(two[1], one, atol=1e-5)


def test_conditions_are_computed_once_a_song(pipe: ACEStepPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders, and keys and values of every block: as often with many steps as with one."""
    from acestep_mlx.families.v1.attention import CrossAttention

    calls = {"lyrics": 0, "keys": 0, "blocks": 0}

    def counted(kind: type, method: str, name: str) -> None:
        original = getattr(kind, method)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(kind, method, call)

    counted(type(pipe.transformer.lyric_encoder), "__call__", "lyrics")
    counted(CrossAttention, "keys_values", "keys")
    counted(CrossAttention, "__call__", "blocks")
    seen = []
    for steps in (1, 6):
        calls.update(dict.fromkeys(calls, 0))
        latents(pipe, replace(FAST, steps=steps, guidance_interval=1.0))
        seen.append(dict(calls))
    blocks = len(pipe.transformer.transformer_blocks)
    assert seen[0]["lyrics"] == 2 and seen[0]["keys"] == 2 * blocks  # with and without the condition
    assert seen[0]["blocks"] == blocks  # both in one batch
    assert seen[1] == seen[0]  # and the step is compiled: traced once


def test_memory_of_a_big_batch_is_bounded(pipe: ACEStepPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """More songs than fit are made group by group, and come out the same."""
    from acestep_mlx.families.v1 import conditions as module

    request = replace(FAST, seeds=(1, 2, 3))
    together = latents(pipe, request)
    monkeypatch.setattr(
        module.Conditioned, "frames_at_once", 2 * 21
    )  # one song of 21 frames with its unconditional pass
    rows: list[int] = []
    made = module.Velocity.__init__
    monkeypatch.setattr(
        module.Velocity, "__init__", lambda self, t, r, *a: rows.append(len(r)) or made(self, t, r, *a)
    )
    assert np.allclose(latents(pipe, request), together, atol=1e-4)
    assert rows == [2, 2, 2]


def test_repaint_keeps_the_rest(pipe: ACEStepPipeline) -> None:
    source = pipe.codec.encode(song())
    request = replace(FAST, task="repaint", repaint_start=0.5, repaint_end=1.2, source="x")
    made = latents(pipe, request, source)
    assert made.shape == source.shape
    assert np.array_equal(made[..., :5], np.array(source)[..., :5])
    assert not np.allclose(made[..., 5:12], np.array(source)[..., 5:12])


def test_repainting_nothing_returns_the_source(pipe: ACEStepPipeline) -> None:
    source = pipe.codec.encode(song())
    request = replace(FAST, task="repaint", repaint_end=1.0, variance=0.0, source="x")
    assert np.array_equal(latents(pipe, request, source), np.array(source))


def test_repainting_everything_is_a_retake(pipe: ACEStepPipeline) -> None:
    source = pipe.codec.encode(song())
    whole = latents(pipe, replace(FAST, task="repaint", source="x"), source)
    frames = source.shape[-1]
    retake = latents(pipe, replace(FAST, task="retake", duration=(frames + 0.5) * 4096 / 44100))
    assert np.array_equal(whole, retake)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("values", "frames"),
    [
        ({"task": "extend", "extend_left": 1.0, "extend_right": 3.0}, 22 + 10 + 32),
        ({"task": "edit", "edit_prompt": "rock"}, 22),
        ({"task": "edit", "edit_lyrics": "other"}, 22),
        ({"task": "audio2audio", "reference_strength": 0.3}, 22),
    ],
)
def test_tasks_with_a_source(pipe: ACEStepPipeline, values: dict[str, Any], frames: int) -> None:
    request = Request.from_dict({**FAST.to_dict(), **values})
    sound = pipe.run(request, source_audio=song())
    samples = frames * 4096 if request.task == "extend" else 88200
    assert sound.shape == (1, samples, 2) and np.isfinite(sound).all()


def test_an_edit_to_the_same_changes_nothing(pipe: ACEStepPipeline) -> None:
    source = pipe.codec.encode(song())
    request = replace(FAST, task="edit", edit_prompt=FAST.prompt, source="x", guidance_scale=1.0)
    assert np.allclose(latents(pipe, request, source), np.array(source), atol=1e-5)


def test_loras_add_up_and_come_off_bit_for_bit(pipe: ACEStepPipeline, width: int, tmp_path: Path) -> None:
    one = save_lora(tmp_path / "1.safetensors", width)
    two = save_lora(tmp_path / "2.safetensors", width, seed=9, module="attn.to_v")
    bare = latents(pipe, FAST)
    try:
        pipe.load_lora(one, scale=0.0)
        assert np.array_equal(latents(pipe, FAST), bare)
        pipe.unload_loras()
        pipe.load_lora(one)
        first = latents(pipe, FAST)
        pipe.load_lora(two, scale=0.5)
        both = latents(pipe, FAST)
        assert not np.allclose(first, bare, atol=1e-3) and not np.allclose(both, first, atol=1e-3)
        assert [lora.scale for lora in pipe.loras] == [1.0, 0.5]
    finally:
        pipe.unload_loras()
    assert np.array_equal(latents(pipe, FAST), bare)


def test_fused_loras_sound_the_same(tiny_model: Path, width: int, tmp_path: Path) -> None:
    lora = save_lora(tmp_path / "1.safetensors", width)

    def made(**options: Any) -> tuple[np.ndarray, bool]:
        """The song, and whether layers of LoRAs stand beside the weights."""
        pipe = ACEStepPipeline.from_pretrained(tiny_model, **options)
        pipe.load_lora(lora, 0.7)
        song = latents(pipe, FAST)
        return song, any(isinstance(module, AppliedLoRA) for module in pipe.transformer.modules())

    (plain, apart), (fused, apart_when_fused) = made(), made(fuse_loras=True)
    assert np.allclose(plain, fused, atol=1e-3)
    assert apart and not apart_when_fused


def test_loras_on_a_quantised_base_come_off_bit_for_bit(tiny_model: Path, width: int, tmp_path: Path) -> None:
    folder = ModelFolder.open(tiny_model)
    quantised = folder.load("transformer", quantize={"bits": 4, "group_size": 32, "mode": "affine"})
    pipe = ACEStepPipeline(folder, transformer=quantised)
    bare = latents(pipe, FAST)
    pipe.load_lora(save_lora(tmp_path / "1.safetensors", width))
    assert not np.allclose(latents(pipe, FAST), bare, atol=1e-3)
    pipe.unload_loras()
    assert np.array_equal(latents(pipe, FAST), bare)


def test_a_quantised_model_needs_no_lyrics(tiny_model: Path) -> None:
    """A quantised product of no rows ends the process on some back ends; an empty song must not reach one."""
    folder = ModelFolder.open(tiny_model)
    quantised = folder.load("transformer", quantize={"bits": 8, "group_size": 32, "mode": "affine"})
    pipe = ACEStepPipeline(folder, transformer=quantised)
    assert np.isfinite(latents(pipe, replace(FAST, lyrics=""))).all()


@pytest.mark.slow
def test_low_memory_makes_the_same_song(
    tiny_model: Path, pipe: ACEStepPipeline, width: int, tmp_path: Path
) -> None:
    lora = save_lora(tmp_path / "1.safetensors", width)
    frugal = ACEStepPipeline.from_pretrained(tiny_model, low_memory=True)
    frugal.load_lora(lora)
    assert "transformer" not in frugal._loaded
    once = frugal.run(FAST)
    assert "transformer" not in frugal._loaded and "text_encoder" not in frugal._loaded
    assert np.array_equal(frugal.run(FAST), once)  # the LoRA is there the second time, too
    pipe.load_lora(lora)
    try:
        assert np.array_equal(pipe.run(FAST), once)
    finally:
        pipe.unload_loras()


def test_a_model_in_memory_can_be_heard(tiny_model: Path, pipe: ACEStepPipeline) -> None:
    """Validation during training: its own transformer, conditions that were encoded before."""
    transformer = pipe.transformer
    before = {k: v for k, v in tree_flatten(transformer.parameters())}
    beside = ACEStepPipeline(ModelFolder.open(tiny_model), transformer=transformer, low_memory=True)
    sound = beside.run(FAST, conditions=pipe.prepare(FAST))
    assert "text_encoder" not in beside._loaded and beside.transformer is transformer
    assert np.array_equal(sound, pipe.run(FAST))
    assert all(before[k] is v for k, v in tree_flatten(transformer.parameters()))


def failing(
    pipe: ACEStepPipeline, width: int, tmp_path: Path
) -> dict[str, tuple[type[AceStepError], str, Callable[[], Any]]]:
    wrong = save_lora(tmp_path / "wrong.safetensors", width // 2)
    good = save_lora(tmp_path / "good.safetensors", width)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "long.wav", np.full(242_000, 0.1), 1000)
    return {
        "model": (CheckpointError, "no such folder", lambda: pipe.from_pretrained(tmp_path / "no")),
        "lora size": (CheckpointError, "another size", lambda: pipe.load_lora(wrong)),
        "lora missing": (CheckpointError, "no such LoRA", lambda: pipe.load_lora(tmp_path / "no")),
        "lora scale": (ConfigError, "got nan", lambda: pipe.load_lora(good, float("nan"))),
        "source missing": (DataError, "no audio file", lambda: pipe.run(
            replace(FAST, task="edit", edit_prompt="x", source=str(tmp_path / "no.wav")))),
        "source broken": (DataError, "broken.wav", lambda: pipe.run(
            replace(FAST, task="audio2audio", source=str(tmp_path / "broken.wav")))),
        "source too long": (DataError, "lasts 242 s; a source may have 240 s at most", lambda: pipe.run(
            replace(FAST, task="audio2audio", source=str(tmp_path / "long.wav")))),
        "source not wanted": (ConfigError, "takes no source", lambda: pipe.run(FAST, source_audio=song())),
        "option": (ConfigError, "did you mean 'steps'", lambda: pipe.generate("x", step=3)),
        "duration": (ConfigError, "between 1 and 240 s", lambda: pipe.generate("x", duration=0)),
    }  # fmt: skip


def test_bad_input_is_one_line(pipe: ACEStepPipeline, width: int, tmp_path: Path) -> None:
    for name, (kind, words, call) in failing(pipe, width, tmp_path).items():
        with pytest.raises(kind, match=words) as caught:
            call()
        assert "\n" not in str(caught.value), name
    assert not pipe.loras


def test_a_damaged_model_does_not_give_silence(pipe: ACEStepPipeline) -> None:
    weight = pipe.transformer.final_layer.linear.bias
    pipe.transformer.final_layer.linear.bias = weight * float("nan")
    try:
        with pytest.raises(CheckpointError, match="not numbers"):
            pipe.run(FAST)
    finally:
        pipe.transformer.final_layer.linear.bias = weight


def test_lyrics_are_read_as_people_write_them(pipe: ACEStepPipeline) -> None:
    """Marks and time stamps as in a data set; the tokenizer itself stays the reference's."""
    meant = pipe.lyric_tokenizer.tokenize("[verse]\nhello\n[chorus]\nla")
    for written in ("[Verse 1]\\nhello\\n(Chorus)\\nla", "[00:01.00][Verse 2]\n(0:03) hello\nChorus:\nla"):
        conditions = pipe.prepare(replace(FAST, lyrics=written))
        assert conditions.prompt.lyric_ids.tolist() == [meant]
        assert pipe.lyric_tokenizer.tokenize(written) != meant
    assert pipe.prepare(replace(FAST, lyrics="[00:01.00]")).prompt.lyric_ids.shape == (1, 0)


@pytest.mark.parametrize("limit", [12_345_678, 1 << 40], ids=["as on a CPU", "as on a GPU"])
def test_freed_buffers_are_kept_between_steps(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MLX's limit is far below a step's, it is raised while a song is made."""
    before = mx.set_cache_limit(limit)
    limits: list[int] = []

    def sampled(*_arguments: Any, **_options: Any) -> mx.array:
        limits.append(mx.set_cache_limit(0))
        mx.set_cache_limit(limits[-1])
        return mx.zeros((1,))

    monkeypatch.setattr(pipeline, "sample", sampled)
    pipe = SimpleNamespace(family=SimpleNamespace(conditioned=lambda *_: None), transformer=None)
    try:
        pipeline.ACEStepPipeline.sample(pipe, Request(), None)
        assert limits == [max(limit, cache_limit())]
        assert mx.set_cache_limit(before) == limit
    finally:
        mx.set_cache_limit(before)
