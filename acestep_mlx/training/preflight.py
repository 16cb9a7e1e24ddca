"""What can be said about a run before anything is converted, encoded or loaded: all cheap checks.

`train` begins with it, and the dry run is it: what one refuses, the other refuses with the same words. Files'
headers and the LoRA to start from are read; nothing is written.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from ..config.datasets import DataSets, HubSet
from ..config.read_datasets import read_datasets
from ..config.run import RunConfig
from ..convert.conversions import conversion_folder, is_mlx_folder
from ..convert.converter import plan_folder
from ..convert.source import is_repo, resolve
from ..errors import CheckpointError, ConfigError, cause, not_utf8
from ..families import families, of_flavour
from ..families.model_folder import ModelFolder
from ..families.protocol import Family
from ..formatting import count
from ..io.schema import is_utf8
from ..lora.formats.read import read_lora
from ..lora.full_modules import check_full, full_parameters
from ..lora.linear import base_linears
from ..lora.lokr import LoKrSpec
from ..lora.surgery import AdapterSpec, adapter_size, check_start_of, target_shapes
from . import checkpoint, output
from .settings import full_training, further_loss, lora_spec, rollout_settings
from .validation import requests

NOTHING_ROLLED = (
    "nothing will be rolled out: scheduled_sampling_probability is 0, and no ramp leads above 0 "
    "(scheduled_sampling_ramp_steps)"
)
Notify = Callable[[str, str], None]  # (text, "info" or "warning")


@dataclass(frozen=True)
class BaseModel:
    """What `pretrained_model_name_or_path` is: in words, and what is known of it without a download.

    folder: the MLX folder that will be trained on, where it exists. transformer: its sizes, or None for a
    model that is on the hub only; so too its family.
    """

    text: str
    folder: ModelFolder | None
    transformer: Any
    family: Family | None

    @property
    def line(self) -> str:
        """For people."""
        return f"model: {self.text}"

    @property
    def bits(self) -> int | None:
        """Bits of a folder that is quantised on disk."""
        return (self.folder.quantization or {}).get("bits") if self.folder else None


@dataclass(frozen=True)
class Preflight:
    """A run that may begin. `resume`: the checkpoint that it goes on from, `state` its state. `heard`: the
    model that clips are made through, where that is another.
    """

    model: BaseModel
    datasets: DataSets
    resume: Path | None
    state: Mapping[str, Any]
    heard: BaseModel | None = None

    @property
    def step(self) -> int:
        """At which it begins."""
        return int(self.state.get("step", 0))


def preflight(config: RunConfig, notify: Notify, *, ranks: int = 1, overwrite: bool = False) -> Preflight:
    """Check everything about a run that can be checked in a moment; raises AceStepError subclasses.

    overwrite: the run begins anew, whatever the output folder holds.
    """
    check_folder("output_dir", config.output_path)
    _check_trackers(config)
    requests(config)
    model = base_model(config)
    family = of_flavour(config.model_flavour)
    if advice := family.variants[config.model_flavour].advice:
        notify(advice, "info")
    make = family.components["transformer"].module
    skeleton = make(model.transformer) if model.transformer is not None else None
    _check_lora(config, skeleton, notify)
    rolling = rollout_settings(config)
    if rolling is not None and not any(rolling.probabilities):
        notify(
            f"{NOTHING_ROLLED}, although scheduled_sampling_max_step_offset is {rolling.max_offset}",
            "warning",
        )
    heard = _check_validation_model(config, skeleton)
    if (further := further_loss(config)) is not None:
        further.check(config, model.folder)
    resume = _find_checkpoint(config, notify, overwrite)
    if not overwrite and (resume is None or not _is_in(resume, config.output_path)):
        output.check_free(config.output_path, config.resume_from_checkpoint if resume is None else None)
    state = {} if resume is None else _check_resumed(config, resume, model, ranks, notify)
    datasets = read_datasets(config)
    check_caches(config, datasets)
    return Preflight(model, datasets, resume, state, heard)


def _check_resumed(
    config: RunConfig, resume: Path, model: BaseModel, ranks: int, notify: Notify
) -> dict[str, Any]:
    """The state of the checkpoint that the run goes on from, once it is found to fit."""
    state = checkpoint.verify(resume)
    if not checkpoint.Health.of(state).healthy:
        healthy = checkpoint.last_healthy(resume.parent)
        known = f"the last healthy one is {healthy}" if healthy else "no checkpoint beside it is healthy"
        notify(f"{resume} is not healthy: numbers before it were not finite; {known}", "warning")
    _check_identity(config, resume, state, model, ranks)
    if changed := checkpoint.changed_settings(resume, config.to_dict()):
        notify(f"changed since {resume.name}: {', '.join(changed)}", "info")
    return state


def check_caches(config: RunConfig, datasets: DataSets) -> None:
    """ConfigError unless files can be written in each folder that the caches of a run go to."""
    places: dict[Path, str] = {}
    if not config.vae_cache_disable:
        places[config.resolve(config.cache_dir)] = "cache_dir"
        places.setdefault(datasets.text_dir, "cache_dir of text_embeds")
    for dataset in datasets.audio:
        if not config.vae_cache_disable:
            places.setdefault(dataset.text_dir, f"cache_dir of text_embeds, for {dataset.id}")
        if dataset.cache_latents:
            places.setdefault(dataset.latent_dir, f"cache_dir_vae of {dataset.id}")
        if isinstance(dataset, HubSet) and dataset.download_dir is not None:
            places.setdefault(dataset.download_dir, f"config.cache_dir of {dataset.id}")
    for path, name in places.items():
        check_folder(name, path)


def check_folder(option: str, path: Path) -> None:
    """ConfigError unless files can be written at `path`, which need not exist yet."""
    if not is_utf8(path):
        raise ConfigError(
            f"{option}={path}: its path {not_utf8(path, ', which MLX needs; choose another folder')}"
        )
    try:
        here = path
        while not here.exists() and here != here.parent:
            here = here.parent
        if not here.is_dir():
            raise ConfigError(f"{option}={path}: {here} is a file; name a folder")
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        raise ConfigError(f"{option}={path} is not writable: {cause(error)}") from None


def base_model(config: RunConfig) -> BaseModel:
    """The model of a configuration. CheckpointError when there is none, or it cannot be used."""
    given = config.pretrained_model_name_or_path
    model = _model(config, given, config.revision, "pretrained_model_name_or_path")
    if model.family is None:
        _check_repository(config, given)
    else:
        _check_flavour(config, model.family, model.transformer, config.resolve(given))
    return model


def _model(config: RunConfig, given: str, revision: str | None, option: str) -> BaseModel:
    """What an option of a configuration names. CheckpointError when it is no model."""
    path = config.resolve(given)
    if path.exists() and is_mlx_folder(path):
        folder = ModelFolder.open(path)
        folder.check_bits((config.quantization or {}).get("bits"))
        text = f"{path}, MLX folder, {_precision(folder)}"
        return BaseModel(text, folder, folder.component_config("transformer"), folder.family)
    if path.exists():
        source = resolve(path, revision)
        sizes = plan_folder(source)["transformer"].config
        target = conversion_folder(source, config.quantization)
        if (target / "config.json").is_file():
            folder = ModelFolder.open(target)
            text = f"{path}, PyTorch checkpoint, converted already in {target}, {_precision(folder)}"
            return BaseModel(text, folder, folder.component_config("transformer"), source.family)
        text = f"{path}, PyTorch checkpoint, will be converted once into {target}"
        return BaseModel(text, None, sizes, source.family)
    if is_repo(given):
        size = of_flavour(config.model_flavour).variants[config.model_flavour].size
        return BaseModel(
            f"{given}, downloaded and converted once if that has not been done yet; taken for the released "
            f"{size} model",
            None,
            None,
            None,
        )
    raise CheckpointError(f"{option}: there is no model at {path}")


def _check_validation_model(config: RunConfig, trained: nn.Module | None) -> BaseModel | None:
    """What `validation_model` names, where there are clips. ConfigError when the LoRA cannot be heard through
    it. trained: a skeleton.
    """
    given = config.validation_model
    if given is None or not requests(config):
        return None
    heard = _model(config, given, None, "validation_model")
    wanted = of_flavour(config.model_flavour)
    if heard.family is None or trained is None:
        return heard
    if heard.family is not wanted:
        raise ConfigError(
            f"validation_model={given} is {heard.family.title}, and {wanted.title} is trained; name another "
            "variant of the same model"
        )
    other = heard.family.components["transformer"].module(heard.transformer)
    shapes = [target_shapes(one, lora_spec(config)) for one in (trained, other)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"validation_model={given} is of another size than the model that is trained, and its LoRA does "
            "not fit; name another variant of the same size"
        )
    return heard


def _check_flavour(config: RunConfig, family: Family, sizes: Any, path: Path) -> None:
    """ConfigError when the model is of another family or variant. sizes: its transformer's config."""
    wanted = of_flavour(config.model_flavour)
    if family is not wanted:
        raise ConfigError(
            f"model_flavour={config.model_flavour} is {wanted.title}, and {path} is {family.title}; set "
            f"model_flavour={family.flavours(sizes)[0]}, or name another model"
        )
    found = family.flavours(sizes)
    if config.model_flavour not in found:
        raise ConfigError(
            f"model_flavour={config.model_flavour}, and {path} is {' or '.join(found)}; set "
            f"model_flavour={found[0]}, or name another model"
        )


