"""Libraries that only some tests need."""

from __future__ import annotations

from typing import Any

import pytest


class Later:
    """A library that is imported when something of it is first used: collecting tests does not wait for it.

    The test that uses it is skipped where it is not installed.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name != "__version__":  # pytest looks at what a module holds
            raise AttributeError(name)
        return getattr(pytest.importorskip(self._name), name)
