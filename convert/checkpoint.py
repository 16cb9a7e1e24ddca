"""The converter: a PyTorch checkpoint in, a self-contained MLX folder out."""

from __future__ import annotations

from .translate import Account, plan, translate

__all__ = ["Account", "plan", "translate"]
