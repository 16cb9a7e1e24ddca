"""Every run option: accepted values, wrong types, out of range, aliases, overrides; how files are found."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import FrozenInstanceError, dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.optimizers import OPTIMIZERS, SETTINGS
from acestep_mlx.config.parsing import PARSERS
from acestep_mlx.config.parsing import parse as parse_option
from acestep_mlx.config.read_datasets import read_datasets
from acestep_mlx.config.read_run import examples, load_config
from acestep_mlx.config.run import ALIASES, EXAMPLES, GROUPS, OPTIONS, SUPPORTED, RunConfig
from acestep_mlx.errors import ConfigError

BACKENDS = [{"id": "songs", "instance_data_dir": "."}]


@dataclass(frozen=True)
class Case:
    """good: (given, resolved) pairs. bad: values that must be refused. with_: other keys a value needs."""

    good: list[tuple[Any, Any]]
    bad: list[Any]
    aliases: tuple[str, ...] = ()
    with_: dict[str, Any] = field(default_factory=dict)


def numbers(low: Any, high: Any, *outside: Any, whole: bool = False) -> dict[str, Any]:
    """A number's range ends are in, both as numbers and as text; beyond and other types are out."""
    good = [(low, low), (high, high), (str(high), high)]
    bad = [*outside, "many", True, [1], {"a": 1}, float("nan"), float("inf")]
    return {"good": good, "bad": [*bad, 1.5] if whole else bad}


def flag() -> dict[str, Any]:
    good = [(True, True), ("false", False), ("True", True), (1, True), ("0", False), ("no", False)]
    return {"good": good, "bad": ["maybe", 2, 0.5, [True]]}


