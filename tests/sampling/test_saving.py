"""A finished song is saved, whatever stands in the way; what can be known before is said before."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from acestep_mlx.errors import DataError
from acestep_mlx.io.audio import write_audio
from acestep_mlx.sampling import record as r

from .test_record import SOUND, story

PROJECT = Path(__file__).resolve().parents[2]
SUFFIXES = ("wav", "flac", "mp3", "ogg")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folder asked for, the working directory, home, and the folder of temporary files."""
    folders = {name: tmp_path / name for name in ("asked", "here", "home", "temporary")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.chdir(folders["here"])
    monkeypatch.setenv("HOME", str(folders["home"]))
    monkeypatch.setattr("tempfile.tempdir", str(folders["temporary"]))
    return folders


def full(monkeypatch, *folders, suffix="", name="") -> None:
    """Nothing can be written to these folders (with this suffix, under this name) any more."""
    from acestep_mlx.io import atomic

    original = atomic.write_bytes

    def write(path, data):
        if path.parent in folders and path.name.endswith(suffix) and (not name or path.name == name):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, data)

    monkeypatch.setattr("acestep_mlx.io.audio.write_bytes", write)
    monkeypatch.setattr(r, "write_bytes", write)


def save(path):
    return r.save_song(path, SOUND, story(), sample_rate=44100, facts={"file": path.name})


