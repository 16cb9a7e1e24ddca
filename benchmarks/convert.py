"""Converting a checkpoint of the true size: time, peak memory, sizes.

    python benchmarks/convert.py            # v1: about 25 GB of disk for a while, some minutes
    python benchmarks/convert.py --family v15      # about 20 GB
    python benchmarks/convert.py --quick    # the miniature

Random bfloat16 weights in upstream's layout are written to a scratch folder, converted with `-q --q-bits 8`
in a process of its own, and deleted; then the transformer is loaded (quantised on the way with `--bits 0`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from subjects import XL, add_family, subject

from acestep_mlx.families.v1 import miniature as v1
from acestep_mlx.families.v15 import miniature as v15
from acestep_mlx.families.v15.conditions import ConditionConfig
from acestep_mlx.families.v15.config import alternating
from acestep_mlx.families.v15.dit import TransformerConfig
from acestep_mlx.families.v15.fsq import DetokenizerConfig, TokenizerConfig
from acestep_mlx.families.v15.oobleck import OobleckConfig
from acestep_mlx.families.v15.qwen3 import Qwen3Config

#: whose fields make up the original's config.json
OF_THE_ORIGINAL = (DetokenizerConfig, TokenizerConfig, ConditionConfig, TransformerConfig)

CHILD = """
import json, resource, sys, time
import mlx.core as mx
from acestep_mlx.convert.converter import convert
from acestep_mlx.registry import REGISTRY
REGISTRY.setdefault("v15", "acestep_mlx.families.v15")
flags = json.loads(sys.argv[3])
start = time.perf_counter()
report = convert(sys.argv[1], sys.argv[2], **flags)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({
    "seconds": round(seconds, 1),
    "peak_rss_gb": round(peak / 1e9, 3),
    "mlx_peak_gb": round(mx.get_peak_memory() / 1e9, 3),
    "read_gb": round(sum(c.bytes_read for c in report.components.values()) / 1e9, 3),
    "written_gb": round(sum(c.bytes_written for c in report.components.values()) / 1e9, 3),
    "parameters_m": {n: round(c.parameters / 1e6, 1) for n, c in report.components.items()},
    "dropped": {n: len(c.plan.dropped) for n, c in report.components.items()},
}))
"""

LOAD = """
import json, resource, sys, time
import mlx.core as mx
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.registry import REGISTRY
REGISTRY.setdefault("v15", "acestep_mlx.families.v15")
start = time.perf_counter()
folder = ModelFolder.open(sys.argv[1])
quantize = None if folder.quantization else {"bits": 8, "group_size": 64, "mode": "affine"}
model = folder.load("transformer", quantize=quantize)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({
    "load_seconds": round(seconds, 1),
    "load_active_gb": round(mx.get_active_memory() / 1e9, 3),
    "load_mlx_peak_gb": round(mx.get_peak_memory() / 1e9, 3),
    "load_peak_rss_gb": round(peak / 1e9, 3),
}))
"""


def true_v15() -> v15.Geometry:
    """The released models' configs: the defaults of our classes."""
    whole = {k: v for c in OF_THE_ORIGINAL for k, v in asdict(c()).items() if v is not None}
    whole["layer_types"] = alternating(whole["num_hidden_layers"])
    text_encoder = {**asdict(Qwen3Config()), "model_type": "qwen3", "hidden_act": "silu"}
    return v15.Geometry(whole, XL, text_encoder, asdict(OobleckConfig()))


def run(code: str, *arguments: str) -> dict[str, Any]:
    """What `code`, run in a process of its own, prints as JSON."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_family(parser)
    parser.add_argument("--quick", action="store_true", help="the miniature instead of the true size")
    parser.add_argument("--bits", type=int, default=8, help="0: as it is; quantised to 8 bits while loading")
    parser.add_argument("--dtype", default="bfloat16", help="of the synthetic checkpoint")
    parser.add_argument("--shards", type=int, default=2, help="files of the transformer")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--flavour", default="base", help="of ACE-Step 1.5: base, xl-base, …")
    args = parser.parse_args()

    subject(args.family)
    free, needed = shutil.disk_usage(args.scratch).free, 26e9 if args.family == "v1" else 20e9
    if not args.quick and free < needed:
        found = f"{free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB needed"
        sys.exit(f"{args.scratch}: {found}; name another --scratch")
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="acestep-convert-") as folder:
        checkpoint = Path(folder) / "checkpoint"
        start = time.perf_counter()
        size = "tiny" if args.quick else "true"
        given = {"dtype": args.dtype, "shards": args.shards}
        if args.family == "v1":
            v1.write_checkpoint(checkpoint, size=size, **given)
        else:
            geometry = v15.TINY if args.quick else true_v15()
            v15.write_checkpoint(checkpoint, size=geometry, flavour=args.flavour, **given)
        print(
            f"synthetic checkpoint ({size}, {args.dtype}) written in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        flags = {"quantize": True, "q_bits": args.bits} if args.bits else {}
        result = run(CHILD, str(checkpoint), str(Path(folder) / "mlx"), json.dumps(flags))
        shutil.rmtree(checkpoint)
        result |= run(LOAD, str(Path(folder) / "mlx"))
    for key, value in result.items():
        print(f"{key:17} {value}")
    if result["peak_rss_gb"] >= 2:
        sys.exit("the peak is not under 2 GB")


if __name__ == "__main__":
    main()
