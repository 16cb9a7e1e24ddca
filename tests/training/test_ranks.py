"""Two ranks in one process: threads that meet at each sum, so that nothing has to be launched.

`mx.distributed.all_sum` is a meeting of both threads here; everything else is the code that runs on two Macs.
"""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.data.batches import Batches
from acestep_mlx.errors import AceStepError, CheckpointError, DataError
from acestep_mlx.report.events import StepDone
from acestep_mlx.training import checkpoint
from acestep_mlx.training import run as loop
from acestep_mlx.training.distributed import World
from acestep_mlx.training.interrupts import StopRequest
from acestep_mlx.training.rollout import ReflexFlow, RolloutSettings

from ..families import hearing
from . import runs, tiny


class Meeting:
    """`size` threads, each a rank: `all_sum` waits for all and gives each the sum."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.place = threading.local()
        self.brought: list[Any] = [None] * size
        self.sums = 0

    def all_sum(self, x: mx.array, **_: Any) -> mx.array:
        rank = self.place.rank
        self.brought[rank] = np.array(x)
        self.barrier.wait()
        total = sum(self.brought[1:], self.brought[0])
        self.sums += rank == 0
        self.barrier.wait()
        return mx.array(total)

    def join(self) -> World:
        return World(self.place.rank, self.size)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What `work` of each rank returns or raises."""
        found: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            self.place.rank = rank
            try:
                found[rank] = work(rank)
            except Exception as error:
                found[rank] = error
                if not isinstance(error, AceStepError):
                    self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meeting]:
    """Two ranks. Nothing is compiled: a compiled step would meet only while it is traced."""
    meeting = Meeting(2)
    monkeypatch.setattr(mx.distributed, "all_sum", meeting.all_sum)
    monkeypatch.setattr(World, "join", classmethod(lambda cls: meeting.join()))
    mx.disable_compile()
    yield meeting
    mx.enable_compile()


# ── what ranks tell each other ───────────────────────────────────────────────────────────────────────
def test_the_first_ranks_value_is_everyones(meeting: Meeting) -> None:
    value = {"step": 3, "name": "Ü", "none": None, "list": [1.5, "x"]}
    mine = [value, "something else"]
    assert meeting.run(lambda rank: meeting.join().share(mine[rank])) == [value, value]


def test_the_smallest_mac_decides_how_much_is_recomputed(meeting: Meeting) -> None:
    blocks = [3, 17]
    assert meeting.run(lambda rank: meeting.join().largest(blocks[rank])) == [17, 17]
    assert World().largest(4) == 4


@pytest.mark.parametrize("dtype", [mx.float32, mx.uint32, mx.uint64])
def test_the_first_ranks_arrays_are_everyones_bit_for_bit(meeting: Meeting, dtype: mx.Dtype) -> None:
    arrays = {"a": mx.array([1, 2, 3]).astype(dtype), "b": mx.array([[4]]).astype(dtype)}
    if dtype == mx.float32:
        arrays["a"] = mx.array([float("nan"), -0.0, 1e-42])

    mx.eval(arrays)

    def shared(rank: int) -> dict[str, np.ndarray]:
        given = arrays if rank == 0 else {}
        found = meeting.join().share_arrays(given, arrays)
        return {name: np.array(value) for name, value in found.items()}

    for found in meeting.run(shared):
        assert {k: v.tobytes() for k, v in found.items()} == {
            k: np.array(v).tobytes() for k, v in arrays.items()
        }


def test_the_first_works_before_the_others(meeting: Meeting) -> None:
    order: list[int] = []

    def work(rank: int) -> int:
        order.append(rank)
        return rank

    found = meeting.run(lambda rank: meeting.join().first_then_others(lambda: work(rank)))
    assert order == [0, 1] and found == [0, 1]


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_on_one_rank_ends_all(meeting: Meeting, broken: int) -> None:
    def work(rank: int) -> int:
        if rank == broken:
            raise AceStepError("the folder is gone")
        return rank

    found = meeting.run(lambda rank: meeting.join().first_then_others(lambda: work(rank)))
    assert str(found[broken]) == "the folder is gone"
    assert isinstance(found[1 - broken], AceStepError) and "1 other process" in str(found[1 - broken])


