"""Lyrics as somebody wrote them, brought into the form that the tokenizer reads."""

from __future__ import annotations

from ....text.lines import foreign_lines, in_language
from ....text.sheet import read_sheet
from ...songs import Lyrics


def read_lyrics(text: str, language: str | None) -> Lyrics:
    """`text` without time stamps, its parts marked as the model knows them, its lines as `language`."""
    sheet = read_sheet(text)
    problems = [
        f"lyrics line {number} is in {script} script, which the model has no tokens for"
        for number, script in foreign_lines(sheet.text)
    ]
    marked = in_language(sheet.text, language) if sheet.text and language else sheet.text
    return Lyrics(marked or None, sheet.notes, problems)
