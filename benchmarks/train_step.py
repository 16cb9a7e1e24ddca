"""One LoRA training step, ours and the PyTorch reference's, side by side in one run.

    python benchmarks/train_step.py            two blocks of the true width, true lyric encoder, 645 frames
    python benchmarks/train_step.py --quick    a small geometry, seconds
    python benchmarks/train_step.py --ours-only --blocks 24 --steps 1      the whole model (10 GB of weights)

Both models get the same random weights and do the same work: forward, backward, clipping and AdamW on LoRA
rank 16 on the default targets, float32, every block and lyric-encoder layer checkpointed. Steps alternate,
so that a busy machine slows both; the medians and their ratio are printed, and below them the time of the
step's bare matrix products in each framework.

mlx[cpu] on Linux carries a slow reference BLAS. For a fair comparison preload a real one, for example
`pip install mkl` and LD_PRELOAD=<environment>/lib/libmkl_rt.so.3 MKL_THREADING_LAYER=GNU. Nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from acestep_mlx.convert.plan import translate
from acestep_mlx.families.v1 import FAMILY as V1
from acestep_mlx.families.v1.dit import ACEStepTransformer, TransformerConfig
from acestep_mlx.families.v1.keymap import KEYMAPS
from acestep_mlx.families.v1.lora import LORA
from acestep_mlx.families.v1.objective import FlowMatching
from acestep_mlx.lora.surgery import LoRASpec, inject
from acestep_mlx.training.memory import cache_limit
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep
from tests.parity import reference
from tests.training.random_model import quantised_model

Products = Counter[tuple[int, int, int]]  # (rows, inner, columns) → how often in one step


@dataclass(frozen=True)
class Case:
    """What one step works on."""

    config: TransformerConfig
    frames: int
    text: int
    lyrics: int
    rank: int
    checkpoint: bool


def reference_model(case: Case) -> torch.nn.Module:
    """The PyTorch reference with random weights; its lyric encoder's sizes are its constructor's defaults."""
    config = case.config
    encoder = reference.load("lyrics_utils.lyric_encoder").ConformerEncoder
    sizes = (
        config.lyric_hidden_size,
        config.lyric_encoder_heads,
        config.lyric_encoder_ff,
        config.lyric_encoder_layers,
    )
    encoder.__init__.__defaults__ = sizes + encoder.__init__.__defaults__[4:]
    torch.manual_seed(0)
    model = reference.load("transformer").ACEStepTransformer2DModel(
        num_layers=config.num_layers,
        inner_dim=config.dim,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        mlp_ratio=config.mlp_ratio,
        max_position=max(1024, case.frames, 1 + case.text + case.lyrics),
        speaker_embedding_dim=config.speaker_embedding_dim,
        text_embedding_dim=config.text_embedding_dim,
        ssl_encoder_depths=[],
        ssl_names=[],
        ssl_latent_dims=[],
        lyric_encoder_vocab_size=config.lyric_encoder_vocab_size,
        lyric_hidden_size=config.lyric_hidden_size,
    )
    for module in model.modules():  # ours has no dropout in the lyric encoder
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def our_model(case: Case, theirs: torch.nn.Module) -> ACEStepTransformer:
    """Our transformer with the same weights."""
    model = ACEStepTransformer(case.config)
    state = {k: mx.array(v.numpy()) for k, v in theirs.state_dict().items()}
    weights = translate("transformer", KEYMAPS["transformer"], model, state)
    model.load_weights(list(weights.items()), strict=True)
    mx.eval(model.parameters())
    return model


def random_batch(case: Case, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch as our data loader makes it."""
    rng = np.random.default_rng(seed)
    config = case.config
    return {
        "latents": rng.standard_normal((batch, config.in_channels, 16, case.frames), dtype=np.float32),
        "latent_mask": np.ones((batch, case.frames), np.float32),
        "text": rng.standard_normal((batch, case.text, config.text_embedding_dim), dtype=np.float32),
        "text_mask": np.ones((batch, case.text), np.float32),
        "lyric_ids": rng.integers(0, config.lyric_encoder_vocab_size, (batch, case.lyrics)).astype(np.int32),
        "lyric_mask": np.ones((batch, case.lyrics), np.float32),
    }