def test_a_song_is_saved_where_it_was_asked_for(places):
    path = places["asked"] / "a.flac"
    assert save(path) == (path, [])
    assert {p.name for p in places["asked"].iterdir()} == {"a.flac", "a.json"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_that_is_refused_is_replaced_by_another_beside_it(places, monkeypatch, suffix):
    path = places["asked"] / f"a.{suffix}"
    full(monkeypatch, places["asked"], name=path.name)
    saved, problems = save(path)
    assert saved.parent == path.parent and saved.suffix == path.suffix
    assert soundfile.info(saved).frames >= len(SOUND)
    assert problems == [f"{path}: cannot be written: the disk is full; the song is in {saved}"]
    assert r.read_record(saved) == r.read_record(saved.with_suffix(".json")) == story()
    assert json.loads(saved.with_suffix(".json").read_text())["file"] == saved.name


@pytest.mark.parametrize(
    ("gone", "left"),
    [(["asked"], "here"), (["asked", "here"], "home"), (["asked", "here", "home"], "temporary")],
)
def test_a_full_disk_leads_to_another_one(places, monkeypatch, gone, left):
    full(monkeypatch, *(places[name] for name in gone))
    saved, problems = save(places["asked"] / "a.wav")
    assert saved.parent == places[left] and len(problems) == 1
    assert not list(places["asked"].iterdir())


def test_a_format_that_fails_is_replaced_by_wav(places, monkeypatch):
    full(monkeypatch, *places.values(), suffix=".mp3")
    saved, _ = save(places["asked"] / "a.mp3")
    assert saved.parent == places["asked"] and saved.suffix == ".wav"


def test_a_folder_that_vanished_in_the_meantime(places):
    places["asked"].rmdir()
    saved, problems = save(places["asked"] / "a.wav")
    assert saved.parent == places["here"] and "No such file" in problems[0]


def test_a_song_whose_json_cannot_be_written_stays_where_it_is(places, monkeypatch):
    full(monkeypatch, places["asked"], suffix=".json")
    path = places["asked"] / "a.wav"
    saved, problems = save(path)
    assert saved == path and r.read_record(path) == story()
    said = "cannot be written: the disk is full; what made the song is in its tags"
    assert problems == [f"{path.with_suffix('.json')} {said}"]


def test_when_nothing_works_it_is_said(places, monkeypatch):
    full(monkeypatch, *places.values())
    assert save(places["asked"] / "a.wav") == (
        None,
        [f"{places['asked'] / 'a.wav'}: cannot be written: the disk is full, nor anywhere else"],
    )


def test_a_song_that_is_no_sound_is_not_carried_about(places):
    path = places["asked"] / "a.wav"
    saved, problems = r.save_song(path, SOUND * np.nan, story(), sample_rate=44100, facts={})
    assert saved is None and "not finite" in problems[0]
    assert not any(any(folder.iterdir()) for folder in places.values())


# ── said before the work ──────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("name", ["a" * 252 + ".wav", "ä" * 126 + ".wav", "a" * 300 + ".wav"])
def test_a_name_that_is_too_long_is_refused_before_the_work(tmp_path, name):
    with pytest.raises(DataError, match="too long"):
        r.check_writable([tmp_path / name, r.beside(tmp_path / name)], force=False)


def test_a_name_as_long_as_it_may_be_is_written(tmp_path):
    path = tmp_path / ("a" * 250 + ".wav")  # .json beside it has one letter more
    r.check_writable([path, r.beside(path)], force=False)
    assert not list(tmp_path.iterdir()), "nothing is left of the trial"
    assert save(path) == (path, [])


@pytest.mark.parametrize("name", ["notes/a.wav", "notes/more/a.wav"])
def test_a_file_in_the_place_of_a_folder_is_called_so(name, tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(DataError, match="a file is where a folder has to be"):
        r.check_writable([tmp_path / name], force=False)
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_link_to_nothing_is_left_alone(tmp_path):
    link = tmp_path / "a.wav"
    link.symlink_to(tmp_path / "elsewhere.wav")
    r.check_writable([link], force=False)
    assert link.is_symlink() and not (tmp_path / "elsewhere.wav").exists()


def test_too_little_room_is_said_with_the_numbers(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.wav" for i in range(3)]
    usage = type("Usage", (), {"free": 20_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    r.check_writable(paths, force=False, largest=6_000_000)
    with pytest.raises(DataError, match=r"3 songs may take 21\.00 MB, and 20\.00 MB are free"):
        r.check_writable(paths, force=False, largest=7_000_000)


def test_a_limit_on_files_is_said_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1_000_000, resource.RLIM_INFINITY))
    with pytest.raises(DataError, match=r"up to 2\.00 MB.*at most 1\.00 MB.*ulimit -f"):
        r.check_writable([tmp_path / "a.wav"], force=False, largest=2_000_000)


# ── on a disk that really is full ─────────────────────────────────────────────────────────────────────
def test_no_file_that_was_cut_short_looks_finished(tmp_path):
    """libsndfile says nothing when the end of a FLAC, MP3 or Ogg cannot be written."""
    sound = np.random.default_rng(0).standard_normal((22050, 2)).astype(np.float32) * 0.1
    for suffix in SUFFIXES:
        path = tmp_path / f"a.{suffix}"
        write_audio(path, sound, 44100)
        whole = path.read_bytes()
        for missing in (1, 500, len(whole) // 2):
            child = os.fork()
            if child == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) - missing,) * 2)
                try:
                    write_audio(path, -sound, 44100)
                    os._exit(0)
                except DataError as error:
                    os._exit(7 if "ulimit -f" in str(error) else 8)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, (suffix, missing)
            assert path.read_bytes() == whole, "what was there before stays"
        assert {p.name for p in tmp_path.iterdir()} == {path.name}
        path.unlink()


@pytest.mark.slow
def test_generate_says_where_a_song_went_and_writes_the_others(tmp_path, tiny_model):
    code = (
        "import errno, sys\n"
        "from acestep_mlx.io import audio\n"
        "write = audio.write_bytes\n"
        "def refuse(path, data):\n"
        "    if path.name == 'slow-jazz-5.wav':\n"
        "        raise OSError(errno.ENOSPC, 'full')\n"
        "    write(path, data)\n"
        "audio.write_bytes = refuse\n"
        "from acestep_mlx.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    flags = f"generate --model {tiny_model} --duration 1 --steps 2 --batch 2 --seed 5 --plot".split()
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, "--prompt", "Slow jazz"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (other,) = tmp_path.glob("acestep-song-*.wav")
    assert done.stderr.splitlines()[-1] == (
        f"error: slow-jazz-5.wav: cannot be written: the disk is full; the song is in {other.name}"
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(other.name) and second.startswith("slow-jazz-6.wav")
    assert {p.suffix for p in tmp_path.glob("slow-jazz-6.*")} == {".wav", ".json", ".png"}