def _check_repository(config: RunConfig, repository: str) -> None:
    """ConfigError when a repository is known to hold other variants than the one that is asked for."""
    known = {flavour: one for family in families() for flavour, one in family.variants.items()}
    found = [flavour for flavour, one in known.items() if one.repository == repository]
    if found and config.model_flavour not in found:
        flavour = config.model_flavour
        raise ConfigError(
            f"model_flavour={flavour}, and {repository} is {' or '.join(found)}; set "
            f"model_flavour={found[0]}, or pretrained_model_name_or_path={known[flavour].repository}"
        )


def _precision(folder: ModelFolder) -> str:
    stored = folder.quantization
    return f"{stored['bits']} bits" if stored else str(folder.dtype).removeprefix("mlx.core.")


def _check_trackers(config: RunConfig) -> None:
    """ConfigError when the package of `report_to` is not installed."""
    name = config.report_to
    if name not in ("tensorboard", "wandb"):
        return
    try:
        missing = importlib.util.find_spec(name) is None
    except (ImportError, ValueError):  # imported already, by something that gave it no spec
        missing = False
    if missing:
        raise ConfigError(f"report_to={name} needs: pip install 'acestep-mlx[{name}]'")


def _check_lora(config: RunConfig, skeleton: nn.Module | None, notify: Notify) -> None:
    """Targets and `init_lora` against the model's shapes, where they are known (arrays stay lazy)."""
    spec = lora_spec(config)
    if skeleton is not None:
        _check_targets(skeleton, spec, notify)
    if not config.init_lora:
        return
    where = f"init_lora={config.init_lora}"
    try:
        start = read_lora(config.resolve(config.init_lora))
    except CheckpointError as error:
        raise CheckpointError(f"init_lora: {error}") from None
    for line in start.notes:
        notify(f"{where}: {line}", "warning")
    if start.full and full_training(config) is None:
        modules = start.family.lora.full
        raise ConfigError(
            f"{where} carries a trained {modules.title}; set {modules.name}_train=true to go on from it"
        )
    if skeleton is None:
        return
    check_start_of(skeleton, start, spec, where)
    if start.full:
        check_full(full_parameters(skeleton), start.full, where, complete=True)


