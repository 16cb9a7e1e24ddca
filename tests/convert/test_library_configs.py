"""What other programs write into a config.json: bookkeeping passes, a change of the computation does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.cli import main
from acestep_mlx.convert.converter import convert
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.families.v1.geometry import TINY
from acestep_mlx.families.v1.umt5 import UMT5Config
from acestep_mlx.nn import foreign_config

from ..later import Later
from .test_bad_input import edit_json, source  # noqa: F401

transformers = Later("transformers")

# Whole configs as each version writes them (4.30 knows the model as mT5 only).
WRITTEN = sorted((Path(__file__).parent / "data").glob("umt5_config_*.json"))
SIZES = {k: v for k, v in TINY.text_encoder.items() if k in UMT5Config.__dataclass_fields__}
TEXT_ENCODER, DCAE = Path("umt5-base") / "config.json", Path("music_dcae_f8c8") / "config.json"


def written(path: Path) -> dict[str, Any]:
    return {**json.loads(path.read_text()), **SIZES}


def run(command: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    return ended.value.code


def test_configs_of_four_versions_are_here() -> None:
    assert [path.stem.rpartition("_")[2] for path in WRITTEN] == ["4.30.2", "4.50.3", "5.0.0", "5.24.0"]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_a_config_of_any_version_is_the_same_model(path: Path) -> None:
    assert UMT5Config.from_dict(written(path)) == UMT5Config.from_dict(TINY.text_encoder)


def test_the_installed_library_writes_what_is_understood() -> None:
    theirs = transformers.UMT5Config(**SIZES)
    for content in (theirs.to_dict(), theirs.to_diff_dict()):
        assert UMT5Config.from_dict(content) == UMT5Config.from_dict(TINY.text_encoder)


@pytest.mark.slow
def test_a_whole_conversion_does_not_notice_the_version(source: Path, tmp_path: Path) -> None:  # noqa: F811
    folders = []
    for config in (None, *WRITTEN[::3]):
        if config is not None:
            (source / TEXT_ENCODER).write_text(json.dumps(written(config)))
        convert(source, folder := tmp_path / f"mlx{len(folders)}")
        folders.append(json.loads((folder / "config.json").read_text()))
    assert folders[0]["components"] == folders[1]["components"] == folders[2]["components"]
    assert folders[0]["fingerprints"] == folders[1]["fingerprints"] == folders[2]["fingerprints"]


def test_sizes_under_their_general_names_are_the_same_sizes() -> None:
    general = dict(SIZES)
    for theirs, ours in transformers.UMT5Config.attribute_map.items():
        general[theirs] = general.pop(ours)
    assert UMT5Config.from_dict(general) == UMT5Config.from_dict(SIZES)
    with pytest.raises(CheckpointError, match="hidden_size is 65, but d_model is 64"):
        UMT5Config.from_dict({**SIZES, "hidden_size": 65})


def test_a_size_that_is_left_out_has_the_library_s_default() -> None:
    left_out = UMT5Config.from_dict({"d_model": 64})
    theirs = transformers.UMT5Config()
    assert all(getattr(left_out, key) == getattr(theirs, key) for key in SIZES if key != "d_model")


@pytest.mark.parametrize(
    "change",
    [
        {"scale_decoder_outputs": False, "num_decoder_layers": 99, "decoder_start_token_id": 7},
        {"dropout_rate": 0.5, "id2label": {"0": "x"}, "torch_dtype": "float16", "eos_token_id": [1, 2]},
        {"num_beams": 4, "max_length": 512, "temperature": 0.2, "bad_words_ids": [[1]]},
    ],
    ids=["decoder", "bookkeeping", "generation"],
)
def test_what_the_encoder_does_not_compute_with_may_have_any_value(change: dict[str, Any]) -> None:
    assert UMT5Config.from_dict({**written(WRITTEN[0]), **change}) == UMT5Config.from_dict(SIZES)


@pytest.fixture
def tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed library whose class has one more key, with a default."""
    version, defaults, generation = foreign_config.transformers_defaults("UMT5Config")
    later = {**defaults, "softcap": None, "windows": {0: (1, 2)}}
    monkeypatch.setattr(foreign_config, "transformers_defaults", lambda name: (version, later, generation))


@pytest.mark.usefixtures("tomorrow")
def test_a_key_of_tomorrow_passes_at_the_class_s_default_only() -> None:
    new = {**SIZES, "softcap": None, "windows": {"0": [1, 2]}, "transformers_version": "5.99.0"}
    assert UMT5Config.from_dict(new) == UMT5Config.from_dict(SIZES)
    with pytest.raises(CheckpointError, match=r"softcap is 30\.0, only None is supported"):
        UMT5Config.from_dict({**new, "softcap": 30.0})


@pytest.mark.parametrize("change", [{"pruned_heads": {"1": [0]}}, {"add_cross_attention": True}])
def test_another_value_of_an_old_key_is_refused(change: dict[str, Any]) -> None:
    (key,) = change
    with pytest.raises(CheckpointError, match=rf"{key} is .*, only .* is supported"):
        UMT5Config.from_dict({**written(WRITTEN[0]), **change})


def test_a_key_from_a_newer_library_is_refused_with_both_versions_and_the_way_on(
    source: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit_json(source / TEXT_ENCODER, attention_sinks=4, transformers_version="99.1.0")
    command = ["convert", "--hf-path", str(source), "--mlx-path", str(tmp_path / "mlx")]
    assert run(command) == 1
    error = capsys.readouterr().err
    assert "unknown key 'attention_sinks'" in error and str(TEXT_ENCODER) in error
    assert f"transformers 99.1.0 wrote the file, {transformers.__version__} is installed" in error
    advice = error[error.index("--allow-config-key") :].split()[:2]
    assert run([*command, *advice]) == 0, "the advice works as it stands"
    assert "attention_sinks" not in (tmp_path / "mlx" / "config.json").read_text()


@pytest.mark.parametrize(
    "component", ["ace_step_transformer", "music_dcae_f8c8", "music_vocoder", "umt5-base"]
)
def test_every_component_has_the_flag(source: Path, tmp_path: Path, component: str) -> None:  # noqa: F811
    edit_json(source / component / "config.json", strange=1, stranger={"a": None})
    with pytest.raises(CheckpointError) as error:
        convert(source, tmp_path / "mlx")
    assert "'strange'" in str(error.value)
    assert "--allow-config-key strange --allow-config-key stranger" in str(error.value)
    with pytest.raises(CheckpointError, match="'stranger'"):
        convert(source, tmp_path / "mlx", allow_config_keys=["strange"])
    convert(source, tmp_path / "mlx", allow_config_keys=["strange", "stranger"])


@pytest.mark.parametrize(
    ("key", "message"),
    [("nowhere", "no config.json of .* has this key"), ("num_layers", "the model is built from this key")],
)
def test_a_flag_that_cannot_be_meant_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, key: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"--allow-config-key {key}: {message}"):
        convert(tiny_checkpoint, tmp_path / "mlx", allow_config_keys=[key])
    assert not (tmp_path / "mlx").exists()
