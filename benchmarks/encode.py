"""Audio → latents (and back) at the true size on random weights: time beside the PyTorch reference, memory.

    python benchmarks/encode.py --family v15     # ACE-Step 1.5's autoencoder; with --texts its texts
    python benchmarks/encode.py              # 60 s, three rounds, then the peak of a 240 s song
    python benchmarks/encode.py --quick      # 10 s, one round
    python benchmarks/encode.py --decode     # latents → audio as well; --decode-only: nothing else
    python benchmarks/encode.py --no-reference --dtype bfloat16

Both sides run in one process, in turn, and the ratio is the median over the rounds. The reference is
upstream's `MusicDCAE`, or diffusers' `AutoencoderOobleck`, in float32 (test-time packages; left out when they
are not installed).

mlx[cpu] on Linux carries a slow reference BLAS. For a fair comparison preload a real one, for example
`pip install mkl` and LD_PRELOAD=<environment>/lib/libmkl_rt.so.3 MKL_THREADING_LAYER=GNU. Nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
import sys
import time
import types
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from subjects import add_family

from acestep_mlx.convert.plan import translate
from acestep_mlx.families.v1.codec import Codec
from acestep_mlx.families.v1.dcae import AutoencoderDC, DCAEConfig
from acestep_mlx.families.v1.geometry import SIZES
from acestep_mlx.families.v1.keymap import KEYMAPS
from acestep_mlx.families.v1.vocoder import Vocoder, VocoderConfig
from acestep_mlx.families.v15 import codec as codec15
from acestep_mlx.families.v15.conditions import ConditionConfig, ConditionEncoder
from acestep_mlx.families.v15.keymap import KEYMAPS as KEYMAPS15
from acestep_mlx.families.v15.oobleck import Oobleck, OobleckConfig
from acestep_mlx.families.v15.qwen3 import Qwen3Config, Qwen3Encoder

RATES = {"v1": 44100, "v15": 48000}
GB = 1e9


def song(seconds: float, rate: int) -> np.ndarray:
    """Decaying notes over noise, stereo, (samples, 2)."""
    t = np.arange(round(seconds * rate)) / rate
    notes = 220 * 2 ** (np.floor(t * 4) * 7 % 24 / 12)
    x = 0.3 * np.sin(2 * np.pi * notes * t) * np.exp(-4 * (t * 4 % 1))
    noise = np.random.default_rng(0).normal(0, 0.01, (len(t), 2))
    return (x[:, None] + noise).astype(np.float32)


def randomised(model: Any, dtype: mx.Dtype) -> Any:
    """Random weights that keep the signal at a natural size."""

    def draw(w: mx.array) -> mx.array:
        return (mx.random.normal(w.shape) * (w.size / w.shape[0]) ** -0.5 if w.ndim > 1 else w).astype(dtype)

    model.update(tree_map(draw, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def weight_bytes(*models: Any) -> int:
    return sum(w.nbytes for model in models for _, w in tree_flatten(model.parameters()))


def ours(size: str, dtype: mx.Dtype) -> Codec:
    """v1's codec."""
    mx.random.seed(0)
    return Codec(
        randomised(AutoencoderDC(DCAEConfig.from_dict(SIZES[size].dcae)), dtype),
        randomised(Vocoder(VocoderConfig.from_dict(SIZES[size].vocoder)), dtype),
    )


def ours15(dtype: mx.Dtype) -> codec15.Codec:
    """ACE-Step 1.5's."""
    mx.random.seed(0)
    return codec15.Codec(randomised(Oobleck(OobleckConfig()), dtype))


def theirs15(codec: codec15.Codec) -> types.SimpleNamespace | None:
    """diffusers' autoencoder, whose weights ours takes over."""
    try:
        import torch
        from diffusers import AutoencoderOobleck
    except ImportError as error:
        print(f"no reference: {error}")
        return None
    torch.manual_seed(0)
    sizes = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(OobleckConfig()).items()}
    model = AutoencoderOobleck(**sizes).eval()
    state = {k: mx.array(v.numpy()) for k, v in model.state_dict().items()}
    ours = translate("vae", KEYMAPS15["vae"], codec.vae, state)
    codec.vae.load_weights(list(ours.items()), strict=True)
    mx.eval(codec.vae.parameters())

    def encode(wav: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return model.encode(torch.from_numpy(wav.T[None].copy())).latent_dist.mean.swapaxes(1, 2)

    def decode(z: mx.array) -> torch.Tensor:
        with torch.no_grad():
            return model.decode(torch.from_numpy(np.array(z)).swapaxes(1, 2)).sample.swapaxes(1, 2)

    return types.SimpleNamespace(encode=encode, decode=decode)


def texts(dtype: mx.Dtype, text: int = 256, lyrics: int = 2048) -> None:
    """Peak and time of a song's conditions: prompt and lyrics at their most tokens, the timbre of silence."""
    mx.random.seed(0)
    encoder = randomised(Qwen3Encoder(Qwen3Config()), dtype)
    conditions = randomised(ConditionEncoder(ConditionConfig()), dtype)
    ids = [mx.random.randint(0, 150_000, (1, n)) for n in (text, lyrics)]
    masks = [mx.ones(i.shape) for i in ids]

    def run() -> mx.array:
        states = encoder(ids[0], masks[0])
        embedded = encoder.embed_tokens(ids[1])
        silent, owner = conditions.silent_reference(), mx.array([0])
        return conditions(states, masks[0], embedded, masks[1], silent, owner)[0].astype(mx.float32)

    weights = weight_bytes(encoder, conditions)
    print(f"text and condition encoder, {dtype}: weights {weights / GB:.2f} GB")
    for _ in range(2):
        peak(f"conditions of {text} text and {lyrics} lyric tokens", run, weights)


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
        their, torch.from_numpy(wav.T[None].copy()), sr=RATES["v1"]
    )[0]
    their.decode = lambda z: pipeline.MusicDCAE.decode(their, torch.from_numpy(np.array(z)))[1][0].T[None]
    for name, model in (("dcae", codec.dcae), ("vocoder", codec.vocoder)):
        state = {k: mx.array(v.numpy()) for k, v in getattr(their, name).state_dict().items()}
        model.load_weights(list(translate(name, KEYMAPS[name], model, state).items()), strict=True)
        mx.eval(model.parameters())
    return their


