"""Everything that `doctor` finds, as one value: its lines for people, and JSON for bug reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..families import families, family
from ..families.work import SECONDS
from ..formatting import count, listed, rate, size
from .expectation import PRECISIONS, Expected, expected
from .machine import Machine, Surroundings, machine, surroundings
from .selfcheck import AS_TRAINED, STEP, Check, check_family
from .speed import Speed, measure

LITTLE_DISK = 20e9  # what a model, its download and a run take
Say = Callable[[str], None]


@dataclass(frozen=True)
class Diagnosis:
    """Of this machine, now."""

    machine: Machine
    surroundings: Surroundings
    checks: Sequence[Check]
    speed: Speed
    expected: Sequence[Expected]

    @property
    def wrong(self) -> list[Check]:
        """Computations whose numbers are not the reference's."""
        return [check for check in self.checks if not check.right]

    @property
    def sound(self) -> bool:
        return not self.wrong

    def verdict(self) -> str:
        """One line."""
        if self.wrong:
            names = listed([_label(check) for check in self.wrong], 3, ", ")
            return (
                f"WRONG: {len(self.wrong)} of {count(len(self.checks), 'computation')} do not give the "
                f"reference's numbers ({names}); do not train here, and report what --json prints"
            )
        if not self.machine.gpu:
            return (
                "no GPU that MLX can use: the CPU computes rightly, slowly; training wants a Mac with Apple "
                "silicon or an NVIDIA GPU"
            )
        fitting = [one for one in self.expected if one.fits]
        if not fitting:
            return "the GPU computes rightly; its memory is too small to train either model"
        trained = [
            f"{family(name).title} up to {max(e.seconds for e in fitting if e.family == name)} s"
            for name in dict.fromkeys(e.family for e in fitting)
        ]
        return f"the GPU computes rightly, and can train {' and '.join(trained)}"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; what is no finite number is null."""
        checks = [
            {**check._asdict(), "right": check.right, "error": _finite(check.error)} for check in self.checks
        ]
        return {
            "verdict": self.verdict(),
            "sound": self.sound,
            "machine": self.machine._asdict(),
            "surroundings": {**self.surroundings._asdict(), "undecoded": list(self.surroundings.undecoded)},
            "checks": checks,
            "speed": {
                "products": self.speed.products,
                "bandwidth": self.speed.bandwidth,
                "launch": self.speed.launch,
                "modes": self.speed.modes,
            },
            "expected": [one._asdict() for one in self.expected],
        }

    def lines(self) -> Iterator[str]:
        """One screen."""
        yield from self._machine_lines()
        yield ""
        yield from self._check_lines()
        yield from self._speed_lines()
        yield ""
        yield from self._expected_lines()
        yield ""
        yield f"verdict: {self.verdict()}"

    def _machine_lines(self) -> Iterator[str]:
        here, around = self.machine, self.surroundings
        yield "  ".join(f"{name} {number}" for name, number in here.versions.items())
        yield _row("machine", f"{here.chip}, {here.gpu or 'no GPU'}, {here.system}")
        limit = {None: "", 0: "; wired limit: the system's"}.get(
            here.wired_limit, f"; wired limit: {size(here.wired_limit or 0)}"
        )
        yield _row("memory", f"{size(here.memory)}, of which a run may take {size(here.usable)}{limit}")
        found = f"FFmpeg {around.ffmpeg}" if around.ffmpeg else "no FFmpeg: pip install av"
        lacking = f", without {', '.join(around.undecoded)}" if around.ffmpeg and around.undecoded else ""
        free = "disk: unknown" if around.free is None else f"disk: {size(around.free)} free"
        if around.free is not None and around.free < LITTLE_DISK:
            free += f" (a model and a run take up to {size(LITTLE_DISK)})"
        hub = {None: "not asked for", True: "the hub is found", False: "the hub is not found"}
        yield _row("around", f"{found}{lacking}; {free}; network: {hub[around.network]}")

    def _check_lines(self) -> Iterator[str]:
        for name in dict.fromkeys(check.family for check in self.checks):
            for device in dict.fromkeys(check.device for check in self.checks):
                own = [c for c in self.checks if (c.family, c.device) == (name, device)]
                if not own:
                    continue
                wrong = [c for c in own if not c.right]
                fine = [c for c in own if c.what not in (STEP, AS_TRAINED)]
                steps = ", 2 training steps" if len(fine) < len(own) else ""
                said = f"{count(len(fine), 'computation')}{steps}: right, largest error {_largest(own)}"
                if wrong:
                    said = "WRONG: " + "; ".join(_fault(check) for check in wrong)
                yield _row(f"{name} on {device}", said)

    def _speed_lines(self) -> Iterator[str]:
        products = ", ".join(f"{kind} {_flops(n)}" for kind, n in self.speed.products.items())
        yield _row("products", products)
        yield _row(
            "memory speed",
            f"{self.speed.bandwidth / 1e9:.0f} GB/s; {self.speed.launch * 1e6:.1f} µs from kernel to kernel",
        )
        there = [name for name, has in self.speed.modes.items() if has]
        lacking = [name for name, has in self.speed.modes.items() if not has]
        yield _row("quantised", ", ".join(there) + (f"; not here: {', '.join(lacking)}" if lacking else ""))

    def _expected_lines(self) -> Iterator[str]:
        note = "" if all(e.fits for e in self.expected) else "; (no): no room"
        where = "" if self.machine.gpu else ", a guess"
        title = f"at least so long (its work at these rates{where}), memory{note}"
        yield f"a training step, batch 1, rank 16: {title}"
        yield _row("", "".join(f"{f'{seconds} s of music':<22}" for seconds in SECONDS).rstrip())
        for name in dict.fromkeys(one.family for one in self.expected):
            for bits in PRECISIONS:
                cells = [
                    f"{_time(e.step_seconds)}, {size(e.memory)}{'' if e.fits else ' (no)'}"
                    for e in self.expected
                    if (e.family, e.bits) == (name, bits)
                ]
                yield _row(f"{name}, {bits} bits", "".join(f"{cell:<22}" for cell in cells).rstrip())


def _row(title: str, said: str) -> str:
    return f"{title:<14}{said}"


def _label(check: Check) -> str:
    return f"{check.family} {check.what} on the {check.device}"


def _fault(check: Check) -> str:
    said = check.problem or f"error {check.error:.1e}, at most {check.limit:.0e}"
    return f"{check.what} ({said})"


def _largest(checks: Sequence[Check]) -> str:
    """That of the check nearest to its limit."""
    worst = max(checks, key=lambda check: check.error / check.limit)
    return f"{worst.error:.0e} of {worst.limit:.0e}"


def _time(seconds: float) -> str:
    return f"{rate(seconds)} s" if seconds < 1000 else f"{rate(seconds / 3600)} h"


def _flops(n: float) -> str:
    return f"{n / 1e12:.3g} TFLOP/s" if n >= 1e11 else f"{n / 1e9:.3g} GFLOP/s"


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def examine(models: Path, *, network: bool, say: Say) -> Diagnosis:
    """Everything, in a minute or so. models: where they are kept. say: is told what is done next."""
    found = machine()
    around = surroundings(models, network=network)
    checks: list[Check] = []
    for one in families():
        say(f"computing {one.title}'s miniatures")
        checks += check_family(one)
    say("measuring products and memory")
    speed = measure()
    return Diagnosis(found, around, [*checks, *speed.checks], speed, list(expected(speed)))
