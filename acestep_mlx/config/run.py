"""Every key of config.json, declared once (see `option.Option`), and the configuration that they make.

`read.py` reads configurations against these tables; `--dry-run`, docs/configuration.md and tests read them
too. `free` and `steers` are options with which a resumed run may differ from its checkpoint.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..formatting import without_secrets
from ..io.filenames import as_stored, at_home
from ..registry import MAX_SECONDS, REGISTRY, answers, default, flavours, lora_presets, of_flavour
from .foreign import IGNORED, IGNORED_PREFIXES, PARQUET, REFUSED
from .lora_formats import LOKR_FORMATS, LYCORIS, RUN_FORMATS
from .lycoris import EXAMPLE, read_lycoris
from .optimizers import OPTIMIZERS, SPELLINGS, check_settings
from .option import PathText, declared, foreign, option
from .parsing import Options, in_range, show

EXAMPLES = Path(__file__).parents[1] / "examples"
STRATEGIES = ("textfile", "filename", "instanceprompt", "csv", "huggingface")
LR_SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "sine",
)  # fmt: skip
LR_SPELLINGS = {"cosine_with_warmup": "cosine"}  # SimpleTuner's own example for this model says so

# Bits of MLX's affine quantisation of the frozen weights → spellings of other trainers.
_PRECISIONS: dict[int | None, str] = {
    None: "no_change",
    8: "int8-quanto int8-torchao int8dq-torchao int8-sdnq uint8-sdnq",
    6: "int6-sdnq",
    5: "int5-sdnq uint5-sdnq",
    4: "int4-quanto int4-torchao int8dq-int4-torchao uint4-sdnq nf4-bnb fp4-bnb",
    3: "uint3-sdnq",
    2: "int2-quanto uint2-sdnq",
}
PRECISION_BITS = {name: bits for bits, names in _PRECISIONS.items() for name in names.split()}
_FP8 = "8-bit floats are not computed on Apple GPUs; use int8-quanto, which takes the same memory"
_WIDE = "16-bit integers gain nothing here; use no_change (16-bit floats) or int8-quanto"
_FP8_NAMES = (
    "fp8-quanto fp8uz-quanto fp8-native fp8-torchao fp8wo-torchao fp8-int4-torchao fp8-sdnq fp8-bnb"
    " fp8-transformerengine"
)
_DEFAULT = default()

OFFSET, RAMP = "scheduled_sampling_max_step_offset", "scheduled_sampling_ramp_steps"
REFLEXFLOW = "scheduled_sampling_reflexflow"
_SWITCHES = ("use_ema", "ace_step_ssl_loss_weight", "lyrics_embedder_train")

free = partial(option, resume="free")
steers = partial(option, resume="steers")


# fmt: off
@dataclass(frozen=True)
class Model:
    """What is trained on, and into what folder."""

    model_family: str = option("ace_step", "Model family.", choices="ace_step",
        spellings={"acestep": "ace_step"})
    model_type: str = option("lora", "What is trained.", choices="lora",
        refused={"full": "only LoRA training is here; set model_type=lora (a high lora_rank comes close)"})
    model_flavour: str = option(flavours()[0], "Version of the model.", choices=flavours(),
        spellings={"v1 v1-3.5b": "base"})
    pretrained_model_name_or_path: PathText = free("ACE-Step/ACE-Step-v1-3.5B",
        "MLX folder, PyTorch checkpoint folder, or Hugging Face repository of the base model. Default: the "
        "released one of model_flavour.")
    revision: str | None = free(None, "Revision (branch, tag, commit) of the Hugging Face repository.")
    output_dir: PathText = free("output", "Where checkpoints, the LoRA, metrics and the report are written.")
    resolution: Any = option(None, "Image size.", status="ignored",
        reason="sound has no resolution; lengths are set by the data set's audio block")


@dataclass(frozen=True)
class LoRA:
    """The adapter."""

    lora_type: str = option("standard", "Kind of adapter; lycoris: a LoKr, as lycoris_config describes it.",
        choices="standard lycoris")
    lycoris_config: str | dict[str, Any] = option(None,
        "With lora_type=lycoris: a JSON file (or its object) with LyCORIS's settings of a LoKr, which have a "
        "table of their own.")
    lora_rank: int = option(16, "Rank of the LoRA matrices.", low=1, high=1024, aliases="rank")
    lora_alpha: float = option(None, "LoRA alpha; strength is alpha / rank. Default: lora_rank.", above=0,
        high=65536, follows="lora_rank")
    lora_dropout: float = option(0.0, "Dropout on the LoRA's input while training.", low=0, high=0.99)
    use_dora: bool = option(False, "Weight-decomposed LoRA (DoRA).")
    use_rslora: bool = option(False, "Rank-stabilised scale: alpha / sqrt(rank).")
    lora_init_type: str = option("default",
        "How A is initialised; B is zero always, so that an untrained LoRA changes nothing.",
        choices="default gaussian", spellings={"true": "default"},
        refused={"loftq olora pissa":
            "it changes the base weights, so the LoRA would not fit other loaders; use default"})
    acestep_lora_target: str = option(_DEFAULT.lora.default,
        "Which layers get a LoRA; with attn_qkv v1's lyrics are encoded once, not in every step. ACE-Step "
        "1.5 has attn_qkv (its default) and attn_qkv+mlp.",
        choices=lora_presets())
    peft_lora_target_modules: list[str] | None = option(None,
        "Layers by the end of their name, instead of acestep_lora_target (a list, or names split by commas). "
        "Where none is in the lyric encoder, a song's lyrics are encoded once, not in every step.")
    init_lora: PathText | None = free(None, "LoRA file of any supported format to start from.")
    lora_format: str = free("peft",
        "Key format of pytorch_lora_weights.safetensors; of a LoKr lycoris (its default) or comfyui.",
        choices=RUN_FORMATS, spellings={"diffusers": "peft"})


@dataclass(frozen=True)
class LyricsEmbedder:
    """Training of the lyric embedding and encoder, beside the LoRA."""

    lyrics_embedder_train: bool = option(False,
        "Train the lyric embedding and encoder too. While they are frozen (this is off, and no LoRA is on "
        "the lyric encoder: acestep_lora_target=attn_qkv), a song's lyrics are encoded once, not in every "
        "step.")
    lyrics_embedder_lr: float = steers(None, "Its learning rate. Default: learning_rate.", low=0, high=10,
        follows="learning_rate", needs="lyrics_embedder_train")
    lyrics_embedder_optimizer: str = option(None, "Its optimizer. Default: optimizer.", choices=OPTIMIZERS,
        spellings=SPELLINGS, follows="optimizer", needs="lyrics_embedder_train")
    lyrics_embedder_lr_scheduler: str = steers(None, "Its schedule. Default: lr_scheduler.",
        choices=LR_SCHEDULERS, spellings=LR_SPELLINGS, follows="lr_scheduler",
        needs="lyrics_embedder_train")


@dataclass(frozen=True)
class Precision:
    """Types of the computation and of the frozen weights."""

    mixed_precision: str = option("bf16", "Type of the computation; LoRA weights stay float32.",
        choices="bf16 fp16 no",
        spellings={"bfloat16 bf16-mixed": "bf16", "16 float16 16-mixed": "fp16", "32 fp32 float32": "no"},
        refused={"fp8": _FP8},
        aliases="precision")
    base_model_precision: str = option("no_change", "Quantisation of the frozen base weights.",
        choices=PRECISION_BITS,
        refused={_FP8_NAMES: _FP8, "int16-sdnq uint16-sdnq fp16-sdnq": _WIDE})


@dataclass(frozen=True)
class Optimisation:
    """Optimizer and learning rate."""

    optimizer: str = option("adamw", "Optimizer.", choices=OPTIMIZERS, spellings=SPELLINGS,
        refused={"adamw_schedulefree prodigy dadaptation soap":
            f"schedule-free and adaptive-rate optimizers are not here; use one of {', '.join(OPTIMIZERS)}"})
    optimizer_config: dict[str, Any] | None = option(None,
        'Further optimizer settings: {"eps": 1e-6} or "eps=1e-6,weight_decay=0".')
    adam_beta1: float = option(0.9, "First Adam moment.", low=0, high=0.99999, aliases="optimizer_beta1")
    adam_beta2: float = option(0.999, "Second Adam moment.", low=0, high=0.9999999, aliases="optimizer_beta2")
    adam_weight_decay: float = option(0.01, "Decoupled weight decay.", low=0, high=10)
    adam_epsilon: float = option(1e-8, "Adam epsilon.", above=0, high=1)
    learning_rate: float = steers(1e-4, "Learning rate.", low=0, high=10)
    max_grad_norm: float = steers(1.0, "Gradients are clipped to this norm; 0 switches clipping off.", low=0,
        high=10**6, aliases="gradient_clip_val")
    grad_clip_method: str = option("norm", "How gradients are clipped.", choices="norm",
        refused={"value": "only clipping by the total norm is here; set grad_clip_method=norm"},
        aliases="gradient_clip_algorithm")
    lr_scheduler: str = steers("constant_with_warmup", "Learning rate schedule.", choices=LR_SCHEDULERS,
        spellings=LR_SPELLINGS)
    lr_warmup_steps: int = steers(0, "Steps over which the rate rises from 0.", low=0, high=10**9)
    lr_num_cycles: int = steers(1, "Cycles of cosine_with_restarts.", low=1, high=10**6)
    lr_power: float = steers(0.8, "Power of the polynomial schedule.", above=0, high=100)
    lr_end: float = steers(4e-7, "Rate at the end of the polynomial schedule, and the lowest of sine.", low=0,
        high=10)


@dataclass(frozen=True)
class Length:
    """How long, and how much at once."""

    max_train_steps: int = steers(0, "Optimizer steps; 0: given by num_train_epochs.", low=0, high=10**9,
        aliases="max_steps")
    num_train_epochs: int = steers(0, "Passes over the data; 0: given by max_train_steps.", low=0, high=10**7,
        aliases="epochs")
    train_batch_size: int = option(1, "Songs in a batch.", low=1, high=1024)
    gradient_accumulation_steps: int = option(1, "Batches whose gradients are averaged into one step.", low=1,
        high=4096, aliases="accumulate_grad_batches")
    gradient_checkpointing: bool = free(True,
        "Recompute blocks where memory asks for it: at first all but their linear layers.")
    seed: int = option(42, "Seed of order, noise, timesteps, dropout and LoRA weights.", low=0,
        high=2**32 - 1)
    dataloader_num_workers: int = option(0, "Loader processes.", low=0, high=1024, aliases="num_workers",
        status="ignored", reason="batches come from caches, read one step ahead by one thread")


@dataclass(frozen=True)
class Flow:
    """Timesteps and dropout."""

    flow_schedule_shift: float = option(3.0, "Shift of the noise schedule.", above=0, high=100,
        aliases="shift")
    logit_mean: float = option(0.0, "Mean of the logit-normal timestep density; unset with "
        "ACE-Step 1.5: the model's own.", low=-10, high=10)
    logit_std: float = option(1.0, "Standard deviation of the logit-normal timestep density; "
        "unset with ACE-Step 1.5: the model's own.", above=0,
        high=10)
    ace_step_timestep_draws: int = option(2,
        "ACE-Step 1.5: draws of a song's timestep, of which the largest counts; 1 as other trainers have it.",
        low=1, high=2)
    caption_dropout_probability: float = option(0.15,
        "How often a sample's caption is dropped, and, independently, its lyrics.", low=0, high=1)
    ace_step_ssl_loss_weight: float = option(0.0,
        "Weight of ACE-Step v1's self-supervised loss, which pulls what the transformer has in the middle "
        "towards what MERT (music) and mHuBERT (words) hear of the song; upstream trains with 1.0, "
        "SimpleTuner with 0.1. 0: off, and no encoder is needed. Their weights are for non-commercial use.",
        low=0, high=100)
    ace_step_ssl_encoders: list[str] | None = option(None,
        "Which encoders hear: mert, m-hubert, or both (a list, or names split by commas). Default: both.",
        needs="ace_step_ssl_loss_weight")
    ace_step_ssl_mert: PathText | None = free(None,
        "MERT-v1-330M as a safetensors file, or a folder with model.safetensors: on the hub it is a pickle.",
        needs="ace_step_ssl_loss_weight")
    ace_step_ssl_mhubert: PathText | None = free(None,
        "mHuBERT-147 as a safetensors file, or a folder with model.safetensors. Default: downloaded "
        "from utter-project/mHuBERT-147.", needs="ace_step_ssl_loss_weight")


@dataclass(frozen=True)
class ScheduledSampling:
    """Training on what the model's own steps make of songs."""

    scheduled_sampling_max_step_offset: int = steers(0,
        "Longest rollout, in timesteps of 1000: a song begins so far above its noise level, and the model "
        "takes it down by its own Euler steps before it is trained there: where songs drift that are made in "
        "few steps. 0: off.", low=0, high=999)
    scheduled_sampling_strategy: str = steers("uniform",
        "Which offsets: all alike, more short ones (biased_early) or more long ones (biased_late).",
        choices="uniform biased_early biased_late", needs=OFFSET)
    scheduled_sampling_probability: float = steers(0.0, "Chance that a song is rolled out, without a ramp.",
        low=0, high=1, needs=OFFSET)
    scheduled_sampling_ramp_steps: int = steers(0,
        "Steps over which the chance goes from prob_start to prob_end; 0: no ramp.", low=0, high=10**9,
        needs=OFFSET)
    scheduled_sampling_prob_start: float = steers(0.0, "Chance at the beginning of the ramp; 0 is 0.", low=0,
        high=1, needs=RAMP)
    scheduled_sampling_prob_end: float = steers(0.5, "Chance at the end of the ramp.", low=0, high=1,
        needs=RAMP)
    scheduled_sampling_start_step: int = steers(0, "Step at which the ramp begins.", low=0, high=10**9,
        needs=RAMP)
    scheduled_sampling_ramp_shape: str = steers("linear", "Shape of the ramp.", choices="linear cosine",
        needs=RAMP)
    scheduled_sampling_stride: int = steers(1,
        "Timesteps of an Euler step of a rollout. As large as the offset, it costs one forward pass and errs "
        "as a step of generation does, which is some 1000 / steps long.", low=1, high=999, needs=OFFSET)
    scheduled_sampling_sampler: str = option("unipc", "Sampler of rollouts.", choices="unipc euler dpm",
        spellings={"unip": "unipc"}, status="ignored",
        refused={"rk4": "no rollout is made with it; use euler, which all rollouts are"},
        reason="rollouts of flow matching models are Euler steps, whatever it says")
    scheduled_sampling_order: int = option(2, "Order of that sampler.", status="ignored",
        reason="rollouts of flow matching models are Euler steps, of order 1")
    scheduled_sampling_reflexflow: bool | None = steers(None,
        "ReflexFlow: the training loss gets a term for the velocity's direction (ADR), and weights for where "
        "rollouts go (FC). Unset: on where max_step_offset is above 0.", needs=OFFSET)
    scheduled_sampling_reflexflow_alpha: float = steers(1.0, "Weight of FC; 0: none.", low=0,
        needs=REFLEXFLOW)
    scheduled_sampling_reflexflow_beta1: float = steers(10.0, "Weight of ADR; 0: none.", low=0,
        needs=REFLEXFLOW)
    scheduled_sampling_reflexflow_beta2: float = steers(1.0, "Weight of the flow matching loss.", low=0,
        needs=REFLEXFLOW)


