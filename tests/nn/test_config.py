"""What a model's config asks for is compared with its weights before anything is built."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.convert.source import resolve
from acestep_mlx.convert.stream import plan_component
from acestep_mlx.errors import CheckpointError, NewerVersionError
from acestep_mlx.families import family
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1.layouts import FOLDERS
from acestep_mlx.io import safetensors as files

COMPONENTS = family("v1").components
ODD: list[Any] = [
    None, True, "x", "", -1, 0, 2.5, 1e9, 10**9, 131072, 65536, 10**400, float("nan"), [], {}, [[]],
    [10**9], [131072] * 4, [0, 0, 0, 0], [-1], ["x"], [1] * 100_000,
]  # fmt: skip


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The miniature model, whose config.json may be changed; its weights are links."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    shutil.copy(tiny_model / "config.json", folder)
    return folder


def line_of(act: Any) -> str:
    """The one line of the error, or an empty string where the value is one that may be."""
    try:
        act()
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 900
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("component", COMPONENTS)
def test_every_size_with_every_kind_of_nonsense(
    component: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but CheckpointError, and no module of more layers than the weights have is ever begun."""
    path = model / "config.json"
    content = json.loads(path.read_text())
    made = COMPONENTS[component]
    good = asdict(ModelFolder.open(model).component_config(component))
    built: list[Any] = []

    def build(config: Any) -> Any:
        built.append(config)
        for field in config.REPEATED:
            value = getattr(config, field)
            assert (value if isinstance(value, int) else sum(value)) < 1000
        return made.module(config)

    monkeypatch.setitem(COMPONENTS, component, replace(made, module=build))
    header = files.read_header(model / f"{component}.safetensors")
    monkeypatch.setattr("acestep_mlx.families.model_folder.read_header", lambda path: header)
    refused = 0
    for field in good:
        for odd in ODD:
            changed = {**content["components"], component: {**good, field: odd}}
            path.write_text(json.dumps({**content, "components": changed}))
            line = line_of(lambda: ModelFolder.open(model).component_config(component))
            refused += bool(line)
            assert not line or str(model) in line
    assert refused > 0.75 * len(good) * len(ODD) and built


@pytest.mark.parametrize(
    ("component", "field", "value", "why"),
    [
        ("transformer", "num_layers", 100_000, "num_layers asks for 100000 layers, and the weights have"),
        ("transformer", "num_layers", 10**9, "num_layers must be between 1 and 131072, got 1000000000"),
        ("transformer", "lyric_encoder_layers", 5000, "lyric_encoder_layers asks for 5000 layers"),
        ("text_encoder", "num_layers", 5000, "num_layers asks for 5000 layers"),
        ("text_encoder", "relative_attention_max_distance", 10**9, "must be between 2 and 65536"),
        ("text_encoder", "relative_attention_num_buckets", 1, "must be between 4 and 4096"),
        ("text_encoder", "relative_attention_max_distance", 8, "must exceed a quarter of the buckets"),
        ("dcae", "encoder_layers_per_block", [1, 1, 1, 9000], "encoder_layers_per_block asks for 9003"),
        ("vocoder", "depths", [1, 9000], "depths asks for 9001 layers"),
        ("vocoder", "win_length", 4096, "must not exceed n_fft"),
    ],
)
def test_what_it_says(component: str, field: str, value: Any, why: str, model: Path) -> None:
    path = model / "config.json"
    content = json.loads(path.read_text())
    content["components"][component][field] = value
    path.write_text(json.dumps(content))
    folder = ModelFolder.open(model)
    assert why in line_of(lambda: folder.component_config(component))
    assert why in line_of(lambda: folder.load(component))


REPEATED = [
    ("transformer", "num_layers"),
    ("text_encoder", "num_layers"),
    ("vocoder", "depths"),
    ("dcae", "decoder_layers_per_block"),
]


@pytest.mark.parametrize(("component", "field"), REPEATED)
def test_the_same_before_a_conversion(
    component: str, field: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    path = source / FOLDERS.places[component].folder / "config.json"
    content = json.loads(path.read_text())
    content[field] = 100_000 if isinstance(content[field], int) else [100_000] * len(content[field])
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"json: {component} config: {field} asks for"):
        plan_component(resolve(source), component, None, None)


@pytest.mark.parametrize("key", ["source", "components", "fingerprints", "converter_version", "quantization",
                                 "lyric_vocab", "dtype", "format", "fused"])  # fmt: skip
def test_every_key_of_the_folder_with_nonsense(key: str, model: Path) -> None:
    path = model / "config.json"
    content = json.loads(path.read_text())
    for odd in (3, True, "x\ud800", [3], {"source": 3, "bits": "x", "sha256": []}, 10**400):
        path.write_text(json.dumps({**content, key: odd}))
        line = line_of(lambda: ModelFolder.open(model))
        assert str(path) in line, (key, odd)


def test_a_model_of_a_newer_version(model: Path) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({"format": "acestep-mlx", "format_version": 2, "anything": 1}))
    with pytest.raises(NewerVersionError, match="the model was written by a newer version of acestep-mlx"):
        ModelFolder.open(model)


def test_headers_of_far_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"

    def write(n: int) -> None:
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        raw = json.dumps({f"tensor.{i}": entry for i in range(n)}).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw)

    write(10)
    assert len(files.read_header(path).tensors) == 10
    monkeypatch.setattr(files, "MAX_TENSORS", 9)
    with pytest.raises(CheckpointError, match="lists 10 tensors, and 9 are read at most"):
        files.read_header(path)
    monkeypatch.setattr(files, "MAX_HEADER", 500)
    monkeypatch.setattr(files, "parse_json", lambda raw: pytest.fail("it was parsed"))
    with pytest.raises(CheckpointError, match=r"its header has \d+ bytes, and 500 are read at most"):
        files.read_header(path)


def test_a_tensor_of_a_million_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    raw = json.dumps({"a": {"dtype": "F32", "shape": [2**61] * 200_000, "data_offsets": [0, 0]}}).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(CheckpointError, match="'a' has 200000 dimensions"):
        files.read_header(path)
