"""`acestep-mlx info` on everything that the product reads or writes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from acestep_mlx.cli import main
from acestep_mlx.cli.describe import SECONDS, training_memory
from acestep_mlx.config.read_run import load_config
from acestep_mlx.data.facts import AudioFacts, FactsIndex, FileAudio, examine
from acestep_mlx.errors import CheckpointError, DataError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v1.dit import TransformerConfig
from acestep_mlx.formatting import size
from acestep_mlx.io.audio import write_audio
from acestep_mlx.io.hashes import BLOCK
from acestep_mlx.io.safetensors import read_header
from acestep_mlx.lora.formats.metadata import METADATA_KEY
from acestep_mlx.lora.formats.write import FORMATS, write_lora
from acestep_mlx.lora.surgery import LoRASpec, from_model, inject
from acestep_mlx.sampling.record import read_record
from acestep_mlx.training import memory as plan
from acestep_mlx.training.memory import estimate


def info(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command prints; it must end well."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["info", *map(str, arguments)])
    output = capsys.readouterr()
    assert caught.value.code == 0, output.err
    return output.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["info", *map(str, arguments)])
    errors = capsys.readouterr().err.splitlines()
    assert caught.value.code == 1 and len(errors) == 1 and errors[0].startswith("error: "), errors
    return errors[0]


@pytest.fixture(scope="module")
def loras(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trained LoRA in every format."""
    folder = tmp_path_factory.mktemp("loras")
    model = ModelFolder.open(tiny_model)
    transformer = model.load("transformer")
    spec = LoRASpec(rank=4, alpha=8.0, targets=("to_q", "to_v"))
    for path in inject(transformer, spec, seed=0):
        layer = transformer
        for part in path.split("."):
            layer = layer[int(part)] if isinstance(layer, list) else layer[part]
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(0))
    weights = from_model(
        transformer, spec, step=20, base_fingerprint=model.fingerprints["transformer"], base="songs"
    )
    for name in FORMATS:
        write_lora(folder / f"{name}.safetensors", weights, name, base=transformer)
    return folder