# ── a step ───────────────────────────────────────────────────────────────────────────────────────────
def _stepped(meeting: Meeting, batches: list[list[dict[str, mx.array]]], **settings: Any) -> list[Any]:
    """Each rank's weights and results after its micro-batches, `batches[rank]`; plain gradient descent.

    stop: (rank, micro-batch) at which one is asked to stop.
    """
    accumulate, stop = settings.pop("accumulate", len(batches[0])), settings.pop("stop", None)
    mx.eval(batches)  # what one thread has left to compute, another cannot

    def work(rank: int) -> Any:
        model = tiny.adapted()
        step = tiny.step(
            model, optimizer="sgd", world=meeting.size, compiled=False, accumulate=accumulate, **settings
        )
        results = []
        for i, batch in enumerate(batches[rank]):
            result = step(batch, update=(i + 1) % accumulate == 0, stop=(rank, i) == stop)
            results.append(
                {name: np.array(value) for name, value in {**result._asdict(), **result.parts}.items()}
            )
        return {k: np.array(v) for k, v in tiny.weights(model).items()}, results

    return meeting.run(work)


def _single(batch: dict[str, mx.array], **settings: Any) -> tuple[dict[str, np.ndarray], float, float]:
    model = tiny.adapted()
    result = tiny.step(model, optimizer="sgd", compiled=False, **settings)(batch, update=True)
    weights = {k: np.array(v) for k, v in tiny.weights(model).items()}
    return weights, result.loss.item(), result.grad_norm.item()


