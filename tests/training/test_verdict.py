"""Is it going well? One sentence at every evaluation, only beyond the evaluation's own noise."""

from __future__ import annotations

import math
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep_mlx.cli import main
from acestep_mlx.cli.dry_run import evaluation_line
from acestep_mlx.cli.events import TrainDisplay
from acestep_mlx.config.read_run import load_config
from acestep_mlx.report.events import (
    Evaluated,
    Event,
    MetricsFile,
    Notice,
    Started,
    StepDone,
    ValidationClip,
)
from acestep_mlx.training import checkpoint
from acestep_mlx.training.interrupts import StopRequest
from acestep_mlx.training.measures import History, Measures
from acestep_mlx.training.saving import Writer
from acestep_mlx.training.verdict import (
    Context,
    Point,
    Verdict,
    compare,
    direction,
    judge,
    quantile,
)

from . import runs

#: what songs differ by from each other: far more than by what they learn
SONGS = np.array([0.2, -0.3, 0.05, 0.15, -0.1, 0.12, -0.02, -0.1])
FALLING = [(step, 1.0 - 0.0005 * step) for step in range(1, 1001)]
RISING = [(step, 1.0 + 0.0005 * step) for step in range(1, 1001)]
CONTEXT = Context(
    held_out=True,
    learning_rate=1e-4,
    checkpoints={100: "out/checkpoint-100", 200: "out/checkpoint-200", 300: "out/checkpoint-300"},
    command="generate --lora ",
    resume="--resume_from_checkpoint=",
)
TRAINED = Context(held_out=False, learning_rate=1e-4)


def history(
    losses: Sequence[float], songs: int = 8, noise: float = 0.0, seed: int = 0, swing: float = 0.0
) -> list[Point]:
    """Evaluations at 0, 100, … with these means; each song deviates from the mean change by `noise` (sd), and
    all songs of an evaluation by `swing`.
    """
    rng, swings = np.random.default_rng(seed), np.random.default_rng(1000 + seed)
    points = []
    for i, loss in enumerate(losses):
        each = loss + SONGS[:songs] + noise * rng.standard_normal(songs)
        each += swing * swings.standard_normal()
        points.append(Point(100 * i, float(each.mean()), {f"song {n}": float(x) for n, x in enumerate(each)}))
    return points


def verdict(
    losses: Sequence[float], training: Any = FALLING, context: Context = CONTEXT, **how: Any
) -> Verdict:
    points = history(losses, **how)
    return judge(points, [one for one in training if one[0] <= points[-1].step], context)


# ── the noise ────────────────────────────────────────────────────────────────────────────────────────
def test_a_change_is_measured_song_by_song() -> None:
    """What songs differ by from each other is not noise, and what they change by differently is."""
    before, after = history([1.0, 0.9])
    assert compare(before, after).mean == pytest.approx(-0.1) and compare(before, after).noise < 1e-12
    changes = [-0.10, -0.14, -0.08, -0.12]
    one = Point(0, 1.0, dict(zip("abcd", [1.0, 2.0, 0.5, 0.5], strict=True)))
    two = Point(1, 0.89, {n: one.songs[n] + c for n, c in zip("abcd", changes, strict=True)})
    found = compare(one, two)
    assert found.mean == pytest.approx(np.mean(changes))
    assert found.noise == pytest.approx(3.18 * np.std(changes, ddof=1) / 2, rel=2e-3) and found.falls


def test_two_standard_errors_are_students_for_few_songs() -> None:
    given = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 10: 2.228, 15: 2.131, 30: 2.042, 120: 1.980}
    for freedom, value in given.items():
        assert quantile(freedom) == pytest.approx(value, abs=0.011)


@pytest.mark.parametrize("songs", [2, 4, 8])
def test_chance_alone_is_called_a_change_as_often_as_said(songs: int) -> None:
    """Nothing changes but by chance: 5 % of the comparisons are beyond the noise, however few the songs."""
    rng = np.random.default_rng(songs)

    def changed() -> bool:
        before, after = (Point(i, 1.0, dict(enumerate(rng.normal(1, 0.1, songs)))) for i in range(2))  # type: ignore[arg-type]
        return compare(before, after).counts

    assert np.mean([changed() for _ in range(600)]) == pytest.approx(0.05, abs=0.025)


def test_one_song_has_no_noise_that_is_known() -> None:
    before, after = history([1.0, 0.5], songs=1)
    assert math.isinf(compare(before, after).noise) and not compare(before, after).counts


