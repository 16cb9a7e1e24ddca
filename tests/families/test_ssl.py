"""The self-supervised loss of v1: what convert keeps for it, what hears the songs, what a run makes of it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from acestep_mlx.cli import cli
from acestep_mlx.config.read_run import load_config
from acestep_mlx.convert import apart
from acestep_mlx.convert.converter import convert
from acestep_mlx.data.encode import Cache, encode_dataset
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.errors import AceStepError, CheckpointError, ConfigError
from acestep_mlx.families import of_flavour
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.songs import CachedSong, Shape
from acestep_mlx.families.v1 import songs
from acestep_mlx.families.v1.latents import LATENTS
from acestep_mlx.families.v1.miniature import write_checkpoint
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.families.v1.ssl import features, further
from acestep_mlx.families.v1.ssl.alignment import distances, interpolation
from acestep_mlx.families.v1.ssl.encoders import ENCODERS, MERT, MHUBERT, chosen
from acestep_mlx.families.v1.ssl.hubert import open_hubert
from acestep_mlx.families.v1.ssl.projectors import Projectors, Tap
from acestep_mlx.io.safetensors import read_header
from acestep_mlx.report.events import Evaluated, StepDone
from acestep_mlx.training import memory
from acestep_mlx.training.interrupts import StopRequest
from acestep_mlx.training.preflight import preflight
from acestep_mlx.training.rollout import ReflexFlow, RolloutSettings

from ..test_options_reach import QuickCodec
from ..training import runs, tiny
from . import hearing

SECONDS = 3.0


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Nothing compiled, latents that are quickly made, and encoders that hear little at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(songs, "Codec", QuickCodec)
        for name in ENCODERS:  # chunks that hold a song here, and no more
            patch.setitem(ENCODERS, name, replace(ENCODERS[name], chunk=4))
        mx.disable_compile()
        yield
        mx.enable_compile()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs, encoders and caches that runs here share."""
    return tmp_path_factory.mktemp("hearing")


def _config(root: Path, model: Path, name: str, **change: Any) -> dict[str, Any]:
    given = {**hearing.options(root / "encoders"), "max_train_steps": 2, **change}
    return runs.configuration(root, model, name, acestep_lora_target="attn_qkv", **given)