def _same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float = 1e-6) -> bool:
    return max(np.abs(a[k] - b[k]).max() for k in a) < tolerance


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_two_ranks_take_the_step_of_one_with_both_samples(meeting: Meeting, limit: float) -> None:
    whole = tiny.batch(0, B=2)
    found = _stepped(meeting, [[tiny.rows(whole, r, r + 1)] for r in (0, 1)], max_grad_norm=limit)
    weights, loss, norm = _single(whole, max_grad_norm=limit)
    assert not _same(weights, {k: np.array(v) for k, v in tiny.weights(tiny.adapted()).items()})
    for mine, (result,) in found:
        assert _same(mine, weights)
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
        assert result["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.slow
def test_songs_are_rolled_out_by_each_rank_as_by_one_with_both(meeting: Meeting) -> None:
    """One of them further than the other, and with both terms of ReflexFlow, whose means are told."""
    rollout = RolloutSettings(6, probability=1.0, reflexflow=ReflexFlow())
    whole = tiny.batch(2, B=2)
    assert len({*rollout.offsets(np.array(whole["keys"]), 0).tolist(), 0}) == 3
    settings: dict[str, Any] = {"max_grad_norm": 0.0, "rollout": rollout}
    found = _stepped(meeting, [[tiny.rows(whole, r, r + 1)] for r in (0, 1)], **settings)
    weights, loss, norm = _single(whole, **settings)
    plain, without, _ = _single(whole, max_grad_norm=0.0)
    assert loss != pytest.approx(without, rel=1e-3) and not _same(plain, weights, 2e-6)
    for mine, (result,) in found:
        assert _same(mine, weights, 2e-6)
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
        assert result["grad_norm"] == pytest.approx(norm, rel=1e-4)
        parts = [result[f"reflexflow/{name}"] for name in ("flow", "fc", "adr")]
        assert sum(parts) == pytest.approx(loss, rel=1e-4)


def test_a_further_loss_of_ranks_is_that_of_one_with_both(meeting: Meeting) -> None:
    whole = hearing.heard(tiny.batch(2, B=2), {"mert": [58, 40], "m-hubert": [37, 60]})
    settings: dict[str, Any] = {"max_grad_norm": 0.0, "auxiliary": hearing.alignment()}
    found = _stepped(meeting, [[tiny.rows(whole, r, r + 1)] for r in (0, 1)], **settings)
    weights, loss, _ = _single(whole, **settings)
    parts = tiny.step(tiny.adapted(), compiled=False, **settings)(whole, update=True).parts
    for mine, (result,) in found:
        assert _same(mine, weights, 2e-6) and result["loss"] == pytest.approx(loss, rel=1e-5)
        for name, value in parts.items():
            assert result[name] == pytest.approx(value.item(), rel=1e-5)


def test_uneven_shares_weigh_by_their_samples(meeting: Meeting) -> None:
    whole = tiny.batch(0, B=3)
    found = _stepped(meeting, [[tiny.rows(whole, 0, 1)], [tiny.rows(whole, 1, 3)]], max_grad_norm=0.0)
    weights, _, _ = _single(whole, max_grad_norm=0.0)
    assert all(_same(mine, weights, 2e-6) for mine, _ in found)


def test_what_is_accumulated_is_shared_once(meeting: Meeting) -> None:
    whole = tiny.batch(0, B=4)
    parts = [[tiny.rows(whole, 2 * r + i, 2 * r + i + 1) for i in (0, 1)] for r in (0, 1)]
    found = _stepped(meeting, parts, max_grad_norm=0.0)
    weights, _, _ = _single(whole, max_grad_norm=0.0)
    assert all(_same(mine, weights, 2e-6) for mine, _ in found)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_rank_that_is_not_finite_counts_on_none(meeting: Meeting, bad: int) -> None:
    whole = tiny.batch(0, B=2)
    parts = [[tiny.rows(whole, r, r + 1)] for r in (0, 1)]
    parts[bad][0]["latents"] = parts[bad][0]["latents"] * mx.array(float("inf"))
    found = _stepped(meeting, parts, max_grad_norm=0.0)
    weights, _, _ = _single(tiny.rows(whole, 1 - bad, 2 - bad), max_grad_norm=0.0)
    for mine, (result,) in found:
        assert _same(mine, weights) and not result["finite"]


def test_every_rank_hears_that_one_was_asked_to_stop(meeting: Meeting) -> None:
    whole = tiny.batch(0, B=2)
    found = _stepped(meeting, [[tiny.rows(whole, r, r + 1)] * 2 for r in (0, 1)], accumulate=1, stop=(1, 0))
    assert [[bool(result["stop"]) for result in results] for _, results in found] == [[True, False]] * 2


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────
@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the songs and their caches are."""
    return tmp_path_factory.mktemp("ranks")


OPTIONS = {
    "checkpointing_steps": 1,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "gradient_checkpointing": False,
}


@pytest.mark.slow
def test_a_run_of_two_ranks_is_that_of_one_with_twice_the_batch(
    meeting: Meeting, root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "max_train_steps": 2, "acestep_lora_target": "attn_qkv"}
    double = runs.configuration(root, tiny_model, "two", train_batch_size=1, **options)
    told: list[list[Any]] = [[], []]
    results = meeting.run(lambda rank: loop.train(double, on_event=told[rank].append))
    assert [(r.step, r.finished) for r in results] == [(2, True)] * 2, results
    assert not told[1] and [e.step for e in told[0] if isinstance(e, StepDone)] == [1, 2]

    monkeypatch.setattr(World, "join", classmethod(lambda cls: World()))
    single = runs.configuration(root, tiny_model, "one", train_batch_size=2, **options)
    one, _ = runs.run(single)
    a, b = runs.tensors(one.checkpoint), runs.tensors(root / "two" / "checkpoint-2")
    assert a.keys() == b.keys()
    for name in (k for k in a if k.startswith("adapter|")):
        assert mx.abs(a[name] - b[name]).max().item() <= 1e-6, name
    for (s, x), (t, y) in zip(runs.losses(root / "one"), runs.losses(root / "two"), strict=True):
        assert s == t and x == pytest.approx(y, rel=1e-5)

    # and going on from the first step gives the second again, bit for bit, on both
    monkeypatch.setattr(World, "join", classmethod(lambda cls: meeting.join()))
    again = root / "again"
    shutil.copytree(root / "two", again)
    shutil.rmtree(again / "checkpoint-2")
    going_on = {**double, "output_dir": str(again), "resume_from_checkpoint": "latest"}
    results = meeting.run(lambda rank: loop.train(going_on))
    assert [(r.step, r.finished) for r in results] == [(2, True)] * 2, results
    runs.assert_identical(again / "checkpoint-2", root / "two" / "checkpoint-2")


@pytest.mark.slow
def test_a_stop_on_one_rank_ends_both_with_one_checkpoint(
    meeting: Meeting, root: Path, tiny_model: Path
) -> None:
    config = runs.configuration(
        root, tiny_model, "stopped", max_train_steps=30, acestep_lora_target="attn_qkv"
    )
    stops = [StopRequest(), StopRequest()]
    stops[1].request()
    results = meeting.run(lambda rank: loop.train(config, stop=stops[rank]))
    assert [r.finished for r in results] == [False, False], results
    assert results[0].step == results[1].step < 5
    left = [p.name for p in (root / "stopped").iterdir() if p.name.startswith("checkpoint")]
    assert left == [f"checkpoint-{results[0].step}"]


@pytest.mark.parametrize("told", [(None, None), (None, "gone"), ("gone", "also"), ("Lied Ü\udcff", None)])
def test_the_first_problem_is_everyones(meeting: Meeting, told: tuple[str | None, ...]) -> None:
    first = next((text for text in told if text), None)
    assert meeting.run(lambda rank: meeting.join().agree(told[rank])) == [first, first]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "accumulate", "fp16"), [(1, 1, False), (1, 2, True), (0, 1, False), (0, 2, False)]
)
def test_songs_that_go_away_on_one_rank_end_both_with_a_checkpoint(
    meeting: Meeting, root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch,
    lost: int, accumulate: int, fp16: bool,
) -> None:  # fmt: skip
    """Also in the middle of an update; and the run that goes on is the one that nothing happened to."""
    options = {**OPTIONS, "max_train_steps": 3, "acestep_lora_target": "attn_qkv"}
    options |= {"gradient_accumulation_steps": accumulate, "eval_loss_disable": True}
    options |= {"mixed_precision": "fp16"} if fp16 else {}
    name = f"lost {lost} {accumulate}"
    config = runs.configuration(root, tiny_model, name, **options)
    straight = runs.configuration(root, tiny_model, f"{name} straight", **options)
    assert all(r.finished for r in meeting.run(lambda rank: loop.train(straight)))
    original, calls = Batches.next, [0, 0]

    def gone(self: Batches) -> Any:
        calls[self.rank] += 1
        if self.rank == lost and calls[lost] == 2 * accumulate:  # the last of the second update
            raise OSError(errno.EIO, "Input/output error", "songs/a.wav")
        return original(self)

    monkeypatch.setattr(Batches, "next", gone)
    results = meeting.run(lambda rank: loop.train(config))
    monkeypatch.setattr(Batches, "next", original)
    kept = root / name / "checkpoint-1"
    said = f"training stopped at step 1: songs/a.wav: Input/output error. {kept} is complete; go on with"
    assert all(isinstance(r, DataError) and str(r).startswith(said) for r in results), results
    assert checkpoint.verify(kept)["step"] == 1
    going_on = {**config, "resume_from_checkpoint": "latest"}
    assert all(r.finished for r in meeting.run(lambda rank: loop.train(going_on)))
    runs.assert_identical(root / name / "checkpoint-3", root / f"{name} straight" / "checkpoint-3")


@pytest.mark.slow
def test_songs_and_the_disk_gone_end_both_ranks_and_name_both(
    meeting: Meeting, root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs.configuration(root, tiny_model, "both", max_train_steps=3, eval_loss_disable=True)

    def gone(self: Batches) -> Any:
        raise DataError("songs/a.wav: cannot be read")

    def full(*_: Any, **__: Any) -> None:
        raise CheckpointError("checkpoint-0 could not be written: the disk is full")

    monkeypatch.setattr(Batches, "next", gone)
    monkeypatch.setattr(checkpoint, "save", full)
    results = meeting.run(lambda rank: loop.train(config))
    said = "training stopped at step 0: songs/a.wav: cannot be read; then checkpoint-0 could not be written"
    assert all(isinstance(r, DataError) and str(r).startswith(said) for r in results), results
