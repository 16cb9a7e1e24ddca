"""`train(config)`: cheap checks, caches, model, resume, the loop, outputs. Emits events; prints nothing."""

from __future__ import annotations

import math
import resource
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import __version__
from ..config.read import load_config
from ..config.run import RunConfig
from ..convert.cache import ensure_model
from ..data.batches import Batches
from ..data.encode import Cache, encode_dataset
from ..data.manifest import build_manifest
from ..errors import AceStepError, CheckpointError, ConfigError, cause, refusal
from ..families.folder import ModelFolder
from ..formatting import count, listed, size
from ..lora.formats.write import write_lora
from ..lora.lyrics_embedder import embedder_parameters, save_lyrics_embedder
from ..lora.surgery import from_model
from ..report.events import (
    Evaluated,
    Finished,
    Listener,
    Listeners,
    MetricsFile,
    Started,
    damage,
    read_metrics,
)
from ..report.page import write_report
from ..report.trackers import make_trackers, trackers_folder
from . import faults, output
from . import memory as plan
from . import state as checkpoint
from .build import build_model, cache_limit, machine_memory, optimizer_groups, step_settings, total_steps
from .distributed import World
from .evaluation import Evaluation
from .interrupts import StopRequest
from .macos import keep_awake, wired_memory
from .output import METRICS
from .preflight import check_folder, preflight
from .step import TrainStep
from .trainer import Counters, Intervals, Saved, Trainer
from .validation import Validation


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
            stop.say = emit.notice
            if not world.first:
                return _Run(config, world, emit, stop, overwrite).train()
            check_folder("output_dir", config.output_path)
            with output.exclusive(config.output_path, emit.notice):
                return _Run(config, world, emit, stop, overwrite).train()
    finally:
        mx.set_cache_limit(limit)
        mx.clear_cache()


def _kinds(arrays: Mapping[str, mx.array]) -> dict[str, tuple[Any, ...]]:
    """Shape and dtype of each array."""
    return {name: (value.shape, value.dtype) for name, value in arrays.items()}


