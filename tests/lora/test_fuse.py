"""`fuse` and `export` as commands: new folders and files that are right, whole, and say what they are."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from acestep_mlx import cli
from acestep_mlx.cli.fuse import rounding_lines
from acestep_mlx.convert import fused as convert_fuse
from acestep_mlx.convert.converter import convert
from acestep_mlx.convert.fused import FuseReport, fuse
from acestep_mlx.errors import AceStepError, CheckpointError, ConfigError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1.lora import LORA
from acestep_mlx.formatting import size
from acestep_mlx.io.safetensors import read_header, sample
from acestep_mlx.lora.apply import apply_loras
from acestep_mlx.lora.formats import write as formats
from acestep_mlx.lora.formats.metadata import METADATA_KEY
from acestep_mlx.lora.formats.read import FILE_NAME, read_lora
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.full_modules import full_parameters, save_full
from acestep_mlx.lora.merge import FuseError
from acestep_mlx.lora.surgery import LoRASpec, from_model, inject
from acestep_mlx.lora.weights import LoRAModule, LoRAWeights

from .standin import disturb

SPEC = LoRASpec(rank=4, alpha=10)
LINEAR, CONVOLUTIONS = ("to_q",), ("to_q", "point_conv.conv", "early_conv_layers.2")


@pytest.fixture(scope="module")
def quantised(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("q8") / "model"
    convert(tiny_checkpoint, folder, dtype="bfloat16", quantize=True, q_bits=8, q_group_size=32)
    return folder


@pytest.fixture(scope="module")
def loras(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a LoRA, a DoRA, and a LoRA with a trained lyrics embedder."""
    root = tmp_path_factory.mktemp("loras")
    for name, spec in (("lora", SPEC), ("dora", LoRASpec(rank=3, use_dora=True)), ("embedder", SPEC)):
        model = ModelFolder.open(tiny_model).load("transformer")
        inject(model, spec)
        disturb(model, len(name))
        write_lora(root / name / FILE_NAME, from_model(model, spec))
        if name == "embedder":
            values = full_parameters(model).items()
            trained = {
                n: v + 0.1 * mx.random.normal(v.shape, key=mx.random.key(i))
                for i, (n, v) in enumerate(values)
            }
            save_full(root / name, trained, LORA.full)
    return {path.name: path for path in root.iterdir()}


def inputs(folder: Path) -> dict[str, mx.array]:
    config = ModelFolder.open(folder).component_config("transformer")
    key = mx.random.key(0)
    return {
        "hidden_states": mx.random.normal((1, 8, 16, 12), key=key),
        "attention_mask": mx.ones((1, 12)),
        "encoder_text_hidden_states": mx.random.normal((1, 4, config.text_embedding_dim), key=key),
        "text_attention_mask": mx.ones((1, 4)),
        "speaker_embeds": mx.zeros((1, config.speaker_embedding_dim)),
        "lyric_token_idx": mx.array([[3, 5, 7, 2]]),
        "lyric_mask": mx.ones((1, 4)),
        "timestep": mx.array([500.0]),
    }


def velocity(folder: Path, *used: tuple[Path, float]) -> mx.array:
    transformer = ModelFolder.open(folder).load("transformer")
    apply_loras(transformer, [(read_lora(path), strength) for path, strength in used])
    return transformer(**inputs(folder)).astype(mx.float32)


def distance(a: mx.array, b: mx.array) -> float:
    return float(mx.linalg.norm(a - b) / mx.linalg.norm(b))