def test_pytorch_checkpoint(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = info(capsys, tiny_checkpoint)
    assert "ACE-Step checkpoint for PyTorch" in out and "F32" in out
    assert "2.09 M parameters" in out and "0.34 M of them are left out" in out
    assert f"acestep-mlx convert --hf-path {tiny_checkpoint}" in out
    for precision in ("no_change", "int8-quanto", "int4-quanto"):
        assert f"base_model_precision={precision}: about " in out
    assert "give its parent folder" in info(capsys, tiny_checkpoint / "music_vocoder")


def test_a_damaged_checkpoint_says_what_is_wrong(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(tiny_checkpoint, tmp_path / "source")
    (source / "music_vocoder" / "config.json").unlink()
    out = info(capsys, source)
    assert "it does not convert:" in out and "music_vocoder/config.json: No such file" in out


def test_mlx_folder(
    tiny_model: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from acestep_mlx.convert.converter import convert

    out = info(capsys, tiny_model)
    assert "precision: float32" in out and "1.75 M parameters" in out
    assert ModelFolder.open(tiny_model).fingerprints["dcae"][:16] in out
    assert info(capsys, tiny_model / "config.json") == out
    convert(tiny_checkpoint, tmp_path / "q", quantize=True, q_bits=4)
    out = info(capsys, tmp_path / "q")
    assert "4 bits (affine, groups of 64), the rest float32" in out
    assert "1.75 M parameters" in out, "counted as before quantisation"
    assert "35 layers quantised" in out
    assert "base_model_precision=no_change: about " in out and "int8-quanto" not in out


@pytest.mark.parametrize("stored_bits", [None, 4])
def test_training_fits_where_what_is_usable_suffices(
    stored_bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each precision, just below and just above what the machine lets a GPU use of its memory."""
    model = TransformerConfig()
    for config in ("no_change",) if stored_bits else ("no_change", "int8-quanto", "int4-quanto"):
        options = load_config({"base_model_precision": config})
        need = estimate(options, V1.memory.load(SECONDS), model=model, stored_bits=stored_bits).total
        memory = need * 3 / 2 if need < 24e9 else need * 4 / 3
        for share, verdict in ((0.99, "does not fit"), (1.01, "fits")):
            monkeypatch.setattr(plan, "machine_memory", lambda m=int(share * memory): m)
            (line,) = [one for one in training_memory(V1, model, stored_bits) if f"={config}:" in one]
            assert line.endswith(f"about {size(need)}, {verdict}"), (config, share)


def test_whether_training_fits_this_machine(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from acestep_mlx.training import memory as plan

    for memory, verdict in ((64e9, "MB, fits"), (100e6, "MB, does not fit")):
        monkeypatch.setattr(plan, "machine_memory", lambda memory=memory: int(memory))
        assert verdict in info(capsys, tiny_model)


@pytest.mark.parametrize("name", FORMATS)
def test_lora(name: str, loras: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = info(capsys, loras / f"{name}.safetensors", "--model", tiny_model)
    assert f"format {name!r} of acestep-mlx" in out and "rank: 4" in out
    assert "trained with rank 4, alpha 8 (scale 2)" in out
    assert "use at strength 1.0" in out and ("  scale 2, applied by acestep-mlx itself" in out) == (
        name == "mlx"
    )
    assert "attn.to_q × 2" in out and "cross_attn.to_v × 2" in out and "step: 20" in out
    assert f"fits {tiny_model}, the one it was trained on" in out


@pytest.mark.parametrize(
    "absent", ["rank", "alpha", "scale", "targets", "step", "base", "base_fingerprint", "use_rslora",
               "file_format", "tool_version", "all of them"],
)  # fmt: skip
def test_a_fact_of_a_lora_that_is_null_is_absent(
    absent: str, loras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = loras / "peft.safetensors"
    facts = {
        "base": "x",
        "base_fingerprint": "0" * 64,
        **json.loads(read_header(source).metadata[METADATA_KEY]),
    }
    names = facts.keys() - {"baked"} if absent == "all of them" else {absent}
    said = []
    for changed in (facts | dict.fromkeys(names), {n: fact for n, fact in facts.items() if n not in names}):
        save_file(load_file(source), tmp_path / "a.safetensors", {METADATA_KEY: json.dumps(changed)})
        said.append(re.sub(r"[\d.]+ kB", "", info(capsys, tmp_path / "a.safetensors")))
    assert said[0] == said[1] and "None" not in said[0] and "scale 0" not in said[0]


@pytest.mark.parametrize("silent", ["all", "nearly all"])
def test_a_silent_song_is_told_as_training_takes_it(
    silent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = np.zeros((88200, 2), np.float32)
    sound[:400] = 0.3 * (silent != "all")
    soundfile.write(tmp_path / "a.wav", sound, 44100)
    found = examine(FileAudio(tmp_path / "a.wav"))
    assert found.problem
    expected = f"2.00 s, 44100 Hz, 2 channels, 22 latent frames; training leaves it out: {found.problem}\n"
    assert expected in info(capsys, tmp_path / "a.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_song_that_training_refuses_is_refused(
    value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = np.full((88200, 2), 0.1, np.float32)
    sound[50_000] = value
    soundfile.write(tmp_path / "a.wav", sound, 44100, subtype="FLOAT")
    assert "a.wav: holds values that are not finite numbers" in refused(capsys, tmp_path / "a.wav")


def test_a_foreign_lora_and_one_for_another_model(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "base_model.model.transformer_blocks.0.attn.to_q"
    tensors = {
        f"{path}.lora_A.weight": np.ones((8, 128), np.float32),
        f"{path}.lora_B.weight": np.ones((96, 8), np.float32),
    }
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    out = info(capsys, tmp_path, "--model", tiny_model)  # a folder with a LoRA in it
    assert "peft's keys under 'base_model.model.'" in out and "rank: 8" in out
    assert f"does not fit {tiny_model}" in out and "no alpha is stored" not in out
    save_file(
        tensors | {f"{path}.alpha": np.array(8, np.float32)}, tmp_path / "pytorch_lora_weights.safetensors"
    )
    assert "use at strength" not in info(capsys, tmp_path, "--model", tiny_model)


def test_training_checkpoint_and_output(
    loras: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from acestep_mlx.training import checkpoint

    def extra(folder: Path) -> None:
        shutil.copy(loras / "peft.safetensors", folder / checkpoint.LORA)

    arrays = {"x": mx.zeros((2,))}
    state = {
        "tool_version": "9.9",
        "lora": {"rank": 4, "alpha": 8.0, "targets": ["to_q"]},
        "identity": {"transformer": "fingerprint-of-the-base"},
    }
    path = checkpoint.save(
        tmp_path, 20, state=state, adapter=arrays, optimizer=arrays, sampler=arrays, config={}, extra=extra
    )
    out = info(capsys, path)
    assert "training checkpoint, step 20" in out and "rank 4, alpha 8.0, targets to_q" in out
    assert "fingerprint-of-t" in out and "attn.to_q × 2" in out
    (path / checkpoint.ADAPTER).write_bytes(b"")
    assert "is damaged: adapter.safetensors" in refused(capsys, path)
    out = info(capsys, tmp_path)
    assert "checkpoint-20: damaged" in out and "to use the newest" not in out


def test_an_output_that_holds_checkpoints_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from acestep_mlx.training import checkpoint

    arrays = {"x": mx.zeros((2,))}
    for step in (5, 20):
        checkpoint.save(tmp_path, step, state={}, adapter=arrays, optimizer=arrays, sampler=arrays, config={})
    out = info(capsys, tmp_path)
    assert "output of training, 2 checkpoints" in out and "checkpoint-5: step 5" in out
    assert f"to use the newest: acestep-mlx export {tmp_path / 'checkpoint-20'}" in out and "best" not in out


def test_the_best_checkpoint_and_averaged_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from acestep_mlx.training import checkpoint

    arrays = {"x": mx.zeros((2,))}
    parts = {"adapter": arrays, "optimizer": arrays, "sampler": arrays, "config": {}}
    for step, loss in ((5, 0.25), (20, 0.5)):
        checkpoint.save(tmp_path, step, state={"evaluation": loss}, average=arrays, **parts)
    out = info(capsys, tmp_path)
    assert f"best by evaluation loss (0.2500): acestep-mlx export {tmp_path / 'checkpoint-5'}" in out
    assert "averaged weights: in ema/" in info(capsys, tmp_path / "checkpoint-5")


def test_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"event": "eval", "step": 0, "loss": 2.0},
        {"event": "step", "step": 1, "smoothed_loss": 1.5, "skipped": False},
        {"event": "step", "step": 2, "smoothed_loss": None, "skipped": True},
        {"event": "eval", "step": 2, "loss": 1.0},
        {"event": "checkpoint", "step": 2, "path": "x"},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = info(capsys, path)
    assert "2 steps, 1 of them skipped, the last is 2" in out and "smoothed: not finite" in out
    assert "evaluation loss, step 2: 1.0000 (step 0: 2.0000)" in out
    assert "1 checkpoint, 0 validation clips" in out
    odd = ["[" * 200_000, "9" * 5000, '{"event": "eval", "step": 3, "loss": %s}' % ("1" * 400)]
    good = '{"event": "step", "step": 4, "smoothed_loss": null}'
    path.write_text("\n".join([*odd, good, '{"event": "step", "step": 5, "smoothed_loss": NaN}']) + "\n")
    out = info(capsys, path)
    assert "1 step, the last is 4" in out and "smoothed: not finite" in out
    assert "4 lines damaged and left out (line 1: nested too deeply; line 2: " in out
    assert "line 3: loss must be between -1e+50 and 1e+50, got a number of many digits … and 1 more" in out
    path.write_text('{"prompt": "another program\'s lines"}\n')
    assert "no metrics of a training run" in refused(capsys, path)
    path.write_bytes(b"\xff\x00")
    assert "no metrics of a training run" in refused(capsys, path)


def test_every_number_of_metrics_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        *({"event": "eval", "step": step, "loss": loss} for step, loss in ((3, 8.0), (5, 7.0), (11, 6.5))),
        *({"event": "step", "step": step, "loss": 4.0, "smoothed_loss": 2.5, "grad_norm": 3.5,
           "skipped": step < 9} for step in range(7, 13)),
        *({"event": "clip", "step": 12, "path": f"{i}.wav"} for i in range(3)),
        *({"event": "checkpoint", "step": step, "path": "x"} for step in (10, 12)),
    ]  # fmt: skip
    path = tmp_path / "metrics.jsonl"
    rows[2]["verdict"] = "Still learning: it fell."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert info(capsys, path).splitlines() == [
        f"{path}: metrics of a training run",
        "  6 steps, 2 of them skipped, the last is 12",
        "  training loss, smoothed: 2.5000",
        "  evaluation loss, step 11: 6.5000 (step 3: 8.0000)",
        "  Still learning: it fell.",
        "  2 checkpoints, 3 validation clips",
    ]


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_a_generated_song_and_its_json(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from acestep_mlx.config.request import Request
    from acestep_mlx.sampling.record import save_song

    request = Request(prompt="slow jazz", seeds=(7,), steps=12).to_dict()
    loras = [{"path": "/x/mine.safetensors", "scale": 0.5}]
    record = {"version": "9.9", "request": request, "model": {"path": "/x/model"}, "loras": loras}
    song = tmp_path / f"song{suffix}"
    save_song(song, np.zeros((44100, 2), np.float32), record, sample_rate=44100, facts={})
    for path, first in ((song, "audio, 1.0"), (tmp_path / "song.json", "how a song was made")):
        out = info(capsys, path)
        assert first in out.splitlines()[0] and 'model: "/x/model"' in out and 'version: "9.9"' in out
        assert 'LoRA: "/x/mine.safetensors" at 0.5' in out
        assert 'prompt: "slow jazz"' in out and "seeds: [7]" in out and "steps: 12" in out
        assert "omega" not in out, "what is as usual is left out"
        assert f"generate --from-json {path}" in out


@pytest.mark.parametrize(
    "text",
    [
        '{"acestep_mlx": 3}',
        *(
            json.dumps({"acestep_mlx": {"request": {"prompt": "x"}, **odd}})
            for odd in ({"loras": ["a"]}, {"loras": 5}, {"loras": [{"path": "x"}]}, {"model": "x"})
        ),
        "[" * 200_000,
    ],
    ids=lambda text: text[:60],
)
def test_an_odd_record_is_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "song.json").write_text(text)
    assert "Traceback" not in refused(capsys, tmp_path / "song.json")
    with pytest.raises(DataError, match="does not say how a song was made"):
        read_record(tmp_path / "song.json")
    sound = tmp_path / "song.wav"
    write_audio(sound, np.zeros((44100, 2), np.float32), 44100, tags={"comment": text})
    assert len(info(capsys, sound).splitlines()) == 1, "somebody else's song"


def test_a_songs_record_is_found_without_reading_the_song(tmp_path: Path) -> None:
    record = {"version": "9", "request": {"prompt": "x" * 3000}}
    sound = tmp_path / "long.wav"
    tags = {"comment": json.dumps({"acestep_mlx": record})}
    write_audio(sound, np.zeros((60 * 44100, 2), np.float32), 44100, tags=tags)
    tracemalloc.start()
    try:
        assert read_record(sound) == record
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["plain", "two words", 'it\'s a "song" & $HOME; `id`', "*?~#!"])
def test_every_command_that_is_printed_can_be_pasted(
    name: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell takes what `info` advises for the very path that it was given."""
    from acestep_mlx.training import checkpoint

    folder = tmp_path / name
    song = folder / "song.json"
    song.parent.mkdir()
    song.write_text(json.dumps({"acestep_mlx": {"request": {"prompt": "x"}}}))
    config = folder / "config.json"
    config.write_text(json.dumps({"output_dir": "out"}))
    model = Path(shutil.copytree(tiny_checkpoint, folder / "model"))
    arrays = {"x": mx.zeros((2,))}
    run = folder / "run"
    saved = checkpoint.save(run, 5, state={}, adapter=arrays, optimizer=arrays, sampler=arrays, config={})
    for path, command in (
        (song, ["generate", "--from-json", str(song)]),
        (config, ["train", str(config), "--dry-run"]),
        (model, ["convert", "--hf-path", str(model), "--mlx-path", "OUT"]),
        (saved, ["train", "CONFIG", f"--resume_from_checkpoint={saved}"]),
        (run, ["export", str(saved)]),
    ):
        advice = info(capsys, path).partition(": acestep-mlx ")[2].splitlines()[0]
        assert shlex.split(advice) == command
    with pytest.raises(CheckpointError) as error:
        ModelFolder.open(model)
    advice = str(error.value).rpartition("run `acestep-mlx ")[2].removesuffix("` first")
    assert shlex.split(advice) == ["convert", "--hf-path", str(model), "--mlx-path", "OUT"]


def test_a_record_cannot_talk_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"request": {"prompt": "x", "\x1b[2J": 1}, "model": {"path": "\x1b]0;gone\x07"}}
    (tmp_path / "song.json").write_text(json.dumps({"acestep_mlx": odd}))
    assert "\x1b" not in info(capsys, tmp_path / "song.json")


def test_folder_of_songs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tone = 0.1 * np.sin(np.arange(4 * 44100) / 50)
    soundfile.write(tmp_path / "one.wav", tone, 44100)
    (tmp_path / "one.txt").write_text("slow ballad")
    (tmp_path / "two.flac").write_bytes(b"not sound")
    before = sorted(p.name for p in tmp_path.iterdir())
    out = info(capsys, tmp_path)
    assert "1 of 2 songs" in out and "two.flac" in out and "without lyrics: 1" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "nothing is written"
    out = info(capsys, tmp_path / "one.wav")
    assert out.endswith("wav audio, 4.00 s, 44100 Hz, 1 channel, 44 latent frames\n")


def test_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"--model_family": "ace_step", "--lora_rank": 7}))
    out = info(capsys, tmp_path / "config.json")
    assert "training configuration" in out and "lora_rank = 7" in out
    assert info(capsys, tmp_path) == out
    sets = [{"id": "mine", "type": "local", "dataset_type": "audio", "instance_data_dir": str(tmp_path)}]
    (tmp_path / "multidatabackend.json").write_text(json.dumps(sets))
    assert "mine: local" in info(capsys, tmp_path / "multidatabackend.json")
    assert "lora_rank" in refused(capsys, _config(tmp_path, lora_rank=-1))
    assert "did you mean" in refused(capsys, _config(tmp_path, lora_rnk=4))


