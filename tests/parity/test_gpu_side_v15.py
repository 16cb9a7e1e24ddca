"""As test_gpu_side, of ACE-Step 1.5's transformer, conditions and training."""

from __future__ import annotations

import pytest

from .test_gpu_side import _on_a_gpu  # noqa: F401
from .test_v15_conditions_parity import encoders, test_states_and_mask  # noqa: F401
from .test_v15_training_parity import conditions, test_every_lora_gradient, test_loss  # noqa: F401
from .test_v15_transformer_parity import (  # noqa: F401
    models,
    test_gradients_of_the_attentions,
    test_velocity_at_every_kind_of_length,
)

pytestmark = [pytest.mark.parity, pytest.mark.slow]
