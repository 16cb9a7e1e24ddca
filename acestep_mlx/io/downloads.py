"""Downloads from the Hugging Face hub: why one failed, which are kept, and their removal by its library."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import NO_SPACE, DataError
from ..formatting import brief, count
from .filenames import at_home
from .holds import hold, in_use, last_used
from .kept import IN_USE, Kept, cache_folder

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, HFCacheInfo

T = TypeVar("T")


def answered(ask: Callable[[], T]) -> T | None:
    """What the hub, or its cache, says; None where it is out of reach or knows of nothing.

    A download that is wanted after all then says why, by `hub_failure`.
    """
    try:
        return ask()
    except Exception:  # the hub's client and its transports have many kinds of their own
        return None


def hub_failure(error: BaseException) -> str:
    """What kept a download from working, in our own words where the cause is known, and what to do."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids a download; unset it, or give a downloaded folder"
    cause: BaseException | None = error
    while cause is not None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403):
            return f"the hub refuses this login (status {status}); `hf auth login` again, or unset HF_TOKEN"
        if status is not None:
            return f"the hub answers with status {status}; try again later, or give a downloaded folder"
        if _disk_full(cause):
            return "the disk of the hub's cache is full; free some space, or set HF_HOME to another disk"
        cause = cause.__cause__ or cause.__context__
    reason = brief(str(error).split(". ")[0]) or type(error).__name__
    return f"the hub cannot be reached ({reason}); connect to the network, or give a downloaded folder"


def _disk_full(error: BaseException) -> bool:
    """Also where a transport tells it in words only."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return True
    return "no space left on device" in str(error).lower()


def hub_folder() -> Path:
    """Where the hub's library keeps downloads."""
    from huggingface_hub import constants

    return at_home(constants.HF_HUB_CACHE)


def reading(repository: str) -> None:
    """Tell other processes, as long as this one runs, that it reads a download."""
    place = _place(repository)
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
    hold(place)


def _place(repository: str) -> Path:
    """Where it is told that the download of a repository is read: not in the hub's own folder."""
    return cache_folder() / "downloads" / repository.replace("/", "--")


def read_before() -> set[str]:
    """The repositories whose downloads this program has read, whoever fetched them."""
    try:
        return {folder.name.replace("--", "/", 1) for folder in (cache_folder() / "downloads").iterdir()}
    except OSError:
        return set()


def kept_downloads(repositories: Collection[str], converted: Collection[str] = ()) -> list[Kept]:
    """Of models in these repositories, as the hub's library sees them. converted: those of which there is a
    conversion.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir(hub_folder())
    except (CacheNotFound, ValueError, OSError):
        return []
    known = (repo for repo in found.repos if repo.repo_type == "model" and repo.repo_id in repositories)
    return [_kept(found, repo, repo.repo_id in converted) for repo in sorted(known, key=lambda r: r.repo_id)]


def _kept(found: HFCacheInfo, repo: CachedRepoInfo, converted: bool) -> Kept:
    about = count(len(repo.revisions), "revision")
    about += "; converted already, needed again for another precision only" if converted else ""
    return Kept(
        "download",
        repo.repo_id,
        about,
        repo.size_on_disk,
        partial(_remove, found, repo),
        made=repo.last_modified,
        used=last_used(_place(repo.repo_id)),
        busy=_fetched(repo.repo_path) or in_use(_place(repo.repo_id)),
    )


def _fetched(path: Path) -> bool:
    """Whether a file of a repository is being fetched: the hub's library then has a lock for it."""
    for lock in (path.parent / ".locks" / path.name).glob("*.lock"):
        try:
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue  # a disk without locks
        finally:
            os.close(handle)
    return False


def _remove(found: HFCacheInfo, repo: CachedRepoInfo) -> int:
    """All revisions of a repository, by the hub's library. DataError for what it leaves behind."""
    if _fetched(repo.repo_path) or in_use(_place(repo.repo_id)):
        raise DataError(f"{repo.repo_id} is not removed: {IN_USE}")
    alone = replace(found, repos=frozenset({repo}))  # a copy of a repository has the same commits
    plan: Any = alone.delete_revisions(*(revision.commit_hash for revision in repo.revisions))
    plan.execute()
    left = [one.snapshot_path for one in repo.revisions if one.snapshot_path.exists()]
    if left:
        raise DataError(f"{left[0]} cannot be removed; look at its permissions")
    freed: int = plan.expected_freed_size
    return freed
