"""Is it going well? One sentence at every evaluation, beyond the evaluation's own noise.

Two evaluations measure the same songs with the same noise, so they are compared song by song. The change is
the mean of the songs' differences, and its standard error is their deviation over √songs, so that what songs
and noise have in common cancels. The timestep bins of a song share its noise and are no items of their own:
their mean is one item. (Paired differences and clustered errors: E. Miller, "Adding Error Bars to Evals",
2024, arXiv:2411.00640.) A change counts once it is beyond Student's 95 % interval: two standard errors for
many songs, 3.2 for four of them. Training losses are not paired, each is of another song and noise: two means
of them differ once they are two standard errors apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev, variance

from ..formatting import count

SMALLEST = 0.001  # a change below this share of the loss is none, however exact
BLIND = 0.015  # noise above this share of the loss hides what learning does: then nothing is called flat
LONG = 5  # …but after so many evaluations without a new lowest
SELECTED = 1.5  # so much wider is the wobble about the lowest, which is picked from all
#: 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom; above, 1.96 + 2.6 / n is right to 0.01
_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


@dataclass(frozen=True)
class Point:
    """An evaluation. songs: the loss of each, mean over timestep bins, by its name."""

    step: int
    loss: float
    songs: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """From one evaluation to another: of the mean over songs, and within what it can be chance (±)."""

    before: Point
    after: Point
    mean: float
    noise: float

    @property
    def counts(self) -> bool:
        """Whether it is beyond the noise and not negligible."""
        return abs(self.mean) > max(self.noise, SMALLEST * abs(self.before.loss))

    @property
    def rises(self) -> bool:
        return self.counts and self.mean > 0

    @property
    def falls(self) -> bool:
        return self.counts and self.mean < 0


@dataclass(frozen=True)
class Finding:
    """What holds at an evaluation. kind: early, learning, flat, memorising or unstable. why: of an early one
    nothing, few, noise or once. best: the lowest evaluation before. trained: −1 where the training loss has
    fallen since then, 1 where it has risen, 0 where neither is certain.
    """

    kind: str
    why: str = ""
    change: Change | None = None
    best: Point | None = None
    trained: int = 0
    idle: bool = False  # flat, and as before the first step


@dataclass(frozen=True)
class Verdict:
    """kind: as a finding's. sentence: for the user. steps: those that it advises to use or to compare."""

    kind: str
    sentence: str
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Context:
    """What the sentence speaks of besides the losses.

    held_out: no evaluation song is trained on. checkpoints, clips: steps whose checkpoint stays on disk, and
    that have clips, rising. command: an `acestep-mlx generate` line that lacks the LoRA's path at its end.
    resume: the options that go on from a checkpoint, without its path.
    """

    held_out: bool
    learning_rate: float
    checkpoints: Mapping[int, str] = field(default_factory=dict)  # step → path, quoted for a shell
    clips: Sequence[int] = ()
    best: int | None = None  # of `checkpoints`, that with the lowest loss
    command: str = ""
    resume: str = ""


def quantile(freedom: int) -> float:
    """Student's t below which 97.5 % lie, for so many degrees of freedom (at least 1)."""
    return _QUANTILES[freedom - 1] if freedom <= len(_QUANTILES) else 1.96 + 2.6 / freedom


def compare(before: Point, after: Point) -> Change:
    """By the songs of both; with fewer than two of them the noise is infinite."""
    differences = [after.songs[name] - loss for name, loss in before.songs.items() if name in after.songs]
    if len(differences) < 2:
        return Change(before, after, after.loss - before.loss, math.inf)
    error = stdev(differences) / math.sqrt(len(differences))
    return Change(before, after, fmean(differences), quantile(len(differences) - 1) * error)


