"""Configurations of ACE-Step 1.5: SimpleTuner's for it run unchanged, and what is another model's is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.read_run import load_config
from acestep_mlx.convert.converter import convert
from acestep_mlx.errors import AceStepError, ConfigError
from acestep_mlx.families import of_flavour
from acestep_mlx.families.v15.lora import ATTENTION, MLP
from acestep_mlx.families.v15.miniature import write_checkpoint
from acestep_mlx.training.memory import released_sizes
from acestep_mlx.training.preflight import preflight
from acestep_mlx.training.settings import lora_spec

from ..training import runs

V1_DEFAULT = "attn_qkv+linear_qkv"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """MLX folders of miniatures by flavour."""
    root, found = tmp_path_factory.mktemp("flavours"), {}
    for flavour in ("base", "turbo"):
        checkpoint = write_checkpoint(root / f"{flavour}-checkpoint", flavour=flavour)
        found[f"v15-{flavour}"] = convert(checkpoint, root / flavour).path
    return found


def load(flavour: str = "v15-base", **options: Any) -> Any:
    return load_config({"model_flavour": flavour, **options})


def test_what_simpletuner_users_write_for_it_is_accepted() -> None:
    config = load(
        model_family="ace_step", trust_remote_code=True, tokenizer_max_length=77, flow_schedule_shift=3.0,
        qwen_text_encoder_model_name_or_path="Qwen/Qwen3-Embedding-0.6B", acestep_lora_target=V1_DEFAULT,
        base_model_precision="int8-quanto",
    )  # fmt: skip
    reasons = dict(config.ignored)
    assert reasons["trust_remote_code"] == "nothing that comes with a model is run"
    assert "text encoder comes with the model" in reasons["qwen_text_encoder_model_name_or_path"]
    assert "as far as the model was trained" in reasons["tokenizer_max_length"]
    assert reasons["flow_schedule_shift"] == "ACE-Step 1.5 draws its timesteps without a shift"
    assert reasons["acestep_lora_target"].startswith(
        f"{V1_DEFAULT} is ACE-Step v1's default; ACE-Step 1.5 gets"
    )
    assert "attn_qkv+mlp (q_proj" in reasons["acestep_lora_target"] and len(reasons) == 5
    assert lora_spec(config).targets == ATTENTION


def test_its_own_defaults() -> None:
    config = load("v15-sft")
    assert config.pretrained_model_name_or_path == "ACE-Step/acestep-v15-sft"
    assert config.acestep_lora_target == "attn_qkv" and config.audio_max_duration_seconds == 600
    assert config.ace_step_timestep_draws == 2 and not config.ignored
    assert load_config({}).audio_max_duration_seconds == 240
    assert lora_spec(load(acestep_lora_target="attn_qkv+mlp")).targets == (*ATTENTION, *MLP)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"acestep_lora_target": f"{V1_DEFAULT}+speech_embedder"},
            "is not for ACE-Step 1.5; use one of attn",
        ),
        ({"lyrics_embedder_train": True}, r"lyrics_embedder_train=true .* nothing of it is trained; set it"),
        ({"ace_step_timestep_draws": 3}, "ace_step_timestep_draws must be between 1 and 2, got 3"),
        (
            {"audio_max_duration_seconds": 700},
            "audio_max_duration_seconds must be between 3 and 600, got 700",
        ),
        ({"model_flavour": "v15-xl"}, "model_flavour must be one of base, v15-base"),
        ({"model_flavour": "base", "acestep_lora_target": "attn_qkv+mlp"}, "is not for ACE-Step v1; use one"),
        ({"model_flavour": "base", "audio_max_duration_seconds": 600}, "must be between 3 and 240, got 600"),
        ({"model_flavour": "base", "validation_audio_duration": 300}, "must be between 1 and 240, got 300"),
    ],
    ids=str,
)
def test_what_is_another_model_s_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        lora_spec(load_config({"model_flavour": "v15-base", **given}))
    assert "\n" not in str(error.value)


def test_options_of_other_models_are_no_part_of_a_run_s_identity() -> None:
    one, two = load(flow_schedule_shift=1.0), load()
    assert one.to_dict() == two.to_dict() and "lyrics_embedder_lr" not in one.to_dict()
    assert "ace_step_timestep_draws" not in load_config({"ace_step_timestep_draws": 1}).to_dict(), "as in 0.2"
    assert dict(load_config({"ace_step_timestep_draws": 1}).ignored)["ace_step_timestep_draws"].startswith(
        "only ACE-Step 1.5"
    )


def test_a_model_on_the_hub_is_taken_for_the_released_one() -> None:
    for flavour, blocks, width in (("v15-turbo", 24, 2048), ("v15-xl-sft", 32, 2560)):
        sizes = released_sizes(load(flavour))
        assert (sizes.blocks, sizes.hidden_size) == (blocks, width)
        assert flavour in of_flavour(flavour).flavours(sizes) or not sizes.is_turbo


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flavour", "model", "message"),
    [
        ("v15-base", "v15-turbo", r"model_flavour=v15-base, and .* is v15-turbo; set model_flavour=v15-t"),
        ("v15-turbo", "v15-base", r"model_flavour=v15-turbo, and .* is v15-base; set"),
        ("v15-xl-base", "v15-base", r"model_flavour=v15-xl-base, and .* is v15-base; set"),
        ("base", "v15-base", r"model_flavour=base is ACE-Step v1, and .* is ACE-Step 1.5; set model_fl"),
        ("v15-base", "v1", r"model_flavour=v15-base is ACE-Step 1.5, and .* is ACE-Step v1; set"),
        ("v15-base", "ACE-Step/Ace-Step1.5", "v15-base, and ACE-Step/Ace-Step1.5 is v15-turbo; set .* or"),
        ("v15-base", "ACE-Step/ACE-Step-v1-3.5B", "and ACE-Step/ACE-Step-v1-3.5B is base; set model_fl"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["MLX folder", "checkpoint"])
def test_a_model_of_another_flavour_is_one_line(
    flavour: str, model: str, message: str, form: str, folders: dict[str, Path], tiny_model: Path,
    tiny_checkpoint: Path, tmp_path: Path,
) -> None:  # fmt: skip
    path = {**folders, "v1": tiny_model}.get(model, Path(model))
    if form == "checkpoint":
        path = tiny_checkpoint if model == "v1" else path.with_name(f"{path.name}-checkpoint")
        if "/" in model:
            return
    given = runs.configuration(tmp_path, path, "run", model_flavour=flavour)
    with pytest.raises(AceStepError, match=message) as error:
        preflight(load_config(given), lambda text, level: None)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_training_turbo_is_advised_against(folders: dict[str, Path], tmp_path: Path) -> None:
    for flavour, said in (("v15-turbo", 1), ("v15-base", 0)):
        given = runs.configuration(tmp_path, folders[flavour], "run", model_flavour=flavour)
        lines: list[str] = []
        preflight(load_config(given), lambda text, level, lines=lines: lines.append(text))
        advice = [line for line in lines if "train on model_flavour=v15-base, and hear the LoRA" in line]
        assert len(advice) == said