def _without_projectors(model: Path, folder: Path) -> Path:
    """A model folder as version 0.2 wrote it."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("projectors.safetensors"))
    return folder


# ── what convert keeps ────────────────────────────────────────────────────────────────────────────────
def test_projectors_are_kept_as_they_are_and_say_what_they_are_for(
    tiny_model: Path, tiny_checkpoint: Path
) -> None:
    kept = mx.load(str(tiny_model / "projectors.safetensors"))
    (file,) = (tiny_checkpoint / "ace_step_transformer").glob("*.safetensors")
    theirs = {k: v for k, v in mx.load(str(file)).items() if k.startswith("projectors.")}  # type: ignore[union-attr]
    assert kept.keys() == theirs.keys() and len(kept) == 12  # type: ignore[union-attr]
    assert all(mx.array_equal(kept[k], theirs[k].astype(kept[k].dtype)) for k in theirs)  # type: ignore[index,call-overload]
    config = ModelFolder.open(tiny_model).component_config("transformer")
    taps = Projectors.read(tiny_model / "projectors.safetensors", config).taps
    assert taps == {"mert": Tap("mert", 1, 24), "m-hubert": Tap("m-hubert", 1, 16)}


@pytest.mark.slow
def test_quantising_leaves_projectors_alone(tiny_model: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "q", dtype="float32", quantize=True, q_bits=4, q_group_size=32)
    name = "projectors.safetensors"
    assert (tmp_path / "q" / name).read_bytes() == (tiny_model / name).read_bytes()


@pytest.mark.slow
def test_a_folder_that_was_converted_before_gets_them_by_the_command_that_the_error_names(
    root: Path, tiny_model: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    old = _without_projectors(tiny_model, tmp_path / "old")
    content = json.loads((old / "config.json").read_text())
    content["source"]["path_or_repo"] = str(tiny_checkpoint)
    (old / "config.json").write_text(json.dumps(content))
    before = {path.name: path.stat().st_mtime_ns for path in old.iterdir()}
    with pytest.raises(CheckpointError) as error:
        preflight(load_config(_config(root, old, "old")), lambda *said: None)
    command = re.search(r"`acestep-mlx (.*)`", str(error.value))
    assert command is not None
    done = CliRunner().invoke(cli, shlex.split(command[1]))
    assert done.exit_code == 0, done.output
    name = "projectors.safetensors"
    assert (old / name).read_bytes() == (tiny_model / name).read_bytes()
    assert {path.name: path.stat().st_mtime_ns for path in old.iterdir() if path.name != name} == before
    preflight(load_config(_config(root, old, "old")), lambda *said: None)
    assert "lacks nothing" in CliRunner().invoke(cli, shlex.split(command[1])).output


def test_another_checkpoint_adds_nothing(tiny_model: Path, tmp_path: Path) -> None:
    old = _without_projectors(tiny_model, tmp_path / "old")
    write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"is not the checkpoint that .* was converted from"):
        apart.add_missing(tmp_path / "other", old)
    assert not list(old.glob("*projectors*"))


def test_what_is_added_is_whole_or_not_there(
    tiny_model: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _without_projectors(tiny_model, tmp_path / "old")
    before = sorted(path.name for path in old.iterdir())

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apart.SafetensorsWriter, "write", full)
    with pytest.raises(CheckpointError, match="cannot be written"):
        apart.add_missing(tiny_checkpoint, old)
    assert sorted(path.name for path in old.iterdir()) == before


def test_damaged_projectors_are_noticed(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "projectors.safetensors"
    data = bytearray((tiny_model / "projectors.safetensors").read_bytes())
    data[-8] ^= 64
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        Projectors.read(file, ModelFolder.open(tiny_model).component_config("transformer"))


# ── the files of encoders ─────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_pickle_is_refused_with_the_way_on(as_folder: bool, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    path = tmp_path if as_folder else tmp_path / "pytorch_model.bin"
    with pytest.raises(CheckpointError, match=r"is a pickle, which can run code .* python -c"):
        further._opened(path, MERT)


@pytest.mark.slow
def test_the_way_on_from_a_pickle_works(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = hearing.write(tmp_path / "encoder", "mert")
    tensors: Any = mx.load(str(folder / "model.safetensors"))
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}, folder / "pytorch_model.bin")
    expected = open_hubert(folder / "model.safetensors", True).load()(mx.ones((1, 800)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as error:
        further._opened(folder, MERT)
    command = shlex.split(str(error.value).split("first: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=folder)
    assert mx.array_equal(further._opened(folder, MERT).load()(mx.ones((1, 800))), expected)


def test_mert_has_to_be_named(root: Path, tiny_model: Path) -> None:
    config = load_config(_config(root, tiny_model, "unnamed", ace_step_ssl_mert=None))
    with pytest.raises(
        ConfigError, match=r"is a pickle on the hub.*ace_step_ssl_mert.*ace_step_ssl_encoders"
    ):
        preflight(config, lambda *said: None)
    alone = load_config(
        _config(root, tiny_model, "unnamed", ace_step_ssl_mert=None, ace_step_ssl_encoders="mhubert")
    )
    preflight(alone, lambda *said: None)


def test_mhubert_is_downloaded_and_its_licence_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    folder = hearing.write(tmp_path / "encoder", "m-hubert")
    asked: list[str] = []

    def fetched(repository: str, name: str, revision: str | None = None) -> str:
        assert revision is not None and re.fullmatch("[0-9a-f]{40}", revision), "a commit, pinned"
        asked.append(f"{repository}/{name}")
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    said: list[str] = []
    path = further._downloaded(MHUBERT, lambda advance: said.append(advance.stage))
    assert path == folder / "model.safetensors" and asked[-1] == "utter-project/mHuBERT-147/model.safetensors"
    assert "non-commercial" in said[0] and "CC BY-NC-SA 4.0" in said[0]


def test_without_a_network_the_way_on_is_said() -> None:
    with pytest.raises(CheckpointError, match=r"not in the hub's cache.*ace_step_ssl_mhubert"):
        further._downloaded(MHUBERT, lambda advance: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 32}, "gives 32 numbers a frame, and the model compares 24"),
        ({"do_stable_layer_norm": False}, "do_stable_layer_norm is False, not True"),
        ({"feat_extract_norm": "layer"}, "feat_extract_norm is 'layer', not 'group'"),
        ({"num_attention_heads": 7}, "no multiple of 7 heads"),
    ],
)
def test_another_network_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = hearing.write(tmp_path, "mert", **change)
    with pytest.raises(CheckpointError, match=f"ace_step_ssl_mert: .*{message}"):
        further._fitting(further._opened(folder, MERT), MERT, {"mert": Tap("mert", 1, 24)})


@pytest.mark.parametrize("wrong", ["unknown", "missing", "shape", "no hubert", "cut"])
def test_every_tensor_is_accounted_for(wrong: str, tmp_path: Path) -> None:
    file = hearing.write(tmp_path, "mert") / "model.safetensors"
    tensors: Any = dict(mx.load(str(file)))
    layer = "encoder.layers.0.attention.q_proj.weight"
    if wrong == "unknown":
        tensors["encoder.layers.0.gate"] = mx.zeros((2,))
    elif wrong == "missing":
        del tensors[layer]
    elif wrong == "shape":
        tensors[layer] = mx.zeros((24, 23))
    elif wrong == "no hubert":
        tensors = {"weight": mx.zeros((3,))}
    mx.save_safetensors(str(file), tensors)
    if wrong == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"gate|q_proj|not a HuBERT|not a whole safetensors"):
        open_hubert(file, pre_norm=True)


@pytest.mark.parametrize("prefix", ["", "hubert.", "model."])
def test_both_spellings_of_weight_norm_are_read(prefix: str, tmp_path: Path) -> None:
    file = hearing.write(tmp_path, "mert") / "model.safetensors"
    tensors: Any = mx.load(str(file))
    expected = open_hubert(file, True).load()(mx.ones((1, 800)))
    new = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    renamed = {}
    for name, value in tensors.items():
        owner, _, leaf = name.rpartition(".")
        renamed[prefix + (f"{owner}.{new[leaf]}" if leaf in new else name)] = value
    mx.save_safetensors(str(file), renamed)
    assert mx.array_equal(open_hubert(file, True).load()(mx.ones((1, 800))), expected)


# ── features ──────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("encoder", [replace(one, chunk=2) for one in ENCODERS.values()], ids=list(ENCODERS))
def test_rows_have_length_one_and_seconds_are_cut_at_their_frames(encoder: Any, tmp_path: Path) -> None:
    network = open_hubert(
        hearing.write(tmp_path, encoder.name) / "model.safetensors", encoder.pre_norm
    ).load()
    sound = np.random.default_rng(0).standard_normal((48_000 * 5 + 1, 2)).astype(np.float32)
    found = features.features(network, sound, encoder)
    assert len(found) == encoder.length(len(sound))
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    end = len(sound) / 48_000
    parts = [encoder.cut(found, a, b) for a, b in ((0, 1.5), (1.5, 2), (2, 3.1), (3.1, end))]
    assert np.array_equal(np.concatenate(parts), found)
    assert len(encoder.cut(found, 2.5, 3.5)) == pytest.approx(encoder.rate / 320, abs=1)
    assert len(encoder.cut(found, end, end + 1)) == 1


def _cache(root: Path, model: Path, **change: Any) -> tuple[Cache, list[str]]:
    config = load_config(_config(root, model, "cached", **change))
    stages: list[str] = []
    manifest = build_manifest(config)
    folder = ModelFolder.open(model)

    def tell(advance: Any) -> None:
        if advance.done and not advance.done % 1:  # a song is finished
            stages.append(advance.stage.removeprefix("encoding songs with "))

    return encode_dataset(manifest, config, folder, tell), stages


def _files(root: Path, name: str = "cache") -> dict[str, list[Path]]:
    return {one: sorted((root / name).rglob(f"{one}/??/*.cache")) for one in hearing.WIDTHS}


@pytest.mark.slow
def test_features_are_made_once_and_again_for_another_encoder(
    root: Path, tiny_model: Path, tmp_path: Path
) -> None:
    cache, stages = _cache(root, tiny_model)
    assert {"what MERT-v1-330M hears", "what mHuBERT-147 hears"} <= set(stages)
    assert {name: len(paths) for name, paths in _files(root).items()} == {"mert": 3, "m-hubert": 3}
    assert {path for paths in _files(root).values() for path in paths} <= cache.files()
    for sample in cache.samples:
        stored = cache.read(sample, 0)
        for name, encoder in ENCODERS.items():
            array = stored[name]
            assert array is not None and array.dtype == np.float16
            assert array.shape == (encoder.length(round(sample.seconds * 48_000)), hearing.WIDTHS[name])
    assert not [stage for stage in _cache(root, tiny_model)[1] if "hears" in stage]
    other = hearing.write(tmp_path / "other", "mert", seed=1)
    _, stages = _cache(root, tiny_model, ace_step_ssl_mert=str(other))
    assert stages.count("what MERT-v1-330M hears") == 3 and "what mHuBERT-147 hears" not in stages


@pytest.mark.slow
def test_a_killed_run_loses_the_song_in_work_alone(
    root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    encode = features.Features.encode

    def second_is_killed(self: Any, given: Any) -> Any:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(self.encoder.name)
        return encode(self, given)

    change = {"cache_dir": str(root / "killed")}
    monkeypatch.setattr(features.Features, "encode", second_is_killed)
    with pytest.raises(KeyboardInterrupt):
        _cache(root, tiny_model, **change)
    monkeypatch.setattr(features.Features, "encode", encode)
    assert [len(paths) for paths in _files(root, "killed").values()] == [1, 0]
    assert _cache(root, tiny_model, **change)[1].count("what MERT-v1-330M hears") == 2


@pytest.mark.slow
def test_a_song_that_cannot_be_heard_is_left_out_and_named(
    root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, heard = features.Features.encode, []

    def not_finite(self: Any, given: Any) -> Any:
        found = encode(self, given)
        heard.append(self.encoder.name)
        if heard.count("m-hubert") == 2:
            found.arrays["m-hubert"][0] = np.nan
            heard.append("m-hubert")  # not again
        return found

    monkeypatch.setattr(features.Features, "encode", not_finite)
    cache, _ = _cache(root, tiny_model, cache_dir=str(root / "broken"))
    assert len(cache.samples) == 2
    ((name, reason),) = cache.skipped
    assert name not in {sample.id for sample in cache.samples} and "not finite" in reason


@pytest.mark.slow
@pytest.mark.parametrize("how", ["vae_cache_ondemand", "vae_cache_disable"])
def test_songs_are_heard_on_demand_where_latents_are_encoded_so(
    how: str, root: Path, tiny_model: Path
) -> None:
    change = {how: True, "cache_dir": str(root / how)}
    config = load_config(_config(root, tiny_model, how, **change))
    cache = encode_dataset(build_manifest(config), config, ModelFolder.open(tiny_model))
    if how == "vae_cache_ondemand":
        assert not any(_files(root, how).values())
    made = cache.make(cache.samples[0], 0)
    assert len(made["mert"]) == ENCODERS["mert"].length(round(SECONDS * 48_000))
    count = int(how == "vae_cache_ondemand")
    assert [len(paths) for paths in _files(root, how).values()] == [count, count]


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────────
def test_interpolation_is_a_matrix_of_neighbours() -> None:
    rows = np.array(interpolation(5, 8, mx.array([4]), mx.array([6])))[0]
    assert rows.shape == (8, 5) and rows.sum(1) == pytest.approx(1)
    assert rows[:, 4] == pytest.approx(0)  # padding
    assert rows[1] == pytest.approx([0.5, 0.5, 0, 0, 0]) and rows[0] == pytest.approx([1, 0, 0, 0, 0])
    assert np.array(interpolation(7, 7, mx.array([7]), mx.array([7])))[0] == pytest.approx(np.eye(7))


def test_the_distance_is_from_0_to_2_and_finite_for_nothing() -> None:
    x = mx.random.normal((1, 6, 4))
    six = mx.array([6])
    assert distances(x, 3 * x, six, six).item() == pytest.approx(0, abs=1e-6)
    assert distances(x, -x, six, six).item() == pytest.approx(2, abs=1e-6)
    gradient = mx.grad(lambda p: distances(p, x, six, six).sum())(mx.zeros((1, 6, 4)))
    assert mx.all(mx.isfinite(gradient)).item()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_two_songs_of_different_lengths_are_as_each_alone(dtype: mx.Dtype) -> None:
    model, alignment, flow = tiny.adapted(), hearing.alignment(), FlowMatching()
    batch = hearing.heard(tiny.batch(B=2), {"mert": [58, 40], "m-hubert": [37, 60]})

    def losses(some: dict[str, mx.array]) -> Any:
        return alignment(model, some, lambda: flow.losses(model, some, flow.draw(some), dtype))

    together, parts = losses(batch)
    alone = [losses(tiny.rows(batch, b, b + 1)) for b in (0, 1)]
    close = 1e-5 if dtype == mx.float32 else 2e-2
    assert together.tolist() == pytest.approx([one[0].item() for one in alone], rel=close)
    for name, value in parts.items():
        assert value.item() == pytest.approx(np.mean([one[1][name].item() for one in alone]), rel=close)


def test_a_step_in_fp16_is_that_in_float32_but_for_rounding() -> None:
    batch = hearing.heard(tiny.batch(B=2), {"mert": [58, 40], "m-hubert": [37, 60]})
    alignment, results = hearing.alignment(), []
    for dtype in (mx.float32, mx.float16):
        step = tiny.step(tiny.adapted(), compute_dtype=dtype, auxiliary=alignment)
        results.append(step(batch, update=True))
    single, half = results
    assert half.finite.item() and half.loss.item() == pytest.approx(single.loss.item(), rel=1e-2)
    assert half.grad_norm.item() == pytest.approx(single.grad_norm.item(), rel=5e-2)


def test_an_encoder_that_heard_nothing_of_a_song_is_not_counted() -> None:
    model, flow = tiny.adapted(), FlowMatching()
    batch = hearing.heard(tiny.batch(B=2), {"mert": [58, 40], "m-hubert": [37, 0]})
    plain = flow.losses(model, batch, flow.draw(batch), mx.float32)
    total, parts = hearing.alignment(0.5)(
        model, batch, lambda: flow.losses(model, batch, flow.draw(batch), mx.float32)
    )
    added = (total - plain) / 0.5
    first, second = parts["ssl/mert"].item(), parts["ssl/m-hubert"].item()
    assert added[1].item() == pytest.approx(2 * first - (2 * added[0].item() - second), rel=1e-4)


def test_what_a_rollout_leads_to_is_compared_with_the_clean_song() -> None:
    """Both at once: the parts of both are told, and this one's is of the pass with the gradient."""
    batch = hearing.heard(tiny.batch(B=2), {"mert": [58, 40], "m-hubert": [37, 60]})
    settings = RolloutSettings(6, probability=1.0, reflexflow=ReflexFlow())
    alignment, found = hearing.alignment(), []
    for rollout in (None, settings):
        step = tiny.step(tiny.adapted(), auxiliary=alignment, rollout=rollout, compiled=False)
        found.append(step(batch, update=True).parts)
    assert list(found[0]) == ["ssl/mert", "ssl/m-hubert"]
    assert set(found[1]) == {*found[0], "reflexflow/flow", "reflexflow/fc", "reflexflow/adr"}
    for name, value in found[0].items():
        assert value.item() != found[1][name].item()  # of other latents
        assert value.item() == pytest.approx(found[1][name].item(), rel=0.1)