def _config(folder: Path, **values: object) -> Path:
    path = folder / "other.json"
    path.write_text(json.dumps(values))
    return path


def test_lyrics(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "song.lyrics").write_text("[verse]\nHarbour lights are turning low\n\nGuten Abend\n")
    out = info(capsys, tmp_path / "song.lyrics", "--model", tiny_model)
    assert "harbour lights are turning low" in out and " de " in out
    forced = info(
        capsys,
        tmp_path / "song.lyrics",
        "--lyric-vocab",
        tiny_model / "lyric_vocab.json",
        "--lyrics-language",
        "en",
    )
    assert " de " not in forced
    assert "is a folder" in refused(capsys, tmp_path / "song.lyrics", "--lyric-vocab", tmp_path)
    (tmp_path / "bad.lyrics").write_bytes(b"\xff\xff\xff")
    assert "UTF-8" in refused(capsys, tmp_path / "bad.lyrics", "--model", tiny_model)


def test_component_weights(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = info(capsys, tiny_model / "dcae.safetensors")
    assert "safetensors, 82 tensors" in out and "and 62 more" in out


def test_what_it_cannot_know(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file or folder" in refused(capsys, tmp_path / "nothing")
    assert "acestep-mlx convert --hf-path someone/songs" in refused(capsys, "someone/songs")
    assert "not a model, LoRA, checkpoint" in refused(capsys, tmp_path)
    (tmp_path / "x.pt").write_bytes(b"")
    assert "a pickle can run code" in refused(capsys, tmp_path / "x.pt")
    (tmp_path / "x.bmp").write_bytes(b"")
    assert "not a file that acestep-mlx knows" in refused(capsys, tmp_path / "x.bmp")
    (tmp_path / "x.json").write_text("{")
    assert "not JSON" in refused(capsys, tmp_path / "x.json")
    (tmp_path / "x.safetensors").write_bytes(b"12345678901234567890")
    assert "not a whole safetensors file" in refused(capsys, tmp_path / "x.safetensors")
    broken = shutil.copytree(tiny_model, tmp_path / "model")
    (broken / "vocoder.safetensors").unlink()
    assert "is incomplete: vocoder.safetensors" in refused(capsys, broken)


def test_a_model_folder_whose_weights_are_damaged_anywhere(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path
) -> None:
    """Opening a folder looks at some blocks of its files; `info` reads them all and shows how far it is."""
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    path = broken / "text_encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-BLOCK - 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        main(["info", str(broken)])
    *progress, error = capsys.readouterr().err.splitlines()
    assert caught.value.code == 1 and error.startswith(f"error: {path} is not the file that config.json")
    assert progress and all(line.startswith("comparing the weights") for line in progress)


def test_the_whole_disk_is_not_looked_through(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("it is looked through"))
    for name in ("/", "//", "/..", "/usr/.."):
        assert "the whole disk; name a model" in refused(capsys, name)


def test_the_index_of_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "audio_index.json"
    index = FactsIndex(path)
    index._facts["x"], index._changed = AudioFacts("0", 3.0), True
    index.save()
    assert "what a cache of acestep-mlx knows of 1 song;" in info(capsys, path)


def test_an_empty_path_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["info", ""], ["info", ".", "--model", ""]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2 and "is empty" in capsys.readouterr().err


PIPES = [
    "p",
    "p.json",
    "p.jsonl",
    "p.wav",
    "p.m4a",
    "p.lyrics",
    "p.txt",
    "p.safetensors",
    "p.lrc",
    "p.parquet",
]


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_not_waited_for(
    name: str, linked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / ("elsewhere" if linked else name))
    if linked:
        (tmp_path / name).symlink_to("elsewhere")
    assert f"{name}: it is a named pipe, not a file or folder" in refused(capsys, tmp_path / name)


def test_devices_are_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("/dev/zero", "/dev/null"):
        assert "it is a device, not a file or folder" in refused(capsys, path)


@pytest.mark.parametrize(
    "names",
    [
        ["config.json"],
        ["config.json", "transformer.safetensors"],
        ["training_state.json"],
        ["pytorch_lora_weights.safetensors"],
        ["adapter_model.safetensors", "adapter_config.json"],
        ["dataset_info.json"],
        ["state.json"],
        ["x.parquet"],
        ["ace_step_transformer/config.json"],
        ["a.wav"],
        ["a.mp3", "a.txt", "a.lyrics"],
    ],
)
def test_folders_with_pipes_in_place_of_files(
    names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["info", str(tmp_path)])
    output = capsys.readouterr()
    assert caught.value.code in (0, 1) and "Traceback" not in output.err


@pytest.mark.parametrize("option", ["data_backend_config", "validation_prompt_library", "init_lora"])
def test_settings_that_name_a_pipe(option: str, tmp_path: Path, tiny_model: Path) -> None:
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.errors import AceStepError
    from acestep_mlx.training.preflight import preflight

    pipe = tmp_path / "p.json"
    os.mkfifo(pipe)
    values = {"pretrained_model_name_or_path": str(tiny_model), "output_dir": str(tmp_path / "out"),
              "cache_dir": str(tmp_path / "cache"), option: str(pipe)}  # fmt: skip
    with pytest.raises(AceStepError, match=r"p\.json"):
        config = load_config(values)
        preflight(config, lambda text, level: None)
        from acestep_mlx.config.read_datasets import read_datasets

        read_datasets(config)


def test_training_config_that_is_a_pipe(tmp_path: Path) -> None:
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.errors import ConfigError

    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError):
        load_config(tmp_path / "config.json")
    with pytest.raises(ConfigError):
        load_config(tmp_path)


def test_a_run_by_a_newer_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from acestep_mlx.training import checkpoint

    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    state = {"format": checkpoint.FORMAT, "format_version": checkpoint.FORMAT_VERSION + 1}
    (folder / checkpoint.STATE).write_text(json.dumps(state))
    assert "was written by a newer version of acestep-mlx" in refused(capsys, folder)
    out = info(capsys, tmp_path)
    assert "checkpoint-3: " in out and "newer version" in out and "damaged" not in out


def test_one_parameter_is_not_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mx.save_safetensors(str(tmp_path / "one.safetensors"), {"a": mx.zeros((1,))})
    assert "1 tensor, 1 parameter, F32" in info(capsys, tmp_path / "one.safetensors")


def test_a_huge_folder_is_not_walked_to_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acestep_mlx.cli.info.MOST_ENTRIES", 50)
    for n in range(40):
        (tmp_path / "deep" / f"{n:02d}").mkdir(parents=True)
        for name in ("a.wav", "b.mp3", "c.txt"):
            (tmp_path / "deep" / f"{n:02d}" / name).write_bytes(b"x")
    original, seen = Path.rglob, []

    def walked(self: Path, pattern: str) -> Iterator[Path]:
        for path in original(self, pattern):
            seen.append(path)
            yield path

    monkeypatch.setattr(Path, "rglob", walked)
    with pytest.raises(SystemExit) as done:
        main(["info", str(tmp_path)])
    (line,) = capsys.readouterr().out.splitlines()
    songs = sum(path.suffix in (".wav", ".mp3") for path in seen)
    assert done.value.code == 0 and len(seen) == 51
    assert f"at least {songs} song" in line and "only the first 50 files and folders" in line
