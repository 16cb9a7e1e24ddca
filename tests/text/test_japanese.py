"""Japanese where mojimoji, a dependency of the romaniser without wheels for new Pythons, is not installed."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from acestep_mlx.families.v1.lyrics.normalise import japanese

LINES = Path(__file__).parent / "data" / "lines" / "ja.txt"
HALF_WIDTH = [chr(code) for code in range(0xFF61, 0xFFA0)]
ROMAJI = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))  # None: the import fails
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in {blocked!r} else found(name, *a)
from acestep_mlx.families.v1.lyrics.normalise.japanese import romaji
for name in {blocked!r}:
    if name == "mojimoji": del sys.modules[name]
print("\\n".join(romaji(line) for line in open({lines!r}, encoding="utf-8").read().splitlines()))
"""


def romanised(blocked: list[str]) -> subprocess.CompletedProcess[str]:
    code = ROMAJI.format(blocked=blocked, lines=str(LINES))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")


def test_without_mojimoji_the_romaji_are_the_same() -> None:
    pytest.importorskip("mojimoji", reason="no wheel for this Python")
    here = "\n".join(japanese.romaji(line) for line in LINES.read_text(encoding="utf-8").splitlines())
    without = romanised(["mojimoji"])
    assert without.stdout.strip() == here.strip(), without.stderr


def test_the_stand_in_is_mojimoji_s_equal_on_every_character() -> None:
    mojimoji = pytest.importorskip("mojimoji", reason="no wheel for this Python")
    ours = japanese._width_conversion()
    characters = [chr(code) for code in range(0x11000) if not 0xD800 <= code < 0xE000]
    texts = [*characters, *map("".join, product(HALF_WIDTH, repeat=2)), "ﾊﾟｰﾃｨｰ １２３ ＡＢＣ　ｶﾞ ﾞ"]
    for text in texts:
        assert ours.zen_to_han(text, kana=False) == mojimoji.zen_to_han(text, kana=False), text
        wide = mojimoji.han_to_zen(text, digit=False, ascii=False)
        assert ours.han_to_zen(text, digit=False, ascii=False) == wide, text


def test_without_the_romaniser_one_line_says_how_to_get_it() -> None:
    without = romanised(["cutlet"])
    assert without.returncode
    assert (
        without.stderr.strip()
        .splitlines()[-1]
        .endswith("Japanese lyrics need cutlet, which is not installed; pip install --no-deps cutlet==0.5.2")
    )


def test_the_advised_release_is_the_one_that_is_tested() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert japanese.INSTALL.split()[-1] in makefile
