"""`train(config)`: prepare → build → restore → run → finish. Emits events; prints nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config.read_run import load_config
from ..config.run import RunConfig
from ..errors import AceStepError, CheckpointError, ConfigError, cause
from ..io.progress import phase
from ..report.events import Finished, Listener, Listeners, MetricsFile, Started, damage
from ..report.live import Live
from ..report.trackers import Tracker, make_trackers
from . import faults, output
from .build import Built, build
from .distributed import World, together
from .interrupts import StopRequest
from .intervals import Agenda, Intervals
from .macos import keep_awake, wired_memory
from .measures import Measures
from .memory import cache_limit, step_cache, stored_bits
from .output import METRICS
from .preflight import check_folder
from .prepared import Job, Prepared, prepare
from .restore import Start, restore
from .saving import Writer
from .trainer import Trainer


@dataclass(frozen=True)
class TrainResult:
    """`lora` is the final file, or None when the run was interrupted; `checkpoint` the last complete one."""

    step: int
    finished: bool
    lora: Path | None
    checkpoint: Path | None
    report: Path | None


def train(
    config: RunConfig | str | Path | Mapping[str, Any],
    *,
    overwrite: bool = False,
    on_event: Listener | None = None,
    stop: StopRequest | None = None,
) -> TrainResult:
    """Train a LoRA as `config` says (a RunConfig, or anything `load_config` takes).

    overwrite: begin anew in a folder that holds a run, which is moved aside. on_event: receives the events of
    `report.events`, on rank 0 only. stop: ends a run in another thread. Ctrl-C, SIGTERM and SIGHUP end the
    run with a complete checkpoint. Raises AceStepError subclasses in one line, and KeyboardInterrupt before
    the first step.
    """
    if not isinstance(config, RunConfig):
        config = load_config(config)
    world = World.join()
    emit = Listeners([on_event] if on_event is not None and world.first else [])
    limit = mx.set_cache_limit(cache_limit())
    try:
        with keep_awake(), wired_memory(), stop or StopRequest() as stop:
            job = Job(config, world, emit, stop, overwrite)
            stop.say, stop.kept = emit.notice, job.kept
            with _alone(job):
                return _train(job)
    finally:
        mx.set_cache_limit(limit)
        mx.clear_cache()


def _alone(job: Job) -> AbstractContextManager[None]:
    """Hold the output folder, on the rank that writes into it."""
    if not job.world.first:
        return nullcontext()
    check_folder("output_dir", job.output)
    return output.exclusive(job.output, job.emit.notice)


def _train(job: Job) -> TrainResult:
    prepared = prepare(job)
    built = build(job, prepared)
    with closing(built.batches), job.stop.deferred():
        start = restore(job, prepared, built)
        writer = Writer(job, prepared, built, start.counters)
        with recorded(job, start, writer) as metrics, faults.explained(job.config, job.kept):
            reason = run(job, prepared, built, start, writer)
            return finish(job, writer, reason, metrics)


@contextmanager
def recorded(job: Job, start: Start, writer: Writer) -> Iterator[MetricsFile | None]:
    """While the block runs, metrics.jsonl, the page and the trackers listen; None on other ranks than the
    first.
    """
    if not job.world.first:
        yield None
        return
    metrics = _metrics(job, start.counters.step)
    if metrics.damaged:
        job.emit.notice(damage(metrics.path, metrics.damaged), "warning")
    trackers = make_trackers(job.config, job.output, job.emit.notice)
    listeners: list[Tracker] = [metrics, Live(writer.page, writer.news, job.emit.notice), *trackers]
    for listener in listeners:
        job.emit.add(listener)
    try:
        yield metrics
    except AceStepError as error:
        writer.report(str(error), running=False)
        raise
    finally:
        for listener in listeners:
            listener.close()


def _metrics(job: Job, step: int) -> MetricsFile:
    """metrics.jsonl from `step` on; once it cannot be written the run is asked to stop."""
    path = job.output / METRICS

    def failed(error: OSError) -> None:
        if not job.stop.requested:
            job.emit.notice(f"{path} cannot be written: {cause(error)}; stopping here", "warning")
        job.stop.request()

    try:
        return MetricsFile(path, step, failed)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {cause(error)}") from None


def run(job: Job, prepared: Prepared, built: Built, start: Start, writer: Writer) -> str:
    """Train from the start to the end, or until the run is asked to stop: "done" or "interrupted"."""
    config, step, counters = job.config, built.step, start.counters
    intervals = Intervals.of(config)
    intervals = Intervals(**job.world.share(asdict(intervals)))  # ranks meet when one is over
    per_epoch = built.batches.batches_per_epoch / config.gradient_accumulation_steps
    job.emit.progress(phase("reading the evaluation songs"))
    measures = Measures.of(job, prepared, built, counters.step, Agenda(intervals, built.total, per_epoch))
    model, bits = built.model, stored_bits(prepared.folder)
    mx.set_cache_limit(step_cache(config, built.batches.shapes, model.config, bits, *built.recomputed))
    parameters = sum(p.size for p in step.parameters().values())
    job.emit(Started(counters.step, built.total, parameters, len(built.batches.trained), str(job.output)))
    measured = job.world.share(measures.measured)
    if counters.lowest.measured not in ("", measured) and config.early_stopping_patience:
        job.emit.notice("the evaluation is of other songs than before: early_stopping_patience counts anew")
    trainer = Trainer(
        step,
        built.batches,
        built.total,
        intervals=intervals,
        save=writer.checkpoint,
        emit=job.emit,
        counters=counters,
        evaluate=measures.evaluate,
        validate=measures.validate,
        best=writer.best,
        way_on=writer.way_on,
        agree=job.world.agree,
        share=job.world.share,
        patience=config.early_stopping_patience,
        resumed=start.saved,
        measured=measured,
        remaining=measures.remaining,
    )
    trainer.catch_up(together(job.world.agree, lambda: measures.catch_up(counters, intervals)))
    reason = trainer.run(job.stop)
    if reason == "early":
        job.emit.notice(stopped_early(writer))
    return reason


def stopped_early(writer: Writer) -> str:
    """Why a run is over before its last step, and what there is of its best one."""
    counters, lowest, best = writer.counters, writer.counters.lowest, Path(writer.best()).name
    found = "none was finite" if lowest.loss is None else f"{lowest.loss:.4f} at step {lowest.step}"
    kept = f", kept as {best}" if best else ""
    return (
        f"stopped at step {counters.step}: the last {lowest.since} evaluations had no lower loss than the "
        f"best one ({found}{kept}); a higher early_stopping_patience goes on from here"
    )


def finish(job: Job, writer: Writer, reason: str, metrics: MetricsFile | None) -> TrainResult:
    """Write the LoRA of a run that is done, and the report; say that the run is over.

    Raises AceStepError when it was interrupted because metrics.jsonl could not be written.
    """
    step, lora, average, report = writer.counters.step, None, None, None
    if metrics is not None and metrics.failure is not None and reason == "interrupted":
        raise AceStepError(
            f"training stopped at step {step}: {metrics.path} cannot be written: {cause(metrics.failure)}. "
            f"{job.kept()} Mend that, then go on with --resume_from_checkpoint=latest"
        )
    if job.world.first:
        job.emit.progress(phase("writing the LoRA and the report"))
        if reason != "interrupted":
            try:
                lora, average = writer.loras(job.output)
            except CheckpointError as error:
                raise CheckpointError(f"{error}. {job.kept()} It holds this LoRA too".strip()) from None
        report = writer.report(stopped_early(writer) if reason == "early" else "", running=False)
    job.world.barrier()
    paths = (str(lora) if lora else None, str(report) if report else None)
    skipped, beside = writer.counters.skipped, str(average) if average else None
    job.emit(Finished(step, reason, *paths, skipped, beside, writer.best()))
    return TrainResult(step, reason != "interrupted", lora, job.kept.checkpoint, report)
