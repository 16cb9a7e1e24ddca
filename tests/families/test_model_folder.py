"""The MLX folder: opened cheaply, loaded strictly, quantised while loading."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from acestep_mlx.cli.describe import mlx_folder
from acestep_mlx.convert.converter import convert
from acestep_mlx.errors import CheckpointError
from acestep_mlx.families import family
from acestep_mlx.families.model_folder import ModelFolder, quantizable, quantize_layers
from acestep_mlx.io.hashes import BLOCK
from acestep_mlx.io.safetensors import SAMPLES, read_header
from acestep_mlx.io.tensors import SafetensorsWriter, read_rows

COMPONENTS = family("v1").components


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the miniature model that may be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_records(model: Path) -> Path:
    """The folder as 0.1 wrote it: its config.json says nothing of its files."""
    content = json.loads((model / "config.json").read_text())
    del content["files"]
    (model / "config.json").write_text(json.dumps(content))
    return model


def flip(path: Path, place: int) -> None:
    """Change one bit of the byte at `place`."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def between_blocks(path: Path) -> int:
    """A byte of a tensor that `sample` does not read."""
    last = path.stat().st_size - BLOCK
    return last - last // (SAMPLES - 1) + BLOCK + 10


@pytest.mark.parametrize("component", COMPONENTS)
def test_components_are_frozen_and_in_evaluation_mode(component: str, tiny_model: Path) -> None:
    module = ModelFolder.open(tiny_model).load(component)
    assert not module.training and not tree_flatten(module.trainable_parameters())
    stored = mx.load(str(tiny_model / f"{component}.safetensors"))
    parameters = dict(tree_flatten(module.parameters()))
    assert parameters.keys() == stored.keys()
    assert all(mx.array_equal(parameters[name], stored[name]) for name in stored)


@pytest.mark.parametrize("component", COMPONENTS)
def test_dtype(component: str, tiny_model: Path) -> None:
    module = ModelFolder.open(tiny_model).load(component, dtype=mx.bfloat16)
    assert {value.dtype for _, value in tree_flatten(module.parameters())} == {mx.bfloat16}


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_while_loading_is_quantised_while_converting(
    component: str, bits: int, tiny_checkpoint: Path, tiny_model: Path, tmp_path: Path
) -> None:
    convert(tiny_checkpoint, tmp_path / "q", quantize=True, q_bits=bits, dtype="float32")
    stored = ModelFolder.open(tmp_path / "q").load(component)
    setting = {"bits": bits, "group_size": 64, "mode": "affine"}
    loaded = ModelFolder.open(tiny_model).load(component, quantize=setting)
    a, b = dict(tree_flatten(stored.parameters())), dict(tree_flatten(loaded.parameters()))
    assert a.keys() == b.keys() and any(name.endswith(".scales") for name in a)
    assert all(mx.array_equal(a[name], b[name]) for name in a)
    assert ModelFolder.open(tmp_path / "q").quantization == setting


def test_a_quantised_folder_keeps_its_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "q", quantize=True, q_bits=8)
    folder = ModelFolder.open(tmp_path / "q")
    same = folder.load("transformer", quantize={"bits": 8, "group_size": 64, "mode": "affine"})
    assert isinstance(same.transformer_blocks[0].attn.to_q, nn.QuantizedLinear)
    with pytest.raises(CheckpointError, match="is quantised to 8 bits, which cannot become 4 bits"):
        folder.load("transformer", quantize={"bits": 4, "group_size": 64, "mode": "affine"})


def test_quantised_layers_compute(tiny_checkpoint: Path, tiny_model: Path) -> None:
    """An 8-bit transformer stays near the full one; what must stay in full precision does."""
    folder = ModelFolder.open(tiny_model)
    full, small = folder.load("transformer"), folder.load("transformer", quantize={"bits": 8})
    key = mx.random.key(0)
    inputs = {
        "hidden_states": mx.random.normal((1, 8, 16, 12), key=key),
        "attention_mask": mx.ones((1, 12)),
        "encoder_text_hidden_states": mx.random.normal((1, 5, 64), key=key),
        "text_attention_mask": mx.ones((1, 5)),
        "speaker_embeds": mx.zeros((1, 64)),
        "lyric_token_idx": mx.ones((1, 7), mx.int32),
        "lyric_mask": mx.ones((1, 7)),
        "timestep": mx.array([500.0]),
    }
    a, b = np.array(full(**inputs)), np.array(small(**inputs))
    assert 0 < np.linalg.norm(a - b) / np.linalg.norm(a) < 0.05
    for layer in (small.t_block[1], small.final_layer.linear, small.timestep_embedder.linear_1):
        assert not isinstance(layer, nn.QuantizedLinear)


