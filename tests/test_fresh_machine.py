"""What a fresh machine is given: locked versions, make targets, and no secrets in what is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from acestep_mlx.cli import main
from acestep_mlx.config.read_run import load_config
from acestep_mlx.families.v1.lyrics.normalise import japanese
from acestep_mlx.formatting import brief, without_secrets

ROOT = Path(__file__).parents[1]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
TOKEN = "hf_" + "aB3" * 12


def test_the_lock_holds_versions_and_markers_only() -> None:
    for line in CONSTRAINTS:
        requirement = Requirement(line)
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.]*", str(requirement.specifier)), line
        assert requirement.url is None and not requirement.extras, line


def test_every_direct_requirement_is_locked_for_every_python() -> None:
    locked: dict[str, list[Requirement]] = {}
    for line in CONSTRAINTS:
        locked.setdefault(canonicalize_name(Requirement(line).name), []).append(Requirement(line))
    for text in requires("acestep-mlx") or []:
        wanted = Requirement(text)
        entries = locked[canonicalize_name(wanted.name)]
        for minor in range(10, 15):
            for system, machine in (("darwin", "arm64"), ("linux", "x86_64")):
                here = {
                    "python_version": f"3.{minor}",
                    "python_full_version": f"3.{minor}.1",
                    "sys_platform": system,
                    "platform_machine": machine,
                    "extra": "",
                }
                if wanted.marker and not any(
                    wanted.marker.evaluate({**here, "extra": extra}) for extra in ("", "cpu", "test")
                ):
                    continue
                chosen = [r for r in entries if r.marker is None or r.marker.evaluate(here)]
                assert len(chosen) == 1, (text, here)
                (version,) = chosen[0].specifier
                assert wanted.specifier.contains(version.version), (text, version)


def test_make_installs_the_lock_and_the_advised_romaniser() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert makefile.count("$(PIP) $(LOCKED)") == 3
    assert japanese.INSTALL.split()[-1] in makefile


def test_workflows_call_make_targets_only() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflows = list((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    for path in workflows:
        for command in re.findall(r"run: (.+)", path.read_text()):
            assert re.fullmatch(r"make ([a-z-]+)", command) and command[5:] in targets, command


HEAVY = {
    "transformers",
    "librosa",
    "torch",
    "datasets",
    "scipy",
    "numba",
    "spacy",
    "wandb",
    "tensorboard",
    "mlx_lm",
}


@pytest.mark.parametrize(
    "module", ["acestep_mlx", "acestep_mlx.cli", "acestep_mlx.training.run", "acestep_mlx.data.encode"]
)
def test_imports_are_light_and_silent(module: str) -> None:
    code = f"import sys, {module}; print(*{HEAVY!r} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not ran.stdout.split() and not ran.stderr


def test_reading_a_config_with_transformers_says_nothing_about_pytorch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from acestep_mlx.nn.foreign_config import transformers_defaults as t; t('UMT5Config')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout == ran.stderr == ""


def test_telemetry_is_off_unless_the_user_says_otherwise() -> None:
    code = "import acestep_mlx; from huggingface_hub import constants as c; print(c.HF_HUB_DISABLE_TELEMETRY)"
    environment = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k and k != "HF_HUB_OFFLINE"}
    for given, expected in (({}, "True"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "False")):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment | given,
            check=True,
        )
        assert ran.stdout.strip() == expected


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"401 for {TOKEN}: denied",
        f"https://user:{TOKEN}@example.org/x",
        "https://user:pass@example.org",
    ],
)
def test_tokens_are_made_unreadable(text: str) -> None:
    for shown in (without_secrets(text), brief(text), str(without_secrets({"a": [text, {"b": text}]}))):
        assert TOKEN not in shown and "pass@" not in shown and "…" in shown


def test_no_token_in_config_copies_or_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {
        "model_family": "ace_step",
        "pretrained_model_name_or_path": f"https://me:{TOKEN}@example.org/model",
        "tracker_run_name": TOKEN,
        "webhook_config": {"url": f"https://example.org/{TOKEN}"},
        "hub_model_id": TOKEN,
        "max_train_steps": 1,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    assert TOKEN not in json.dumps(load_config(str(path)).to_dict())
    (tmp_path / "multidatabackend.json").write_text("[]")
    with pytest.raises(SystemExit):
        main(["train", str(path), "--dry-run"])
    shown = capsys.readouterr()
    assert TOKEN not in shown.out + shown.err