# ── what it is told ──────────────────────────────────────────────────────────────────────────────────
def test_a_history_is_the_same_from_its_file_and_from_its_events(tmp_path: Path) -> None:
    """Bit for bit, losses that are not finite included; up to the step that is asked for."""
    events: list[Event] = []
    for step in range(4):
        loss = math.inf if step == 3 else 1 / (3 + step)
        events.append(Evaluated(step, loss, {"0-200": loss}, {"a": loss, "b": 0.1 + 0.2}, "songs"))
        clip = ValidationClip(step, "jazz", "jazz", str(tmp_path / f"{step}.wav"), 1)
        events += [clip, replace(clip, with_lora=False, path="base.wav")]
        step_loss = math.nan if step == 2 else 2 / 3 + step
        events.append(StepDone(step + 1, step_loss, 1.0, 1e-3, 1.0, 1.0, 1.0, 1, 1.0, 0, 1.0))
    seen, file = History(), MetricsFile(tmp_path / "metrics.jsonl")
    for event in events:
        seen(event)
        file(event)
    file.close()
    read = History.read(tmp_path, 4)
    assert read.training == seen.training == [(n, 2 / 3 + (n - 1)) for n in (1, 2, 4)]
    assert read.evaluations[:3] == seen.evaluations[:3] and len(read.evaluations) == 4
    assert read.clips == seen.clips and list(read.clips.values()) == [0, 1, 2, 3]
    assert not math.isfinite(read.evaluations[3][1].loss)
    part = History.read(tmp_path, 1)
    assert part.evaluations == seen.evaluations[:2] and part.training == seen.training[:1]


