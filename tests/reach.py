"""What shows, one by one, that each thing that can be set has its effect."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

Check = Callable[..., None]


class Walk(dict[Hashable, Check]):
    """What can be set → the check that shows what it does; each once."""

    def reaches(self, *keys: Hashable) -> Callable[[Check], Check]:
        """Declare what shows that these arrive."""

        def add(check: Check) -> Check:
            for key in keys:
                assert key not in self
                self[key] = check
            return check

        return add

    def __call__(self, key: Hashable, *given: Any) -> None:
        assert key in self, f"{key} can be set: show here what it does"
        self[key](*given)
