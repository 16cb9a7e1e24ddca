"""Audio → latents (and back) at the true size on random weights: time beside the PyTorch reference, memory.

    python benchmarks/encode.py              # 60 s, three rounds, then the peak of a 240 s song
    python benchmarks/encode.py --quick      # 10 s, one round
    python benchmarks/encode.py --decode     # latents → audio as well
    python benchmarks/encode.py --no-reference --dtype bfloat16

Both sides run in one process, in turn, and the ratio is the median over the rounds. The reference is
upstream's `MusicDCAE` in float32 (test-time packages; left out when they are not installed).

mlx[cpu] on Linux carries a slow reference BLAS. For a fair comparison preload a real one, for example
`pip install mkl` and LD_PRELOAD=<environment>/lib/libmkl_rt.so.3 MKL_THREADING_LAYER=GNU. Nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from statistics import median

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from acestep_mlx.convert.plan import translate
from acestep_mlx.families.v1.codec import Codec
from acestep_mlx.families.v1.dcae import AutoencoderDC, DCAEConfig
from acestep_mlx.families.v1.geometry import SIZES
from acestep_mlx.families.v1.keymap import KEYMAPS
from acestep_mlx.families.v1.vocoder import Vocoder, VocoderConfig

RATE = 44100
GB = 1e9


def song(seconds: float) -> np.ndarray:
    """Decaying notes over noise, stereo, (samples, 2)."""
    t = np.arange(round(seconds * RATE)) / RATE
    notes = 220 * 2 ** (np.floor(t * 4) * 7 % 24 / 12)
    x = 0.3 * np.sin(2 * np.pi * notes * t) * np.exp(-4 * (t * 4 % 1))
    noise = np.random.default_rng(0).normal(0, 0.01, (len(t), 2))
    return (x[:, None] + noise).astype(np.float32)


def ours(size: str, dtype: mx.Dtype) -> Codec:
    """Our codec with random weights that keep the signal at a natural size."""
    codec = Codec(
        AutoencoderDC(DCAEConfig.from_dict(SIZES[size].dcae)),
        Vocoder(VocoderConfig.from_dict(SIZES[size].vocoder)),
    )
    mx.random.seed(0)
    for model in (codec.dcae, codec.vocoder):
        model.update(
            tree_map(
                lambda w: (
                    mx.random.normal(w.shape) * (w.size / w.shape[0]) ** -0.5 if w.ndim > 1 else w
                ).astype(dtype),
                model.parameters(),
            )
        )
        model.eval()
        mx.eval(model.parameters())
    return codec


def theirs(size: str, codec: Codec) -> types.SimpleNamespace | None:
    """The reference; our codec takes over its weights, so that the results can be compared."""
    try:
        import torch

        from tests.parity import reference

        vocoder = reference.load("music_dcae.music_vocoder")
        pipeline = reference.load("music_dcae.music_dcae_pipeline")
        from diffusers import AutoencoderDC as Reference
    except (ImportError, RuntimeError) as error:
        print(f"no reference: {error}")
        return None
    known = {k: v for k, v in SIZES[size].dcae.items() if not k.startswith("_")}
    torch.manual_seed(0)
    vocoder.weight_norm = torch.nn.utils.parametrizations.weight_norm
    known_vocoder = {k: v for k, v in SIZES[size].vocoder.items() if not k.startswith("_")}
    their = types.SimpleNamespace(
        dcae=Reference(**known).eval(),
        vocoder=vocoder.ADaMoSHiFiGANV1(**known_vocoder).eval(),
        resampler=torch.nn.Identity(),
        transform=pipeline.transforms.Compose([pipeline.transforms.Normalize(0.5, 0.5)]),
        min_mel_value=-11.0,
        max_mel_value=3.0,
        time_dimention_multiple=8,
        scale_factor=0.1786,
        shift_factor=-1.9091,
    )
    their.forward_mel = types.MethodType(pipeline.MusicDCAE.forward_mel, their)
    their.encode = lambda wav: pipeline.MusicDCAE.encode(
        their, torch.from_numpy(wav.T[None].copy()), sr=RATE
    )[0]
    their.decode = lambda z: pipeline.MusicDCAE.decode(their, torch.from_numpy(np.array(z)))[1][0].T[None]
    for name, model in (("dcae", codec.dcae), ("vocoder", codec.vocoder)):
        state = {k: mx.array(v.numpy()) for k, v in getattr(their, name).state_dict().items()}
        model.load_weights(list(translate(name, KEYMAPS[name], model, state).items()), strict=True)
        mx.eval(model.parameters())
    return their


def timed(fn: Callable[[], object]) -> tuple[float, float, np.ndarray]:
    """Seconds, processor seconds (all threads; steadier on a busy machine), and the result as an array."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = fn()
    result = result.numpy() if hasattr(result, "numpy") else np.array(result)
    return time.perf_counter() - start, time.process_time() - start_cpu, result


