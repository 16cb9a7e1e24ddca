"""Every supported option of config.json, walked to its effect on a run: none is read and then lost.

A run here is a tenth of a second: one block, a step or two, nothing compiled, latents that are quickly made.
What an option does to a song that is generated is walked in test_request_reach, what data sets do with theirs
in data/test_keys_reach.
"""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.cli import dry_run
from acestep_mlx.cli.events import TrainDisplay
from acestep_mlx.config.lora_formats import FORMATS, RUN_FORMATS
from acestep_mlx.config.optimizers import OPTIMIZERS
from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.run import LR_SCHEDULERS, OPTIONS, PRECISION_BITS, SUPPORTED, RunConfig
from acestep_mlx.errors import ConfigError
from acestep_mlx.families import of_flavour
from acestep_mlx.families.v1 import songs
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.families.v1.ssl import encoders as ssl
from acestep_mlx.families.v15 import FAMILY as V15
from acestep_mlx.io.safetensors import read_header
from acestep_mlx.lora.formats.read import read_lora
from acestep_mlx.report.events import (
    AverageEvaluated,
    CheckpointSaved,
    Evaluated,
    Notice,
    StepDone,
    ValidationClip,
    read_metrics,
)
from acestep_mlx.report.trackers import scalars
from acestep_mlx.training import build, checkpoint, memory, prepared
from acestep_mlx.training import evaluation as evaluate
from acestep_mlx.training import run as loop
from acestep_mlx.training.settings import rollout_lines
from acestep_mlx.training.step import TrainStep
from acestep_mlx.training.trainer import Intervals

from .families import hearing
from .reach import Walk
from .small import small_model
from .training import runs

#: What nearly every run here has: one step of plain gradient descent, so that a step shows its gradient.
BASE: dict[str, Any] = {
    "max_train_steps": 1,
    "acestep_lora_target": "attn_qkv",
    "gradient_checkpointing": False,
    "optimizer": "sgd",
    "learning_rate": 1e-2,
    "adam_weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "caption_dropout_probability": 0.0,
}
ADAM = {"optimizer": "adamw", "learning_rate": 1e-3}
EMBEDDER = {"lyrics_embedder_train": True}
CLIPS = {"validation_disable": False, "validation_prompt": "jazz"}


class Run:
    """What was seen of one run; arrays as NumPy."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.result: Any = None
        self.seen = runs.Recorder()
        self.step: Any = None
        self.start: dict[str, np.ndarray] = {}
        self.batches: list[dict[str, np.ndarray]] = []
        self.timesteps: list[float] = []
        self.dtypes: set[Any] = set()

    def of(self, kind: type) -> list[Any]:
        return self.seen.of(kind)

    def steps(self, kind: type) -> list[int]:
        return [event.step for event in self.of(kind)]

    @property
    def rates(self) -> list[float]:
        """Learning rates of steps 1 to 10, of the LoRA."""
        return [self.step.groups[0].schedule(i) for i in range(10)]

    def arrays(self, name: str = "adapter") -> dict[str, np.ndarray]:
        """What the last checkpoint holds."""
        loaded: Any = mx.load(str(self.result.checkpoint / f"{name}.safetensors"))
        return {k: np.array(v) for k, v in loaded.items()}

    def moved(self, ending: str) -> np.ndarray:
        """By how much the parameters with this ending changed, in one row."""
        end = self.arrays()
        names = sorted(k for k in self.start if k.endswith(ending) or k.startswith(ending))
        assert names
        return np.concatenate([(end[k] - self.start[k]).reshape(-1) for k in names])

    @property
    def change(self) -> np.ndarray:
        """ΔW of all modules, in one row."""
        modules = read_lora(self.result.lora).modules
        return np.concatenate([np.array(modules[k].delta()).reshape(-1) for k in sorted(modules)])


class Built(Exception):
    """Ends a run before its first step, of which everything is ready."""


class QuickCodec:
    """Latents that tell songs apart, without the network that makes real ones."""

    def __init__(self, *components: Any) -> None: ...

    def encode(self, sound: np.ndarray, progress: Any = None) -> mx.array:
        frames = -(-len(sound) // 4096)
        left = np.pad(sound[:, 0], (0, frames * 4096 - len(sound))).reshape(frames, 128, 32)
        return mx.array(left.mean(2).T.reshape(1, 8, 16, frames) * 10)


class Lab:
    """Runs in folders of their own, on the same songs and caches."""

    def __init__(self, root: Path, model: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.model, self.patch = root, model, patch
        self.kept: dict[str, Any] = {}
        self.build_only = False
        self.now: Run | None = None
        self.count = 0
        runs.write_songs(root / "songs")
        lab = self

        class Watched(TrainStep):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                assert lab.now is not None
                lab.now.step = self
                lab.now.start = {k: np.array(v) for k, v in self.parameters().items()}
                if lab.build_only:
                    raise Built

            def __call__(self, batch: Any, **options: Any) -> Any:
                assert lab.now is not None
                lab.now.batches.append({k: np.array(v) for k, v in batch.items()})
                return super().__call__(batch, **options)

        def watched_draw(self: Any, batch: Any) -> Any:
            assert lab.now is not None
            drawn = draw(self, batch)
            lab.now.timesteps += (np.array(drawn.sigma) * 1000).tolist()
            return drawn

        def watched_losses(self: Any, model: Any, batch: Any, drawn: Any, dtype: Any) -> Any:
            assert lab.now is not None
            lab.now.dtypes.add(dtype)
            return losses(self, model, batch, drawn, dtype)

        draw, losses = FlowMatching.draw, FlowMatching.losses
        patch.setattr(evaluate, "TIMESTEPS", (300.0, 700.0))
        patch.setattr(songs, "Codec", QuickCodec)
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(build, "TrainStep", Watched)
        patch.setattr(FlowMatching, "draw", watched_draw)
        patch.setattr(FlowMatching, "losses", watched_losses)

    def options(self, **changes: Any) -> dict[str, Any]:
        self.count += 1
        return runs.configuration(self.root, self.model, f"run-{self.count}", **{**BASE, **changes})

    def keep(self, kind: str, changes: dict[str, Any], make: Callable[[], Any]) -> Any:
        """What `make` gave when these changes were first asked for."""
        name = json.dumps([kind, changes], sort_keys=True, default=str)
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def run(self, **changes: Any) -> Run:
        """Train with BASE and `changes`."""
        run: Run = self.keep("run", changes, lambda: self.fresh(self.options(**changes)))
        return run

    def built(self, **changes: Any) -> Run:
        """The same before the first step: `step`, with its model and schedules, and `start` are there."""
        run: Run = self.keep("built", changes, lambda: self.build(self.options(**changes)))
        return run

    def fresh(self, options: dict[str, Any]) -> Run:
        """Train with exactly these options."""
        run = self.now = Run(Path(options["output_dir"]))
        run.result = loop.train(options, on_event=run.seen)
        return run

    def build(self, options: dict[str, Any]) -> Run:
        """Begin with exactly these options."""
        self.build_only = True
        try:
            with pytest.raises(Built):
                self.fresh(options)
        finally:
            self.build_only = False
        assert self.now is not None
        return self.now


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("reach")
    with pytest.MonkeyPatch.context() as patch:
        mx.disable_compile()
        try:
            yield Lab(root, small_model(root / "base"), patch)
        finally:
            mx.enable_compile()


WALK = Walk()
reaches = WALK.reaches


@pytest.mark.slow_cases(
    "cache_dir cache_dir_text cache_dir_vae compress_disk_cache vae_cache_ondemand vae_cache_disable "
    "num_eval_images validation_epoch_interval checkpoints_total_limit pretrained_model_name_or_path "
    "resume_from_checkpoint model_family lora_format data_backend_config validation_prompt_library "
    "checkpoint_step_interval checkpoint_epoch_interval eval_steps_interval validation_step_interval "
    "early_stopping_patience ema_validation use_ema checkpoint_minutes "
    "report_to acestep_lora_target caption_dropout_probability lyrics_embedder_optimizer num_train_epochs "
    # of which test_settings_reach shows in no time that they arrive
    "optimizer flow_schedule_shift logit_mean logit_std lora_alpha use_rslora adam_beta1 adam_beta2 "
    "adam_epsilon ema_decay ema_update_interval "
    # of which test_rollout shows what they do
    "scheduled_sampling_strategy scheduled_sampling_ramp_steps scheduled_sampling_prob_start "
    "scheduled_sampling_prob_end scheduled_sampling_start_step scheduled_sampling_ramp_shape "
    "scheduled_sampling_stride scheduled_sampling_reflexflow_alpha scheduled_sampling_reflexflow_beta1 "
    "scheduled_sampling_reflexflow_beta2 scheduled_sampling_probability scheduled_sampling_max_step_offset "
    # of which families/test_ssl shows it
    "ace_step_ssl_loss_weight ace_step_ssl_encoders ace_step_ssl_mert ace_step_ssl_mhubert"
)
@pytest.mark.parametrize("name", SUPPORTED)
def test_every_option_reaches_its_place(name: str, lab: Lab) -> None:
    WALK(name, lab)


def test_nothing_is_walked_that_is_not_there() -> None:
    assert set(WALK) == set(SUPPORTED)


class Asked(Exception):
    """Ends a run at its trainer, which it holds."""


def _asked(lab: Lab, **changes: Any) -> Any:
    """The trainer of a run that would begin now."""

    class Held(loop.Trainer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            raise Asked(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Asked) as found:
        patch.setattr(loop, "Trainer", Held)
        lab.fresh(lab.options(**changes))
    return found.value.args[0]


def test_what_a_run_is_made_of(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options whose walks are slow, at the place where a run takes them: none is another's, none is lost."""
    folder = lab.root / "asked"
    intervals = {
        "checkpointing_steps": 7, "checkpoint_epoch_interval": 3, "validation_step_interval": 5,
        "validation_epoch_interval": 2, "eval_steps_interval": 4, "checkpoint_minutes": 45,
    }  # fmt: skip
    trainer = _asked(
        lab, **EMBEDDER, **intervals, lyrics_embedder_optimizer="lion", max_train_steps=0, num_train_epochs=2,
        caption_dropout_probability=0.25, eval_loss_disable=False, num_eval_images=2, lora_format="comfyui",
        checkpoints_total_limit=9, compress_disk_cache=True, vae_cache_ondemand=True,
        cache_dir=str(folder), cache_dir_text=str(folder / "words"), cache_dir_vae=str(folder / "sound"),
    )  # fmt: skip
    assert trainer.intervals == Intervals(7, 3, 5, 2, 4, 45) and trainer.total == 2 * len(runs.SONGS)
    assert [type(group.optimizer).__name__ for group in trainer.step.groups] == ["SGD", "Lion"]
    assert trainer.batches.dropout == 0.25
    assert len(trainer.evaluate.__self__.evaluation.batches) == 2
    words, sound = _files(folder / "words"), _files(folder / "sound")
    assert len(sound) == 2 and len(words) >= 3  # of songs, those that are evaluated
    assert {file.read_bytes()[4:6] for file in (*words, *sound)} == {b"1z"}  # deflated
    limits: list[int] = []
    monkeypatch.setattr(checkpoint, "prune", lambda output, limit, keep: limits.append(limit) or [])
    path, _ = trainer.save(checkpoint.Health())
    facts = read_header(path / "pytorch_lora_weights.safetensors").metadata["acestep_mlx"]
    assert limits == [9] and json.loads(facts)["file_format"] == "comfyui"


