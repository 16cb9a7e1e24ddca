"""The text files of a miniature checkpoint: a lyric vocabulary and a prompt tokenizer, both our own."""

from __future__ import annotations

import json
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from .lyrics.tokenizer import FIXED_IDS

LANGUAGES = "fr es it pt pl tr ru cs nl ar zh-cn ja hu ko hi"
STRUCTURE = "start intro verse chorus bridge outro end inst solo hook pre-chorus break"
LETTERS = "ßäöüœïêâÿèàëùîçæôûáéíóúñńśęążćãşğıčřšžěůťďňőűłźõ" + "абвгдежзийклмнопрстуфхцчшщъыьэюяё"
TEXT = """oh love the night is falling and you are not alone sing with me until the morning light we run
through fire and rain hold my hand dance in the street of broken dreams every heart will find a home again
there was a time when we were young and wild never let me go come back to me baby tonight the stars are
shining over the sea my soul is flying higher than the sky take me away from here tell me that you love
me one more time under the moon we were dancing all the night long nothing can stop us now this is our song
yeah hey summer winter river mountain road dream believe forever remember together nothing something
black white golden silver whisper thunder lightning ocean desert highway station window picture question"""


# What the miniature prompt tokenizer knows as whole words.
WORDS = """a and the of with in on for to slow fast sad happy calm jazz rock pop folk techno house ambient
classical metal blues funk soul disco hip hop ballad piano guitar bass drums strings violin synth vocal
vocals male female choir voice instrumental acoustic electric bright dark warm energetic dreamy song music
melody beat bpm major minor key live studio"""


def byte_pairs(words: list[str], count: int) -> list[tuple[str, str]]:
    """The `count` most frequent byte-pair merges of the words, ties broken by the alphabet."""
    pieces = [list(word) for word in words]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(pair for word in pieces for pair in pairwise(word))
        if not pairs:
            raise ValueError(f"the words give {len(merges)} merges, {count} are needed")
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def miniature_vocabulary() -> dict[str, Any]:
    """A small vocabulary of our own as a `tokenizers` BPE file, with the ids that the model relies on.

    0 [STOP], 1 [UNK], 2 [SPACE] (also the end of a line), 259 [en], 260 [de], 261 [START]; then the other
    languages, letters of theirs, and the structure tags.
    """
    ids: dict[str, int] = {}

    def add(token: str) -> None:
        ids.setdefault(token, len(ids))

    for token in ("[STOP]", "[UNK]", "[SPACE]", *"!'(),-./:;?", *string.ascii_lowercase, *string.digits):
        add(token)
    merges = byte_pairs(TEXT.split(), FIXED_IDS["[en]"] - len(ids))
    for pair in merges:
        add("".join(pair))
    if len(ids) != FIXED_IDS["[en]"]:
        raise ValueError(f"two merges make the same token: {len(ids)} ids")
    languages, structure = ([f"[{tag}]" for tag in tags.split()] for tags in (LANGUAGES, STRUCTURE))
    for token in (*FIXED_IDS, *languages, *LETTERS, *structure):
        add(token)
    special = ("[STOP]", "[UNK]", "[SPACE]", *FIXED_IDS, *languages, *structure)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "vocab": ids,
            "merges": [" ".join(pair) for pair in merges],
        },
    }


def write_prompt_tokenizer(folder: Path, vocab_size: int) -> None:
    """A small UMT5-like tokenizer: Unigram, `▁` for spaces, `</s>` at the end; pads with id 0."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    known = ["▁", *(f"▁{word}" for word in WORDS.split())]
    known += [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces += [(piece, -2.0 - 0.01 * i) for i, piece in enumerate(dict.fromkeys(known))]
    if len(pieces) > vocab_size:
        raise ValueError(f"the tokenizer has {len(pieces)} pieces, the text encoder only {vocab_size}")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5Tokenizer",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
