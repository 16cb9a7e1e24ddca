"""ComfyUI's all-in-one checkpoint becomes the same MLX folder as upstream's, its tokenizer included."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from acestep_mlx.cli import main
from acestep_mlx.convert.conversions import ensure_model
from acestep_mlx.convert.converter import convert
from acestep_mlx.errors import CheckpointError
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v1.layouts import ALL_IN_ONE, FOLDERS
from acestep_mlx.families.v1.miniature_text import TEXT, WORDS
from acestep_mlx.families.v1.spiece import tokenizer_json

PREFIXES = {name: place.names[0][0] for name, place in ALL_IN_ONE.places.items()}

sentencepiece = pytest.importorskip("sentencepiece")

PROMPTS = (
    "slow jazz ballad, piano", "", "  two  spaces ", "Straße, naïve café", "日本語の歌", "tab\tand\nline",
    "½ ﬁ Ⅳ ﷺ", "▁already", "emoji 🎵 drum & bass 170 bpm", "a" * 300, "e\u0301 \u00a0 x\u200b",
)  # fmt: skip


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A small UMT5-like model: Unigram, `<pad>` 0, `</s>` 1, `<unk>` 2, upstream's normaliser."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXT.split("\n"), *WORDS.split("\n"), "Straße naïve 日本語 &"]),
        model_writer=out, vocab_size=200, hard_vocab_limit=False, model_type="unigram", minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    return out.getvalue()


def tensors_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """The checkpoint's tensors under ComfyUI's names, and the number that it keeps beside a text encoder."""
    found = {}
    for component, prefix in PREFIXES.items():
        for file in (checkpoint / FOLDERS.places[component].folder).glob("*.safetensors"):
            found |= {prefix + name: value for name, value in load_file(file).items()}
    return found | {"text_encoders.umt5base.logit_scale": np.array(4.6, np.float32)}


@pytest.fixture(scope="module")
def everything(tiny_checkpoint: Path, spiece: bytes) -> dict[str, np.ndarray]:
    return tensors_of(tiny_checkpoint) | {"spiece_model": np.frombuffer(spiece, np.uint8)}


@pytest.fixture(scope="module")
def single(everything: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comfyui") / "ace_step_v1_3.5b.safetensors"
    save_file(everything, path)
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


def ids_of(folder: Path, prompt: str) -> list[int]:
    from acestep_mlx.families.v1.prompt import PromptTokenizer

    return list(map(int, PromptTokenizer(folder / "tokenizer.json")(prompt)[0][0]))


def test_the_same_folder_as_from_upstreams_checkpoint(
    single: Path, tiny_checkpoint: Path, tiny_model: Path, spiece: bytes, tmp_path: Path
) -> None:
    vocab = tiny_checkpoint / "lyric_vocab.json"
    report = convert(single, tmp_path / "model", dtype="float32", lyric_vocab=vocab)
    ours, theirs = ModelFolder.open(tmp_path / "model"), ModelFolder.open(tiny_model)
    assert ours.fingerprints == theirs.fingerprints
    assert ours.config["components"] == theirs.config["components"]
    assert ours.config["source"] == {"path_or_repo": str(single), "revision": None}
    told = {n for p in report.components.values() for n in [*p.plan.converted, *p.plan.dropped]}
    names = load_file(single).keys()
    stripped = {n.removeprefix(next((p for p in PREFIXES.values() if n.startswith(p)), "")) for n in names}
    left = {n.rpartition(".")[2] for n in stripped - told}
    assert left == {"spiece_model", "logit_scale"} and "logit_scale" in told, "every tensor is accounted for"
    reference = sentencepiece.SentencePieceProcessor(model_proto=spiece, add_eos=True)
    for prompt in PROMPTS:
        wanted = reference.encode(prompt)
        assert ids_of(tmp_path / "model", prompt) == (wanted if len(wanted) <= 256 else [*wanted[:255], 1])


@pytest.mark.parametrize(
    "key", ["spiece_model", "text_encoders.spiece_model", "text_encoders.umt5base.spiece_model"]
)
def test_the_tokenizer_is_found_wherever_it_is_kept(key, everything, tiny_checkpoint, tmp_path):
    moved = {key if name == "spiece_model" else name: value for name, value in everything.items()}
    save_file(moved, tmp_path / "x.safetensors")
    vocab = tiny_checkpoint / "lyric_vocab.json"
    convert(tmp_path / "x.safetensors", tmp_path / "model", lyric_vocab=vocab)
    assert ids_of(tmp_path / "model", "jazz")[-1] == 1


@pytest.mark.parametrize("how", ["tokenizer.json", "folder", "spiece.model", "folder with spiece.model"])
def test_a_file_without_tokenizer_needs_one(how, everything, spiece, tiny_checkpoint, tmp_path, capsys):
    bare = {name: value for name, value in everything.items() if name != "spiece_model"}
    path = tmp_path / "x.safetensors"
    save_file(bare, path)
    command = ("convert", "--hf-path", path, "--mlx-path", tmp_path / "model")
    vocab = ("--lyric-vocab", tiny_checkpoint / "lyric_vocab.json")
    assert run(*command, *vocab) == 1
    error = capsys.readouterr().err
    assert "carries no tokenizer; give the tokenizer with --tokenizer" in error
    assert not (tmp_path / "model").exists()
    assert run("info", path) == 0
    assert "carries no tokenizer" in capsys.readouterr().out
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "spiece.model").write_bytes(spiece)
    given = {
        "tokenizer.json": tiny_checkpoint / "umt5-base" / "tokenizer.json",
        "folder": tiny_checkpoint / "umt5-base",
        "spiece.model": tmp_path / "words" / "spiece.model",
        "folder with spiece.model": tmp_path / "words",
    }[how]
    assert run(*command, *vocab, "--tokenizer", given) == 0
    assert ids_of(tmp_path / "model", "slow jazz")[-1] == 1


def test_tokenizers_that_are_none(single, tiny_checkpoint, tmp_path):
    vocab = tiny_checkpoint / "lyric_vocab.json"
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.model").write_bytes(b"\x0a\xff")
    os.mkfifo(tmp_path / "pipe")
    for given_path, says in (
        (tmp_path / "none", "No such file"),
        (tmp_path / "empty", "holds no tokenizer.json"),
        (tmp_path / "x.model", "not a SentencePiece model"),
        (tmp_path / "pipe", "named pipe"),
        (vocab, "not UMT5's tokenizer"),
    ):
        with pytest.raises(CheckpointError, match=says) as error:
            convert(single, tmp_path / "model", lyric_vocab=vocab, tokenizer=given_path)
        assert "\n" not in str(error.value) and not (tmp_path / "model").exists()


def without(part: str):
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


def with_one(name: str, *shape: int):
    return lambda tensors: tensors | {name: np.ones(shape, np.float32)}


def with_tokenizer(make):
    return lambda tensors: tensors | {"spiece_model": make(tensors["spiece_model"].tobytes())}


BROKEN = {
    "no vocoder": (without("vocoder"), "no vocoder .tensors vae.vocoder"),
    "no text encoder": (without("umt5"), "no text_encoder"),
    "a stranger": (with_one("model.extra.weight", 3), "unknown tensor 'model.extra.weight'"),
    "a stranger inside": (with_one("vae.dcae.extra.weight", 3), "unknown tensor 'extra.weight'"),
    "a tensor less": (without("lyric_proj.bias"), "missing tensor 'lyric_proj.bias'"),
    "a block less": (without("transformer_blocks.1."), "2|missing"),
    "another width": (
        with_one("model.diffusion_model.speaker_embedder.weight", 96, 64),
        "speaker_embedder is 96×64; without a config.json only",
    ),
    "a damaged tokenizer": (with_tokenizer(lambda b: np.frombuffer(b[:-7], np.uint8)), "not a SentencePiece"),
    "no Unigram": (with_tokenizer(lambda _: np.frombuffer(b"\x0a\x03\x0a\x01x", np.uint8)), "not UMT5's"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_line(name, everything, tiny_checkpoint, tmp_path):
    change, says = BROKEN[name]
    save_file(change(dict(everything)), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=says) as error:
        convert(tmp_path / "x.safetensors", tmp_path / "m", lyric_vocab=tiny_checkpoint / "lyric_vocab.json")
    assert "\n" not in str(error.value) and "x.safetensors" in str(error.value)
    assert not (tmp_path / "m").exists()


def test_other_files_are_refused_by_name(tmp_path):
    save_file(
        {"transformer_blocks.0.attn.to_q.lora_A.weight": np.ones((2, 2), np.float32)},
        tmp_path / "l.safetensors",
    )
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "x.ckpt").write_bytes(b"\x80\x02")
    for path, says in (
        ("l.safetensors", "is a file, and not ComfyUI's"),
        ("notes.txt", "is a file, and not"),
        ("x.ckpt", "pickle"),
    ):
        with pytest.raises(CheckpointError, match=says):
            convert(tmp_path / path, tmp_path / "m")


def test_info_and_train_take_it(single, tiny_checkpoint, tmp_path, capsys, monkeypatch):
    assert run("info", single) == 0
    out = capsys.readouterr().out
    assert "ComfyUI's all-in-one checkpoint of ACE-Step v1" in out and "2.09 M parameters" in out
    assert f"acestep-mlx convert --hf-path {single} --mlx-path OUT" in out and "--tokenizer" not in out
    from acestep_mlx.families.v1.lyrics import vocabulary as lyric_vocab

    found = lyric_vocab.find(tiny_checkpoint / "lyric_vocab.json", tiny_checkpoint, 6693)
    monkeypatch.setattr(lyric_vocab, "find", lambda *a, **k: found)
    folder = ensure_model(single, cache_dir=tmp_path)
    assert ensure_model(single, cache_dir=tmp_path) == folder, "converted once"
    assert ModelFolder.open(folder).config["source"]["path_or_repo"] == str(single)
    other = tmp_path / single.name
    other.write_bytes(single.read_bytes())
    os.utime(other, ns=(1, 1))
    assert ensure_model(other, cache_dir=tmp_path) != folder, "another file under the same name"


# The tokenizer alone ----------------------------------------------------------------------------------------


def encodings(data: bytes):
    from tokenizers import Tokenizer

    theirs = sentencepiece.SentencePieceProcessor(model_proto=data, add_eos=True)
    ours = Tokenizer.from_str(tokenizer_json(data, "x"))
    return (lambda text: ours.encode(text).ids), theirs.encode


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0<▁"), max_size=40))
@example("jazz  rock\u3000song")
def test_any_prompt_has_sentencepieces_ids(spiece: bytes, prompt: str) -> None:
    ours, theirs = encodings(spiece)
    assert ours(prompt) == theirs(prompt)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_damage_is_one_line_or_still_a_tokenizer(spiece: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(spiece) - 1))
    broken = spiece[:at] + bytes([data.draw(st.integers(0, 255))]) + spiece[at + 1 :]
    for one in (broken, spiece[:at]):
        try:
            assert tokenizer_json(one, "x")
        except CheckpointError as error:
            assert "\n" not in str(error)


def message(*pieces: tuple[str, int], more: bytes = b"") -> bytes:
    """A SentencePiece model of (text, kind) by hand, each with a score; `more` are further fields."""
    data = b""
    for text, kind in pieces:
        name = text.encode()
        piece = (
            b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", -1.0) + b"\x18" + bytes([kind])
        )
        data += b"\x0a" + bytes([len(piece)]) + piece
    return data + more


GOOD = (("<pad>", 3), ("</s>", 3), ("<unk>", 2), ("▁", 1), ("▁a", 1), ("b", 1))


def test_fields_that_are_not_needed_are_passed_over() -> None:
    wide = (
        b"\x51" + bytes(8) + b"\x55" + bytes(4) + b"\x58\x80\x01" + b"\x62\x02hi"
    )  # 64 and 32 bits, number, text
    for more in (b"", wide):
        ours, theirs = encodings(message(*GOOD, more=more))
        assert ours("a b") == theirs("a b") and ours("a b")[-1] == 1


@pytest.mark.parametrize(
    "pieces",
    [
        (("</s>", 3), ("<pad>", 3), ("<unk>", 2), ("▁a", 1)),
        (("<s>", 3), ("</s>", 3), ("<unk>", 2), ("▁a", 1)),
        (("<pad>", 3), ("</s>", 3), ("▁a", 1)),
        (("<pad>", 3), ("</s>", 3), ("<unk>", 2), ("▁a", 2)),
    ],
)
def test_models_with_other_places_for_their_marks_are_refused(pieces: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(CheckpointError, match="x: not UMT5's tokenizer"):
        tokenizer_json(message(*pieces), "x")


def test_a_model_of_byte_pairs_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not UMT5's tokenizer"):
        tokenizer_json(message(*GOOD, more=b"\x12\x02\x18\x02"), "x")  # trainer: model_type 2


def test_a_tokenizer_beyond_all_measure_is_not_read(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from acestep_mlx.families.v1 import prompt_files

    assert prompt_files.spiece_in(single)
    monkeypatch.setattr(prompt_files, "MAX_BYTES", 10)
    with pytest.raises(CheckpointError, match="'spiece_model' is too large for a tokenizer"):
        prompt_files.spiece_in(single)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(single, tiny_checkpoint, tmp_path):
    size = 384  # of the miniature's text encoder
    for ids, fits in ((size, True), (size + 1, False)):
        pieces = [*GOOD, *((f"{i}x", 1) for i in range(ids - len(GOOD)))]
        (tmp_path / "spiece.model").write_bytes(message(*pieces))
        target, vocab = tmp_path / f"{ids}", tiny_checkpoint / "lyric_vocab.json"
        if fits:
            convert(single, target, lyric_vocab=vocab, tokenizer=tmp_path)
            continue
        with pytest.raises(CheckpointError, match="has ids up to 384, the text encoder only 384"):
            convert(single, target, lyric_vocab=vocab, tokenizer=tmp_path)
