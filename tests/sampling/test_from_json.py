"""`generate --from-json`: whatever the JSON holds, a song, or one line that names the place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.cli import main
from acestep_mlx.config.request import Request
from acestep_mlx.errors import ConfigError, DataError, NewerVersionError
from acestep_mlx.sampling.record import RECORD_VERSION, read_record

HUGE = 10**400
ODD: list[Any] = [
    None, True, 3, -1, 2.5, 1e308, HUGE, float("nan"), float("inf"), "", "x", "\ud800", "a\udcffb", "a\0b",
    "x" * 5000, [], [None], ["x"], [HUGE], [2.5], [True], [[]], {}, {"a": 1},
]  # fmt: skip
Refuse = Callable[[Any], str]


@pytest.fixture
def refuse(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """The error of repeating this record with a model that is not there: the last thing to be looked at."""
    monkeypatch.chdir(tmp_path)

    def call(record: Any, *flags: str) -> str:
        Path("song.json").write_text(
            record if isinstance(record, str) else json.dumps({"acestep_mlx": record})
        )
        with pytest.raises(SystemExit) as stop:
            main(["generate", "--from-json", "song.json", *flags])
        out, err = capfd.readouterr()
        assert (
            stop.value.code in (1, 2) and not out and err.startswith("error: ") and len(err.splitlines()) == 1
        )
        assert len(err) < 400
        return err

    return call


def good(**values: Any) -> dict[str, Any]:
    model = {"path": "nowhere", "fingerprints": {}}
    request = {**Request(prompt="jazz", seeds=(1,)).to_dict(), **values}
    return {"request": request, "model": model, "loras": [], "sample_rate": 44100}


@pytest.mark.parametrize("name", [f.name for f in fields(Request)])
def test_every_setting_with_every_kind_of_nonsense(name: str, refuse: Refuse) -> None:
    reached = 0
    for odd in ODD:
        line = refuse(good(**{name: odd}))
        assert name in line or any(why in line for why in ("no such folder", "source", "JSON number")), line
        reached += "no such folder" in line
    assert reached <= 8, "most of these are no value of any setting"


@pytest.mark.parametrize("key", ["request", "model", "loras", "sample_rate", "version", "format_version"])
def test_every_other_part_with_every_kind_of_nonsense(key: str, refuse: Refuse) -> None:
    for odd in ODD:
        refuse({**good(), key: odd})
        refuse({**good(), "model": {"path": odd}})
        refuse({**good(), "model": {"path": "nowhere", "fingerprints": odd}})
        refuse({**good(), "loras": [{"path": odd, "scale": 1}]})
        refuse({**good(), "loras": [{"path": "x", "scale": odd}]})
        refuse({**good(), "loras": [odd]})


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (good(steps=None), "steps must be a whole number, got null"),
        (good(steps=HUGE), "steps must be between 1 and 1000, got a number of many digits"),
        (good(duration=HUGE), "duration must be between 1 and 240 s"),
        (good(prompt="a\ud800"), "prompt must be text in UTF-8"),
        (good(prompt=["jazz"]), "prompt must be text, got"),
        (good(seeds=3), "seeds must be a list, got 3"),
        (good(seeds=[1.5]), "seeds must be a whole number, got 1.5"),
        (good(source="a\0b"), "source must be a path"),
        (good(erg_tag=1), "erg_tag must be true or false"),
        (good(tempo=3), "unknown setting 'tempo'"),
        ({**good(), "sample_rate": 8000}, "sample_rate must be 44100 or 48000"),
        ({**good(), "model": {"path": "x" * 300}}, "model.path must be a path"),
        ({**good(), "loras": [{"path": "x", "scale": HUGE}]}, "loras[0].scale must be between"),
        ({**good(), "loras": [{"scale": 1}]}, "loras[0].path is missing"),
        ('{"acestep_mlx": {"request": {"steps": NaN}}}', "does not say how a song was made"),
        ("[" * 100_000, "does not say how a song was made"),
    ],
)
def test_what_it_says(record: Any, why: str, refuse: Refuse) -> None:
    assert why in refuse(record)


def test_a_record_of_a_newer_version(refuse: Refuse, tmp_path: Path) -> None:
    newer = {**good(anything=[1]), "format_version": RECORD_VERSION + 1}
    assert "song.json: the song's record was written by a newer version of acestep-mlx" in refuse(newer)
    with pytest.raises(NewerVersionError):
        read_record(tmp_path / "song.json")


def test_a_pipe_in_place_of_the_record(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "song.json")
    os.mkfifo(tmp_path / "song.wav")
    with pytest.raises(DataError, match="a named pipe, not a file"):
        read_record(tmp_path / "song.json")
    with pytest.raises(DataError, match="not a file"):
        read_record(tmp_path / "song.wav")


def test_whole_numbers_written_with_a_point_are_whole() -> None:
    request = Request.from_dict({"steps": 3.0, "seeds": [4.0], "oss_steps": [1.0, 2.0]})
    assert request == Request(steps=3, seeds=(4,), oss_steps=(1, 2))
    assert all(type(n) is int for n in (request.steps, *request.seeds, *request.oss_steps))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"task": "extend", "extend_right": 0.01}, "extend_right must be 0 or at least 0.093 s"),
        ({"task": "extend", "extend_right": 5, "extend_left": 0.05}, "extend_left must be 0 or at least"),
        ({"task": "repaint", "repaint_start": 1.0, "repaint_end": 1.05}, "must last at least 0.093 s"),
        (
            {"task": "edit", "edit_prompt": "x", "guidance_scale_text": 2, "guidance_scale_lyric": 2},
            "cannot be used with edit",
        ),
    ],
)
def test_what_cannot_be_done_is_said_at_once(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Request.from_dict(values)


IDLE = [
    ({"task": "repaint"}, "duration", "the length of its source"),
    ({"task": "audio2audio"}, "duration", "the length of its source"),
    ({"task": "extend", "extend_left": 1}, "duration", "plus what is added"),
    ({"task": "edit", "edit_prompt": "x"}, "duration", "the length of its source"),
    ({"task": "edit", "edit_prompt": "x"}, "omega", "edit does not use it"),
    ({"task": "edit", "edit_prompt": "x"}, "erg_tag", "edit does not use it"),
    ({"task": "retake"}, "repaint_end", "retake does not use it"),
    ({}, "variance", "text2music does not use it"),
    ({}, "retake_seeds", "text2music does not use it"),
    ({}, "reference_strength", "text2music does not use it"),
    ({}, "zero_steps", "cfg_star"),
    ({}, "min_guidance_scale", "guidance_decay is 0"),
    ({"guidance_scale": 1}, "negative_prompt", "switches guidance off"),
    ({"guidance_scale_text": 2}, "guidance_scale_text", "both must be above 1"),
    ({"oss_steps": [1, 3]}, "steps", "oss_steps"),
    ({}, "lyrics_language", "there are no lyrics"),
]


@pytest.mark.parametrize(("values", "name", "why"), IDLE)
def test_what_changes_nothing_is_named(values: dict[str, Any], name: str, why: str) -> None:
    assert why in Request.from_dict(values).idle([name, "prompt", "seeds"])[name]


@pytest.mark.parametrize(
    "values",
    [
        {"duration": 10, "steps": 8, "shift": 2, "omega": 3, "erg_tag": False, "negative_prompt": "x"},
        {"task": "retake", "duration": 10, "variance": 0.2, "retake_seeds": [5]},
        {"task": "extend", "extend_right": 5, "variance": 0.2},
        {"guidance": "cfg_star", "zero_steps": 2, "guidance_decay": 0.5, "min_guidance_scale": 2},
        {"guidance_scale_text": 2, "guidance_scale_lyric": 3, "lyrics": "la", "lyrics_language": "en"},
    ],
)
def test_what_is_used_is_not(values: dict[str, Any]) -> None:
    assert Request.from_dict(values).idle(values) == {}


@pytest.mark.parametrize("values", [{"omega": HUGE}, {"prompt": 3}, {"task": "sing"}, {"seeds": []}])
def test_a_setting_that_is_wrong_is_said_with_its_file(refuse: Refuse, values: dict[str, Any]) -> None:
    assert "song.json" in refuse(good(**values))


def test_a_number_of_thousands_of_digits(refuse: Refuse) -> None:
    said = refuse('{"acestep_mlx": {"request": {"steps": ' + "9" * 5000 + "}}}")
    assert "a number of 5000 digits" in said and "sys." not in said


def test_a_byte_order_mark_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "song.json").write_text("\ufeff" + json.dumps({"acestep_mlx": good()}))
    assert read_record(tmp_path / "song.json")["request"]["prompt"] == "jazz"


@pytest.mark.parametrize(("seeds", "retake", "wanted"), [
    (None, None, ((1, 2), (8, 9))), ((5,), None, ((5,), ())), ((5, 6), None, ((5, 6), ())),
    ((5, 6), (3, 4), ((5, 6), (3, 4))), (None, (3, 4), ((1, 2), (3, 4))),
])  # fmt: skip
def test_other_seeds_do_not_keep_the_retake_seeds_of_the_earlier_song(seeds, retake, wanted) -> None:
    from acestep_mlx.cli.generate import _request

    earlier = {"task": "retake", "prompt": "jazz", "seeds": [1, 2], "retake_seeds": [8, 9]}
    made = _request(earlier, {"seeds": seeds, "retake_seeds": retake}, None, "")
    assert (made.seeds, made.retake_seeds) == wanted
