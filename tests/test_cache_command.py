"""What `cache` hands on from its command line, and the numbers that it says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from acestep_mlx.cli import cache, main
from acestep_mlx.data import encode, manifest
from acestep_mlx.training import prepared


@pytest.mark.parametrize(
    ("seconds", "skipped", "used", "line"),
    [
        ([60.0], 0, 5_000_000, "1 song, 1.0 minutes; 5.00 MB of caches (5.00 MB per minute)"),
        (
            [90.0, 150.0],
            1,
            6_000_000,
            "2 songs, 4.0 minutes, 1 skipped; 6.00 MB of caches (1.50 MB per minute)",
        ),
        ([30.0], 12, 1000, "1 song, 0.5 minutes, 12 skipped; 1.00 kB of caches (2.00 kB per minute)"),
        ([], 2, 0, "0 songs, 0.0 minutes, 2 skipped; 0 bytes of caches (0 bytes per minute)"),
    ],
)
def test_the_summary(seconds: list[float], skipped: int, used: int, line: str) -> None:
    found: Any = SimpleNamespace(
        samples=[SimpleNamespace(seconds=s) for s in seconds],
        skipped=[("a", "b")] * skipped,
        disk_usage=lambda: used,
    )
    assert cache.summary(found) == line


@pytest.mark.parametrize("prune", [False, True])
def test_everything_is_encoded_and_what_is_not_used_goes_only_where_that_was_asked_for(
    prune: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On-demand data sets too: this command is what fills their caches."""
    asked: dict[str, Any] = {}
    pruned: list[bool] = []

    def encoded(found: Any, config: Any, folder: Any, progress: Any, *, everything: bool = False) -> Any:
        asked.update(everything=everything, rank=config.lora_rank)
        return SimpleNamespace(
            samples=[], skipped=[], disk_usage=lambda: 0, prune=lambda: pruned.append(True) or (3, 2_000_000)
        )

    report = SimpleNamespace(lines=lambda limit: ["the report"])
    monkeypatch.setattr(manifest, "build_manifest", lambda *_, **__: SimpleNamespace(report=report))
    monkeypatch.setattr(prepared, "open_model", lambda config, progress: None)
    monkeypatch.setattr(encode, "encode_dataset", encoded)
    with pytest.raises(SystemExit) as end:
        main(["cache", "example=my-songs", "--lora_rank=7", *(["--prune"] if prune else [])])
    out = capsys.readouterr().out
    assert end.value.code == 0 and asked == {"everything": True, "rank": 7}
    assert bool(pruned) == prune == ("deleted 3 cache files not in use, 2.00 MB" in out)
    assert out.startswith("the report")
