"""`lycoris_config`: every key that it may have reaches its place, is said to have none, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from acestep_mlx.config.lycoris import FACTORS, OVERRIDE, PRESET, TOP, read_lycoris
from acestep_mlx.config.read_run import load_config
from acestep_mlx.config.run import LORA_ALONE
from acestep_mlx.errors import ConfigError
from acestep_mlx.lora.lokr import LoKrSpec
from acestep_mlx.lora.surgery import lokr_plans
from acestep_mlx.training.settings import lora_spec

from ..lora.standin import make

#: key → (value, what a layer of 64×64 is made of, where that is otherwise than by default); of `Factors`
LAYER: dict[str, tuple[Any, dict[str, Any]]] = {
    "dim": (3, {"dim": 3, "whole": (True, False)}),
    "alpha": (2.5, {"alpha": 2.5}),
    "factor": (2, {"w1": (2, 2), "w2": (32, 32), "whole": (True, False)}),
    "full_matrix": (True, {"whole": (True, True)}),
    "decompose_both": (True, {"whole": (False, False)}),
    "use_scalar": (True, {"scalar": True}),
    "unbalanced_factorization": (True, {"w1": (16, 4), "w2": (4, 16)}),
}
BASE = {"algo": "lokr", "linear_dim": 1, "factor": 4}
USUAL = {"dim": 1, "alpha": 1.0, "w1": (4, 4), "w2": (16, 16), "whole": (True, False), "scalar": False}
NAMES = {"dim": "linear_dim", "alpha": "linear_alpha"}


def plans(content: dict[str, Any], *targets: str) -> dict[str, Any]:
    return lokr_plans(make(), LoKrSpec(read_lycoris(content, "here"), targets, ""))


def fields_of(plan: Any) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in USUAL}


def test_the_tables_are_walked_whole() -> None:
    def supported(table: Any) -> set[str]:
        return {name for name, option in table.items() if option.status == "supported"}

    assert set(LAYER) == set(FACTORS)
    assert supported(OVERRIDE) == {*LAYER, "algo"}
    own = {"algo", "multiplier", "apply_preset"}
    assert supported(TOP) == {NAMES.get(name, name) for name in LAYER} | own
    assert supported(PRESET) == {
        "target_module", "target_name", "module_algo_map", "name_algo_map", "exclude_name", "use_fnmatch",
    }  # fmt: skip


@pytest.mark.parametrize("name", LAYER)
def test_what_a_layer_is_made_of(name: str) -> None:
    """For all layers, for those of a class and for one alone."""
    value, other = LAYER[name]
    extra = {"unbalanced_factorization": {}, "decompose_both": {}}.get(name, {})
    general = plans({**BASE, NAMES.get(name, name): value, **extra}, "to_q")
    wanted = USUAL | {k: v for k, v in other.items()}
    if name == "dim":
        wanted["whole"] = (True, False)
    assert [fields_of(plan) for plan in general.values()] == [wanted] * 4
    ones = {
        "target_name": [r"transformer_blocks\.\d\.cross_attn\.to_q"],
        "name_algo_map": {r"transformer_blocks\.1\.cross_attn\.to_q": {name: value}},
    }
    found = plans({**BASE, "apply_preset": ones})
    assert {path: fields_of(plan) == wanted for path, plan in found.items()} == {
        "transformer_blocks.0.cross_attn.to_q": False, "transformer_blocks.1.cross_attn.to_q": True,
    }  # fmt: skip
    by_class = {"target_module": ["Attention", "GLUMBConv"], "module_algo_map": {"Attention": {name: value}}}
    found = plans({**BASE, "apply_preset": by_class})
    assert all(fields_of(plan) == wanted for path, plan in found.items() if "attn" in path)
    assert {plan.w1 for path, plan in found.items() if ".ff." in path} == {(4, 4)} and len(found) == 20


def test_which_layers() -> None:
    def paths(*targets: str, **preset: Any) -> set[str]:
        return set(plans({**BASE, "apply_preset": preset}, *targets))

    assert paths("attn.to_q") == {f"transformer_blocks.{i}.attn.to_q" for i in range(2)}  # the run's own
    attention = paths("x", target_module=["Attention"])
    assert len(attention) == 16 and all("attn" in path for path in attention)
    assert paths(module_algo_map={"Attention": {}}) == attention
    ends = {p for p in attention if p.endswith("to_k")}
    assert paths(target_name=[r".*\.to_k"]) == ends == paths(name_algo_map={r".*\.to_k": {}})
    assert paths(target_name=["*.to_k"], use_fnmatch=True) == ends
    assert paths(target_module=["Attention"], exclude_name=[r".*\.to_k"]) == attention - ends
    first = {p for p in attention if p.startswith("transformer_blocks.0")}
    assert paths(target_module=["Attention"], exclude_name=[r"transformer_blocks\.1$"]) == first
    assert len(paths(target_module=["Linear"])) > 25
    with pytest.raises(ConfigError, match=r"no linear layer of this model is in FeedForward; .*Attention"):
        paths(target_module=["FeedForward"])
    spec = LoKrSpec(
        read_lycoris({**BASE, "apply_preset": {"target_module": ["Attention", "FeedForward"]}}, "x"), (), ""
    )
    assert [line.split()[1] for line in spec.unmatched(make(), sorted(attention))] == ["FeedForward"]


BAD: list[tuple[dict[str, Any], str]] = [
    *(({"algo": algo}, rf"algo={algo} is not supported: .*lora_type=standard") for algo in (
        "lora", "locon", "loha", "dylora", "glora", "full", "diag-oft", "boft", "ia3", "tlora")),
    ({"algo": None}, "has no algo, which for LyCORIS is a plain LoRA|has no algo, for which"),
    ({"algo": "lokrr"}, "algo must be one of lokr"),
    ({"linear_dim": 0}, "linear_dim"), ({"linear_dim": 1.5}, "linear_dim"), ({"linear_alpha": -1}, "alpha"),
    ({"factor": "many"}, "factor must be"), ({"full_matrix": "maybe"}, "full_matrix must be"),
    ({"multiplier": 2}, "multiplier must be .*set linear_alpha"), ({"linear_dimm": 4}, "did you mean"),
    ({"dora_wd": True}, "dora_wd=true is not supported: .*use_dora"), ({"dropout": 0.1}, "dropout=0.1"),
    ({"rank_dropout": 0.1}, "rank_dropout"), ({"module_dropout": 1}, "module_dropout"),
    ({"train_norm": True}, "train_norm"), ({"rs_lora": True}, "set linear_alpha"),
    ({"preset": "attn-mlp"}, "apply_preset"), ({"apply_preset": ["Attention"]}, "apply_preset must be"),
    ({"apply_preset": {"target_modules": ["Attention"]}}, "target_modules.*target_module"),
    ({"apply_preset": {"target_module": [3]}}, "target_module"),
    ({"apply_preset": {"module_algo_map": {"Attention": {"algo": "loha"}}}}, "algo=loha .*Attention"),
    ({"apply_preset": {"module_algo_map": {"Attention": 4}}}, "must be an object"),
    ({"apply_preset": {"name_algo_map": {"to_q": {"linear_dim": 4}}}}, "linear_dim=4 .*it is called dim"),
    ({"apply_preset": {"target_name": ["*.to_q"]}}, "no regular expression.*use_fnmatch=true"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), BAD, ids=str)
def test_what_is_wrong_is_said_in_one_line(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        load_config({"lora_type": "lycoris", "lycoris_config": {**BASE, **change}})
    assert "\n" not in str(error.value) and "given" in str(error.value)


@pytest.mark.parametrize("where", ["file", "override", "preset"])
def test_what_has_no_meaning_is_said(where: str) -> None:
    table = {"file": TOP, "override": OVERRIDE, "preset": PRESET}[where]
    for name in (name for name, option in table.items() if option.status == "ignored"):
        inside: dict[str, Any] = {
            "file": {name: 2}, "preset": {"apply_preset": {name: 2}},
            "override": {"apply_preset": {"module_algo_map": {"Attention": {name: 2}}}},
        }[where]  # fmt: skip
        config = load_config({"lora_type": "lycoris", "lycoris_config": {**BASE, **inside}})
        assert (name, table[name].reason) in config.ignored
    for name in (name for name, option in table.items() if option.status == "refused"):
        read_lycoris({**BASE, name: False} if where == "file" else BASE, "here")  # off, it is no matter


def test_the_file_is_found_beside_its_config_and_kept_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint's configuration holds what the file held, and says the same again."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "lokr.json").write_text(json.dumps(BASE))
    path = folder / "config.json"
    path.write_text(json.dumps({"lora_type": "lycoris", "lycoris_config": "lokr.json"}))
    config = load_config(path)
    assert config.lycoris_config == BASE and config.lora_format == "lycoris"
    assert config.origin("lycoris_config") == "lokr.json, by config.json"
    assert load_config(config.to_dict()).to_dict() == config.to_dict()
    assert load_config(path, [f"--lycoris_config={json.dumps(BASE)}"]).lycoris_config == BASE
    for text, says in (("{", "not valid JSON"), ("[]", "must be a JSON object"), (None, "no such file")):
        (folder / "lokr.json").unlink() if text is None else (folder / "lokr.json").write_text(text)
        with pytest.raises(ConfigError, match=says):
            load_config(path)
    with pytest.raises(ConfigError, match=r"lora_type=lycoris .* needs lycoris_config"):
        load_config({"lora_type": "lycoris"})


def test_options_of_a_lora_have_no_effect_and_are_told() -> None:
    given = {
        "lora_rank": 8, "lora_alpha": 4, "lora_dropout": 0.5, "use_dora": True, "use_rslora": True,
        "lora_init_type": "gaussian",
    }  # fmt: skip
    plain = load_config({"lora_type": "lycoris", "lycoris_config": BASE})
    config = load_config({"lora_type": "lycoris", "lycoris_config": BASE, **given})
    assert set(given) == set(LORA_ALONE) == {name for name, _ in config.ignored}
    assert config.to_dict() == plain.to_dict() and not set(given) & set(plain.to_dict())
    assert lora_spec(config) == lora_spec(plain)
    layers = {"peft_lora_target_modules": ["to_q"]}
    assert lora_spec(load_config({**plain.to_dict(), **layers})).targets == ("to_q",)
    named = {**BASE, "apply_preset": {"target_module": ["Attention"]}}
    told = load_config({"lora_type": "lycoris", "lycoris_config": named, **layers}).ignored
    assert [name for name, _ in told] == ["peft_lora_target_modules"]
    for format, written in (("diffusers", "lycoris"), ("mlx", "lycoris"), ("comfyui", "comfyui")):
        made = load_config({"lora_type": "lycoris", "lycoris_config": BASE, "lora_format": format})
        assert made.lora_format == written
        assert [name for name, _ in made.ignored] == (["lora_format"] if written == "lycoris" else [])
    with pytest.raises(ConfigError, match=r"init_lokr_norm .*use_scalar"):
        load_config({"lora_type": "lycoris", "lycoris_config": BASE, "init_lokr_norm": 1e-4})
    with pytest.raises(ConfigError, match="lora_format=lycoris is for lora_type=lycoris"):
        load_config({"lora_format": "lycoris"})
    assert load_config({"lora_format": "diffusers"}).lora_format == "peft"  # as SimpleTuner calls it
    assert "lycoris_config" not in load_config({}).to_dict()
    ignored = load_config({"lycoris_config": "anything.json"}).ignored
    assert ignored == [("lycoris_config", "it counts with lora_type=lycoris only")]
