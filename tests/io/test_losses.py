"""What of a song cannot be decoded is counted and named; more than a little is damage."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from acestep_mlx import families
from acestep_mlx.cli.describe import audio_file
from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.request import Request
from acestep_mlx.data.facts import AudioFacts, FactsIndex, FileAudio, examine
from acestep_mlx.data.manifest import build_manifest
from acestep_mlx.errors import DataError
from acestep_mlx.io.audio import probe, read_audio
from acestep_mlx.io.mpeg import mp3_frames
from acestep_mlx.pipeline import ACEStepPipeline

from .test_audio import encode, needs_ffmpeg
from .test_lengths import ONE, RATE, ffmpeg_made, id3, made, mp3, ogg_pages, retimed, song

SAID = r"(\d+) of (\d+) packets \((\d+\.\d\d) s\) could not be decoded, and what follows them comes earlier"


def noise(n: int) -> bytes:
    return np.random.default_rng(1).bytes(n)


def one_frame(data: bytes, first: int = 40, frames: int = 1) -> bytes:
    """An MP3 in which so many frames are overwritten."""
    places = [place for place, _ in mp3_frames(data)]
    start, stop = places[first], places[first + frames]
    return data[:start] + b"\x5a" * (stop - start) + data[stop:]


def of_the_sound(path: Path, part: slice) -> bytes:
    """The file with some of its packets overwritten."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.audio[0]) if p.size]
    place = 0
    for i, packet in enumerate(packets):
        place = data.index(bytes(packet), place)
        if i in range(len(packets))[part]:
            data[place : place + packet.size] = (b"\x5a" if path.suffix == ".aac" else b"\xff") * packet.size
    return bytes(data)


def made_so(suffix: str, folder: Path) -> Path:
    path = folder / f"whole.{suffix}"
    if suffix == "mp3":
        path.write_bytes(mp3())
        return path
    if suffix in ("ogg", "opus"):  # a page for a packet or two
        source = folder / "source.wav"
        source.write_bytes(made("WAV", 48000))
        return ffmpeg_made(source, path, "-page_duration", "20000", "-y")
    return encode(path, song(), RATE)


def damaged(path: Path, part: slice) -> bytes:
    if path.suffix == ".mp3":
        start, stop, _ = part.indices(len(list(mp3_frames(path.read_bytes()))))
        return one_frame(path.read_bytes(), start, stop - start)
    if path.suffix in (".ogg", ".opus"):
        data = bytearray(path.read_bytes())
        for page in [page for page in ogg_pages(bytes(data)) if page.time > 0][part]:
            data[page.end - 3] ^= 1  # the page's checksum is wrong
        return bytes(data)
    return of_the_sound(path, part)


@pytest.mark.slow_cases("ogg opus m4a aac wma mka webm 3gp ac3")
@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mp3", "ogg", "opus", "m4a", "aac", "wma", "mka", "webm", "3gp", "ac3"])
def test_a_little_that_is_lost_is_said_and_much_is_refused(suffix: str, tmp_path: Path) -> None:
    whole = made_so(suffix, tmp_path)
    assert examine(FileAudio(whole)).lost is None and probe(whole).lost == ""
    seconds = probe(whole).duration
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(damaged(whole, slice(40, 41)))
    facts = examine(FileAudio(path))
    assert facts.problem is None and facts.lost is not None
    match = re.match(SAID, facts.lost)
    assert match is not None, facts.lost
    lost, packets, gone = int(match[1]), int(match[2]), float(match[3])
    assert 1 <= lost <= 4 < 60 < packets < 300 and 0 < gone <= 0.1
    # an MP3's padding at the end is left out where its header's count leads
    assert seconds - 0.1 - gone < facts.duration <= seconds + 0.05
    assert probe(path).lost == facts.lost
    assert len(read_audio(path, sample_rate=None)) == round(facts.duration * probe(path).sample_rate)
    path.write_bytes(damaged(whole, slice(40, 60)))
    problem = examine(FileAudio(path)).problem
    assert problem is not None and re.fullmatch(
        r"damaged: \d+ of \d+ packets \(.* s\) could not be .*", problem
    )


def test_what_follows_a_lost_packet_is_all_there(tmp_path: Path) -> None:
    """Earlier by what is said to be lost: the overwritten frame, and one that FFmpeg takes with it."""
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3())
    whole = read_audio(path, sample_rate=None)
    path.write_bytes(one_frame(mp3()))
    sound = read_audio(path, sample_rate=None)
    assert str(examine(FileAudio(path)).lost).startswith("2 of 155 packets (0.05 s)")
    frame = 1152
    assert np.array_equal(sound[: 30 * frame], whole[: 30 * frame])
    assert np.array_equal(sound[60 * frame : 150 * frame], whole[62 * frame : 152 * frame])


