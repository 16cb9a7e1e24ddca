"""The page says whether it is going well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.report.page import write_report

STEP = {"event": "step", "step": 2, "loss": 1.0, "smoothed_loss": 1.0, "learning_rate": 1e-3, "epoch": 0}


def evaluated(step: int, loss: float | None, verdict: str, kind: str) -> dict[str, Any]:
    return {"event": "eval", "step": step, "loss": loss, "bins": {}, "verdict": verdict, "verdict_kind": kind}


EARLY = evaluated(0, 1.0, "Too early to tell.", "early")


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([EARLY], {}, '<p class="verdict early">Too early to tell.</p>'),
        ([EARLY, evaluated(2, 0.9, "Still <learning>.", "learning")], {},
         '<p class="verdict learning">Still &lt;learning&gt;.</p>'),
        ([EARLY, evaluated(2, None, "Unstable: not finite.", "unstable")], {},
         '<p class="verdict unstable">Unstable: not finite.</p>'),
        ([STEP], {"num_eval_images": 0}, ">No evaluation songs (num_eval_images is 0): nothing will say "),
        ([STEP], {"eval_loss_disable": True}, ">No evaluation songs (eval_loss_disable is true): nothing "),
    ],
)  # fmt: skip
def test_the_newest_sentence_is_on_top(
    rows: list[dict[str, Any]], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(tmp_path, load_config(options))
    assert page is not None
    text = page.read_text()
    assert said in text and text.count('<p class="verdict') == 1


def test_without_any_there_is_no_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(STEP) + "\n")
    page = write_report(tmp_path, load_config({}))
    assert page is not None and '<p class="verdict' not in page.read_text()