def _check_targets(skeleton: nn.Module, spec: AdapterSpec, notify: Notify) -> None:
    """ConfigError where nothing is trained; what of a LoKr's names matches nothing is said."""
    shapes = target_shapes(skeleton, spec)
    if isinstance(spec, LoKrSpec):
        for line in spec.unmatched(skeleton, list(base_linears(skeleton))):
            notify(line, "warning")
        total = adapter_size(skeleton, spec)
        notify(f"LoKr on {count(len(shapes), 'layer')}, {total:,} parameters", "info")


def _is_in(path: Path, folder: Path) -> bool:
    return path.resolve().parent == folder.resolve()


def _find_checkpoint(config: RunConfig, notify: Notify, overwrite: bool) -> Path | None:
    given = config.resume_from_checkpoint
    if not given or (overwrite and given == "latest"):
        return None
    if given == "latest":
        return checkpoint.newest(config.output_path, notify)
    path = config.output_path / given
    if not path.is_dir():
        path = config.resolve(given)
    if not path.exists() and Path(given).name == given:
        found = [p.name for p in checkpoint.checkpoints(config.output_path)][-5:]
        there = f"there {'is' if len(found) == 1 else 'are'} {', '.join(found)}" if found else "there is none"
        raise CheckpointError(f"resume_from_checkpoint={given}: not in {config.output_path}; {there}")
    if overwrite and _is_in(path, config.output_path):
        raise ConfigError(
            f"--overwrite moves {path} aside, so a run cannot go on from it; leave one of the two out"
        )
    return path


def _check_same_family(config: RunConfig, path: Path, flavour: Any) -> None:
    """ConfigError when the checkpoint is one of another model. flavour: of its run."""
    wanted = of_flavour(config.model_flavour)
    found = next((one for one in families() if flavour in one.variants), wanted)
    if found is not wanted:
        raise ConfigError(
            f"{path} is a checkpoint of a run of {found.title} ({flavour}), and {wanted.title} is trained; "
            f"set model_flavour={flavour} and its model, or name another output_dir"
        )


def _check_identity(
    config: RunConfig, path: Path, state: dict[str, Any], model: BaseModel, ranks: int
) -> None:
    """ConfigError when the checkpoint was made with settings that this run does not have.

    The model's fingerprint is compared where there is an MLX folder already, else after the conversion.
    """
    then = state.get("identity", {})
    _check_same_family(config, path, then.get("model_flavour"))
    known = model.folder.fingerprints["transformer"] if model.folder else then.get("transformer")
    facts = {"transformer": known, "ranks": ranks}
    checkpoint.check_identity(path, state, checkpoint.identity(config.to_dict(), facts))