def words(*values: str, bad: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {"good": [(value, value) for value in values], "bad": [*bad, "nonsense", 7, True, ["x"]]}


def text() -> dict[str, Any]:
    return {"good": [("some words", "some words"), (" ü ", " ü ")], "bad": [3, True, ["x"], {"a": "b"}]}


def path() -> dict[str, Any]:
    return {
        "good": [("some/where", "some/where"), (" a/b ", "a/b")],
        "bad": [3, True, ["x"], "a\0b", "x" * 300],
    }


CASES: dict[str, Case] = {
    # model
    "model_family": Case(**words("ace_step", bad=("flux", "sdxl"))),
    "model_type": Case(**words("lora", bad=("full",))),
    "model_flavour": Case(**words("base", "v15-base", "v15-turbo", "v15-xl-sft", bad=("v15", "v2-base"))),
    "pretrained_model_name_or_path": Case(**path()),
    "revision": Case(**text()),
    "output_dir": Case(**path()),
    # LoRA
    "lora_type": Case(**words("standard", bad=("lycoris", "loha"))),  # without lycoris_config, that is
    "lycoris_config": Case(
        [("lokr.json", "lokr.json"), ({"algo": "lokr"}, {"algo": "lokr"})], [3, True, ["x"]]
    ),
    "lora_rank": Case(**numbers(1, 1024, 0, -1, 1025, whole=True)),
    "lora_alpha": Case(**numbers(0.5, 65536, 0, -3)),
    "lora_dropout": Case(**numbers(0, 0.99, -0.1, 1)),
    "use_dora": Case(**flag()),
    "use_rslora": Case(**flag()),
    "lora_init_type": Case([("default", "default"), ("gaussian", "gaussian"), (True, "default")],
                           ["loftq", "pissa", "olora", "nonsense", 7, ["x"]]),
    "acestep_lora_target": Case(
        **words("attn_qkv", "attn_qkv+linear_qkv", "attn_qkv+linear_qkv+speech_embedder", bad=("all",))
    ),
    "peft_lora_target_modules": Case(
        [(["to_q", "to_k"], ["to_q", "to_k"]), ("to_q, to_k", ["to_q", "to_k"]), ('["to_q"]', ["to_q"])],
        [[], [1], "[broken", 4, {"a": 1}, [""]],
    ),
    "init_lora": Case(**path()),
    "lora_format": Case(**words("peft", "comfyui", "simpletuner", "mlx")),
    # lyrics embedder
    "lyrics_embedder_train": Case(**flag()),
    "lyrics_embedder_lr": Case(**numbers(0, 10, -1, 11)),
    "lyrics_embedder_optimizer": Case([("torch-adamw", "adamw"), ("lion", "lion")], ["prodigy!", 3, True]),
    "lyrics_embedder_lr_scheduler": Case(**words("cosine", "constant", bad=("exponential",))),
    # precision
    "mixed_precision": Case(
        [("bf16", "bf16"), ("fp16", "fp16"), ("no", "no"), ("FP16", "fp16"), (32, "no"),
         ("bf16-mixed", "bf16")],
        ["fp8", "int8", 8, True, ["bf16"]],
        aliases=("precision",),
    ),
    "base_model_precision": Case(
        [(v, v) for v in ("no_change", "int8-quanto", "int4-quanto", "int2-quanto", "int8-torchao", "nf4-bnb",
                          "uint4-sdnq", "int8dq-int4-torchao")],
        ["fp8-quanto", "fp8-torchao", "int16-sdnq", "int9-quanto", 8, True],
    ),
    # optimisation
    "optimizer": Case(
        [(v, v) for v in ("adamw", "adam", "adafactor", "lion", "sgd", "muon")]
        + [("adamw_bf16", "adamw"), ("bnb-adamw8bit", "adamw"), ("optimi-lion", "lion"), ("AdamW", "adamw")],
        ["prodigy", "adamw_schedulefree", "soap", "rmsprop", 1, True],
    ),
    "optimizer_config": Case(
        [({"eps": 1e-6}, {"eps": 1e-6}), ("eps=1e-6,weight_decay=0", {"eps": 1e-6, "weight_decay": 0}),
         ('{"betas": [0.8, 0.9]}', {"betas": [0.8, 0.9]})],
        ["eps", {"epsilon": 1}, {"eps": "small"}, {"momentum": 0.9}, [1], 3, "{broken", {"eps": []}],
    ),
    "adam_beta1": Case(**numbers(0, 0.99, -0.1, 1), aliases=("optimizer_beta1",)),
    "adam_beta2": Case(**numbers(0, 0.999, -0.1, 1), aliases=("optimizer_beta2",)),
    "adam_weight_decay": Case(**numbers(0, 10, -1, 11)),
    "adam_epsilon": Case(**numbers(1e-12, 1, 0, -1, 2)),
    "learning_rate": Case(**numbers(0, 10, -1e-4, 11)),
    "max_grad_norm": Case(**numbers(0, 100, -1), aliases=("gradient_clip_val",)),
    "grad_clip_method": Case(**words("norm", bad=("value",)), aliases=("gradient_clip_algorithm",)),
    "lr_scheduler": Case(
        **words("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
                "sine", bad=("exponential",))
    ),
    "lr_warmup_steps": Case(**numbers(0, 1000, -1, whole=True)),
    "lr_num_cycles": Case(**numbers(1, 50, 0, -1, whole=True)),
    "lr_power": Case(**numbers(0.1, 100, 0, 101)),
    "lr_end": Case(**numbers(0, 1, -1, 11)),
    # length
    "max_train_steps": Case(**numbers(1, 10**9, -1, whole=True), aliases=("max_steps",)),
    "num_train_epochs": Case(**numbers(1, 1000, -1, whole=True), aliases=("epochs",)),
    "train_batch_size": Case(**numbers(1, 64, 0, -1, whole=True)),
    "gradient_accumulation_steps": Case(
        **numbers(1, 64, 0, -1, whole=True), aliases=("accumulate_grad_batches",)
    ),
    "gradient_checkpointing": Case(**flag()),
    "seed": Case(**numbers(0, 2**32 - 1, -1, 2**32, whole=True)),
    # flow
    "flow_schedule_shift": Case(**numbers(0.1, 100, 0, -1, 101), aliases=("shift",)),
    "logit_mean": Case(**numbers(-10, 10, -11, 11)),
    "logit_std": Case(**numbers(0.01, 10, 0, 11)),
    "ace_step_timestep_draws": Case(**numbers(1, 2, 0, 3, whole=True)),
    "caption_dropout_probability": Case(**numbers(0, 1, -0.1, 1.1)),
    # scheduled sampling
    "scheduled_sampling_max_step_offset": Case(**numbers(0, 999, -1, 1000, whole=True)),
    "scheduled_sampling_strategy": Case(**words("uniform", "biased_early", "biased_late", bad=("late",))),
    "scheduled_sampling_probability": Case(**numbers(0, 1, -0.1, 1.1)),
    "scheduled_sampling_ramp_steps": Case(**numbers(0, 10**9, -1, whole=True)),
    "scheduled_sampling_prob_start": Case(**numbers(0, 1, -0.1, 1.1)),
    "scheduled_sampling_prob_end": Case(**numbers(0, 1, -0.1, 1.1)),
    "scheduled_sampling_start_step": Case(**numbers(0, 10**9, -1, whole=True)),
    "scheduled_sampling_ramp_shape": Case(**words("linear", "cosine", bad=("sine",))),
    "scheduled_sampling_stride": Case(**numbers(1, 999, 0, 1000, whole=True)),
    "scheduled_sampling_reflexflow": Case(**flag()),
    "scheduled_sampling_reflexflow_alpha": Case(**numbers(0, 1e6, -1)),
    "scheduled_sampling_reflexflow_beta1": Case(**numbers(0, 1e6, -0.1)),
    "scheduled_sampling_reflexflow_beta2": Case(**numbers(0, 1e6, -0.1)),
    "ace_step_ssl_loss_weight": Case(**numbers(0, 100, -0.1, 101)),
    "ace_step_ssl_encoders": Case(
        good=((["mert"], ["mert"]), ("mert, m-hubert", ["mert", "m-hubert"]), (None, None)), bad=([1], 3)
    ),
    "ace_step_ssl_mert": Case(**path()),
    "ace_step_ssl_mhubert": Case(**path()),
    # checkpoints
    "checkpoint_step_interval": Case(
        **numbers(0, 1000, -1, whole=True), aliases=("checkpointing_steps", "every_n_train_steps")
    ),
    "checkpoint_epoch_interval": Case(**numbers(1, 100, 0, -1, whole=True)),
    "checkpoint_minutes": Case(**numbers(0, 1440, -1)),
    "checkpoints_total_limit": Case(**numbers(0, 100, -1, whole=True), aliases=("save_total_limit",)),
    "resume_from_checkpoint": Case(
        [("latest", "latest"), ("out/checkpoint-5", "out/checkpoint-5"), ("none", None)], [3, True, ["x"]],
        aliases=("ckpt_path",),
    ),
    # validation
    "validation_prompt": Case(**text()),
    "validation_lyrics": Case(**text()),
    "validation_prompt_library": Case([("audio", "audio"), ("p.json", "p.json"), (True, True)], [],
                                      aliases=("user_prompt_library",)),
    "validation_audio_duration": Case(**numbers(1, 240, 0, 241)),
    "validation_guidance": Case(**numbers(0, 100, -1, 101)),
    "validation_num_inference_steps": Case(**numbers(1, 1000, 0, 1001, whole=True)),
    "validation_step_interval": Case(**numbers(0, 1000, -1, whole=True), aliases=("validation_steps",)),
    "validation_epoch_interval": Case(**numbers(1, 100, 0, whole=True)),
    "validation_seed": Case(**numbers(0, 2**32 - 1, -1, whole=True)),
    "validation_negative_prompt": Case(**text()),
    "validation_model": Case(**path()),
    "validation_on_startup": Case(**flag()),
    "validation_disable": Case(**flag()),
    "eval_steps_interval": Case(**numbers(0, 1000, -1, whole=True)),
    "num_eval_images": Case(**numbers(0, 64, -1, whole=True), aliases=("num_eval_samples",)),
    "eval_loss_disable": Case(**flag()),
    "num_validation_images": Case([(1, 1), ("1", 1)], [2, 4, 0, "two", True]),
    "evaluation_type": Case(**words("none", bad=("clip",))),
    # logging
    "report_to": Case(**words("none", "tensorboard", "wandb", bad=("comet_ml", "all"))),
    "logging_dir": Case(**path(), aliases=("logger_dir",)),
    "tracker_project_name": Case(**text()),
    "tracker_run_name": Case(**text(), aliases=("exp_name",)),
    # caches
    "vae_cache_disable": Case(**flag()),
    "vae_cache_ondemand": Case(**flag()),
    "cache_dir": Case(**path()),
    "cache_dir_text": Case(**path()),
    "cache_dir_vae": Case(**path()),
    "compress_disk_cache": Case(**flag()),
    # staying good
    "early_stopping_patience": Case(**numbers(0, 10**6, -1, 10**6 + 1, whole=True)),
    "use_ema": Case(**flag()),
    "ema_decay": Case(**numbers(0, 0.9999999, -0.1, 1)),
    "ema_update_interval": Case(**numbers(1, 10**6, 0, 10**6 + 1, whole=True)),
    "ema_validation": Case(**words("comparison", "ema_only", "none", bad=("both",))),
    # data
    "data_backend_config": Case([("data.json", "data.json"), (BACKENDS, BACKENDS)], [3, True, {"a": 1}]),
    "caption_strategy": Case(
        **words("textfile", "filename", "instanceprompt", "csv", "huggingface", bad=("parquet",))
    ),
    "instance_prompt": Case(**text()),
    "prepend_instance_prompt": Case(**flag()),
    "only_instance_prompt": Case(**flag()),
    "disable_multiline_split": Case(**flag()),
    "audio_max_duration_seconds": Case(**numbers(3, 240, 2, 241)),
    "audio_min_duration_seconds": Case(**numbers(0, 240, -1, 241)),
    "audio_duration_interval": Case(**numbers(0.1, 240, 0, 241)),
    "audio_truncation_mode": Case(**words("beginning", "end", "random", bad=("middle",))),
    # accepted for their own sake in SPEC's table
    "loss_type": Case(**words("l2", bad=("huber", "smooth_l1"))),
    "peft_lora_mode": Case(**words("standard", bad=("singlora",))),
    "timestep_bias_strategy": Case(**words("none", bad=("later",))),
}  # fmt: skip
IGNORED = [name for name, option in OPTIONS.items() if option.status == "ignored"]
REFUSED = [name for name, option in OPTIONS.items() if option.status == "refused"]
GOOD = [(name, given, want) for name, case in CASES.items() for given, want in case.good]
BAD = [(name, value) for name, case in CASES.items() for value in case.bad]


def one_line(error: pytest.ExceptionInfo[ConfigError]) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_the_table_covers_every_supported_option() -> None:
    assert set(CASES) == set(SUPPORTED)
    assert {a for case in CASES.values() for a in case.aliases} | {"rank", "num_workers"} == set(ALIASES)


@pytest.mark.parametrize(("name", "given", "want"), GOOD, ids=str)
def test_accepted(name: str, given: Any, want: Any) -> None:
    config = load_config({name: given})
    assert getattr(config, name) == want
    assert type(getattr(config, name)) is type(want) or isinstance(want, (int, float))
    assert config.origin(name) == ("given" if want is not None else "default")
    dashed = load_config({f"--{name.replace('_', '-')}": given})
    assert getattr(dashed, name) == want


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_refused_values_name_the_key(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        load_config({name: value})
    assert name in one_line(error)


@pytest.mark.parametrize(("name", "given", "want"), GOOD, ids=str)
def test_null_drops_a_key_and_overrides_win(name: str, given: Any, want: Any, tmp_path: Path) -> None:
    assert load_config({name: None}).origin(name) in ("default", f"as {_follows(name)}")
    other = next((g for g, w in CASES[name].good if w != want), None)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({name: given}))
    if other is None or (isinstance(other, list) and not all(isinstance(x, str) for x in other)):
        return
    spelled = other if isinstance(other, str) else json.dumps(other)
    config = load_config(file, [f"--{name}={spelled}"])
    expected = next(w for g, w in CASES[name].good if g == other and type(g) is type(other))
    if OPTIONS[name].kind != "any":
        assert getattr(config, name) == expected
    assert config.origin(name) == ("command line" if expected is not None else "default")


def _follows(name: str) -> str:
    return {
        "lora_alpha": "lora_rank",
        "lyrics_embedder_lr": "learning_rate",
        "lyrics_embedder_optimizer": "optimizer",
        "lyrics_embedder_lr_scheduler": "lr_scheduler",
        "validation_seed": "seed",
    }.get(name, "")


@pytest.mark.parametrize(("alias", "name"), sorted(ALIASES.items()))
def test_aliases(alias: str, name: str) -> None:
    if OPTIONS[name].status == "ignored":
        assert load_config({alias: 4}).ignored[0][0] == alias
        return
    given, want = CASES[name].good[0]
    assert getattr(load_config({alias: given}), name) == want
    assert getattr(load_config({}, [f"--{alias}", str(given)]), name) == want
    other = next((value for value, resolved in CASES[name].good if resolved != want), None)
    if other is not None:
        with pytest.raises(ConfigError, match="same option"):
            load_config({alias: given, name: other})
    load_config({alias: given, name: given})  # saying the same twice is no contradiction


@pytest.mark.parametrize("name", IGNORED)
def test_ignored_keys_are_said_with_their_reason(name: str) -> None:
    config = load_config({f"--{name}": next(iter(OPTIONS[name].choices), 1)})
    assert [key for key, _ in config.ignored] == [name]
    assert config.ignored[0][1] == OPTIONS[name].reason
    assert not load_config({name: None}).ignored


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("validation_guidance_real", 1.0),
        ("validation_no_cfg_until_timestep", 2),
        ("fuse_qkv_projections", True),
        ("enable_chunked_feed_forward", True),
        ("feed_forward_chunk_size", 4),
        ("validation_audio_only", True),
        ("allow_tf32", True),
        ("flux_lora_target", "all"),  # of other families: by the family's name in front
        ("sd3_t5_uncond_behaviour", "zero"),
        ("minimax_music_lm_adapter", "x"),
        ("sdnq_use_svd", True),
    ],
)
def test_keys_without_meaning_for_this_model_do_not_stop_a_run(name: str, value: Any) -> None:
    config = load_config({name: value})
    assert [key for key, _ in config.ignored] == [name] and config.ignored[0][1]
    assert load_config({}, [f"--{name}={value}"]).ignored == config.ignored


