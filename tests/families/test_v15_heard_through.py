"""A LoRA that is trained on one variant is heard through another: `validation_model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.convert.converter import convert
from acestep_mlx.errors import AceStepError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v15.miniature import write_checkpoint
from acestep_mlx.lora.linear import base_linears
from acestep_mlx.lora.surgery import adapter_modules
from acestep_mlx.report.events import Listeners
from acestep_mlx.training import validation
from acestep_mlx.training.build import build_model
from acestep_mlx.training.preflight import preflight

from ..training import runs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _model(tmp_path_factory.mktemp("turbo"), "turbo", seed=3)


def _model(folder: Path, flavour: str, seed: int = 0) -> Path:
    checkpoint = write_checkpoint(folder / "checkpoint", flavour=flavour, seed=seed)
    return convert(checkpoint, folder / "model", dtype="float32").path


def options(root: Path, model: Path, **others: Any) -> dict[str, Any]:
    clips = {"validation_disable": False, "validation_prompt": "jazz", "model_flavour": "v15-base"}
    return runs.configuration(root, model, "run", **{**clips, **others})


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"base_model_precision": "int8-quanto"}], ids=str)
def test_clips_are_the_other_model_s_with_this_lora(
    kind: dict[str, Any], tiny_model_v15: Path, turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared by what one layer makes of a vector, in float32."""
    heard: list[tuple[Path, mx.array]] = []
    x = mx.random.normal((1, 64), key=mx.random.key(4))
    name = "layers.1.self_attn.q_proj"

    class Pipeline:
        def __init__(self, folder: ModelFolder, **components: Any) -> None:
            self.folder, self.model = folder, components.get("transformer")

        def prepare(self, request: Any) -> Any:
            return type("Conditions", (), {"prompt": mx.zeros(1)})

        def release(self, *names: str) -> None: ...

        def run(self, request: Any, **_: Any) -> np.ndarray:
            layer = dict(self.model.named_modules())[name]
            heard.append((self.folder.path, layer(x)))
            return np.zeros((1, 4, 2), np.float32)

    monkeypatch.setattr(validation, "ACEStepPipeline", Pipeline)
    config = load_config(options(tmp_path, tiny_model_v15, validation_model=str(turbo), **kind))
    model, _ = build_model(config, ModelFolder.open(tiny_model_v15))
    for i, layer in enumerate(adapter_modules(model).values()):
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(i)) * 0.1
    clips = validation.Validation.encoded(config, ModelFolder.open(turbo), tmp_path, borrowed=True)
    clips(model, 1, Listeners())
    assert [path for path, _ in heard] == [turbo, turbo], "without the LoRA, then with it"
    plain = ModelFolder.open(turbo).load("transformer", quantize=config.quantization)
    linear = base_linears(plain)[name]
    assert mx.array_equal(heard[0][1], linear(x))
    trained = adapter_modules(model)[name]
    change = trained.scale * (x @ trained.lora_a @ trained.lora_b)
    if not kind.get("use_dora"):
        assert mx.abs(heard[1][1] - linear(x) - change).max() < 1e-5
    assert mx.abs(heard[1][1] - heard[0][1]).max() > 1e-2
    assert all(layer.training and layer.enabled for layer in adapter_modules(model).values())


def test_it_is_no_mismatch(tiny_model_v15: Path, turbo: Path, tmp_path: Path) -> None:
    config = load_config(options(tmp_path, tiny_model_v15, validation_model=str(turbo)))
    found = preflight(config, lambda text, level: None)
    assert found.model.folder is not None and found.model.folder.path == tiny_model_v15


def test_what_the_lora_does_not_fit_is_one_line(
    tiny_model_v15: Path, tiny_model: Path, tmp_path: Path
) -> None:
    large = _model(tmp_path / "large", "xl-turbo")
    for other, why in (
        (str(tiny_model), "is ACE-Step v1, and ACE-Step 1.5 is trained; name another variant of the same"),
        (str(large), "is of another size than the model that is trained, and its LoRA does not fit"),
        ("./nowhere", "validation_model: there is no model at"),
    ):
        given = options(tmp_path, tiny_model_v15, validation_model=other)
        with pytest.raises(AceStepError, match=why) as error:
            preflight(load_config(given), lambda text, level: None)
        assert "\n" not in str(error.value)
        preflight(load_config({**given, "validation_disable": True}), lambda text, level: None)
