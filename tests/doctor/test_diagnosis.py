"""One screen, a clear verdict, an exit code; and a report that tells nothing of whose machine it is."""

from __future__ import annotations

import getpass
import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from acestep_mlx.cli import main
from acestep_mlx.doctor import diagnosis as room
from acestep_mlx.doctor import selfcheck, speed
from acestep_mlx.doctor.diagnosis import Diagnosis
from acestep_mlx.doctor.machine import Surroundings
from acestep_mlx.doctor.selfcheck import AS_TRAINED, STEP, Check
from acestep_mlx.families import families
from acestep_mlx.families.protocol import Family

from .standin import AROUND, GB, MAC, NO_GPU, checks, diagnosis

README = Path(__file__).resolve().parents[2] / "README.md"
WRONG = Check("v15", "vae", "GPU", 0.31, 1e-3)
GONE = Check("v1", "vocoder", "GPU", float("inf"), 1e-3, "RuntimeError")


def printed(found: Diagnosis) -> str:
    return "\n".join(found.lines())


@pytest.mark.parametrize(
    ("found", "sound", "said"),
    [
        (
            diagnosis(),
            True,
            "the GPU computes rightly, and can train ACE-Step v1 up to 240 s and ACE-Step 1.5",
        ),
        (diagnosis(fits=60), True, "can train ACE-Step v1 up to 60 s and ACE-Step 1.5 up to 60 s"),
        (diagnosis(fits=0), True, "its memory is too small to train either model"),
        (diagnosis(NO_GPU), True, "no GPU that MLX can use: the CPU computes rightly"),
        (
            diagnosis(found=[*checks("CPU", "GPU"), WRONG]),
            False,
            "WRONG: 1 of 18 computations do not give the",
        ),
        (diagnosis(NO_GPU, found=[*checks("CPU"), GONE]), False, "WRONG: 1 of 10 computations"),
    ],
    ids=["a Mac", "a small one", "too small", "no GPU", "wrong", "without an answer"],
)
def test_the_verdict(found: Diagnosis, sound: bool, said: str) -> None:
    assert found.sound == sound and said in found.verdict()
    lines = printed(found).split("\n")
    assert len(lines) <= 25 - sound and max(map(len, lines)) <= 80
    end = re.sub(r"\n +", " ", printed(found).partition("\nverdict: ")[2])
    wanted = found.machine.gpu and sound and any(one.fits for one in found.expected)
    assert end == found.verdict() + ("\nnext: acestep-mlx new FOLDER_WITH_SONGS" if wanted else "")


def test_what_is_wrong_is_named_with_its_number() -> None:
    found = diagnosis(found=[*checks("CPU", "GPU"), WRONG, GONE])
    text = printed(found)
    assert "ACE-Step 1.5  WRONG on GPU: vae (error 3.1e-01, at most 1e-03); right on CPU\n" in text
    assert "ACE-Step v1   WRONG on GPU: vocoder (RuntimeError); right on CPU\n" in text
    assert "MLX           right on GPU: 1 product\n" in text
    assert "v15 vae on the GPU, v1 vocoder on the GPU" in found.verdict()
    assert "ACE-Step v1   right on CPU and GPU: 2 networks, 2 training steps\n" in printed(diagnosis())


@pytest.mark.parametrize(
    ("around", "said"),
    [
        (AROUND, "FFmpeg 8.1.2; disk: 300.00 GB free; network: the hub is found"),
        (
            Surroundings("", ("aac",), 3 * GB, False),
            "no FFmpeg: pip install av; disk: 3.00 GB free (a model and",
        ),
        (
            Surroundings("7.0", ("alac",), None, None),
            "FFmpeg 7.0, without alac; disk: unknown; network: not asked",
        ),
    ],
)
def test_what_is_around(around: Surroundings, said: str) -> None:
    """None of it makes the machine unsound."""
    found = diagnosis(around=around)
    assert said in re.sub(r"\n +", " ", printed(found)) and found.sound


@pytest.mark.parametrize(("limit", "said"), [(None, ""), (0, ""), (60 * GB, "; wired limit: 60.00 GB")])
def test_memory(limit: int | None, said: str) -> None:
    line = printed(diagnosis(MAC._replace(wired_limit=limit))).split("\n")[2]
    assert line == f"memory        64.00 GB, of which a run may take 48.00 GB{said}"


def test_what_does_not_fit_and_what_is_lacking() -> None:
    text = printed(diagnosis(fits=120))
    assert text.count("no room") == 6 and "no room: 17.3 GB" in text
    assert "quantised     affine 4, 8; mxfp4 4; not here: nvfp4 4\n" in text
    assert "no room" not in printed(diagnosis())


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.314, "0.31 s"), (89.0, "89 s"), (95.0, "1.6 min"), (5300.0, "88 min"), (9e4, "25 h")],
)
def test_times(seconds: float, said: str) -> None:
    found = diagnosis()
    found = replace(found, expected=[one._replace(step_seconds=seconds) for one in found.expected])
    assert f"\nv15, 4 bits   {said}, 2.8 GB" in printed(found)