def test_only_checkpoints_that_stay_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is about to be deleted is not; the one that is about to be written is."""
    points = history([1.0, 0.9, 0.9, 0.9, 0.9])
    batches = SimpleNamespace(held_out=[], trained=[0], samples=[SimpleNamespace(captions=("jazz, slow",))])
    past = History([("m", point) for point in points[:-1]])
    found = {tmp_path / f"checkpoint-{step}": checkpoint.Health(evaluation=0.9) for step in (100, 200, 300)}
    found[tmp_path / "checkpoint-310"] = checkpoint.Health(timed=True)
    found[tmp_path / "checkpoint-320"] = checkpoint.Health(healthy=False)
    monkeypatch.setattr(checkpoint, "healths", lambda folder: dict(found))

    def steps(saved: bool, limit: int, loss: float = 0.9) -> tuple[int, ...]:
        job: Any = SimpleNamespace(output=tmp_path, config=load_config({"checkpoints_total_limit": limit}))
        built: Any = SimpleNamespace(batches=batches)
        measures = Measures(job, built, None, None, past, Path("the model"))
        verdict = measures._verdict("m", replace(points[-1], loss=loss), saved)
        assert verdict.kind == "flat"
        if verdict.steps:
            assert f"--model 'the model' --prompt 'jazz, slow' --lora {tmp_path}" in verdict.sentence
        return verdict.steps

    assert steps(saved=False, limit=1) == (100, 300)
    assert steps(saved=True, limit=9) == (100, 400)
    assert steps(saved=True, limit=2, loss=0.8999) == (300, 400)
    assert steps(saved=True, limit=1, loss=0.8999) == ()
    assert steps(saved=True, limit=1, loss=0.9001) == (300, 400), "the best one stays"


def test_the_page_lists_the_songs_that_are_trained_on(tmp_path: Path) -> None:
    songs = [SimpleNamespace(id=f"s/{i}", seconds=60.0, captions=("x",), lyrics=None) for i in range(3)]
    job: Any = SimpleNamespace(output=tmp_path, world=SimpleNamespace(first=True))
    built: Any = SimpleNamespace(batches=SimpleNamespace(samples=songs, trained=[0, 2]), total=9)
    nothing: Any = None
    about = Writer(job, nothing, built, nothing).about()
    assert [song.name for song in about.songs] == ["s/0", "s/2"] and about.total == 9


def test_a_dry_run_says_what_is_measured() -> None:
    assert "cannot tell memorising" in evaluation_line(load_config({}), 0)
    assert evaluation_line(load_config({}), 3) == "evaluation loss on 3 held-out songs"
    assert evaluation_line(load_config({"num_eval_images": 2}), 3) == "evaluation loss on 2 held-out songs"
    none = evaluation_line(load_config({"num_eval_images": 0}), 3)
    assert none.startswith("no evaluation songs (num_eval_images is 0)")


# ── each case ────────────────────────────────────────────────────────────────────────────────────────
def test_too_early() -> None:
    assert verdict([1.0]).sentence == "Too early to tell: nothing has been trained yet."
    (point,) = history([1.0])
    resumed = judge([Point(7, point.loss, point.songs)], [], CONTEXT)
    assert resumed.sentence == "Too early to tell: this is the first evaluation of these songs."
    for losses in ([1.0, 1.001], [1.0, 0.95], [1.0, 0.97, 0.96, 0.98]):
        found = verdict(losses, noise=0.1, seed=1)
        assert found.kind == "early" and "noise ±" in found.sentence and not found.steps
    few = verdict([1.0, 0.9, 0.8], songs=1)
    assert few.kind == "early" and "1 evaluation song cannot show" in few.sentence
    assert verdict([1.0, 1.0]).kind == "early"  # flat is what two evaluations in a row show


@pytest.mark.parametrize(
    "losses", [[1.0, 0.9], [1.0, 0.9, 0.85, 0.83], [1.0, 0.99, 0.98], [1.0, 0.9, 0.91, 0.8]]
)
def test_still_learning(losses: list[float]) -> None:
    found = verdict(losses, noise=0.001)
    assert found.kind == "learning" and found.sentence.startswith(
        "Still learning: the loss of 8 held-out songs"
    )
    assert f"to {history(losses, noise=0.001)[-1].loss:.4f} (noise ±0.000" in found.sentence
    assert "8 of the trained songs" in verdict(losses, noise=0.001, context=TRAINED).sentence


def test_slow_learning_is_seen_over_the_last_third() -> None:
    """From one evaluation to the next nothing is beyond the noise; over a third of the run it is."""
    losses = [1.0 - 0.002 * i for i in range(31)]
    assert not compare(*history(losses, noise=0.002)[-2:]).counts
    assert verdict(losses, noise=0.002).kind == "learning"


def test_flat_names_two_steps_that_are_kept() -> None:
    losses = [1.0, 0.9, 0.9, 0.9003, 0.8998]
    found = verdict(losses, noise=0.0002)
    assert found.kind == "flat" and found.steps == (100, 300)
    assert "compare steps 100 and 300 by ear: generate --lora out/checkpoint-100, and" in found.sentence
    assert "the same with checkpoint-300" in found.sentence
    from_clips = Context(True, 1e-4, {}, clips=[100, 400])
    found = verdict(losses, noise=0.0002, context=from_clips)
    assert found.steps == (100, 400) and "their clips are in report.html" in found.sentence
    found = verdict(losses, noise=0.0002, context=Context(True, 1e-4, {400: "checkpoint-400"}))
    assert found.kind == "flat" and found.steps == () and "checkpoint-" not in found.sentence


def test_what_patience_counts_is_not_called_learning() -> None:
    """Well below the lowest before the last third, and no new lowest in two evaluations."""
    losses = [1.0, 0.98, 0.96, 0.94, 0.9, 0.9, 0.9001, 0.9002]
    assert verdict(losses[:5]).kind == "learning"
    assert [verdict(losses[:n]).kind for n in (7, 8)] == ["flat", "flat"]
    assert "since step 400" in verdict(losses).sentence


def test_flat_from_the_beginning_asks_for_a_higher_rate() -> None:
    found = verdict([1.0, 1.0 - 1e-6, 1.0 - 2e-6, 1.0 - 3e-6])
    assert found.kind == "flat" and "is still as before the first step" in found.sentence
    assert "raise learning_rate (now 0.0001)" in found.sentence


def test_memorising_takes_held_out_songs_and_more_than_one_evaluation() -> None:
    losses = [1.0, 0.9, 0.93, 0.97, 1.01]
    once = verdict(losses[:3], noise=0.001)
    assert once.kind == "early" and "in one evaluation only" in once.sentence
    found = verdict(losses, noise=0.001)
    assert found.kind == "memorising" and found.steps == (100,)
    assert found.sentence.startswith(
        "Likely memorising: the training loss falls, and that of 8 held-out songs rose"
    )
    assert found.sentence.endswith("best was step 100: generate --lora out/checkpoint-100.")
    assert "does not rise" in verdict(losses, training=[], noise=0.001).sentence
    assert verdict(losses, noise=0.001, context=TRAINED).kind == "unstable"
    assert verdict([1.0, 1.1, 1.2, 1.3], noise=0.001).sentence.endswith(
        "no step was better than the model without the LoRA."
    )
    unkept = verdict(losses, noise=0.001, context=Context(True, 1e-4, {400: "checkpoint-400"}, best=400))
    assert unkept.steps == () and "no checkpoint is kept" in unkept.sentence and "-400" not in unkept.sentence
    near = verdict(
        losses, noise=0.001, context=replace(CONTEXT, checkpoints={200: "checkpoint-200"}, best=200)
    )
    assert (
        near.steps == (200,) and "best was step 100, and of those that are kept step 200: " in near.sentence
    )
    heard = verdict(losses, noise=0.001, context=Context(True, 1e-4, {}, clips=[100]))
    assert heard.steps == (100,) and "whose clips are in report.html" in heard.sentence


def test_unstable_advises_a_lower_rate() -> None:
    found = verdict([1.0, 0.9, 1.4], training=RISING, noise=0.001)
    assert found.kind == "unstable" and found.steps == (100,)
    assert (
        "and so did the training loss; lower learning_rate (now 0.0001) and go on from step 100: "
        in found.sentence
    )
    assert found.sentence.endswith("--resume_from_checkpoint=out/checkpoint-100.")
    for context in (CONTEXT, TRAINED):
        found = verdict([1.0, 0.9, math.nan], context=context)
        assert found.kind == "unstable" and "is not finite; lower learning_rate" in found.sentence
    assert verdict([1.0, math.nan, 0.9], noise=0.001).kind == "learning"


@pytest.mark.parametrize("change", [0.0009, -0.0009])
def test_what_is_negligible_is_no_change_however_exact(change: float) -> None:
    assert verdict([1.0, 0.9, 0.9, 0.9 * (1 + change)]).kind == "flat"


@pytest.mark.parametrize(("noise", "swing"), [(0.003, 0.0), (0.0005, 0.003)])
def test_noise_alone_is_never_bad_news(noise: float, swing: float) -> None:
    """Sixty runs that stand still, with the noise of four songs: few have a wrong sentence. So it is where
    the weights swing, and all songs with them, by far more than the songs differ.
    """
    made = [
        verdict([1.0] + [0.9] * k, training=[], songs=4, noise=noise, swing=swing, seed=seed).kind
        for seed in range(60)
        for k in (4, 12)
    ]
    assert made.count("memorising") + made.count("unstable") <= 3
    assert made.count("learning") <= 20 and made.count("flat") >= 40


def test_the_direction_of_the_training_loss() -> None:
    rng = np.random.default_rng(0)

    def losses(mean: Callable[[int], float]) -> list[tuple[int, float]]:
        return [(step, mean(step) + 0.1 * rng.standard_normal()) for step in range(1, 401)]

    assert direction(losses(lambda step: 1.0 if step <= 200 else 0.9), 200, 400) == -1
    assert direction(losses(lambda step: 1.0 if step <= 200 else 1.1), 200, 400) == 1
    assert direction(losses(lambda step: 1.0), 200, 400) == 0
    assert direction(losses(lambda step: 1.0 - step / 400), 0, 400) == -1
    assert direction([], 0, 0) == direction([(1, 1.0)], 0, 1) == 0


# ── miniatures that are trained into each case ───────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three tones, one of them alone, and three noises."""
    root, rng = tmp_path_factory.mktemp("verdict"), np.random.default_rng(0)
    runs.write_songs(root / "songs")
    for folder in ("one", "noises"):
        (root / folder).mkdir()
    for file in (root / "songs").glob("low.*"):
        shutil.copy(file, root / "one")
    for name in "abc":
        soundfile.write(root / "noises" / f"{name}.wav", 0.5 * rng.uniform(-1, 1, (3 * 44100, 2)), 44100)
        (root / "noises" / f"{name}.txt").write_text("noise\n")
    with runs.lab(root, eval_steps_interval=2, checkpointing_steps=2, num_eval_images=3) as make:
        yield make


