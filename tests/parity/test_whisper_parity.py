"""Whisper against transformers' in PyTorch: what it hears, what it says, and in which order."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.speech.transcribe import LATEST, Tokens
from acestep_mlx.speech.whisper import RATE, load_whisper, log_mel

from ..later import Later
from ..speech.scripted import END, GENERATION, LANGUAGES, START, TIME, TRANSCRIBE, VOCABULARY

torch = Later("torch")
pytestmark = [pytest.mark.parity, pytest.mark.slow]
SOUND = np.random.default_rng(0).standard_normal(4 * RATE).astype(np.float32) * np.hanning(4 * RATE)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' network, small and with random weights, and ours through the files that it writes."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=40, num_mel_bins=80,
        pad_token_id=20, bos_token_id=20, eos_token_id=20, decoder_start_token_id=START,
    )  # fmt: skip
    theirs = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.7 if "embed" in name else 0.3
            parameter.add_(spread * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("whisper")
    theirs.save_pretrained(path)
    return theirs, path


def frames() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 3000, 80)).astype(np.float32)


def difference(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a) - b.detach().numpy()).max() / max(1.0, float(b.abs().max())))


def test_states_and_logits(pair: Any) -> None:
    theirs, path = pair
    ours = load_whisper(path, json.loads((path / "config.json").read_text()))
    mel, ids = frames(), [START, *range(10), 700, 701]
    with torch.no_grad():
        states = theirs.model.encoder(torch.tensor(mel).mT).last_hidden_state
        logits = theirs(torch.tensor(mel).mT, decoder_input_ids=torch.tensor([ids])).logits
    heard = ours.encoder(mx.array(mel))
    assert difference(heard, states) <= 1e-4
    keys = ours.decoder.hears(heard)
    whole, _ = ours.decoder(mx.array([ids]), keys)
    assert difference(whole, logits) <= 1e-4
    cache, rows = None, []
    for part in (ids[:3], *([one] for one in ids[3:])):
        row, cache = ours.decoder(mx.array([part]), keys, cache)
        rows.append(row)
    assert difference(mx.concatenate(rows, axis=1), logits) <= 1e-4


@pytest.mark.parametrize("mels", [80, 128])
def test_the_spectrogram(mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=mels)
    theirs = extractor(SOUND, sampling_rate=RATE, padding="do_not_pad", return_tensors="np").input_features[0]
    assert np.abs(log_mel(SOUND, mels) - theirs.T).max() <= 1e-4


def test_the_same_tokens_may_follow() -> None:
    """Of histories of every kind: nothing, text, a line's end, the next one's start, times that went on."""
    from transformers import GenerationConfig
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    config = GenerationConfig(**{**GENERATION, "bos_token_id": END})
    config.max_initial_timestamp_index = LATEST
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=3)
    ours, rng = Tokens.of(dict(GENERATION)), np.random.default_rng(2)
    for n in range(400):
        times = np.sort(rng.integers(TIME, TIME + 1500, 9)).tolist()
        before = [times.pop(0) if rng.random() < 0.6 else int(rng.integers(10)) for _ in range(n % 9)]
        logits = rng.standard_normal(VOCABULARY).astype(np.float32) * (1 if n % 2 else 4)
        ids = torch.tensor([[START, LANGUAGES["<|en|>"], TRANSCRIBE, *before]])
        scores = torch.tensor(logits)[None].clone()
        if not before:
            scores[:, END] = -np.inf
        wanted = theirs(ids, scores)[0].numpy()
        ours.mask(logits, before)
        assert np.array_equal(logits, wanted), before
