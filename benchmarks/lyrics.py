"""How long a thousand songs of 300 words take to tokenise, and the first import: python benchmarks/lyrics.py

--vocab: the lyric vocabulary (default: the one that an installed package carries). Songs in which hardly a
line comes twice, in all seventeen languages, after warm-up, on one core.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from acestep_mlx.families.v1.lyrics.vocabulary import find
from acestep_mlx.text.languages import LANGUAGES

DATA = Path(__file__).parents[1] / "tests" / "text" / "data"


def songs(each: int) -> dict[str, list[str]]:
    """Language → that many songs, from the lines of the tests."""
    rows = [row.split("\t") for row in (DATA / "detection.tsv").read_text(encoding="utf-8").splitlines()]
    draw = random.Random(1)
    found = {}
    for code in sorted(LANGUAGES):
        lines = [row[1] for row in rows if row[0] == code]
        if code in ("zh", "ja"):  # about two characters a word
            made = ["\n".join(draw.choices(lines, k=600 // len(lines[0]))) for _ in range(each)]
        else:
            words = [word for line in lines for word in line.split()]
            made = ["\n".join(" ".join(draw.choices(words, k=6)) for _ in range(50)) for _ in range(each)]
        found[code] = made
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--each", type=int, default=6, help="songs of each language")
    parser.add_argument("--quick", action="store_true", help="one song of each language")
    options = parser.parse_args()

    start = time.process_time()
    from acestep_mlx.families.v1.lyrics.tokenizer import LyricTokenizer

    vocab = find(options.vocab, Path("nowhere"), 6693)
    path = Path("lyric_vocab.bench.json")
    path.write_bytes(vocab.data)
    tokenizer = LyricTokenizer(path)
    path.unlink()
    print(f"import and vocabulary: {time.process_time() - start:.2f} s")
    by_language = songs(1 + (1 if options.quick else options.each))  # the first is for the warm-up
    for made in by_language.values():
        tokenizer.tokenize(made[0] + "\n12")
    for code, made in by_language.items():
        start = time.process_time()
        for text in made[1:]:
            tokenizer.tokenize(text)
        seconds = (time.process_time() - start) / len(made[1:])
        print(f"{code}: {seconds * 1000:6.1f} s for 1,000 songs")


if __name__ == "__main__":
    main()
