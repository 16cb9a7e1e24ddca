"""Where a checkpoint is and what is in it: a folder, a file or a hub repository. Reads headers only."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from ..families import layouts, released
from ..families.layout import ComponentSource, Layout
from ..families.protocol import Family
from ..io.downloads import answered, hub_failure, reading
from ..io.filenames import at_home
from ..io.hashes import digest_of
from ..io.progress import Advance, Progress, phase, silent
from ..io.safetensors import PICKLES, read_header
from ..io.schema import open_file

ASKED = 5  # seconds that the hub may take to say how large a repository is


@dataclass(frozen=True)
class Source:
    """A whole upstream checkpoint on this machine."""

    path: Path
    path_or_repo: str  # as the user gave it
    revision: str | None  # the hub's commit, or None for a folder
    without: frozenset[str] = frozenset()  # keys of config.json files that are not read
    elsewhere: Path | None = None  # a folder with what `path` may lack

    @property
    def family(self) -> Family:
        """Whose checkpoint it is."""
        return self._known[0]

    @property
    def layout(self) -> Layout:
        """How it is laid out."""
        return self._known[1]

    @cached_property
    def _known(self) -> tuple[Family, Layout]:
        """CheckpointError when it is laid out as none that is known."""
        return _one_file(self) if self.path.is_file() else _folder(self)

    def component(self, name: str) -> ComponentSource:
        """Config (without the bookkeeping keys that begin with `_`) and checked headers of one component."""
        found = self.layout.component(self.path, name)
        kept = {k: v for k, v in found.config.items() if not k.startswith("_") and k not in self.without}
        return replace(found, config=kept)

    def identity(self) -> str:
        """Changes with the content: the hub's commit, or a hash of all files' names, sizes, times and heads.

        The weights themselves (gigabytes) are not read for it.
        """
        if self.revision is not None:
            return f"commit {self.revision}"
        whole = digest_of()
        if self.layout.one_file:
            entries = {Path(): self.path}
        else:
            places = {folder: self.layout.where(self.path, folder) for folder in self.layout.folders}
            entries = {Path(f) / path.name: path for f, place in places.items() for path in place.iterdir()}
        for name, path in sorted(entries.items()):
            if not path.is_file():
                continue
            stat = path.stat()
            whole.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
            with open_file(path) as file:
                whole.update(file.read(1 << 16))
        return f"content {whole.hexdigest()}"


def resolve(path_or_repo: str | Path, revision: str | None = None, progress: Progress = silent) -> Source:
    """A folder or an all-in-one file as it is, or a hub repository downloaded (or found in the hub's cache).

    Raises CheckpointError when it is neither, cannot be reached, or is not this kind of checkpoint.
    """
    text, example = str(path_or_repo), released().repository
    if not text.strip():
        raise CheckpointError(f"no checkpoint named; give a folder or a hub repository like {example}")
    path = at_home(text)
    if path.is_dir() or path.is_file():
        source = Source(path, text, None)
        if revision is not None:
            what = "folder" if path.is_dir() else "file"
            raise CheckpointError(f"--revision {revision} is for hub repositories; {text} is a {what}")
    elif path.exists():
        raise CheckpointError(f"{text} is no file; give the checkpoint's folder or a hub repository")
    elif is_repo(text):
        source = _download(text, revision or pinned(text), progress)
    else:
        raise CheckpointError(f"{text}: no such folder (and not a hub repository like {example})")
    if source.layout.one_file:
        source.component("transformer")  # whether every component is in it
    return source


def is_repo(path_or_repo: str | Path) -> bool:
    """Whether it can only be a hub repository: `owner/name`, and no such path here."""
    text = str(path_or_repo)
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def pinned(repo: str) -> str | None:
    """The commit that is taken where the user names none: the same model today and next year."""
    known = released(repo)
    return known.revision if known.repository == repo else None


def hub_commit(repo: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub repository stands for now, or None when the hub is out of reach.

    Without a revision it is the pinned one, or the newest of a repository that has none pinned.
    """
    from huggingface_hub import HfApi

    revision = revision or pinned(repo)
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    return answered(lambda: HfApi().model_info(repo, revision=revision, timeout=10).sha)


def _own_layouts(repo: str) -> list[Layout]:
    """How a repository may be laid out: as its family's folders, or any family's."""
    folders = [(family, layout) for family, layout in layouts() if not layout.one_file]
    own = [one for one in folders if any(repo == v.repository for v in one[0].variants.values())]
    return [layout for _, layout in own or folders]


class Download(NamedTuple):
    """Bytes that are still to be fetched. asked: whether the hub said so; else it is what is known of the
    released model.
    """

    bytes: float
    asked: bool


def download(repo: str, revision: str | None) -> Download:
    """What `resolve` would fetch of a hub repository, and of the one beside it."""
    variant, revision = released(repo), revision or pinned(repo)
    known = _own_layouts(repo)
    beside = variant.beside if variant.repository == repo else None
    if (size := _unfetched(repo, revision, [p for one in known for p in one.patterns])) is not None:
        names, left = size
        lacking = _lacking_of(known, names)
        more = _unfetched(beside, None, lacking) if beside and lacking else None
        if more is not None or not (beside and lacking):
            return Download(left + (more[1] if more else 0), True)
    if _fetched(repo, revision, known, beside):
        return Download(0.0, True)
    return Download(1e9 * variant.fetched, False)


def _unfetched(repo: str, revision: str | None, patterns: list[str]) -> tuple[list[str], float] | None:
    """The names of a repository's files, and the bytes of those of these patterns that the hub's cache has
    not; None when the hub is out of reach, or has no such repository."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    api = HfApi()
    found = answered(lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=ASKED))
    if found is None:
        return None
    files = {one.rfilename: one.size or 0 for one in found.siblings or ()}
    wanted = [name for name in files if any(fnmatch(name, pattern) for pattern in patterns)]
    left = [n for n in wanted if not isinstance(try_to_load_from_cache(repo, n, revision=found.sha), str)]
    return list(files), float(sum(files[name] for name in left))


def _fetched(repo: str, revision: str | None, known: list[Layout], beside: str | None) -> bool:
    """Whether the hub's cache has folders of all of it; the hub is not asked."""
    from huggingface_hub import snapshot_download

    path = answered(lambda: Path(snapshot_download(repo, revision=revision, local_files_only=True)))
    if path is None:
        return False
    if any(not layout.missing(path) for layout in known):
        return True
    shared = answered(lambda: Path(snapshot_download(beside, local_files_only=True))) if beside else None
    return shared is not None and any(not replace(one, elsewhere=shared).missing(path) for one in known)


def _one_file(source: Source) -> tuple[Family, Layout]:
    known = [(family, layout) for family, layout in layouts() if layout.one_file]
    if source.path.suffix in (".safetensors", *PICKLES):
        names = read_header(source.path).tensors
        for family, layout in known:
            if layout.marked(names):
                return family, layout
    titles = " or ".join(layout.title for _, layout in known)
    raise CheckpointError(
        f"{source.path_or_repo} is a file, and not {titles}; give that, the checkpoint's folder or a hub "
        "repository"
    )


def _folder(source: Source) -> tuple[Family, Layout]:
    known = [
        (family, layout if source.elsewhere is None else replace(layout, elsewhere=source.elsewhere))
        for family, layout in layouts()
        if not layout.one_file
    ]
    whole = [one for one in known if not one[1].missing(source.path)]
    if len(whole) == 1:
        return whole[0]
    where = source.path_or_repo
    if whole:
        several = ", ".join(layout.title for _, layout in whole)
        raise CheckpointError(f"{where} holds {several}; give the folder of the one that is meant")
    family, nearest = min(known, key=lambda one: len(one[1].missing(source.path)) / len(one[1].folders))
    missing = nearest.missing(source.path)
    if len(missing) >= len(nearest.folders) and any(source.path.name in one.folders for _, one in known):
        raise CheckpointError(f"{where} is one component of a checkpoint; give its parent folder")
    if (source.path / "transformer.safetensors").is_file() and (source.path / "config.json").is_file():
        raise CheckpointError(f"{where} is an MLX folder already; nothing to convert")
    raise CheckpointError(f"{where} is not an {family.title} checkpoint: it has no {', '.join(missing)}")


def _download(repo: str, revision: str | None, progress: Progress) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    variant = released(repo)
    beside = variant.beside if variant.repository == repo else None
    gigabytes = round(variant.fetched, 1)
    progress(Advance(f"fetching {repo} from the hub (about {gigabytes} GB, kept in the hub's cache)"))
    patterns = [pattern for layout in _own_layouts(repo) for pattern in layout.patterns]
    progress(phase(f"downloading {repo}"))
    try:
        path = snapshot_download(repo, revision=revision, allow_patterns=patterns)
        lacking = _lacking(Path(path)) if beside else []
        shared = snapshot_download(beside, allow_patterns=lacking) if beside and lacking else None
    except GatedRepoError:
        raise CheckpointError(f"{repo}: access must be granted first; log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"{repo}: no such folder here, and no such repository on the hub") from None
    except RevisionNotFoundError:
        raise CheckpointError(
            f"{repo} has no revision {revision!r}; name another with --revision (revision in a config)"
        ) from None
    except Exception as error:  # the hub's client and its transports have many kinds of their own
        raise CheckpointError(
            f"{repo}: no such folder here, not in the hub's cache, and {hub_failure(error)}"
        ) from error
    for one in (repo, *([beside] if shared and beside else [])):
        reading(one)
    return Source(Path(path), repo, Path(path).name, elsewhere=Path(shared) if shared else None)


def _lacking(path: Path) -> list[str]:
    """What a download needs of another repository, of the layout that comes nearest."""
    found = min(
        (layout for _, layout in layouts() if not layout.one_file), key=lambda one: len(one.missing(path))
    )
    return _below(found, found.missing(path))


def _lacking_of(known: list[Layout], names: Collection[str]) -> list[str]:
    """The same of a repository that has files of these names."""

    def missing(layout: Layout) -> list[str]:
        return [f for f in layout.folders if f and not any(name.startswith(f"{f}/") for name in names)]

    found = min(known, key=lambda one: len(missing(one)))
    return _below(found, missing(found))


def _below(layout: Layout, folders: list[str]) -> list[str]:
    return [one for one in layout.patterns if any(one.startswith(f"{folder}/") for folder in folders)]
