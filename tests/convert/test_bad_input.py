"""Whatever is wrong with the input: one line, exit code 1, and nothing left that looks finished."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from acestep_mlx.cli import main
from acestep_mlx.convert.converter import SPARE, convert
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.formatting import size
from acestep_mlx.io.safetensors import read_header

TRANSFORMER = Path("ace_step_transformer") / "diffusion_pytorch_model.safetensors"
DCAE = Path("music_dcae_f8c8") / "diffusion_pytorch_model.safetensors"
CONFIG = Path("ace_step_transformer") / "config.json"


@pytest.fixture
def source(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the miniature checkpoint that may be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))


def edit_weights(path: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


def header(path: Path, content: bytes, length: int | None = None, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)


def entry(**changes: object) -> bytes:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return json.dumps({"x": tensor}).encode()


def no_folder(s: Path) -> None:
    shutil.rmtree(s)


def no_component(s: Path) -> None:
    shutil.rmtree(s / "music_vocoder")


def no_weights(s: Path) -> None:
    (s / DCAE).unlink()


def no_config(s: Path) -> None:
    (s / CONFIG).unlink()


def no_tokenizer(s: Path) -> None:
    (s / "umt5-base" / "tokenizer.json").unlink()


def damaged_tokenizer(s: Path) -> None:
    (s / "umt5-base" / "tokenizer.json").write_text('{"version": "1.0"')


def large_tokenizer(s: Path) -> None:
    edit_json(s / "umt5-base" / "config.json", vocab_size=100)
    edit_weights(
        s / "umt5-base" / "model.safetensors",
        lambda t: t.update({"shared.weight": t["shared.weight"][:100].copy()}),
    )


def another_components_weights(s: Path) -> None:
    shutil.copy(s / "music_vocoder" / DCAE.name, s / DCAE)


def another_components_folder(s: Path) -> None:
    shutil.rmtree(s / "music_vocoder")
    shutil.copytree(s / "music_dcae_f8c8", s / "music_vocoder")


def truncated(s: Path) -> None:
    os.truncate(s / TRANSFORMER, (s / TRANSFORMER).stat().st_size - 1000)


def truncated_in_the_header(s: Path) -> None:
    os.truncate(s / TRANSFORMER, 500)


def empty_file(s: Path) -> None:
    os.truncate(s / TRANSFORMER, 0)


def text_file(s: Path) -> None:
    (s / TRANSFORMER).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")


def trailing_bytes(s: Path) -> None:
    with (s / TRANSFORMER).open("ab") as file:
        file.write(b"more")


def giant_header(s: Path) -> None:
    header(s / TRANSFORMER, b"{}", length=2**62)


def header_is_a_list(s: Path) -> None:
    header(s / TRANSFORMER, b"[1, 2]")


def header_is_nested(s: Path) -> None:
    header(s / TRANSFORMER, b"[" * 100_000)


def giant_shape(s: Path) -> None:
    header(s / TRANSFORMER, entry(shape=[2**40, 2**40]), data=bytes(8))


def negative_offsets(s: Path) -> None:
    header(s / TRANSFORMER, entry(data_offsets=[-8, 0]), data=bytes(8))


def offsets_past_the_end(s: Path) -> None:
    header(s / TRANSFORMER, entry(shape=[200], data_offsets=[0, 800]), data=bytes(8))


def strange_entry(s: Path) -> None:
    header(s / TRANSFORMER, json.dumps({"x": 7}).encode())


def strange_dtype(s: Path) -> None:
    header(s / TRANSFORMER, entry(dtype="F8_E4M3", data_offsets=[0, 2]), data=bytes(2))


def whole_numbers(s: Path) -> None:
    edit_weights(s / TRANSFORMER, lambda t: t.update({"t_block.1.bias": np.zeros(6 * 128, np.int32)}))


def wrong_shape(s: Path) -> None:
    edit_weights(s / TRANSFORMER, lambda t: t.update({"t_block.1.bias": np.zeros(7, np.float32)}))


def unknown_tensor(s: Path) -> None:
    edit_weights(s / TRANSFORMER, lambda t: t.update({"t_block.1.biass": np.zeros(7, np.float32)}))


def missing_tensor(s: Path) -> None:
    edit_weights(s / TRANSFORMER, lambda t: t.__delitem__("t_block.1.bias"))


def missing_block(s: Path) -> None:
    edit_json(s / CONFIG, num_layers=3)


def no_lyric_encoder(s: Path) -> None:
    def change(t: dict[str, np.ndarray]) -> None:
        for name in [n for n in t if n.startswith("lyric_encoder.")]:
            del t[name]

    edit_weights(s / TRANSFORMER, change)


def not_a_number(s: Path) -> None:
    edit_weights(s / DCAE, lambda t: t["decoder.conv_out.bias"].fill(np.nan))


def unknown_key(s: Path) -> None:
    edit_json(s / CONFIG, attention_kind="softmax")


def unknown_dcae_key(s: Path) -> None:
    edit_json(s / "music_dcae_f8c8" / "config.json", upsample_block_typ="interpolate")


def config_is_not_json(s: Path) -> None:
    (s / CONFIG).write_text("{")


def config_is_a_list(s: Path) -> None:
    (s / CONFIG).write_text("[]")


def only_pickles(s: Path) -> None:
    (s / DCAE).rename((s / DCAE).with_suffix(".bin"))


def two_sets_of_weights(s: Path) -> None:
    shutil.copy(s / DCAE, s / DCAE.parent / "b.safetensors")
    (s / DCAE).rename(s / DCAE.parent / "a.safetensors")


def index(s: Path, name: str) -> None:
    part = s / TRANSFORMER.parent / "part.safetensors"
    (s / TRANSFORMER).rename(part)
    weight_map = dict.fromkeys(load_file(part), name)
    (s / TRANSFORMER.parent / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )


def index_escapes(s: Path) -> None:
    index(s, "../music_dcae_f8c8/diffusion_pytorch_model.safetensors")


def index_is_absolute(s: Path) -> None:
    index(s, "/etc/passwd")


def index_names_a_pickle(s: Path) -> None:
    index(s, "part.bin")


def index_names_nothing(s: Path) -> None:
    index(s, "other.safetensors")


def index_lacks_a_tensor(s: Path) -> None:
    index(s, "part.safetensors")
    path = s / TRANSFORMER.parent / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    del content["weight_map"]["t_block.1.bias"]
    path.write_text(json.dumps(content))


def index_is_empty(s: Path) -> None:
    index(s, "part.safetensors")
    (s / TRANSFORMER.parent / "model.safetensors.index.json").write_text("{}")


def damaged_vocabulary(s: Path) -> None:
    (s / "lyric_vocab.json").write_text('{"model": 7}')


def other_vocabulary(s: Path) -> None:
    shutil.copy(s / "umt5-base" / "tokenizer.json", s / "lyric_vocab.json")


CASES: list[tuple[Callable[[Path], None], str]] = [
    (no_folder, "no such folder"),
    (no_component, "it has no music_vocoder"),
    (no_weights, "no .safetensors weights"),
    (no_config, "config.json: No such file"),
    (no_tokenizer, "tokenizer.json is missing"),
    (damaged_tokenizer, "tokenizer.json: not a tokenizer"),
    (large_tokenizer, "ids up to"),
    (another_components_weights, "unknown tensor 'backbone.channel_layers.0.0.weight'"),
    (another_components_folder, "music_vocoder/config.json: vocoder config: unknown key"),
    (truncated, "not a whole safetensors file"),
    (truncated_in_the_header, "its header claims"),
    (empty_file, "it has 0 bytes"),
    (text_file, "not a whole safetensors file"),
    (trailing_bytes, "its tensors end at byte"),
    (giant_header, "its header claims 4611686018427387904 bytes"),
    (header_is_a_list, "not a JSON object"),
    (header_is_nested, "not JSON"),
    (giant_shape, "cannot have 8 bytes"),
    (negative_offsets, "entry of 'x' is damaged"),
    (offsets_past_the_end, "its tensors end at byte"),
    (strange_entry, "entry of 'x' is damaged"),
    (strange_dtype, "stored as F8_E4M3"),
    (whole_numbers, "stored as I32"),
    (wrong_shape, "'t_block.1.bias' has shape (7,)"),
    (unknown_tensor, "unknown tensor 't_block.1.biass'; did you mean 't_block.1.bias'?"),
    (missing_tensor, "missing tensor 't_block.1.bias'"),
    (missing_block, "missing tensor 'transformer_blocks.2."),
    (no_lyric_encoder, "it has no lyric encoder"),
    (not_a_number, "'decoder.conv_out.bias' has values that are not finite"),
    (unknown_key, "unknown key 'attention_kind'"),
    (unknown_dcae_key, "'upsample_block_typ'; did you mean 'upsample_block_type'?"),
    (config_is_not_json, "config.json: not JSON"),
    (config_is_a_list, "expected a JSON object"),
    (only_pickles, "a pickle, which can run code"),
    (two_sets_of_weights, "several weight files (a.safetensors, b.safetensors)"),
    (index_escapes, "leads out of the folder"),
    (index_is_absolute, "leads out of the folder"),
    (index_names_a_pickle, "a pickle can run code"),
    (index_names_nothing, "other.safetensors: No such file"),
    (index_lacks_a_tensor, "'t_block.1.bias' of part.safetensors is not in the index"),
    (index_is_empty, "no weight_map"),
    (damaged_vocabulary, "not a lyric vocabulary"),
    (other_vocabulary, "not a lyric vocabulary for this model"),
]


@pytest.mark.parametrize(("damage", "message"), CASES, ids=[case[0].__name__ for case in CASES])
def test_one_line_and_nothing_left(
    damage: Callable[[Path], None],
    message: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(source)
    out = tmp_path / "out" / "model"
    with pytest.raises(SystemExit) as caught:
        main(["convert", "--hf-path", str(source), "--mlx-path", str(out)])
    assert caught.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], lines
    assert not out.exists() and not list(out.parent.glob(".*partial*") if out.parent.exists() else [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize": True, "q_bits": 7}, "q_bits must be 2, 3, 4, 5, 6, 8"),
        ({"quantize": True, "q_bits": -1}, "q_bits must be"),
        ({"quantize": True, "q_group_size": 48}, "q_group_size must be 32, 64, 128"),
        ({"quantize": True, "q_mode": "afine"}, "did you mean 'affine'"),
        ({"quantize": True, "q_mode": "mxfp4", "q_bits": 8}, "q_bits must be 4 with q_mode mxfp4"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"lyric_vocab": "/nowhere/vocab.json"}, "/nowhere/vocab.json: No such file"),
        ({"revision": "main"}, "--revision main is for hub repositories"),
    ],
)
def test_settings(changes: dict[str, object], message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        convert(tiny_checkpoint, tmp_path / "model", **changes)  # type: ignore[arg-type]
    assert message in str(caught.value) and not (tmp_path / "model").exists()


def test_float16_overflow_is_named(source: Path, tmp_path: Path) -> None:
    edit_weights(source / DCAE, lambda t: t["decoder.conv_out.bias"].fill(1e6))
    with pytest.raises(
        CheckpointError, match=r"'decoder\.conv_out\.bias' has values that F16 cannot hold; use"
    ):
        convert(source, tmp_path / "model", dtype="float16")
    assert not (tmp_path / "model").exists()
    convert(source, tmp_path / "model", dtype="bfloat16")


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_damaged_weights_are_not_said_to_need_another_dtype(
    dtype: str | None, source: Path, tmp_path: Path
) -> None:
    not_a_number(source)
    with pytest.raises(CheckpointError, match="not finite; download the file again") as caught:
        convert(source, tmp_path / "model", dtype=dtype)
    assert "--dtype" not in str(caught.value)


def test_an_existing_folder_is_not_touched(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    convert(tiny_checkpoint, tmp_path / "model")  # empty is fine
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    with pytest.raises(CheckpointError, match="exists already"):
        convert(tiny_checkpoint, tmp_path / "model")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    with pytest.raises(CheckpointError, match="is an MLX folder already"):
        convert(tmp_path / "model", tmp_path / "other")


def test_one_component_is_not_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="give its parent folder"):
        convert(tiny_checkpoint / "umt5-base", tmp_path / "model")
    with pytest.raises(CheckpointError, match="is a file"):
        convert(tiny_checkpoint / TRANSFORMER, tmp_path / "model")


def test_too_little_space_is_seen_first(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"[0-9.]+ MB needed, 10\.00 MB free"):
        convert(tiny_checkpoint, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "float32"}, {"dtype": "bfloat16", "quantize": True}], ids=str
)
def test_the_space_that_is_asked_for_is_what_is_written(
    options: dict[str, object], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one byte less: a disk that is full in the middle of a conversion is known before it."""
    free, usage = 10**12, shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    first = convert(tiny_checkpoint, tmp_path / "first", **options)
    headers = [read_header(path) for path in first.path.glob("*.safetensors")]
    written = sum(info.stop - info.start for header in headers for info in header.tensors.values())
    free = written + SPARE - 1
    with pytest.raises(CheckpointError, match=f"{size(written + SPARE)} needed"):
        convert(tiny_checkpoint, tmp_path / "second", **options)
    free += 1
    assert convert(tiny_checkpoint, tmp_path / "second", **options).path.is_dir()