@dataclass(frozen=True)
class StayingGood:
    """When to stop, and the average of what is trained."""

    early_stopping_patience: int = steers(0,
        "Training ends after so many evaluations in a row whose loss is no new lowest; 0: never. Each new "
        "lowest is saved as a checkpoint. Set eval_steps_interval with it.", low=0, high=10**6)
    use_ema: bool = option(False,
        "Average the trained weights over the updates (EMA): calmer than the last ones. The average is kept "
        "in ema/ beside the LoRA.")
    ema_decay: float = steers(0.995, "Share of the average that stays at each of its moves, at most; it "
        "rises to this as (1 + n) / (10 + n) after n updates.", low=0, high=0.9999999, needs="use_ema")
    ema_update_interval: int | None = steers(None, "Updates between moves of the average; unset: 1.", low=1,
        high=10**6, needs="use_ema")
    ema_validation: str = steers("comparison", "With which weights clips and the evaluation loss are made. "
        "comparison: with the trained ones, whose loss counts, and again with their average; ema_only: with "
        "the average, whose loss counts then; none: with the trained ones.",
        choices="comparison ema_only none", needs="use_ema")


@dataclass(frozen=True)
class Checkpoints:
    """When they are written, and which are kept."""

    checkpoint_step_interval: int = free(500, "Steps between checkpoints; 0: the last, and those by epochs "
        "and by time.", low=0, high=10**9, aliases="checkpointing_steps every_n_train_steps")
    checkpoint_epoch_interval: int | None = free(None, "Epochs between checkpoints.", low=1, high=10**7)
    checkpoint_minutes: float = free(30.0, "Minutes after the last checkpoint after which the next one is "
        "written between two steps, without clips; it goes when a newer one is whole. 0: none by time.",
        low=0, high=10**6)
    checkpoints_total_limit: int = free(5,
        "Newest checkpoints kept, beside the best and as many healthy ones; 0: all.", low=0, high=10**6,
        aliases="save_total_limit")
    resume_from_checkpoint: PathText | None = free(None,
        "`latest`, or the path of a checkpoint to go on from; what came after it is moved aside.",
        aliases="ckpt_path")