@pytest.mark.parametrize("where", ["a product", "memory"])
def test_a_device_that_cannot_be_measured_is_wrong(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of it is told all the same."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[metal::Device] Unable to load kernel from /Users/somebody/x.metallib")

    monkeypatch.setattr(room, "check_family", lambda one: checks("CPU")[:-1])
    monkeypatch.setattr(speed, {"a product": "_dense", "memory": "_bandwidth"}[where], refuse)
    monkeypatch.setattr(speed, "_seconds", lambda work, patience: 1.0)
    found = room.examine(tmp_path, network=False, say=lambda line: None)
    text = printed(found)
    assert "\nMLX           WRONG on CPU: speed (RuntimeError)\n" in text and "of music" not in text
    assert "ACE-Step v1   right on CPU" in text and "somebody" not in text and not found.sound
    report = found.as_dict()
    assert report["expected"] == [] and report["speed"]["products"] == {}
    json.dumps(report, allow_nan=False)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """(exit code, stdout, whether the network was asked) of the command that finds this."""

    def run(found: Diagnosis, *arguments: str) -> tuple[Any, str, bool]:
        asked: list[bool] = []

        def examine(models: Path, *, network: bool, say: Any) -> Diagnosis:
            asked.append(network)
            say("computing")
            return found

        monkeypatch.setattr(room, "examine", examine)
        with pytest.raises(SystemExit) as end:
            main(["doctor", *arguments])
        return end.value.code, capsys.readouterr().out, asked[0]

    return run


def test_the_exit_code_is_the_verdict(ends: Any) -> None:
    assert ends(diagnosis())[0] == 0 and ends(diagnosis(NO_GPU))[0] == 0
    code, out, _ = ends(diagnosis(found=[WRONG]))
    assert code == 1 and "\nverdict: WRONG" in out
    assert ends(diagnosis(found=[GONE]), "--json")[0] == 1


def test_the_network_is_left_alone_where_nobody_wants_it(ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for offline in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        assert ends(diagnosis())[2] is not offline and ends(diagnosis(), "--no-network")[2] is False


def test_a_report_is_json_and_nothing_else(ends: Any) -> None:
    """What is no number is null."""
    _, out, _ = ends(diagnosis(found=[WRONG, GONE]), "--json")
    report = json.loads(out)
    assert [one["error"] for one in report["checks"]] == [0.31, None]
    assert report["sound"] is False and report["verdict"].startswith("WRONG")
    assert list(report["expected"][0]) == list(room.Expected._fields)


@pytest.mark.slow
@pytest.mark.parametrize("one", list(families()), ids=lambda one: one.name)
def test_a_broken_network_is_named(one: Family, ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them in turn, by numbers of one weight that stand elsewhere."""
    right, broken = selfcheck.build, ""

    def build(of: Family, example: Any) -> Any:
        model = right(of, example)
        if example.component == broken:
            weights = [(k, w) for k, w in tree_flatten(model.parameters()) if k.endswith("weight")]
            path, weight = max(weights, key=lambda pair: pair[1].size)
            model.update(tree_unflatten([(path, mx.roll(weight, 1))]))
        return model

    monkeypatch.setattr(selfcheck, "build", build)
    for broken in one.components:
        found = list(selfcheck.check_family(one))
        wrong = {check.what for check in found if not check.right}
        assert broken in wrong and wrong <= {broken, STEP, AS_TRAINED}
        code, out, _ = ends(diagnosis(found=found))
        words = " ".join(out.split())
        assert code == 1 and f"WRONG on CPU: {broken} (error " in words
        assert f"{one.name} {broken} on the CPU" in words


@pytest.mark.slow
def test_this_machine(tmp_path: Path) -> None:
    """Everything, as the command finds it; and no name of a person, a machine or a folder."""
    said: list[str] = []
    found = room.examine(tmp_path, network=False, say=said.append)
    assert found.sound, [one for one in found.checks if not one.right]
    assert len(said) == 3 and len(list(found.lines())) <= 24
    text = json.dumps(found.as_dict(), allow_nan=False) + printed(found)
    names = [socket.gethostname(), str(Path.home()), str(tmp_path), str(README.parent)]
    names += [getpass.getuser()] if len(getpass.getuser()) > 4 else []
    assert not [name for name in names if name in text]
    assert not re.search(r"(?<![a-z])/[a-zA-Z]+/", text), "a path"


# ── the README ───────────────────────────────────────────────────────────────────────────────────────
def block(after: str) -> str:
    """The first block of code behind these words."""
    return README.read_text(encoding="utf-8").split(after)[1].split("```")[1].partition("\n")[2]


def titles(text: str) -> list[str]:
    """What stands before the numbers of each line."""
    found = [re.split(r"  +|:", line)[0] for line in text.strip("\n").split("\n")]
    return [re.sub(r"[\d.]+$", "", title).rstrip() for title in found]


def test_the_readme_shows_what_is_printed() -> None:
    """The same lines in the same order; theirs is a machine without a GPU."""
    shown = block("`acestep-mlx doctor` says")
    assert titles(shown) == titles(printed(diagnosis(NO_GPU)))


def keys(value: Any) -> Any:
    """Names on every level; of a list its first element's."""
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    if isinstance(value, dict) and not set(value) & {"float32", "mlx", "affine 4"}:  # whose keys are findings
        return {name: keys(one) for name, one in value.items()}
    return None


def test_the_readme_shows_the_report() -> None:
    shown = json.loads(block("`acestep-mlx doctor --json` is for"))
    assert keys(shown) == keys(json.loads(json.dumps(diagnosis(NO_GPU).as_dict())))
