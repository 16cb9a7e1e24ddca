"""How far long work is: one signature for all of it. `cli.progress` draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Advance:
    """`done` of `total` of a stage; with a total of 0, `stage` is a line worth saying once.

    unit: songs and the like (of one in work a fraction is done), bytes (their total is of all stages
    together), the share of a stage whose units say nothing to people, or a phase: work of which it is worth
    saying that it goes on, and how far where it has a total above 1. note: what is in work, as a song's name.
    """

    stage: str = ""
    done: float = 0
    total: float = 0
    unit: Literal["items", "bytes", "share", "phase"] = "items"
    note: str = ""


Progress = Callable[[Advance], None]


def silent(advance: Advance) -> None:
    """The progress of work that nobody watches."""


TRAINING = "training"  # the phase between everything that a run does beside its steps


def phase(stage: str, done: float = 0, total: float = 1, note: str = "") -> Advance:
    """Work goes on: for what cannot be counted, and for what is done between steps."""
    return Advance(stage, done, total, "phase", note)


def part(progress: Progress, index: int, count: int) -> Progress:
    """For part `index` of `count` equal ones: its progress as that of the whole."""
    return lambda a: progress(replace(a, done=index + a.done / a.total, total=count))


def as_stage(progress: Progress, stage: str) -> Progress:
    """For work that does not name itself: its progress as a share of `stage`."""
    return lambda a: progress(Advance(stage, a.done / a.total, 1, "share"))