def test_a_part_of_a_song_is_compared_with_what_is_heard_of_it() -> None:
    features = np.arange(MERT.length(48_000 * 20))[:, None].repeat(24, 1).astype(np.float16)
    arrays = {"latents": np.zeros((8, 16, 216), np.float32), "mert": features}
    start, frames = 43, 97
    part = songs.crop(arrays, start, frames)["mert"]
    first, last = (LATENTS.seconds(frame) for frame in (start, start + frames))
    seconds = part[:, 0] / MERT.length(48_000 * 20) * 20  # about, as a chunk loses a frame
    assert seconds[0] == pytest.approx(first, abs=0.03) and seconds[-1] == pytest.approx(last, abs=0.03)
    given = {**arrays, "states": np.zeros((3, 4), np.float32), "ids": np.zeros(2, np.int32)}
    for begin in range(0, 116, 9):
        own = songs.crop(given, begin, 100)
        batch = songs.collate([CachedSong(own, False, False)], Shape(100, 4, 4))
        length = batch["mert_length"][0]
        assert length == len(own["mert"]) <= batch["mert"].shape[1]
        assert np.array_equal(batch["mert"][0, :length], own["mert"])


# ── runs ──────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.slow
def test_a_run_logs_its_parts_and_records_the_licences(root: Path, tiny_model: Path) -> None:
    result, seen = runs.run(_config(root, tiny_model, "run", eval_loss_disable=False, num_eval_images=1))
    first = seen.of(StepDone)[0]
    assert {name for name in first.extra if "/" in name} == {"ssl/mert", "ssl/m-hubert"}
    plain, told = runs.run(
        _config(
            root, tiny_model, "plain", ace_step_ssl_loss_weight=0, eval_loss_disable=False, num_eval_images=1
        )
    )
    flow = told.of(StepDone)[0]
    mean = (first.extra["ssl/mert"] + first.extra["ssl/m-hubert"]) / 2
    assert first.loss == pytest.approx(flow.loss + 0.5 * mean, rel=1e-4) and not flow.extra
    assert seen.of(Evaluated)[0] == told.of(Evaluated)[0]
    assert result.lora is not None and plain.lora is not None and result.report is not None
    facts = [json.loads(read_header(one.lora).metadata["acestep_mlx"]) for one in (result, plain)]  # type: ignore[arg-type]
    assert "licences" not in facts[1]
    assert [line.split(",")[1].strip() for line in facts[0]["licences"]] == [
        f"{one.licence}: non-commercial" for one in ENCODERS.values()
    ]
    assert "Parts of the training loss" in result.report.read_text()
    told_of = CliRunner().invoke(cli, ["info", str(result.lora)]).output
    assert "trained with MERT-v1-330M" in told_of


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_that_was_interrupted_goes_on_bit_for_bit(precision: str, root: Path, tiny_model: Path) -> None:
    change = {
        "max_train_steps": 3, "gradient_accumulation_steps": 2, "train_batch_size": 2,
        "mixed_precision": precision, "base_model_precision": "int8-quanto",
    }  # fmt: skip
    whole, _ = runs.run(_config(root, tiny_model, f"whole-{precision}", **change))
    stop = StopRequest()

    def ask(event: Any) -> None:
        if isinstance(event, StepDone) and event.step == 1:
            stop.request()

    begun = _config(root, tiny_model, f"begun-{precision}", **change)
    assert not runs.run(begun, act=ask, stop=stop)[0].finished
    resumed, _ = runs.run({**begun, "resume_from_checkpoint": "latest"})
    assert whole.checkpoint is not None and resumed.checkpoint is not None
    runs.assert_identical(whole.checkpoint, resumed.checkpoint)


