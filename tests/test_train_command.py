"""What `train` hands on from its command line, and what a run leaves behind in the process."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.cli import main, train
from acestep_mlx.errors import ConfigError
from acestep_mlx.report.events import Notice
from acestep_mlx.training import preflight
from acestep_mlx.training import run as loop
from acestep_mlx.training.run import TrainResult


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"output_dir": str(tmp_path / "out"), "lora_rank": 8}))
    return str(path)


def ended(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        main(["train", *arguments])
    return stop.value.code


class Called(Exception):
    """With what a function was called."""

    def __init__(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.arguments, self.options = arguments, options


def calls(*arguments: Any, **options: Any) -> Any:
    raise Called(arguments, options)


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
@pytest.mark.parametrize("overrides", [[], ["--lora_rank=4"]])
def test_the_run_begins_anew_only_where_that_was_asked_for(
    flags: list[str], overrides: list[str], config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train", calls)
    with pytest.raises(Called) as called:
        main(["train", config, *flags, *overrides])
    assert called.value.options["overwrite"] == bool(flags)
    assert called.value.arguments[0].lora_rank == (4 if overrides else 8)
    assert called.value.options["stop"].exit_code == 130


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_the_dry_run_checks_what_the_run_would(
    flags: list[str], config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("it trains"))
    monkeypatch.setattr(preflight, "preflight", calls)
    with pytest.raises(Called) as called:
        main(["train", config, "--dry-run", *flags])
    assert called.value.options["overwrite"] == bool(flags)


@pytest.mark.parametrize("gone", [False, True])
def test_a_reader_that_is_gone_ends_the_run_with_a_checkpoint(
    gone: bool, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def run(config: Any, *, on_event: Callable[..., None], stop: Any, **_: Any) -> TrainResult:
        on_event(Notice("one"))
        asked.append(stop.requested)
        return TrainResult(3, not stop.requested, None, Path("checkpoint-3"), None)

    monkeypatch.setattr(train, "reader_gone", lambda stream: gone)
    monkeypatch.setattr(loop, "train", run)
    assert ended(config) == (130 if gone else 0) and asked == [gone]


@pytest.mark.parametrize("outcome", ["done", "refused", "interrupted"])
def test_a_run_leaves_the_process_as_it_was(
    outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of kept buffers, the handlers of signals, and no lock in the folder."""

    def run(job: Any) -> Any:
        assert mx.set_cache_limit(loop.cache_limit()) == loop.cache_limit()
        if outcome == "refused":
            raise ConfigError("no")
        if outcome == "interrupted":
            raise KeyboardInterrupt
        return "done"

    monkeypatch.setattr(loop, "_train", run)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    mine = {number: lambda *_: None for number in numbers}
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    limit = mx.set_cache_limit(12_345_678)
    try:
        try:
            assert loop.train({"output_dir": str(tmp_path / "out")}) == outcome
        except (ConfigError, KeyboardInterrupt):
            assert outcome != "done"
        assert mx.set_cache_limit(limit) == 12_345_678
        assert {number: signal.getsignal(number) for number in numbers} == mine
        assert not list(tmp_path.rglob("*.lock"))
    finally:
        mx.set_cache_limit(limit)
        for number, handler in before.items():
            signal.signal(number, handler)