def run(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "acestep_mlx", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_fused_folder_is_the_model_with_its_loras(tiny_model, loras, tmp_path):
    before = {p.name: p.read_bytes() for p in tiny_model.iterdir()}
    used = [(loras["embedder"], 1.0), (loras["dora"], 0.5)]
    report = fuse(tiny_model, used, tmp_path / "new")
    assert report.layers == 8 * 2 + 3 * 2 and report.parameters > 20
    assert distance(velocity(tmp_path / "new"), velocity(tiny_model, *used)) < 1e-5
    assert distance(velocity(tmp_path / "new"), velocity(tiny_model)) > 1e-2
    assert {p.name: p.read_bytes() for p in tiny_model.iterdir()} == before
    for path in (tmp_path / "new").iterdir():
        if path.name not in ("config.json", "transformer.safetensors"):
            assert path.read_bytes() == before[path.name], path.name
    old, new = (ModelFolder.open(p) for p in (tiny_model, tmp_path / "new"))
    assert new.fingerprints["transformer"] != old.fingerprints["transformer"]
    assert {k: v for k, v in new.fingerprints.items() if k != "transformer"} == {
        k: v for k, v in old.fingerprints.items() if k != "transformer"
    }
    assert [(e["lora"], e["scale"]) for e in new.config["fused"]] == [("embedder", 1.0), ("dora", 0.5)]


@pytest.mark.parametrize("old", [False, True], ids=["0.2", "0.1"])
def test_a_fused_folder_records_its_own_files(old, tiny_model, loras, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    if old:
        content = json.loads((model / "config.json").read_text())
        del content["files"]
        (model / "config.json").write_text(json.dumps(content))
    fuse(model, [(loras["lora"], 1.0)], tmp_path / "new")
    new = ModelFolder.open(tmp_path / "new")
    new.check_contents()
    assert new.config["files"] == {name: sample(new.file(name)) for name in new.family.components}
    assert new.config["files"]["transformer"] != sample(tiny_model / "transformer.safetensors")
    shutil.copy(tmp_path / "new" / "transformer.safetensors", model)
    if not old:
        with pytest.raises(CheckpointError, match="is not the file that config"):
            fuse(model, [(loras["lora"], 1.0)], tmp_path / "again")


def test_fusing_twice_adds_to_the_record_and_equals_both_at_once(tiny_model, loras, tmp_path):
    fuse(tiny_model, [(loras["lora"], 1.0)], tmp_path / "one")
    fuse(tmp_path / "one", [(loras["embedder"], 1.0)], tmp_path / "two")
    assert len(ModelFolder.open(tmp_path / "two").config["fused"]) == 2


def test_a_quantised_folder_stays_quantised_and_says_what_it_lost(quantised, loras, tmp_path):
    report = fuse(quantised, [(loras["lora"], 1.0)], tmp_path / "new")
    new = ModelFolder.open(tmp_path / "new")
    assert new.quantization == ModelFolder.open(quantised).quantization
    shapes = [
        {
            name: (v.shape, v.dtype)
            for name, v in tree_flatten(ModelFolder.open(p).load("transformer").parameters())
        }
        for p in (quantised, tmp_path / "new")
    ]
    assert shapes[0] == shapes[1]
    assert len(report.errors) == report.layers == 22
    assert 0 < report.whole.weight <= report.worst[1].weight < 0.02
    assert report.whole.update > report.whole.weight
    assert distance(velocity(tmp_path / "new"), velocity(quantised, (loras["lora"], 1.0))) < 0.05
    transformer = ModelFolder.open(quantised).load("transformer")
    apply_loras(transformer, [(read_lora(loras["lora"]), 1.0)], fused=True)
    expected = dict(tree_flatten(transformer.parameters()))
    for name, value in tree_flatten(new.load("transformer").parameters()):
        assert mx.array_equal(value, expected[name]), name  # the folder holds what fusing in memory gives


def test_strength_zero_copies_the_model(quantised, loras, tmp_path):
    report = fuse(quantised, [(loras["embedder"], 0.0)], tmp_path / "new")
    assert report.layers == report.parameters == 0
    old, new = (ModelFolder.open(p) for p in (quantised, tmp_path / "new"))
    assert old.fingerprints == new.fingerprints
    assert old.file("transformer").read_bytes() == new.file("transformer").read_bytes()


def test_nothing_is_left_of_a_fuse_that_failed(tiny_model, loras, tmp_path, monkeypatch):
    other = read_lora(loras["lora"])
    other.modules = {path.replace("blocks.1.", "blocks.9."): m for path, m in other.modules.items()}
    write_lora(tmp_path / "other.safetensors", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for arguments, says in (
        ((tiny_model, [(tmp_path / "other.safetensors", 1.0)], tmp_path / "new"), "another model"),
        ((tiny_model, [(loras["lora"], float("nan"))], tmp_path / "new"), "must be a number"),
        ((tiny_model, [], tmp_path / "new"), "at least one"),
        ((tmp_path / "none", [(loras["lora"], 1.0)], tmp_path / "new"), "no such"),
        ((tiny_model, [(loras["lora"], 1.0)], tmp_path / "full"), "exists already"),
    ):
        with pytest.raises(AceStepError, match=says) as error:
            fuse(*arguments)
        assert "\n" not in str(error.value)
    from acestep_mlx.convert import fused as module

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.SafetensorsWriter, "write", full)
    with pytest.raises(CheckpointError, match="disk is full"):
        fuse(tiny_model, [(loras["lora"], 1.0)], tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "other.safetensors"]


def test_the_fuse_command(quantised, loras, tmp_path):
    code, out, _ = run(
        "fuse", "--model", quantised, "--lora", loras["lora"], "--lora", loras["dora"], "--lora-scale", 0.5,
        "-o", tmp_path / "new",
    )  # fmt: skip
    assert code == 0
    assert "2 LoRAs in 22 layers" in out and "rounding to few bits moves the fused weights by" in out
    code, _, err = run(
        "fuse",
        "--model",
        quantised,
        "--lora",
        loras["lora"],
        "--lora-scale",
        1,
        "--lora-scale",
        2,
        "-o",
        tmp_path / "x",
    )
    assert code == 2 and "2 --lora-scale for 1 --lora" in err
    code, _, err = run("fuse", "--model", quantised, "--lora", loras["lora"], "-o", tmp_path / "new")
    assert code == 1 and err.count("\n") == 1 and "exists already" in err


def export(*arguments: object) -> None:
    cli.cli.main(["export", *map(str, arguments)], standalone_mode=False)


@pytest.mark.parametrize(
    ("typed", "strengths"),
    [
        ([], (1.0, 1.0)),
        (["--lora-scale", "0.5"], (0.5, 0.5)),
        (["--lora-scale", "0.5", "--lora-scale", "-2"], (0.5, -2.0)),
        (["--lora-scale", "0"], (0.0, 0.0)),
    ],
)
@pytest.mark.parametrize(
    ("parameters", "whole"), [(0, ""), (1, " and 1 whole parameter"), (4321, " and 4,321 whole")]
)
def test_every_flag_of_fuse_arrives_and_its_numbers_are_said(
    typed, strengths, parameters, whole, monkeypatch, capsys
):
    asked = []

    def fake(model, loras, dst, *, progress):
        asked.append((model, loras, dst))
        return FuseReport(dst, 1234, parameters, False, {"x": FuseError(0.0, 1.0, 0.5)}, 7.4)

    monkeypatch.setattr(convert_fuse, "fuse", fake)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fuse", "--model", "base", "--lora", "a", "--lora", "b", "-o", "new", *typed])
    assert not stop.value.code
    loras = list(zip((Path("a"), Path("b")), strengths, strict=True))
    assert asked == [(Path("base"), loras, Path("new"))]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"new: 2 LoRAs in 1,234 layers{whole}") and line.endswith(", 7 s")


def test_the_export_command(loras, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(loras["lora"])
    path = tmp_path / "lora-peft" / FILE_NAME
    assert path.is_file()
    export(path, "--format", "mlx", "--dtype", "bfloat16")
    export(loras["dora"], "--format", "comfyui", "--model", tiny_model, "-o", "out/x.safetensors")
    export(loras["lora"], "--format", "simpletuner", "-o", "folder")
    export(loras["lora"], "-o", "peft.safetensors")
    out = capsys.readouterr().out
    assert out.count("read back and compared") == 5
    assert "LoRA of 22 modules, rank 4, float32" in out and "DoRA of 22 modules, rank 3" in out
    assert "wants a folder" in out
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.safetensors")) == [
        f"folder/{FILE_NAME}", "lora-peft-mlx.safetensors", f"lora-peft/{FILE_NAME}", "out/x.safetensors",
        "peft.safetensors",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="--force"):
        export(loras["lora"])
    export(loras["lora"], "--force")
    with pytest.raises(ConfigError, match="is the LoRA itself"):
        export(path, "-o", path, "--force")


@pytest.mark.parametrize("name", ["adapter.safetensors", "training_state.json", FILE_NAME])
def test_force_replaces_no_file_of_a_checkpoint(name, loras, tmp_path):
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    for one in ("adapter.safetensors", "training_state.json", FILE_NAME):
        (checkpoint / one).write_text("{}")
    with pytest.raises(ConfigError, match="part of a training checkpoint"):
        export(loras["lora"], "-o", checkpoint / name, "--force")
    assert (checkpoint / name).read_text() == "{}"


@pytest.mark.parametrize("name", ["transformer.safetensors", "config.json"])
def test_force_replaces_no_file_of_a_model(name, loras, tmp_path):
    for one in ("transformer.safetensors", "config.json"):
        (tmp_path / one).write_text("{}")
    with pytest.raises(ConfigError, match="part of a model folder"):
        export(loras["lora"], "-o", tmp_path / name, "--force")
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
@pytest.mark.parametrize("kind", formats.FORMATS)
def test_the_precision_of_an_export_is_the_files(dtype, stored, kind, loras, tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    export(loras["lora"], "--format", kind, "--dtype", dtype, "-o", path)
    assert {info.dtype for info in read_header(path).tensors.values()} == {stored}
    assert f", {dtype}, {size(path.stat().st_size)}, for " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "width", "says"),
    [
        ("transformer_blocks.0.attn.to_q", 32, "another size"),
        ("transformer_blocks.9.attn.to_q", 64, "another model"),
    ],
)
@pytest.mark.parametrize("kind", formats.FORMATS)
def test_a_lora_that_does_not_fit_the_model_is_not_exported(
    path, width, says, kind, tiny_model, tmp_path, capsys
):
    a = mx.random.normal((2, width), key=mx.random.key(0))
    write_lora(tmp_path / "x.safetensors", LoRAWeights({path: LoRAModule(a, a.T)}))
    for command in ("export", "fuse"):
        new = tmp_path / ("y.safetensors" if command == "export" else "y")
        lora = [tmp_path / "x.safetensors"]
        lora = ["--format", kind, *lora] if command == "export" else ["--lora", *lora]
        with pytest.raises(SystemExit) as stop:
            cli.main([command, *map(str, lora), "--model", str(tiny_model), "-o", str(new)])
        err = capsys.readouterr().err
        assert stop.value.code == 1 and err.count("\n") == 1 and says in err and not new.exists()


