"""What the files beside a song and the lists around it say of it, and which of them counts.

The first that has a caption gives the caption, and so with lyrics and each other fact: a plain caption file
and a lyrics file of the song's own, a JSON file of its name, a text in another program's form, files for
captions and lyrics alone, a list of songs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DataError
from ...io.filenames import Folders, shown
from ...io.text_files import read_text
from .. import sidecars
from ..captions import CAPTION_NAMES, caption_lines
from ..drafts import fields_of, split
from ..records import Record, json_fields, read_record, record_of

_TEXTS = (".txt", ".caption", ".tags", ".prompt")


@dataclass
class Told:
    """records: what is said of a song, the first counts. drafts: what `prepare` drafted, which counts last.
    sung: the stamp of the lyrics whose language was drafted. sheet: the text of its own that is its lyrics.

    unread: files that cannot be read, why; lacking: those that cost a song without a caption, as they may
    hold it. notes: for people.
    """

    records: list[Record] = field(default_factory=list)
    drafts: list[Record] = field(default_factory=list)
    sung: str | None = None
    sheet: tuple[str, str] | None = None
    unread: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def captioned(self) -> bool:
        """Whether one of them has a caption."""
        return any(record.captions for record in self.records)


def after_json(records: Sequence[Record]) -> int:
    """Where in order a text in another program's form stands: behind the JSON files of the song."""
    return sum(record.source.lower().endswith(".json") and not record.listed for record in records)


class Beside:
    """Reads what is said of songs below `root`. multiline: whether each line of a caption file is a variant.

    captioned: whether captions come from elsewhere. tagged: whether a song's own trigger words are put to its
    captions. drafting: whether drafts are to be made: those that are there are not read, and each song is
    taken to have a caption.
    """

    def __init__(
        self,
        folders: Folders,
        root: Path,
        multiline: bool,
        captioned: bool,
        tagged: bool,
        own: Path | None,
        drafting: bool = False,
    ) -> None:
        self.folders, self.root, self.multiline = folders, root, multiline
        self.captioned, self.tagged, self.drafting = captioned, tagged, drafting
        self.lists = sidecars.Lists(folders.names, own)

    def read(self, path: Path) -> Told:
        """All that is said of a song."""
        told = Told()
        for file, what in sidecars.beside(path.name, self._near(path)):
            inside = "" if file.parent == path.parent else f"{shown(file.parent.name)}/"
            self._other(file, f"{inside}{shown(file.name)}", what, told)
        self._listed(path, told)
        lyrics = f"lyrics into {shown(path.stem)}.lyrics"
        for template in reversed(CAPTION_NAMES):
            own = self.folders.find(path.parent, template.format(stem=path.stem))
            if own is not None:
                self._own(own, told, f"put the caption alone into {shown(own.name)}, {lyrics}")
        return told

    def _has_caption(self, told: Told) -> bool:
        """Whether the song is called by something, so that a text that looks like lyrics is them."""
        drafted = any(record.captions for record in told.drafts)
        return self.captioned or self.drafting or drafted or told.captioned

    def _text(self, file: Path, told: Told) -> str:
        text, note = read_text(file)
        if note:
            told.notes.append(f"{shown(file.name)}: {note}")
        return text

    def _own(self, file: Path, told: Told, advice: str) -> None:
        """A caption file: its caption, the record of another program, or the song's lyrics."""
        name = shown(file.name)
        try:
            text = self._text(file, told)
            record = read_record(text, name, tagged=self.tagged)
            if record is not None:
                told.records.insert(
                    sum(r.source.endswith(".json") and not r.listed for r in told.records), record
                )
                return
            what, others = sidecars.looks_like(text), self._has_caption(told)
            lines = caption_lines(text, True)
            if what is not None and what.startswith(sidecars.SHEET) and others:
                told.sheet = told.sheet or (name, text)
                return
            sidecars.check_caption(text, name, advice)
        except DataError as error:
            told.unread.append(str(error))
            told.lacking.append(str(error))
            return
        captions = tuple(caption_lines(text, self.multiline))
        if told.captioned and not self.captioned:
            worded = any(record.captions and record.worded for record in told.records)
            if worded and len(lines) >= sidecars.SHEET_LINES and max(map(len, lines)) <= sidecars.SHEET_WIDTH:
                told.sheet = told.sheet or (name, text)
                return
            split = next((r for r in told.records if r.source.lower().endswith(".caption.txt")), None)
            if split is not None and captions and captions != split.captions:
                told.lacking.append(
                    f"{split.source} looks like {sidecars.BESIDE['.caption.txt']}, and {name} may be the "
                    f"lyrics then, or another caption; keep one of them, {advice.rpartition(', ')[2]}"
                )
                told.records = [r for r in told.records if not r.captions]
                return
        told.records.insert(0, Record(name, captions, doubtful=sidecars.may_be_sung(text)))

    def _other(self, file: Path, name: str, what: str, told: Told) -> None:
        """A file that another program keeps beside the song. name: for people."""
        suffix = file.suffix.lower()
        if suffix not in (".json", *_TEXTS):
            told.lacking.append(f"{name} looks like {what}, which is not read")
            return
        try:
            text = self._text(file, told)
            if suffix == ".json":
                self._json(text, name, told)
                return
            record = read_record(text, name, tagged=self.tagged)
            if record is None:
                sidecars.check_caption(text, name)
                captions = tuple(caption_lines(text, self.multiline))
                record = Record(name, captions, doubtful=sidecars.may_be_sung(text))
            told.records.append(record)
        except DataError as error:
            told.unread.append(str(error))
            told.lacking.append(str(error))

    def _json(self, text: str, name: str, told: Told) -> None:
        """A JSON file beside the song: what somebody wrote there, and what was drafted. DataError."""
        content = json_fields(text, name)
        own, drafted = split(content)
        if own or not drafted:
            told.records.append(record_of(own, name, tagged=self.tagged))
        if drafted and not self.drafting:
            told.drafts.append(record_of(drafted, f"{name} draft", tagged=self.tagged))
            told.sung = str(fields_of(content)["language"].get("of")) if "language" in drafted else None

    def _listed(self, path: Path, told: Told) -> None:
        """The list of songs that describes it."""
        try:
            found = self.lists.find(path, self.root)
            if found is None:
                return
            name = shown(found.file.name)
            if found.row is None:
                told.lacking.append(
                    f"{name} looks like another trainer's list of songs, and is not understood"
                )
                return
            told.records.append(record_of(found.row, name, listed=True, tagged=self.tagged))
        except DataError as error:
            told.unread.append(str(error))
            told.lacking.append(str(error))

    def _near(self, path: Path) -> Callable[[str], Path | None]:
        """Finds a file in the song's folder, or one that a folder beside that holds."""

        def find(name: str) -> Path | None:
            found = self.folders.find(path.parent, name)
            if found is None and "/" in name and path.parent != self.root:
                found = self.folders.find(path.parent.parent, name)
            return found

        return find
