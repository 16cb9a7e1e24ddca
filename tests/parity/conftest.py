"""PyTorch draws what a test leaves to its constructors from the same seed each time."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures: biases of freshly built reference modules differ from run to run otherwise."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # these models are small: threads would wait for each other
