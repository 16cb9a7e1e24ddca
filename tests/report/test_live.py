"""When the page of a run is written while it goes on, and how often."""

from __future__ import annotations

import errno

import pytest

from acestep_mlx.report import live
from acestep_mlx.report.events import CheckpointSaved, Evaluated, Event, Notice, StepDone, ValidationClip

STEP = StepDone(1, 2.0, 2.0, 1e-3, 0.5, 1.0, 9.0, 10**9, 5.0, 0, 1.0)
CLIP = ValidationClip(1, "a", "b", "c.wav", 1)


class Clock:
    """Seconds that pass as a test says; a writing takes `takes` of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.takes = 100.0, 0.0
        self.written: list[str] = []
        self.told: list[str] = []
        self.full = False
        monkeypatch.setattr(live.time, "monotonic", lambda: self.now)
        self.live = live.Live(
            lambda: self.write("page"), self.news, lambda text, level: self.told.append(text)
        )

    def write(self, what: str) -> None:
        self.written.append(what)
        self.now += self.takes

    def news(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.write("news")

    def after(self, *events: Event) -> list[str]:
        """What is written after these."""
        self.written = []
        for event in events:
            self.live(event)
        return self.written


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_page_is_there_at_once_and_news_every_few_seconds(clock: Clock) -> None:
    assert clock.after(Notice("one")) == [] and clock.after(STEP, STEP) == ["page"]
    clock.now += live.PAUSE - 0.1
    assert clock.after(STEP, Evaluated(1, 1.0, {})) == []
    clock.now += 0.2
    assert clock.after(Evaluated(1, 1.0, {}), STEP) == ["news"]


def test_writing_takes_a_hundredth_of_the_time_at_most(clock: Clock) -> None:
    clock.takes = 0.5
    clock.after(STEP)
    clock.now += 49
    assert clock.after(STEP) == []
    clock.now += 2
    assert clock.after(STEP) == ["news"]


def test_clips_come_into_the_page_once_all_of_a_step_are_there(clock: Clock) -> None:
    clock.after(STEP)
    assert clock.after(CLIP, CLIP, CLIP) == [] and clock.after(STEP, STEP) == ["page"]
    assert clock.after(CLIP, CheckpointSaved(1, "x"), STEP) == [], "a checkpoint has written it"


def test_a_full_disk_is_said_once(clock: Clock) -> None:
    clock.after(STEP)
    clock.full = True
    for _ in range(2):
        clock.now += 60
        assert clock.after(STEP) == []
    (told,) = clock.told
    assert told == "report.html is not kept up to date: the disk is full"
