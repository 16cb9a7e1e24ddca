"""A family from outside the package: nothing but its own file and a line in the registry."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import acestep_mlx
from acestep_mlx.cli import main
from acestep_mlx.config.read_run import load_config
from acestep_mlx.convert.conversions import ensure_model
from acestep_mlx.convert.converter import convert
from acestep_mlx.convert.source import hub_commit, resolve
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.families import REGISTRY, family
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.lora.full_modules import full_parameters, make_dense
from acestep_mlx.training.settings import full_training

from . import toy
from .toy_checkpoint import ALPHABET, write_checkpoint


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.registered(monkeypatch)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_its_checkpoint_becomes_an_mlx_folder(tmp_path: Path) -> None:
    theirs = write_checkpoint(tmp_path / "checkpoint")
    report = acestep_mlx.convert(tmp_path / "checkpoint", tmp_path / "model")
    assert report.components["transformer"].plan.dropped == {"spare": "nobody uses it"}
    folder = ModelFolder.open(tmp_path / "model")
    assert folder.family is toy.FAMILY is family("toy") and folder.config["family"] == "toy"
    files = {path.name for path in folder.path.iterdir()}
    components = {f"{name}.safetensors" for name in toy.FAMILY.components}
    assert files == components | {"config.json", "alphabet.json"}
    net = folder.load("transformer")
    assert np.array_equal(net.layers[1].weight, theirs["core.blocks.1.weight"])
    assert folder.component_config("letters").letters == 32, "from the tensors' shapes"
    kernel = folder.load("ear").frames.weight
    assert kernel.shape == (4, 16, 2)
    assert mx.allclose(mx.sqrt((kernel * kernel).sum(axis=(1, 2))), mx.ones(4)), "weight norm is folded"
    assert folder.prompt_tokenizer()("ab!c") == [0, 1, 2]
    assert folder.config["alphabet"] == ALPHABET


def test_it_is_quantised_where_it_says_so(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "model", quantize=True, q_bits=8)
    folder = ModelFolder.open(tmp_path / "model")
    net = folder.load("transformer")
    assert isinstance(net.layers[0], nn.QuantizedLinear) and not isinstance(net.enter, nn.QuantizedLinear)
    assert not isinstance(net.leave, nn.QuantizedLinear) or net.leave.weight.shape[0] == 4
    assert not any(name.endswith(".scales") for name in load_file(folder.file("letters")))


def test_training_and_info_find_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ensure_model(checkpoint, cache_dir=tmp_path / "cache")
    assert ModelFolder.open(model).family.name == "toy"
    assert ensure_model(checkpoint, cache_dir=tmp_path / "cache") == model
    with pytest.raises(CheckpointError, match=r"is the PyTorch checkpoint; run `acestep-mlx convert"):
        ModelFolder.open(checkpoint)
    with pytest.raises(SystemExit) as ended:
        main(["info", str(checkpoint / "toy_net")])
    assert ended.value.code == 0 and "give its parent folder" in capsys.readouterr().out


def test_what_is_wrong_with_it_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"alphabeth: Toy is converted without such an option; did you mean 'alph"
    ):
        convert(checkpoint, tmp_path / "model", alphabeth=checkpoint / "alphabet.json")
    (checkpoint / "toy_ear").rename(checkpoint / "elsewhere")
    with pytest.raises(CheckpointError, match="is not an Toy checkpoint: it has no toy_ear"):
        convert(checkpoint, tmp_path / "model")
    (checkpoint / "elsewhere").rename(checkpoint / "toy_ear")
    path = checkpoint / "toy_net" / "model.safetensors"
    tensors = load_file(path)
    save_file({**{n: v for n, v in tensors.items() if n != "letters"}, "more": tensors["letters"]}, path)
    with pytest.raises(CheckpointError, match=r"not toy of nobody: 2 problems: no letters .*tensor 'more'"):
        convert(checkpoint, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_its_repository_has_no_pinned_commit(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(revision=revision, patterns=allow_patterns)
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    notes: list[str] = []
    source = resolve("nobody/toy", progress=lambda advance: notes.append(advance.stage))
    assert source.family.name == "toy" and asked["revision"] is None and "about 0.0 GB" in notes[0]
    assert {"toy_net/*.safetensors", "toy_ear/config.json", "alphabet.json"} <= set(asked["patterns"])
    assert hub_commit("nobody/toy", "f" * 40) == "f" * 40


def test_a_folder_of_a_family_that_is_gone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(checkpoint, tmp_path / "model")
    monkeypatch.delitem(REGISTRY, "toy")
    with pytest.raises(CheckpointError, match=r"family 'toy', and this acestep-mlx knows v1, v15; a newer"):
        ModelFolder.open(tmp_path / "model")


def test_folders_that_name_no_family_are_v1(tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    assert config.pop("family") == "v1"
    for path in tiny_model.iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = ModelFolder.open(tmp_path)
    assert folder.family is family("v1") and folder.load("transformer")


def test_a_family_without_modules_to_train_in_full_has_none(checkpoint: Path, tmp_path: Path) -> None:
    assert full_training(load_config({"model_flavour": "toy"})) is None
    convert(checkpoint, tmp_path / "model")
    net = ModelFolder.open(tmp_path / "model").load("transformer")
    assert not full_parameters(net) and not make_dense(net)