@dataclass(frozen=True)
class Validation:
    """Clips and the evaluation loss."""

    validation_prompt: str | None = free(None, "Caption of the validation clip.")
    validation_lyrics: str | None = free(None, "Lyrics of the validation clip.")
    validation_prompt_library: Any = free(None,
        "`audio`: the built-in captions and lyrics; or a JSON file {name: caption}.",
        aliases="user_prompt_library")
    validation_audio_duration: float = free(30.0, "Seconds of a validation clip.", low=1, high=MAX_SECONDS,
        unit="s")
    validation_guidance: float = free(4.0, "Guidance scale of validation clips.", low=0, high=100)
    validation_num_inference_steps: int = free(30, "Sampler steps of validation clips.", low=1, high=1000)
    validation_step_interval: int | None = free(None,
        "Steps between validations; unset: at every checkpoint.", low=0, high=10**9,
        aliases="validation_steps")
    validation_epoch_interval: int | None = free(None, "Epochs between validations.", low=1, high=10**7)
    validation_seed: int = free(None, "Seed of validation clips. Default: seed.", low=0, high=2**32 - 1,
        follows="seed")
    validation_negative_prompt: str | None = free(None, "Negative caption of validation clips.")
    validation_model: PathText | None = free(None,
        "Another variant of the same model that clips are made with, given as pretrained_model_name_or_path "
        "is: a LoRA trained on base is heard through turbo. While a clip is made both are in memory.")
    validation_on_startup: bool = free(False, "Validate before the first step.")
    validation_disable: bool = free(False, "No validation clips.")
    eval_steps_interval: int | None = free(None,
        "Steps between measurements of the evaluation loss; unset: at checkpoints.", low=0, high=10**9)
    num_eval_images: int = free(4, "Songs in the fixed evaluation set.", low=0, high=1024,
        aliases="num_eval_samples")
    eval_loss_disable: bool = free(False, "No evaluation loss.")
    num_validation_images: int = option(1, "Clips per prompt.", low=1, high=1,
        reason="one clip is made per prompt; give several prompts with validation_prompt_library")
    evaluation_type: str = option("none", "Metric of validation images.", choices="none",
        refused={"clip": "CLIP scores judge images, not sound; set evaluation_type=none"})