# name → bytes in which nothing of the song is lost
GOOD: dict[str, Callable[[], bytes]] = {
    "pictures between joined songs": lambda: (id3(40_000) + mp3()) * 3,
    "zeros between joined songs": lambda: mp3() + bytes(3000) + mp3(),
    "APE and ID3v1 at the end": lambda: mp3() + b"item" * 20
    + b"APETAGEX" + struct.pack("<IIII", 2000, 80 + 32, 1, 0) + bytes(8) + b"TAG" + bytes(125),
    "no Xing header": lambda: mp3(False),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_tags_are_no_loss(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(GOOD[name]())
    facts = examine(FileAudio(path))
    assert (facts.problem, facts.lost) == (None, None)


def test_a_cut_song_before_a_tagged_one_loses_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    """What is cut, and what FFmpeg takes for a part of the tag; nothing of the tag."""
    path.write_bytes(mp3()[:-100] + id3(60_000) + mp3())
    assert str(examine(FileAudio(path)).lost).startswith(("2 of ", "3 of ", "4 of "))


def test_what_stands_behind_the_sound_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3() + noise(20_000))
    facts = examine(FileAudio(path))
    assert facts.problem is None and abs(facts.duration - ONE) < 0.1
    assert re.fullmatch(
        r"(1 of .* earlier by as much; )?[\d,]+ bytes at its end are neither sound nor a tag", str(facts.lost)
    )


@pytest.mark.parametrize("form", ["OGG", "OPUS"])
@pytest.mark.parametrize("pages", [slice(2, 4), slice(0, 1), slice(-2, None)], ids=["middle", "start", "end"])
def test_a_lost_page_of_an_ogg_is_noticed_wherever_it_is(form: str, pages: slice, tmp_path: Path) -> None:
    data = bytearray(made("OGG", 48000, subtype="OPUS") if form == "OPUS" else made("OGG"))
    path = tmp_path / "a.ogg"
    path.write_bytes(data)
    whole = probe(path)
    for page in [page for page in ogg_pages(bytes(data)) if page.time > 0][pages]:
        data[(page.start + page.end) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"damaged: \d+ of \d+ packets \((.*) s\) could not be decoded"
    ) as error:
        probe(path)
    gone = float(str(error.value).partition("(")[2].partition(" s")[0])
    assert 0.1 < gone < whole.duration


def test_an_ogg_of_which_pages_are_missing_is_damaged(tmp_path: Path) -> None:
    data = made("OGG")
    pages = ogg_pages(data)
    path = tmp_path / "a.ogg"
    path.write_bytes(data[: pages[len(pages) // 2].start] + data[pages[len(pages) // 2 + 1].start :])
    with pytest.raises(DataError, match="damaged"):
        probe(path)


def test_an_oggs_times_alone_are_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    path.write_bytes(retimed(made("OGG"), lambda number, time: time + 50_000 * (number > 4)))
    assert examine(FileAudio(path)).lost is None


@pytest.mark.slow_cases("tta wv caf")
@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["flac", "tta", "wv", "caf"])
def test_lossless_sound_is_whole_or_damaged(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    how = ("-c:a", "alac") if suffix == "caf" else ("-c:a", {"wv": "wavpack"}.get(suffix, suffix))
    source = tmp_path / "source.wav"
    source.write_bytes(made("WAV"))
    data = made("FLAC") if suffix == "flac" else ffmpeg_made(source, path, *how).read_bytes()
    for start, bad in (
        (0.5, noise(4000)),
        (0.6, bytes(4000)),
        (0.4, b"\x5a" * (1 if suffix != "caf" else 400)),
    ):
        place = int(start * len(data))
        path.write_bytes(data[:place] + bad + data[place + len(bad) :])
        assert "damaged" in str(examine(FileAudio(path)).problem)


def test_the_reports_name_a_song_of_which_something_is_lost(tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    songs.mkdir()
    (songs / "a.mp3").write_bytes(one_frame(mp3()))
    (songs / "b.mp3").write_bytes(one_frame(mp3(), 40, 40))
    said = r"2 of 155 packets \(0\.05 s\) could not be decoded"
    (line,) = audio_file(songs / "a.mp3")[:1]
    assert re.search(said, line)
    sets = [{"id": "x", "type": "local", "dataset_type": "audio", "instance_data_dir": str(songs)}]
    config = load_config({"data_backend_config": sets, "cache_dir": str(tmp_path / "cache")})
    for _ in range(2):  # decoded; remembered
        report = build_manifest(config).report
        lines = "\n".join(report.lines())
        assert re.search(rf"not decoded everywhere: 1\n    a\.mp3: {said}", lines)
        assert re.search(r"skipped: 1\n    b\.mp3: damaged: 4\d of \d+ packets", lines)
        assert any(
            re.search(rf"1 of 1 song in x cannot be decoded everywhere \(a\.mp3: {said}", text)
            for text, _ in report.remarks()
        )


def test_generate_says_what_of_its_source_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(one_frame(mp3()))
    of_any_model: Any = SimpleNamespace(family=families.default())
    request, said = Request(task="audio2audio", source=str(path)), []
    ACEStepPipeline.read_source(of_any_model, request, said.append)
    assert len(said) == 1 and re.search(r"a\.mp3: 2 of 155 packets", said[0])
    with pytest.warns(UserWarning, match="could not be decoded"):
        ACEStepPipeline.read_source(of_any_model, request)


def test_songs_of_an_index_that_knows_no_losses_are_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(one_frame(mp3()))
    index = tmp_path / "index.json"
    FactsIndex(index).look_up([FileAudio(path)])
    text = index.read_text()
    index.write_text(
        re.sub(r'"version": \d+', '"version": 3', text).replace('"former": null', '"former": 3.5')
    )
    (facts,) = FactsIndex(index).look_up([FileAudio(path)])
    assert facts.lost is not None and facts.former == 3.5
    assert AudioFacts("", 1.0, lost="1 of 2").checksum("x") != AudioFacts("", 1.0).checksum("x")