@pytest.mark.parametrize("name", ["flux_fast_schedule", "fluxx", "wan", "validation_guidance_reel"])
def test_refused_and_misspelt_keys_stay_errors(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_config({name: True})


@pytest.mark.parametrize("name", REFUSED)
def test_refused_keys(name: str) -> None:
    for off in (False, 0, None, "none", "false"):
        load_config({name: off})
    for on in (True, 0.5, "yes"):
        with pytest.raises(ConfigError) as error:
            load_config({name: on})
        message = one_line(error)
        assert name in message and OPTIONS[name].reason in message


# ── the configuration as an object ───────────────────────────────────────────────────────────────────
def test_every_option_is_a_field_with_a_type_and_nothing_else_is_one() -> None:
    config = load_config({})
    kinds = {"bool": bool, "int": int, "float": float, "str": str, "path": str, "list": list, "mapping": dict}
    for name in SUPPORTED:
        option, value = OPTIONS[name], getattr(config, name)
        assert value is None or isinstance(value, kinds.get(option.kind, object)), name
    assert {name for name in SUPPORTED if OPTIONS[name].kind == "any"} == {
        "data_backend_config", "validation_prompt_library", "lycoris_config",
    }  # fmt: skip
    with pytest.raises(AttributeError):
        config.lora_ranc  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(FrozenInstanceError):
        config.lora_rank = 4  # type: ignore[misc]


def test_every_group_of_options_is_part_of_the_configuration() -> None:
    grouped = {option.name for options in GROUPS.values() for option in options}
    assert grouped == {f.name for f in fields(RunConfig) if "option" in f.metadata}
    assert grouped >= set(SUPPORTED)


def test_each_value_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    for kind, parse in list(PARSERS.items()):

        def watched(option: Any, value: Any, name: str, parse: Any = parse) -> Any:
            parsed.append((name, value))
            return parse(option, value, name)

        monkeypatch.setitem(PARSERS, kind, watched)
    load_config({"rank": "8", "output_dir": "o"}, ["--seed=3"])
    assert parsed == [("rank", "8"), ("output_dir", "o"), ("seed", "3")]
    read_datasets(load_config({"data_backend_config": [{"id": "s", "instance_data_dir": ".", "repeats": 2}]}))
    assert [value for name, value in parsed if name == "repeats"] == [2]


# ── rules between options ────────────────────────────────────────────────────────────────────────────
def test_unset_options_follow_others() -> None:
    config = load_config(
        {"lora_rank": 8, "learning_rate": 2e-5, "optimizer": "lion", "lr_scheduler": "sine", "seed": 9}
    )
    assert (config.lora_alpha, config.lyrics_embedder_lr) == (8.0, 2e-5)
    assert (config.lyrics_embedder_optimizer, config.lyrics_embedder_lr_scheduler) == ("lion", "sine")
    assert config.validation_seed == 9 and config.origin("validation_seed") == "as seed"


def test_length() -> None:
    config = load_config({})
    assert (config.max_train_steps, config.num_train_epochs) == (0, 1)
    assert load_config({"max_train_steps": 9}).num_train_epochs == 0
    assert load_config({"epochs": -1, "max_steps": 5}).max_train_steps == 5
    with pytest.raises(ConfigError, match="both above 0"):
        load_config({"max_train_steps": 5, "num_train_epochs": 5})
    with pytest.raises(ConfigError, match="both 0"):
        load_config({"max_train_steps": 0, "num_train_epochs": 0})


def test_optimizer_settings_belong_to_their_optimizer() -> None:
    assert load_config({"optimizer": "sgd", "optimizer_config": "momentum=0.9"}).optimizer_config == {
        "momentum": 0.9
    }
    with pytest.raises(ConfigError, match="did you mean 'weight_decay'"):
        load_config({"optimizer_config": {"weight_deca": 0}})


@pytest.mark.parametrize(
    ("optimizer", "key", "value", "wanted"),
    [
        ("adamw", "betas", [0.9], "betas must have 2 entries"),
        ("lion", "betas", [0.9, 0.99, 0.999], "betas must have 2 entries"),
        ("adamw", "betas", 0.9, "betas must be a list"),
        ("adam", "betas", [0.9, 2], "betas[1] must be between 0 and"),
        ("adam", "beta1", 1, "beta1 must be between"),
        ("adamw", "eps", 0, "eps must be between"),
        ("adamw", "eps", [1e-8, 1e-8], "eps must be a number"),
        ("adamw", "weight_decay", -1, "weight_decay must be between"),
        ("adamw", "bias_correction", 3, "bias_correction must be true or false"),
        ("adafactor", "eps", 1e-30, "eps must be a list"),
        ("adafactor", "decay_rate", 2, "decay_rate must be between"),
        ("sgd", "momentum", 1.5, "momentum must be between"),
        ("sgd", "nesterov", "yes", "nesterov must be true or false"),
        ("muon", "ns_steps", 2.5, "ns_steps must be a whole number"),
    ],
)
def test_each_optimizer_setting_is_checked_before_the_run(
    optimizer: str, key: str, value: Any, wanted: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"optimizer_config: {wanted}")):
        load_config({"optimizer": optimizer, "optimizer_config": {key: value}})


