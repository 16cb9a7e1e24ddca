"""The lyric vocabulary, which the checkpoint lacks: where it is found and how it is checked."""

from __future__ import annotations

import importlib.util
import os
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ....errors import CheckpointError
from ....io.atomic import write_bytes
from ....io.filenames import at_home
from ....io.hashes import content_hash
from ....io.progress import Advance, Progress, silent
from ....io.schema import parse_json, read_file
from .tokenizer import FIXED_IDS

LYRIC_VOCAB = "lyric_vocab.json"
# Where a checkpoint may carry it.
VOCABULARIES = (
    LYRIC_VOCAB,
    "vocab.json",
    "lyrics_utils/vocab.json",
    "acestep/models/lyrics_utils/vocab.json",
)
RELEASED_IDS = 6693  # of the released model

UPSTREAM = "ace-step/ACE-Step"
COMMIT = "d612523f50e252c0e138e68ae75b06223f96e934"
URL = f"https://raw.githubusercontent.com/{UPSTREAM}/{COMMIT}/acestep/models/lyrics_utils/vocab.json"
SHA256 = "a15c54367100d9096c22cd33681c69033980eb1a943b4d5574d6c7fca4e790b9"  # of the canonical content
MAX_BYTES = 8 << 20
# Packages that carry the file, and where; they are looked up, never imported.
PACKAGES = (
    ("acestep", "models/lyrics_utils/vocab.json"),
    ("simpletuner", "helpers/models/ace_step/lyrics_utils/vocab.json"),
)


@dataclass(frozen=True)
class LyricVocab:
    """A lyric vocabulary that was found: its bytes, where they came from, and its content hash."""

    data: bytes
    source: str
    sha256: str

    @property
    def known(self) -> bool:
        """Whether it is upstream's own."""
        return self.sha256 == SHA256


def find(given: str | Path | None, checkpoint: Path, size: int, progress: Progress = silent) -> LyricVocab:
    """The vocabulary from `given`, else the checkpoint's folder, an installed package, or the network.

    size: how many ids the model's lyric embedding has. A file that was given or lies in the checkpoint may
    differ from upstream's (`progress` says so); one from a package or the network may not. Raises
    CheckpointError when there is none, or when it does not fit the model.
    """
    here = [checkpoint / name for name in VOCABULARIES if (checkpoint / name).is_file()]
    for path in [at_home(given)] if given is not None else here[:1]:
        found = _checked(_read(path), str(path), size)
        if not found.known and _of_the_miniature(found):
            progress(Advance(f"lyric vocabulary: the miniature's own, {path}"))
        elif not found.known:
            what = "is not the lyric vocabulary that the released model was trained with"
            progress(Advance(f"warning: {path} {what}"))
        return found
    for package, name in PACKAGES:
        for folder in _folders(package):
            path = folder / name
            if path.is_file():
                found = _checked(_read(path), f"the installed package {package}", size)
                if found.known:
                    return found
                progress(Advance(f"warning: {path} is not the lyric vocabulary that was expected; not used"))
    return _download(size, progress)


def without_model(caches: Path, progress: Progress = silent) -> Path:
    """Upstream's vocabulary for work without a model; found as `convert` finds it, then kept in `caches`."""
    kept = caches / LYRIC_VOCAB
    if kept.is_file():
        return kept
    for converted in sorted(caches.glob(f"models/*/{LYRIC_VOCAB}")):
        if is_upstreams(converted):
            return converted
    found = find(None, caches, RELEASED_IDS, progress)
    try:
        caches.mkdir(parents=True, exist_ok=True)
        write_bytes(kept, found.data)
    except OSError as error:
        raise CheckpointError(f"{kept}: {error.strerror or error}") from None
    return kept


def is_upstreams(path: Path) -> bool:
    """Whether a file is the vocabulary that the released model was trained with."""
    try:
        return content_hash(parse_json(read_file(path, MAX_BYTES))) == SHA256
    except (OSError, ValueError):
        return False


def _of_the_miniature(found: LyricVocab) -> bool:
    """Whether it is the one that `demo` makes, for which nothing is wrong."""
    from ..miniature_text import miniature_vocabulary

    return found.sha256 == content_hash(miniature_vocabulary())


def _folders(package: str) -> list[Path]:
    """Where a package is installed, found without importing it."""
    try:
        spec = importlib.util.find_spec(package)
        found = spec.submodule_search_locations if spec is not None else None
    except (ImportError, ValueError):  # imported already, by something that gave it no spec
        found = getattr(sys.modules.get(package), "__path__", None)
    return [Path(folder) for folder in found or ()]


def _read(path: Path) -> bytes:
    try:
        return read_file(path, MAX_BYTES)
    except OSError as error:
        raise CheckpointError(
            f"{path}: {error.strerror or error}; give upstream's acestep/models/lyrics_utils/vocab.json, or "
            "leave --lyric-vocab out and it is found or downloaded"
        ) from None


def _checked(data: bytes, source: str, size: int) -> LyricVocab:
    from tokenizers import Tokenizer

    try:
        content = parse_json(data)
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # tokenizers raises plain Exception for every kind of bad content
        raise CheckpointError(f"{source}: not a lyric vocabulary: {error}") from None
    ids = tokenizer.get_vocab()
    wrong = [token for token, wanted in FIXED_IDS.items() if ids.get(token) != wanted]
    if wrong:
        what = f"{wrong[0]} is not id {FIXED_IDS[wrong[0]]}"
        raise CheckpointError(f"{source}: not a lyric vocabulary for this model: {what}")
    if max(ids.values()) >= size:
        raise CheckpointError(
            f"{source}: the lyric vocabulary has ids up to {max(ids.values())}, the model only {size}"
        )
    return LyricVocab(data, source, content_hash(content))


def _download(size: int, progress: Progress) -> LyricVocab:
    advice = "give one with --lyric-vocab (upstream's acestep/models/lyrics_utils/vocab.json)"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise CheckpointError(f"no lyric vocabulary found, and HF_HUB_OFFLINE forbids a download; {advice}")
    progress(Advance(f"fetching the lyric vocabulary from {UPSTREAM} at {COMMIT[:12]}"))
    try:
        with urllib.request.urlopen(URL, timeout=30) as reply:
            data = reply.read(MAX_BYTES)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise CheckpointError(f"no lyric vocabulary found, and {URL} failed ({reason}); {advice}") from None
    found = _checked(data, URL, size)
    if not found.known:
        raise CheckpointError(f"{URL} has unexpected content (SHA-256 {found.sha256[:12]}…); {advice}")
    return found
