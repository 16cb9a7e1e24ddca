"""`acestep-mlx doctor`: does this machine compute rightly, how fast, and what fits?"""

from __future__ import annotations

import json

import click

from .help_text import examples


@click.command("doctor", epilog=examples("acestep-mlx doctor", "acestep-mlx doctor --json > doctor.json"))
@click.option("--json", "as_json", is_flag=True, help="For bug reports: no names of hosts, users or folders.")
@click.option("--no-network", is_flag=True, help="Do not ask whether the hub can be found.")
def command(as_json: bool, no_network: bool) -> int:
    """Check this machine: miniatures of both models on the GPU and the CPU against the reference's numbers,
    the speed of products and memory, and from these what a training step would take. Nothing is downloaded;
    it takes a minute or two. Exit code 1 where a number is wrong.
    """
    from huggingface_hub import constants

    from ..doctor.diagnosis import examine
    from ..io.kept import cache_folder

    network = not (no_network or constants.HF_HUB_OFFLINE)
    found = examine(cache_folder(), network=network, say=lambda line: click.echo(f"{line} …", err=True))
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, allow_nan=False))
    else:
        for line in found.lines():
            click.echo(line)
    return 0 if found.sound else 1
