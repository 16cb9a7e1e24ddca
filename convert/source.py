"""Where a checkpoint is and what is in it: folder or hub, one file or shards; reads headers only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NO_SPACE, CheckpointError
from ..formatting import brief
from ..io.progress import Advance, Progress, silent
from ..io.safetensors import PICKLES, TensorInfo, inside, read_header
from ..io.schema import read_json
from . import single
from .translate import problem_report

DEFAULT_REPO = "ACE-Step/ACE-Step-v1-3.5B"
# The commit that is taken where the user names none: the same model today and next year.
PINNED = {DEFAULT_REPO: "82cd0d7b6322bd28cd4e830fe675ddb6180ce36c"}
FOLDERS = {
    "transformer": "ace_step_transformer",
    "text_encoder": "umt5-base",
    "dcae": "music_dcae_f8c8",
    "vocoder": "music_vocoder",
}
STEMS = ("diffusion_pytorch_model", "model")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Where a checkpoint may carry the lyric vocabulary.
VOCAB_FILES = (
    "lyric_vocab.json",
    "vocab.json",
    "lyrics_utils/vocab.json",
    "acestep/models/lyrics_utils/vocab.json",
)
PATTERNS = [
    *(
        f"{folder}/{name}"
        for folder in FOLDERS.values()
        for name in ("config.json", "*.safetensors", "*.index.json")
    ),
    *(f"{FOLDERS['text_encoder']}/{name}" for name in TOKENIZER_FILES),
    *VOCAB_FILES,
]


@dataclass(frozen=True)
class ComponentSource:
    """One component's config.json and its tensors, wherever their bytes are."""

    folder: Path  # or the one file that holds all components
    config: dict[str, Any]  # without the bookkeeping keys that begin with `_`
    tensors: dict[str, TensorInfo]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor shapes by upstream name."""
        return {name: info.shape for name, info in self.tensors.items()}


@dataclass(frozen=True)
class Source:
    """A whole upstream checkpoint on this machine: a folder, or ComfyUI's all-in-one file."""

    path: Path
    path_or_repo: str  # as the user gave it
    revision: str | None  # the hub's commit, or None for a folder
    without: frozenset[str] = frozenset()  # keys of config.json files that are not read

    @property
    def is_file(self) -> bool:
        """Whether it is ComfyUI's all-in-one file."""
        return self.path.is_file()

    def component(self, name: str) -> ComponentSource:
        """Config and checked headers of one component; reads no tensor."""
        if self.is_file:
            parts = single.split(read_header(self.path).tensors, self.path)
            sizes = single.geometry(parts["transformer"], self.path)
            return ComponentSource(self.path, self._read_keys(single.config_of(name, sizes)), parts[name])
        folder = self.path / FOLDERS[name]
        config = read_json(folder / "config.json")
        return ComponentSource(folder, self._read_keys(config), _tensors(folder))

    def _read_keys(self, config: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in config.items() if not k.startswith("_") and k not in self.without}

    def spiece(self) -> bytes | None:
        """The SentencePiece model inside an all-in-one file, or None."""
        return single.tokenizer_bytes(read_header(self.path).tensors)

    def identity(self) -> str:
        """Changes with the content: the hub's commit, or a hash of all files' names, sizes, times and heads.

        The weights themselves (7.7 GB) are not read for it.
        """
        if self.revision is not None:
            return f"commit {self.revision}"
        whole = hashlib.sha256()
        files = [p for name in FOLDERS.values() for p in self._entries(name) if p.is_file()]
        for path in sorted(set(files)):
            stat = path.stat()
            whole.update(f"{path.relative_to(self.path)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
            with path.open("rb") as file:
                whole.update(file.read(1 << 16))
        return f"content {whole.hexdigest()}"

    def _entries(self, name: str) -> Iterable[Path]:
        return [self.path] if self.is_file else (self.path / name).iterdir()


def resolve(path_or_repo: str | Path, revision: str | None = None, progress: Progress = silent) -> Source:
    """A folder or an all-in-one file as it is, or a hub repository downloaded (or found in the hub's cache).

    Raises CheckpointError when it is neither, cannot be reached, or is not this kind of checkpoint.
    """
    text = str(path_or_repo)
    if not text.strip():
        raise CheckpointError(f"no checkpoint named; give a folder or a hub repository like {DEFAULT_REPO}")
    path = Path(text).expanduser()
    if path.is_dir() or path.is_file():
        source = Source(path, text, None)
        if revision is not None:
            what = "folder" if path.is_dir() else "file"
            raise CheckpointError(f"--revision {revision} is for hub repositories; {text} is a {what}")
    elif path.exists():
        raise CheckpointError(f"{text} is no file; give the checkpoint's folder or a hub repository")
    elif is_repo(text):
        source = _download(text, revision or PINNED.get(text), progress)
    else:
        raise CheckpointError(f"{text}: no such folder (and not a hub repository like {DEFAULT_REPO})")
    _check_layout(source)
    return source


def is_repo(path_or_repo: str | Path) -> bool:
    """Whether it can only be a hub repository: `owner/name`, and no such path here."""
    text = str(path_or_repo)
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def hub_commit(repo: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub repository stands for now, or None when the hub is out of reach.

    Without a revision it is the pinned one, or the newest of a repository that has none pinned.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    revision = revision or PINNED.get(repo)
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        return HfApi().model_info(repo, revision=revision, timeout=10).sha
    except (HfHubHTTPError, OSError, ValueError):
        return None  # `resolve` finds out why, and says so


def _check_layout(source: Source) -> None:
    if source.is_file:
        if source.path.suffix not in (".safetensors", *PICKLES) or not single.is_all_in_one(
            read_header(source.path).tensors
        ):
            raise CheckpointError(
                f"{source.path_or_repo} is a file, and not ComfyUI's all-in-one checkpoint of ACE-Step v1; "
                "give that, the checkpoint's folder or a hub repository"
            )
        source.component("transformer")
        return
    missing = [name for name in FOLDERS.values() if not (source.path / name).is_dir()]
    if not missing:
        return
    where = source.path_or_repo
    if source.path.name in FOLDERS.values():
        raise CheckpointError(f"{where} is one component of a checkpoint; give its parent folder")
    if (source.path / "transformer.safetensors").is_file() and (source.path / "config.json").is_file():
        raise CheckpointError(f"{where} is an MLX folder already; nothing to convert")
    raise CheckpointError(f"{where} is not an ACE-Step v1 checkpoint: it has no {', '.join(missing)}")


def _download(repo: str, revision: str | None, progress: Progress) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    progress(Advance(f"fetching {repo} from the hub (about 7.7 GB, kept in the hub's cache)"))
    try:
        path = snapshot_download(repo, revision=revision, allow_patterns=PATTERNS)
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
            f"{repo}: no such folder here, not in the hub's cache, and {_hub_failure(error)}"
        ) from error
    return Source(Path(path), repo, Path(path).name)


def _hub_failure(error: BaseException) -> str:
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


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a component's folder, from one file or from the shards of an index."""
    try:
        names = {path.name for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror or error}") from None
    for stem in STEMS:
        if f"{stem}.safetensors" in names:
            return read_header(folder / f"{stem}.safetensors").tensors
    indices = sorted(name for name in names if name.endswith(".safetensors.index.json"))
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if len(indices) == 1:
        return _sharded(folder, indices[0])
    if len(indices) > 1 or len(files) > 1:
        raise CheckpointError(f"{folder}: several weight files ({', '.join(indices or files)}); keep one set")
    if files:
        return read_header(folder / files[0]).tensors
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if pickles:
        raise CheckpointError(
            f"{folder}: only {pickles[0]}, a pickle, which can run code and is not opened; "
            "download or save the .safetensors weights instead"
        )
    raise CheckpointError(f"{folder}: no .safetensors weights in it")


def _sharded(folder: Path, index: str) -> dict[str, TensorInfo]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{folder / index}: no weight_map of file names in it")
    headers = {name: read_header(inside(folder, name)).tensors for name in sorted(set(weight_map.values()))}
    problems = [
        f"{tensor!r} is not in {name}" for tensor, name in weight_map.items() if tensor not in headers[name]
    ]
    problems += [
        f"{tensor!r} of {name} is not in the index"
        for name, tensors in headers.items()
        for tensor in tensors
        if weight_map.get(tensor) != name
    ]
    if problems:
        raise problem_report(str(folder / index), problems)
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}