def test_exporting_a_lyrics_embedder(loras, tiny_model, tmp_path, capsys):
    export(loras["embedder"], "-o", tmp_path / "a.safetensors")
    assert "--with-lyrics-embedder adds it" in capsys.readouterr().out
    export(loras["embedder"], "-o", tmp_path / "b.safetensors", "--with-lyrics-embedder")
    out = capsys.readouterr().out
    assert (
        "for the original pipeline, diffusers\n" in out and "ComfyUI does not load a lyrics embedder" in out
    )
    assert "puts it in whole at any strength" in out
    assert read_lora(tmp_path / "a.safetensors").full is None
    assert read_lora(tmp_path / "b.safetensors").full
    options = ("--with-lyrics-embedder", "--format", "comfyui")
    export(loras["embedder"], "-o", tmp_path / "c.safetensors", *options, "--model", tiny_model)
    assert "4 of the lyrics embedder's tensors (pos_bias_u, pos_bias_v)" in capsys.readouterr().out
    for path in (tmp_path / "b.safetensors", tmp_path / "c.safetensors"):
        assert velocity(tiny_model, (path, 1.0)).shape == (1, 8, 16, 12)
    same = distance(
        velocity(tiny_model, (tmp_path / "b.safetensors", 1.0)),
        velocity(tiny_model, (loras["embedder"], 1.0)),
    )
    assert same < 1e-6