@dataclass(frozen=True)
class Logging:
    """Trackers."""

    report_to: str = free("none", "Where metrics go besides metrics.jsonl and report.html.",
        choices="none tensorboard wandb",
        refused={"comet_ml all custom-tracker":
            "only tensorboard and wandb are here; use one of these or none"})
    logging_dir: PathText = free("logs", "TensorBoard files; relative to output_dir.", aliases="logger_dir")
    tracker_project_name: str = free("acestep-mlx", "Project name at wandb.")
    tracker_run_name: str | None = free(None, "Run name at wandb and in the report.", aliases="exp_name")


@dataclass(frozen=True)
class Caches:
    """What is encoded once."""

    vae_cache_disable: bool = free(False, "Write no latents to disk; encode when needed.")
    vae_cache_ondemand: bool = free(False, "Encode latents when first needed, then keep them.")
    cache_dir: PathText = free("cache", "Root of the caches.")
    cache_dir_text: PathText | None = free(None, "Text caches. Default: cache_dir/text.")
    cache_dir_vae: PathText | None = free(None, "Latent caches. Default: cache_dir/vae/{model_family}/{id}.")
    compress_disk_cache: bool = free(False, "Deflate cache files (losslessly).")
    vae_batch_size: int = option(1, "Songs encoded together.", low=1, high=1024, status="ignored",
        reason="songs are encoded one by one in bounded memory; the result is the same")


