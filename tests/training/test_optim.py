"""Schedules and optimizers against PyTorch's."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from acestep_mlx.config.optimizers import OPTIMIZERS
from acestep_mlx.config.read_run import load_config
from acestep_mlx.errors import ConfigError
from acestep_mlx.training import build, settings
from acestep_mlx.training.optimizers import SCHEDULES, Group, Schedule, make_optimizer

diffusers_names = [name for name in SCHEDULES if name != "sine"]


@pytest.mark.parity
@pytest.mark.parametrize("name", diffusers_names)
def test_schedule_equals_diffusers(name):
    torch = pytest.importorskip("torch")
    from diffusers.optimization import get_polynomial_decay_schedule_with_warmup, get_scheduler

    base, warmup, total, cycles, power, end = 3e-4, 5, 40, 3, 2.0, 1e-6
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    if name == "polynomial":
        theirs = get_polynomial_decay_schedule_with_warmup(optimizer, warmup, total, end, power)
    else:
        theirs = get_scheduler(name, optimizer, None, warmup, total, cycles, power)
    ours = Schedule(name, base, warmup, total, cycles, power, end)
    for step in range(50):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15), step
        optimizer.step()
        theirs.step()


def test_sine_is_a_wave_between_the_two_rates():
    schedule = Schedule("sine", 1e-3, 10, 100, end=1e-5)
    assert schedule(5) == pytest.approx(1e-3)
    assert schedule(15) == pytest.approx(1e-5)
    assert schedule(0) == pytest.approx((1e-3 + 1e-5) / 2)


def test_unknown_schedule_and_impossible_end_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        Schedule("cosin", 1e-4, 0, 10)
    with pytest.raises(ConfigError, match="lr_end"):
        Schedule("polynomial", 1e-8, 0, 10, end=1e-7)


@pytest.mark.parity
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_adamw_trajectory_equals_torch(clip):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start = rng.standard_normal((7, 5)).astype(np.float32)
    target = rng.standard_normal((7, 5)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.8, 0.9), eps=1e-8, weight_decay=0.05)
    ours = {"w": mx.array(start)}
    group = Group(
        "lora",
        make_optimizer("adamw", 1e-2, betas=(0.8, 0.9), weight_decay=0.05),
        Schedule("constant", 1e-2, 0, 1),
        ["w"],
    )
    group.init(ours)
    for _ in range(60):
        reference.zero_grad()
        ((theirs - torch.from_numpy(target)) ** 2).sum().backward()
        gradient = {"w": 2 * (ours["w"] - mx.array(target))}
        if clip:
            torch.nn.utils.clip_grad_norm_([theirs], clip)
            gradient, _ = mx_clip(gradient, clip)
        reference.step()
        ours = group.updated(group.rows.pack(gradient), ours, mx.array(True))
    difference = np.abs(np.array(ours["w"]) - theirs.detach().numpy()).max()
    assert difference < 1e-5


def mx_clip(gradient, limit):
    import mlx.optimizers as optim

    return optim.clip_grad_norm(gradient, limit)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_lowers_a_simple_loss(name):
    target = mx.array(np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32))
    params = {"a.b.lora_a": mx.zeros((6, 4)), "a.b.m": mx.zeros((4,))}
    optimizer = make_optimizer(name, 1e-2)
    group = Group("lora", optimizer, Schedule("constant", 1e-2, 0, 1), list(params))
    group.init(params)

    def loss(p):
        return mx.sum((p["a.b.lora_a"] - target) ** 2) + mx.sum((p["a.b.m"] - 1) ** 2)

    first = loss(params).item()
    for _ in range(40):
        params = group.updated(group.rows.pack(mx.grad(loss)(params)), params, mx.array(True))
    assert loss(params).item() < 0.9 * first


def test_optimizer_config_wins():
    optimizer = make_optimizer("adamw", 1e-4, options={"betas": [0.8, 0.9], "weight_decay": 0.2})
    assert list(optimizer.betas) == [0.8, 0.9] and optimizer.weight_decay == 0.2
    assert list(make_optimizer("adamw", 1e-4, options={"beta2": 0.99}).betas) == [0.9, 0.99]
    assert list(make_optimizer("lion", 1e-4).betas) == [0.9, 0.99]  # its own defaults, not Adam's
    assert list(make_optimizer("lion", 1e-4, options={"beta1": 0.95}).betas) == [0.95, 0.99]
    assert make_optimizer("adamw", 1e-4).bias_correction
    assert not make_optimizer("adamw", 1e-4, options={"bias_correction": False}).bias_correction


def test_unknown_optimizer_names_the_list():
    with pytest.raises(ConfigError, match=", ".join(OPTIMIZERS)):
        make_optimizer("prodigy", 1e-4)
    with pytest.raises(ConfigError, match="optimizer_config"):
        make_optimizer("adamw", 1e-4, options={"beta": 1})


def test_the_table_serves_every_optimizer_and_setting_that_the_configuration_accepts():
    from acestep_mlx.config.run import LR_SCHEDULERS

    assert set(LR_SCHEDULERS) == set(SCHEDULES)
    values = {"betas": [0.9, 0.99], "eps": 1e-6, "nesterov": False, "ns_steps": 3, "momentum": 0.9}
    for name, one in OPTIMIZERS.items():
        for key in one.settings.split():
            value = [1e-30, 1e-3] if (name, key) == ("adafactor", "eps") else values.get(key, 0.5)
            make_optimizer(name, 1e-3, options={key: value})


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("adamw", {"betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.7, "bias_correction": True}),
        ("adam", {"betas": (0.5, 0.6), "eps": 1e-3, "bias_correction": True}),
        ("adafactor", {"weight_decay": 0.7, "relative_step": False, "scale_parameter": False}),
        ("lion", {"betas": (0.9, 0.99), "weight_decay": 0.7}),
        ("sgd", {"weight_decay": 0.7}),
        ("muon", {"weight_decay": 0.7}),
    ],
)
def test_each_optimizer_gets_the_settings_that_it_has(name: str, taken: dict[str, object]) -> None:
    made = make_optimizer(name, 1e-3, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.7)
    assert {key: getattr(made, key) for key in taken} == {
        key: list(value) if isinstance(getattr(made, key), list) else value for key, value in taken.items()
    }
    assert made.learning_rate.item() == pytest.approx(1e-3)


SETTINGS = {
    "adamw": {"betas": [0.5, 0.6], "bias_correction": False}, "adam": {"eps": 0.5}, "lion": {"beta1": 0.5},
    "sgd": {"momentum": 0.5}, "muon": {"ns_steps": 2}, "adafactor": {"clip_threshold": 3.0},
}  # fmt: skip


@pytest.mark.parametrize("other", OPTIMIZERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_settings_are_for_optimizers_of_their_own_kind(optimizer, other):
    """optimizer_config is the LoRA's; the lyrics embedder's optimizer takes it where it is the same one."""
    config = load_config({"optimizer": optimizer, "optimizer_config": SETTINGS[optimizer]})
    plain = load_config({"optimizer": optimizer})

    def made(config, name):
        one = build._optimizer(config, name, 1e-3)
        return {k: v for k, v in vars(one).items() if isinstance(v, (int, float, list, tuple, bool))}

    assert (made(config, other) == made(plain, other)) is (optimizer != other)


@pytest.mark.parametrize(("epochs", "batches", "accumulate", "steps"), [
    (1, 10, 1, 10), (1, 10, 4, 3), (3, 10, 4, 8), (2, 1, 4, 1), (5, 3, 2, 8),
])  # fmt: skip
def test_updates_of_so_many_epochs(epochs, batches, accumulate, steps):
    """Accumulation runs on across epochs; what is left at the end is an update too."""
    given = {"num_train_epochs": epochs, "gradient_accumulation_steps": accumulate}
    assert settings.total_steps(load_config(given), batches) == steps