def data(lab: Any, trained: str, held_out: str) -> dict[str, Any]:
    """The `backends` of a run that trains on one folder and is evaluated on another."""
    root = Path(lab("none")["output_dir"]).parent
    sets = {trained: "audio", held_out: "eval"}
    return {
        "backends": [
            {"id": name, "dataset_type": kind, "instance_data_dir": str(root / name)}
            for name, kind in sets.items()
        ]
    }


def kinds(seen: runs.Recorder) -> list[tuple[int, str]]:
    return [(event.step, event.verdict_kind) for event in seen.of(Evaluated)]


@pytest.mark.slow
def test_a_run_that_has_hardly_begun(lab: Any, capsys: Any) -> None:
    _, seen = runs.run(lab("early", max_train_steps=1), act=TrainDisplay())
    assert kinds(seen) == [(0, "early"), (1, "early")]
    shown = capsys.readouterr().err
    for event in seen.of(Evaluated):
        assert f"step {event.step}: {event.verdict}\n" in shown
        assert event.verdict.startswith("Too early to tell: ")


@pytest.mark.slow
def test_a_run_that_learns(lab: Any) -> None:
    _, seen = runs.run(lab("learns", learning_rate=0.1, max_train_steps=4))
    assert kinds(seen)[-1] == (4, "learning")
    last = seen.of(Evaluated)[-1]
    assert "3 of the trained songs fell from" in last.verdict and f"to {last.loss:.4f}" in last.verdict


