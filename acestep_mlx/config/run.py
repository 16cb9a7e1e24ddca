"""Every run option, declared once: name, type, default, range, choices, help, status, aliases.

`read.py` reads configurations against these tables; `--dry-run`, `--help` texts and tests read them too.
A *supported* option does what its help says. An *ignored* one is accepted because configurations written for
other trainers carry it and it has no meaning here; its reason is said once. A *refused* one would change the
result if it were passed over, so any value that switches it on is an error that says what to do instead.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest
from ..formatting import without_secrets
from ..io import schema
from ..io.filenames import as_stored
from .foreign import IGNORED, REFUSED
from .option import Option, parse_value, show

EXAMPLES = Path(__file__).parents[1] / "examples"


def _all(names: str, value: str) -> dict[str, str]:
    """Each of the space-separated names mapped to one value."""
    return dict.fromkeys(names.split(), value)


OPTIMIZER_SPELLINGS: dict[str, str] = {
    **_all("adamw_bf16 adamw8bit torch-adamw optimi-adamw bnb-adamw bnb-adamw-paged bnb-adamw8bit", "adamw"),
    **_all("bnb-adamw8bit-paged ao-adamw8bit ao-adamw4bit ao-adamwfp8 sdnq-adamw", "adamw"),
    **_all("torch-adam optimi-adam bnb-adam bnb-adam8bit ao-adamfp8", "adam"),
    **_all("torch-adafactor sdnq-adafactor", "adafactor"),
    **_all("optimi-lion bnb-lion bnb-lion-paged bnb-lion8bit bnb-lion8bit-paged sdnq-lion", "lion"),
    **_all("torch-sgd optimi-sgd", "sgd"),
    **_all("sdnq-muon", "muon"),
}
OPTIMIZERS = ("adamw", "adam", "adafactor", "lion", "sgd", "muon")

# What `optimizer_config` may set, per optimizer, in the names of mlx.optimizers.
OPTIMIZER_CONFIG: dict[str, tuple[str, ...]] = {
    "adamw": ("betas", "beta1", "beta2", "eps", "weight_decay", "bias_correction"),
    "adam": ("betas", "beta1", "beta2", "eps", "bias_correction"),
    "adafactor": (
        "eps",
        "clip_threshold",
        "decay_rate",
        "beta_1",
        "weight_decay",
        "scale_parameter",
        "relative_step",
        "warmup_init",
    ),
    "lion": ("betas", "beta1", "beta2", "weight_decay"),
    "sgd": ("momentum", "weight_decay", "dampening", "nesterov"),
    "muon": ("momentum", "weight_decay", "nesterov", "ns_steps"),
}

LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "sine",
)
LR_SPELLINGS = {"cosine_with_warmup": "cosine"}  # SimpleTuner's own example for this model says so

# Spelling of another trainer -> bits of MLX's affine quantisation of the frozen weights.
PRECISION_BITS: dict[str, int | None] = {
    "no_change": None,
    "int8-quanto": 8,
    "int8-torchao": 8,
    "int8dq-torchao": 8,
    "int8-sdnq": 8,
    "uint8-sdnq": 8,
    "int6-sdnq": 6,
    "int5-sdnq": 5,
    "uint5-sdnq": 5,
    "int4-quanto": 4,
    "int4-torchao": 4,
    "int8dq-int4-torchao": 4,
    "uint4-sdnq": 4,
    "nf4-bnb": 4,
    "fp4-bnb": 4,
    "uint3-sdnq": 3,
    "int2-quanto": 2,
    "uint2-sdnq": 2,
}
_FP8 = "8-bit floats are not computed on Apple GPUs; use int8-quanto, which takes the same memory"
_WIDE = "16-bit integers gain nothing here; use no_change (16-bit floats) or int8-quanto"
_REFUSED_PRECISION = {
    **_all("fp8-quanto fp8uz-quanto fp8-native fp8-torchao fp8wo-torchao fp8-int4-torchao fp8-sdnq", _FP8),
    **_all("fp8-bnb fp8-transformerengine", _FP8),
    **_all("int16-sdnq uint16-sdnq fp16-sdnq", _WIDE),
}

_SCHEDULE_FREE = "schedule-free and adaptive-rate optimizers are not here"
_OTHER_FAMILY = "this trainer knows only ACE-Step v1; set model_family to ace_step"
_V15 = "ACE-Step v1.5 models are not supported yet; use model_flavour=base with ACE-Step/ACE-Step-v1-3.5B"

MODEL = (
    Option(
        "model_family",
        "str",
        "ace_step",
        "Model family.",
        choices=("ace_step",),
        spellings={"acestep": "ace_step"},
    ),
    Option(
        "model_type",
        "str",
        "lora",
        "What is trained.",
        choices=("lora",),
        refused_values={
            "full": "only LoRA training is here; set model_type=lora (a high lora_rank comes close)"
        },
    ),
    Option(
        "model_flavour",
        "str",
        "base",
        "Version of the model.",
        choices=("base",),
        spellings={"v1": "base", "v1-3.5b": "base"},
        refused_values=dict.fromkeys(("v15-turbo", "v15-base", "v15-sft"), _V15),
    ),
    Option(
        "pretrained_model_name_or_path",
        "path",
        "ACE-Step/ACE-Step-v1-3.5B",
        "MLX folder, PyTorch checkpoint folder, or Hugging Face repository of the base model.",
    ),
    Option("revision", "str", None, "Revision (branch, tag, commit) of the Hugging Face repository."),
    Option(
        "output_dir", "path", "output", "Where checkpoints, the LoRA, metrics and the report are written."
    ),
    Option(
        "resolution",
        "any",
        None,
        "Image size.",
        status="ignored",
        reason="sound has no resolution; lengths are set by the data set's audio block",
    ),
)

LORA = (
    Option(
        "lora_type",
        "str",
        "standard",
        "Kind of adapter.",
        choices=("standard",),
        refused_values={"lycoris": "LyCORIS adapters (LoKr, LoHa) are not here; use lora_type=standard"},
    ),
    Option("lora_rank", "int", 16, "Rank of the LoRA matrices.", low=1, high=1024, aliases=("rank",)),
    Option(
        "lora_alpha",
        "float",
        None,
        "LoRA alpha; strength is alpha / rank. Default: lora_rank.",
        above=0,
        high=65536,
    ),
    Option("lora_dropout", "float", 0.0, "Dropout on the LoRA's input while training.", low=0, high=0.99),
    Option("use_dora", "bool", False, "Weight-decomposed LoRA (DoRA)."),
    Option("use_rslora", "bool", False, "Rank-stabilised scale: alpha / sqrt(rank)."),
    Option(
        "lora_init_type",
        "str",
        "default",
        "How A is initialised; B is zero always, so that an untrained LoRA changes nothing.",
        choices=("default", "gaussian"),
        spellings={"true": "default"},
        refused_values=dict.fromkeys(
            ("loftq", "olora", "pissa"),
            "it changes the base weights, so the LoRA would not fit other loaders; use default",
        ),
    ),
    Option(
        "acestep_lora_target",
        "str",
        "attn_qkv+linear_qkv",
        "Which layers get a LoRA; with attn_qkv a song's lyrics are encoded once, not in every step.",
        choices=("attn_qkv", "attn_qkv+linear_qkv", "attn_qkv+linear_qkv+speech_embedder"),
    ),
    Option(
        "peft_lora_target_modules",
        "list",
        None,
        "Layers by the end of their name, instead of acestep_lora_target (a list, or names split by commas). "
        "Where none is in the lyric encoder, a song's lyrics are encoded once, not in every step.",
    ),
    Option("init_lora", "path", None, "LoRA file of any supported format to start from."),
    Option(
        "lora_format",
        "str",
        "peft",
        "Key format of pytorch_lora_weights.safetensors.",
        choices=("peft", "comfyui", "simpletuner", "mlx"),
        spellings={"diffusers": "peft"},
    ),
)

LYRICS_EMBEDDER = (
    Option(
        "lyrics_embedder_train",
        "bool",
        False,
        "Train the lyric embedding and encoder too. While they are frozen (this is off, and no LoRA is on "
        "the lyric encoder: acestep_lora_target=attn_qkv), a song's lyrics are encoded once, not in every "
        "step.",
    ),
    Option("lyrics_embedder_lr", "float", None, "Its learning rate. Default: learning_rate.", low=0, high=10),
    Option(
        "lyrics_embedder_optimizer",
        "str",
        None,
        "Its optimizer. Default: optimizer.",
        choices=OPTIMIZERS,
        spellings=OPTIMIZER_SPELLINGS,
    ),
    Option(
        "lyrics_embedder_lr_scheduler",
        "str",
        None,
        "Its schedule. Default: lr_scheduler.",
        choices=LR_SCHEDULERS,
        spellings=LR_SPELLINGS,
    ),
)

PRECISION = (
    Option(
        "mixed_precision",
        "str",
        "bf16",
        "Type of the computation; LoRA weights stay float32.",
        choices=("bf16", "fp16", "no"),
        spellings={
            "bfloat16": "bf16",
            "bf16-mixed": "bf16",
            "16": "fp16",
            "float16": "fp16",
            "16-mixed": "fp16",
            "32": "no",
            "fp32": "no",
            "float32": "no",
        },
        refused_values={"fp8": _FP8},
        aliases=("precision",),
    ),
    Option(
        "base_model_precision",
        "str",
        "no_change",
        "Quantisation of the frozen base weights.",
        choices=tuple(PRECISION_BITS),
        refused_values=_REFUSED_PRECISION,
    ),
)

OPTIMISATION = (
    Option(
        "optimizer",
        "str",
        "adamw",
        "Optimizer.",
        choices=OPTIMIZERS,
        spellings=OPTIMIZER_SPELLINGS,
        refused_values=dict.fromkeys(
            ("adamw_schedulefree", "prodigy", "dadaptation", "soap"),
            f"{_SCHEDULE_FREE}; use one of {', '.join(OPTIMIZERS)}",
        ),
    ),
    Option(
        "optimizer_config",
        "mapping",
        None,
        'Further optimizer settings: {"eps": 1e-6} or "eps=1e-6,weight_decay=0".',
    ),
    Option(
        "adam_beta1", "float", 0.9, "First Adam moment.", low=0, high=0.99999, aliases=("optimizer_beta1",)
    ),
    Option(
        "adam_beta2",
        "float",
        0.999,
        "Second Adam moment.",
        low=0,
        high=0.9999999,
        aliases=("optimizer_beta2",),
    ),
    Option("adam_weight_decay", "float", 0.01, "Decoupled weight decay.", low=0, high=10),
    Option("adam_epsilon", "float", 1e-8, "Adam epsilon.", above=0, high=1),
    Option("learning_rate", "float", 1e-4, "Learning rate.", low=0, high=10),
    Option(
        "max_grad_norm",
        "float",
        1.0,
        "Gradients are clipped to this norm; 0 switches clipping off.",
        low=0,
        high=1e6,
        aliases=("gradient_clip_val",),
    ),
    Option(
        "grad_clip_method",
        "str",
        "norm",
        "How gradients are clipped.",
        choices=("norm",),
        refused_values={"value": "only clipping by the total norm is here; set grad_clip_method=norm"},
        aliases=("gradient_clip_algorithm",),
    ),
    Option(
        "lr_scheduler",
        "str",
        "constant_with_warmup",
        "Learning rate schedule.",
        choices=LR_SCHEDULERS,
        spellings=LR_SPELLINGS,
    ),
    Option("lr_warmup_steps", "int", 0, "Steps over which the rate rises from 0.", low=0, high=10**9),
    Option("lr_num_cycles", "int", 1, "Cycles of cosine_with_restarts.", low=1, high=10**6),
    Option("lr_power", "float", 0.8, "Power of the polynomial schedule.", above=0, high=100),
    Option(
        "lr_end",
        "float",
        4e-7,
        "Rate at the end of the polynomial schedule, and the lowest of sine.",
        low=0,
        high=10,
    ),
)

LENGTH = (
    Option(
        "max_train_steps",
        "int",
        0,
        "Optimizer steps; 0: given by num_train_epochs.",
        low=0,
        high=10**9,
        aliases=("max_steps",),
    ),
    Option(
        "num_train_epochs", "int", 0, "Passes over the data; 0: given by max_train_steps.", low=0, high=10**7
    ),
    Option("train_batch_size", "int", 1, "Songs in a batch.", low=1, high=1024),
    Option(
        "gradient_accumulation_steps",
        "int",
        1,
        "Batches whose gradients are averaged into one step.",
        low=1,
        high=4096,
        aliases=("accumulate_grad_batches",),
    ),
    Option(
        "gradient_checkpointing", "bool", True, "Recompute each block in the backward pass to save memory."
    ),
    Option(
        "seed", "int", 42, "Seed of order, noise, timesteps, dropout and LoRA weights.", low=0, high=2**32 - 1
    ),
    Option(
        "dataloader_num_workers",
        "int",
        0,
        "Loader processes.",
        low=0,
        high=1024,
        status="ignored",
        reason="batches come from caches, read one step ahead by one thread",
        aliases=("num_workers",),
    ),
)

FLOW = (
    Option(
        "flow_schedule_shift",
        "float",
        3.0,
        "Shift of the noise schedule.",
        above=0,
        high=100,
        aliases=("shift",),
    ),
    Option("logit_mean", "float", 0.0, "Mean of the logit-normal timestep density.", low=-10, high=10),
    Option(
        "logit_std",
        "float",
        1.0,
        "Standard deviation of the logit-normal timestep density.",
        above=0,
        high=10,
    ),
    Option(
        "caption_dropout_probability",
        "float",
        0.15,
        "How often a sample's caption is dropped, and, independently, its lyrics.",
        low=0,
        high=1,
    ),
    Option(
        "ace_step_ssl_loss_weight",
        "any",
        0.0,
        "Weight of the self-supervised alignment loss.",
        status="refused",
        reason="its MERT and m-HuBERT encoders are not here yet; set it to 0",
    ),
)

CHECKPOINTS = (
    Option(
        "checkpoint_step_interval",
        "int",
        500,
        "Steps between checkpoints; 0: none but the last.",
        low=0,
        high=10**9,
        aliases=("checkpointing_steps", "every_n_train_steps"),
    ),
    Option("checkpoint_epoch_interval", "int", None, "Epochs between checkpoints.", low=1, high=10**7),
    Option(
        "checkpoints_total_limit",
        "int",
        5,
        "Newest checkpoints kept, beside the best and as many healthy ones; 0: all.",
        low=0,
        high=10**6,
        aliases=("save_total_limit",),
    ),
    Option(
        "resume_from_checkpoint",
        "path",
        None,
        "`latest`, or the path of a checkpoint to go on from; what came after it is moved aside.",
        aliases=("ckpt_path",),
    ),
)

VALIDATION = (
    Option("validation_prompt", "str", None, "Caption of the validation clip."),
    Option("validation_lyrics", "str", None, "Lyrics of the validation clip."),
    Option(
        "validation_prompt_library",
        "any",
        None,
        "`audio`: the built-in captions and lyrics; or a JSON file {name: caption}.",
        aliases=("user_prompt_library",),
    ),
    Option("validation_audio_duration", "float", 30.0, "Seconds of a validation clip.", low=1, high=240),
    Option("validation_guidance", "float", 4.0, "Guidance scale of validation clips.", low=0, high=100),
    Option(
        "validation_num_inference_steps", "int", 30, "Sampler steps of validation clips.", low=1, high=1000
    ),
    Option(
        "validation_step_interval",
        "int",
        None,
        "Steps between validations; unset: at every checkpoint.",
        low=0,
        high=10**9,
        aliases=("validation_steps",),
    ),
    Option("validation_epoch_interval", "int", None, "Epochs between validations.", low=1, high=10**7),
    Option("validation_seed", "int", None, "Seed of validation clips. Default: seed.", low=0, high=2**32 - 1),
    Option("validation_negative_prompt", "str", None, "Negative caption of validation clips."),
    Option("validation_on_startup", "bool", False, "Validate before the first step."),
    Option("validation_disable", "bool", False, "No validation clips."),
    Option(
        "eval_steps_interval",
        "int",
        None,
        "Steps between measurements of the evaluation loss; unset: at checkpoints.",
        low=0,
        high=10**9,
    ),
    Option(
        "num_eval_images",
        "int",
        4,
        "Songs in the fixed evaluation set.",
        low=0,
        high=1024,
        aliases=("num_eval_samples",),
    ),
    Option("eval_loss_disable", "bool", False, "No evaluation loss."),
    Option(
        "num_validation_images",
        "int",
        1,
        "Clips per prompt.",
        low=1,
        high=1,
        reason="one clip is made per prompt; give several prompts with validation_prompt_library",
    ),
    Option(
        "evaluation_type",
        "str",
        "none",
        "Metric of validation images.",
        choices=("none",),
        refused_values={"clip": "CLIP scores judge images, not sound; set evaluation_type=none"},
    ),
)

LOGGING = (
    Option(
        "report_to",
        "str",
        "none",
        "Where metrics go besides metrics.jsonl and report.html.",
        choices=("none", "tensorboard", "wandb"),
        refused_values=dict.fromkeys(
            ("comet_ml", "all", "custom-tracker"),
            "only tensorboard and wandb are here; use one of these or none",
        ),
    ),
    Option(
        "logging_dir", "path", "logs", "TensorBoard files; relative to output_dir.", aliases=("logger_dir",)
    ),
    Option("tracker_project_name", "str", "acestep-mlx", "Project name at wandb."),
    Option("tracker_run_name", "str", None, "Run name at wandb and in the report.", aliases=("exp_name",)),
)

CACHES = (
    Option("vae_cache_disable", "bool", False, "Write no latents to disk; encode when needed."),
    Option("vae_cache_ondemand", "bool", False, "Encode latents when first needed, then keep them."),
    Option("cache_dir", "path", "cache", "Root of the caches."),
    Option("cache_dir_text", "path", None, "Text caches. Default: cache_dir/text."),
    Option("cache_dir_vae", "path", None, "Latent caches. Default: cache_dir/vae/{model_family}/{id}."),
    Option("compress_disk_cache", "bool", False, "Deflate cache files (losslessly)."),
    Option(
        "vae_batch_size",
        "int",
        1,
        "Songs encoded together.",
        low=1,
        high=1024,
        status="ignored",
        reason="songs are encoded one by one in bounded memory; the result is the same",
    ),
)

DATA = (
    Option(
        "data_backend_config",
        "any",
        None,
        "Data set file. Default: multidatabackend.json beside config.json.",
    ),
    Option(
        "caption_strategy",
        "str",
        "textfile",
        "Where captions come from, unless the data set says.",
        choices=("textfile", "filename", "instanceprompt", "csv", "huggingface"),
        refused_values={
            "parquet": "load parquet files with type=huggingface and caption_strategy=huggingface"
        },
    ),
    Option("instance_prompt", "str", None, "Trigger words, unless the data set says."),
    Option("prepend_instance_prompt", "bool", False, "Put instance_prompt before every caption."),
    Option("only_instance_prompt", "bool", False, "Use instance_prompt instead of every caption."),
    Option("disable_multiline_split", "bool", False, "A caption file is one caption, not one per line."),
    Option("audio_max_duration_seconds", "float", 240.0, "Longer songs are cut to this.", low=3, high=240),
    Option("audio_min_duration_seconds", "float", 0.0, "Shorter songs are skipped.", low=0, high=240),
    Option(
        "audio_duration_interval",
        "float",
        3.0,
        "Songs are padded to multiples of this, in seconds.",
        low=0.1,
        high=240,
    ),
    Option(
        "audio_truncation_mode",
        "str",
        "beginning",
        "Which part of a long song is kept.",
        choices=("beginning", "end", "random"),
    ),
)

_REFUSED_CHOICES = (
    Option(
        "loss_type",
        "str",
        "l2",
        "Loss.",
        choices=("l2",),
        refused_values=dict.fromkeys(
            ("huber", "smooth_l1"), "ACE-Step's loss is the squared error; set loss_type=l2"
        ),
    ),
    Option(
        "peft_lora_mode",
        "str",
        "standard",
        "LoRA variant.",
        choices=("standard",),
        refused_values={"singlora": "SingLoRA is not here; set peft_lora_mode=standard"},
    ),
    Option(
        "timestep_bias_strategy",
        "str",
        "none",
        "Timestep bias.",
        choices=("none",),
        refused_values=dict.fromkeys(
            ("earlier", "later", "range"), "use logit_mean to move the timesteps instead"
        ),
    ),
)

GROUPS: dict[str, tuple[Option, ...]] = {
    "model": MODEL,
    "LoRA": LORA,
    "lyrics embedder": LYRICS_EMBEDDER,
    "precision": PRECISION,
    "optimisation": OPTIMISATION,
    "length": LENGTH,
    "flow": FLOW,
    "checkpoints": CHECKPOINTS,
    "validation": VALIDATION,
    "logging": LOGGING,
    "caches": CACHES,
    "data": DATA,
    "other trainers": _REFUSED_CHOICES,
}


def _table() -> dict[str, Option]:
    """name → Option; refuses a name or alias that is declared twice."""
    options: dict[str, Option] = {}
    taken: set[str] = set()

    def add(option: Option, group: str) -> None:
        for name in (option.name, *option.aliases):
            if name in taken:
                raise AssertionError(f"option {name} is declared twice")
            taken.add(name)
        options[option.name] = Option(**{**option.__dict__, "group": group})

    for group, members in GROUPS.items():
        for option in members:
            add(option, group)
    for reason, names in IGNORED.items():
        for name in names.split():
            add(Option(name, "any", None, "", status="ignored", reason=reason), "other trainers")
    for reason, names in REFUSED.items():
        for name in names.split():
            add(Option(name, "any", None, "", status="refused", reason=reason), "other trainers")
    return options


OPTIONS: dict[str, Option] = _table()
ALIASES: dict[str, str] = {alias: option.name for option in OPTIONS.values() for alias in option.aliases}
SUPPORTED: tuple[str, ...] = tuple(name for name, option in OPTIONS.items() if option.status == "supported")


class RunConfig:
    """A checked configuration. Every option of OPTIONS is an attribute, e.g. `config.lora_rank`.

    folder: where the config file lies (the working directory when it was a dict).
    source: the config file, or None.
    ignored: (key, reason) for each accepted key that has no meaning here, in the order they were given.
    """

    def __init__(
        self,
        values: dict[str, Any],
        origins: dict[str, str],
        ignored: list[tuple[str, str]],
        folder: Path,
        source: Path | None,
    ) -> None:
        self._values = values
        self._origins = origins
        self.ignored = ignored
        self.folder = folder
        self.source = source

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while being copied or unpickled
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"no option {name!r}") from None

    def origin(self, name: str) -> str:
        """Where the value came from: a file's name or "command line" (with ", as KEY" for another spelling),
        "default", or "as OTHER_OPTION".
        """
        return self._origins.get(name, "default")

    def to_dict(self) -> dict[str, Any]:
        """Supported options with their resolved values; plain JSON types. `load_config` accepts it again.

        This is what checkpoints, reports and trackers get, so access tokens are left out.
        """
        return {name: without_secrets(self._values[name]) for name in SUPPORTED}

    def replace(self, **changes: Any) -> RunConfig:
        """The same configuration with some options changed (checked like any other value)."""
        given = {
            name: (self._values[name], origin)
            for name, origin in self._origins.items()
            if origin != "default" and not origin.startswith("as ")
        }
        for name, value in changes.items():
            given[name] = (value, "program")
        return finish(given, list(self.ignored), self.folder, self.source)

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
            target = Path(text).expanduser()
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


# ── rules between options ─────────────────────────────────────────────────────────────────────────────
# Unset options that take another option's value.
_FOLLOWS = {
    "lora_alpha": "lora_rank",
    "lyrics_embedder_lr": "learning_rate",
    "lyrics_embedder_optimizer": "optimizer",
    "lyrics_embedder_lr_scheduler": "lr_scheduler",
    "validation_seed": "seed",
}


_DECAY = schema.number(0, 0.99999)  # of a moment: at 1 it would never take anything in
#: What each setting of `optimizer_config` may be.
OPTIMIZER_SETTINGS: dict[str, schema.Check] = {
    "betas": schema.items(_DECAY, 2, 2),
    **dict.fromkeys(("beta1", "beta2", "momentum"), _DECAY),
    "beta_1": schema.optional(_DECAY),
    "dampening": schema.number(0, 1),
    "eps": schema.number(1e-30, 1),
    "weight_decay": schema.number(0, 10),
    "clip_threshold": schema.number(1e-6, 1e6),
    "decay_rate": schema.number(-1, -1e-6),
    "ns_steps": schema.whole(1, 100),
    **dict.fromkeys(
        ("bias_correction", "nesterov", "scale_parameter", "relative_step", "warmup_init"), schema.flag
    ),
}
_PAIRED_EPS = schema.items(schema.number(0, 1), 2, 2)  # of Adafactor: of the gradient, of the weights


def finish(
    given: dict[str, tuple[Any, str]], ignored: list[tuple[str, str]], folder: Path, source: Path | None
) -> RunConfig:
    """Defaults, values that follow other options, and the rules between options."""
    values = {name: option.default for name, option in OPTIONS.items()}
    origins: dict[str, str] = {}
    for name, (value, where) in given.items():
        if value is not None:
            values[name] = parse_value(OPTIONS[name], value, name, where)
            origins[name] = where
    for name, other in _FOLLOWS.items():
        if values[name] is None:
            values[name] = float(values[other]) if OPTIONS[name].kind == "float" else values[other]
            origins[name] = f"as {other}"
    _check_length(values, origins)
    _check_optimizer_config(values, origins.get("optimizer_config", ""))
    if values["data_backend_config"] is None:
        values["data_backend_config"] = str(folder / "multidatabackend.json")
    elif not isinstance(values["data_backend_config"], (str, list)):
        raise ConfigError(
            f"data_backend_config must be the path of a file, got {show(values['data_backend_config'])} "
            f"({origins['data_backend_config']})"
        )
    return RunConfig(values, origins, ignored, folder, source)


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


def _check_optimizer_config(values: dict[str, Any], where: str) -> None:
    settings = values["optimizer_config"]
    if settings is None:
        return
    known = OPTIMIZER_CONFIG[values["optimizer"]]
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(
                f"optimizer_config: {values['optimizer']} has no setting {key!r}{nearest(key, known)} "
                f"(known: {', '.join(known)}) ({where})"
            )
        check = _PAIRED_EPS if (values["optimizer"], key) == ("adafactor", "eps") else OPTIMIZER_SETTINGS[key]
        try:
            check(value, key)
        except schema.Mismatch as error:
            raise ConfigError(f"optimizer_config: {error} ({where})") from None