@pytest.mark.slow
def test_what_is_kept_nowhere(lab: Lab) -> None:
    """Neither sound nor words; `vae_cache_disable` is for both."""
    folder = lab.root / "nowhere"
    cache = _asked(lab, vae_cache_disable=True, cache_dir=str(folder)).batches.cache
    assert not folder.exists() and cache.files() == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_the_walk_notices_an_option_that_is_lost(
    name: str, lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same walk with this one option always at its default."""
    read = RunConfig.__getattribute__

    def lost(self: RunConfig, asked: str) -> Any:
        return default if asked == name else read(self, asked)

    default = "another" if name in ONLY else getattr(load_config({}), name)
    monkeypatch.setattr(RunConfig, "__getattribute__", lost)
    monkeypatch.setattr(lab, "kept", {})
    monkeypatch.chdir(tmp_path)  # a lost folder is one in the working directory
    with pytest.raises((Exception, pytest.fail.Exception)) as error:  # whatever it is that then goes wrong
        WALK(name, lab)
    assert not isinstance(error.value, AttributeError)


# ── options with a single value: whatever else is asked for must not be taken for it ─────────────────
ONLY = {
    "model_family": "ace_step",
    "model_type": "lora",
    "grad_clip_method": "norm",
    "evaluation_type": "none",
    "loss_type": "l2",
    "peft_lora_mode": "standard",
    "timestep_bias_strategy": "none",
    "num_validation_images": 1,
}


def _only(name: str, value: Any) -> Callable[[Lab], None]:
    def check(lab: Lab) -> None:
        option = OPTIONS[name]
        assert option.choices == (value,) or (option.low, option.high) == (value, value), (
            "there is something to choose now: show here what the choice does"
        )
        assert getattr(load_config({name: value}), name) == value
        for other in ["another", *option.refused_values] if option.choices else [value + 1]:
            with pytest.raises(ConfigError, match=name):
                load_config({name: other})

    return check


for _name, _value in ONLY.items():
    reaches(_name)(_only(_name, _value))


# ── model ────────────────────────────────────────────────────────────────────────────────────────────
@reaches("model_flavour")
def _(lab: Lab) -> None:
    lab.built()
    with pytest.raises(ConfigError, match=r"model_flavour=v15-base is ACE-Step 1.5, and .* is ACE-Step v1"):
        lab.fresh(lab.options(model_flavour="v15-base"))


@reaches("pretrained_model_name_or_path")
def _(lab: Lab) -> None:
    other = lab.root / "other" / "model"
    if not other.is_dir():
        small_model(other.parent, seed=5)
    run = lab.run(pretrained_model_name_or_path=str(other))
    assert run.of(StepDone)[0].loss != lab.run().of(StepDone)[0].loss
    assert read_lora(run.result.lora).metadata["base"] == "model"


@reaches("revision")
def _(lab: Lab) -> None:
    asked: list[Any] = []

    def ensure(source: Any, **options: Any) -> Path:
        asked.append((source, options["revision"], options["quantize"]))
        return lab.model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "ensure_model", ensure)
        lab.run(pretrained_model_name_or_path="someone/a-model", revision="v1.1")
    assert asked == [("someone/a-model", "v1.1", None)]


@reaches("output_dir")
def _(lab: Lab) -> None:
    run = lab.fresh(lab.options(output_dir=str(lab.root / f"elsewhere-{lab.count}")))
    assert run.output.name.startswith("elsewhere")
    names = {"metrics.jsonl", "report.html", "pytorch_lora_weights.safetensors", "checkpoint-1"}
    assert names <= {p.name for p in run.output.iterdir()}


# ── LoRA ─────────────────────────────────────────────────────────────────────────────────────────────
@reaches("lora_rank")
def _(lab: Lab) -> None:
    assert {v.shape[1] for k, v in lab.run(lora_rank=3).arrays().items() if k.endswith("lora_a")} == {3}


@reaches("lora_alpha")
def _(lab: Lab) -> None:
    """The scale is in the gradient of B and again in the LoRA: three times alpha, nine times the change."""
    _close(lab.run(lora_alpha=6).change, 9 * lab.run(lora_alpha=2).change)


@reaches("use_rslora")
def _(lab: Lab) -> None:
    """alpha/√4 against alpha/4."""
    plain, stabilised = lab.run(lora_rank=4), lab.run(lora_rank=4, use_rslora=True)
    _close(stabilised.change, 4 * plain.change)


@reaches("use_dora")
def _(lab: Lab) -> None:
    run = lab.run(use_dora=True)
    assert np.abs(run.moved(".m")).max() > 0
    assert all(m.magnitude is not None for m in read_lora(run.result.lora).modules.values())
    assert not [k for k in lab.run().start if k.endswith(".m")]


@reaches("lora_dropout")
def _(lab: Lab) -> None:
    """With one of ten left and ten times as strong, B's gradient is another, and the loss still the same."""
    plain, dropped = lab.run(), lab.run(lora_dropout=0.9)
    assert dropped.of(StepDone)[0].loss == plain.of(StepDone)[0].loss  # B is zero in the first step
    assert np.linalg.norm(dropped.moved("lora_b")) > 1.5 * np.linalg.norm(plain.moved("lora_b"))


@reaches("lora_init_type")
def _(lab: Lab) -> None:
    def widest(run: Run) -> float:
        """Of A, in units of 1/√in."""
        return max(np.abs(v).max() * v.shape[0] ** 0.5 for k, v in run.start.items() if k.endswith("lora_a"))

    assert widest(lab.built()) <= 1 < widest(lab.built(lora_init_type="gaussian"))


@reaches("acestep_lora_target")
def _(lab: Lab) -> None:
    found = [
        {path.rsplit(".", 2)[-2] if path.endswith(".0") else path.rsplit(".", 1)[-1] for path in
         read_lora(lab.run(acestep_lora_target=target).result.lora).modules}
        for target in of_flavour("base").lora.presets
    ]  # fmt: skip
    attention, lyrics = {"to_q", "to_k", "to_v", "to_out"}, {"linear_q", "linear_k", "linear_v"}
    assert found == [attention, attention | lyrics, attention | lyrics | {"speaker_embedder"}]


@reaches("peft_lora_target_modules")
def _(lab: Lab) -> None:
    modules = read_lora(lab.run(peft_lora_target_modules=["attn.to_k"]).result.lora).modules
    assert modules and all(path.endswith("attn.to_k") for path in modules)


@reaches("init_lora")
def _(lab: Lab) -> None:
    first = lab.run(learning_rate=0.1)
    run = lab.run(init_lora=str(first.result.lora), learning_rate=0.0)
    assert np.abs(first.change).max() > 0
    np.testing.assert_allclose(run.change, first.change, rtol=1e-5, atol=1e-9)


LOKR = {"lora_type": "lycoris", "lycoris_config": {"algo": "lokr", "linear_dim": 2, "factor": 4}}


@reaches("lora_type")
def _(lab: Lab) -> None:
    lokr, lora = (list(lab.run(**more).arrays()) for more in (LOKR, {}))
    assert lokr and all(".lokr_w" in name for name in lokr)
    assert lora and not any(".lokr_w" in name for name in lora)


@reaches("lycoris_config")
def _(lab: Lab) -> None:
    for factor in (4, 2):
        run = lab.run(**LOKR | {"lycoris_config": {"algo": "lokr", "linear_dim": 2, "factor": factor}})
        shapes = {value.shape for name, value in run.arrays().items() if name.endswith("lokr_w1")}
        assert shapes == {(factor, factor)}
        assert all(m.w1 is not None for m in read_lora(run.result.lora).modules.values())


@reaches("lora_format")
def _(lab: Lab) -> None:
    for name in set(FORMATS) & set(RUN_FORMATS):
        run = lab.run(lora_format=name)
        for file in (run.result.lora, run.result.checkpoint / run.result.lora.name):
            assert json.loads(read_header(file).metadata["acestep_mlx"])["file_format"] == name
            prefix, a = of_flavour("base").lora.prefixes.get(name, ""), FORMATS[name].a
            keys = [k for k in read_header(file).tensors if k.endswith(a)]
            assert keys and all(k.startswith(f"{prefix}transformer_blocks.") for k in keys)


# ── the lyrics embedder ──────────────────────────────────────────────────────────────────────────────
@reaches("lyrics_embedder_train")
def _(lab: Lab) -> None:
    run = lab.run(**EMBEDDER)
    assert np.abs(run.moved("lyric_")).max() > 0
    assert (run.output / "lyrics_embedder").is_dir() and (run.result.checkpoint / "lyrics_embedder").is_dir()
    assert not (lab.run().output / "lyrics_embedder").exists()


@reaches("lyrics_embedder_lr")
def _(lab: Lab) -> None:
    same, faster = lab.run(**EMBEDDER), lab.run(**EMBEDDER, lyrics_embedder_lr=0.03)
    np.testing.assert_array_equal(faster.moved("lora_b"), same.moved("lora_b"))
    _close(faster.moved("lyric_"), 3 * same.moved("lyric_"))
    assert faster.of(StepDone)[0].extra == {"learning_rate_lyrics_embedder": 0.03}


@reaches("lyrics_embedder_optimizer")
def _(lab: Lab) -> None:
    both, own = lab.run(**EMBEDDER), lab.run(**EMBEDDER, lyrics_embedder_optimizer="lion")
    np.testing.assert_array_equal(own.moved("lora_b"), both.moved("lora_b"))
    steps = np.abs(own.moved("lyric_"))  # lion's are all of one size
    assert np.allclose(steps[steps > 1e-6], 0.01, rtol=1e-2) and not np.allclose(both.moved("lyric_"), 0.01)


@reaches("lyrics_embedder_lr_scheduler")
def _(lab: Lab) -> None:
    run = lab.built(**EMBEDDER, max_train_steps=10, lyrics_embedder_lr_scheduler="linear")
    lora, embedder = (group.schedule for group in run.step.groups)
    assert [lora(5), embedder(5)] == [0.01, 0.005]


# ── precision ────────────────────────────────────────────────────────────────────────────────────────
@reaches("mixed_precision")
def _(lab: Lab) -> None:
    wanted = {"no": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
    assert set(wanted) == set(OPTIONS["mixed_precision"].choices)
    for name, dtype in wanted.items():
        run = lab.run(mixed_precision=name)
        assert run.dtypes == {dtype} and run.step.model.dtype == dtype
        assert ("scale" in run.arrays("sampler")) == (name == "fp16")


@reaches("base_model_precision")
def _(lab: Lab) -> None:
    def bits(precision: str) -> set[int | None]:
        model = lab.built(base_model_precision=precision).step.model
        return {getattr(m.linear, "bits", None) for p, m in model.named_modules() if p.endswith("attn.to_q")}

    wanted = ("no_change", "int8-quanto", "int4-quanto", "int2-quanto")
    assert [bits(name) for name in wanted] == [{PRECISION_BITS[name]} for name in wanted]
    assert [PRECISION_BITS[name] for name in wanted] == [None, 8, 4, 2]


# ── optimisation ─────────────────────────────────────────────────────────────────────────────────────
@reaches("optimizer")
def _(lab: Lab) -> None:
    moves = {name: lab.run(optimizer=name).moved("lora_b") for name in OPTIMIZERS}
    names = list(moves)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            if {one, other} != {"adam", "adamw"}:  # these differ in the weight decay, which is zero here
                assert not np.allclose(moves[one], moves[other], rtol=1e-3), (one, other)
    decayed = lab.run(optimizer="adamw", adam_weight_decay=0.5).moved("lora_a")
    assert np.abs(decayed).max() > 0
    assert np.abs(lab.run(optimizer="adam", adam_weight_decay=0.5).moved("lora_a")).max() == 0


@reaches("optimizer_config")
def _(lab: Lab) -> None:
    by_config = lab.run(**ADAM, optimizer_config={"eps": 0.1, "betas": [0.5, 0.6]})
    by_option = lab.run(**ADAM, adam_epsilon=0.1, adam_beta1=0.5, adam_beta2=0.6)
    np.testing.assert_array_equal(by_config.moved("lora_b"), by_option.moved("lora_b"))
    assert _moment(by_config, "m").tobytes() == _moment(by_option, "m").tobytes()


@reaches("adam_beta1")
def _(lab: Lab) -> None:
    """The first moment after a step is (1 − β₁)·g."""
    plain, other = lab.run(**ADAM), lab.run(**ADAM, adam_beta1=0.3)
    np.testing.assert_allclose(_moment(other, "m") / 0.7, _moment(plain, "m") / 0.1, rtol=1e-4)


@reaches("adam_beta2")
def _(lab: Lab) -> None:
    """The second moment after a step is (1 − β₂)·g²."""
    plain, other = lab.run(**ADAM), lab.run(**ADAM, adam_beta2=0.9)
    np.testing.assert_allclose(_moment(other, "v") / 0.1, _moment(plain, "v") / 0.001, rtol=1e-3)


@reaches("adam_epsilon")
def _(lab: Lab) -> None:
    """The first step, its moments corrected, is −rate·g/(|g| + ε)."""
    run = lab.run(**ADAM, adam_epsilon=0.01)
    gradient = -lab.run().moved("lora_b") / 0.01
    np.testing.assert_allclose(
        run.moved("lora_b"), -1e-3 * gradient / (np.abs(gradient) + 0.01), rtol=1e-3, atol=1e-9
    )


@reaches("adam_weight_decay")
def _(lab: Lab) -> None:
    """A has no gradient while B is zero: what moves it is the decay alone, a·(1 − rate·decay)."""
    run = lab.run(**ADAM, adam_weight_decay=0.5)
    names = sorted(k for k in run.start if k.endswith("lora_a"))
    start = np.concatenate([run.start[k].reshape(-1) for k in names])
    np.testing.assert_allclose(run.moved("lora_a"), -1e-3 * 0.5 * start, rtol=1e-2, atol=1e-8)
    assert np.abs(lab.run(**ADAM).moved("lora_a")).max() == 0


@reaches("learning_rate")
def _(lab: Lab) -> None:
    one, two = lab.run(), lab.run(learning_rate=0.02)
    np.testing.assert_allclose(two.moved("lora_b"), 2 * one.moved("lora_b"), rtol=1e-5)
    assert [one.of(StepDone)[0].learning_rate, two.of(StepDone)[0].learning_rate] == [0.01, 0.02]


@reaches("max_grad_norm")
def _(lab: Lab) -> None:
    """Plain gradient descent goes as far as the norm says."""
    free = lab.run()
    norm = free.of(StepDone)[0].grad_norm
    clipped = lab.run(max_grad_norm=norm / 4)
    np.testing.assert_allclose(clipped.moved("lora_b"), free.moved("lora_b") / 4, rtol=1e-3)
    np.testing.assert_array_equal(lab.run(max_grad_norm=4 * norm).moved("lora_b"), free.moved("lora_b"))


def _rates(lab: Lab, **changes: Any) -> list[float]:
    return [rate / 0.01 for rate in lab.built(max_train_steps=10, **changes).rates]


@reaches("lr_scheduler")
def _(lab: Lab) -> None:
    rates = {name: _rates(lab, lr_scheduler=name, lr_warmup_steps=2) for name in LR_SCHEDULERS}
    assert rates["constant"] == [1] * 10
    assert rates["constant_with_warmup"] == [0, 0.5] + [1] * 8
    assert rates["linear"][:2] == [0, 0.5] and rates["linear"][6] == pytest.approx(0.5)
    assert rates["cosine"][6] == pytest.approx(0.5) and rates["cosine"][4] == pytest.approx(0.853553)
    assert rates["sine"][1] == pytest.approx(1) and rates["sine"][3] == pytest.approx(4e-5)
    assert len({tuple(line) for line in rates.values()}) == len(LR_SCHEDULERS) - 1  # one cycle: cosine again
    assert rates["cosine"] == rates["cosine_with_restarts"]


@reaches("lr_warmup_steps")
def _(lab: Lab) -> None:
    warm = _rates(lab, lr_scheduler="constant_with_warmup", lr_warmup_steps=4)
    assert warm == pytest.approx([0, 0.25, 0.5, 0.75] + [1] * 6)


@reaches("lr_num_cycles")
def _(lab: Lab) -> None:
    cycles = _rates(lab, lr_scheduler="cosine_with_restarts", lr_num_cycles=2)
    assert cycles[:5] == pytest.approx(cycles[5:]) and cycles[0] == 1 and cycles[4] < 0.1


@reaches("lr_power")
def _(lab: Lab) -> None:
    for power in (1.0, 2.0):
        rates = _rates(lab, lr_scheduler="polynomial", lr_power=power, lr_end=0.0)
        assert rates == pytest.approx([(1 - i / 10) ** power for i in range(10)])


@reaches("lr_end")
def _(lab: Lab) -> None:
    rates = _rates(lab, lr_scheduler="polynomial", lr_power=1.0, lr_end=0.005)
    assert rates == pytest.approx([0.5 + 0.5 * (1 - i / 10) for i in range(10)])


# ── length ───────────────────────────────────────────────────────────────────────────────────────────
@reaches("max_train_steps")
def _(lab: Lab) -> None:
    assert lab.run(max_train_steps=2).result.step == 2 and lab.run(max_train_steps=2).steps(StepDone) == [
        1,
        2,
    ]


@reaches("num_train_epochs")
def _(lab: Lab) -> None:
    run = lab.run(max_train_steps=0, num_train_epochs=2)
    assert run.result.step == 2 * len(runs.SONGS) and run.of(StepDone)[-1].epoch == 1


@reaches("train_batch_size")
def _(lab: Lab) -> None:
    assert [len(lab.run(train_batch_size=n).batches[0]["latents"]) for n in (1, 2)] == [1, 2]


@reaches("gradient_accumulation_steps")
def _(lab: Lab) -> None:
    """Two songs one after the other are the step of a batch of two."""
    both, parts = lab.run(train_batch_size=2), lab.run(gradient_accumulation_steps=2)
    assert len(parts.batches) == 2 and parts.result.step == 1
    assert both.of(StepDone)[0].loss != lab.run().of(StepDone)[0].loss
    assert np.linalg.norm(parts.moved("lora_b") - lab.run().moved("lora_b")) > 1e-6


@reaches("gradient_checkpointing")
def _(lab: Lab) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "machine_memory", lambda: 1 << 20)  # as if this machine had next to none
        blocks = [
            lab.build(lab.options(gradient_checkpointing=on)).step.model.checkpoint_blocks
            for on in (False, True)
        ]
    assert blocks[0] == 0 < blocks[1]


@reaches("seed")
def _(lab: Lab) -> None:
    one, other = lab.run(max_train_steps=3), lab.run(max_train_steps=3, seed=7)
    assert lab.fresh(lab.options(max_train_steps=3)).of(StepDone)[0].loss == one.of(StepDone)[0].loss
    a = next(k for k in one.start if k.endswith("lora_a"))
    assert not np.allclose(one.start[a], other.start[a])
    assert not any((x["keys"] == y["keys"]).all() for x in one.batches for y in other.batches)
    assert len({_order(lab, seed) for seed in range(4)}) > 1


def _order(lab: Lab, seed: int) -> tuple[float, ...]:
    """The songs of a first epoch, told apart by their latents."""
    run = lab.run(seed=seed, max_train_steps=3)
    return tuple(round(float(batch["latents"].std()), 4) for batch in run.batches)


# ── flow: with hardly any spread every timestep is the shifted level of the mean ─────────────────────
@reaches("flow_schedule_shift")
def _(lab: Lab) -> None:
    for shift, level in ((1.0, 500), (3.0, 750), (9.0, 900)):
        assert lab.run(flow_schedule_shift=shift, logit_std=1e-6).timesteps == pytest.approx([level], abs=1)


def _hearing(lab: Lab, **change: Any) -> dict[str, Any]:
    """Options of a run with the self-supervised loss, whose encoders hear little at once."""
    for name, encoder in ssl.ENCODERS.items():
        lab.patch.setitem(ssl.ENCODERS, name, replace(encoder, chunk=4))
    return hearing.options(lab.root / "encoders", **change)


@reaches("ace_step_ssl_loss_weight")
def _(lab: Lab) -> None:
    plain = lab.run().of(StepDone)[0]
    for weight in (0.5, 4.0):
        done = lab.run(**_hearing(lab, weight=weight)).of(StepDone)[0]
        added = weight * (done.extra["ssl/mert"] + done.extra["ssl/m-hubert"]) / 2
        assert done.loss == pytest.approx(plain.loss + added, rel=1e-4)
    assert not lab.run(**_hearing(lab, weight=0)).of(StepDone)[0].extra


@reaches("ace_step_ssl_encoders")
def _(lab: Lab) -> None:
    for encoders in (["mert"], ["m-hubert"]):
        run = lab.run(**_hearing(lab, ace_step_ssl_encoders=encoders))
        assert list(run.of(StepDone)[0].extra) == [f"ssl/{encoders[0]}"]


@reaches("ace_step_ssl_mert", "ace_step_ssl_mhubert")
def _(lab: Lab) -> None:
    given = _hearing(lab)
    for name, option in hearing.OPTIONS.items():
        other = hearing.write(lab.root / f"other-{name}", name, seed=1)
        one, two = lab.run(**given), lab.run(**{**given, option: str(other)})
        changed = {k for k, v in one.batches[0].items() if not np.array_equal(v, two.batches[0][k])}
        assert changed == {name}


@reaches("logit_mean")
def _(lab: Lab) -> None:
    for mean, level in ((0.0, 500), (2.0, 1000 * (1 - 0.8808)), (-2.0, 1000 * 0.8808)):
        run = lab.run(flow_schedule_shift=1, logit_mean=mean, logit_std=1e-6)
        assert run.timesteps == pytest.approx([level], abs=1.5)


@reaches("logit_std")
def _(lab: Lab) -> None:
    def logits(std: float) -> np.ndarray:
        level = np.array(lab.run(flow_schedule_shift=1, logit_std=std, max_train_steps=3).timesteps) / 1000
        return np.log(level / (1 - level))

    np.testing.assert_allclose(logits(1.0), 2 * logits(0.5), atol=0.05)
    assert np.abs(logits(1.0)).max() > 0.2


@reaches("ace_step_timestep_draws")
def _(lab: Lab) -> None:
    for draws in (1, 2):
        config = load_config({"model_flavour": "v15-base", "ace_step_timestep_draws": draws})
        assert getattr(V15.objective(config), "draws") == draws  # noqa: B009


@reaches("caption_dropout_probability")
def _(lab: Lab) -> None:
    kept, dropped = (lab.run(caption_dropout_probability=p, max_train_steps=3) for p in (0.0, 1.0))
    assert all(batch["text"].any() for batch in kept.batches)
    assert any(batch["lyric_mask"].any() for batch in kept.batches)
    assert not any(batch["text"].any() or batch["lyric_mask"].any() for batch in dropped.batches)


# ── scheduled sampling ───────────────────────────────────────────────────────────────────────────────
def _rolling(lab: Lab, **changes: Any) -> Run:
    """Three steps in which every song is rolled out and nothing is learned, unless it is changed."""
    given = {"max_step_offset": 5, "probability": 1.0, "reflexflow": False, **changes}
    options = {f"scheduled_sampling_{name}": value for name, value in given.items()}
    return lab.run(max_train_steps=3, learning_rate=0.0, **options)


def _losses(run: Run) -> list[float]:
    return [event.loss for event in run.of(StepDone)]


def _differ(lab: Lab, **changes: Any) -> list[bool]:
    """In which of the steps the loss is another than without any rollout."""
    plain = _losses(lab.run(max_train_steps=3, learning_rate=0.0))
    return [loss != before for loss, before in zip(_losses(_rolling(lab, **changes)), plain, strict=True)]


@reaches("scheduled_sampling_max_step_offset")
def _(lab: Lab) -> None:
    assert not any(_differ(lab, max_step_offset=0)) and any(_differ(lab, max_step_offset=500, stride=500))
    assert _rolling(lab, max_step_offset=500, stride=500).step.rollout.settings.max_offset == 500


@reaches("scheduled_sampling_strategy")
def _(lab: Lab) -> None:
    names = OPTIONS["scheduled_sampling_strategy"].choices
    assert len({tuple(_losses(_rolling(lab, strategy=name))) for name in names}) == len(names)


@reaches("scheduled_sampling_probability")
def _(lab: Lab) -> None:
    assert not any(_differ(lab, probability=0.0)) and any(_differ(lab, probability=1.0))


#: A song whose chance is 1 is rolled out by 500 timesteps, or but few.
FAR = {"strategy": "biased_late", "max_step_offset": 500, "stride": 500}


@reaches("scheduled_sampling_ramp_steps", "scheduled_sampling_prob_start", "scheduled_sampling_prob_end")
def _(lab: Lab) -> None:
    assert _differ(lab, **FAR, prob_start=1.0, prob_end=0.0, ramp_steps=1) == [True, False, False]
    assert _differ(lab, **FAR, prob_start=0.0, prob_end=1.0, ramp_steps=1) == [False, True, True]
    assert _differ(lab, **FAR, prob_start=0.0, prob_end=0.0, ramp_steps=9) == [False, False, False]


@reaches("scheduled_sampling_start_step")
def _(lab: Lab) -> None:
    found = _differ(lab, **FAR, prob_start=0.0, prob_end=1.0, ramp_steps=1, start_step=1)
    assert found == [False, False, True]


@reaches("scheduled_sampling_ramp_shape")
def _(lab: Lab) -> None:
    for shape, p in (("linear", 0.25), ("cosine", 0.1464466)):
        run = _rolling(lab, ramp_steps=4, prob_end=1.0, ramp_shape=shape)
        assert run.step.rollout.settings.probability_at(1) == pytest.approx(p)


@reaches("scheduled_sampling_stride")
def _(lab: Lab) -> None:
    assert _losses(_rolling(lab, stride=1)) != _losses(_rolling(lab, stride=3))


@reaches("scheduled_sampling_reflexflow")
def _(lab: Lab) -> None:
    on, off = (_rolling(lab, reflexflow=given).of(StepDone)[0] for given in (None, False))
    assert set(on.extra) == {"reflexflow/flow", "reflexflow/fc", "reflexflow/adr"} and not off.extra
    assert on.extra["reflexflow/flow"] == pytest.approx(off.loss, rel=1e-5) and on.loss > off.loss


@reaches(
    "scheduled_sampling_reflexflow_alpha",
    "scheduled_sampling_reflexflow_beta1",
    "scheduled_sampling_reflexflow_beta2",
)
def _(lab: Lab) -> None:
    given = {"reflexflow_alpha": 100.0, "reflexflow_beta1": 3.0, "reflexflow_beta2": 0.5}
    plain, other = (
        _rolling(lab, **FAR, reflexflow=True, **changes).of(StepDone)[0] for changes in ({}, given)
    )
    terms = {name: other.extra[name] / plain.extra[name] for name in plain.extra}
    assert terms == pytest.approx(
        {"reflexflow/flow": 1.0, "reflexflow/fc": 50.0, "reflexflow/adr": 0.3}, rel=1e-3
    )
    total = (
        0.5 * other.extra["reflexflow/flow"] + other.extra["reflexflow/fc"] + other.extra["reflexflow/adr"]
    )
    assert other.loss == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
def test_a_rollout_is_planned_recorded_and_reported(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"scheduled_sampling_max_step_offset": 4, "scheduled_sampling_probability": 1.0}
    run = lab.run(**given, eval_loss_disable=False, num_eval_images=1)
    planned = rollout_lines(load_config(given))
    said = [event.text for event in run.of(Notice)]
    assert len(planned) == 3 and [line for line in said if line in planned] == planned
    plain = lab.run(eval_loss_disable=False, num_eval_images=1)
    assert run.of(Evaluated)[0].loss == plain.of(Evaluated)[0].loss, "the evaluation is plain"
    rows = [row for row in read_metrics(run.output / "metrics.jsonl") if row["event"] == "step"]
    assert {name for name in rows[0] if "/" in name} == {f"reflexflow/{n}" for n in ("flow", "fc", "adr")}
    assert {f"reflexflow/{n}" for n in ("flow", "fc", "adr")} <= scalars(run.of(StepDone)[0]).keys()
    report = run.result.report.read_text()
    assert "scheduled_sampling_max_step_offset" in report and "reflexflow" in report.lower()
    shown = TrainDisplay()._numbers(run.of(StepDone)[0])
    assert "reflexflow/adr" in shown
    options = lab.options(**given, scheduled_sampling_sampler="dpm", scheduled_sampling_start_step=3)
    dry_run.show(load_config(options), verbose=True)
    told = capsys.readouterr()
    assert "\n".join(planned) in told.out and "  rollout: " in told.out
    assert "scheduled_sampling_sampler: rollouts of flow matching models are Euler steps" in told.out
    assert "scheduled_sampling_start_step: it counts with scheduled_sampling_ramp_steps" in told.out
    never = {**options, "scheduled_sampling_probability": 0.0}
    dry_run.show(load_config(never), verbose=True)
    assert "warning: nothing will be rolled out" in capsys.readouterr().err and not told.err


@pytest.mark.slow
def test_a_ramp_goes_on_bit_for_bit(lab: Lab) -> None:
    """families/test_toy_training does the same in the middle of an update."""
    ramp = {"max_step_offset": 9, "ramp_steps": 2, "prob_end": 1.0, "stride": 2}
    given: dict[str, Any] = {f"scheduled_sampling_{name}": value for name, value in ramp.items()}
    given |= {**ADAM, "lora_dropout": 0.2, "train_batch_size": 2}
    straight, options = lab.run(**given, max_train_steps=3), lab.options(**given, max_train_steps=1)
    lab.fresh(options)
    lab.fresh({**options, "max_train_steps": 3, "resume_from_checkpoint": "latest"})
    runs.assert_identical(straight.result.checkpoint, Path(options["output_dir"]) / "checkpoint-3")
    assert runs.losses(straight.output) == runs.losses(Path(options["output_dir"]))


# ── staying good ─────────────────────────────────────────────────────────────────────────────────────
EVALUATED = {"eval_loss_disable": False, "num_eval_images": 1, "eval_steps_interval": 1}
AVERAGED = {**EVALUATED, "use_ema": True, "max_train_steps": 3}


@reaches("early_stopping_patience")
def _(lab: Lab) -> None:
    """Without a learning rate no evaluation is lower than the first."""
    still = {**EVALUATED, "learning_rate": 0.0, "max_train_steps": 4}
    assert [lab.run(**still, early_stopping_patience=n).result.step for n in (0, 1, 2)] == [4, 2, 3]


@reaches("use_ema")
def _(lab: Lab) -> None:
    run = lab.run(**AVERAGED)
    assert run.arrays("average").keys() == run.arrays().keys()
    assert (run.output / "ema" / "pytorch_lora_weights.safetensors").is_file()
    assert not (lab.run().output / "ema").exists()


@reaches("ema_decay", "ema_update_interval")
def _(lab: Lab) -> None:
    def apart(**changes: Any) -> float:
        run = lab.run(**AVERAGED, **changes)
        average, now = run.arrays("average"), run.arrays()
        return max(float(np.abs(average[k] - v).max()) for k, v in now.items())

    assert apart(ema_decay=0.0) == 0.0 < apart(ema_decay=0.1) < apart(ema_decay=0.9)
    assert apart(ema_update_interval=3) != apart(ema_update_interval=1)


@reaches("ema_validation")
def _(lab: Lab) -> None:
    for kind, beside in (("comparison", 4), ("ema_only", 0), ("none", 0)):
        run = lab.run(**AVERAGED, ema_validation=kind)
        assert (len(run.of(AverageEvaluated)), len(run.of(Evaluated))) == (beside, 4)
    run, _ = _heard(lab, use_ema=True, ema_validation="ema_only")
    assert [(e.averaged, Path(e.path).name) for e in run.of(ValidationClip) if e.with_lora] == [
        (True, "step_1_validation_ema_0.wav")
    ]


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────
@reaches("checkpoint_step_interval")
def _(lab: Lab) -> None:
    wanted = {0: [3], 1: [1, 2, 3], 2: [2, 3]}
    found = {n: lab.run(max_train_steps=3, checkpointing_steps=n).steps(CheckpointSaved) for n in wanted}
    assert found == wanted


@reaches("checkpoint_epoch_interval")
def _(lab: Lab) -> None:
    run = lab.run(max_train_steps=0, num_train_epochs=2, checkpoint_epoch_interval=1)
    assert run.steps(CheckpointSaved) == [3, 6]


@reaches("checkpoint_minutes")
def _(lab: Lab) -> None:
    """Minutes so short that each step takes longer."""
    found = {
        m: lab.run(max_train_steps=3, checkpointing_steps=0, checkpoint_minutes=m).steps(CheckpointSaved)
        for m in (0, 1e-9)
    }
    assert found == {0: [3], 1e-9: [1, 2, 3]}


@reaches("checkpoints_total_limit")
def _(lab: Lab) -> None:
    for limit, left in ((1, [3]), (2, [2, 3]), (0, [1, 2, 3])):
        run = lab.run(max_train_steps=3, checkpointing_steps=1, checkpoints_total_limit=limit)
        found = {p.name for p in run.output.glob("checkpoint-*") if p.is_dir()}
        assert {f"checkpoint-{step}" for step in left} <= found
        assert ("checkpoint-1" in found) == (1 in left)


@reaches("resume_from_checkpoint")
def _(lab: Lab) -> None:
    straight = lab.run(max_train_steps=2)
    for resume in ("latest", "checkpoint-1"):
        options = lab.options(max_train_steps=1)
        lab.fresh(options)
        run = lab.fresh({**options, "max_train_steps": 2, "resume_from_checkpoint": resume})
        assert run.steps(StepDone) == [2]
        for name, value in straight.arrays().items():
            np.testing.assert_array_equal(run.arrays()[name], value)


# ── validation: clips are not made here, only asked for ──────────────────────────────────────────────
class Hearing:
    """Stands for the pipeline: remembers the requests and gives a short noise."""

    asked: list[Any] = []  # noqa: RUF012
    models: set[Path] = set()  # noqa: RUF012

    def __init__(self, folder: Any, **options: Any) -> None:
        Hearing.models = {*Hearing.models, folder.path}

    def prepare(self, request: Any) -> Any:
        return types.SimpleNamespace(prompt=mx.zeros(1), request=request)

    def release(self, *names: str) -> None: ...

    def run(self, request: Any, *, conditions: Any, progress: Any) -> np.ndarray:
        assert conditions.request == request
        Hearing.asked.append(request)
        return np.full((1, 2205, 2), 0.1, np.float32)


def _heard(lab: Lab, **changes: Any) -> tuple[Run, list[Any]]:
    """A run with clips, and what they were asked for with, without LoRA first."""
    from acestep_mlx.training import validation

    def hear() -> tuple[Run, list[Any]]:
        Hearing.asked = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(validation, "ACEStepPipeline", Hearing)
            return lab.fresh(lab.options(**{**CLIPS, **changes})), Hearing.asked

    heard: tuple[Run, list[Any]] = lab.keep("heard", changes, hear)
    return heard


#: option → its value and the field of the request that has it then, all in one run.
ASKS = {
    "validation_prompt": ("loud rock", "prompt"),
    "validation_lyrics": ("[verse]\nla", "lyrics"),
    "validation_audio_duration": (12.5, "duration"),
    "validation_guidance": (7.5, "guidance_scale"),
    "validation_num_inference_steps": (11, "steps"),
    "validation_seed": (99, "seeds"),
    "validation_negative_prompt": ("noise", "negative_prompt"),
}


def _asks(value: Any, field: str) -> Callable[[Lab], None]:
    def check(lab: Lab) -> None:
        _, plain = _heard(lab)
        _, changed = _heard(lab, **{option: value for option, (value, _) in ASKS.items()})
        wanted = (value,) if field == "seeds" else value
        assert {getattr(request, field) for request in changed} == {wanted}
        assert {getattr(request, field) for request in plain} != {wanted}

    return check


for _name, (_value, _field) in ASKS.items():
    reaches(_name)(_asks(_value, _field))


@reaches("validation_model")
def _(lab: Lab) -> None:
    other = lab.root / "heard" / "model"
    if not other.is_dir():
        small_model(other.parent, seed=6)
    for changes, wanted in (({}, lab.model), ({"validation_model": str(other)}, other)):
        Hearing.models = set()
        _, asked = _heard(lab, **changes, validation_seed=5)
        assert len(asked) == 2 and {wanted} == Hearing.models


@reaches("validation_prompt_library")
def _(lab: Lab) -> None:
    from acestep_mlx.training.validation import LIBRARY

    run, asked = _heard(lab, validation_prompt_library="audio")
    assert {e.name for e in run.of(ValidationClip)} == {"validation", *LIBRARY}
    assert {(r.prompt, r.lyrics) for r in asked} == {("jazz", ""), *LIBRARY.values()}
    file = lab.root / "library.json"
    file.write_text(json.dumps({"one": "blues", "two": {"prompt": "folk", "lyrics": "la"}}))
    _, asked = _heard(lab, validation_prompt_library=str(file), validation_lyrics="hum")
    assert {(r.prompt, r.lyrics) for r in asked} == {("jazz", "hum"), ("blues", "hum"), ("folk", "la")}


def _clip_steps(lab: Lab, **changes: Any) -> list[int]:
    return [e.step for e in _heard(lab, **changes)[0].of(ValidationClip) if e.with_lora]


@reaches("validation_step_interval")
def _(lab: Lab) -> None:
    assert _clip_steps(lab, max_train_steps=3, validation_step_interval=1) == [1, 2, 3]
    assert _clip_steps(lab, max_train_steps=3, validation_step_interval=2) == [2, 3]


@reaches("validation_epoch_interval")
def _(lab: Lab) -> None:
    epochs = {"max_train_steps": 0, "num_train_epochs": 2}
    assert _clip_steps(lab, **epochs, validation_epoch_interval=1) == [3, 6]
    assert _clip_steps(lab, **epochs) == [6]


@reaches("validation_on_startup")
def _(lab: Lab) -> None:
    assert _clip_steps(lab, validation_on_startup=True) == [0, 1] and _clip_steps(lab) == [1]


@reaches("validation_disable")
def _(lab: Lab) -> None:
    assert _clip_steps(lab) and not _clip_steps(lab, validation_disable=True)


@reaches("eval_steps_interval")
def _(lab: Lab) -> None:
    on = {"eval_loss_disable": False, "num_eval_images": 1, "max_train_steps": 3}
    assert lab.run(**on).steps(Evaluated) == [0, 3]
    assert lab.run(**on, eval_steps_interval=1).steps(Evaluated) == [0, 1, 2, 3]


@reaches("num_eval_images")
def _(lab: Lab) -> None:
    """The mean over one, two and three songs is three numbers."""
    means = [lab.run(eval_loss_disable=False, num_eval_images=n).of(Evaluated)[0].loss for n in range(1, 4)]
    assert len(set(means)) == 3
    assert not lab.run(eval_loss_disable=False, num_eval_images=0).of(Evaluated)


@reaches("eval_loss_disable")
def _(lab: Lab) -> None:
    assert lab.run(eval_loss_disable=False, num_eval_images=1).of(Evaluated)
    assert not lab.run(eval_loss_disable=True, num_eval_images=1).of(Evaluated)


# ── logging ──────────────────────────────────────────────────────────────────────────────────────────
def _tracked(lab: Lab, **changes: Any) -> dict[str, Any]:
    """What wandb was started with."""

    def track() -> dict[str, Any]:
        given: dict[str, Any] = {}
        fake: Any = types.ModuleType("wandb")
        run = types.SimpleNamespace(log=lambda *a, **k: None, summary={}, finish=lambda: None)
        fake.init = lambda **options: given.update(options) or run
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "wandb", fake)
            lab.fresh(lab.options(**{"report_to": "wandb", **changes}))
        return given

    tracked: dict[str, Any] = lab.keep("tracked", changes, track)
    return tracked


