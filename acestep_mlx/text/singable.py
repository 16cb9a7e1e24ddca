"""Whether so many words can be sung in so much time."""

from __future__ import annotations

import re

from ..formatting import count, duration
from .sheet import read_sheet

# Words a second, and syllables of scripts without blanks: what the fastest singers reach in a whole song, and
# what is usual with the music between the lines.
FASTEST, USUAL = (3.0, 5.0), (1.2, 2.0)
_MARK = re.compile(r"\[[^\[\]]*\]")
_SYLLABLE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def too_many(lyrics: str, seconds: float, longest: float) -> str | None:
    """What is wrong with these lyrics in a song of so many seconds, and what would do; None: nothing.

    longest: seconds that the model can make.
    """
    text = _MARK.sub(" ", read_sheet(lyrics).text)
    syllables = len(_SYLLABLE.findall(text))
    words = len(_WORD.findall(_SYLLABLE.sub(" ", text)))
    if words / FASTEST[0] + syllables / FASTEST[1] <= seconds:
        return None
    needed = 10 * round((words / USUAL[0] + syllables / USUAL[1]) / 10 + 0.5)
    found = [count(words, "word")] if words else []
    found += [count(syllables, "character")] if syllables else []
    advice = f"a duration of {duration(needed)} would do"
    if needed > longest:
        advice = f"such a song lasts some {duration(needed)}, and the model makes {duration(longest)} at most"
    return f"too long: {' and '.join(found)} in {duration(seconds)}; the end will not be heard; {advice}"
