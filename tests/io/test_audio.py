"""Reading, resampling and writing of audio files, and what is refused."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from acestep_mlx.cli.describe import audio_file
from acestep_mlx.errors import DataError
from acestep_mlx.io import audio, ffmpeg
from acestep_mlx.io.audio import is_silent, log_mel, mel_filters, probe, read_audio, resample, write_audio

RATES = (22050, 44100, 48000, 96000)
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the songs are made by FFmpeg")


def tone(seconds: float, rate: int, channels: int = 2, hz: float = 440.0) -> np.ndarray:
    """The tone in every channel but the low-frequency one of 5.1."""
    t = np.arange(round(seconds * rate)) / rate
    x = np.repeat(0.4 * np.sin(2 * np.pi * hz * t)[:, None], channels, axis=1).astype(np.float32)
    if channels == 6:
        x[:, 3] = 0
    return x


def pitch(x: np.ndarray, rate: int = 44100) -> float:
    """The loudest frequency in Hz, by parabolic interpolation of the windowed spectrum."""
    spectrum = np.log(np.abs(np.fft.rfft(x * np.hanning(len(x)))) + 1e-12)
    k = int(spectrum.argmax())
    a, b, c = spectrum[k - 1 : k + 2]
    return (k + 0.5 * (a - c) / (a - 2 * b + c)) * rate / len(x)


def encode(path: Path, x: np.ndarray, rate: int) -> Path:
    """`x` as a file of any format, by way of FFmpeg where libsndfile cannot write it."""
    if path.suffix in (".wav", ".flac"):
        soundfile.write(path, x, rate)
        return path
    source = path.with_name(path.name + ".source.wav")
    soundfile.write(source, x, rate)
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-i", str(source), f"file:{path}"], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"FFmpeg here cannot write this: {done.stderr.decode()[-200:]}")
    return path


@pytest.mark.slow_after(15)
@needs_ffmpeg
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "m4a"])
def test_a_tone_keeps_its_pitch(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    if suffix == "mp3" and (rate > 48000 or channels > 2):
        pytest.skip("mp3 does not have it")
    path = encode(tmp_path / f"a.{suffix}", tone(1.0, rate, channels), rate)
    info = probe(path)
    assert (info.sample_rate, info.channels) == (rate, channels)
    x = read_audio(path)
    assert x.dtype == np.float32 and x.shape[1] == 2
    assert abs(len(x) / 44100 - 1.0) < 0.1  # encoders pad
    for side in x.T:
        assert abs(pitch(side[2048:-4096]) - 440.0) < 0.2
        assert abs(np.abs(side[4096:-8192]).max() - 0.4) < 0.04


def test_lossless_is_exact(tmp_path: Path) -> None:
    x = tone(0.2, 44100)
    x[:, 1] *= -0.5
    for suffix in ("wav", "flac"):
        path = tmp_path / f"a.{suffix}"
        write_audio(path, x, 44100)
        assert np.abs(read_audio(path) - x).max() <= 1 / 32768
    assert read_audio(path, channels=1).shape == (8820, 1)
    assert np.allclose(read_audio(path, channels=1)[:, 0], x.mean(axis=1), atol=1 / 32768)
    assert len(read_audio(path, sample_rate=22050)) == 4410
    assert len(read_audio(path, sample_rate=None)) == 8820


def test_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    write_audio(path, tone(2.0, 44100), 44100)
    whole = read_audio(path)
    part = read_audio(path, start=0.5, duration=1.0)
    assert np.array_equal(part, whole[22050 : 22050 + 44100])
    assert len(read_audio(path, start=1.5)) == 22050
    assert len(read_audio(path, start=1.5, duration=10)) == 22050
    with pytest.raises(DataError, match=r"lasts only 2\.00 s"):
        read_audio(path, start=2.0)


@needs_ffmpeg
def test_a_part_through_ffmpeg(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", tone(2.0, 48000), 48000)
    assert probe(path).decoder == "ffmpeg"
    part = read_audio(path, start=0.5, duration=1.0, sample_rate=None)
    assert len(part) == 48000
    assert abs(pitch(part[:, 0], 48000) - 440.0) < 0.2


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["wma", "opus", "aac", "caf", "aiff"])
def test_other_formats(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"a.{suffix}", tone(1.0, 48000), 48000)
    assert abs(pitch(read_audio(path)[4096:-4096, 0]) - 440.0) < 0.2


ENCODED = {
    "wv": (), "tta": (), "mp2": (), "ac3": (), "eac3": (), "asf": (), "wmv": (), "mov": (), "avi": (),
    "mkv": (), "3gp": ("-c:a", "aac"), "flv": ("-ar", "44100"), "mpg": (), "m2ts": (),
    "dts": ("-strict", "-2"),
    "alac": ("-f", "ipod", "-c:a", "alac"), "webm": (), "spx": ("-f", "ogg", "-c:a", "flac"),
    "bwf": ("-f", "wav"), "wave": ("-f", "wav"), "snd": ("-f", "au"),
}  # fmt: skip


@pytest.mark.slow_after(3)
@needs_ffmpeg
@pytest.mark.parametrize("suffix", ENCODED)
def test_what_ffmpeg_reads_is_a_song(suffix: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "plain.wav", tone(1.0, 48000), 48000)
    path = tmp_path / f"a.{suffix}"
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "plain.wav"), *ENCODED[suffix], str(path)]
    subprocess.run(command, check=True)
    assert path.suffix in audio.SUFFIXES
    assert abs(pitch(read_audio(path)[4096:-4096, 0]) - 440.0) < 0.2
    assert abs(probe(path).duration - 1.0) < 0.1 and f"{suffix}: " in audio_file(path)[0]


@pytest.mark.slow_after(3)
@needs_ffmpeg
@pytest.mark.parametrize("suffix", ffmpeg.SUFFIXES)
def test_rubbish_of_every_format_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    for rubbish in (b"x" * 4000, b"<html>" + b" music" * 1000, bytes(range(256)) * 64):
        path.write_bytes(rubbish)
        with pytest.raises(DataError, match=rf"a\{suffix}: "):
            read_audio(path)


@needs_ffmpeg
@pytest.mark.parametrize("name", ["random", "text", "no channels"])
def test_the_reason_says_what_it_is_not(name: str, tmp_path: Path) -> None:
    """No rate of 0 Hz, no place in FFmpeg's memory, which is another one each time."""
    path = tmp_path / "a.mp3"
    random = np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes()
    path.write_bytes({"random": random, "text": b"<html>" * 900, "no channels": riff(100, channels=0)}[name])
    with pytest.raises(DataError) as caught:
        probe(path)
    assert " @ 0x" not in str(caught.value) and " 0 Hz" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ") and not str(caught.value).endswith("Invalid argument")


