"""Every optimizer, declared once; `training/optimizers.py` makes them.

Another one of `mlx.optimizers` is a row of OPTIMIZERS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, nearest
from ..io.schema import Check, Mismatch, flag, items, number, optional, whole

_DECAY = number(0, 0.99999)  # of a moment: at 1 it would never take anything in
#: what each setting of `optimizer_config` may be
SETTINGS: dict[str, Check] = {
    "betas": items(_DECAY, 2, 2),
    **dict.fromkeys(("beta1", "beta2", "momentum"), _DECAY),
    "beta_1": optional(_DECAY),
    "dampening": number(0, 1),
    "eps": number(1e-30, 1),
    "weight_decay": number(0, 10),
    "clip_threshold": number(1e-6, 1e6),
    "decay_rate": number(-1, -1e-6),
    "ns_steps": whole(1, 100),
    **dict.fromkeys(("bias_correction", "nesterov", "scale_parameter", "relative_step", "warmup_init"), flag),
}


@dataclass(frozen=True)
class Optimizer:
    """One optimizer of MLX.

    mlx: its class in mlx.optimizers. settings: what `optimizer_config` may set, in MLX's names (beta1 and
    beta2 are parts of betas). takes: which of the adam_* options it takes. slots: numbers that it keeps
    beside each parameter; a factored one keeps a row and a column of each matrix, and a full moment only
    with beta_1. spellings: of other trainers. defaults: where PyTorch's conventions are not MLX's. checks:
    of settings that are not like those of the others.
    """

    mlx: str
    settings: str
    takes: str
    slots: float
    spellings: str
    factored: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, Check] = field(default_factory=dict)

    def kept(self, settings: Mapping[str, Any] | None, rank: int) -> float:
        """Numbers kept for each parameter of LoRA matrices of this rank, under these settings."""
        return 1 / rank + bool((settings or {}).get("beta_1")) if self.factored else self.slots


OPTIMIZERS = {
    "adamw": Optimizer(
        "AdamW",
        settings="betas beta1 beta2 eps weight_decay bias_correction",
        takes="betas eps weight_decay",
        slots=2,
        spellings="adamw_bf16 adamw8bit torch-adamw optimi-adamw bnb-adamw bnb-adamw-paged bnb-adamw8bit"
        " bnb-adamw8bit-paged ao-adamw8bit ao-adamw4bit ao-adamwfp8 sdnq-adamw",
        defaults={"bias_correction": True},  # PyTorch corrects moments for their bias
    ),
    "adam": Optimizer(
        "Adam",
        settings="betas beta1 beta2 eps bias_correction",
        takes="betas eps",
        slots=2,
        spellings="torch-adam optimi-adam bnb-adam bnb-adam8bit ao-adamfp8",
        defaults={"bias_correction": True},
    ),
    "adafactor": Optimizer(
        "Adafactor",
        settings="eps clip_threshold decay_rate beta_1 weight_decay scale_parameter relative_step"
        " warmup_init",
        takes="weight_decay",
        slots=0,
        spellings="torch-adafactor sdnq-adafactor",
        factored=True,
        defaults={"relative_step": False, "scale_parameter": False},
        checks={"eps": items(number(0, 1), 2, 2)},  # of the gradient, of the weights
    ),
    "lion": Optimizer(
        "Lion",
        settings="betas beta1 beta2 weight_decay",
        takes="weight_decay",
        slots=1,
        spellings="optimi-lion bnb-lion bnb-lion-paged bnb-lion8bit bnb-lion8bit-paged sdnq-lion",
    ),
    "sgd": Optimizer(
        "SGD",
        settings="momentum weight_decay dampening nesterov",
        takes="weight_decay",
        slots=1,
        spellings="torch-sgd optimi-sgd",
    ),
    "muon": Optimizer(
        "Muon",
        settings="momentum weight_decay nesterov ns_steps",
        takes="weight_decay",
        slots=1,
        spellings="sdnq-muon",
    ),
}
#: what other trainers call them → the name here
SPELLINGS = {other: name for name, one in OPTIMIZERS.items() for other in one.spellings.split()}


def check_settings(optimizer: str, settings: Mapping[str, Any], where: str) -> None:
    """ConfigError for an `optimizer_config` that the optimizer cannot take. where: for messages."""
    one = OPTIMIZERS[optimizer]
    known = one.settings.split()
    for key, value in settings.items():
        if key not in known:
            raise ConfigError(
                f"optimizer_config: {optimizer} has no setting {key!r}{nearest(key, known)} "
                f"(known: {', '.join(known)}) ({where})"
            )
        try:
            one.checks.get(key, SETTINGS[key])(value, key)
        except Mismatch as error:
            raise ConfigError(f"optimizer_config: {error} ({where})") from None
