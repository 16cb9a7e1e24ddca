"""Drafts of lyrics: only what the model is sure of, each window by itself, and never more than was heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.errors import CheckpointError, DataError
from acestep_mlx.speech import transcribe
from acestep_mlx.speech.find import find_whisper
from acestep_mlx.speech.transcribe import Transcriber, Transcript
from acestep_mlx.speech.whisper import RATE, load_whisper, log_mel

from .scripted import CONFIG, LANGUAGES, START, TRANSCRIBE, Network, folder, line

SOUND = np.sin(np.arange(60 * RATE) / 9).astype(np.float32)


@pytest.fixture
def hear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The draft that a scripted network makes of a minute."""

    def draft(
        network: Network, language: str | None = "en", seconds: float = 60, **change: Any
    ) -> Transcript:
        monkeypatch.setattr(transcribe, "load_whisper", lambda folder, config: network)
        found = Transcriber(folder(tmp_path / "model", **change))
        return found.hear(SOUND[: int(seconds * RATE)], language)

    return draft


def test_lines_of_all_windows_and_stanzas_where_nobody_sings(hear: Any) -> None:
    first = [*line(0, 3, "la la la"), *line(3, 6, "we will sing")]
    second = line(1, 9, "all night long")
    draft = hear(Network(first, second))
    assert draft.lyrics.split("\n") == ["lalala", "wewillsing", "", "allnightlong"]
    assert 0.9 <= draft.confidence < 0.99  # where few tokens may follow, one is surer
    assert (draft.unsure, draft.repeats, draft.language) == (0, 0, "en")


def test_no_text_is_carried_over_to_the_next_window(hear: Any) -> None:
    network = Network(line(0, 9, "la la"), line(0, 9, "li li"))
    hear(network, "de")
    assert network.prompts == [[START, LANGUAGES["<|de|>"], TRANSCRIBE]] * 2


def test_a_line_that_the_window_cuts_is_heard_whole_in_the_next(hear: Any) -> None:
    cut = [*line(0, 20, "la la"), *line(20, 0, "we")[:2]]
    network = Network(cut, line(0, 4, "we will sing"), line(0, 4, "lo"))
    assert hear(network).lyrics.split("\n") == ["lala", "wewillsing", "", "lo"]
    assert len(network.prompts) == 3  # 0–20, 20–50, 50–60


@pytest.mark.parametrize(
    ("sure", "looping"), [(0.15, False), (0.99, True)], ids=["not sure of it", "goes round in circles"]
)
def test_windows_that_are_made_up_give_nothing(hear: Any, sure: float, looping: bool) -> None:
    text = " ".join(["we will sing"] * 30) if looping else "we will sing"
    draft = hear(Network(line(0, 9, text), line(0, 9, text), sure=sure))
    assert draft == Transcript("", "en", 0.0, 60.0, 0)
    assert "instrumental" not in repr(draft)


def test_only_the_window_that_is_not_sure_is_left_out(hear: Any) -> None:
    draft = hear(Network(line(0, 9, " ".join(["la li"] * 60)), line(0, 9, "all night long")))
    assert (draft.lyrics, draft.unsure) == ("allnightlong", 30.0)


def test_a_line_said_again_at_once_is_left_out_and_counted(hear: Any) -> None:
    one = [*line(0, 3, "la la"), *line(3, 5, "la la ."), *line(5, 6, "li li"), *line(6, 8, "la la")]
    draft = hear(Network(one, line(0, 2, "la la")))
    assert draft.lyrics.replace("\n\n", "\n").split("\n") == ["lala", "lili", "lala"]
    assert draft.repeats == 2


def test_notes_and_stops_alone_are_no_lines(hear: Any) -> None:
    draft = hear(Network([*line(0, 3, "♪"), *line(3, 6, "la la")], line(0, 3, ".")))
    assert draft.lyrics == "lala"


def test_the_language_is_that_of_the_windows_where_somebody_sings(hear: Any) -> None:
    chances = [(0.98, 0.019, 0.001), (0.1, 0.1, 0.8)]  # English, where hardly anybody sings
    network = Network(line(0, 9, "la"), line(0, 9, "li"), languages=chances)
    assert hear(network, None).language == "de"


def test_a_model_of_english_alone_is_asked_for_no_language(hear: Any) -> None:
    network = Network(line(0, 9, "la"), line(0, 9, "li"))
    assert hear(network, None, lang_to_id=None, task_to_id=None).language == "en"
    assert network.prompts == [[START]] * 2


def test_a_language_that_the_model_does_not_know(hear: Any) -> None:
    with pytest.raises(DataError, match="knows no language 'tlh'"):
        hear(Network([]), "tlh")


def test_how_far_it_is_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(line(0, 9, "la"), line(0, 9, "li"))
    monkeypatch.setattr(transcribe, "load_whisper", lambda folder, config: network)
    told: list[float] = []
    Transcriber(folder(tmp_path)).hear(SOUND[: 45 * RATE], "en", told.append)
    assert told == [pytest.approx(2 / 3), 1]


def test_a_song_shorter_than_a_frame_has_no_lyrics(hear: Any) -> None:
    assert hear(Network([]), seconds=0.005).lyrics == ""


def test_the_spectrogram_ends_with_the_song_and_is_no_more_than_two_deep() -> None:
    mel = log_mel(np.concatenate([SOUND[:RATE], np.zeros(RATE, np.float32)]), 80)
    assert mel.shape == (200, 80)
    assert mel.max() - mel.min() == pytest.approx(2.0)


def test_where_a_model_is(tmp_path: Path) -> None:
    assert find_whisper(str(tmp_path)) == tmp_path
    for name in ("whisper-base", str(tmp_path / "none"), "./openai/whisper"):
        with pytest.raises(CheckpointError, match=r"no such folder \(and not a hub repository"):
            find_whisper(name)
    with pytest.raises(CheckpointError, match="openai/whisper-none: no such folder here, and HF_HUB_OFFLINE"):
        find_whisper("openai/whisper-none")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_named(tmp_path: Path, name: str) -> None:
    (folder(tmp_path) / name).unlink()
    with pytest.raises(CheckpointError, match=f"it has no {name}"):
        Transcriber(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("no_timestamps_token_id", None), ("lang_to_id", {"<|en|>": "one"}), ("suppress_tokens", [-1])],
)
def test_tokens_that_are_none(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"generation_config.json: {key}"):
        Transcriber(folder(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value"), [("eos_token_id", 9999), ("lang_to_id", {"<|en|>": 9999}), ("suppress_tokens", [9999])]
)
def test_tokens_that_the_model_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any
) -> None:
    monkeypatch.setattr(transcribe, "load_whisper", lambda folder, config: Network())
    with pytest.raises(CheckpointError, match="names tokens that the model lacks"):
        Transcriber(folder(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"d_model": 30}, "30 is no multiple of 8 heads"),
        ({"encoder_layers": 99}, "asks for 99 layers"),
        ({}, "unknown tensor 'encoder.nonsense'"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"model.encoder.nonsense": mx.zeros((2,))})
    small = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16}
    with pytest.raises(CheckpointError, match=said):
        load_whisper(tmp_path, {**CONFIG, **small, **change})


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(CheckpointError, match="a pickle"):
        load_whisper(tmp_path, CONFIG)