@pytest.mark.slow_after(4)
@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mka", "webm", "mkv", "mov"])
@pytest.mark.parametrize("how", ["late", "beside longer pictures", "with a cover", "cut"])
def test_a_container_that_is_longer_than_its_sound(how: str, suffix: str, tmp_path: Path) -> None:
    """Its length counts from time 0 and is that of its longest stream: no song is truncated by that."""
    soundfile.write(tmp_path / "plain.wav", tone(2.0, 48000), 48000)
    path, plain = tmp_path / f"a.{suffix}", str(tmp_path / "plain.wav")
    codec = ["-c:a", "libopus", "-strict", "-2"] if suffix == "webm" else ["-c:a", "aac"]
    video = ["-c:v", "libvpx" if suffix == "webm" else "mpeg4"]
    before = ["-itsoffset", "3"] if how == "late" else []
    picture = ["-f", "lavfi", "-i", f"testsrc=size=64x64:rate=5:duration={6 if 'pictures' in how else 0.2}"]
    command = ["ffmpeg", "-v", "error", *before, "-i", plain]
    if how == "beside longer pictures":
        command += [*picture, "-map", "0:a", "-map", "1:v", *video]
    elif how == "with a cover" and suffix in ("mkv", "mka"):
        subprocess.run(
            ["ffmpeg", "-v", "error", *picture, "-frames:v", "1", str(tmp_path / "c.png")], check=True
        )
        command += ["-attach", str(tmp_path / "c.png"), "-metadata:s:t", "mimetype=image/png"]
    subprocess.run([*command, *codec, str(path)], check=True)
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=r"truncated|unreadable"):
            probe(path)
    else:
        assert abs(probe(path).duration - 2.0) < 0.1


@needs_ffmpeg
def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", tone(1.0, 44100), 44100).rename(tmp_path / "a.mp3")
    assert abs(pitch(read_audio(path)[4096:-4096, 0]) - 440.0) < 0.2


@needs_ffmpeg
@pytest.mark.parametrize(
    "name", ["-i.m4a", "--help.wav", "a b'\"$(x).m4a", "%03d.m4a", "http:x.m4a", "é音.m4a"]
)
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    encode(
        tmp_path / "plain.m4a" if name.endswith("m4a") else tmp_path / "plain.wav", tone(0.5, 44100), 44100
    )
    Path("plain" + Path(name).suffix).rename(name)
    assert abs(pitch(read_audio(name)[4096:-4096, 0]) - 440.0) < 0.5


def test_playlists_do_not_open_other_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "secret.wav", tone(0.5, 44100), 44100)
    for body in (
        f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n",
    ):
        path = tmp_path / "list.m4a"
        path.write_text(body)
        with pytest.raises(DataError):
            read_audio(path)