@dataclass(frozen=True)
class Data:
    """What holds for all data sets, unless one of them says otherwise."""

    data_backend_config: str | list[Any] = free(None,
        "Data set file. Default: multidatabackend.json beside config.json.")
    caption_strategy: str = option("textfile", "Where captions come from, unless the data set says.",
        choices=STRATEGIES,
        refused={"parquet": PARQUET})
    instance_prompt: str | None = option(None, "Trigger words, unless the data set says.")
    prepend_instance_prompt: bool = option(False, "Put instance_prompt before every caption.")
    only_instance_prompt: bool = option(False, "Use instance_prompt instead of every caption.")
    disable_multiline_split: bool = option(False, "A caption file is one caption, not one per line.")
    audio_max_duration_seconds: float = option(_DEFAULT.latents.max_seconds,
        "Longer songs are cut to this. Default: the longest that the model takes.", low=3, high=MAX_SECONDS,
        unit="s")
    audio_min_duration_seconds: float = option(0.0, "Shorter songs are skipped.", low=0, high=MAX_SECONDS,
        unit="s")
    audio_duration_interval: float = option(3.0, "Songs are padded to multiples of this, in seconds.",
        low=0.1, high=MAX_SECONDS, unit="s")
    audio_truncation_mode: str = option("beginning", "Which part of a long song is kept.",
        choices="beginning end random")


