"""`cache --list` and `cache --remove`: what is shown, what goes, and what can never go."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from acestep_mlx.cli import main
from acestep_mlx.convert.conversions import ensure_model
from acestep_mlx.data.cache import Store
from acestep_mlx.data.places import use
from acestep_mlx.families import families
from acestep_mlx.formatting import size
from acestep_mlx.io.hashes import cache_key
from acestep_mlx.io.holds import HOLD, hold
from acestep_mlx.io.kept import Kept, chosen, folder_size, remove_folder

Run = Callable[..., tuple[int, str, str]]
V1, V15 = (family.name for family in families())
REPOSITORY = next(v.repository for family in families() for v in family.variants.values())
MARK = "0123456789abcdef"


class User:
    """Owns a hold, as a run does."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program's cache and the hub's, both in a folder of the test's own."""
    from huggingface_hub import constants

    monkeypatch.setenv("ACESTEP_MLX_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["cache", *arguments])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call


def conversion(home: Path, model: Path, name: str = "ACE-Step-v1-3.5B") -> Path:
    """A conversion in the program's cache, by links to the files of `model`."""
    folder = home / "kept" / "models" / f"{name}-{MARK}"
    shutil.copytree(model, folder, copy_function=os.link)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    config["source"] = {"path_or_repo": REPOSITORY, "revision": "89abcdef" * 5}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def entries(folder: Path, family: str, n: int, owner: object) -> list[Path]:
    """Caches of a family in a folder, as a run writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    use(folder, owner)
    store = Store(folder, family=family)
    keys = [cache_key(family=family, n=i) for i in range(n)]
    for key in keys:
        store.put(key, {"x": np.zeros(50, np.float32)})
    return [store.path(key) for key in keys]


def download(home: Path, repository: str = REPOSITORY, data: bytes = b"weights" * 100) -> Path:
    """A repository as the hub's library keeps it."""
    repo = home / "hub" / f"models--{repository.replace('/', '--')}"
    commit = "89abcdef" * 5
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "b1").write_bytes(data)
    (snapshot / "model.safetensors").symlink_to(repo / "blobs" / "b1")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    return repo


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != HOLD}


def test_everything_is_listed_with_what_it_is_and_its_size(run: Run, home: Path, tiny_model: Path) -> None:
    assert run("--list")[1].startswith("Nothing is kept")
    model, user, vae = conversion(home, tiny_model), User(), home / "songs" / "vae"
    first, second = entries(vae, V1, 3, user), entries(vae, V15, 2, user)
    download(home)
    hold(model, user)
    code, out, _ = run("--list")
    lines = [line.strip() for line in out.splitlines()]
    assert code == 0 and lines[0] == f"Converted models, in {home / 'kept' / 'models'}"
    sizes = [folder_size(model), *(sum(p.stat().st_size for p in some) for some in (first, second)), 700]
    names = [model.name, f"{vae} ({V1})", f"{vae} ({V15})", REPOSITORY]
    for number, (name, bytes_) in enumerate(zip(names, sizes, strict=True), 1):
        assert f"{number}  {size(bytes_):>10}  {name}" in lines
    about = lines[lines.index(f"1  {size(sizes[0]):>10}  {names[0]}") + 1]
    assert about.startswith(f"ACE-Step v1, float32, of {REPOSITORY} (89abcde); made 20")
    assert "last used 20" in about and about.endswith("in use now")
    assert any(": 3 entries; last written 20" in line for line in lines)
    assert any(line.startswith("1 revision; converted already") for line in lines)
    assert lines[-1].startswith(f"In all {size(sum(sizes))}.")


def test_a_download_that_was_read_is_listed_and_no_stranger_s(run: Run, home: Path) -> None:
    for repository in ("openai/whisper-tiny", "somebody/else"):
        download(home, repository)
    assert "Nothing is kept" in run("--list")[1]
    (home / "kept" / "downloads" / "openai--whisper-tiny").mkdir(parents=True)
    out = run("--list")[1]
    assert f"1  {size(700):>10}  openai/whisper-tiny\n" in out and "somebody" not in out


