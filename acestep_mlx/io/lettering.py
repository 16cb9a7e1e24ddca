"""Short texts in pictures: the printable ASCII characters as dots, 5 across and 7 down, some 2 lower."""

from __future__ import annotations

import unicodedata

import numpy as np

ACROSS, DOWN, LOWER = 5, 7, 2
_LOW = "gpqy"
# From "!" on; of each character its rows from above, a digit of base 32 each, whose bits are the dots.
_ROWS = """
4444404 AA00000 AAVAVAA 4FKE5U4 PP248JJ CIK8LID 4400000 2488842 8422248 0LEVEL0 044V440 0000448
000E000 00000CC 11248GG EHJLPHE 4C4444E EH1248V EH161HE 26AIV22 VGU11HE 68GUHHE V124444 EHHEHHE
EHHF12C 0CC0CC0 0CC0C48 1248421 00V0V00 G84248G EH12404 EHNLNGF 4AHHVHH UHHUHHU EHGGGHE UHHHHHU
VGGUGGV VGGUGGG EHGNHHE HHHVHHH E44444E 72222IC HIKOKIH GGGGGGV HRLLHHH HPPLJJH EHHHHHE UHHUGGG
EHHHLID UHHUKIH FGGE11U V444444 HHHHHHE HHHHAA4 HHHLLRH HHA4AHH HHA4444 V1248GV E88888E GG84211
E22222E 4AH0000 000000V 8400000 00E1FHF GGUHHHU 00FGGGF 11FHHHF 00EHVGF 688U888 FHHHF1E GGUHHHH
40C444E 20622IC GGIKOKI C44444E 00QLLLL 00UHHHH 00EHHHE UHHHUGG FHHHF11 00MPGGG 00FGE1U 88U8886
00HHHHF 00HHHA4 00HHLLA 00HA4AH HHHHF1E 00V248V 3448443 4444444 O44244O 008L200
"""


def _glyph(character: str, rows: str) -> np.ndarray:
    """(9, 5) bool."""
    drawn = np.array([[int(row, 32) >> (ACROSS - 1 - x) & 1 for x in range(ACROSS)] for row in rows], bool)
    low = LOWER if character in _LOW else 0
    return np.pad(drawn, ((low, LOWER - low), (0, 0)))


_DOTS = {chr(33 + i): _glyph(chr(33 + i), rows) for i, rows in enumerate(_ROWS.split())}
_DOTS[" "] = np.zeros((DOWN + LOWER, ACROSS), bool)


def plain(text: str) -> str:
    """`text` in the characters that can be drawn: letters without their accents, and no others."""
    return " ".join("".join(c for c in unicodedata.normalize("NFKD", text) if c in _DOTS).split())


def dots(text: str, scale: int = 1) -> np.ndarray:
    """(9 · scale, width) bool: where a text has ink; what cannot be drawn is left out."""
    gap = np.zeros((DOWN + LOWER, 1), bool)
    columns = [part for c in plain(text) for part in (_DOTS[c], gap)]
    whole = np.concatenate(columns[:-1] or [gap[:, :0]], axis=1)
    return whole.repeat(scale, 0).repeat(scale, 1)


def write(
    pixels: np.ndarray, text: str, at: tuple[float, float], *, ink: tuple[int, int, int], scale: int = 2,
    anchor: float = 0.0,
) -> None:  # fmt: skip
    """Draw a text into (height, width, 3) `pixels`; what lies outside is cut off.

    at: (row, column) of its upper edge and of its left one, with anchor 0.5 of its middle, with 1 of its end.
    """
    drawn = dots(text, scale)
    row, column = round(at[0]), round(at[1] - anchor * drawn.shape[1])
    top, left = max(row, 0), max(column, 0)
    part = pixels[top : max(row + drawn.shape[0], 0), left : max(column + drawn.shape[1], 0)]
    part[drawn[top - row :, left - column :][: part.shape[0], : part.shape[1]]] = ink
