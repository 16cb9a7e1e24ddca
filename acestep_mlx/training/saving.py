"""What a run leaves behind: checkpoints, the LoRA for other loaders, the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx

from .. import __version__
from ..errors import AceStepError, refusal
from ..io.progress import TRAINING, phase
from ..lora.formats.write import write_lora
from ..lora.full_modules import full_parameters, save_full
from ..lora.surgery import from_model
from ..report.page import About, Song, write_live, write_report
from . import checkpoint
from .build import Built
from .faults import way_on
from .prepared import Job, Prepared
from .settings import full_training, further_loss
from .trainer import Counters


@dataclass(frozen=True)
class Writer:
    """Writes what has been trained, as it is when it is called. counters: of the training, which goes on."""

    job: Job
    prepared: Prepared
    built: Built
    counters: Counters

    def way_on(self) -> str:
        """What to do after numbers that are not finite, in a sentence."""
        return way_on(self.job.config, self.prepared.resumed)

    def checkpoint(self, health: checkpoint.Health) -> tuple[Path, list[Path]]:
        """Write a checkpoint on rank 0 (and the report); its path, and those of the deleted ones.

        Raises AceStepError when trained weights are not finite, or it cannot be written.
        """
        job, built, step = self.job, self.built, self.counters.step
        if not job.world.first:
            return job.output / f"checkpoint-{step}", []
        arrays, adapter = built.step.arrays(), built.step.parameters()
        if not mx.all(mx.stack([mx.all(mx.isfinite(value)) for value in adapter.values()])).item():
            raise AceStepError(
                f"training stopped at step {step}: trained weights are not finite. {self.way_on()}"
            )
        state = {
            "tool_version": __version__,
            **asdict(health),
            "counters": self.counters.to_dict(),
            "lowest": asdict(self.counters.lowest),
            "batches": built.batches.state(),
            "lora": built.spec.facts,
            **(built.recomputed.state if job.config.gradient_checkpointing else {}),
            "identity": built.identity,
        }
        path = checkpoint.save(
            job.output,
            step,
            state=state,
            adapter=adapter,
            **arrays,
            config=job.config.to_dict(),
            extra=self.loras,
        )
        job.kept.checkpoint = path
        removed = checkpoint.prune(job.output, job.config.checkpoints_total_limit, path)
        self.report()
        return path, removed

    def best(self) -> str:
        """The checkpoint with the lowest evaluation loss; "" where there is none, or on another rank."""
        found = checkpoint.best(self.job.output) if self.job.world.first else None
        return str(found) if found is not None else ""

    def loras(self, folder: Path) -> tuple[Path, Path | None]:
        """Write the LoRA into `folder`, and where they are averaged that of the averaged weights into the
        folder `ema` in it; their paths.
        """
        path, step = self.lora(folder), self.built.step
        if step.average is None:
            return path, None
        (folder / checkpoint.EMA).mkdir(exist_ok=True)
        with step.averaged():
            return path, self.lora(folder / checkpoint.EMA)

    def lora(self, folder: Path) -> Path:
        """Write the LoRA for other loaders (and what is trained in full) into `folder`; the LoRA's path."""
        config, model = self.job.config, self.built.model
        further = further_loss(config)
        facts = {
            "step": self.counters.step,
            "base_fingerprint": self.prepared.folder.fingerprints["transformer"],
            "base": config.pretrained_model_name_or_path,
            **(further.facts(config) if further is not None else {}),
        }
        weights = from_model(model, self.built.spec, **facts)
        path = write_lora(folder / checkpoint.LORA, weights, config.lora_format, base=model)
        if full_training(config) is not None:
            save_full(folder, full_parameters(model), model.lora.full)
        return path

    def about(self, ended: str = "", running: bool = True) -> About:
        """What the page says of the run beside its numbers; see there."""
        batches = self.built.batches
        trained = (batches.samples[i] for i in batches.trained)
        songs = [Song(s.id, s.seconds, s.captions, s.lyrics) for s in trained]
        return About(self.best(), ended, running, self.built.total, songs)

    def report(self, ended: str = "", running: bool = True) -> Path | None:
        """Write the page, and its news; None, and a warning, when that cannot be done. See `About`."""
        about = self.about(ended, running)
        try:
            path = write_report(self.job.output, self.job.config, about)
            write_live(self.job.output, self.job.config, about)
            return path
        except (OSError, AceStepError) as error:
            self.job.emit.notice(f"report.html could not be written: {refusal(error)}", "warning")
            return None

    def page(self) -> None:
        """Write the page between two steps: a resumed run reads all its clips again, in seconds."""
        self.job.emit.progress(phase("writing the page"))
        self.report()
        self.job.emit.progress(phase(TRAINING, self.counters.step, self.built.total))

    def news(self) -> None:
        """Write what an open page shows anew. OSError."""
        write_live(self.job.output, self.job.config, self.about())