@dataclass(frozen=True)
class OtherTrainers:
    """Choices of other trainers, of which only one is here."""

    loss_type: str = option("l2", "Loss.", choices="l2",
        refused={"huber smooth_l1": "ACE-Step's loss is the squared error; set loss_type=l2"})
    peft_lora_mode: str = option("standard", "LoRA variant.", choices="standard",
        refused={"singlora": "SingLoRA is not here; set peft_lora_mode=standard"})
    timestep_bias_strategy: str = option("none", "Timestep bias.", choices="none",
        refused={"earlier later range": "use logit_mean to move the timesteps instead"})
# fmt: on


GROUPS = {
    name: tuple(declared(group).values())
    for name, group in {
        "model": Model,
        "LoRA": LoRA,
        "lyrics embedder": LyricsEmbedder,
        "precision": Precision,
        "optimisation": Optimisation,
        "length": Length,
        "flow": Flow,
        "scheduled sampling": ScheduledSampling,
        "staying good": StayingGood,
        "checkpoints": Checkpoints,
        "validation": Validation,
        "logging": Logging,
        "caches": Caches,
        "data": Data,
        "other trainers": OtherTrainers,
    }.items()
}
OPTIONS = Options(
    {option.name: option for group in GROUPS.values() for option in group},
    foreign("ignored", IGNORED),
    foreign("refused", REFUSED),
    what="option",
    prefixes=IGNORED_PREFIXES,
)
ALIASES = OPTIONS.aliases
SUPPORTED = OPTIONS.supported


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RunConfig(
    Model, LoRA, LyricsEmbedder, Precision, Optimisation, Length, Flow, ScheduledSampling, StayingGood,
    Checkpoints, Validation, Logging, Caches, Data, OtherTrainers,
):  # fmt: skip
    """A checked configuration; made by `load_config`.

    origins: where each value came from that is not a default, see `origin`.
    ignored: (key, reason) for each accepted key that has no meaning here, in the order they were given.
    folder: where the config file lies (the working directory when it was a dict).
    source: the config file, or None.
    """

    origins: dict[str, str]
    ignored: list[tuple[str, str]]
    folder: Path
    source: Path | None

    def origin(self, name: str) -> str:
        """Where the value came from: a file's name or "command line" (with ", as KEY" for another spelling),
        "default", or "as OTHER_OPTION".
        """
        return self.origins.get(name, "default")

    @property
    def unevaluated(self) -> str:
        """That no evaluation loss is measured and what comes of it, as a sentence; "" where one is."""
        why = "eval_loss_disable is true" if self.eval_loss_disable else "num_eval_images is 0"
        if not self.eval_loss_disable and self.num_eval_images:
            return ""
        return f"no evaluation songs ({why}): nothing will say whether the training goes well"

    def to_dict(self) -> dict[str, Any]:
        """Options that count for the model, with their resolved values; plain JSON types. `load_config`
        accepts it again.

        This is what checkpoints, reports and trackers get, so access tokens are left out.
        """
        unused = {*of_flavour(self.model_flavour).unused, *_idle(self.lora_type)}
        return {name: without_secrets(getattr(self, name)) for name in SUPPORTED if name not in unused}

    def resolve(self, path: str | Path, **fields: str) -> Path:
        """An absolute path: from the working directory, else (if it exists there) from the config's folder.

        `{model_family}` and the given fields (`{id}`) are filled in. `config/examples/...`, as users of other
        trainers write it, also finds the examples that ship with this package.
        """
        text = str(path).replace("{model_family}", self.model_family)
        for name, value in fields.items():
            text = text.replace("{" + name + "}", value)
        # {id} may stay where no data set is meant yet
        if (left := re.search(r"\{(?!id\})\w*\}", text)) and not Path(text).exists():
            raise ConfigError(
                f"{path}: {left[0]} is not filled in here, only {{model_family}} and {{id}} can be"
            )
        try:
            target = at_home(text)
        except RuntimeError:
            raise ConfigError(f"{path}: there is no such user") from None
        if target.is_absolute():
            return as_stored(target)
        candidates = [Path.cwd() / target, self.folder / target]
        if target.parts[:2] == ("config", "examples"):
            candidates.append(EXAMPLES / Path(*target.parts[2:]))
        candidates = [as_stored(candidate) for candidate in candidates]
        for candidate in candidates:
            with contextlib.suppress(OSError):  # a name that no file can have: said where it is used
                if candidate.exists():
                    return candidate.absolute()
        return candidates[0].absolute()

    @property
    def quantization(self) -> dict[str, Any] | None:
        """MLX quantisation of the frozen base that `base_model_precision` asks for, or None."""
        bits = PRECISION_BITS[self.base_model_precision]
        return None if bits is None else {"bits": bits, "group_size": 64, "mode": "affine"}

    @property
    def output_path(self) -> Path:
        """`output_dir`, absolute."""
        return self.resolve(self.output_dir)