def test_mixing_down() -> None:
    for count in range(1, 12):
        loud = audio.to_stereo(np.ones((3, count), np.float32))
        assert loud.shape == (3, 2)
        assert loud.max() <= 1 + 1e-6
    x = np.zeros((1, 6), np.float32)
    x[0, 2] = 1
    left, right = audio.to_stereo(x)[0]
    assert left == right > 0.25
    x = np.zeros((1, 6), np.float32)
    x[0, 0] = 1
    assert audio.to_stereo(x)[0, 0] > 0.4 and audio.to_stereo(x)[0, 1] == 0


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "opus"])
@pytest.mark.parametrize("heard", range(6))
def test_channels_stand_where_their_format_has_them(form: str, heard: int, tmp_path: Path) -> None:
    """Six: left, right, centre, low, and those behind; Vorbis and Opus have another order."""
    orders = {"ogg": (0, 2, 1, 4, 5, 3), "opus": (0, 2, 1, 4, 5, 3)}
    x = np.zeros((48000, 6), np.float32)
    x[:, list(orders.get(form, range(6))).index(heard)] = tone(1.0, 48000, 1)[:, 0]
    path = tmp_path / f"a.{form}"
    how = {"format": "OGG", "subtype": "OPUS"} if form == "opus" else {}
    soundfile.write(path, x, 48000, **how)
    left, right = np.abs(read_audio(path, sample_rate=None)[8000:-8000]).max(axis=0) > 0.05
    places = [(True, False), (False, True), (True, True), (False, False), (True, False), (False, True)]
    assert (left, right) == places[heard]


def riff(frames: int, *, claim: int | None = None, rate: int = 44100, channels: int = 2) -> bytes:
    """A 16-bit wav whose headers claim `claim` bytes of samples."""
    data = np.full((frames, channels), 1000, "<i2").tobytes()
    claim = len(data) if claim is None else claim
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 % 2**32, channels * 2, 16)
    head = (
        b"RIFF" + struct.pack("<I", min(36 + claim, 0xFFFFFFFF)) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
    )
    return head + b"data" + struct.pack("<I", claim) + data


