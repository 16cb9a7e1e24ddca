"""Converting a checkpoint of the true size: time, peak memory, sizes.

    python benchmarks/convert.py            # about 25 GB of disk for a while, some minutes
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
from pathlib import Path
from typing import Any

CHILD = """
import json, resource, sys, time
import mlx.core as mx
from acestep_mlx.convert.converter import convert
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
    parser.add_argument("--quick", action="store_true", help="the miniature instead of the true size")
    parser.add_argument("--bits", type=int, default=8, help="0: as it is; quantised to 8 bits while loading")
    parser.add_argument("--dtype", default="bfloat16", help="of the synthetic checkpoint")
    parser.add_argument("--shards", type=int, default=2, help="files of the transformer")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()

    from acestep_mlx.families.v1.miniature import write_checkpoint

    free = shutil.disk_usage(args.scratch).free
    if not args.quick and free < 26e9:
        sys.exit(f"{args.scratch}: {free / 1e9:.0f} GB free, 26 GB needed; name another --scratch")
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="acestep-convert-") as folder:
        checkpoint = Path(folder) / "checkpoint"
        start = time.perf_counter()
        size = "tiny" if args.quick else "true"
        write_checkpoint(checkpoint, size=size, dtype=args.dtype, shards=args.shards)
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
