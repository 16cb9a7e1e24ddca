"""The converter. `acestep_mlx.convert(src, dst, ...)` calls it: the package answers as its main function."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A module that can be called, as the function and the package have the same public name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .converter import convert

        return convert(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
