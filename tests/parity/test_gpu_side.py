"""Numbers against the PyTorch reference once more, with the code that a GPU runs (see tests/gpu.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..gpu import gpu_side
from .test_codec_parity import test_codec_end_to_end, test_vocoder  # noqa: F401
from .test_training_parity import test_every_lora_gradient, test_loss  # noqa: F401
from .test_transformer_parity import test_velocity_and_encoder_states  # noqa: F401
from .test_v15_oobleck_parity import models, test_decode, test_encode  # noqa: F401

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _on_a_gpu() -> Iterator[None]:
    with gpu_side():
        yield
