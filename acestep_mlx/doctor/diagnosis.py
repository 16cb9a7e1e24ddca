"""Everything that `doctor` finds, as one value: its lines for people, and JSON for bug reports."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..families import families, family
from ..families.work import SECONDS
from ..formatting import count, listed, rate, size
from ..registry import REGISTRY
from .expectation import PRECISIONS, Expected, expected
from .machine import Machine, Surroundings, machine, surroundings
from .selfcheck import AS_TRAINED, FAILURES, STEP, Check, check_family, name_of, problem_of
from .speed import Speed, measure

LITTLE_DISK = 20e9  # what a model, its download and a run take
WIDTH, TITLE, CELL = 80, 14, 16  # columns of the screen, of what stands before a line, of a table's cell
SHOWN = ("acestep-mlx", "python", "mlx")  # versions on the screen; JSON has more
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
        """One screen of 24 lines, 80 columns wide, where everything is right."""
        yield from self._machine_lines()
        yield ""
        yield from self._check_lines()
        if self.speed.products:
            yield from self._speed_lines()
        yield ""
        if self.expected:
            yield from self._expected_lines()
            yield ""
        yield from _wrapped("verdict: ", self.verdict(), len("verdict: "))
        if self.sound and self.machine.gpu and any(one.fits for one in self.expected):
            yield "next: acestep-mlx new FOLDER_WITH_SONGS"

    def _machine_lines(self) -> Iterator[str]:
        here, around = self.machine, self.surroundings
        yield "  ".join(f"{name} {here.versions[name]}" for name in SHOWN if name in here.versions)
        gpu = f"GPU by {here.gpu}" if here.gpu else "no GPU"
        yield from _row("machine", f"{here.chip}, {gpu}, {here.system}")
        limit = f"; wired limit: {size(here.wired_limit)}" if here.wired_limit else ""
        yield from _row("memory", f"{size(here.memory)}, of which a run may take {size(here.usable)}{limit}")
        found = f"FFmpeg {around.ffmpeg}" if around.ffmpeg else "no FFmpeg: pip install av"
        lacking = f", without {', '.join(around.undecoded)}" if around.ffmpeg and around.undecoded else ""
        free = "disk: unknown" if around.free is None else f"disk: {size(around.free)} free"
        if around.free is not None and around.free < LITTLE_DISK:
            free += f" (a model and a run take up to {size(LITTLE_DISK)})"
        hub = {None: "not asked for", True: "the hub is found", False: "the hub is not found"}
        yield from _row("around", f"{found}{lacking}; {free}; network: {hub[around.network]}")

    def _check_lines(self) -> Iterator[str]:
        for name in dict.fromkeys(check.family for check in self.checks):
            own = [check for check in self.checks if check.family == name]
            title = family(name).title if name in REGISTRY else name
            wrong: dict[str, list[str]] = {}
            for check in own:
                if not check.right:
                    wrong.setdefault(check.device, []).append(_fault(check))
            on = dict.fromkeys(check.device for check in own)
            said = [f"WRONG on {device}: {', '.join(faults)}" for device, faults in wrong.items()]
            if right := [device for device in on if device not in wrong]:
                said.append(f"right on {' and '.join(right)}{'' if wrong else f': {_computed(own)}'}")
            yield from _row(title, "; ".join(said))

    def _speed_lines(self) -> Iterator[str]:
        yield from _row("products", _flops(self.speed.products))
        moved, apart = self.speed.bandwidth / 1e9, self.speed.launch * 1e6
        yield from _row("memory speed", f"{rate(moved)} GB/s; {rate(apart)} µs from kernel to kernel")
        there, lacking = (_modes(self.speed.modes, has) for has in (True, False))
        yield from _row("quantised", there + (f"; not here: {lacking}" if lacking else ""))

    def _expected_lines(self) -> Iterator[str]:
        known = "estimated" if self.machine.gpu else "guessed"
        yield f"a training step, batch 1, rank 16, {known}: time and memory"
        yield _cells("of music", [f"{seconds} s" for seconds in SECONDS])
        for name in dict.fromkeys(one.family for one in self.expected):
            for bits in PRECISIONS:
                own = [one for one in self.expected if (one.family, one.bits) == (name, bits)]
                yield _cells(f"{name}, {bits} bits", [_step(one) for one in own])


def _wrapped(title: str, said: str, indent: int) -> list[str]:
    return textwrap.wrap(
        title + said, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, drop_whitespace=True
    )


def _row(title: str, said: str) -> list[str]:
    return _wrapped(f"{title:<{TITLE}}", said, TITLE)


def _cells(title: str, cells: Sequence[str]) -> str:
    return f"{title:<{TITLE}}{''.join(f'{cell:<{CELL}}' for cell in cells)}".rstrip()


def _step(one: Expected) -> str:
    memory = f"{one.memory / 1e9:.1f} GB"
    return f"{_time(one.step_seconds)}, {memory}" if one.fits else f"no room: {memory}"


def _computed(checks: Sequence[Check]) -> str:
    """How many computations there were on each device."""
    kinds = {check.what for check in checks}
    steps = kinds & {STEP, AS_TRAINED}
    what = count(len(kinds - steps), "network" if steps else "product")
    return what + (f", {count(len(steps), 'training step')}" if steps else "")


def _modes(modes: Mapping[str, bool], wanted: bool) -> str:
    """`affine 4, 8; mxfp4 4`."""
    bits: dict[str, list[str]] = {}
    for name, has in modes.items():
        if has == wanted:
            mode, _, n = name.partition(" ")
            bits.setdefault(mode, []).append(n)
    return "; ".join(f"{mode} {', '.join(numbers)}" for mode, numbers in bits.items())


def _label(check: Check) -> str:
    return f"{check.family} {check.what} on the {check.device}"


def _fault(check: Check) -> str:
    said = check.problem or f"error {check.error:.1e}, at most {check.limit:.0e}"
    return f"{check.what} ({said})"


def _time(seconds: float) -> str:
    """`0.82 s`, `29 min`, `3.0 h`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{rate(seconds / length)} {unit}"
    return f"{rate(seconds)} s"


def _flops(rates: Mapping[str, float]) -> str:
    unit, name = (1e12, "TFLOP/s") if max(rates.values()) >= 1e11 else (1e9, "GFLOP/s")
    return ", ".join(f"{kind} {rate(n / unit)}" for kind, n in rates.items()) + f" {name}"


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
    speed = _measured()
    would = list(expected(speed)) if speed.products else []
    return Diagnosis(found, around, [*checks, *speed.checks], speed, would)


def _measured() -> Speed:
    """Without a number, and with what is wrong, where this device cannot do it."""
    try:
        return measure()
    except FAILURES as failure:
        where, problem = name_of(mx.default_device()), problem_of(failure)
        return Speed(checks=[Check("MLX", "speed", where, float("inf"), 0.0, problem)])
