"""Whole runs of a LoKr with both models: dry run, training, what it leaves behind, going on from its file."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.cli import main
from acestep_mlx.io.safetensors import read_header
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.report.events import Evaluated, StepDone

from . import runs

pytestmark = pytest.mark.slow


def test_a_whole_run(tiny_run: dict[str, str], tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lokr = {
        "algo": "lokr", "linear_dim": 2, "linear_alpha": 2, "factor": 4, "bypass_mode": True,
        "apply_preset": {"target_module": ["Attention", "Elsewhere"]},
    }  # fmt: skip
    (tmp_path / "lokr.json").write_text(json.dumps(lokr))
    config = runs.configuration(
        tmp_path, "", "run", lora_type="lycoris", lycoris_config="lokr.json", eval_loss_disable=False,
        learning_rate=2e-2, max_train_steps=8, train_batch_size=2, base_model_precision="int8-quanto",
        **tiny_run,
    )  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(SystemExit) as done:
        main(["train", str(path), "--dry-run", "--verbose"])
    said = capsys.readouterr()
    assert done.value.code == 0, said
    assert "LoKr on " in said.err and "Elsewhere is no part of this model" in said.err
    assert "starts at step 0 with a new LoKr" in said.out and "lora_rank: it has no effect" in said.out
    assert "LoKr's products: " in said.out and '"factor": 4' in said.out and "bypass_mode: " in said.out
    result, seen = runs.run(str(path))  # type: ignore[arg-type]
    assert result.finished and np.isfinite([event.loss for event in seen.of(StepDone)]).all()
    assert all(later.loss < first.loss for first, later in pairwise(seen.of(Evaluated)))
    weights = read_lora(result.lora)
    assert weights.is_lokr and weights.is_trained and not weights.unscaled
    assert all(name.startswith("lycoris_") for name in read_header(result.lora).tensors)
    assert all(".lokr_w" in name for name in mx.load(str(result.checkpoint / "adapter.safetensors")))
    with pytest.raises(SystemExit):
        main(["info", str(result.checkpoint)])
    assert 'LoKr: {"algo": "lokr"' in capsys.readouterr().out
    assert "LoKr" in (tmp_path / "run" / "report.html").read_text()

    again = config | {
        "output_dir": str(tmp_path / "again"), "init_lora": str(result.lora), "learning_rate": 0.0,
        "max_train_steps": 1, "lycoris_config": lokr, "lora_format": "comfyui",
    }  # fmt: skip
    after = read_lora(runs.run(again)[0].lora)
    for name, module in weights.modules.items():
        assert mx.abs(module.delta() - after.modules[name].delta()).max().item() < 1e-6
    resumed = config | {"lycoris_config": lokr | {"factor": 2}, "resume_from_checkpoint": "latest"}
    with pytest.raises(Exception, match=r"was made with other settings \(lycoris_config"):
        runs.run(resumed)
