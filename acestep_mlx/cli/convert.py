"""`acestep-mlx convert`: the PyTorch checkpoint becomes an MLX folder. Flags are named as in mlx-lm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import CheckpointError
from ..families import released
from ..formatting import brief, count, size
from .help_text import examples
from .paths import NamedPath

if TYPE_CHECKING:
    from ..convert.converter import Report


@click.command(
    "convert",
    epilog=examples(
        "acestep-mlx convert --mlx-path ace-step -q",
        "acestep-mlx convert --hf-path ./checkpoint --mlx-path ace-step-4bit -q --q-bits 4",
    ),
)
@click.option(
    "--hf-path",
    default=released().repository,
    show_default=True,
    metavar="REPO_OR_PATH",
    help="Hub repository or folder of the PyTorch checkpoint, or ComfyUI's all-in-one file of it.",
)
@click.option(
    "--mlx-path",
    default="mlx_model",
    show_default=True,
    type=NamedPath(),
    help="The MLX folder to write: a new one, or an empty one.",
)
@click.option("-q", "--quantize", is_flag=True, help="Quantise the large linear layers.")
@click.option(
    "--q-bits",
    type=click.Choice(["2", "3", "4", "5", "6", "8"]),
    help="Bits per weight (default: 4).",
)
@click.option(
    "--q-group-size",
    type=click.Choice(["16", "32", "64", "128"]),
    help="Weights that share a scale (default: 64; 32 for mxfp4 and mxfp8, 16 for nvfp4).",
)
@click.option(
    "--q-mode",
    default="affine",
    show_default=True,
    type=click.Choice(["affine", "mxfp4", "nvfp4", "mxfp8"]),
    help="Kind of quantisation; mxfp4, nvfp4 and mxfp8 fix bits and group size.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Of all that is not quantised (default: as in the checkpoint).",
)
@click.option("--lyric-vocab", type=NamedPath(), help="Lyric vocabulary file (else it is found).")
@click.option(
    "--tokenizer",
    type=NamedPath(),
    metavar="PATH",
    help="The text encoder's tokenizer.json (or umt5-base's spiece.model), or a folder with it (else the "
    "checkpoint's own).",
)
@click.option(
    "--allow-config-key",
    "allow_config_keys",
    multiple=True,
    metavar="KEY",
    help="Leave out a key of the checkpoint's config.json that is not known here (repeatable), where you are "
    "sure that it does not change the computation.",
)
@click.option(
    "--revision", help="Branch, tag or commit of the hub repository (default: pinned for the released model)."
)
@click.option(
    "--add-missing",
    is_flag=True,
    help="Add to the MLX folder --mlx-path what an earlier version left out of the checkpoint that it was "
    "made from (the projectors of the self-supervised losses); nothing else is changed.",
)
@click.option("--upload-repo", metavar="REPO", help="Upload the finished folder to this hub repository.")
def command(
    hf_path: str,
    mlx_path: Path,
    quantize: bool,
    q_bits: str | None,
    q_group_size: str | None,
    q_mode: str,
    dtype: str | None,
    lyric_vocab: Path | None,
    tokenizer: Path | None,
    allow_config_keys: tuple[str, ...],
    revision: str | None,
    add_missing: bool,
    upload_repo: str | None,
) -> None:
    """Turn the PyTorch checkpoint into a self-contained MLX folder.

    Weights are streamed: memory stays under 2 GB. The folder appears only when it is whole.
    """
    if not quantize and (q_bits or q_group_size or q_mode != "affine"):
        raise click.UsageError("--q-bits, --q-group-size and --q-mode need -q")
    if not hf_path.strip():
        raise click.UsageError("--hf-path is empty; name a hub repository or a folder")
    if add_missing:
        alone = (quantize, dtype, lyric_vocab, tokenizer, allow_config_keys, upload_repo)
        if any(alone):
            raise click.UsageError("--add-missing goes with --hf-path, --mlx-path and --revision alone")
        _add_missing(hf_path, mlx_path, revision)
        return
    from ..convert.converter import convert
    from .progress import Display

    with Display() as progress:
        report = convert(
            hf_path,
            mlx_path,
            quantize=quantize,
            q_bits=int(q_bits) if q_bits else None,
            q_group_size=int(q_group_size) if q_group_size else None,
            q_mode=q_mode,
            dtype=dtype,
            revision=revision,
            lyric_vocab=lyric_vocab,
            tokenizer=tokenizer,
            allow_config_keys=allow_config_keys,
            progress=progress,
        )
    for line in summary(report):
        click.echo(line)
    if upload_repo:
        _upload(report.path, upload_repo)


def _add_missing(hf_path: str, mlx_path: Path, revision: str | None) -> None:
    from ..convert.apart import add_missing
    from .progress import Display

    with Display() as progress:
        added = add_missing(hf_path, mlx_path, revision, progress)
    for path in added:
        click.echo(f"added {path}, {size(path.stat().st_size)}")
    if not added:
        click.echo(f"{mlx_path} lacks nothing")


def summary(report: Report) -> list[str]:
    """What became of every tensor, and the sizes before and after."""
    lines = []
    for name, part in report.components.items():
        quantized = f", {count(len(part.quantized), 'layer')} quantised" if part.quantized else ""
        lines.append(
            f"{name:13} {part.parameters / 1e6:9.2f} M parameters  {size(part.bytes_read):>10} → "
            f"{size(part.bytes_written):>10}  {count(len(part.plan.converted), 'tensor')} converted, "
            f"{len(part.plan.dropped)} left out{quantized}"
        )
        lines += [f"{'':13} {n} left out: {reason}" for reason, n in part.plan.reasons().items()]
    read = sum(part.bytes_read for part in report.components.values())
    written = sum(part.bytes_written for part in report.components.values())
    lines += [f"{what}: {origin}" for what, origin in report.origins.items()]
    lines.append(f"{report.path}: {size(read)} → {size(written)} in {report.seconds:.0f} s")
    return lines


def _upload(folder: Path, repo: str) -> None:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo)
    except Exception as error:  # the hub's client and its transports have many kinds of their own
        reason = f"{type(error).__name__}: {brief(error)}"
        raise CheckpointError(
            f"{folder} is written, but uploading it to {repo} failed ({reason}); "
            "log in with `hf auth login` and try `hf upload`"
        ) from None
    click.echo(f"uploaded to {repo}")