@reaches("report_to")
def _(lab: Lab) -> None:
    pytest.importorskip("tensorboard")
    files = list((lab.run(report_to="tensorboard").output / "logs").iterdir())
    assert files and files[0].name.startswith("events.out.tfevents")
    assert not (lab.run().output / "logs").exists()
    assert _tracked(lab)["config"]["report_to"] == "wandb" and _tracked(lab, report_to="none") == {}


#: All in one run.
NAMED = {"logging_dir": "boards", "tracker_project_name": "mine", "tracker_run_name": "third try"}


@reaches("logging_dir")
def _(lab: Lab) -> None:
    assert Path(_tracked(lab, **NAMED)["dir"]).name == "boards"
    pytest.importorskip("tensorboard")
    absolute = lab.root / "boards"
    lab.run(report_to="tensorboard", logging_dir=str(absolute))
    assert list(absolute.iterdir())


@reaches("tracker_project_name")
def _(lab: Lab) -> None:
    assert _tracked(lab, **NAMED)["project"] == "mine"


@reaches("tracker_run_name")
def _(lab: Lab) -> None:
    assert _tracked(lab, **NAMED)["name"] == "third try"
    assert "<h1>third try</h1>" in lab.run(tracker_run_name="third try").result.report.read_text()


# ── caches ───────────────────────────────────────────────────────────────────────────────────────────
def _cached(lab: Lab, **changes: Any) -> tuple[Path, Run]:
    """A run with caches of its own."""
    folder = lab.root / f"cache-{lab.count}"
    return folder, lab.fresh(lab.options(**{"cache_dir": str(folder), "max_train_steps": 1, **changes}))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.cache"))


