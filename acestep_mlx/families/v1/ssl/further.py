"""The self-supervised loss of a run: its encoders' files, what it costs, and what is said of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....errors import CheckpointError, ConfigError
from ....formatting import size
from ....io.progress import Advance, Progress
from ...protocol import Auxiliary, Folder, Load
from ...songs import SoundPart
from ..latents import LATENTS
from .encoders import ENCODERS, SOUND_RATE, Encoder, chosen
from .projectors import APART, Projectors, Tap, read_taps

if TYPE_CHECKING:
    from ....config.run import RunConfig
    from .hubert import HubertFile

FILE, PICKLE = "model.safetensors", "pytorch_model.bin"


class SelfSupervised:
    """See `families.protocol.FurtherLoss`."""

    repositories = tuple(encoder.repository for encoder in ENCODERS.values())

    def wanted(self, config: RunConfig) -> bool:
        return config.ace_step_ssl_loss_weight > 0

    def check(self, config: RunConfig, folder: Folder | None) -> None:
        taps = {} if folder is None else _taps(folder)
        for encoder in chosen(config):
            found = _local(config, encoder)
            if found is not None:
                _fitting(_opened(found, encoder), encoder, taps)

    def parts(self, config: RunConfig, folder: Folder, progress: Progress) -> Mapping[str, SoundPart]:
        from .features import Features

        taps, found = _taps(folder), {}
        for encoder in chosen(config):
            path = _local(config, encoder) or _downloaded(encoder, progress)
            found[encoder.name] = Features(encoder, _fitting(_opened(path, encoder), encoder, taps))
        return found

    def loss(self, config: RunConfig, folder: Folder) -> Auxiliary:
        from .alignment import Alignment

        sizes = folder.component_config("transformer")
        names = tuple(encoder.name for encoder in chosen(config))
        return Alignment(
            Projectors.read(folder.file_apart(APART), sizes), config.ace_step_ssl_loss_weight, names
        )

    def memory(self, config: RunConfig, sizes: Any, load: Load) -> Mapping[str, float]:
        D, T, B = sizes.dim, load.frames, load.batch
        weights = activations = 0.0
        for encoder in chosen(config):
            L, width = encoder.length(round(LATENTS.seconds(T) * SOUND_RATE)), encoder.width
            weights += 4.0 * (D * 2 * D + 2 * D * 2 * D + 2 * D * width)
            projected = T * (D + 4 * 2 * D + 2 * width)  # of two layers: what goes in, and SiLU's
            compared = L * (
                T + 5 * width
            )  # weights of the interpolation; what is compared, and its gradients
            activations += 4.0 * B * (projected + compared)
        return {"projectors": weights, "self-supervised loss": activations}

    def lines(self, config: RunConfig, seconds: float) -> list[str]:
        encoders = chosen(config)
        names = " and ".join(encoder.title for encoder in encoders)
        per_minute = _per_minute(encoders)
        parameters = max(encoder.parameters for encoder in encoders)
        hear, grow = "hears" if len(encoders) == 1 else "hear", per_minute * seconds / 60
        lines = [
            f"the loss is that of the flow + {config.ace_step_ssl_loss_weight:g} × the mean distance to what "
            f"{names} {hear}; it trains what lies below the block that is compared, and the evaluation loss "
            "is without it; a step computes some 2 % more",
            f"caches grow by {size(per_minute)} a minute, {size(grow)} for these songs; while they are made, "
            f"an encoder of {size(4e6 * parameters)} is in memory",
        ]
        for encoder in encoders:
            path = _local(config, encoder)
            where = path or f"downloaded from {encoder.repository}, {size(4e6 * encoder.parameters)}"
            lines.append(
                f"{encoder.title}: {where}; its weights are for non-commercial use, {encoder.licence}"
            )
        return lines

    def disk(self, config: RunConfig, seconds: float) -> tuple[float, float]:
        encoders = chosen(config)
        fetched = sum(4e6 * encoder.parameters for encoder in encoders if _local(config, encoder) is None)
        return fetched, _per_minute(encoders) * seconds / 60

    def facts(self, config: RunConfig) -> Mapping[str, Any]:
        return {
            "licences": [
                f"trained with {encoder.title} ({encoder.repository}), {encoder.licence}: non-commercial"
                for encoder in chosen(config)
            ]
        }


def _per_minute(encoders: Sequence[Encoder]) -> float:
    """Bytes that a minute of sound takes in caches."""
    return sum(2.0 * encoder.length(60 * SOUND_RATE) * encoder.width for encoder in encoders)


def _taps(folder: Folder) -> dict[str, Tap]:
    """Encoder → what the model's projectors are for."""
    taps = read_taps(folder.file_apart(APART), folder.component_config("transformer"))
    return {tap.encoder: tap for tap in taps}


