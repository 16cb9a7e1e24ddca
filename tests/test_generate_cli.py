"""`acestep-mlx generate`: files, names, repeats and refusals, as a user meets them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import soundfile

from acestep_mlx.cli import main
from acestep_mlx.config.request import REQUEST
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.lora.formats.write import write_lora
from acestep_mlx.lora.weights import LoRAModule, LoRAWeights

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """generate with a quick request in a folder of its own → (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, base: bool = True) -> tuple[int, str, str]:
        quick = (
            ["--model", str(tiny_model), "--prompt", "Slow jazz", "--duration", "1", "--steps", "2"]
            if base
            else []
        )
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["generate", *quick, *arguments])
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def lora(path: Path, model: Path, seed: int = 0, **facts: Any) -> Path:
    width = ModelFolder.open(model).component_config("transformer").dim
    a, b = (
        mx.random.normal((2, width), key=mx.random.key(seed)),
        mx.random.normal((width, 2), key=mx.random.key(1)),
    )
    write_lora(path, LoRAWeights({"transformer_blocks.0.attn.to_v": LoRAModule(a, b, 1.0)}, facts))
    return path


@pytest.mark.slow
def test_a_song_its_story_and_its_picture(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--seed", "7", "--plot", "--lyrics", "[verse]\nla", "--output", "songs/a.wav")
    assert code == 0, err
    assert "songs/a.wav" in out and "seed 7" in out
    assert "denoising" in err and "\r" not in err  # plain lines where there is no terminal
    assert {p.name for p in (tmp_path / "songs").iterdir()} == {"a.wav", "a.json", "a.png"}
    info = soundfile.info("songs/a.wav")
    assert (info.samplerate, info.channels, info.frames) == (44100, 2, 10 * 4096)
    story = json.loads(Path("songs/a.json").read_text())["acestep_mlx"]
    assert story["request"]["seeds"] == [7] and story["request"]["lyrics"] == "[verse]\nla"
    assert set(story["model"]["fingerprints"]) == {"transformer", "text_encoder", "dcae", "vocoder"}


@pytest.mark.slow
def test_same_request_same_file_and_repeats_from_either_file(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    weights = lora(tmp_path / "x.safetensors", tiny_model)
    flags = ["--seed", "3", "--lora", str(weights), "--lora-scale", "0.5", "--scheduler", "pingpong"]
    assert run(*flags, "-o", "a.wav")[0] == 0
    assert run(*flags, "-o", "b.wav")[0] == 0
    first = Path("a.wav").read_bytes()
    assert Path("b.wav").read_bytes() == first
    for source, name in (("a.json", "c.wav"), ("a.wav", "d.wav")):
        code, _, err = run("--from-json", source, "-o", name, base=False)
        assert code == 0 and "note" not in err
        assert Path(name).read_bytes() == first
    assert run("--from-json", "a.json", "-o", "e.wav", "--seed", "4", base=False)[0] == 0
    assert Path("e.wav").read_bytes() != first
    code, _, err = run("--from-json", "a.json", "-o", "f.wav", "--lora-scale", "0", base=False)
    assert code == 0 and "LoRAs or their scales" in err
    lora(weights, tiny_model, seed=1)
    code, _, err = run("--from-json", "a.json", "-o", "g.wav", base=False)
    assert code == 0 and err.count("note") == 1 and f"{weights} has changed since" in err


@pytest.mark.slow
def test_lora_at_zero_is_no_lora_bit_for_bit(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    weights = str(lora(tmp_path / "x.safetensors", tiny_model))

    def heard(name: str, *flags: str) -> np.ndarray:
        assert run("--seed", "3", "-o", name, *flags)[0] == 0
        return soundfile.read(name, dtype="int16")[0]

    without = heard("a.wav")
    assert np.array_equal(heard("b.wav", "--lora", weights, "--lora-scale", "0"), without)
    assert not np.array_equal(heard("c.wav", "--lora", weights), without)


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("name", "rate"), [("a.flac", 44100), ("a.mp3", 48000), ("a.ogg", 44100), ("a.wav", 48000)]
)
def test_formats_and_rates(run: Run, name: str, rate: int) -> None:
    assert run("-o", name, "--sample-rate", str(rate))[0] == 0
    info = soundfile.info(name)
    assert info.samplerate == rate and abs(info.duration - 0.93) < 0.1


def test_batch_and_sensible_names(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--batch", "2", "--seed", "5")
    assert code == 0
    assert {p.name for p in tmp_path.glob("*.wav")} == {"slow-jazz-5.wav", "slow-jazz-6.wav"}
    assert len(out.splitlines()) == 2
    story = json.loads(Path("slow-jazz-6.json").read_text())["acestep_mlx"]
    assert story["request"]["seeds"] == [6]
    assert run("--from-json", "slow-jazz-6.json", "-o", "again.wav", base=False)[0] == 0
    again, before = (soundfile.read(p)[0] for p in ("again.wav", "slow-jazz-6.wav"))
    assert np.abs(again - before).max() < 1e-3


def test_lyrics_file_and_source(run: Run) -> None:
    Path("l.txt").write_text("\ufeff[verse]\nla la", encoding="utf-8")
    assert run("--lyrics-file", "l.txt", "-o", "a.wav")[0] == 0
    assert json.loads(Path("a.json").read_text())["acestep_mlx"]["request"]["lyrics"] == "[verse]\nla la"
    code, _, err = run("--task", "repaint", "--source", "a.wav", "--repaint-end", "0.5", "-o", "b.wav")
    assert code == 0 and "encoding the source" in err
    assert soundfile.info("b.wav").frames == soundfile.info("a.wav").frames


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--duration", "0"], "duration must be between 1 and 240 s, got 0"),
        (["--duration", "1e9"], "between 1 and 240 s"),
        (["--duration", "nan"], "got nan"),
        (["--scheduler", "eular"], "did you mean 'euler'"),
        (["--guidance", "none"], "one of apg"),
        (["--task", "sing"], "one of text2music"),
        (["--guidance-scale", "nan"], "guidance_scale"),
        (["--lora", "x.safetensors", "--lora-scale", "nan"], "got nan"),
        (["--lora", "no.safetensors"], "no such LoRA"),
        (["--task", "edit", "--edit-prompt", "x"], "needs a source"),
        (["--task", "repaint", "--source", "no.wav"], "no.wav"),
        (["--task", "audio2audio", "--source", "text.wav"], "text.wav"),
        (["--output", "a.aac"], "suffix must be one of"),
        (["--output", "text.wav/a.wav"], "cannot be written to"),
        (["--output", "/proc/a.wav"], "cannot be written to"),
        (["--output", "text.wav"], "--force"),
        (["--model", "nowhere"], "no such folder"),
        (["--model", "."], "not an MLX folder"),
        (["--lyrics-file", "no.txt"], "cannot read no.txt"),
        (["--from-json", "text.wav"], "does not say how"),
        (["--from-json", "other.json"], "unknown setting 'stepps'"),
        (["--sample-rate", "8000"], "44100 or 48000"),
        (["--batch", "0"], "between 1 and 64"),
        (["--seed", "-3"], "seeds must be between 0"),
        (["--steps", "0"], "steps must be between"),
    ],
)
def test_malformed_requests_end_in_one_line(run: Run, tiny_model: Path, flags: list[str], words: str) -> None:
    lora(Path("x.safetensors"), tiny_model)
    Path("text.wav").write_text("this is no sound")
    Path("other.json").write_text('{"acestep_mlx": {"request": {"stepps": 3}}}')
    before = {p: p.read_bytes() for p in Path().iterdir()}
    code, out, err = run(*flags)
    assert code == 1 and not out
    assert words in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert {p: p.read_bytes() for p in Path().iterdir()} == before  # nothing half-written


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "two"], "two"),
        (["--seed", "seven"], "'seven'"),
        (["--lyrics", "a", "--lyrics-file", "b"], "exclude each other"),
        (["--lora-scale", "2"], "name the LoRA with --lora"),
        (["--lora", ""], "'--lora': it is empty"),
        (["--output", " "], "it is empty"),
        (["--lora", "x", "--lora-scale", "1", "--lora-scale", "2"], "2 --lora-scale for 1 --lora"),
        (["--batch", "2", "--seed", "1,2"], "--batch and several seeds"),
    ],
)
def test_wrong_usage_ends_with_two(run: Run, flags: list[str], words: str) -> None:
    code, out, err = run(*flags)
    assert code == 2 and not out and words in err


