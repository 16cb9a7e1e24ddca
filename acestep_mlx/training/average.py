"""The exponential moving average (EMA) of what is trained, moved inside the compiled step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from .rows import Rows


@dataclass(frozen=True)
class AverageSettings:
    """How an average is taken. decay: its share that stays, at most. interval: updates between its moves."""

    decay: float
    interval: int = 1

    def stays(self, update: int) -> float:
        """What share of the average stays at update number `update`, from 1; 1 where it does not move.

        It rises to `decay` as SimpleTuner and diffusers have it: (1 + n) / (10 + n) after n = update − 1
        earlier ones, and 0 at the first, which the average takes over whole.
        """
        if update % self.interval:
            return 1.0
        earlier = update - 1
        return min(self.decay, (1 + earlier) / (10 + earlier)) if earlier > 0 else 0.0


class Average:
    """The average itself. `state` is what the compiled step declares: `stays` () and the values in rows."""

    def __init__(self, settings: AverageSettings, parameters: Mapping[str, mx.array]) -> None:
        self.settings, self._rows = settings, Rows.of(parameters)
        self.state: dict[str, Any] = {"stays": mx.array(1.0), "rows": self._rows.pack(parameters)}

    @property
    def values(self) -> dict[str, mx.array]:
        """By path, as the trained parameters are."""
        return self._rows.unpack(self.state["rows"])

    def load(self, values: Mapping[str, mx.array]) -> None:
        """Put back what `values` gave."""
        self.state["rows"].update(self._rows.pack(values))

    def set_share(self, update: int) -> None:
        """Before update number `update`: a number from the host, so that nothing is compiled again."""
        self.state["stays"] = mx.array(self.settings.stays(update), mx.float32)

    def move(self, parameters: Mapping[str, mx.array], useful: mx.array) -> None:
        """Towards the updated parameters; nothing moves where the update was not `useful`, a bool ()."""
        stays = mx.where(useful, self.state["stays"], 1.0)
        # Each share by itself: with 0 the parameters, with 1 the average, both bit for bit.
        for name, row in self._rows.pack(parameters).items():
            self.state["rows"][name] = stays * self.state["rows"][name] + (1.0 - stays) * row
