"""Conversion: every source form, dtype and quantisation; what is kept, what is written, what it costs."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import acestep_mlx
from acestep_mlx.convert import source as sources
from acestep_mlx.convert import stream
from acestep_mlx.convert.converter import convert
from acestep_mlx.errors import CheckpointError
from acestep_mlx.families import family, released
from acestep_mlx.families.model_folder import MODES, ModelFolder, quantizable
from acestep_mlx.families.v1.miniature import write_checkpoint
from acestep_mlx.io.progress import Advance
from acestep_mlx.io.safetensors import read_header

COMPONENTS = family("v1").components
AFFINE = [(bits, group) for bits in MODES["affine"][0] for group in (32, 64, 128)]


def weights(folder: Path, component: str) -> dict[str, mx.array]:
    loaded = mx.load(str(folder / f"{component}.safetensors"))
    assert isinstance(loaded, dict)
    return loaded


def test_folder_is_self_contained_and_describes_itself(tiny_checkpoint: Path, tmp_path: Path) -> None:
    report = convert(tiny_checkpoint, tmp_path / "model", dtype="float32")
    assert report.path == tmp_path / "model"
    names = {path.name for path in report.path.iterdir()}
    assert names == {f"{c}.safetensors" for c in COMPONENTS} | {
        "config.json", "tokenizer.json", "tokenizer_config.json", "lyric_vocab.json",
        "projectors.safetensors",
    }  # fmt: skip
    config = json.loads((report.path / "config.json").read_text())
    assert config["format"] == "acestep-mlx" and config["format_version"] == 1
    assert config["converter_version"] == acestep_mlx.__version__
    assert config["source"] == {"path_or_repo": str(tiny_checkpoint), "revision": None}
    assert config["dtype"] == "float32" and config["quantization"] is None
    assert set(config["fingerprints"]) == set(config["components"]) == set(COMPONENTS)
    transformer = config["components"]["transformer"]
    assert transformer["lyric_encoder_layers"] == 2 and transformer["lyric_encoder_heads"] == 4
    assert transformer["lyric_encoder_ff"] == 128
    assert not any(key.startswith("_") for part in config["components"].values() for key in part)
    assert list(tmp_path.iterdir()) == [report.path], "nothing else is left beside it"


def test_every_tensor_is_accounted_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    report = convert(tiny_checkpoint, tmp_path / "model")
    for name, part in report.components.items():
        upstream = sources.resolve(tiny_checkpoint).component(name).tensors
        assert set(part.plan.converted) | set(part.plan.dropped) == set(upstream)
        assert not set(part.plan.converted) & set(part.plan.dropped)
        written = set(read_header(report.path / f"{name}.safetensors").tensors)
        assert set(part.plan.converted.values()) == written
    dropped = report.components["transformer"].plan.dropped
    assert len(dropped) == 2 * 8 + 2 * 6
    assert all("add_" in name or name.startswith("projectors.") for name in dropped)


def test_values_are_kept_bit_for_bit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "model", dtype="float32")
    ours = weights(tmp_path / "model", "transformer")
    theirs = load_file(tiny_checkpoint / "ace_step_transformer" / "diffusion_pytorch_model.safetensors")
    for name in ("transformer_blocks.1.attn.to_q.weight", "lyric_embs.weight", "t_block.1.bias"):
        assert np.array_equal(ours[name], theirs[name])
    name = "transformer_blocks.0.ff.inverted_conv.conv.weight"
    assert np.array_equal(ours[name], theirs[name][..., 0])
    name = "transformer_blocks.0.ff.depth_conv.conv.weight"
    assert np.array_equal(ours[name], theirs[name].transpose(0, 2, 1))


@pytest.mark.slow
def test_slices_make_no_difference(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into slices of a few rows, quantised or not, the result is that of whole tensors."""
    from acestep_mlx.io import tensors

    results = []
    for name, chunk in (("whole", 1 << 30), ("slices", 5000)):
        monkeypatch.setattr(tensors.read_rows, "__defaults__", (chunk,))
        convert(tiny_checkpoint, tmp_path / name, quantize=True, q_bits=8)
        results.append(json.loads((tmp_path / name / "config.json").read_text())["fingerprints"])
    assert results[0] == results[1]


def test_shards_and_weight_norm_spellings_give_the_same_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "one")
    write_checkpoint(tmp_path / "source", shards=4)
    convert(tmp_path / "source", tmp_path / "four")
    one, four = (ModelFolder.open(tmp_path / name).fingerprints for name in ("one", "four"))
    assert one == four

    folder = tmp_path / "source" / "music_vocoder" / "diffusion_pytorch_model.safetensors"
    spelt = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for name, value in load_file(folder).items()
    }
    assert "head.conv_post.weight_g" in spelt
    save_file(spelt, folder)
    convert(tmp_path / "source", tmp_path / "old")
    assert ModelFolder.open(tmp_path / "old").fingerprints == one