def finish(
    given: dict[str, tuple[Any, str]], ignored: list[tuple[str, str]], folder: Path, source: Path | None
) -> RunConfig:
    """Checked values (and where they came from), defaults, values that follow others, and the rules between
    options."""
    values = {option.name: option.default for group in GROUPS.values() for option in group}
    origins: dict[str, str] = {}
    for name, (value, where) in given.items():
        if name in values and value is not None:
            values[name], origins[name] = value, where
    _for_family(values, origins, ignored)
    _for_adapter(values, origins, ignored, {name for name, (value, _) in given.items() if value})
    for name in values:
        other = OPTIONS[name].follows
        if other and values[name] is None:
            values[name] = float(values[other]) if OPTIONS[name].kind == "float" else values[other]
            origins[name] = f"as {other}"
    _check_length(values, origins)
    _check_rollout(values, origins, ignored)
    _tell_idle(values, origins, ignored)
    _check_patience(values)
    if values["optimizer_config"] is not None:
        check_settings(values["optimizer"], values["optimizer_config"], origins["optimizer_config"])
    if values["data_backend_config"] is None:
        values["data_backend_config"] = str(folder / "multidatabackend.json")
    elif not isinstance(values["data_backend_config"], (str, list)):
        raise ConfigError(
            f"data_backend_config must be the path of a file, got {show(values['data_backend_config'])} "
            f"({origins['data_backend_config']})"
        )
    return RunConfig(**values, origins=origins, ignored=ignored, folder=folder, source=source)


def _for_family(values: dict[str, Any], origins: dict[str, str], ignored: list[tuple[str, str]]) -> None:
    """Defaults and limits of the chosen model; options that it has no use for are told, or refused."""
    flavour = values["model_flavour"]
    family = of_flavour(flavour)
    for name, why in family.refused.items():
        if not OPTIONS[name].is_off(values[name]):
            raise ConfigError(f"{name}={show(values[name])} is not supported: {why} ({origins[name]})")
    ignored += [(name, why) for name, why in family.unused.items() if name in origins]
    preset, names = values["acestep_lora_target"], family.lora
    others = [one.title for one in map(answers, REGISTRY) if one.lora.default == preset]
    if preset not in names.presets and others and "acestep_lora_target" in origins:
        del origins["acestep_lora_target"]  # configurations of other trainers carry it, and it is passed over
        there = ", ".join(f"{name} ({' '.join(targets)})" for name, targets in names.presets.items())
        why = f"{preset} is {others[0]}'s default; {family.title} gets {names.default}, of {there}"
        ignored.append(("acestep_lora_target", why))
    own = {
        "pretrained_model_name_or_path": family.variants[flavour].repository,
        "acestep_lora_target": names.default,
        "audio_max_duration_seconds": family.latents.max_seconds,
    }
    values |= {name: value for name, value in own.items() if name not in origins}
    for name in origins.keys() & values.keys():
        if OPTIONS[name].high == MAX_SECONDS:
            limited = replace(OPTIONS[name], high=family.latents.max_seconds)
            in_range(limited, values[name], name, origins[name])


def _check_patience(values: dict[str, Any]) -> None:
    """ConfigError where training is to end by an evaluation loss that is never measured."""
    patience = values["early_stopping_patience"]
    every, saved = values["eval_steps_interval"], ("checkpoint_step_interval", "checkpoint_epoch_interval")
    never = every == 0 or (every is None and not any(values[name] for name in saved))
    problems = {
        "eval_loss_disable is true: set it to false": values["eval_loss_disable"],
        "num_eval_images is 0: set it above 0": not values["num_eval_images"],
        "none is made before the end: set eval_steps_interval to the steps between them": never,
    }
    if patience and (found := [text for text, holds in problems.items() if holds]):
        raise ConfigError(f"early_stopping_patience={patience} needs evaluations, and {'; '.join(found)}")


#: options of a LoRA that a LoKr has no use for → where lycoris_config says the like
LORA_ALONE = {
    "lora_rank": "linear_dim of lycoris_config", "lora_alpha": "linear_alpha of lycoris_config",
    "lora_dropout": "", "use_dora": "", "use_rslora": "linear_alpha of lycoris_config", "lora_init_type": "",
}  # fmt: skip
TARGETS = ("acestep_lora_target", "peft_lora_target_modules")


def _idle(lora_type: str) -> tuple[str, ...]:
    """Options that change nothing in adapters of this type."""
    return tuple(LORA_ALONE) if lora_type == LYCORIS else ("lycoris_config",)