@pytest.mark.parametrize(
    ("targets", "dora", "kind", "says", "never"),
    [
        (LINEAR, False, "peft", "for the original pipeline, diffusers, ComfyUI\n", "note: a DoRA"),
        (LINEAR, True, "peft", "for the original pipeline, diffusers\n", "diffusers, ComfyUI"),
        (LINEAR, True, "peft", "note: ComfyUI does not load a DoRA from this file", "diffusers, ComfyUI"),
        (LINEAR, True, "comfyui", "for ComfyUI\nnote: a DoRA is the same in all programs at", "pipeline"),
        (LINEAR, False, "simpletuner", "for SimpleTuner's --init_lora\n", "drop"),
        (LINEAR, True, "simpletuner", "for SimpleTuner's --init_lora\n", "drop"),
        (LINEAR, True, "simpletuner", "are lora_rank 2, lora_alpha 2 or none, use_dora true\n", "drop"),
        (LINEAR, False, "diffusers", "for diffusers\nread back", "SimpleTuner"),
        (CONVOLUTIONS, False, "simpletuner", "for SimpleTuner's resume (not --init_lora)\n", "pipeline"),
        (CONVOLUTIONS, True, "simpletuner", "would drop 3 of these modules", "pipeline"),
        (CONVOLUTIONS, False, "peft", "for the original pipeline, diffusers, ComfyUI\n", "drop"),
        (CONVOLUTIONS, False, "comfyui", "for ComfyUI\n", "drop"),
    ],
)  # fmt: skip
def test_export_names_the_programs_that_load_all_of_it(
    targets, dora, kind, says, never, tiny_model, tmp_path, capsys
):
    model = ModelFolder.open(tiny_model).load("transformer")
    spec = LoRASpec(rank=2, use_dora=dora, targets=targets)
    inject(model, spec)
    disturb(model)
    write_lora(tmp_path / "x.safetensors", from_model(model, spec))
    export(
        tmp_path / "x.safetensors", "-o", tmp_path / "y.safetensors", "--format", kind, "--model", tiny_model
    )
    out = capsys.readouterr().out
    assert says in out.replace("note: the original pipeline wants a folder", "\n") and never not in out


