"""What a GPU is given: the graphs of a step, read before they run.

Metal ends a process whose GPU waits for some seconds, so nothing in them may be communicated, loaded or
handed over to another device.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import acestep_mlx
from acestep_mlx.families.songs import Shape
from acestep_mlx.families.v15 import FAMILY as V15
from acestep_mlx.lora.surgery import LoRASpec, inject
from acestep_mlx.training.distributed import all_sum
from acestep_mlx.training.optimizers import Group, Schedule, make_optimizer
from acestep_mlx.training.step import StepSettings, TrainStep

from ..families import test_v15_objective as songs15
from ..families import v15
from . import tiny

#: Primitives that wait for something that is not this device's own work.
ELSEWHERE = ("AllReduce", "AllGather", "ReduceScatter", "Send", "Recv", "Load", "Synchronizer")
#: Code by which a stream or device is chosen.
CHOICES = re.compile(
    r"\bstream ?=|\bmx\.(?:stream|new_stream|set_default_stream|default_stream|Stream|StreamContext|cpu|gpu"
    r"|default_device|set_default_device|DeviceType|Device)\b"
)
ROOT = Path(acestep_mlx.__file__).parent


def first(world: int, recompute: bool, **options: Any) -> tuple[TrainStep, dict[str, mx.array]]:
    """A step of the first family, and a batch."""
    model = tiny.adapted()
    model.checkpoint_blocks = 2 * recompute
    return tiny.step(model, world=world, **options), tiny.batch(0)


def second(world: int, recompute: bool, **options: Any) -> tuple[TrainStep, dict[str, mx.array]]:
    """The same of 1.5."""
    model = v15.transformer()
    inject(model, LoRASpec(rank=2, alpha=2.0, targets=V15.lora.default_targets))
    model.checkpoint_blocks = 2 * recompute
    trained = [path for path, _ in tree_flatten(model.trainable_parameters())]
    group = Group("lora", make_optimizer("adamw", 1e-2), Schedule("constant", 1e-2, 0, 1), trained)
    objective = songs15.FlowMatching()
    step = TrainStep(model, [group], StepSettings(**options), objective, world=world)
    return step, songs15.batch(songs15.songs(6), Shape(6, 4, 8))


FAMILIES = pytest.mark.parametrize("family", [first, second])


def parts(step: TrainStep) -> list[Callable[..., Any]]:
    """Everything of a step that is given to the device as one graph."""
    if step.world == 1:
        return [step._accumulate_and_update]
    return [step._tell_gradient, step._hear_gradient]


def arrays(tree: Any) -> list[mx.array]:
    return [value for _, value in tree_flatten(tree) if isinstance(value, mx.array)]


def primitives(outputs: Any, folder: Path) -> set[str]:
    """Names of all that is left to compute of `outputs`."""
    path = folder / "graph.dot"
    mx.export_to_dot(str(path), *arrays(outputs))
    return set(re.findall(r'label ="([^"]+)"', path.read_text()))


@pytest.mark.slow_cases("1-second 2-second")
@FAMILIES
@pytest.mark.parametrize("world", [1, 2])
def test_nothing_in_a_compiled_step_waits_for_something_else(family: Any, world: int, tmp_path: Path) -> None:
    step, batch = family(world, recompute=True)
    inputs: tuple[Any, ...] = (batch, mx.array(False))
    for part in parts(step):
        outputs = mx.compile(part, inputs=step.state, outputs=step.state)(*inputs)
        found = primitives([outputs, step.state], tmp_path)
        assert found and not [name for name in found if name.startswith(ELSEWHERE)]
        inputs = outputs


def elsewhere(source: str) -> set[str]:
    """Code in a module by which work is given to another stream or device than the default one."""
    return {found.removeprefix("mx.").rstrip(" =") for found in CHOICES.findall(source)}


def test_whatever_a_step_calls_stays_on_the_default_stream() -> None:
    """Only the host's own sums over ranks, and windows on the CPU, choose one."""
    rooms = [path for room in ("nn", "families", "lora", "training") for path in (ROOT / room).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): elsewhere(path.read_text()) for path in rooms}
    assert found.pop("nn/device.py") >= {"default_device"}, "it is asked there"
    assert {path: names for path, names in found.items() if names} == {
        "nn/cpu.py": {"new_stream", "Stream", "Device", "cpu"},
        "nn/windows.py": {"default_stream", "Stream", "default_device", "stream"},
        "training/distributed.py": {"stream", "cpu"},
    }


def test_another_stream_and_a_file_would_be_seen(tmp_path: Path) -> None:
    assert elsewhere("mx.add(x, 1, stream=mx.cpu)\nmx.set_default_device(d)") == {
        "stream", "cpu", "set_default_device",
    }  # fmt: skip
    mx.save(str(tmp_path / "x.npy"), mx.ones((3,)))
    assert "Load" in primitives([mx.load(str(tmp_path / "x.npy")) + 1], tmp_path)


def test_a_sum_over_ranks_cannot_become_part_of_a_graph() -> None:
    with pytest.raises(ValueError, match="compile"):
        mx.compile(all_sum)(mx.ones((3,)))


def test_a_sum_over_ranks_is_made_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of numbers that are there, so that no GPU waits within its work; NCCL's own stream is a GPU's."""
    told = []

    def summed(x: mx.array, *, stream: Any = None) -> mx.array:
        told.append(stream)
        return x + x

    monkeypatch.setattr(mx.distributed, "all_sum", summed)
    assert all_sum(mx.array([1.5]) * 2).item() == 6
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    all_sum(mx.array(1))
    assert told == [mx.cpu, None]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_two_ranks_that_draw_the_same_take_the_single_rank_s_step_bit_for_bit(
    accumulate: int, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum of two equal numbers and its half are exact, so only the two graphs could differ."""
    monkeypatch.setattr(mx.distributed, "all_sum", lambda x, **_: x + x)
    found = []
    for world in (1, 2):
        step, _ = first(world, recompute=False, accumulate=accumulate, compute_dtype=dtype)
        results = [
            step(tiny.batch(i, B=1), update=(i + 1) % accumulate == 0, step=i) for i in range(2 * accumulate)
        ]
        assert step.traces == accumulate, "compiled"
        found.append((results, step.parameters(), step.arrays()))
    for (name, one), (_, two) in zip(tree_flatten(found[0]), tree_flatten(found[1]), strict=True):
        assert mx.array_equal(one, two), name