def test_what_is_named_goes_and_nothing_else(run: Run, home: Path, tiny_model: Path) -> None:
    one, other = conversion(home, tiny_model), conversion(home, tiny_model, "other")
    entries(home / "songs", V1, 2, User())
    freed = folder_size(other)
    code, out, _ = run("--remove", other.name, "--yes")
    assert code == 0 and out == f"removed {other.name}, {size(freed)}\n"
    assert one.is_dir() and not other.exists() and len(list((home / "songs").rglob("*.cache"))) == 2
    repo, stranger = download(home), download(home, "somebody/else")
    assert "somebody" not in run("--list")[1], "not a model of ours"
    code, out, err = run("--remove", "1,3", "--yes")
    assert code == 0, err
    assert "are free now" in out and not one.exists() and not repo.exists()
    assert stranger.is_dir() and len(list((home / "songs").rglob("*.cache"))) == 2
    assert run("--remove", "1", "--yes")[0] == 0
    assert not (home / "songs").exists(), "what a removal leaves empty goes too"
    assert run("--list")[1].startswith("Nothing is kept")


def test_two_models_in_one_folder_are_two_entries(run: Run, home: Path) -> None:
    user = User()
    mine, its = entries(home / "text", V1, 3, user), entries(home / "text", V15, 2, user)
    del user
    assert run("--remove", f"{home / 'text'} ({V1})", "--yes")[0] == 0
    assert not any(path.exists() for path in mine) and all(path.exists() for path in its)
    assert f"1  {size(sum(p.stat().st_size for p in its)):>10}  {home / 'text'}\n" in run("--list")[1]


def test_a_configurations_own_folders_are_listed_too(run: Run, home: Path) -> None:
    """Those that were filled by an earlier version, which noted nothing."""
    folder = home / "cache" / "text"
    Store(folder, family=V1).put("ab12", {"x": np.zeros(3)})
    assert run("--list")[1].startswith("Nothing is kept")
    assert f"{folder}\n" in run("example=my-songs", "--list", f"--cache_dir_text={folder}",
                                f"--data_backend_config={_data(home, folder)}")[1]  # fmt: skip


def _data(home: Path, folder: Path) -> Path:
    path = home / "data.json"
    path.write_text(
        json.dumps([{"id": "a", "instance_data_dir": "songs"},
                    {"id": "t", "dataset_type": "text_embeds", "default": True, "cache_dir": str(folder)}])
    )  # fmt: skip
    return path