def find(points: Sequence[Point], training: Sequence[tuple[int, float]], held_out: bool) -> Finding:
    """What holds at the last of `points`, which rise in step. training: (step, finite loss) of updates.

    Learning and flat ask whether the last third of the training, and two evaluations at least, went below the
    lowest loss before it, so that slow learning is seen in long runs too. Nothing learns once two evaluations
    in a row are no lower than the lowest, which is what early_stopping_patience counts. A rise above the
    lowest must be beyond the `wobble` since then too, unless the training loss rises as well.
    """
    now = points[-1]
    earlier = [point for point in points[:-1] if math.isfinite(point.loss)]
    if not math.isfinite(now.loss):
        return Finding("unstable", best=min(earlier, key=lambda point: point.loss, default=None))
    if not earlier:
        return Finding("early", "nothing")
    if len(now.songs) < 2:
        return Finding("early", "few", compare(earlier[-1], now))
    best = min(earlier, key=lambda point: point.loss)
    rise, trained = compare(best, now), direction(training, best.step, now.step)
    after = [*earlier[earlier.index(best) :], now]
    if trained <= 0 and len(after) > 2:
        rise = replace(rise, noise=math.hypot(rise.noise, SELECTED * wobble(after)))
    if rise.rises and (trained > 0 or len(after) > 2):
        return Finding("memorising" if held_out and trained <= 0 else "unstable", "", rise, best, trained)
    since = min(_third(earlier, now.step), max(0, len(earlier) - 2))
    stalled = now.loss >= best.loss and len(after) > 2
    change = rise if stalled else compare(min(earlier[: since + 1], key=lambda point: point.loss), now)
    if change.falls and not rise.rises:
        return Finding("learning", "", change, best)
    hidden = change.noise if len(after) <= LONG else abs(change.mean)
    if len(earlier) < 2 or change.counts or hidden > BLIND * abs(now.loss):
        return Finding("early", "once", rise, best) if rise.rises else Finding("early", "noise", change, best)
    return Finding("flat", "", change, best, idle=abs(now.loss - earlier[0].loss) < SMALLEST * abs(now.loss))