def _local(config: RunConfig, encoder: Encoder) -> Path | None:
    """The encoder's file on this machine; None where it has to be downloaded first.

    ConfigError where none is named and none can be downloaded.
    """
    given = getattr(config, encoder.option)
    if given is not None:
        return config.resolve(given)
    if not encoder.downloads:
        raise ConfigError(
            f"{encoder.title} is a pickle on the hub, which is never opened; save its weights as safetensors "
            f"with PyTorch, and name them with {encoder.option}: {_as_safetensors(PICKLE)}; or "
            f"leave it out with ace_step_ssl_encoders"
        )
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(encoder.repository, FILE, revision=encoder.revision)
    return Path(found) if isinstance(found, str) else None


def _as_safetensors(pickle: str) -> str:
    """A command that makes a safetensors file of a pickle's tensors, without running what else is in it."""
    code = (
        "import sys, torch, safetensors.torch as s; "
        "found = torch.load(sys.argv[1], weights_only=True); "
        "s.save_file({k: v.clone() for k, v in found.items()}, sys.argv[2])"
    )
    return f"python -c {shlex.quote(code)} {shlex.quote(pickle)} {FILE}"


def _opened(path: Path, encoder: Encoder) -> HubertFile:
    """The encoder's file, checked. CheckpointError says how a pickle becomes one that can be read."""
    from ....io.safetensors import PICKLES
    from .hubert import open_hubert

    if path.is_dir():
        files = [path / name for name in (FILE, PICKLE) if (path / name).is_file()]
        path = files[0] if files else path / FILE
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{encoder.option}: {path} is a pickle, which can run code and is never opened; save its weights "
            f"with PyTorch first: {_as_safetensors(str(path))}"
        )
    try:
        return open_hubert(path, encoder.pre_norm)
    except CheckpointError as error:
        raise CheckpointError(f"{encoder.option}: {error}") from None


def _fitting(file: HubertFile, encoder: Encoder, taps: Mapping[str, Tap]) -> HubertFile:
    """The file, where the model has a projector for what it gives; CheckpointError."""
    if taps and encoder.name not in taps:
        raise CheckpointError(f"the model has no projector for {encoder.name}, only for {', '.join(taps)}")
    width = taps[encoder.name].width if taps else file.config.width
    if file.config.width != width:
        raise CheckpointError(
            f"{encoder.option}: {file.path} gives {file.config.width} numbers a frame, and the model "
            f"compares {width}; is it {encoder.title}?"
        )
    return file


def _downloaded(encoder: Encoder, progress: Progress) -> Path:
    """The encoder's file in the hub's cache, with its config.json beside it."""
    from huggingface_hub import hf_hub_download

    from ....io.downloads import hub_failure, reading

    where = encoder.repository
    progress(
        Advance(
            f"fetching {where} from the hub (about {size(4e6 * encoder.parameters)}, kept in the hub's "
            f"cache); its weights are for non-commercial use, {encoder.licence}"
        )
    )
    try:
        hf_hub_download(where, "config.json", revision=encoder.revision)
        found = Path(hf_hub_download(where, FILE, revision=encoder.revision))
        reading(where)
        return found
    except Exception as error:  # the hub's client and its transports have many kinds of their own
        raise CheckpointError(
            f"{where}: not in the hub's cache, and {hub_failure(error)}; or name its file with "
            f"{encoder.option}"
        ) from error