def test_it_asks_first(run: Run, home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = conversion(home, tiny_model)
    code, _, err = run("--remove", "1")
    assert code == 2 and "add --yes" in err and model.is_dir(), "nobody is there to ask"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked: list[str] = []
    for answer in (False, True):
        monkeypatch.setattr("click.confirm", lambda text, default, said=answer: asked.append(text) or said)
        code, out, _ = run("--remove", "1")
        assert code == 0 and model.exists() != answer and ("nothing was removed" in out) != answer
    assert asked[0].startswith(f"Remove {model.name} (") and len(asked) == 2


def test_what_a_process_uses_stays_and_so_does_the_rest(run: Run, home: Path, tiny_model: Path) -> None:
    model, user = conversion(home, tiny_model), User()
    cached = entries(home / "songs", V1, 2, user)
    for name in ("2", "1,2"):
        code, _, err = run("--remove", name, "--yes")
        assert code == 1 and "in use by a process" in err and "nothing was removed" in err
    assert model.is_dir() and all(path.exists() for path in cached)
    hold(model, user)
    assert run("--remove", "1", "--yes")[0] == 1
    repo = download(home)
    locks = home / "hub" / ".locks" / repo.name
    locks.mkdir(parents=True)
    with (locks / "x.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use now" in run("--list")[1].splitlines()[-2]
        assert run("--remove", REPOSITORY, "--yes")[0] == 1 and repo.is_dir()
    del user
    assert run("--remove", "1,2,3", "--yes")[0] == 0 and not model.exists() and not repo.exists()


def test_a_run_holds_its_conversion_and_its_components(home: Path, tiny_model: Path) -> None:
    from acestep_mlx.families.model_folder import ModelFolder
    from acestep_mlx.io.holds import in_use

    model = conversion(home, tiny_model)
    assert not in_use(model)
    ModelFolder.open(model)
    assert not in_use(model) and not (model / HOLD).exists(), "looking is no use"
    (model / HOLD).touch()
    ModelFolder.open(model).load("vocoder")
    assert in_use(model)


@pytest.mark.slow
def test_what_is_taken_away_is_converted_again(home: Path, tiny_checkpoint: Path) -> None:
    first = ensure_model(tiny_checkpoint, dtype="float32")
    assert (first / HOLD).is_file()
    shutil.rmtree(first)
    assert ensure_model(tiny_checkpoint, dtype="float32") == first and (first / "config.json").is_file()


def test_half_a_removal_never_looks_whole(
    run: Run, home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = conversion(home, tiny_model)

    def fails(path: Path) -> None:
        assert not model.exists(), "renamed before anything is deleted"
        (path / "vocoder.safetensors").unlink()
        raise PermissionError(13, "Permission denied", str(path / "dcae.safetensors"))

    with monkeypatch.context() as broken:
        broken.setattr(shutil, "rmtree", fails)
        code, _, err = run("--remove", "1", "--yes")
    assert code == 1 and "dcae.safetensors cannot be removed: Permission denied" in err
    (left,) = (path for path in model.parent.iterdir() if path.is_dir())
    assert left.name.startswith(".") and not model.exists()
    assert run("--remove", "1", "--yes")[0] == 1, "somebody may be at it just now"
    os.utime(left, (1e9, 1e9))
    assert "left by a process that was killed" in run("--list")[1]
    assert run("--remove", "1", "--yes")[0] == 0 and not left.exists()


@pytest.mark.parametrize(
    "name", ["..", "../../music", "/", "models", ".", "", "*", "0", "-1", "2", "9" * 40, "1,9", "1;2", "١"]
)
def test_only_what_is_listed_can_be_named(name: str, run: Run, home: Path, tiny_model: Path) -> None:
    model = conversion(home, tiny_model)
    (home / "music").mkdir()
    before = everything(home)
    code, out, err = run(f"--remove={name}", "--yes")
    assert code == 1 and not out and "nothing that is kept here is called" in err
    assert len(err.strip().splitlines()) == 1 and everything(home) == before and model.is_dir()


def test_links_and_strangers_are_left_alone(run: Run, home: Path, tiny_model: Path) -> None:
    """What lies outside is never touched, whatever stands in our folders."""
    music = home / "music"
    (music / "ab").mkdir(parents=True)
    (music / "ab" / "ab12.cache").write_bytes(b"mine")
    (music / "song.wav").write_bytes(b"mine")
    (music / "config.json").write_text("{}")
    model = conversion(home, tiny_model)
    (model / "songs").symlink_to(music)
    (model / "up").symlink_to(home)
    (model.parent / f"link-{MARK}").symlink_to(music)
    (model.parent / "notes").mkdir()
    cached = entries(home / "songs", V1, 1, User())
    (music / "ab" / "cd34.cache").write_bytes(cached[0].read_bytes())  # a true one, and another folder's
    (home / "songs" / "cd").symlink_to(music / "ab")
    (home / "songs" / "ef").mkdir()
    (home / "songs" / "ef" / "ef01.cache").symlink_to(cached[0])
    (home / "songs" / "ef" / "ef02.cache").write_bytes(b"ACEC1p, and no cache file")
    (home / "songs" / "ef" / "letter.txt").write_text("mine")
    os.mkfifo(home / "songs" / "ef" / "ef03.cache")
    before = everything(home)
    _, out, _ = run("--list")
    assert f"link-{MARK}" not in out and "notes" not in out and str(music) not in out
    assert ": 1 entry;" in out and folder_size(model) < 10**9
    assert run("--remove", "1,2", "--yes")[0] == 0
    gone = before - everything(home)
    assert gone == {model, *(p for p in before if model in p.parents), *cached, cached[0].parent}


@pytest.mark.parametrize("kind", ["root", "link", "behind", "dots", "relative", "another", "text", "pipe"])
def test_a_note_is_only_a_hint(kind: str, run: Run, home: Path) -> None:
    """A note that somebody wrote leads nowhere; a folder that became a link is not followed."""
    (cached,) = entries(home / "songs", V1, 1, User())
    (note,) = (home / "kept" / "caches").iterdir()
    if kind in ("link", "behind", "another"):
        (home / "songs").rename(home / "elsewhere")
    if kind in ("link", "behind"):
        (home / "songs").symlink_to(home / "elsewhere")
    place = {
        "root": "/",
        "dots": f"{home}/x/../songs",
        "relative": "songs",
        "another": f"{home}/elsewhere",
    }.get(kind)
    if place is not None:
        note.write_text(json.dumps({"format_version": 1, "folder": place}))
    if kind == "behind":
        folder = str(home / "songs" / "ab")
        note.write_text(json.dumps({"format_version": 1, "folder": folder}))
    if kind == "text":
        note.write_text("[" * 5000)
    if kind == "pipe":
        note.unlink()
        os.mkfifo(note)
    assert run("--list")[1].startswith("Nothing is kept")
    assert run("--remove", "1", "--yes")[0] == 1
    assert cached.exists() or (home / "elsewhere" / cached.relative_to(home / "songs")).exists()


def test_names_from_files_cannot_write_on_the_terminal(run: Run, home: Path, tiny_model: Path) -> None:
    model = conversion(home, tiny_model, "a\x1b[2Jb\n")
    config = json.loads((model / "config.json").read_text())
    config["source"] = {"path_or_repo": "evil\x1b[2J\nIn all 0 bytes", "revision": "\x07" * 40}
    (model / "config.json").write_text(json.dumps(config))
    out = run("--list")[1]
    assert "\x1b" not in out and "\x07" not in out and len(out.splitlines()) == 4
    (model / "config.json").write_text("{")
    assert "damaged" in run("--list")[1] and run("--remove", "1", "--yes")[0] == 0 and not model.exists()


def test_a_link_in_the_place_of_a_folder_is_refused(home: Path) -> None:
    (home / "music").mkdir()
    (home / f"x-{MARK}").symlink_to(home / "music")
    with pytest.raises(Exception, match="no folder any more"):
        remove_folder(home / f"x-{MARK}")
    assert (home / "music").is_dir()


def test_names_and_numbers() -> None:
    kept = [Kept("model", name, "", 1, lambda: 1) for name in ("a", "2", "c,d", "e", "e")]
    assert [one.name for one in chosen(kept, ["1,3", "a"])] == ["a", "c,d"]
    assert chosen(kept, ["2"]) == [kept[1]] and chosen(kept, ["c,d"]) == [kept[2]]
    with pytest.raises(Exception, match="give the number"):
        chosen(kept, ["e"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "name a CONFIG"), (["--list", "--remove", "1"], "exclude"), (["--list", "--prune"], "exclude"),
     (["example=my-songs", "--yes"], "--yes goes with --remove")],
)  # fmt: skip
def test_wrong_usage(arguments: list[str], words: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert code == 2 and not out and words in err


def test_what_comes_into_use_after_it_was_listed_stays(home: Path, tiny_model: Path) -> None:
    """Between the list and the removal somebody may begin."""
    from acestep_mlx.cli.space import gathered
    from acestep_mlx.errors import DataError
    from acestep_mlx.io.downloads import reading

    model, repo = conversion(home, tiny_model), download(home)
    cached = entries(home / "songs", V1, 1, User())
    kept, user = gathered(None, ()), User()
    assert not any(one.busy for one in kept) and len(kept) == 3
    hold(model, user)
    hold(home / "songs", user)
    reading(REPOSITORY)  # until this process ends
    for one in kept:
        with pytest.raises(DataError, match="in use by a process"):
            one.remove()
    assert model.is_dir() and repo.is_dir() and cached[0].exists()
    assert all(one.busy for one in gathered(None, ()))


def test_a_download_that_cannot_be_removed_is_said(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import _cache_manager

    download(home)
    monkeypatch.setattr(_cache_manager, "_try_delete_path", lambda *_, **__: None)
    code, out, err = run("--remove", "1", "--yes")
    assert code == 1 and not out and "cannot be removed" in err and len(err.splitlines()) == 1
