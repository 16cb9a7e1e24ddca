"""Captions for songs that have none: a sentence. Tempo and key are ACE-Step 1.5's metadata, not its words."""

from __future__ import annotations

from ..songs import Sketch


def caption(known: Sketch) -> str:
    """`A fast, instrumental rock track in a minor key.`"""
    mode = known.keyscale.split()[-1] if known.keyscale else None
    if not (known.genre or known.pace or known.language or known.instrumental or mode):
        return ""
    how = ", ".join(word for word in (known.pace, "instrumental" if known.instrumental else None) if word)
    what = " ".join(word for word in (how, known.genre.lower() if known.genre else None, "track") if word)
    article = "An" if what[0] in "aeiou" else "A"
    key = f" in a {mode} key" if mode else ""
    sung = f", sung in {known.language}" if known.language else ""
    return f"{article} {what}{key}{sung}."
