"""The code that a GPU runs, on the CPU: MLX computes the same there, and nothing else decides."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import mlx.core as mx
import pytest

from acestep_mlx.nn import convolution, cpu, device, windows

#: What of `nn.cpu` is no computation.
CHOICES = ("by_arithmetic", "second_stream")


@cache
def _stream() -> mx.Stream:
    """Functions that are compiled once for the whole program are traced for each stream of its own."""
    return mx.new_stream(mx.cpu)


def _refuse(name: str) -> Callable[..., Any]:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError(f"nn.cpu.{name} is not for a GPU")

    return refused


@contextlib.contextmanager
def gpu_side() -> Iterator[None]:
    """As if MLX worked on a GPU; an error where anything then calls what only the CPU's back end needs."""
    with pytest.MonkeyPatch.context() as patch, mx.stream(_stream()):
        for module in (convolution, cpu, windows):
            patch.setattr(module, "on_cpu", lambda: False)
        patch.setattr(
            device, "attention_is_fused", lambda: True
        )  # as on Metal, which spells out the gradient
        patch.setattr(device, "attention_gradient_is_fused", lambda: False)
        for name, found in inspect.getmembers(cpu):
            if inspect.isclass(found) and found.__module__ == cpu.__name__:
                patch.setattr(found, "__call__", _refuse(name))
            elif callable(found) and getattr(found, "__module__", "") == cpu.__name__ and name not in CHOICES:
                patch.setattr(cpu, name, _refuse(name))
        yield
