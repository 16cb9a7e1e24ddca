"""The output folder: one run at a time, and nothing of an earlier run replaced without a word.

output_dir/
    checkpoint-{step}/  metrics.jsonl  report.html  validation/  pytorch_lora_weights.safetensors
    previous-1/         what --overwrite, or going on from an earlier checkpoint, moved aside
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import ConfigError, cause
from ..families import families
from ..formatting import count, size
from ..io.disk import free_space, largest_file
from ..report.events import read_metrics
from ..report.live import FILE as LIVE
from .checkpoint import EMA, LORA, checkpoints

METRICS, REPORT, CLIPS = "metrics.jsonl", "report.html", "validation"
LOCK = ".acestep-mlx.lock"
#: what a file system without locks answers
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@contextlib.contextmanager
def exclusive(folder: Path, notify: Callable[[str, str], None]) -> Iterator[None]:
    """Hold `folder` for one run; made when it is not there, and removed again when nothing came into it.

    The lock is the kernel's: it ends with the process, however that ends. ConfigError while another run has
    it, or when nothing can be written there.
    """
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(folder / LOCK)
    except OSError as error:
        raise ConfigError(f"output_dir={folder} is not writable: {cause(error)}") from None
    if handle is None:
        notify(f"{folder} is on a disk without locks: do not start a second run into it", "warning")
    try:
        yield
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
            os.close(handle)
        with contextlib.suppress(OSError):  # something is in it
            for path in made:
                path.rmdir()


def _take(path: Path) -> int | None:
    """An open, locked file; None where the file system has no locks."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
            os.close(handle)
            raise ConfigError(
                f"output_dir={path.parent}: another run writes into it ({holder or 'just started'}); let it "
                "end, or name another folder with --output_dir"
            ) from None
        except OSError as error:
            os.close(handle)
            if error.errno in NO_LOCKS:
                return None
            raise
        if os.fstat(handle).st_nlink:  # else a run that ended has just removed it
            os.truncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return handle
        os.close(handle)


def run_in(folder: Path) -> str:
    """What `folder` holds of a run, in words; empty when a new one would replace nothing."""
    found = []
    if saved := checkpoints(folder):
        found.append(count(len(saved), "checkpoint"))
    if (folder / LORA).is_file():
        found.append("a LoRA")
    if steps := sum(row.get("event") == "step" for row in read_metrics(folder / METRICS)):
        found.append(f"metrics of {count(steps, 'step')}")
    return ", ".join(found)


def check_free(folder: Path, resume: str | None) -> None:
    """ConfigError when a run that begins at step 0 would replace another. resume: resume_from_checkpoint."""
    found = run_in(folder)
    if not found or (resume == "latest" and not (checkpoints(folder) or (folder / LORA).is_file())):
        return  # or only the metrics of a run that ended before its first checkpoint
    go_on = "go on with it by --resume_from_checkpoint=latest, "
    if resume == "latest":
        found, go_on = f"{found}, but no checkpoint to go on from", ""
    raise ConfigError(
        f"output_dir={folder} holds a run already ({found}): {go_on}name another folder by --output_dir, or "
        "begin anew by --overwrite, which moves what is there aside"
    )


def check_room(folder: Path, files: Sequence[int], kept: int, notify: Callable[[str, str], None]) -> None:
    """ConfigError when no checkpoint can be written; a warning when not one more than the `kept` ones.

    files: bytes of each file of a checkpoint.
    """
    limit, free = largest_file(), free_space(folder)
    if limit is not None and limit < max(files):
        raise ConfigError(
            f"a checkpoint has files of {size(max(files))}, and this process may write files of at most "
            f"{size(limit)} (ulimit -f); raise that limit"
        )
    one, most = sum(files), sum(files) * (kept + 1)
    if free < one:
        raise ConfigError(
            f"{size(free)} are left in {folder}, and a checkpoint takes {size(one)}; free some space"
        )
    if free < most:
        notify(
            f"{size(free)} are left in {folder}, and {count(kept + 1, 'checkpoint')} may take {size(most)}; "
            "lower checkpoints_total_limit or free some space",
            "warning",
        )


def set_aside(folder: Path, logs: Path | None = None) -> Path | None:
    """Move everything of the run in `folder` into a new folder in it; None when there is none.

    logs: the trackers' folder, moved too where it is inside.
    """
    names = [path.name for path in reversed(checkpoints(folder))]
    names += [name for name in (*_weights(), REPORT, LIVE, CLIPS, METRICS) if (folder / name).exists()]
    if logs is not None and logs.parent == folder and logs.exists():
        names.append(logs.name)
    return _move(folder, names)


def set_later_aside(folder: Path, step: int) -> Path | None:
    """Move what came after the checkpoint of `step` into a new folder; None when no checkpoint did.

    The numbers and the page of the whole are copied there: a run that goes on begins with a part of them.
    """
    later = [p.name for p in checkpoints(folder) if int(p.name.rpartition("-")[2]) > step]
    if not later:
        return None
    names = [*reversed(later), *(name for name in _weights() if (folder / name).exists())]
    target = _move(folder, names)
    assert target is not None
    for name in (METRICS, REPORT, LIVE):
        if (folder / name).is_file():
            shutil.copy2(folder / name, target / name)
    return target


def _weights() -> list[str]:
    """The LoRA's file, the folder of the averaged one, and those of what any family trains in full."""
    return [LORA, EMA, *(one.lora.full.name for one in families() if one.lora.full.name)]


def _move(folder: Path, names: list[str]) -> Path | None:
    if not names:
        return None
    number = 1
    while True:
        target = folder / f"previous-{number}"
        try:
            target.mkdir()
            break
        except FileExistsError:
            number += 1
    for name in names:
        (folder / name).rename(target / name)
    return target