def test_every_optimizer_setting_has_its_check() -> None:
    assert {key for one in OPTIMIZERS.values() for key in one.settings.split()} == set(SETTINGS)


@pytest.mark.parametrize("settings", ["eps=1e-6,eps=1e-8", '{"eps": 1e-6, "eps": 1e-8}'])
def test_an_optimizer_setting_given_twice(settings: str) -> None:
    with pytest.raises(ConfigError, match="optimizer_config"):
        load_config({"optimizer_config": settings})


def test_a_long_unknown_key_is_not_repeated_in_full() -> None:
    with pytest.raises(ConfigError, match="unknown option 'xxx") as error:
        load_config({"x" * 5000: 1})
    assert len(one_line(error)) < 200


def test_a_number_of_thousands_of_digits_is_said_in_our_own_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"lora_rank": ' + "9" * 5000 + "}")
    with pytest.raises(ConfigError, match="a number of 5000 digits") as error:
        load_config(tmp_path / "config.json")
    assert "sys." not in one_line(error)


@pytest.mark.parametrize("path", ["{nope}/vae", "cache/{model}/{id}", "/tmp/{ID}"])
def test_a_name_that_is_not_filled_in_is_no_folder(path: str) -> None:
    with pytest.raises(ConfigError, match=r"is not filled in here, only \{model_family\} and \{id\} can be"):
        load_config({}).resolve(path, id="songs")