def _for_adapter(
    values: dict[str, Any], origins: dict[str, str], ignored: list[tuple[str, str]], given: set[str]
) -> None:
    """What of the options belongs to another type of adapter is told; a LoKr's own are checked."""
    lokr = values["lora_type"] == LYCORIS
    if not lokr:
        if "lycoris_config" in origins:
            if not isinstance(values["lycoris_config"], (str, dict)):
                read_lycoris(values["lycoris_config"], origins["lycoris_config"])
            ignored.append(("lycoris_config", "it counts with lora_type=lycoris only"))
        if values["lora_format"] == LYCORIS:
            raise ConfigError(
                f"lora_format=lycoris is for lora_type=lycoris ({origins['lora_format']}); choose another"
            )
        return
    where = origins.get("lycoris_config")
    if where is None:
        raise ConfigError(
            f"lora_type=lycoris ({origins['lora_type']}) needs lycoris_config: the path of a JSON file like "
            f"{EXAMPLE}"
        )
    found = read_lycoris(values["lycoris_config"], where, ignored)
    if "init_lokr_norm" in given:
        raise ConfigError(
            "init_lokr_norm is not supported: a LoKr that starts away from zero changes the base model; set "
            "use_scalar=true in lycoris_config, which speeds up the start too"
        )
    for name in LORA_ALONE.keys() & origins.keys():
        other = f": {LORA_ALONE[name]} counts" if LORA_ALONE[name] else ""
        ignored.append((name, f"it has no effect on a LoKr{other}"))
        del origins[name]
    for name in LORA_ALONE:
        values[name] = OPTIONS[name].default
    if found.chooses:
        named = sorted(set(TARGETS) & origins.keys())
        ignored += [(name, "apply_preset of lycoris_config names the layers") for name in named]
    if values["lora_format"] not in LOKR_FORMATS:
        if "lora_format" in origins:
            ignored.append(("lora_format", f"a LoKr is written as {' or '.join(LOKR_FORMATS)}"))
            del origins["lora_format"]
        values["lora_format"] = LYCORIS


def _check_length(values: dict[str, Any], origins: dict[str, str]) -> None:
    steps, epochs = values["max_train_steps"], values["num_train_epochs"]
    if steps > 0 and epochs > 0:
        raise ConfigError(
            f"max_train_steps={steps} and num_train_epochs={epochs} are both above 0; set one of them to 0"
        )
    if steps == 0 and epochs == 0:
        if "max_train_steps" in origins and "num_train_epochs" in origins:
            raise ConfigError(
                "max_train_steps and num_train_epochs are both 0; one must say how long to train"
            )
        values["num_train_epochs"] = 1
        origins["num_train_epochs"] = "default"


def _check_rollout(values: dict[str, Any], origins: dict[str, str], ignored: list[tuple[str, str]]) -> None:
    """Whether there is ReflexFlow, and which keys of scheduled sampling say nothing."""
    on = bool(values[OFFSET])
    reflexflow = on and values[REFLEXFLOW] is not False
    if on and values[REFLEXFLOW] is None:
        values[REFLEXFLOW], origins[REFLEXFLOW] = True, f"as {OFFSET} is above 0"
    idle = {
        OFFSET: (on, f"scheduled sampling is off: {OFFSET} is 0"),
        RAMP: (values[RAMP] > 0, f"it counts with {RAMP} above 0 only"),
        REFLEXFLOW: (reflexflow, f"{REFLEXFLOW} is false"),
    }
    for name, one in declared(ScheduledSampling).items():
        if not one.needs or name not in origins or not (on or values[name] != one.default):
            continue
        counts, why = idle[one.needs if on else OFFSET]
        if not counts:
            ignored.append((name, why))
    if on and values[RAMP] and "scheduled_sampling_probability" in origins:
        why = f"with {RAMP} above 0 the chance goes from scheduled_sampling_prob_start to _prob_end"
        ignored.append(("scheduled_sampling_probability", why))


def _tell_idle(values: dict[str, Any], origins: dict[str, str], ignored: list[tuple[str, str]]) -> None:
    """Options that were set, and say nothing because the one that they need is off."""
    said = {name for name, _ in ignored}
    for name, one in OPTIONS.items():
        given = name not in said and not origins.get(name, "default").startswith(("default", "as "))
        if given and one.needs in _SWITCHES and not values[one.needs] and values[name] != one.default:
            on = "=true" if OPTIONS[one.needs].kind == "bool" else " above 0"
            ignored.append((name, f"it counts with {one.needs}{on} only"))