def run(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_full_disk(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The write itself fails half-way (a limit on the size of files stands in for the disk's)."""
    code = (
        "import resource, sys\n"
        "from acestep_mlx.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "main(['convert', '--hf-path', sys.argv[1], '--mlx-path', sys.argv[2]])\n"
    )
    done = run(code, tiny_checkpoint, tmp_path / "out" / "model")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "the disk is full" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "out").iterdir()) == []


KILLED = """
import os, signal, sys
from acestep_mlx.convert.converter import convert
share = float(sys.argv[3])
def progress(advance):
    if advance.total and advance.done >= share * advance.total:
        os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], progress=progress)
"""


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("share", ["0.01", "0.5", "1.0"])
def test_kill_9_never_looks_finished(share: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "model"
    done = run(KILLED, tiny_checkpoint, out, Path(share))
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    (left,) = out.parent.iterdir()
    assert not (left / "config.json").exists()
    report = convert(tiny_checkpoint, out)  # the next run clears up and succeeds
    assert any("left by a run that was killed" in note for note in report.notes)
    assert list(out.parent.iterdir()) == [out]


def test_a_running_conversion_is_left_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from acestep_mlx.io.new_folder import new_folder

    with (
        pytest.raises(CheckpointError, match="another run made it"),
        new_folder(tmp_path / "model", needed=0) as first,
    ):
        (first / "work").write_text("in progress")
        with new_folder(tmp_path / "model", needed=0) as second:
            assert (first / "work").is_file() and second != first
            (second / "work").write_text("done")
    assert (tmp_path / "model" / "work").read_text() == "done"
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]
