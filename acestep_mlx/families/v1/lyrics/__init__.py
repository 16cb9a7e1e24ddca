"""Lyrics as somebody wrote them, brought into the form that the tokenizer reads."""

from __future__ import annotations

from ....text.lines import foreign_lines, in_language
from ....text.sheet import read_sheet
from ....text.stamps import Timed
from ...songs import Lyrics


def read_lyrics(text: str, language: str | None) -> Lyrics:
    """`text` without time stamps, its parts marked as the model knows them, its lines as `language`."""
    sheet = read_sheet(text)
    problems = [
        f"lyrics line {number} is in {script} script, which the model has no tokens for"
        for number, script in foreign_lines(sheet.text)
    ]
    lines = sheet.lines
    if lines and language:
        lines = [Timed(in_language(lines[0].text, language), lines[0].spans), *lines[1:]]
    return Lyrics("\n".join(line.text for line in lines) or None, sheet.notes, problems, lines)