def compare(
    name: str, mine: Callable[[], object], other: Callable[[], object] | None, rounds: int, warm: bool
) -> None:
    """Print the time of each round and the median ratio."""
    if warm:
        mine()
    ratios, cpu_ratios = [], []
    for i in range(rounds):
        a, a_cpu, x = timed(mine)
        line = f"{name} round {i + 1}: ours {a:.2f} s ({a_cpu:.2f} s of processor time)"
        if other is not None:
            b, b_cpu, y = timed(other)
            ratios.append(a / b)
            cpu_ratios.append(a_cpu / b_cpu)
            error = np.linalg.norm(x - y) / np.linalg.norm(y)
            line += (
                f", reference {b:.2f} s ({b_cpu:.2f} s), ratio {a / b:.2f} (relative difference {error:.1e})"
            )
        print(line, flush=True)
    if ratios:
        print(
            f"{name}: median ratio ours / reference {median(ratios):.2f}, "
            f"in processor time {median(cpu_ratios):.2f}",
            flush=True,
        )


def peak(name: str, fn: Callable[[], object], weights: int) -> None:
    """Print the peak memory of one call above the weights."""
    mx.clear_cache()
    mx.reset_peak_memory()
    seconds, _, _ = timed(fn)
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(
        f"{name}: peak {(mx.get_peak_memory() - weights) / GB:.2f} GB above the weights, {seconds:.1f} s; "
        f"the whole process, weights and kept buffers included, at most {resident / GB:.2f} GB resident",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 s, one round, tiny memory test")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", action="store_true", help="measure latents → audio too")
    parser.add_argument("--memory-seconds", type=float, default=240, help="0: no memory test")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--size", choices=list(SIZES), default="true")
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.rounds, args.memory_seconds = 10, 1, 30

    codec = ours(args.size, getattr(mx, args.dtype))
    weights = sum(
        w.nbytes for model in (codec.dcae, codec.vocoder) for _, w in tree_flatten(model.parameters())
    )
    print(f"{args.size} size, {args.dtype}, {mx.default_device()}: weights {weights / GB:.2f} GB")
    reference = None if args.no_reference else theirs(args.size, codec)
    wav = song(args.seconds)
    if args.rounds:
        compare(
            "encode",
            lambda: codec.encode(wav),
            reference and (lambda: reference.encode(wav)),
            args.rounds,
            True,
        )
        if args.decode:
            z = codec.encode(wav)
            compare(
                "decode",
                lambda: codec.decode(z),
                reference and (lambda: reference.decode(z)),
                args.rounds,
                False,
            )
    if args.memory_seconds:
        del reference
        wav = song(args.memory_seconds)
        peak(f"encode {args.memory_seconds:g} s", lambda: codec.encode(wav), weights)
        if args.decode:
            z = mx.random.normal((1, 8, 16, round(args.memory_seconds * RATE / 4096)))
            peak(f"decode {args.memory_seconds:g} s", lambda: codec.decode(z), weights)


if __name__ == "__main__":
    main()