def our_step(case: Case, model: ACEStepTransformer, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """A function that makes one training step and returns its loss."""
    inject(model, LoRASpec(rank=case.rank))
    model.train()
    model.checkpoint_blocks = case.config.num_layers if case.checkpoint else 0
    paths = [k for k, _ in tree_flatten(model.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-4), Schedule("constant", 1e-4, 0, 1000), paths)
    step = TrainStep(model, [group], StepSettings(), FlowMatching())
    arrays = {k: mx.array(v) for k, v in batch.items()}
    keys = mx.random.key(0)
    mx.eval(arrays, keys)

    def run() -> float:
        nonlocal keys
        keys, *samples = mx.random.split(keys, 1 + arrays["latents"].shape[0])
        result = step({**arrays, "keys": mx.stack(samples)}, update=True)
        mx.eval(result.loss, step.state)
        return result.loss.item()

    return run


def their_step(case: Case, model: torch.nn.Module, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """The same with PyTorch and peft, as the reference trainer computes it."""
    from peft import LoraConfig

    model.requires_grad_(False)
    model.add_adapter(
        LoraConfig(r=case.rank, lora_alpha=case.rank, target_modules=list(LORA.default_targets))
    )
    model.train()
    model.gradient_checkpointing = case.checkpoint
    model.lyric_encoder.gradient_checkpointing = case.checkpoint
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)
    given = {k: torch.from_numpy(v) for k, v in batch.items()}
    B = given["latents"].shape[0]
    speaker = torch.zeros(B, case.config.speaker_embedding_dim)
    generator = torch.Generator().manual_seed(0)

    def run() -> float:
        sigma = torch.sigmoid(torch.randn(B, generator=generator)).view(-1, 1, 1, 1)
        noise = torch.randn(given["latents"].shape, generator=generator)
        noisy = sigma * noise + (1 - sigma) * given["latents"]
        velocity = model(
            hidden_states=noisy,
            attention_mask=given["latent_mask"],
            encoder_text_hidden_states=given["text"],
            text_attention_mask=given["text_mask"],
            speaker_embeds=speaker,
            lyric_token_idx=given["lyric_ids"].long(),
            lyric_mask=given["lyric_mask"],
            timestep=sigma.flatten() * 1000,
        ).sample
        mask = given["latent_mask"][:, None, None]
        loss = (((noisy - sigma * velocity - given["latents"]) * mask) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return run


def products(case: Case, batch: int) -> Products:
    """The matrix products that a step cannot do without: weights times activations, adapters left out.

    Once forward, once more where a block is checkpointed (its last layer's result is not needed again), and
    once backward for the gradient of the input; the first block's input needs none.
    """
    config = case.config
    D, F, H, M = config.dim, config.ff_dim, config.lyric_hidden_size, config.lyric_encoder_ff
    T, L = batch * case.frames, batch * case.lyrics
    S = batch * (1 + case.text + case.lyrics)
    again = 1 if case.checkpoint else 0
    count: Products = Counter()

    def add(rows: int, inner: int, columns: int, *, forward: int, backward: int, times: int = 1) -> None:
        count[rows, inner, columns] += forward * times
        count[rows, columns, inner] += backward * times

    for i in range(config.num_layers):
        add(T, D, D, forward=1 + again, backward=int(i > 0), times=3)  # self-attention q, k, v
        add(T, D, D, forward=1 + again, backward=1, times=3)  # both outputs, cross-attention q
        add(S, D, D, forward=1 + again, backward=1, times=2)  # cross-attention k, v
        add(T, D, 2 * F, forward=1 + again, backward=1)
        add(T, F, D, forward=1, backward=1)
    for i in range(config.lyric_encoder_layers):
        add(L, H, H, forward=1 + again, backward=int(i > 0), times=3)
        add(L, H, H, forward=1 + again, backward=1)
        add(2 * case.lyrics - 1, H, H, forward=1 + again, backward=0)  # positions
        add(L, H, M, forward=1 + again, backward=1)
        add(L, M, H, forward=1, backward=1)
    add(L, H, D, forward=1, backward=1)
    return +count


def time_products(
    count: Products, clock: Callable[[], float], repeats: int = 3
) -> tuple[float, float, float]:
    """Seconds for all products, ours and PyTorch's, and their floating-point operations."""
    totals = [0.0, 0.0]
    for (rows, inner, columns), times in count.items():
        x = np.random.default_rng(0).standard_normal((rows, inner), dtype=np.float32)
        w = np.random.default_rng(1).standard_normal((columns, inner), dtype=np.float32)
        ours, theirs = (mx.array(x), mx.array(w)), (torch.from_numpy(x), torch.from_numpy(w))
        mx.eval(ours)
        runs: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            start = clock()
            mx.eval(ours[0] @ ours[1].T)
            middle = clock()
            theirs[0] @ theirs[1].T
            runs[0].append(middle - start)
            runs[1].append(clock() - middle)
        for i in (0, 1):
            totals[i] += times * statistics.median(runs[i])
    return totals[0], totals[1], sum(2.0 * a * b * c * n for (a, b, c), n in count.items())


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small geometry, three steps")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--frames", type=int, default=645)
    parser.add_argument("--text", type=int, default=64, help="prompt tokens")
    parser.add_argument("--lyrics", type=int, default=299, help="lyric tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7, help="measured steps of each framework")
    parser.add_argument("--no-checkpoint", action="store_true")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, processor seconds: for a machine that is busy"
    )
    parser.add_argument("--ours-only", action="store_true", help="leave PyTorch out (for profiling)")
    args = parser.parse_args()

    clock = time.perf_counter
    if args.cpu_time:  # the BLAS under MLX takes its number of threads from the environment
        clock = time.process_time
        torch.set_num_threads(1)
    config = TransformerConfig(num_layers=args.blocks)
    if args.quick:
        config = replace(
            config, num_attention_heads=3, lyric_hidden_size=256, lyric_encoder_heads=4, lyric_encoder_ff=512
        )
        args.frames, args.text, args.lyrics, args.steps = 64, 16, 32, 3
    case = Case(config, args.frames, args.text, args.lyrics, args.rank, not args.no_checkpoint)
    batch = random_batch(case, args.batch)
    if args.ours_only:
        steps = {"ours": our_step(case, quantised_model(V1, config, None, mx.float32), batch)}
    else:
        theirs = reference_model(case)
        steps = {"ours": our_step(case, our_model(case, theirs), batch)}
        steps["PyTorch"] = their_step(case, theirs, batch)
        del theirs

    tokens = 1 + args.text + args.lyrics
    print(f"{args.blocks} blocks of width {config.dim}, {args.frames} frames, {tokens} tokens, ", end="")
    print(f"batch {args.batch}")
    print(f"rank {args.rank}, float32, checkpointing {'on' if case.checkpoint else 'off'}")
    times: dict[str, list[float]] = {name: [] for name in steps}
    mx.set_cache_limit(cache_limit())  # as the training loop does: MLX's default on a CPU is 32 MB
    mx.reset_peak_memory()
    for i in range(args.steps + 1):  # the first step compiles and is not counted
        for name, step in steps.items():
            start = clock()
            loss = step()
            if i:
                times[name].append(clock() - start)
            if args.ours_only:
                print(f"step {i}: loss {loss:.6f}, {clock() - start:.1f} s", flush=True)
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, t in times.items():
        print(f"{name:8s} {medians[name]:7.3f} s a step (median of {len(t)}, {min(t):.3f} to {max(t):.3f})")
    print(f"our peak memory {mx.get_peak_memory() / 1e9:.2f} GB")
    if args.ours_only:
        return
    print(f"ratio    {medians['ours'] / medians['PyTorch']:7.3f}")
    our_floor, their_floor, operations = time_products(products(case, args.batch), clock)
    print(f"bare matrix products: {operations / 1e12:.2f} TFLOP, ", end="")
    print(f"ours {our_floor:.3f} s, PyTorch {their_floor:.3f} s")


if __name__ == "__main__":
    main()