def test_an_untrained_lora_is_exported_with_a_word(tiny_model, tmp_path, capsys):
    model = ModelFolder.open(tiny_model).load("transformer")
    inject(model, SPEC)
    write_lora(tmp_path / "x.safetensors", from_model(model, SPEC))
    export(tmp_path / "x.safetensors", "-o", tmp_path / "y.safetensors")
    assert "untrained" in capsys.readouterr().out


def test_a_file_that_does_not_read_back_is_no_file(loras, tmp_path, monkeypatch):
    """The check before "done" catches a writer that spoils a tensor."""
    save = mx.save_safetensors

    def spoil(path, tensors, metadata):
        name = next(iter(tensors))
        save(path, {**tensors, name: tensors[name] * 1.001}, metadata)

    monkeypatch.setattr(formats.mx, "save_safetensors", spoil)
    with pytest.raises(CheckpointError, match="reads back differently"):
        export(loras["lora"], "-o", tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_bad_exports_are_one_line(tmp_path, loras):
    for arguments, says in (
        ((tmp_path / "none",), "no such LoRA"),
        ((tmp_path,), "holds no LoRA"),
        ((loras["dora"], "--format", "comfyui", "-o", tmp_path / "x.safetensors"), "--model"),
        ((loras["lora"], "-o", tmp_path / "x.txt"), "must end in .safetensors"),
        ((loras["lora"], "-o", tmp_path / "x.safetensors", "--model", tmp_path), "not an MLX folder"),
    ):
        with pytest.raises(AceStepError, match=says) as error:
            export(*arguments)
        assert "\n" not in str(error.value)
    code, _, err = run("export", loras["lora"], "--format", "kohya")
    assert code == 2 and "kohya" in err
    assert list(tmp_path.iterdir()) == []


def test_shared_files_do_not_tell_where_home_is(tiny_model, tmp_path):
    model = ModelFolder.open(tiny_model).load("transformer")
    inject(model, SPEC)
    path = write_lora(tmp_path / "x.safetensors", from_model(model, SPEC, base=str(tiny_model)))
    assert str(tiny_model.parent) not in path.read_bytes()[:20000].decode(errors="replace")
    facts = json.loads(mx.load(str(path), return_metadata=True)[1][METADATA_KEY])
    assert facts["base"] == tiny_model.name


@pytest.mark.parametrize(("update", "said"), [(1.07, "107%"), (0.2, "20%"), (0.0123, "1.2%")])
def test_what_rounding_takes_from_a_lora_is_said(update, said, tmp_path):
    for quantised, better in ((True, "an unquantised model"), (False, "a float32 model")):
        report = FuseReport(tmp_path, 1, 0, quantised, {"layer": FuseError(0.0038, 1.0, 0.0038 / update)})
        lines = rounding_lines(report)
        assert f"an error {said} as large as what the LoRA changes" in lines[0]
        assert [line for line in lines if line.startswith("warning: ")] == lines[1:]
        assert len(lines) == (2 if update > 1 else 1) and all(better in line for line in lines[1:])


def test_the_losses_of_several_layers_are_those_of_one_matrix():
    parts = [mx.random.normal((3, n, 5), key=mx.random.key(n)) for n in (2, 7, 4)]
    errors = [FuseError(*(mx.linalg.norm(x).item() for x in part)) for part in parts]
    together = FuseError.together(errors)
    whole = [mx.linalg.norm(x).item() for x in mx.concatenate(parts, axis=1)]
    assert (together.lost, together.size, together.changed) == pytest.approx(tuple(whole))
    assert together.weight == pytest.approx(whole[0] / whole[1])
    assert together.update == pytest.approx(whole[0] / whole[2])


def test_a_lora_that_changes_nothing_is_not_said_to_be_lost(tmp_path):
    report = FuseReport(tmp_path, 2, 0, True, {"a": FuseError(0.1, 9.0, 0.0), "b": FuseError(0.1, 9.0, 1e-9)})
    assert rounding_lines(report) == []
    mixed = FuseReport(tmp_path, 2, 0, True, {"a": FuseError(0.3, 9.0, 0.0), "b": FuseError(0.4, 9.0, 5.0)})
    assert mixed.whole == FuseError(0.5, mixed.whole.size, 5.0) and "10%" in rounding_lines(mixed)[0]


@pytest.mark.slow
def test_a_lora_that_drowns_in_the_rounding_is_a_warning(quantised, tiny_model, loras, tmp_path):
    options = ("--lora", loras["lora"], "--lora-scale", 0.001)
    code, out, err = run("fuse", "--model", quantised, *options, "-o", tmp_path / "rounded")
    assert code == 0 and "warning: rounding costs more than the LoRA changes" in err, out + err
    code, out, err = run("fuse", "--model", tiny_model, *options, "-o", tmp_path / "exact")
    assert code == 0 and "rounding" not in out + err, "float32 has digits enough"


def test_a_file_where_the_new_folder_should_be(tiny_model, loras, tmp_path):
    (tmp_path / "file").touch()
    for place, says in (("file", "it is a file"), ("file/new", "file is a file; choose another folder")):
        with pytest.raises(CheckpointError, match=says):
            fuse(tiny_model, [(loras["lora"], 1.0)], tmp_path / place)


def test_fuse_and_generate_say_which_modules_are_left_out(tiny_model, tmp_path, capsys):
    block = "transformer_blocks.0.cross_attn"
    a, b = mx.ones((2, 128)), mx.ones((128, 2))
    tensors = {f"{block}.{layer}.lora_A.weight": a for layer in ("to_q", "to_add_out")}
    tensors |= {f"{block}.{layer}.lora_B.weight": b for layer in ("to_q", "to_add_out")}
    lora = tmp_path / "x.safetensors"
    mx.save_safetensors(str(lora), tensors)
    short = ("--duration", "1", "--steps", "1", "--output", str(tmp_path / "x.wav"))
    for arguments in (("fuse", "--output", str(tmp_path / "new")), ("generate", "--prompt", "x", *short)):
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--model", str(tiny_model), "--lora", str(lora)])
        assert not caught.value.code
        errors = capsys.readouterr().err
        assert f"1 module left out, because the model never uses them: '{block}.to_add_out'" in errors


@pytest.mark.parametrize("strength", ["1e9", "-101", "nan", "inf"])
def test_a_strength_that_generate_refuses_is_not_fused(
    strength: str, loras: dict[str, Path], tiny_model: Path, tmp_path: Path, capsys
) -> None:
    arguments = ["--model", str(tiny_model), "--lora", str(loras["lora"]), "--lora-scale", strength]
    with pytest.raises(SystemExit) as stop:
        cli.main(["fuse", *arguments, "-o", str(tmp_path / "fused")])
    assert stop.value.code == 1 and "must be " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