@reaches("cache_dir", "cache_dir_text", "cache_dir_vae")
def _(lab: Lab) -> None:
    folder, run = _cached(lab)
    assert len(_files(folder / "vae" / "ace_step" / "songs")) == 3 and _files(folder / "text")
    texts, latents = lab.root / f"texts-{lab.count}", lab.root / f"latents-{lab.count}"
    _, other = _cached(lab, cache_dir_text=str(texts), cache_dir_vae=str(latents))
    assert len(_files(latents)) == 3 and len(_files(texts)) == len(_files(folder / "text"))
    assert other.of(StepDone)[0].loss == run.of(StepDone)[0].loss


@reaches("vae_cache_disable")
def _(lab: Lab) -> None:
    folder, run = _cached(lab, vae_cache_disable=True)
    assert not folder.exists() and run.of(StepDone)[0].loss == lab.run().of(StepDone)[0].loss


@reaches("vae_cache_ondemand")
def _(lab: Lab) -> None:
    """One step needs the first song and reads one ahead."""
    folder, run = _cached(lab, vae_cache_ondemand=True)
    assert 1 <= len(_files(folder / "vae")) < 3 and run.of(StepDone)[0].loss == lab.run().of(StepDone)[0].loss


@reaches("compress_disk_cache")
def _(lab: Lab) -> None:
    sizes = []
    for on in (False, True):
        folder, run = _cached(lab, compress_disk_cache=on)
        sizes.append(sum(path.stat().st_size for path in _files(folder / "text")))
        assert run.of(StepDone)[0].loss == lab.run().of(StepDone)[0].loss
    assert sizes[1] < sizes[0]


