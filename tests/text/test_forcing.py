"""Forcing a language from outside the text: the request of a song and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from acestep_mlx.cli.generate import command
from acestep_mlx.cli.info import command as info
from acestep_mlx.config.request import Request
from acestep_mlx.errors import ConfigError
from acestep_mlx.pipeline import ACEStepPipeline


def test_requests_take_a_language_and_check_it() -> None:
    assert Request(prompt="x").lyrics_language == "auto"
    assert Request(prompt="x", lyrics_language="Japanese").lyrics_language == "Japanese"
    with pytest.raises(ConfigError, match="lyrics_language 'klingon' is not one the model sings"):
        Request(prompt="x", lyrics_language="klingon")


def test_commands_have_the_flag() -> None:
    for cli in (command, info):
        assert "--lyrics-language" in {flag for option in cli.params for flag in option.opts}


def test_pipeline_reads_the_lyrics_in_that_language(tiny_model: Path) -> None:
    pipe = ACEStepPipeline.from_pretrained(tiny_model)
    request = {"prompt": "jazz", "lyrics": "[verse]\nlove"}
    free, forced = (pipe.prepare(Request(**request, lyrics_language=name)).prompt for name in ("auto", "ja"))
    assert forced.lyric_ids.tolist() == [pipe.lyric_tokenizer.tokenize("[verse]\nlove", "ja")]
    assert forced.lyric_ids.tolist() != free.lyric_ids.tolist()
