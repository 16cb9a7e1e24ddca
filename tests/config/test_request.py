"""Requests that make no sense are refused in one line that says what would."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.request import MAX_SEED, Request
from acestep_mlx.errors import AceStepError, ConfigError, DataError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"duration": 0}, "duration must be between 1 and 240 s, got 0"),
        ({"duration": 1e9}, "between 1 and 240 s"),
        ({"duration": float("nan")}, "got nan"),
        ({"duration": "long"}, "duration must be a number"),
        ({"guidance_scale": float("inf")}, "guidance_scale must be between"),
        ({"guidance_scale": float("nan")}, "got nan"),
        ({"scheduler": "eular"}, "did you mean 'euler'"),
        ({"guidance": "cgf"}, "one of apg, cfg, cfg_star"),
        ({"task": "remix"}, "text2music"),
        ({"steps": 0}, "steps must be between 1 and 1000"),
        ({"steps": 2.5}, "whole number"),
        ({"seeds": ()}, "at least one"),
        ({"seeds": (-1,)}, "between 0 and"),
        ({"seeds": (1, 2), "retake_seeds": (3,)}, r"as many as seeds \(2\), got 1"),
        ({"oss_steps": (5, 2)}, "rising"),
        ({"prompt": 3}, "prompt must be text"),
        ({"erg_tag": 1}, "true or false"),
        ({"task": "extend"}, "extend_left or extend_right"),
        ({"task": "edit"}, "edit_prompt or edit_lyrics"),
        ({"task": "repaint", "repaint_start": 3.0, "repaint_end": 2.0}, "repaint_end must lie after"),
        ({"edit_begin": 0.8, "edit_end": 0.2}, "edit_begin"),
        ({"task": "audio2audio", "oss_steps": (1, 2)}, "cannot be used"),
    ],
)
def test_nonsense(values: dict[str, Any], words: str) -> None:
    with pytest.raises(AceStepError, match=words) as caught:
        Request.from_dict(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [(3, 3), (1, 2, 2), (5, 4), (1, 3, 2)])
def test_steps_that_do_not_rise_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="rising step numbers"):
        Request(oss_steps=steps)


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'guidance_scale'"):
        Request.from_dict({"guidance_scal": 3})


def test_survives_json() -> None:
    request = Request(
        prompt="Ü", lyrics="a\nb", seeds=(1, 2), oss_steps=(1, 5), repaint_end=3.0, task="retake"
    )
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_one_song_of_several() -> None:
    request = Request(seeds=(7, MAX_SEED))
    assert request.other_seeds == (8, 0)
    assert request.for_seed(1) == replace(request, seeds=(MAX_SEED,), retake_seeds=(0,))
    assert Request(task="extend", extend_left=1.0).change == 1.0 and request.change == 0.5


def test_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="edit needs a source"):
        Request(task="edit", edit_prompt="x").check_source()
    with pytest.raises(DataError, match="no audio file"):
        Request(task="repaint", source=str(tmp_path / "no.wav")).check_source()
    with pytest.raises(ConfigError, match="takes no source"):
        Request(source="x.wav").check_source()


def test_imports_nothing_heavy() -> None:
    code = "import sys, acestep_mlx.cli.generate; print({'mlx', 'numpy'} & set(sys.modules) or 'light')"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "light"