def test_every_setting_has_an_option(run: Run) -> None:
    from dataclasses import fields

    from acestep_mlx.config.request import Request

    code, out, _ = run("--help", base=False)
    assert code == 0
    for f in fields(Request):
        flag = {"seeds": "seed", "retake_seeds": "retake-seed"}.get(f.name, f.name.replace("_", "-"))
        assert f"--{flag}" in out


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    from acestep_mlx.cli.progress import Display
    from acestep_mlx.io.progress import Advance

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Display() as bar:
        for stage in ("denoising", "decoding"):
            for i in range(5):
                bar(Advance(stage, i / 4, 1, "share"))
    err = capsys.readouterr().err
    assert "denoising [##########] 100 %" in err and "decoding [##########] 100 %" in err and "\r" in err


def test_a_prompt_is_needed(run: Run, tiny_model: Path) -> None:
    code, _, err = run("--model", str(tiny_model), base=False)
    assert code == 2 and "--prompt is needed" in err


@pytest.mark.slow
def test_what_the_model_will_not_hear_is_said_first(run: Run, tmp_path: Path) -> None:
    (tmp_path / "long.lyrics").write_text("la la la\n" * 2000, encoding="utf-16")
    code, _, err = run("--lyrics-file", "long.lyrics", "--steps", "1")
    assert code == 0, err
    assert "too long" in err and err.index("too long") < err.index("denoising")