def test_quantisable_looks_at_type_place_and_size() -> None:
    transformer = COMPONENTS["transformer"]
    assert quantizable(transformer, "transformer_blocks.0.attn.to_q", nn.Linear(64, 8))
    assert not quantizable(transformer, "transformer_blocks.0.attn.to_q", nn.Linear(48, 8))
    assert quantizable(transformer, "transformer_blocks.0.attn.to_q", nn.Linear(96, 8), group_size=32)
    assert not quantizable(transformer, "t_block.1", nn.Linear(64, 8))
    assert not quantizable(transformer, "shared", nn.Embedding(64, 64))


def test_quantize_layers_names_what_it_did(tiny_model: Path) -> None:
    from acestep_mlx.families.model_folder import Quantization

    model = ModelFolder.open(tiny_model).load("transformer")
    names = quantize_layers(COMPONENTS["transformer"], model, Quantization.of(4, 32))
    found = {name for name, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)}
    assert set(names) == found and "transformer_blocks.1.ff.point_conv.conv" in found


def test_tokenizers(tiny_model: Path) -> None:
    folder = ModelFolder.open(tiny_model)
    ids, mask = folder.prompt_tokenizer()(["slow jazz", "", "a " * 400])
    assert ids.shape == mask.shape == (3, 256) and ids.dtype == mx.int32
    assert ids[1, 0].item() == 1 and mask[1].sum().item() == 1
    assert ids[2, 255].item() == 1, "a prompt that was cut still ends with the end token"
    assert folder.lyric_vocab().is_file()


@pytest.mark.parametrize("strategy", ["BatchLongest", {"Fixed": 20}], ids=str)
@pytest.mark.parametrize("direction", ["Left", "Right"])
def test_padding_and_limits_of_the_tokenizers_file_change_nothing(
    strategy: object, direction: str, model: Path
) -> None:
    """Files of other programs have them; ids and mask are ours to pad."""
    prompts = ["slow jazz", "", "techno, 140 bpm"]
    ids, mask = ModelFolder.open(model).prompt_tokenizer()(prompts)
    content = json.loads((model / "tokenizer.json").read_text())
    content["padding"] = {
        "strategy": strategy, "direction": direction, "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    content["truncation"] = {
        "direction": direction, "max_length": 3, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    (model / "tokenizer.json").write_text(json.dumps(content))
    other_ids, other_mask = ModelFolder.open(model).prompt_tokenizer()(prompts)
    assert mx.array_equal(other_ids, ids) and mx.array_equal(other_mask, mask)


@pytest.mark.slow
@pytest.mark.parity
def test_prompt_tokenizer_is_transformers(tiny_model: Path, tiny_checkpoint: Path) -> None:
    from transformers import AutoTokenizer

    prompts = ["slow, warm jazz ballad", "", "techno\n140 bpm  ünïcode", "a " * 400]
    theirs = AutoTokenizer.from_pretrained(tiny_checkpoint / "umt5-base")(
        prompts, padding=True, truncation=True, max_length=256, return_tensors="np"
    )
    ids, mask = ModelFolder.open(tiny_model).prompt_tokenizer()(prompts)
    assert np.array_equal(ids, theirs["input_ids"]) and np.array_equal(mask, theirs["attention_mask"])


def test_a_pytorch_checkpoint_says_how_to_convert(tiny_checkpoint: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"is the PyTorch checkpoint; run `acestep-mlx convert --hf-path"
    ):
        ModelFolder.open(tiny_checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not written by acestep-mlx convert"),
        ({"format_version": 99}, "format version 99"),
        ({"quantisation": None}, "unknown key 'quantisation'; did you mean 'quantization'"),
        ({"components": {}}, "'components' must have exactly"),
        ({"fingerprints": {"dcae": "x"}}, "'fingerprints' must have exactly"),
        ({"files": {}}, "'files' must have exactly"),
        ({"files": {"dcae": {"bytes": "1", "sampled": ""}}}, "is damaged"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"quantization": {"bits": 7}}, "quantization: q_bits must be"),
        ({"quantization": {"bit": 8}}, "quantization: "),
    ],
)
def test_config(changes: dict[str, object], message: str, model: Path) -> None:
    edit(model / "config.json", **changes)
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(model)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dcae.safetensors", "tokenizer.json", "lyric_vocab.json"])
def test_incomplete(name: str, model: Path) -> None:
    (model / name).unlink()
    with pytest.raises(CheckpointError, match=f"is incomplete: {name} missing"):
        ModelFolder.open(model)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        ModelFolder.open(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="not an MLX folder"):
        ModelFolder.open(tmp_path)


