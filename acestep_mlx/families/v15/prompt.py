"""What ACE-Step 1.5's text encoder reads: the prompt with its metadata, and the lyrics.

The strings are diffusers' `AceStepPipeline`'s, to the last line break: the model was trained with them. The
tokenizer appends a further `<|endoftext|>` of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = "N/A"
SECONDS = 30  # what the pipeline says of a song whose duration it does not know
MAX_TEXT_TOKENS, MAX_LYRIC_TOKENS = 256, 2048
END = "<|endoftext|>"

#: task → instruction; of those that name tracks, with and without a name
INSTRUCTIONS = {
    "text2music": "Fill the audio semantic mask based on the given conditions:",
    "repaint": "Repaint the mask area based on the given conditions:",
    "cover": "Generate audio semantic tokens based on the given conditions:",
}
TRACK_INSTRUCTIONS = {
    "extract": ("Extract the {} track from the audio:", "Extract the track from the audio:"),
    "lego": (
        "Generate the {} track based on the audio context:",
        "Generate the track based on the audio context:",
    ),
    "complete": ("Complete the input track with {}:", "Complete the input track:"),
}


@dataclass(frozen=True)
class Metadata:
    """What is known of a song beside its caption; None or blank: unknown.

    bpm: beats a minute. keyscale: `C major`. timesignature: beats a bar, `4`. duration: seconds.
    """

    bpm: int | float | None = None
    keyscale: str | None = None
    timesignature: str | None = None
    duration: float | None = None

    def lines(self) -> str:
        """Four lines, the last one ended too. A bpm that is not above 0 is unknown."""
        bpm = UNKNOWN if self.bpm is None or not self.bpm > 0 else str(self.bpm)
        seconds = SECONDS if self.duration is None or not self.duration > 0 else int(self.duration)
        return (
            f"- bpm: {bpm}\n- timesignature: {_known(self.timesignature)}\n"
            f"- keyscale: {_known(self.keyscale)}\n- duration: {seconds} seconds\n"
        )


def _known(value: str | None) -> str:
    """The text as it is, unless it is blank."""
    return value if value and value.strip() else UNKNOWN


def instruction(task: str = "text2music", tracks: Sequence[str] = ()) -> str:
    """The instruction of a task. tracks: for extract and lego one name, for complete any number."""
    if task not in TRACK_INSTRUCTIONS:
        return INSTRUCTIONS[task]
    named, nameless = TRACK_INSTRUCTIONS[task]
    return named.format(" | ".join(track.upper() for track in tracks)) if any(tracks) else nameless


def format_prompt(
    prompt: str,
    lyrics: str = "",
    vocal_language: str = "en",
    audio_duration: float | None = 60.0,
    instruction: str | None = None,
    bpm: int | float | None = None,
    keyscale: str | None = None,
    timesignature: str | None = None,
) -> tuple[str, str]:
    """The two strings of a song: (prompt with metadata, lyrics). instruction None: text2music's."""
    wanted = INSTRUCTIONS["text2music"] if instruction is None else instruction
    wanted = wanted if wanted.endswith(":") else f"{wanted}:"
    metas = Metadata(bpm, keyscale, timesignature, audio_duration).lines()
    text = f"# Instruction\n{wanted}\n\n# Caption\n{prompt}\n\n# Metas\n{metas}{END}\n"
    return text, f"# Languages\n{vocal_language}\n\n# Lyric\n{lyrics}{END}"