def wobble(points: Sequence[Point]) -> float:
    """Within what (±) two of these evaluations, three or more, differ because the weights swing and not
    because the loss goes anywhere: from the second differences of their losses, in which a trend cancels
    (J. Rice, Annals of Statistics 12, 1984), as Student's 95 % interval.
    """
    losses = [point.loss for point in points]
    bends = [a - 2 * b + c for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    return quantile(len(bends)) * math.sqrt(2 * fmean(bend * bend for bend in bends) / 6)


def _third(earlier: Sequence[Point], step: int) -> int:
    """Index of the newest evaluation before the last third of `step` steps."""
    return max((i for i, point in enumerate(earlier) if 3 * point.step <= 2 * step), default=0)


def direction(training: Sequence[tuple[int, float]], since: int, step: int) -> int:
    """−1 when the training loss of (since, step] is lower than before, 1 when it is higher, 0: not certain.

    Before are as many steps up to `since`, or the first fifth of these where there are none.
    """
    before = [loss for at, loss in training if 2 * since - step < at <= since]
    after = [loss for at, loss in training if since < at <= step]
    if len(before) < 2:
        first = max(2, len(after) // 5)
        before, after = after[:first], after[first:]
    if len(before) < 2 or len(after) < 2:
        return 0
    change = fmean(after) - fmean(before)
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    return 0 if abs(change) <= 2 * error else -1 if change < 0 else 1


# ── words ─────────────────────────────────────────────────────────────────────────────────────────────
def judge(points: Sequence[Point], training: Sequence[tuple[int, float]], context: Context) -> Verdict:
    """The verdict at the last of `points`; see `find`."""
    found = find(points, training, context.held_out)
    return _SENTENCES[found.kind](found, points[-1], context)


def _early(found: Finding, now: Point, context: Context) -> Verdict:
    change, songs = found.change, _songs(now, context)
    if change is None:
        text = "this is the first evaluation of these songs" if now.step else "nothing has been trained yet"
    elif found.why == "few":
        text = (
            f"{count(len(now.songs), 'evaluation song')} cannot show how much of a change is chance; it "
            "takes 2, better 4 (num_eval_images)"
        )
    elif found.why == "once":
        text = f"the loss of {songs} rose {_from_to(change)}, but in one evaluation only"
    else:
        text = f"since step {change.before.step} the loss of {songs} changed by {_moved(change)}"
        if len(now.songs) < 4 and change.noise > BLIND * abs(now.loss):
            text += "; 4 or more evaluation songs would tell sooner"
    return Verdict("early", f"Too early to tell: {text}.")


def _learning(found: Finding, now: Point, context: Context) -> Verdict:
    assert found.change is not None
    text = f"the loss of {_songs(now, context)} fell {_from_to(found.change)}"
    return Verdict("learning", f"Still learning: {text}.")


def _flat(found: Finding, now: Point, context: Context) -> Verdict:
    assert found.change is not None
    first = found.change.before.step
    text = f"since step {first} the loss of {_songs(now, context)} changed by {_moved(found.change)}"
    steps, advice = _by_ear(first, context)
    if found.idle:
        rate = f"raise learning_rate (now {context.learning_rate:g}) if it stays so"
        text += ", and is still as before the first step"
        advice = f"{rate}; {advice}" if steps else rate
    return Verdict("flat", f"Flat: {text}; {advice}.", steps)


def _by_ear(first: int, context: Context) -> tuple[tuple[int, ...], str]:
    """Which two steps to compare, the earliest since it is flat and the newest, and how."""
    for kept in (list(context.checkpoints), list(context.clips)):
        pair = [step for step in kept if step >= first] or kept
        pair = kept if len(pair) < 2 else pair
        if len(pair) < 2:
            continue
        a, b = pair[0], pair[-1]
        where = "their clips are in report.html"
        if a in context.checkpoints:
            where = f"{context.command}{context.checkpoints[a]}, and the same with checkpoint-{b}"
        return (a, b), f"compare steps {a} and {b} by ear: {where}"
    return (), "no two checkpoints or clips are there to compare by ear"


def _memorising(found: Finding, now: Point, context: Context) -> Verdict:
    assert found.change is not None and found.best is not None
    falls = "falls" if found.trained < 0 else "does not rise"
    text = f"the training loss {falls}, and that of {_songs(now, context)} rose {_from_to(found.change)}"
    steps, best = _best(found.best, now, context)
    return Verdict("memorising", f"Likely memorising: {text}; {best}.", steps)


def _best(best: Point, now: Point, context: Context) -> tuple[tuple[int, ...], str]:
    """The best step, and how to hear it."""
    step = best.step
    if not step:
        return (), "no step was better than the model without the LoRA"
    if step in context.checkpoints:
        return (step,), f"best was step {step}: {context.command}{context.checkpoints[step]}"
    if step in context.clips:
        return (step,), f"best was step {step}, whose clips are in report.html"
    if (kept := context.best) is not None and kept != now.step:
        heard = f"{context.command}{context.checkpoints[kept]}"
        return (kept,), f"best was step {step}, and of those that are kept step {kept}: {heard}"
    return (
        (),
        f"best was step {step}, of which no checkpoint is kept (with early_stopping_patience each lowest is)",
    )


def _unstable(found: Finding, now: Point, context: Context) -> Verdict:
    lower = f"lower learning_rate (now {context.learning_rate:g})"
    steps: tuple[int, ...] = ()
    text = f"the loss of {_songs(now, context)} is not finite"
    if found.change is not None:
        too = ", and so did the training loss" if found.trained > 0 else ""
        text = f"the loss of {_songs(now, context)} rose {_from_to(found.change)}{too}"
    step = found.best.step if found.best is not None else 0
    if step and step in context.checkpoints:
        lower += f" and go on from step {step}: {context.resume}{context.checkpoints[step]}"
        steps = (step,)
    return Verdict("unstable", f"Unstable: {text}; {lower}.", steps)


_SENTENCES = {
    "early": _early, "learning": _learning, "flat": _flat, "memorising": _memorising, "unstable": _unstable,
}  # fmt: skip


def _songs(now: Point, context: Context) -> str:
    """`4 held-out songs`, `4 of the trained songs`."""
    songs = len(now.songs)
    return count(songs, "held-out song") if context.held_out else f"{songs} of the trained songs"


def _from_to(change: Change) -> str:
    """`from 0.7021 (step 100) to 0.6912 (noise ±0.0031)`."""
    before, after = change.before, change.after
    return f"from {before.loss:.4f} (step {before.step}) to {after.loss:.4f} (noise ±{_noise(change)})"


def _moved(change: Change) -> str:
    return f"{change.mean:+.4f} (noise ±{_noise(change)})"


def _noise(change: Change) -> str:
    return "unknown" if math.isinf(change.noise) else f"{change.noise:.4f}"