@pytest.mark.parametrize(("large", "small"), [("F16", "F32"), ("F32", "BF16"), ("BF16", "F32")])
def test_the_own_dtype_is_that_of_most_numbers(large: str, small: str) -> None:
    """Mixed checkpoints keep many small norms in another type than the few matrices that are the model."""
    tensors = {f"norm.{i}": SimpleNamespace(dtype=small, size=10) for i in range(9)}
    tensors |= {f"layer.{i}": SimpleNamespace(dtype=large, size=100) for i in range(2)}
    entries: Any = [SimpleNamespace(sources=(name,)) for name in tensors]
    component: Any = SimpleNamespace(tensors=tensors)
    kinds = {"F16": mx.float16, "F32": mx.float32, "BF16": mx.bfloat16}
    assert stream._own_dtype(component, entries) == kinds[large]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("source_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
def test_dtypes(source_dtype: str, dtype: str | None, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", dtype=source_dtype)
    convert(tmp_path / "source", tmp_path / "model", dtype=dtype)
    folder = ModelFolder.open(tmp_path / "model")
    wanted = getattr(mx, dtype or source_dtype)
    assert folder.dtype == wanted
    for component in COMPONENTS:
        assert {value.dtype for value in weights(folder.path, component).values()} == {wanted}


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(
    ("bits", "group", "mode"),
    [(b, g, "affine") for b, g in AFFINE] + [(None, None, m) for m in ("mxfp4", "nvfp4", "mxfp8")],
)
def test_quantisation(
    bits: int | None, group: int | None, mode: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    convert(tiny_checkpoint, tmp_path / "model", quantize=True, q_bits=bits, q_group_size=group, q_mode=mode)
    folder = ModelFolder.open(tmp_path / "model")
    assert folder.quantization is not None
    bits, group = folder.quantization["bits"], folder.quantization["group_size"]
    full = ModelFolder.open(tmp_path / "model").load("transformer")
    layers = {name: m for name, m in full.named_modules() if isinstance(m, nn.QuantizedLinear)}
    expected = {f"transformer_blocks.{i}.{part}" for i in (0, 1) for part in _block_layers()}
    assert expected <= set(layers) or group == 128
    assert all(m.bits == bits and m.group_size == group and m.mode == mode for m in layers.values())
    for name in ("timestep_embedder.linear_1", "t_block.1", "final_layer.linear", "speaker_embedder"):
        assert not any(layer.startswith(name) for layer in layers)
    assert not any(name.endswith((".scales", ".biases")) for name in weights(folder.path, "dcae"))

    theirs = load_file(tiny_checkpoint / "ace_step_transformer" / "diffusion_pytorch_model.safetensors")
    name = "transformer_blocks.0.attn.to_q"
    layer = layers[name]
    back = mx.dequantize(
        layer.weight, layer.scales, layer.get("biases"), group_size=group, bits=bits, mode=mode
    )
    error = np.linalg.norm(np.array(back.astype(mx.float32)) - theirs[f"{name}.weight"])
    relative = error / np.linalg.norm(theirs[f"{name}.weight"])
    assert relative < {2: 0.6, 3: 0.25, 4: 0.15, 5: 0.06, 6: 0.03, 8: 0.04}[bits]


def _block_layers() -> list[str]:
    attention = [f"{a}.{n}" for a in ("attn", "cross_attn") for n in ("to_q", "to_k", "to_v", "to_out.0")]
    return [*attention, "ff.inverted_conv.conv", "ff.point_conv.conv"]


def test_quantisable_layers_at_the_true_size() -> None:
    """All ten of every block, the lyric encoder's, and nothing that the house keeps in full precision."""
    from acestep_mlx.families.v1.geometry import TRUE

    transformer = COMPONENTS["transformer"]
    model = transformer.module(transformer.config.from_dict(TRUE.transformer))  # lazy: no weight is made
    names = {name for name, layer in model.named_modules() if quantizable(transformer, name, layer, 128)}
    assert {f"transformer_blocks.{i}.{n}" for i in range(24) for n in _block_layers()} <= names
    assert sum(name.startswith("lyric_encoder.") for name in names) == 6 * 7 + 1
    rest = {name.split(".")[0] for name in names}
    assert rest == {"transformer_blocks", "lyric_encoder"}


@pytest.mark.slow
def test_two_conversions_are_identical(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(tiny_checkpoint, tmp_path / name, quantize=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_progress_is_told_bytes_and_notes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    seen: list[Advance] = []
    report = convert(tiny_checkpoint, tmp_path / "model", progress=seen.append)
    steps = [(a.done, a.total) for a in seen if a.total]
    assert {a.unit for a in seen if a.total} == {"bytes"}
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert len({total for _, total in steps}) == 1 and steps[-1][0] == steps[-1][1]
    assert [a.stage for a in seen if not a.total] == report.notes
    assert any("lyric vocabulary: the miniature's own" in note for note in report.notes)


@pytest.mark.slow
def test_the_package_can_be_called(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert acestep_mlx.convert(tiny_checkpoint, tmp_path / "a").path.is_dir()
    from acestep_mlx import convert as again

    assert again(tiny_checkpoint, tmp_path / "b").path.is_dir()


@pytest.mark.slow
def test_memory_stays_small(tmp_path: Path) -> None:
    """A large matrix is converted in less memory than it has; in a process of its own."""
    from dataclasses import replace

    from acestep_mlx.families.v1.geometry import TINY

    wide = {**TINY.text_encoder, "vocab_size": 800_000}  # 205 MB in float32
    write_checkpoint(tmp_path / "source", size=replace(TINY, text_encoder=wide))
    code = (
        "import resource, sys\n"
        "from acestep_mlx.convert.converter import convert\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "convert(sys.argv[1], sys.argv[2], dtype='bfloat16')\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((after - before) * (1 if sys.platform == 'darwin' else 1024) / 1e6)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "source"), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(tmp_path / "source")
    assert float(done.stdout) < 200, f"{done.stdout} MB more than before"


def test_hub_repository_from_the_hubs_cache(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, a repository that was downloaded before is found, and its commit recorded."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--someone--songs"
    shutil.copytree(tiny_checkpoint, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    import huggingface_hub

    real = huggingface_hub.snapshot_download

    def from_cache(name: str, **options: object) -> str:
        return real(name, cache_dir=tmp_path / "hub", local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_cache)
    convert("someone/songs", tmp_path / "model")
    source = ModelFolder.open(tmp_path / "model").config["source"]
    assert source == {"path_or_repo": "someone/songs", "revision": commit}
    with pytest.raises(CheckpointError, match="not in the hub's cache, and HF_HUB_OFFLINE forbids"):
        convert("someone/other", tmp_path / "other")


@pytest.mark.parametrize(
    ("repo", "given", "fetched"),
    [
        (released().repository, None, released().revision),
        (released().repository, "main", "main"),
        ("someone/songs", None, None),
        ("someone/songs", "v2", "v2"),
    ],
)
def test_what_is_fetched_is_pinned_and_nothing_that_can_run(
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    repo: str,
    given: str | None,
    fetched: str | None,
) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(revision=revision, patterns=allow_patterns)
        return str(tiny_checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = sources.resolve(repo, given)
    assert asked["revision"] == fetched
    assert source.revision == tiny_checkpoint.name, "the commit that the hub's cache names is recorded"
    patterns = asked["patterns"]
    data = (".json", ".safetensors")
    if repo != released().repository:  # which may be any family's; the file is read without unpickling
        data += ("silence_latent.pt",)
    assert isinstance(patterns, list) and all(p.endswith(data) for p in patterns)
    if fetched is not None and len(fetched) == 40:
        assert sources.hub_commit(repo, given) == fetched, "without asking the hub"


class Refused(Exception):
    """What the hub's client raises when a server answers with an error."""

    response = SimpleNamespace(status_code=503)


class Unwelcome(Exception):
    """The same for a login that is not valid any more."""

    response = SimpleNamespace(status_code=401)


def caused_by(cause: Exception) -> Exception:
    error = RuntimeError("while fetching 7 files")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (caused_by(Refused()), "the hub answers with status 503; try again later"),
        (caused_by(Unwelcome()), "the hub refuses this login (status 401); `hf auth login` again"),
        (caused_by(OSError(errno.ENOSPC, "No space left")), "the disk of the hub's cache is full; free some"),
        (RuntimeError("IO: No space left on device (os error 28)"), "the disk of the hub's cache is full"),
        (ValueError("no\n" + "server " * 90), "cannot be reached (no server server"),
    ],
)
def test_a_failing_hub_is_one_short_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def failing(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(CheckpointError) as caught:
        sources.resolve("someone/songs")
    line = str(caught.value)
    assert said in line and "\n" not in line and len(line) < 320
    assert ("server …); connect" in line) == isinstance(error, ValueError), "cut between words"
