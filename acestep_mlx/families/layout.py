"""How other programs lay out a model's checkpoint, and what each component finds in it.

A checkpoint is a folder or one file. A family lists the layouts that it reads; which one a checkpoint has is
seen from what is there. Headers are read, and no tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..formatting import problem_report
from ..io.safetensors import TensorInfo, read_header
from ..io.schema import read_json
from ..io.shards import read_weights

Parts = dict[str, dict[str, TensorInfo]]  # component → its tensors, by the names that its key map knows


@dataclass(frozen=True)
class Place:
    """Where a component is in a checkpoint.

    folder: of its weights and its config.json, below the checkpoint; "" for the checkpoint itself. names:
    (theirs, ours): a tensor whose name is `theirs`, or begins with it where it ends in a dot or is empty, is
    the component's, with `ours` in its stead.
    """

    folder: str = ""
    names: tuple[tuple[str, str], ...] = (("", ""),)

    def rename(self, name: str) -> str | None:
        """The tensor's name within the component, or None if it is another's."""
        for theirs, ours in self.names:
            if name == theirs or (theirs[-1:] in ("", ".") and name.startswith(theirs)):
                return ours + name[len(theirs) :]
        return None


@dataclass(frozen=True)
class ComponentSource:
    """One component of a checkpoint: its config, and its tensors wherever their bytes are.

    where: its folder, or the one file that holds all components. config_file: what errors in `config` name.
    """

    where: Path
    config_file: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor shapes by upstream name."""
        return {name: info.shape for name, info in self.tensors.items()}


@dataclass(frozen=True)
class Layout:
    """One way in which a family's checkpoints are laid out.

    title: what such a checkpoint is called. places: of each component. marks: how names of tensors begin by
    which one file is known; none for a folder. beside: other files that a download takes along. strangers:
    last parts of the names of tensors that are no component's. elsewhere: a folder with what a checkpoint
    lacks, for layouts of which that is said.
    """

    title: str
    places: Mapping[str, Place]
    marks: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    strangers: Collection[str] = field(default=())
    elsewhere: Path | None = None

    @property
    def one_file(self) -> bool:
        """Whether the checkpoint is a file and not a folder."""
        return bool(self.marks)

    @property
    def folders(self) -> list[str]:
        """The folders of a checkpoint, each once, as their components come."""
        return list(dict.fromkeys(place.folder for place in self.places.values()))

    @property
    def patterns(self) -> list[str]:
        """What a download needs of a folder; nothing that can run."""
        wanted = ("config.json", "*.safetensors", "*.index.json")
        own = [(Path(folder) / name).as_posix() for folder in self.folders for name in wanted]
        return [*own, *self.beside]

    def where(self, root: Path, folder: str) -> Path:
        """Where one of `folders` is, or would be."""
        return root / folder

    def missing(self, root: Path) -> list[str]:
        """Folders that such a checkpoint has, and `root` has not."""
        return [folder for folder in self.folders if not self.where(root, folder).is_dir()]

    def marked(self, names: Iterable[str]) -> bool:
        """Whether a file with tensors of these names can be such a checkpoint; `component` checks it."""
        return self.one_file and any(name.startswith(self.marks) for name in names)

    def component(self, root: Path, name: str) -> ComponentSource:
        """Config and checked headers of one component. CheckpointError in one line."""
        where = self.where(root, self.places[name].folder)
        config_file = root if self.one_file else where / "config.json"
        config = {} if self.one_file else read_json(config_file)
        parts = self._parts(where, self.places[name].folder)
        return ComponentSource(where, config_file, self.config(name, config, parts, root), parts[name])

    def config(self, name: str, found: dict[str, Any], parts: Parts, root: Path) -> dict[str, Any]:
        """The component's config. found: the config.json of its folder; parts: all components in there."""
        return found

    def _parts(self, where: Path, folder: str) -> Parts:
        tensors = read_header(where).tensors if self.one_file else read_weights(where)
        own = {name: place for name, place in self.places.items() if place.folder == folder}
        parts: Parts = {name: {} for name in own}
        unknown = []
        for name, info in tensors.items():
            renamed = ((c, place.rename(name)) for c, place in own.items())
            component, ours = next(((c, n) for c, n in renamed if n is not None), (None, ""))
            if component is not None:
                parts[component][ours] = info
            elif name.rpartition(".")[2] not in self.strangers:
                unknown.append(f"unknown tensor {name!r}")
        first = {name: place.names[0][0] for name, place in own.items()}
        missing = [f"no {c} (tensors {first[c]}…)" for c, part in parts.items() if first[c] and not part]
        if missing or unknown:
            raise problem_report(f"{where}: not {self.title}", [*missing, *unknown])
        return parts
