"""Captions for songs that have none: tags with commas between them, as ACE-Step v1 was trained on."""

from __future__ import annotations

from ..songs import Sketch


def caption(known: Sketch) -> str:
    """Genre, pace, tempo and key: v1 is told of a song by its tags alone."""
    tags = [
        known.genre.lower() if known.genre else None,
        "instrumental" if known.instrumental else None,
        known.pace,
        f"{known.bpm} BPM" if known.bpm else None,
        known.keyscale,
    ]
    return ", ".join(tag for tag in tags if tag)
