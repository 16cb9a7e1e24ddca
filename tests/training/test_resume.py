"""The run that was interrupted and resumed is the run that was not, bit for bit."""

from __future__ import annotations

import json
import os
import signal

import mlx.core as mx
import pytest

from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.report.events import CheckpointSaved, Notice, StepDone
from acestep_mlx.training import memory
from acestep_mlx.training.interrupts import StopRequest

from . import runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


#: what only v1 has
V1 = ("lyrics embedder", "kept lyrics")
VARIANTS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 3, "max_train_steps": 4},
    "dropout": {"lora_dropout": 0.3, "train_batch_size": 2, "caption_dropout_probability": 0.5},
    "dora": {"use_dora": True, "optimizer": "lion"},
    "lyrics embedder": {
        "lyrics_embedder_train": True,
        "lyrics_embedder_lr": 1e-4,
        "lyrics_embedder_optimizer": "sgd",
    },
    "kept lyrics": {"acestep_lora_target": "attn_qkv", "train_batch_size": 2},
    "quantised": {"base_model_precision": "int8-quanto", "lr_scheduler": "cosine", "lr_warmup_steps": 2},
    "LoKr": {
        "lora_type": "lycoris",
        "lycoris_config": {
            "algo": "lokr",
            "linear_dim": 2,
            "linear_alpha": 3,
            "use_scalar": True,
            "factor": 4,
            "apply_preset": {"target_module": ["Attention"]},
        },
        "base_model_precision": "int8-quanto",
        "gradient_accumulation_steps": 2,
    },
    "two data sets": {
        "optimizer": "adafactor",
        "backends": [
            {"id": "a", "instance_data_dir": "songs", "repeats": 1},
            {"id": "b", "instance_data_dir": "songs", "max_num_samples": 2, "probability": 0.5},
        ],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_at_any_micro_step_and_resumed(root, tiny_run, variant):
    if variant in V1 and tiny_run["model_flavour"] != "base":
        return
    options = {**VARIANTS[variant], **tiny_run}
    for backend in options.get("backends", []):
        backend["instance_data_dir"] = str(root / backend["instance_data_dir"])
    name = f"{tiny_run['model_flavour']}-{variant.replace(' ', '-')}"
    straight = runs.configuration(root, "", f"{name}-straight", **options)
    done, _ = runs.run(straight)
    broken = runs.configuration(root, "", f"{name}-broken", resume_from_checkpoint="latest", **options)
    last = done.step
    stop = StopRequest()
    after = (
        4 if "gradient_accumulation_steps" in options else 2
    )  # micro-steps; 4 of 3 is in the middle of an update
    batches = []

    def count(self, batch, **kwargs):
        batches.append(1)
        if len(batches) == after:
            stop.request()
        return original(self, batch, **kwargs)

    from acestep_mlx.training.step import TrainStep

    original = TrainStep.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", count)
        halted, _ = runs.run(broken, stop=stop)
    assert not halted.finished and halted.step < last
    resumed, _ = runs.run(broken)
    assert resumed.finished and resumed.step == last
    runs.assert_identical(done.checkpoint, resumed.checkpoint)
    assert runs.losses(root / f"{name}-straight") == runs.losses(root / f"{name}-broken")
    assert done.lora.read_bytes() == resumed.lora.read_bytes()


@pytest.mark.slow
def test_on_a_machine_with_other_memory_a_run_goes_on_as_it_began(root, tiny_run, monkeypatch):
    """Its blocks keep what they kept, bit for bit. A run that switches it off has nothing to remember."""

    def run(name, room=False, act=None, **options):
        def choose(config, loads, model, bits):
            return memory.Recomputed.of(0 if room else model.blocks + 1, model.blocks)

        monkeypatch.setattr(memory, "checkpointed_blocks", choose)
        name = f"{tiny_run['model_flavour']}-memory-{name}"
        options = {"resume_from_checkpoint": "latest", "max_train_steps": 4, **tiny_run, **options}
        result, _ = runs.run(runs.configuration(root, "", name, **options), act, stop=stop)
        return result, json.loads((result.checkpoint / "training_state.json").read_text())

    stop = StopRequest()
    done, _ = run("straight")
    halted, state = run("broken", act=lambda e: stop.request() if isinstance(e, StepDone) else None)
    stop = StopRequest()
    resumed, after = run("broken", room=True)
    assert not halted.finished and resumed.finished
    for one in (state, after):
        assert one["checkpointed_blocks"] == 1 <= one["product_blocks"]
    runs.assert_identical(done.checkpoint, resumed.checkpoint)
    _, off = run("off", gradient_checkpointing=False, max_train_steps=1)
    assert "checkpointed_blocks" not in off


@pytest.mark.slow
def test_sigterm_ends_with_a_complete_checkpoint(root, tiny_model):
    config = runs.configuration(root, tiny_model, "sigterm", max_train_steps=50)
    result, seen = runs.run(
        config,
        lambda e: os.kill(os.getpid(), signal.SIGTERM) if isinstance(e, StepDone) and e.step == 2 else None,
    )
    assert not result.finished and 2 <= result.step <= 4
    assert seen.of(CheckpointSaved)[-1].path == str(result.checkpoint)
    assert not (root / "sigterm" / "pytorch_lora_weights.safetensors").exists()


@pytest.fixture(scope="module")
def finished(root, tiny_model):
    """A finished run with a checkpoint at every second step."""
    config = runs.configuration(
        root, tiny_model, "finished", checkpointing_steps=2, checkpoints_total_limit=2
    )
    result, seen = runs.run(config)
    return config, result, seen


@pytest.mark.slow
def test_limit_deletes_the_oldest_after_the_new_one_is_complete(finished, root):
    _, result, seen = finished
    saved = seen.of(CheckpointSaved)
    assert [e.step for e in saved] == [2, 4, 6]
    assert [len(e.removed) for e in saved] == [0, 0, 1]
    left = sorted(p.name for p in (root / "finished").iterdir() if "checkpoint" in p.name)
    assert left == ["checkpoint-4", "checkpoint-6"] and result.checkpoint.name == "checkpoint-6"


@pytest.mark.slow
def test_checkpoint_holds_what_the_readme_says(finished):
    _, result, _ = finished
    names = {p.name for p in result.checkpoint.iterdir()}
    assert names == {
        "pytorch_lora_weights.safetensors",
        "adapter.safetensors",
        "optimizer.safetensors",
        "sampler.safetensors",
        "config.json",
        "training_state.json",
    }
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.lora.formats.read import read_lora

    assert load_config(result.checkpoint / "config.json").lora_rank == 2
    baked = read_lora(result.checkpoint / "pytorch_lora_weights.safetensors")
    trained = mx.load(str(result.checkpoint / "adapter.safetensors"))
    for path, module in baked.modules.items():
        ours = trained[f"{path}.lora_a"] @ trained[f"{path}.lora_b"]  # alpha = rank: scale 1
        assert mx.abs(module.delta() - ours.T).max().item() < 1e-7


def test_resuming_a_finished_run_writes_the_lora_again(finished, root):
    config, first, _ = finished
    first.lora.unlink()
    result, seen = runs.run({**config, "resume_from_checkpoint": "latest"})
    assert result.finished and result.lora.is_file() and not seen.of(StepDone)


def test_latest_skips_a_damaged_checkpoint_and_says_so(finished, root, tiny_model, tmp_path):
    import shutil

    config, _, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(root / "finished", copy)
    target = copy / "checkpoint-6" / "optimizer.safetensors"
    data = bytearray(target.read_bytes())
    data[-3] ^= 0xFF
    target.write_bytes(bytes(data))
    config = {**config, "output_dir": str(copy), "resume_from_checkpoint": "latest"}
    result, seen = runs.run(config)
    warnings = [e.text for e in seen.of(Notice) if e.level == "warning"]
    assert any("checkpoint-6" in w and "optimizer.safetensors" in w for w in warnings)
    assert [e.step for e in seen.of(StepDone)] == [5, 6]
    runs.assert_identical(result.checkpoint, root / "finished" / "checkpoint-6")
    for path in copy.glob("checkpoint-*"):
        (path / "training_state.json").write_text("{")
    with pytest.raises(CheckpointError, match="all 2 checkpoints"):
        runs.run(config)
    with pytest.raises(CheckpointError, match=r"checkpoint-4.*JSON"):
        runs.run({**config, "resume_from_checkpoint": str(copy / "checkpoint-4")})


@pytest.mark.parametrize(
    "change", [{"lora_rank": 4}, {"optimizer": "lion"}, {"seed": 1}, {"gradient_accumulation_steps": 2}]
)
def test_a_contradicting_configuration_is_refused_with_the_difference(finished, change):
    config, _, _ = finished
    ((name, value),) = change.items()
    with pytest.raises(ConfigError, match=rf"{name}: checkpoint .*, now .*{value}"):
        runs.run({**config, "resume_from_checkpoint": "latest", **change})


def test_metrics_of_steps_that_are_done_again_are_not_there_twice(finished, root, tmp_path):
    import shutil

    config, _, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(root / "finished", copy)
    shutil.rmtree(copy / "checkpoint-6")  # as if killed before it was written
    runs.run({**config, "output_dir": str(copy), "resume_from_checkpoint": "latest"})
    assert [s for s, _ in runs.losses(copy)] == [1, 2, 3, 4, 5, 6]
    assert runs.losses(copy) == runs.losses(root / "finished")


def test_longer_run_may_go_on_from_a_checkpoint(finished, root, tmp_path):
    import shutil

    config, _, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(root / "finished", copy)
    result, seen = runs.run(
        {**config, "output_dir": str(copy), "resume_from_checkpoint": "latest", "max_train_steps": 7}
    )
    assert result.finished and [e.step for e in seen.of(StepDone)] == [7]
    assert "changed since checkpoint-6: max_train_steps 6 → 7" in [e.text for e in seen.of(Notice)]
    assert json.loads((result.checkpoint / "training_state.json").read_text())["step"] == 7


@pytest.mark.slow
def test_dry_run_says_where_a_run_goes_on_and_what_contradicts(root, tiny_model):
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.training.preflight import preflight

    config = runs.configuration(root, tiny_model, "preflight", max_train_steps=2, checkpointing_steps=2)
    runs.run(config)
    again = {**config, "resume_from_checkpoint": "latest"}
    found = preflight(load_config(again), lambda *_: None)
    assert found.step == 2 and found.resume == root / "preflight" / "checkpoint-2"
    said: list[str] = []
    preflight(load_config(again), lambda text, level: said.append(text))
    assert not said, "nothing changed"
    change = {"learning_rate": 2e-3, "lr_scheduler": "cosine", "max_grad_norm": 0.5, "max_train_steps": 9}
    preflight(load_config({**again, **change}), lambda text, level: said.append(text))
    assert said == [
        "changed since checkpoint-2: learning_rate 0.001 → 0.002, max_grad_norm 1.0 → 0.5, "
        'lr_scheduler "constant" → "cosine", max_train_steps 2 → 9'
    ]
    for change in ({"lora_rank": 3}, {"seed": 7}, {"mixed_precision": "bf16"}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            preflight(load_config({**again, **change}), lambda *_: None)
    with pytest.raises(CheckpointError, match=r"checkpoint-9: not in .*; there is checkpoint-2"):
        preflight(load_config({**config, "resume_from_checkpoint": "checkpoint-9"}), lambda *_: None)


def test_preflight_says_what_a_lora_to_start_from_lacks(root, tiny_model, tmp_path):
    """A file without alpha, with modules that the model never uses; and which settings upstream's needs."""
    from acestep_mlx.config.read_run import load_config
    from acestep_mlx.training.preflight import preflight

    block = "transformer_blocks.0.cross_attn"
    shapes = {f"{block}.to_q": 128, f"{block}.add_q_proj": 128}
    file = tmp_path / "start.safetensors"

    def write(shapes: dict[str, int]) -> None:
        tensors = {f"{path}.lora_A.weight": mx.ones((2, width)) for path, width in shapes.items()}
        tensors |= {f"{path}.lora_B.weight": mx.ones((128, 2)) for path in shapes}
        mx.save_safetensors(str(file), tensors)

    write(shapes)
    config = runs.configuration(root, tiny_model, "start", init_lora=str(file), lora_rank=2)
    said: list[tuple[str, str]] = []
    preflight(load_config(config), lambda text, level: said.append((text, level)))
    assert [level for _, level in said] == ["warning", "warning"]
    assert "1 module left out, because the model never uses them" in said[0][0]
    assert f"init_lora={file}: no alpha is stored" in said[1][0]
    write({**shapes, "speaker_embedder": 64})
    with pytest.raises(ConfigError, match=r"set acestep_lora_target=attn_qkv\+linear_qkv\+speech_embedder$"):
        preflight(load_config(config), lambda *_: None)
