"""One LoRA training step, ours and the PyTorch reference's, side by side in one run.

    python benchmarks/train_step.py            two blocks of the true width, 60 s (v1: true lyric encoder)
    python benchmarks/train_step.py --quick    a small geometry, seconds
    python benchmarks/train_step.py --ours-only --blocks 24 --steps 1      the whole model (10 GB of weights)

Both models get the same random weights and do the same work: forward, backward, clipping and AdamW on LoRA
rank 16 on the default targets, float32, every block and lyric-encoder layer checkpointed. Steps alternate,
so that a busy machine slows both; medians and their ratio are printed, below them the most bytes of arrays
that each holds in a step, and the time of the step's bare matrix products in each framework.

mlx[cpu] on Linux carries a slow reference BLAS. For a fair comparison preload a real one, for example
`pip install mkl` and LD_PRELOAD=<environment>/lib/libmkl_rt.so.3 MKL_THREADING_LAYER=GNU. Nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from subjects import Subject, add_family, subject

from acestep_mlx.convert.plan import translate
from acestep_mlx.families.protocol import Load
from acestep_mlx.lora.surgery import LoRASpec, inject
from acestep_mlx.nn.device import cache_limit
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep
from tests.parity import reference
from tests.training.random_model import quantised_model

Products = Counter[tuple[int, int, int]]  # (rows, inner, columns) → how often in one step


@dataclass(frozen=True)
class Case:
    """What one step works on."""

    about: Subject
    config: Any
    load: Load
    rank: int
    checkpoint: bool
    keep_products: bool = False


def reference_v1(case: Case) -> torch.nn.Module:
    """Upstream's model with random weights; its lyric encoder's sizes are its constructor's defaults."""
    config, load = case.config, case.load
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
        max_position=max(1024, load.frames, 1 + load.text + load.lyrics),
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


def reference_v15(case: Case) -> torch.nn.Module:
    """diffusers' model with random weights."""
    from diffusers import AceStepTransformer1DModel

    torch.manual_seed(0)
    known = inspect.signature(AceStepTransformer1DModel.__init__).parameters
    sizes = {key: value for key, value in asdict(case.config).items() if key in known}
    return AceStepTransformer1DModel(**sizes)


def our_model(case: Case, theirs: torch.nn.Module) -> Any:
    """Our transformer with the same weights."""
    component = case.about.family.components["transformer"]
    model = component.module(case.config)
    state = {k: mx.array(v.numpy()) for k, v in theirs.state_dict().items()}
    weights = translate("transformer", component.keymap, model, state)
    model.load_weights(list(weights.items()), strict=True)
    mx.eval(model.parameters())
    return model


def our_step(case: Case, model: Any, batch: dict[str, mx.array]) -> Callable[[], float]:
    """A function that makes one training step and returns its loss."""
    family = case.about.family
    inject(model, LoRASpec(rank=case.rank, targets=family.lora.default_targets))
    model.train()
    again = case.config.blocks if case.checkpoint else 0
    model.checkpoint_blocks, model.product_blocks = (0, again) if case.keep_products else (again, 0)
    paths = [k for k, _ in tree_flatten(model.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-4), Schedule("constant", 1e-4, 0, 1000), paths)
    step = TrainStep(model, [group], StepSettings(), case.about.objective(), prepare=family.prepare(model))
    keys = mx.random.key(0)

    def run() -> float:
        nonlocal keys
        keys, *samples = mx.random.split(keys, 1 + case.load.batch)
        result = step({**batch, "keys": mx.stack(samples)}, update=True)
        mx.eval(result.loss, step.state)
        return result.loss.item()

    return run