def test_with_weight_0_nothing_is_heard_and_no_projectors_are_needed(
    root: Path, tiny_model: Path, tmp_path: Path
) -> None:
    old = _without_projectors(tiny_model, tmp_path / "old")
    config = _config(root, old, "off", ace_step_ssl_loss_weight=0, cache_dir=str(tmp_path / "cache"))
    preflight(load_config(config), lambda *said: None)
    cache = Cache(build_manifest(load_config(config)), load_config(config), ModelFolder.open(old))
    assert not cache.heard


@pytest.mark.slow
def test_the_dry_run_says_what_it_takes(
    root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for encoder in (MERT, MHUBERT):  # as they are
        monkeypatch.setitem(ENCODERS, encoder.name, encoder)
    file = root / "dry.json"
    file.write_text(json.dumps(_config(root, tiny_model, "dry")))
    said = CliRunner().invoke(cli, ["train", str(file), "--dry-run", "--verbose"])
    assert said.exit_code == 0, said.output
    for text in ("0.5 × the mean distance", "caches grow by 13.80 MB a minute", "2.07 MB for these songs",
                 "non-commercial use, CC BY-NC 4.0", "projectors: ", "self-supervised loss: "):  # fmt: skip
        assert text in said.output, text


def test_the_estimate_counts_projectors_and_what_is_compared() -> None:
    minute = of_flavour("base").memory.load(60.0)
    plain = memory.estimate(load_config({}), minute)
    both = memory.estimate(load_config({"ace_step_ssl_loss_weight": 1}), minute)
    one = memory.estimate(
        load_config({"ace_step_ssl_loss_weight": 1, "ace_step_ssl_encoders": "m-hubert"}), minute
    )
    weights = 2 * (2560 * 5120 + 5120 * 5120) + 5120 * (1024 + 768)
    assert both.parts["projectors"] == pytest.approx(4 * weights)
    assert one.parts["projectors"] < both.parts["projectors"]
    assert 0.1e9 < both.parts["self-supervised loss"] < 1e9
    assert both.total == pytest.approx(
        plain.total + both.parts["projectors"] + both.parts["self-supervised loss"]
    )


@pytest.mark.parametrize(
    ("written", "names"),
    [(None, ["mert", "m-hubert"]), ("mert", ["mert"]), (["m-hubert"], ["m-hubert"]),
     ("mHuBERT-147", ["m-hubert"]), ("m_hubert, MERT", ["mert", "m-hubert"])],
)  # fmt: skip
def test_encoders_are_chosen_by_any_of_their_names(written: Any, names: list[str]) -> None:
    config = load_config({"ace_step_ssl_loss_weight": 1, "ace_step_ssl_encoders": written})
    assert [encoder.name for encoder in chosen(config)] == names


def test_another_encoder_is_none() -> None:
    with pytest.raises(ConfigError, match="'wav2vec' is none of mert, m-hubert"):
        chosen(load_config({"ace_step_ssl_loss_weight": 1, "ace_step_ssl_encoders": "wav2vec"}))


def test_no_15_has_it() -> None:
    with pytest.raises(
        AceStepError, match=r"ace_step_ssl_loss_weight=0.1 is not supported: ACE-Step 1.5 has no"
    ):
        load_config({"model_flavour": "v15-base", "ace_step_ssl_loss_weight": 0.1})
    config = load_config(
        {"model_flavour": "v15-base", "ace_step_ssl_loss_weight": 0, "ace_step_ssl_mert": "x"}
    )
    assert [name for name, _ in config.ignored] == ["ace_step_ssl_mert"]