def test_an_id_may_stay_where_no_data_set_is_meant() -> None:
    assert load_config({}).resolve("/no/cache/{id}") == Path("/no/cache/{id}")


def test_a_folder_with_braces_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "{mine}").mkdir()
    assert load_config({}).resolve(tmp_path / "{mine}") == tmp_path / "{mine}"


def test_quantization() -> None:
    assert load_config({}).quantization is None
    for spelling, bits in (("int8-quanto", 8), ("int4-torchao", 4), ("nf4-bnb", 4), ("uint2-sdnq", 2)):
        quantization = load_config({"base_model_precision": spelling}).quantization
        assert quantization is not None and quantization["bits"] == bits


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("lora_rnk", "lora_rank"),
        ("learning-rat", "learning_rate"),
        ("--optimzer", "optimizer"),
        ("checkpoint_steps", "checkpoint"),
    ],
)
def test_unknown_keys_name_the_nearest(key: str, guess: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown option.*{guess}"):
        load_config({key: 1})
    with pytest.raises(ConfigError, match="command line"):
        load_config({}, [f"--{key.lstrip('-')}=1"])


def test_contradicting_spellings_are_refused() -> None:
    with pytest.raises(ConfigError, match="same option"):
        load_config({"lora_rank": 4, "--lora-rank": 8})


# ── files ────────────────────────────────────────────────────────────────────────────────────────────
def test_spec_configuration_word_for_word(tmp_path: Path) -> None:
    text = """{"model_family": "ace_step", "model_type": "lora", "model_flavour": "base",
 "pretrained_model_name_or_path": "ACE-Step/ACE-Step-v1-3.5B", "resolution": 0,
 "mixed_precision": "bf16", "base_model_precision": "int8-quanto",
 "data_backend_config": "config/acestep-training-demo/multidatabackend.json"}"""
    (tmp_path / "config.json").write_text(text)
    config = load_config(tmp_path)
    assert config.quantization == {"bits": 8, "group_size": 64, "mode": "affine"}
    assert [key for key, _ in config.ignored] == ["resolution"]


def test_a_config_of_simpletuner_runs_unchanged() -> None:
    """Keys of SimpleTuner's own ACE-Step example (its data file is read elsewhere)."""
    config = load_config(
        {"mixed_precision": "bf16", "checkpoint_step_interval": 50, "compress_disk_cache": True,
         "data_backend_config": "config/examples/acestep-audio.json", "hub_model_id": "x",
         "learning_rate": 0.00005, "lora_rank": 128, "lr_scheduler": "cosine", "lr_warmup_steps": 50,
         "max_grad_norm": 1.0, "max_train_steps": 200, "model_family": "ace_step", "model_flavour": "base",
         "model_type": "lora", "num_train_epochs": 0, "optimizer": "adamw_bf16", "output_dir": "o",
         "report_to": "none", "resolution": 512, "seed": 42, "tracker_project_name": "lora-training",
         "tracker_run_name": "example-training-run", "train_batch_size": 1, "vae_batch_size": 1,
         "vae_enable_tiling": True, "vae_enable_slicing": True, "vae_cache_disable": True,
         "validation_disable_unconditional": True, "validation_guidance": 3, "validation_lyrics": "la",
         "validation_prompt": "x", "validation_steps": 50, "validation_num_inference_steps": 80,
         "validation_seed": 42}
    )  # fmt: skip
    assert config.checkpoint_step_interval == 50 and config.optimizer == "adamw"
    assert {"hub_model_id", "vae_enable_tiling", "resolution"} <= {key for key, _ in config.ignored}


def test_dashed_keys_and_text_values() -> None:
    config = load_config({"--max_train_steps": "1e3", "--push_to_hub": "true", "--learning_rate": "1e-4",
                          "--gradient_checkpointing": "false", "--validation_guidance": 3.0})  # fmt: skip
    assert config.max_train_steps == 1000 and config.gradient_checkpointing is False


def test_env_and_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (Path("mine"), Path("config/other")):
        place.mkdir(parents=True)
        (place / "config.json").write_text('{"lora_rank": 5}')
    assert load_config("env=mine").lora_rank == 5
    assert load_config("env=other").folder == tmp_path / "config" / "other"
    assert load_config("env=config/other").lora_rank == 5
    with pytest.raises(ConfigError, match="looked for"):
        load_config("env=absent")
    with pytest.raises(ConfigError, match="my-songs"):
        load_config("example=absent")
    with pytest.raises(ConfigError, match="needs a name"):
        load_config("example=")


@pytest.mark.parametrize("name", examples())
def test_examples_are_valid(name: str) -> None:
    config = load_config(f"example={name}")
    assert config.resolve(config.data_backend_config).parent == EXAMPLES / name
    assert not config.ignored
    assert len(read_datasets(config).audio) == 1


def test_data_files_of_simpletuners_examples_are_found() -> None:
    config = load_config({"data_backend_config": "config/examples/acestep-audio.json"})
    assert read_datasets(config).audio[0].dataset_name == "Yi3852/ACEStep-Songs"


def test_paths_may_be_path_objects(tmp_path: Path) -> None:
    config = load_config({"output_dir": tmp_path, "data_backend_config": tmp_path / "d.json"})
    assert (config.output_path, config.data_backend_config) == (tmp_path, str(tmp_path / "d.json"))


def test_paths_from_the_working_directory_then_from_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    (home / "config.json").write_text("{}")
    (home / "songs").mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config(home / "config.json")
    assert config.resolve("songs") == home / "songs"
    assert config.resolve("new") == elsewhere / "new"
    (elsewhere / "songs").mkdir()
    assert config.resolve("songs") == elsewhere / "songs"
    assert config.resolve("c/{model_family}/{id}", id="x") == elsewhere / "c" / "ace_step" / "x"
    assert config.data_backend_config == str(home / "multidatabackend.json")


def test_overrides() -> None:
    config = load_config(
        {"lora_rank": 4},
        [
            "--lora_rank=8",
            "--use_dora",
            "--learning-rate",
            "1e-5",
            "seed=7",
            "--logit_mean",
            "-0.5",
            "--lora_rank=9",
        ],
    )
    assert (config.lora_rank, config.use_dora, config.learning_rate) == (9, True, 1e-5)
    assert (config.seed, config.logit_mean) == (7, -0.5)
    assert load_config({"seed": 3}, ["--seed=null"]).seed == 42
    for wrong in (["--lora_rank"], ["stray"], ["--"], ["--seed", "--use_dora"], ["=3"]):
        with pytest.raises(ConfigError):
            load_config({}, wrong)


def test_a_resolved_configuration_loads_again() -> None:
    config = load_config({"lora_rank": 8, "peft_lora_target_modules": "to_q,to_k", "max_train_steps": 7})
    again = load_config(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()


MALFORMED = {
    "not JSON": "{lora_rank: 4}",
    "a comma too many": '{"lora_rank": 4,}',
    "cut off": '{"lora_rank": ',
    "empty": "",
    "a list": "[1, 2]",
    "a number": "3",
    "null": "null",
    "NaN": '{"learning_rate": NaN}',
    "Infinity": '{"learning_rate": Infinity}',
    "the same key twice": '{"seed": 1, "seed": 2}',
    "deep": "[" * 100_000,
    "huge integer": '{"seed": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_files_are_one_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        load_config(file)
    assert "config.json" in one_line(error)


def test_encodings_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes('{"validation_prompt": "Frühling"}'.encode("utf-8-sig"))
    assert load_config(file).validation_prompt == "Frühling"
    file.write_bytes('{"validation_prompt": "Frühling"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(file)
    with pytest.raises(ConfigError, match="no configuration"):
        load_config(tmp_path / "absent.json")


def test_the_reference_page_is_up_to_date() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    page, markdown = docs / "configuration.md", runpy.run_path(str(docs / "reference.py"))["markdown"]
    assert page.read_text(encoding="utf-8") == markdown(), "python docs/reference.py > docs/configuration.md"
    assert all(f"`{name}`" in markdown() for name in OPTIONS)


@pytest.mark.parametrize("text", ["1e23", "100000000000000000000000", "1e+9999999"])
def test_numbers_in_errors_are_as_they_were_written(text: str) -> None:
    for key in ("lora_rank", "learning_rate"):
        with pytest.raises(ConfigError) as caught:
            load_config({}, [f"--{key}={text}"])
        assert f"got {text} (command line)" in str(caught.value), caught.value
    with pytest.raises(ConfigError, match=r"lora_rank must be a whole number, got 2\.50000001 \("):
        load_config({"lora_rank": 2.50000001})
    with pytest.raises(ConfigError, match="learning_rate is far too large: 1e305"):
        load_config({}, ["--learning_rate=1e305"])


@pytest.mark.parametrize(
    "override",
    [
        "peft_lora_target_modules=" + "[" * 100_000,
        "peft_lora_target_modules=[" + "9" * 5000 + "]",
        "optimizer_config=eps=" + "[" * 100_000,
        "optimizer_config=" + '{"eps":' * 100_000,
        "optimizer_config=eps=" + "9" * 5000,
        "optimizer_config=eps=1," + "eps=1," * 10_000,
        "optimizer=" + "adam" * 10_000,
        "lora_rank=" + "9" * 5000,
        "lora_rank=" + "x" * 5000,
        "use_dora=" + "true" * 5000,
    ],
    ids=lambda text: text[:40],
)
def test_endless_values_are_refused_in_a_short_line(override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0]) as error:
        load_config({}, [f"--{override}"])
    assert len(one_line(error)) < 250


def test_no_configuration_named() -> None:
    with pytest.raises(ConfigError, match="no configuration is named"):
        load_config(" ")


@pytest.mark.parametrize("name", ["lyrics_embedder_train", "acestep_lora_target", "peft_lora_target_modules"])
def test_help_says_when_lyrics_are_encoded_once(name: str) -> None:
    assert "lyrics are encoded once, not in every step" in OPTIONS[name].help


@pytest.mark.parametrize("written", [-1, "-1"])
@pytest.mark.parametrize("place", ["file", "command line"])
def test_epochs_without_end_as_the_original_trainer_writes_them(written: Any, place: str) -> None:
    given = {"max_steps": 5}
    if place == "file":
        config = load_config({**given, "epochs": written})
    else:
        config = load_config(given, [f"--epochs={written}"])
        assert load_config(given, ["epochs=-1"]).num_train_epochs == 0
        assert load_config(given, ["--epochs", "-1"]).num_train_epochs == 0
    assert (config.max_train_steps, config.num_train_epochs) == (5, 0)


@pytest.mark.parametrize(
    "key", ["validation_prompt", "validation_lyrics", "validation_negative_prompt", "instance_prompt", 
            "tracker_run_name", "output_dir", "peft_lora_target_modules", "optimizer", "revision"]
)  # fmt: skip
def test_no_text_holds_a_nul(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} must be text without NUL characters"):
        load_config({key: "a\0b"})


@pytest.mark.parametrize("written", [0, 0.0, "0", "0.0", " 0.0 ", False, "false", "no", "none", None, ""])
def test_a_refused_option_may_be_switched_off_in_any_way(written: Any) -> None:
    load_config({"input_perturbation": written})
    with pytest.raises(ConfigError, match="input_perturbation"):
        load_config({"input_perturbation": "0.1"})


@pytest.mark.parametrize("token", ["hf_AbCdEfGhIjKlMnOpQrStUvWx", "https://me:pass-word@example.org/songs"])
def test_no_token_is_in_what_reports_and_checkpoints_get(token: str) -> None:
    """Wherever it stands; the run itself has it."""
    texts = [
        name for name in SUPPORTED if OPTIONS[name].kind in ("str", "path") and not OPTIONS[name].choices
    ]
    backends = [{"id": "a", "dataset_name": token, "more": {"deep": [token]}}]
    given = dict.fromkeys(texts, token) | {"data_backend_config": backends}
    config = load_config(given)
    assert config.data_backend_config == backends and config.tracker_run_name == token
    told = json.dumps(config.to_dict())
    assert "hf_" not in told and "pass-word" not in told and "deep" in told


@pytest.mark.parametrize("text", ["none", "null", "None"])
def test_no_value_is_meant_only_where_an_option_may_have_none(text: str) -> None:
    """A run may be called so; elsewhere it takes the value back."""
    config = load_config({"tracker_project_name": text, "logging_dir": text, "validation_prompt": text})
    assert (config.tracker_project_name, config.logging_dir) == (text, text)
    assert config.validation_prompt is None
    assert load_config({"init_lora": "a"}, [f"--init_lora={text}"]).init_lora is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3:30", 210.0),
        (" 1:05 ", 65.0),
        ("0:45.5", 45.5),
        ("90s", 90.0),
        ("90", 90.0),
        (90, 90.0),
        ("02:00", 120.0),
    ],
)
def test_lengths_as_a_clock_shows_them(text: Any, seconds: float) -> None:
    """In every key that is a number of seconds, of a run and of a data set."""
    from acestep_mlx.config.datasets import TABLES

    options = [*OPTIONS.values(), *TABLES["audio"].values()]
    named = [one for one in options if one.unit == "s"]
    assert {one.name for one in named} >= {
        "validation_audio_duration",
        "max_duration_seconds",
        "crop_seconds",
    }
    for option in named:
        assert parse_option(option, text, option.name, "here") == seconds
    assert load_config({"validation_audio_duration": "1:10"}).validation_audio_duration == 70.0
    assert load_config({}, ["--audio_max_duration_seconds=2:30"]).audio_max_duration_seconds == 150.0


@pytest.mark.parametrize(
    "text",
    [
        "3:75",
        "3:5",
        ":30",
        "3:",
        "-3:30",
        "1:2:3:4",
        "1:75:00",
        "3:30 min",
        "3m",
        "١:٣٠",
        "",
        "ten",
        "1:00:00",
    ],
)
def test_a_length_that_is_none_costs_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config({"validation_audio_duration": text})
    said = str(error.value)
    assert said.startswith("validation_audio_duration must be ") and "\n" not in said
    assert ("seconds, or a time like 3:30" in said or "between 1 and" in said) and repr(text)[1:-1] in said


def test_only_seconds_are_written_with_a_colon() -> None:
    for key in ("learning_rate", "checkpoint_minutes", "max_train_steps"):
        with pytest.raises(ConfigError, match=f"{key} must be a"):
            load_config({key: "1:30"})


@pytest.mark.parametrize(
    ("key", "value", "needs", "on"),
    [
        ("ema_decay", 0.9, "use_ema=true", {"use_ema": True}),
        ("ema_validation", "none", "use_ema=true", {"use_ema": True}),
        ("lyrics_embedder_lr", 1e-3, "lyrics_embedder_train=true", {"lyrics_embedder_train": True}),
        ("ace_step_ssl_encoders", "mert", "ace_step_ssl_loss_weight above 0", None),
    ],
)
def test_what_needs_another_option_says_so_without_it(
    key: str, value: Any, needs: str, on: dict[str, Any] | None
) -> None:
    assert (key, f"it counts with {needs} only") in load_config({key: value}).ignored
    assert not load_config({}).ignored
    if on is not None:
        assert not load_config({key: value, **on}).ignored


def test_a_range_says_where_it_really_ends() -> None:
    with pytest.raises(ConfigError, match=r"ema_decay must be between 0 and 0\.9999999, got 1 "):
        load_config({"use_ema": True, "ema_decay": 1})