def their_step(case: Case, model: Any, batch: dict[str, mx.array]) -> Callable[[], float]:
    """The same with PyTorch and peft, as the reference trainer computes it."""
    from peft import LoraConfig

    model.requires_grad_(False)
    targets = list(case.about.family.lora.default_targets)
    if case.about.family.name == "v15":
        targets = [THEIR_NAMES[target] for target in targets]
    model.add_adapter(LoraConfig(r=case.rank, lora_alpha=case.rank, target_modules=targets))
    model.train()
    model.gradient_checkpointing = case.checkpoint
    if case.about.family.name == "v1":
        model.lyric_encoder.gradient_checkpointing = case.checkpoint
    elif case.checkpoint:
        model.enable_gradient_checkpointing()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)
    given = {k: torch.from_numpy(np.array(v)) for k, v in batch.items() if k != "keys"}
    generator = torch.Generator().manual_seed(0)
    loss_of = REFERENCES[case.about.family.name].loss

    def run() -> float:
        loss = loss_of(model, given, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return run


def their_peak(model: torch.nn.Module, step: Callable[[], float]) -> float:
    """The most bytes of tensors that a step holds, weights and moments among them: as MLX counts its own."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.profiler.kineto_results.events()
    events = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    resident = [*model.parameters(), *model.buffers()]
    return float(peak + sum(tensor.nbytes for tensor in resident) + 2 * trained)  # AdamW's moments


Given = dict[str, "torch.Tensor"]


def loss_v1(model: Any, given: Given, generator: torch.Generator) -> torch.Tensor:
    """Upstream's loss of a batch."""
    B = given["latents"].shape[0]
    sigma = torch.sigmoid(torch.randn(B, generator=generator)).view(-1, 1, 1, 1)
    noise = torch.randn(given["latents"].shape, generator=generator)
    noisy = sigma * noise + (1 - sigma) * given["latents"]
    velocity = model(
        hidden_states=noisy,
        attention_mask=given["latent_mask"],
        encoder_text_hidden_states=given["text"],
        text_attention_mask=given["text_mask"],
        speaker_embeds=torch.zeros(B, model.config.speaker_embedding_dim),
        lyric_token_idx=given["lyric_ids"].long(),
        lyric_mask=given["lyric_mask"],
        timestep=sigma.flatten() * 1000,
    ).sample
    mask = given["latent_mask"][:, None, None]
    return (((noisy - sigma * velocity - given["latents"]) * mask) ** 2).mean()


def loss_v15(model: Any, given: Given, generator: torch.Generator) -> torch.Tensor:
    """The original's loss of a batch; it has no masks."""
    shape = given["mean"].shape
    t = torch.sigmoid(torch.randn(2, shape[0], generator=generator) - 0.4).amax(0)
    clean = given["mean"] + given["std"] * torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    at = t[:, None, None]
    velocity = model(
        hidden_states=at * noise + (1 - at) * clean,
        timestep=t,
        timestep_r=t,
        encoder_hidden_states=given["states"],
        context_latents=torch.cat([given["source"], torch.ones_like(clean)], dim=-1),
    ).sample
    return ((velocity - (noise - clean)) ** 2).mean()


def products_v1(case: Case) -> Products:
    """The matrix products that a step cannot do without: weights times activations, adapters left out.

    Once forward, once more where a block is checkpointed (its last layer's result is not needed again), and
    once backward for the gradient of the input; the first block's input needs none.
    """
    config, load = case.config, case.load
    D, F, H, M = config.dim, config.ff_dim, config.lyric_hidden_size, config.lyric_encoder_ff
    T, L = load.batch * load.frames, load.batch * load.lyrics
    S = load.batch * (1 + load.text + load.lyrics)
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
        add(2 * load.lyrics - 1, H, H, forward=1 + again, backward=0)  # positions
        add(L, H, M, forward=1 + again, backward=1)
        add(L, M, H, forward=1, backward=1)
    add(L, H, D, forward=1, backward=1)
    return +count


def products_v15(case: Case) -> Products:
    """The same for ACE-Step 1.5; the conditions need no gradient, so that their k and v get none."""
    config, load = case.config, case.load
    D, F = config.hidden_size, config.intermediate_size
    Q, KV = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    L, S = load.batch * -(-load.frames // config.patch_size), load.batch * (1 + load.text + load.lyrics)
    again = 1 if case.checkpoint else 0
    count: Products = Counter()

    def add(
        rows: int, inner: int, columns: int, *, backward: int, times: int = 1, forward: int = 1 + again
    ) -> None:
        count[rows, inner, columns] += forward * times
        count[rows, columns, inner] += backward * times

    for i in range(config.num_hidden_layers):
        add(L, D, Q, backward=int(i > 0))
        add(L, D, KV, backward=int(i > 0), times=2)
        add(L, Q, D, backward=1)
        add(L, D, Q, backward=1)
        add(S, D, KV, backward=0, times=2)
        add(L, Q, D, backward=1)
        add(L, D, F, backward=1, times=2)
        add(L, F, D, backward=1, forward=1)
    return +count


#: ours → diffusers'
THEIR_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}


class Reference(NamedTuple):
    """The PyTorch side of a family, and the products that a step of it needs."""

    model: Callable[[Case], torch.nn.Module]
    loss: Callable[[Any, Given, torch.Generator], torch.Tensor]
    products: Callable[[Case], Products]


REFERENCES = {
    "v1": Reference(reference_v1, loss_v1, products_v1),
    "v15": Reference(reference_v15, loss_v15, products_v15),
}


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
    add_family(parser)
    parser.add_argument("--quick", action="store_true", help="small geometry, three steps")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--text", type=int, default=64, help="prompt tokens")
    parser.add_argument("--lyrics", type=int, default=299, help="lyric tokens")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7, help="measured steps of each framework")
    parser.add_argument("--no-checkpoint", action="store_true")
    parser.add_argument(
        "--keep-products", action="store_true", help="our blocks keep what their linear layers give"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, processor seconds: for a machine that is busy"
    )
    parser.add_argument("--ours-only", action="store_true", help="leave PyTorch out (for profiling)")
    args = parser.parse_args()

    clock = time.perf_counter
    if args.cpu_time:  # the BLAS under MLX takes its number of threads from the environment
        clock = time.process_time
        torch.set_num_threads(1)
    about = subject(args.family)
    config = about.blocks(about.config, args.blocks)
    load = Load(round(args.seconds * about.family.latents.frame_rate), args.batch, args.text, args.lyrics)
    if args.quick:
        config = replace(config, **about.narrow)
        load, args.steps = Load(64, args.batch, 16, 32), 3
    case = Case(about, config, load, args.rank, not args.no_checkpoint, args.keep_products)
    batch = about.batch(config, load)
    sides = REFERENCES[args.family]
    if args.ours_only:
        steps = {"ours": our_step(case, quantised_model(about.family, config, None, mx.float32), batch)}
    else:
        theirs = sides.model(case)
        steps = {"ours": our_step(case, our_model(case, theirs), batch)}
        steps["PyTorch"] = their_step(case, theirs, batch)

    tokens = 1 + load.text + load.lyrics
    print(f"{about.family.title}: {config.blocks} blocks, {load.frames} frames, {tokens} tokens, ", end="")
    print(f"batch {load.batch}, ", end="")
    kept = ", our linear layers' results kept" if case.keep_products else ""
    print(f"rank {args.rank}, float32, checkpointing {'on' if case.checkpoint else 'off'}{kept}")
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
    peak = f"peak memory: ours {mx.get_peak_memory() / 1e9:.2f} GB"
    if args.ours_only:
        print(peak)
        return
    print(f"{peak}, PyTorch {their_peak(theirs, steps['PyTorch']) / 1e9:.2f} GB")
    print(f"ratio    {medians['ours'] / medians['PyTorch']:7.3f}")
    our_floor, their_floor, operations = time_products(sides.products(case), clock)
    print(f"bare matrix products: {operations / 1e12:.2f} TFLOP, ", end="")
    print(f"ours {our_floor:.3f} s, PyTorch {their_floor:.3f} s")


if __name__ == "__main__":
    main()