@pytest.mark.slow
def test_a_run_that_stands_still_names_checkpoints_that_can_be_heard(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = lab("flat", learning_rate=1e-9, max_train_steps=6, checkpoints_total_limit=2)
    _, seen = runs.run(config)
    assert kinds(seen) == [(0, "early"), (2, "early"), (4, "flat"), (6, "flat")]
    first, last = (event.verdict for event in seen.of(Evaluated)[2:])
    assert (
        "compare steps 2 and 4 by ear" in first and "raise learning_rate (now 1e-09) if it stays so" in first
    )
    named = [int(step) for step in re.findall(r"checkpoint-(\d+)", last)]
    kept = {int(path.name.rpartition("-")[2]) for path in checkpoint.checkpoints(Path(config["output_dir"]))}
    assert len(named) == 2 and set(named) <= kept and f"compare steps {named[0]} and {named[1]}" in last
    line = re.search(r"acestep-mlx (generate .*?), and the same", last)
    assert line is not None
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(line[1]), "--duration", "3", "--steps", "1", "-o", "heard.wav"])
    assert not ended.value.code and (tmp_path / "heard.wav").is_file()


@pytest.mark.slow
def test_a_run_that_memorises(lab: Any) -> None:
    """One tone is trained on at a high rank, and three noises are held out."""
    options = {"learning_rate": 0.01, "lora_rank": 16, "max_train_steps": 12, "checkpoints_total_limit": 1}
    config = lab("memorises", **options, **data(lab, "one", "noises"))
    _, seen = runs.run(config)
    assert kinds(seen)[-1] == (12, "memorising") and "memorising" not in [kind for _, kind in kinds(seen)[:3]]
    said, best = seen.of(Evaluated)[-1].verdict, Path(config["output_dir"]) / "checkpoint-2"
    assert "the training loss falls, and that of 3 held-out songs rose from" in said
    assert "best was step 2: acestep-mlx generate" in said and f"--lora {best}" in said and best.is_dir()
    assert seen.of(Started)[0].samples == 1
    assert set(seen.of(Evaluated)[0].songs) == {f"noises/{name}.wav" for name in "abc"}


@pytest.mark.slow
def test_a_run_at_a_huge_rate(lab: Any) -> None:
    _, seen = runs.run(lab("unstable", learning_rate=10.0, max_train_steps=2))
    assert kinds(seen) == [(0, "early"), (2, "unstable")]
    assert "lower learning_rate (now 10)" in seen.of(Evaluated)[-1].verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"num_eval_images": 0}, "num_eval_images is 0"),
        ({"eval_loss_disable": True}, "eval_loss_disable is true"),
    ],
)
def test_a_run_without_evaluation_songs(options: dict[str, Any], why: str, lab: Any) -> None:
    _, seen = runs.run(lab("none", **options, max_train_steps=1, resume_from_checkpoint="latest"))
    assert not seen.of(Evaluated)
    said = f"no evaluation songs ({why}): nothing will say whether the training goes well"
    assert [event.text for event in seen.of(Notice)].count(said) == 1


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_its_history_bit_for_bit(lab: Any) -> None:
    """In its folder, and from its checkpoint in another."""
    options = {"learning_rate": 0.1, "max_train_steps": 4, "eval_steps_interval": 1, "checkpointing_steps": 0}
    output = {name: Path(lab(name)["output_dir"]) for name in ("whole", "halved", "moved", "another")}

    def evaluated(name: str) -> list[str]:
        lines = (output[name] / "metrics.jsonl").read_text().splitlines()
        return [line for line in lines if '"event": "eval"' in line]

    stop = StopRequest()

    def act(event: Event) -> None:
        if isinstance(event, Evaluated) and event.step == 2:
            stop.request()

    runs.run(lab("whole", **options))
    runs.run(lab("halved", **options), act, stop)
    shutil.copytree(output["halved"], output["moved"])
    runs.run(lab("halved", **options, resume_from_checkpoint="latest"))
    assert evaluated("halved") == evaluated("whole") and len(evaluated("whole")) == 5
    elsewhere = str(output["moved"] / "checkpoint-2")
    runs.run(lab("another", **options, resume_from_checkpoint=elsewhere))
    assert evaluated("another") == evaluated("whole")[2:]
    assert '"verdict_kind": "learning"' in evaluated("another")[-1]