def test_damaged_weights_are_named(model: Path) -> None:
    path = without_records(model) / "dcae.safetensors"
    tensors = load_file(path)
    shape = tensors["encoder.conv_in.bias"].shape
    tensors["encoder.conv_in.bias"] = np.zeros(shape[0] + 1, np.float32)
    del tensors["decoder.conv_out.bias"]
    tensors["decoder.extra"] = np.zeros(1, np.float32)
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        ModelFolder.open(model).load("dcae")
    line = str(caught.value)
    assert "3 problem" in line and "unknown tensor 'decoder.extra'" in line
    assert "missing tensor 'decoder.conv_out.bias'" in line and "'encoder.conv_in.bias' has shape" in line
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        ModelFolder.open(model).load("dcae")


def converted_with_another_number(path: Path, out: Path) -> None:
    """The file as a conversion writes it from weights of which one, read by no sample, is another."""
    tensors, place = read_header(path).tensors, between_blocks(path)
    with SafetensorsWriter(out, {name: (one.dtype, one.shape) for name, one in tensors.items()}) as writer:
        for name, one in tensors.items():
            (value,) = read_rows(one, None)
            flat = np.array(value).reshape(-1)
            if one.start <= place < one.stop:
                flat[(place - one.start) // 4] += 1
            writer.write(name, mx.array(flat.reshape(one.shape)))


@pytest.mark.parametrize("component", COMPONENTS)
def test_weights_of_another_conversion_are_refused(component: str, model: Path, tmp_path: Path) -> None:
    path, other = model / f"{component}.safetensors", tmp_path / "other.safetensors"
    converted_with_another_number(path, other)
    assert other.stat().st_size == path.stat().st_size
    opened = ModelFolder.open(model)
    shutil.copy(other, path)
    message = rf"{component}\.safetensors is not the file that config\.json describes.*convert again"
    with pytest.raises(CheckpointError, match=message):
        ModelFolder.open(model)
    with pytest.raises(CheckpointError, match=message):
        opened.load(component)


@pytest.mark.parametrize("place", ["its header", 0.25, 0.5, "its last byte"], ids=str)
@pytest.mark.parametrize("component", COMPONENTS)
def test_damage_is_seen_on_opening(component: str, place: object, model: Path) -> None:
    path = model / f"{component}.safetensors"
    size = path.stat().st_size
    at = {"its header": path.read_bytes().index(b"fingerprint") + 20, "its last byte": size - 1}
    flip(path, at[place] if isinstance(place, str) else int((size - BLOCK) * float(place)) + 1)
    with pytest.raises(CheckpointError, match=f"{component}.*its contents have changed"):
        ModelFolder.open(model)


def test_another_size_is_told(model: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "half", dtype="float16")
    shutil.copy(tmp_path / "half" / "vocoder.safetensors", model)
    with pytest.raises(CheckpointError, match=r"it has \d+ bytes, and \d+ are recorded"):
        ModelFolder.open(model)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("old", [False, True], ids=["0.2", "0.1"])
def test_all_contents_are_compared_with_the_fingerprints(component: str, old: bool, model: Path) -> None:
    """What `info` does: one bit that opening the folder does not look at."""
    folder = ModelFolder.open(without_records(model) if old else model)
    told: list[float] = []
    folder.check_contents(lambda advance: told.append(advance.done / advance.total))
    assert told[-1] == 1
    path = folder.file(component)
    flip(path, between_blocks(path))
    ModelFolder.open(model).load(component)
    with pytest.raises(CheckpointError, match=rf"{component}.*config\.json describes: its fingerprint is"):
        folder.check_contents()


@pytest.mark.parametrize("name", ["transformer", "dcae"])
def test_a_folder_of_0_1_is_opened_as_it_was(name: str, model: Path) -> None:
    flip(model / f"{name}.safetensors", -1)
    ModelFolder.open(without_records(model)).load(name)


@pytest.mark.parametrize(
    ("name", "other"), [("tokenizer.json", "lyric_vocab.json"), ("lyric_vocab.json", None)]
)
def test_another_models_tokenizer(name: str, other: str | None, model: Path) -> None:
    """Ids beyond the embedding would read whatever lies behind it."""
    folder = ModelFolder.open(model)
    make = folder.prompt_tokenizer if name == "tokenizer.json" else folder.lyric_tokenizer
    assert make() is not None
    content = json.loads((model / (other or name)).read_text())
    content["model"]["vocab"]["beyond"] = 10**6
    (model / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"{name}: has ids up to \d+, and the model knows \d+"):
        make()


@pytest.mark.parametrize("how", ["swapped", "another"])
def test_a_tokenizer_whose_ids_are_others_is_refused(how: str, model: Path) -> None:
    """All ids are known to the text encoder, and mean other words."""
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    if how == "swapped":
        pieces = content["model"]["vocab"]
        one, other = list(pieces)[-2:] if isinstance(pieces, dict) else (-2, -1)
        pieces[one], pieces[other] = pieces[other], pieces[one]
    if how == "another":
        del content["post_processor"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not the tokenizer that this model was conv"):
        ModelFolder.open(model).prompt_tokenizer()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not the tokenizer"):
        mlx_folder(model)


def test_a_folder_that_does_not_say_its_tokenizer(model: Path) -> None:
    """As 0.1 wrote them: the tokenizer is taken, and `info` says that it cannot be known."""
    assert any("tokenizer: SHA-256" in line for line in mlx_folder(model))
    config = json.loads((model / "config.json").read_text())
    del config["tokenizer"]
    (model / "config.json").write_text(json.dumps(config))
    assert ModelFolder.open(model).prompt_tokenizer()
    assert any("tokenizer: unknown whether" in line for line in mlx_folder(model))


def test_weights_that_are_no_floats(model: Path) -> None:
    path = without_records(model) / "dcae.safetensors"
    tensors = load_file(path)
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"].astype(np.int32)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"'encoder\.conv_in\.bias' is stored as I32"):
        ModelFolder.open(model).load("dcae")


def test_a_vocabulary_other_than_recorded_is_refused(model: Path) -> None:
    """Swapped ids stay within the model's range, and would train other words."""
    folder = ModelFolder.open(model)
    path = model / "lyric_vocab.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, indent=7))
    assert folder.lyric_vocab() == path and folder.lyric_tokenizer(), "white space changes nothing"
    vocab = content["model"]["vocab"]
    one, two = list(vocab)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    path.write_text(json.dumps(content))
    for use in (folder.lyric_vocab, folder.lyric_tokenizer):
        with pytest.raises(CheckpointError, match=r"lyric_vocab\.json: not the vocabulary that this model"):
            use()
    edit(model / "config.json", lyric_vocab={"source": "as an early folder has it"})
    assert ModelFolder.open(model).lyric_vocab() == path


@pytest.mark.parametrize(
    ("bits", "recorded", "message"),
    [
        (4, None, "is quantised, and config.json says that nothing is"),
        (4, {"bits": 8, "group_size": 64}, "not to 8 bits in groups of 64"),
        (4, {"bits": 4, "group_size": 32}, "not to 4 bits in groups of 32"),
        (4, {"bits": 4, "group_size": 16, "mode": "nvfp4"}, "not to 4 bits in groups of 16"),
        (
            None,
            {"bits": 4, "group_size": 64},
            "it says that the model is quantised, and none of its layers is",
        ),
    ],
)
def test_a_quantisation_other_than_the_tensors_have_is_refused_when_opened(
    bits: int | None, recorded: object, message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    convert(tiny_checkpoint, model, quantize=bits is not None, q_bits=bits)
    assert ModelFolder.open(model)
    edit(model / "config.json", quantization=recorded)
    with pytest.raises(CheckpointError, match=message) as caught:
        ModelFolder.open(model)
    assert "\n" not in str(caught.value)
