"""Data-parallel training over `mx.distributed`: every rank has its share of each batch, rank 0 writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from ..errors import AceStepError, refusal

T = TypeVar("T")


def all_sum(x: mx.array) -> mx.array:
    """The sum of `x` over all ranks, evaluated before and after.

    Nothing on the GPU waits for another machine then: Metal ends a process whose GPU waits for some seconds.
    The host may wait as long as it takes. NCCL has a stream of its own, on the GPU, and no watchdog.
    """
    mx.eval(x)
    total = mx.distributed.all_sum(x, stream=None if mx.cuda.is_available() else mx.cpu)
    mx.eval(total)
    return total


def together(agree: Callable[[str | None], str | None], work: Callable[[], T]) -> T:
    """Do `work`, which takes longer on one rank than on another, and wait for all; an error of one ends all.

    agree: see `World.agree`. The others wait for the first with nothing left to do, and no GPU waits.
    """
    error: Exception | None = None
    try:
        found = work()
    except (AceStepError, OSError) as caught:
        error = caught
    problem = agree(refusal(error) if error is not None else None)
    if error is not None:
        raise error
    if problem is not None:
        raise AceStepError(problem)
    return found


@dataclass(frozen=True)
class World:
    """This process's place among those that `mlx.launch` started; rank 0 of 1 when it started none."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> World:
        """The world that the environment describes (see `mlx.launch`)."""
        group = mx.distributed.init()
        return cls(group.rank(), group.size())

    @property
    def first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            all_sum(mx.array(1.0))

    def share(self, value: Any) -> Any:
        """Rank 0's JSON value, on every rank."""
        if self.size == 1:
            return value
        data = json.dumps(value).encode() if self.first else b""
        return json.loads(self._broadcast(data, _total(len(data)), self.first))

    def largest(self, count: int) -> int:
        """The largest whole number of all ranks."""
        return max(self._each(count))

    def _each(self, count: int) -> list[int]:
        """The whole numbers of all ranks, by rank."""
        if self.size == 1:
            return [count]
        mine = mx.array([count if rank == self.rank else 0 for rank in range(self.size)], mx.int32)
        found: list[int] = np.array(all_sum(mine)).tolist()
        return found

    def agree(self, problem: str | None) -> str | None:
        """The problem of the first rank that has one, on every rank; None when none has. Waits for all."""
        if self.size == 1:
            return problem
        text = (problem or "").encode("utf-8", "surrogateescape")
        found = self._each(len(text))
        speaker = next((rank for rank, length in enumerate(found) if length), None)
        if speaker is None:
            return None
        data = self._broadcast(text, found[speaker], speaker == self.rank)
        return data.decode("utf-8", "surrogateescape")

    def _broadcast(self, data: bytes, length: int, mine: bool) -> bytes:
        """On every rank the `length` bytes of the one rank where they are `mine`."""
        numbers = np.frombuffer(data, np.uint8) if mine else np.zeros(length, np.uint8)
        total = all_sum(mx.array(numbers.astype(np.int32)))
        return bytes(np.array(total).astype(np.uint8))

    def share_arrays(
        self, arrays: Mapping[str, mx.array], like: Mapping[str, mx.array]
    ) -> dict[str, mx.array]:
        """Rank 0's arrays on every rank; `like` gives names, shapes and dtypes on the others."""
        if self.size == 1:
            return dict(arrays)
        shared = {}
        for name in sorted(like):
            value = arrays[name] if self.first else mx.zeros_like(like[name])
            exact = value.astype(mx.int32) if value.dtype == mx.uint64 else value.view(mx.int32)
            total = all_sum(exact)
            shared[name] = total.astype(mx.uint64) if value.dtype == mx.uint64 else total.view(value.dtype)
            mx.eval(shared[name])
        return shared

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Rank 0 works first (and fills caches that the others then find); an error on any rank stops all.

        On machines that share no disk every rank does the work itself.
        """
        if self.size == 1:
            return work()
        result: T | None = None
        for turn in (True, False):
            error: Exception | None = None
            if self.first == turn:
                try:
                    result = work()
                except AceStepError as caught:
                    error = caught
            failed = _total(1 if error else 0)
            if error is not None:
                raise error
            if failed:
                raise AceStepError(
                    f"{failed} other process(es) of this run could not start; see their messages"
                )
        assert result is not None
        return result


def _total(count: int) -> int:
    """The sum of a whole number over all ranks."""
    return int(np.array(all_sum(mx.array(count, mx.int32))).item())