@pytest.mark.parametrize("flag", ["--lyrics", "--edit-lyrics"])
def test_what_was_changed_in_the_lyrics_is_said_first(run: Run, tmp_path: Path, flag: str) -> None:
    written = r"[Verse 1]\n[00:12,50]la la\n(Chorus)\noh"
    soundfile.write("a.wav", 0.1 * np.random.default_rng(0).standard_normal((44100, 2)), 44100)
    edit = ["--task", "edit", "--source", "a.wav"] if flag == "--edit-lyrics" else []
    code, _, err = run(flag, written, "--steps", "1", "-o", "b.wav", *edit)
    assert code == 0, err
    name = flag[2:].replace("-", " ")
    assert f"{name}: marks: [Verse 1] → [verse], (Chorus) → [chorus]" in err
    assert f"{name}: time stamps removed from 1 line" in err and f"{name}: \\n written out" in err
    assert err.index("marks:") < err.index("denoising")
    stored = json.loads(Path("b.json").read_text())["acestep_mlx"]["request"]
    assert stored[flag[2:].replace("-", "_")] == written, "what was asked for is what is repeated"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3:30", 210),
        ("0:01.5", 1.5),
        ("1:02:03", 3723),
        ("90", 90),
        ("90s", 90),
        ("12.5", 12.5),
        (" 2:00 ", 120),
    ],
)
def test_lengths_as_people_write_them(text: str, seconds: float) -> None:
    from acestep_mlx.cli import generate

    assert generate.seconds(text) == seconds


LENGTHS = ["--duration", "--repaint-start", "--repaint-end", "--extend-left", "--extend-right"]


@pytest.mark.parametrize("flag", LENGTHS)
@pytest.mark.parametrize(
    "text", ["3:75", "1:2:3:4", "3.30.1", ":30", "3m", "", "-1:00", "3:5", "1:75:00", "１:30"]
)
def test_a_length_that_is_none(flag: str, text: str, run: Run) -> None:
    code, _, err = run(flag, text)
    assert code == 2 and "write seconds (210) or minutes (3:30)" in err