BAD = {
    "empty file": (b"", "empty file"),
    "header alone": (riff(0), "holds no audio"),
    "half a header": (b"RIFF\x24", "unreadable"),
    "truncated": (riff(44100)[:60_000], "truncated: 60000 of 176444 bytes"),
    "claims 3 GB": (riff(100, claim=3_000_000_000), "truncated"),
    "rate 0": (riff(100, rate=0), "unreadable|sample rate 0"),
    "rate 1": (riff(100, rate=1), "sample rate 1 Hz"),
    "rate 4e9": (riff(100, rate=4_000_000_000), "unreadable|sample rate"),
    "no channels": (riff(100, channels=0), "unreadable|no audio"),
    "text": (b"hello\n" * 1000, "unreadable"),
    "zeros": (bytes(5000), "unreadable"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_audio(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_audio(tmp_path / "nothing.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(DataError, match="not a file"):
        read_audio(tmp_path / "folder.wav")


def test_senseless_requests(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_audio(path, tone(0.1, 44100), 44100)
    for start, duration in ((-1, None), (0, 0), (0, -1)):
        with pytest.raises(DataError, match="makes no sense"):
            read_audio(path, start=start, duration=duration)
    with pytest.raises(DataError, match="cannot be read"):
        read_audio("a\0b.wav")


def test_streamed_wav(tmp_path: Path) -> None:
    """Written to a pipe: the sizes in the header mean nothing."""
    path = tmp_path / "a.wav"
    path.write_bytes(riff(4410, claim=0xFFFFFFFF))
    assert len(read_audio(path)) == 4410


def test_truncated_flac_and_m4a(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (88200, 2)).astype(np.float32)
    path = tmp_path / "a.flac"
    soundfile.write(path, noise, 44100)
    path.write_bytes(path.read_bytes()[:150_000])
    with pytest.raises(DataError, match=r"truncated|damaged"):
        read_audio(path)
    if shutil.which("ffmpeg"):
        path = encode(tmp_path / "a.m4a", noise, 44100)
        path.write_bytes(path.read_bytes()[:10_000])
        with pytest.raises(DataError, match=r"unreadable|truncated"):
            read_audio(path)


def test_values_that_are_not_numbers(tmp_path: Path) -> None:
    x = tone(0.1, 48000)
    x[1000, 0] = np.nan
    path = tmp_path / "a.wav"
    soundfile.write(path, x, 48000, subtype="FLOAT")
    with pytest.raises(DataError, match="not finite"):
        read_audio(path)
    x[1000, 0] = np.inf
    soundfile.write(path, x, 48000, subtype="FLOAT")
    with pytest.raises(DataError, match="not finite"):
        read_audio(path)


def test_loud_files_are_clipped(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, 5 * tone(0.1, 44100), 44100, subtype="FLOAT")
    assert np.abs(read_audio(path)).max() == 1.0


def test_one_sample_and_eight_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full((1, 1), 0.5), 44100)
    assert np.allclose(read_audio(path), [[0.5, 0.5]])
    soundfile.write(path, tone(0.1, 48000, 8), 48000)
    assert read_audio(path).shape == (4410, 2)


def test_too_long_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros((100_000, 2)), 44100)
    assert audio.MAX_FRAMES * 8 <= 1 << 31, "2 GiB of stereo in float32"
    monkeypatch.setattr(audio, "MAX_FRAMES", 50_000)
    with pytest.raises(DataError, match="too much for memory"):
        read_audio(path)
    assert len(read_audio(path, duration=1.0)) == 44100
    with pytest.raises(DataError, match="too much for memory"):
        read_audio(path, duration=1.0, sample_rate=88200)


def test_silence() -> None:
    assert is_silent(np.zeros((10, 2))) and is_silent(np.zeros((0, 2))) and is_silent(np.full((9, 2), -5e-5))
    assert not is_silent(tone(0.1, 44100))


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_writing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"-out.{suffix}"
    tags = {"title": "A song", "comment": '{"seed": 7}', "software": "acestep-mlx"}
    write_audio(path, tone(12.0, 44100), 44100, tags)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    x = read_audio(path)
    assert abs(len(x) - 12 * 44100) < 3000
    assert abs(pitch(x[4096:-4096, 0]) - 440.0) < 0.2
    with soundfile.SoundFile(path) as file:
        assert file.title == "A song"
        assert file.comment == '{"seed": 7}'


def test_writing_is_refused(tmp_path: Path) -> None:
    x = tone(0.1, 44100)
    with pytest.raises(DataError, match=r"not \.xyz"):
        write_audio(tmp_path / "a.xyz", x, 44100)
    with pytest.raises(DataError, match="unknown tag 'mood'"):
        write_audio(tmp_path / "a.wav", x, 44100, {"mood": "blue"})
    with pytest.raises(DataError, match="not finite"):
        write_audio(tmp_path / "a.wav", x * np.nan, 44100)
    with pytest.raises(DataError, match="not empty"):
        write_audio(tmp_path / "a.wav", x[:0], 44100)
    with pytest.raises(DataError, match="cannot be written"):
        write_audio(tmp_path / "missing" / "a.wav", x, 44100)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(b"old")
    with pytest.raises(DataError, match="cannot be written"):
        write_audio(path, tone(0.1, 44100), 12345)  # no such rate in mp3
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp3"]


def test_resampling_is_band_limited() -> None:
    """What lies above the new Nyquist frequency is gone, not folded down."""
    x = tone(1.0, 96000, 1, hz=30_000)
    assert np.abs(resample(x, 96000, 44100)[2000:-2000]).max() < 1e-3
    assert len(resample(tone(1.0, 48000), 48000, 44100)) == 44100


def test_mel_filters_are_librosas() -> None:
    librosa = pytest.importorskip("librosa")
    for rate, n_fft, n_mels, low, high in ((44100, 2048, 128, 40, 16000), (16000, 512, 40, 0, 8000)):
        expected = librosa.filters.mel(
            sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=low, fmax=high, htk=False, norm="slaney"
        )
        assert np.abs(mel_filters(rate, n_fft, n_mels, low, high) - expected.T).max() < 1e-8


def test_log_mel_in_chunks() -> None:
    x = mx.random.normal((3, 512 * 50), key=mx.random.key(0))
    whole = log_mel(x)
    assert whole.shape == (3, 128, 50)
    assert mx.allclose(log_mel(x, chunk=7), whole, atol=1e-5)
    assert mx.allclose(log_mel(x[1]), whole[1], atol=1e-5)
    with pytest.raises(DataError, match="more than 768 samples"):
        log_mel(mx.zeros((768,)))


def test_log_mel_of_silence_is_finite() -> None:
    mel = log_mel(mx.zeros((4096,)))
    assert bool(mx.isfinite(mel).all())
    assert float(mel.max()) < -6.9  # log of the summed 1e-3 floor under each filter


@pytest.mark.parametrize(("rate", "within"), [(8000, 4096 / 8000), (44100, 0.1), (192_000, 0.1)])
def test_how_much_of_a_stated_length_may_be_missing(rate: int, within: float, tmp_path: Path) -> None:
    """A tenth of a second, or what a lossy format adds at its ends."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(rate // 4, 0.5), rate)
    info = audio.look(path)
    for missing in (0.0, within - 0.01, -1.0):
        assert sum(map(len, audio.decode(path, replace(info, promised=info.duration + missing)))) == rate // 4
    with pytest.raises(DataError, match=r"truncated: only 0\.25 of"):
        list(audio.decode(path, replace(info, promised=info.duration + within + 0.01)))