class _Run:
    """The parts of one run, made in the order in which they can fail cheaply."""

    def __init__(
        self, config: RunConfig, world: World, emit: Listeners, stop: StopRequest, overwrite: bool
    ) -> None:
        self.config, self.world, self.emit, self.stop = config, world, emit, stop
        self.output, self.overwrite = config.output_path, overwrite
        self.last_checkpoint: Path | None = None
        stop.kept = self._kept
        for key, reason in config.ignored:
            emit.notice(f"{key} is ignored: {reason}")
        self.resumed = self._check()
        self.folder = ModelFolder.open(self._model_path())
        self.cache = world.first_then_others(self._fill_caches)
        self.validation = Validation(config, self.folder, self.output) if world.first else None

    # ── before any weight is loaded ──────────────────────────────────────────────────────────────────
    def _check(self) -> checkpoint.Checkpoint | None:
        """All cheap checks; reads the checkpoint that the run goes on from."""
        if not self.world.first:
            return None
        checkpoint.clean(self.output)
        found = preflight(self.config, self.emit.notice, ranks=self.world.size, overwrite=self.overwrite)
        if found.resume is not None:
            self.last_checkpoint = found.resume
            return checkpoint.read(found.resume)
        if self.config.resume_from_checkpoint:
            self.emit.notice(f"no checkpoint in {self.output} yet: starting from the beginning")
        return None

    def _model_path(self) -> Path:
        config, source = self.config, self.config.pretrained_model_name_or_path
        local = config.resolve(source)

        def convert() -> Path:
            return ensure_model(
                local if local.exists() else source,
                quantize=config.quantization,
                revision=config.revision,
                progress=self.emit.progress,
            )

        return self.world.first_then_others(convert)

    def _fill_caches(self) -> Cache:
        manifest = build_manifest(self.config, self.emit.progress)
        for text, level in manifest.report.remarks():
            self.emit.notice(text, level)
        cache = encode_dataset(manifest, self.config, self.folder, self.emit.progress)
        for name, reason in cache.skipped:
            self.emit.notice(f"skipped {name}: {reason}", "warning")
        if cache.skipped:
            left = f"{count(len(cache.samples), 'song')} left"
            self.emit.notice(f"{count(len(cache.skipped), 'song')} skipped, {left}", "warning")
        return cache

    # ── training ─────────────────────────────────────────────────────────────────────────────────────
    def train(self) -> TrainResult:
        config, world = self.config, self.world
        with faults.explained(config.to_dict(), self._kept):
            self.model, self.spec = build_model(config, self.folder)
        for note in self.spec.notes:
            self.emit.notice(note, "warning")
        self.batches = Batches(self.cache, config, rank=world.rank, world=world.size)
        self.model.checkpoint_blocks = self._checkpointed_blocks()
        try:
            with self.stop.deferred():
                return self._train()
        finally:
            self.batches.close()

    def _checkpointed_blocks(self) -> int:
        """As few as the memory allows, because each costs a second forward pass; kept over a resume."""
        config, model = self.config, self.model.config
        if not config.gradient_checkpointing:
            return 0
        kept = self.world.share(self.resumed.state.get("checkpointed_blocks") if self.resumed else None)
        if kept is not None:
            return min(int(kept), model.blocks)
        budget = plan.CAUTION * plan.usable(machine_memory())
        bits = (self.folder.quantization or {}).get("bits")
        size = config.train_batch_size
        loads = [plan.Load(s.frames, size, s.text, s.lyrics) for s in self.batches.shapes]
        return self.world.share(max(plan.choose_blocks(config, load, model, budget, bits) for load in loads))

    def _train(self) -> TrainResult:
        config, world, batches = self.config, self.world, self.batches
        total = total_steps(config, batches.batches_per_epoch)
        family = self.folder.family
        self.step = TrainStep(
            self.model,
            optimizer_groups(config, self.model, total),
            step_settings(config),
            family.objective(config),
            world=world.size,
            prepare=family.prepare(self.model),
        )
        self.identity = checkpoint.identity(
            config.to_dict(), {"transformer": self.folder.fingerprints["transformer"], "ranks": world.size}
        )
        counters = self._restore()
        self._check_disk()
        self._set_aside(counters.step)
        metrics = self._metrics(counters.step) if world.first else None
        if metrics is not None and metrics.damaged:
            self.emit.notice(damage(metrics.path, metrics.damaged), "warning")
        trackers = make_trackers(config, self.output, self.emit.notice) if world.first else []
        for listener in (metrics, *trackers):
            if listener is not None:
                self.emit.add(listener)
        self.counters = counters
        self.evaluation = self._evaluation()
        parameters = sum(p.size for p in self.step.parameters().values())
        self.emit(Started(counters.step, total, parameters, len(self.cache.samples), str(self.output)))
        trainer = Trainer(
            self.step,
            batches,
            total,
            intervals=Intervals(
                config.checkpoint_step_interval, config.checkpoint_epoch_interval,
                config.validation_step_interval, config.validation_epoch_interval, config.eval_steps_interval,
            ),
            save=self._save,
            emit=self.emit,
            counters=counters,
            evaluate=self._evaluate,
            validate=self._validate,
            way_on=self._way_on,
            agree=world.agree,
            resumed=self._resumed_here(counters),
        )  # fmt: skip
        try:
            with faults.explained(config.to_dict(), self._kept):
                self._catch_up(counters, trainer.intervals, total)
                return self._finish(trainer.run(self.stop), metrics.failure if metrics is not None else None)
        finally:
            for listener in (metrics, *trackers):
                if listener is not None:
                    listener.close()

    def _metrics(self, step: int) -> MetricsFile:
        path = self.output / METRICS

        def failed(error: OSError) -> None:
            if not self.stop.requested:
                self.emit.notice(f"{path} cannot be written: {cause(error)}; stopping here", "warning")
            self.stop.request()

        try:
            return MetricsFile(path, step, failed)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {cause(error)}") from None

    def _kept(self) -> str:
        return f"The last complete checkpoint is {self.last_checkpoint}." if self.last_checkpoint else ""

    def _set_aside(self, step: int) -> None:
        """Move away what would be replaced, or be taken for a part of this run's history."""
        if not self.world.first:
            return
        if self.overwrite:
            moved = output.set_aside(self.output, trackers_folder(self.config, self.output))
            if moved is not None:
                self.emit.notice(f"the run that was in {self.output} is now in {moved}")
        elif self.resumed is not None:
            moved = output.set_later_aside(self.output, step)
            if moved is not None:
                self.emit.notice(f"what came after step {step} is now in {moved}")

    def _check_disk(self) -> None:
        """ConfigError when no checkpoint can be written; a warning when not as many as are kept."""
        if not self.world.first:
            return
        config, arrays = self.config, self.step.arrays()
        trained = sum(value.nbytes for value in self.step.parameters().values())
        files = [trained, *(sum(value.nbytes for value in part.values()) for part in arrays.values())]
        limit, free = resource.getrlimit(resource.RLIMIT_FSIZE)[0], shutil.disk_usage(self.output).free
        if limit != resource.RLIM_INFINITY and limit < max(files):
            raise ConfigError(
                f"a checkpoint has files of {size(max(files))}, and this process may write files of at most "
                f"{size(limit)} (ulimit -f); raise that limit"
            )
        one = trained + sum(files)  # the trained weights are in it twice, once for other loaders
        kept = (config.checkpoints_total_limit or 10) + 1
        if free < one:
            raise ConfigError(
                f"{size(free)} are left in {self.output}, and a checkpoint takes {size(one)}; free some space"
            )
        if free < one * kept:
            self.emit.notice(
                f"{size(free)} are left in {self.output}, and {count(kept, 'checkpoint')} may take "
                f"{size(one * kept)}; lower checkpoints_total_limit or free some space",
                "warning",
            )

    def _restore(self) -> Counters:
        """Counters of the checkpoint that goes on, once its weights and states are in place on all ranks."""
        world, step, found = self.world, self.step, self.resumed
        state = world.share(found.state if found else None)
        if state is None:
            return Counters()
        if found is not None:
            checkpoint.check_identity(found.path, found.state, self.identity)
            expected = step.parameters()
            if _kinds(found.adapter) != _kinds(expected):
                raise ConfigError(f"{found.path} has other trained parameters than this configuration")
        now = step.arrays()
        adapter = world.share_arrays(found.adapter if found else {}, step.parameters())
        optimizer = world.share_arrays(found.optimizer if found else {}, now["optimizer"])
        sampler = world.share_arrays(found.sampler if found else {}, now["sampler"])
        step.set_parameters(adapter)
        problems = step.load_arrays(optimizer, sampler)
        if problems:
            raise ConfigError(f"{found.path if found else 'the checkpoint'} does not fit: {listed(problems)}")
        changed = self.batches.restore(state["batches"])
        if changed:
            self.emit.notice(changed, "warning")
        counters = Counters.from_dict(state["counters"])
        self.emit.notice(f"going on from {found.path if found else 'the checkpoint'} at step {counters.step}")
        return counters

    def _evaluation(self) -> Evaluation | None:
        config = self.config
        if not self.world.first or config.eval_loss_disable or not config.num_eval_images:
            return None
        batches = self.batches.evaluation(config.num_eval_images)
        step = self.step
        return Evaluation(self.model, batches, step.objective, step.settings.compute_dtype, step.prepare)

    def _evaluate(self, step: int) -> float | None:
        if self.evaluation is None:
            return None
        found = self.evaluation(self._stopped)
        if found is None:
            return None
        loss, bins = found
        self.emit(Evaluated(step, loss, bins))
        if not math.isfinite(loss):
            self.emit.notice(f"step {step}: the evaluation loss is not finite", "warning")
        return loss

    def _stopped(self) -> bool:
        return self.stop.requested

    def _resumed_here(self, counters: Counters) -> Saved | None:
        """The checkpoint that the run goes on from, where it is one of this folder."""
        found = self.resumed
        if found is None or found.path.parent.resolve() != self.output.resolve():
            return None
        return Saved(found.path, counters.step, counters.micro, checkpoint.Health.of(found.state))

    def _way_on(self) -> str:
        """How to go on once the loss is no number any more: options that can be typed as they are."""
        config = self.config
        found = checkpoint.last_healthy(self.output)
        if found is None and self.resumed is not None and checkpoint.Health.of(self.resumed.state).healthy:
            found = self.resumed.path
        known = f"The last healthy checkpoint is {found}. " if found else "No checkpoint is healthy. "
        start = shlex.quote(str(found))
        if config.mixed_precision == "fp16":  # another precision is another run
            where = shlex.quote(f"{self.output}-bf16")
            begin = f" --init_lora={start}" if found else ""
            return (
                f"{known}fp16 has too small a range; begin anew with --mixed_precision=bf16{begin} "
                f"--output_dir={where} --resume_from_checkpoint=latest"
            )
        lower = f"--learning_rate={config.learning_rate / 4:g}"
        if config.lyrics_embedder_train:
            lower += f" --lyrics_embedder_lr={config.lyrics_embedder_lr / 4:g}"
        if found is None:
            return f"{known}Begin anew at a lower rate: {lower} --overwrite"
        return f"{known}Go on from it at a lower rate: --resume_from_checkpoint={start} {lower}"

    def _validate(self, step: int) -> None:
        if self.validation is not None:
            self.validation(self.model, step, self.emit, self._stopped)

    def _catch_up(self, counters: Counters, intervals: Intervals, total: int) -> None:
        """Measure before the first step; after a kill, do what was due then and is not recorded."""
        if not self.world.first or counters.micro:
            return
        step = counters.step
        done = {row["event"] for row in read_metrics(self.output / METRICS) if row.get("step") == step}
        if (step == 0 or intervals.evaluation_due(step, None, step == total)) and "eval" not in done:
            self._evaluate(step)
        wanted = (
            self.config.validation_on_startup
            if step == 0
            else intervals.validation_due(step, None, step == total)
        )
        if wanted and "clip" not in done:
            self._validate(step)

    # ── outputs ──────────────────────────────────────────────────────────────────────────────────────
    def _write_lora(self, folder: Path) -> Path:
        """The LoRA for other loaders (and the lyrics embedder) as it is now, into `folder`."""
        facts = {
            "step": self.counters.step,
            "base_fingerprint": self.folder.fingerprints["transformer"],
            "base": self.config.pretrained_model_name_or_path,
        }
        weights = from_model(self.model, self.spec, **facts)
        path = write_lora(folder / checkpoint.LORA, weights, self.config.lora_format, base=self.model)
        if self.config.lyrics_embedder_train:
            save_lyrics_embedder(folder, embedder_parameters(self.model))
        return path

    def _save(self, health: checkpoint.Health) -> tuple[Path, list[Path]]:
        step, counters = self.step, self.counters
        path = self.output / f"checkpoint-{counters.step}"
        if not self.world.first:
            return path, []
        arrays, adapter = step.arrays(), step.parameters()
        if not mx.all(mx.stack([mx.all(mx.isfinite(value)) for value in adapter.values()])).item():
            raise AceStepError(
                f"training stopped at step {counters.step}: trained weights are not finite. {self._way_on()}"
            )
        state = {
            "tool_version": __version__,
            "healthy": health.healthy,
            "evaluation": health.evaluation,
            "counters": counters.to_dict(),
            "batches": self.batches.state(),
            "lora": self.spec.facts,
            "checkpointed_blocks": self.model.checkpoint_blocks,
            "identity": self.identity,
        }
        path = checkpoint.save(
            self.output,
            counters.step,
            state=state,
            adapter=adapter,
            optimizer=arrays["optimizer"],
            sampler=arrays["sampler"],
            config=self.config.to_dict(),
            extra=self._write_lora,
        )
        self.last_checkpoint = path
        removed = checkpoint.prune(self.output, self.config.checkpoints_total_limit, path)
        self._report()
        return path, removed

    def _report(self) -> Path | None:
        try:
            return write_report(self.output, self.config)
        except (OSError, AceStepError) as error:
            what = refusal(error) if isinstance(error, OSError) else error
            self.emit.notice(f"report.html could not be written: {what}", "warning")
            return None

    def _finish(self, reason: str, unwritten: OSError | None) -> TrainResult:
        counters, lora = self.counters, None
        if unwritten is not None and reason != "done":
            raise AceStepError(
                f"training stopped at step {counters.step}: {self.output / METRICS} cannot be written: "
                f"{cause(unwritten)}. {self._kept()} Mend that, then go on with "
                "--resume_from_checkpoint=latest"
            )
        if reason == "done" and self.world.first:
            try:
                lora = self._write_lora(self.output)
            except CheckpointError as error:
                raise CheckpointError(f"{error}. {self._kept()} It holds this LoRA too".strip()) from None
        report = self._report() if self.world.first else None
        self.world.barrier()
        self.emit(
            Finished(
                counters.step,
                reason,
                str(lora) if lora else None,
                str(report) if report else None,
                counters.skipped,
            )
        )
        return TrainResult(counters.step, reason == "done", lora, self.last_checkpoint, report)