# ── data: what stands in config.json for all data sets that do not say otherwise ─────────────────────
@reaches("data_backend_config")
def _(lab: Lab) -> None:
    file = lab.root / "two.json"
    entry = {"type": "local", "dataset_type": "audio", "instance_data_dir": str(lab.root / "songs")}
    file.write_text(json.dumps([{"id": name, **entry} for name in ("a", "b")]))
    options = {**lab.options(), "data_backend_config": str(file)}
    assert lab.fresh(options).of(loop.Started)[0].samples == 6


def _songs(lab: Lab, **options: Any) -> dict[str, Any]:
    """name → Sample, of songs of 3, 4 and 7 s; nothing of them is said by the data set itself."""
    from acestep_mlx.data.manifest import build_manifest

    from .data.songs import song

    folder = lab.root / "lengths"
    if not folder.is_dir():
        folder.mkdir()
        for name, seconds in (("three", 3.0), ("four", 4.0), ("seven", 7.0)):
            song(folder, name, seconds, caption="pop, fast\nrock")
    entry = {"id": "set", "type": "local", "dataset_type": "audio", "instance_data_dir": str(folder)}
    given = {"cache_dir": str(lab.root / "cache"), "data_backend_config": [entry], **options}
    found = build_manifest(load_config(given)).samples
    return {s.id.removeprefix("set/").removesuffix(".wav"): s for s in found}