def test_a_clocks_length_makes_such_a_song(run: Run) -> None:
    assert run("--duration", "0:02", "-o", "a.wav")[0] == 0
    assert abs(soundfile.info("a.wav").duration - 2) < 0.1


def test_a_name_without_a_suffix(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--batch", "2", "--seed", "5", "-o", "name")
    assert code == 0, err
    assert {p.name for p in tmp_path.glob("*.wav")} == {"name-5.wav", "name-6.wav"} and "name-5.wav" in out


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["repaint", "--repaint-end", "0.5"],
            "--duration changes nothing: repaint has the length of its source",
        ),
        (["audio2audio"], "--duration changes nothing: audio2audio has the length of its source"),
        (
            ["extend", "--extend-right", "1", "--edit-end", "0.5"],
            "--edit-end changes nothing: extend does not",
        ),
    ],
)
def test_a_flag_that_changes_nothing_is_named(flags: list[str], words: str, run: Run) -> None:
    soundfile.write("a.wav", 0.1 * np.random.default_rng(0).standard_normal((44100, 2)), 44100)
    code, _, err = run("--task", *flags, "--source", "a.wav", "-o", "b.wav")
    assert code == 0 and f"note: {words}" in err, err


def test_every_error_begins_the_same_way(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    for flags in (["--steps", "two"], ["--nope"], ["--steps", "0"], ["--batch", "2", "--seed", "1,2"]):
        code, _, err = run(*flags)
        assert code and err.startswith("error: ") and len(err.splitlines()) == 1, err
    for arguments in (["nope"], ["train"], ["--nope"], ["export", "--format", "x", "y"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        err = capfd.readouterr().err
        assert stop.value.code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1, err


NAMED = ["--prompt", "--lyrics", "--output", "--source", "--lora", "--model", "--from-json"]


@pytest.mark.parametrize("flag", NAMED)
def test_bytes_that_are_not_utf8_in_an_argument(flag: str, run: Run, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, err = run(flag, "caf\udce9.wav")
    assert (
        code == 2
        and not out
        and err == ("error: the argument caf\\xe9.wav is not UTF-8; rename the file, or write it anew\n")
    )
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_folder_whose_name_is_not_utf8(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "caf\udce9"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    monkeypatch.chdir(folder)
    code, _, err = run("-o", "a.wav", "--seed", "3")
    assert code == 0, err
    code, _, err = run("--task", "audio2audio", "--source", "a.wav", "-o", "b.wav")
    assert code == 0, err
    code, _, err = run("--from-json", "a.json", "-o", "c.wav", base=False)
    assert code == 0 and (folder / "c.wav").read_bytes() == (folder / "a.wav").read_bytes(), err


@pytest.mark.slow
def test_a_section_outside_the_song(run: Run, tmp_path: Path) -> None:
    assert run("-o", "a.wav")[0] == 0  # 0.93 s
    repaint = ["--task", "repaint", "--source", "a.wav", "-o", "b.wav"]
    for start in ("0:05", "0.9"):
        code, _, err = run(*repaint, "--repaint-start", start)
        assert code == 1 and "is not within the song: a.wav lasts 0.93 s" in err.replace(f"{tmp_path}/", "")
    code, _, err = run(*repaint, "--repaint-start", "0.5", "--repaint-end", "0:30")
    assert code == 0 and "note: --repaint-end is the song's end, after 0.93 s" in err
    code, _, err = run(
        "--task", "extend", "--source", "a.wav", "-o", "c.wav", "--extend-right", "240", "--extend-left", "9"
    )
    assert code == 1 and "249.75 s are more than the model's 239.91 s" in err and "frames" not in err


@pytest.mark.slow
def test_a_reference_that_leaves_nothing_to_change(run: Run) -> None:
    assert run("-o", "a.wav")[0] == 0
    task = ["--task", "audio2audio", "--source", "a.wav", "-o", "b.wav"]
    code, _, err = run(*task, "--reference-strength", "1")
    assert code == 1 and err.splitlines()[-1].endswith("leaves nothing to change in 2 steps: lower it")
    code, _, err = run(*task, "--reference-strength", "0.75")
    assert code == 1 and err.splitlines()[-1].endswith("in 2 steps: lower it or add steps")
    assert run(*task, "--reference-strength", "0.75", "--steps", "4")[0] == 0


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("flag", ["--prompt", "--negative-prompt"])
def test_what_of_a_prompt_is_not_heard_is_said(run: Run, flag: str) -> None:
    code, _, err = run(flag, "jazz " * 2000, "-o", "a.wav")
    assert code == 0 and f"{flag[2:].replace('-', ' ')}: cut to 256 of " in err
    assert "cut to" not in run(flag, "jazz", "-o", "b.wav")[2]


@pytest.mark.slow
def test_the_command_that_makes_it_again_is_kept_with_the_song(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    weights = lora(tmp_path / "my lora.safetensors", tiny_model)
    odd = [
        "--prompt",
        "-slow 'jazz' $HOME",
        "--lyrics",
        '[verse]\nla "la" `x`',
        "--no-erg-tag",
        "--omega=-2.5",
    ]
    flags = [*odd, "--seed", "3", "--lora", str(weights), "--lora-scale", "0.35", "--sample-rate", "48000"]
    code, out, err = run(*flags, "-o", "a.wav")
    assert code == 0 and "seed 3" in out, err
    assert err.splitlines()[-1].startswith("again, or changed: acestep-mlx generate --from-json a.wav")
    name, command, *arguments = shlex.split(json.loads(Path("a.json").read_text())["command"])
    assert (name, command) == ("acestep-mlx", "generate")
    code, _, err = run(*arguments, "-o", "b.wav", base=False)
    assert code == 0 and "note" not in err, err
    assert Path("b.wav").read_bytes() == Path("a.wav").read_bytes()
    story, again = (json.loads(Path(f"{one}.json").read_text()) for one in "ab")
    assert story["command"] == again["command"]


GIVEN: dict[str, dict[str, object]] = {
    "text2music": {"duration": 12.5, "guidance": "cfg_star", "cfg_interval_start": 0.25, "zero_init": False,
                   "negative_prompt": "noise", "lyrics_language": "de", "oss_steps": (1, 3, 9)},
    "retake": {"variance": 0.3, "seeds": (1, 2), "retake_seeds": (8, 9)},
    "repaint": {"source": "a b.wav", "repaint_start": 1.0, "repaint_end": 2.25, "scheduler": "heun"},
    "extend": {"source": "a.wav", "extend_left": 3.0, "extend_right": 0.5},
    "edit": {"source": "a.wav", "edit_prompt": "--rock", "edit_lyrics": "no\nno", "edit_samples": 2},
    "audio2audio": {"source": "a.wav", "reference_strength": 0.125},
    "cover": {"source": "a.wav", "cover_strength": 0.5, "bpm": 98.0, "keyscale": "F# minor"},
}  # fmt: skip


@pytest.mark.parametrize("task", GIVEN)
def test_the_command_says_every_setting(task: str) -> None:
    """What is typed again is the request: nothing is lost, nothing is said that changes nothing."""
    from acestep_mlx.cli.again import command_line
    from acestep_mlx.cli.generate import command
    from acestep_mlx.config.request import Request

    wanted = Request(**{"prompt": "x", "lyrics": "la", "task": task, **GIVEN[task]})  # type: ignore[arg-type]
    record = {"model": {"path": "m"}, "loras": [], "sample_rate": 44100, "request": wanted.to_dict()}
    line = command_line(record, {}, 44100, fuse_loras=True)
    assert "--fuse-loras" not in line and "--sample-rate" not in line
    context = command.make_context("generate", shlex.split(line)[2:])
    typed = {name: value for name, value in context.params.items() if name in REQUEST and value is not None}
    assert Request.from_dict(typed) == wanted and not wanted.idle(typed)
    assert typed.keys() == {"prompt", "seeds", "lyrics", *GIVEN[task], *(["task"] * (task != "text2music"))}


def test_the_first_song_is_opened_at_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from acestep_mlx.cli import generate

    opened: list[tuple[str, bool]] = []

    def open_file(path: Path) -> str | None:
        opened.append((path.name, path.is_file() and path.with_suffix(".json").is_file()))
        return f"there is no display here; open {path} where you can hear it"

    monkeypatch.setattr(generate, "open_file", open_file)
    assert run("-o", "a.wav")[0] == 0 and not opened
    code, _, err = run("--seed", "5,6", "--open", "-o", "b.wav")
    assert code == 0 and opened == [("b-5.wav", True)] and "note: there is no display here" in err


def test_what_is_wrong_with_the_lyrics_is_said_before_the_work(run: Run) -> None:
    sung = "[Synth madness]\nla ❤ la\nสวัสดีครับ ฉันรักคุณ\n" + "many words are sung in each line\n" * 9
    code, _, err = run("--lyrics", sung, "--steps", "1", "-o", "a.wav")
    assert code == 0, err
    for words in (
        "lyrics: no mark of the model, so its words are read: [Synth madness]",
        "lyrics: no token for",
        "lyrics: Thai script has no tokens in English in line 3",
        "lyrics: removed ❤ in line 2",
        "words in 0:01; the end will not be heard; a duration of 1:10 would do",
    ):
        assert words in err and err.index(words) < err.index("denoising"), words
    Path("song.txt").write_text("la")
    code, _, err = run("--lyrics", "song.txt", "--steps", "1", "-o", "b.wav")
    assert "song.txt is a file, and its name would be sung; --lyrics-file reads it" in err
    assert "lyrics:" not in run("--lyrics", "[verse]\nla la", "--steps", "1", "-o", "c.wav")[2]


@pytest.mark.slow
def test_without_a_model_it_is_the_one_that_the_lora_was_trained_on(
    run: Run, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named in the LoRA, or in the cache; the same weights, or none."""
    mark = ModelFolder.open(tiny_model).fingerprints["transformer"]
    monkeypatch.setenv("ACESTEP_MLX_CACHE", str(tmp_path / "kept"))
    asked = ["--prompt", "x", "--duration", "1", "--steps", "1", "-o", "a.wav", "--force"]

    def trained(base: str, fingerprint: str) -> list[str]:
        weights = tmp_path / "run" / "output" / "x.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        lora(weights, tiny_model, base=base, base_fingerprint=fingerprint)
        return [*asked, "--lora", str(weights)]

    (tmp_path / "run").mkdir()
    for place in (tmp_path / "here", tmp_path / "run" / "model"):  # found from here, and above the LoRA
        place.symlink_to(tiny_model)
        code, _, err = run(*trained(f"/home/you/{place.name}", mark), base=False)
        assert code == 0 and f"{place.name}\n" in err and "with the model that" in err, err
        place.unlink()
    (tmp_path / "run" / "output" / "checkpoint-1").mkdir()
    settings = tmp_path / "run" / "output" / "checkpoint-1" / "config.json"
    settings.write_text(json.dumps({"pretrained_model_name_or_path": str(tiny_model)}))
    code, _, err = run(*trained("some/model", mark), base=False)
    assert code == 0 and f"trained on, {tiny_model}\n" in err, "as the run's own configuration says"
    settings.write_text("[")
    code, _, err = run(*trained("some/model", mark), base=False)
    assert code == 1 and "was trained on 'some/model', which is not here; name a model by --model" in err
    (tmp_path / "kept" / "models").mkdir(parents=True)
    (tmp_path / "kept" / "models" / "model-0123456789abcdef").symlink_to(tiny_model)
    code, _, err = run(*trained("some/model", mark), base=False)
    assert code == 0 and "model-0123456789abcdef" in err
    assert run(*trained("some/model", "f" * 64), base=False)[0] == 1, "other weights under its name"
    assert run(*asked, "--lora", str(lora(Path("y.safetensors"), tiny_model)), base=False)[0] == 2