def most_resident() -> int:
    """Bytes of the whole process at most, since the start or the last `forget_resident`."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_resident() -> int:
    """Start `most_resident` anew, where that can be done; bytes of the process now."""
    mx.clear_cache()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return most_resident()


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
        before = forget_resident()
        a, a_cpu, x = timed(mine)
        a_memory, before = most_resident() - before, forget_resident()
        line = f"{name} round {i + 1}: ours {a:.2f} s ({a_cpu:.2f} s of processor time)"
        if other is not None:
            b, b_cpu, y = timed(other)
            b_memory = most_resident() - before
            ratios.append(a / b)
            cpu_ratios.append(a_cpu / b_cpu)
            error = np.linalg.norm(x - y) / np.linalg.norm(y)
            line += (
                f", reference {b:.2f} s ({b_cpu:.2f} s), ratio {a / b:.2f} (relative difference {error:.1e})"
                f", resident {a_memory / GB:.2f} and {b_memory / GB:.2f} GB more"
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
    resident = most_resident()
    print(
        f"{name}: peak {(mx.get_peak_memory() - weights) / GB:.2f} GB above the weights, {seconds:.1f} s; "
        f"the whole process, weights and kept buffers included, at most {resident / GB:.2f} GB resident",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_family(parser)
    parser.add_argument("--quick", action="store_true", help="10 s, one round, tiny memory test")
    parser.add_argument("--texts", action="store_true", help="ACE-Step 1.5's texts instead of sound")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode", action="store_true", help="measure latents → audio too")
    parser.add_argument("--decode-only", action="store_true", help="measure latents → audio alone")
    parser.add_argument("--memory-seconds", type=float, default=240, help="0: no memory test")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--size", choices=list(SIZES), default="true")
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.rounds, args.memory_seconds = 10, 1, 30
        if args.family == "v15":
            args.seconds, args.memory_seconds = 1, 2
    dtype, rate = getattr(mx, args.dtype), RATES[args.family]
    if args.texts:
        texts(dtype, *((16, 32) if args.quick else ()))
        return
    codec: Any
    if args.family == "v1":
        codec = ours(args.size, dtype)
        weights = weight_bytes(codec.dcae, codec.vocoder)
        encode = codec.encode

        def shape(seconds: float) -> tuple[int, ...]:
            return 1, 8, 16, round(seconds * rate / 4096)

    else:
        codec = ours15(dtype)
        weights = weight_bytes(codec.vae)

        def shape(seconds: float) -> tuple[int, ...]:
            return 1, round(seconds * 25), 64

        def encode(wav: np.ndarray) -> mx.array:
            return codec.encode(wav)[0]

    print(f"{args.size} size, {args.dtype}, {mx.default_device()}: weights {weights / GB:.2f} GB")
    reference = None
    if not args.no_reference:
        reference = theirs(args.size, codec) if args.family == "v1" else theirs15(codec)
    wav = song(args.seconds, rate)
    if args.rounds:
        if not args.decode_only:
            theirs_encoded = reference and (lambda: reference.encode(wav))
            compare("encode", lambda: encode(wav), theirs_encoded, args.rounds, True)
        if args.decode or args.decode_only:
            z = mx.random.normal(shape(args.seconds)) if args.decode_only else encode(wav)
            other = reference and (lambda: reference.decode(z))
            compare("decode", lambda: codec.decode(z), other, args.rounds, False)
    if args.memory_seconds:
        del reference
        wav = song(args.memory_seconds, rate)
        if not args.decode_only:
            peak(f"encode {args.memory_seconds:g} s", lambda: encode(wav), weights)
        if args.decode or args.decode_only:
            z = mx.random.normal(shape(args.memory_seconds))
            peak(f"decode {args.memory_seconds:g} s", lambda: codec.decode(z), weights)


if __name__ == "__main__":
    main()