@reaches("caption_strategy")
def _(lab: Lab) -> None:
    assert _songs(lab, caption_strategy="filename")["four"].captions == ("four",)
    assert _songs(lab)["four"].captions == ("pop, fast", "rock")


@reaches("instance_prompt", "prepend_instance_prompt", "only_instance_prompt")
def _(lab: Lab) -> None:
    assert _songs(lab, instance_prompt="zyx", prepend_instance_prompt=True)["four"].captions == (
        "zyx pop, fast", "zyx rock",
    )  # fmt: skip
    assert _songs(lab, instance_prompt="zyx", only_instance_prompt=True)["four"].captions == ("zyx",)
    assert _songs(lab, instance_prompt="zyx")["four"].captions == ("pop, fast", "rock")


@reaches("disable_multiline_split")
def _(lab: Lab) -> None:
    assert _songs(lab, disable_multiline_split=True)["four"].captions == ("pop, fast rock",)


@reaches("audio_max_duration_seconds")
def _(lab: Lab) -> None:
    found = _songs(lab, audio_max_duration_seconds=3.5)
    assert [found[name].seconds for name in ("three", "four", "seven")] == [3.0, 3.5, 3.5]


@reaches("audio_min_duration_seconds")
def _(lab: Lab) -> None:
    assert set(_songs(lab, audio_min_duration_seconds=3.5)) == {"four", "seven"}


@reaches("audio_duration_interval")
def _(lab: Lab) -> None:
    assert len({s.bucket for s in _songs(lab).values()}) == 3
    assert len({s.bucket for s in _songs(lab, audio_duration_interval=10).values()}) == 1


@reaches("audio_truncation_mode")
def _(lab: Lab) -> None:
    def start(mode: str, **options: Any) -> float:
        found = _songs(lab, audio_max_duration_seconds=3, audio_truncation_mode=mode, **options)
        return float(found["seven"].start)

    assert (start("beginning"), start("end")) == (0.0, 4.0)
    assert 0 < start("random") < 4 and start("random") != start("random", seed=1)


# ── arithmetic that several walks share ──────────────────────────────────────────────────────────────
def _close(a: np.ndarray, b: np.ndarray) -> None:
    assert np.linalg.norm(a - b) < 1e-3 * np.linalg.norm(b)


def _moment(run: Run, slot: str) -> np.ndarray:
    """A moment of B's, in one row."""
    state = run.arrays("optimizer")
    names = sorted(k for k in state if k.endswith(f"lora_b|{slot}"))
    return np.concatenate([state[k].reshape(-1) for k in names])
