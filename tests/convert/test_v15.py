"""ACE-Step 1.5 from both layouts to one MLX folder: miniatures with random weights."""

from __future__ import annotations

import filecmp
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from acestep_mlx.cli import describe
from acestep_mlx.convert.converter import convert
from acestep_mlx.convert.source import Source, resolve
from acestep_mlx.errors import CheckpointError, ConfigError
from acestep_mlx.families import REGISTRY
from acestep_mlx.families.model_folder import ModelFolder
from acestep_mlx.families.v15 import ACEStep15
from acestep_mlx.families.v15.layouts import TEXT_ENCODER
from acestep_mlx.families.v15.miniature import CHANNELS, write_checkpoint
from acestep_mlx.families.v15.silence import SILENCE, read_silence
from acestep_mlx.families.v15.texts import TextTokenizer
from acestep_mlx.io.tensors import read_tensor

VARIANT = "acestep-v15-turbo"


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second family, as far as it is here."""
    monkeypatch.setattr("acestep_mlx.families.v15.FAMILY", ACEStep15(), raising=False)
    monkeypatch.setitem(REGISTRY, "v15", "acestep_mlx.families.v15")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("diffusers"), layout="diffusers")


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """To be changed."""
    return shutil.copytree(original, tmp_path / "checkpoint")


def contents(folder: Path) -> dict[str, Any]:
    """config.json but for where it came from."""
    config = json.loads((folder / "config.json").read_text())
    return {key: value for key, value in config.items() if key != "source"}


def test_both_layouts_give_the_same_folder(original: Path, diffusers: Path, tmp_path: Path) -> None:
    for name, checkpoint in (("original", original), ("diffusers", diffusers)):
        convert(checkpoint, tmp_path / name)
    one, other = tmp_path / "original", tmp_path / "diffusers"
    assert contents(one) == contents(other) and contents(one)["family"] == "v15"
    names = {path.name for path in one.iterdir()}
    parts = {f"{name}.safetensors" for name in ACEStep15().components}
    assert names == parts | {"config.json", "tokenizer.json"}
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    encoder = ModelFolder.open(one).load("condition_encoder")
    theirs = load_file(diffusers / "condition_encoder" / "diffusion_pytorch_model.safetensors")
    assert np.array_equal(encoder.silence_latent, theirs["silence_latent"])


def test_same_seed_same_bytes(original: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "again")
    write_checkpoint(tmp_path / "other", seed=1)
    for path in (p for p in original.rglob("*") if p.is_file()):
        name = path.relative_to(original)
        assert filecmp.cmp(path, tmp_path / "again" / name, shallow=False)
        if path.suffix in (".safetensors", ".pt"):
            assert not filecmp.cmp(path, tmp_path / "other" / name, shallow=False)


@pytest.mark.slow
def test_apart_sharded_and_under_another_name(original: Path, copy: Path, tmp_path: Path) -> None:
    """One variant's folder, with the others beside it; in shards it is the same model."""
    convert(original, tmp_path / "together")
    convert(copy / VARIANT, tmp_path / "apart")
    write_checkpoint(copy, shards=3)
    (copy / VARIANT / "model.safetensors").unlink()
    (copy / VARIANT).rename(copy / "snapshot")
    convert(copy / "snapshot", tmp_path / "sharded")
    assert contents(tmp_path / "together") == contents(tmp_path / "apart") == contents(tmp_path / "sharded")


def test_the_variant_that_is_named_and_no_other(copy: Path, tmp_path: Path) -> None:
    write_checkpoint(copy, flavour="base", seed=5)
    with pytest.raises(
        CheckpointError,
        match=r"holds acestep-v15-base of ACE-Step 1.5, acestep-v15-turbo of .*; give the folder of the one",
    ):
        convert(copy, tmp_path / "model")
    convert(copy / "acestep-v15-base", tmp_path / "base")
    config = ModelFolder.open(tmp_path / "base").component_config("transformer")
    assert (config.model_version, config.is_turbo) == ("base", False)
    with pytest.raises(CheckpointError, match=r"acestep-v15-sft"):
        resolve(copy / "acestep-v15-sft")


def test_what_is_missing_is_named(copy: Path, tmp_path: Path) -> None:
    for lost in (SILENCE, "config.json"):
        (copy / VARIANT / lost).rename(tmp_path / lost)
        with pytest.raises(CheckpointError, match=rf"{lost}"):
            convert(copy / VARIANT, tmp_path / "model")
        (tmp_path / lost).rename(copy / VARIANT / lost)
    shutil.rmtree(copy / "vae")
    for where in (copy, copy / VARIANT):
        with pytest.raises(CheckpointError, match=r"is not an ACE-Step 1.5 checkpoint: it has no vae$"):
            convert(where, tmp_path / "model")
    with pytest.raises(CheckpointError, match="is one component of a checkpoint; give its parent folder"):
        convert(copy / TEXT_ENCODER, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_tensor_of_no_component_is_an_error(copy: Path) -> None:
    path = copy / VARIANT / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm.x": tensors["null_condition_emb"], "decode.y": np.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"2 problems: unknown tensor '.*'; unknown tensor '"):
        Source(copy, "x", None).component("transformer")


@pytest.mark.parametrize(
    "precision", [{"q_bits": 8}, {"q_bits": 2, "q_group_size": 32}, {"q_mode": "mxfp4"}], ids=str
)
def test_large_linear_layers_are_quantised(original: Path, tmp_path: Path, precision: dict) -> None:
    """Of transformer, condition encoder and text encoder; nothing that everything after it depends on."""
    report = convert(original, tmp_path / "model", quantize=True, **precision)
    folder = ModelFolder.open(tmp_path / "model")
    for name in folder.family.components:
        module = folder.load(name)
        layers = {
            path: layer for path, layer in module.named_modules() if isinstance(layer, nn.QuantizedLinear)
        }
        assert set(layers) == set(report.components[name].quantized)
        if name in ("vae", "audio_tokenizer", "audio_token_detokenizer"):
            assert not layers
            continue
        kinds = {path.rpartition(".")[2] for path in layers}
        assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        plain = [path for path, layer in module.named_modules() if type(layer) is nn.Linear]
        small = ("time_embed", "condition_embedder", "text_projector", "lyric_encoder.e", "timbre_encoder.e")
        assert all(path.startswith(small) for path in plain)


@pytest.mark.parametrize(
    ("flavour", "said"),
    [("base", "v15-base"), ("sft", "v15-sft"), ("turbo", "v15-turbo"), ("xl-turbo", "v15-xl-turbo")],
)
def test_info_tells_family_and_variant(
    flavour: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe, "training_memory", lambda *_: [])  # which needs the family's own estimate
    write_checkpoint(tmp_path / "checkpoint", flavour=flavour)
    lines = describe.pytorch_checkpoint(tmp_path / "checkpoint")
    assert f"acestep-v15-{flavour} of ACE-Step 1.5" in lines[0]
    convert(tmp_path / "checkpoint", tmp_path / "model")
    lines = describe.mlx_folder(tmp_path / "model")
    assert "  family: ACE-Step 1.5" in lines and f"  variant: {said}" in lines


def test_v1_s_options_are_not_for_it(original: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lyric_vocab: ACE-Step 1\.5 is converted without such an option"):
        convert(original, tmp_path / "model", lyric_vocab=tiny_checkpoint / "x.json")


def test_a_repository_of_one_variant_takes_the_rest_from_another(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    lone = tmp_path / "hub" / "1234"
    shutil.copytree(copy / VARIANT, lone)
    asked: dict[str, list[str]] = {}

    def download(name: str, revision: str | None = None, allow_patterns: Any = ()) -> str:
        asked[name] = allow_patterns
        return str(copy if name == "ACE-Step/Ace-Step1.5" else lone)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = resolve("ACE-Step/acestep-v15-base")
    assert source.family.name == "v15" and source.identity() == "commit 1234"
    assert source.component("vae").where == copy / "vae"
    assert source.component("transformer").where == lone
    assert f"{TEXT_ENCODER}/tokenizer.json" in asked["ACE-Step/Ace-Step1.5"]
    assert all(one.startswith(("vae/", f"{TEXT_ENCODER}/")) for one in asked["ACE-Step/Ace-Step1.5"])
    assert "*.safetensors" not in asked["ACE-Step/acestep-v15-base"], "it would fetch planners too"
    assert resolve("ACE-Step/Ace-Step1.5").component("transformer").where == copy / VARIANT


# ── the silence latent ────────────────────────────────────────────────────────────────────────────────
def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def written(path: Path, parts: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


PICKLE, DATA = "silence_latent/data.pkl", "silence_latent/data/0"
Change = Callable[[dict[str, bytes]], dict[str, bytes]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {**m, "silence_latent/code/x.py": b""}, r"further members: code/x\.py"),
        (lambda m: {**m, "silence_latent/data/1": b""}, r"further members: data/1"),
        (lambda m: {PICKLE: m[PICKLE]}, "not PyTorch's archive of one tensor"),
        (lambda m: {**m, DATA: m[DATA][:-4]}, r"479996 bytes cannot be 1×8×15000 in F32"),
        (lambda m: {**m, PICKLE: m[PICKLE].replace(b"_rebuild_tensor_v2", b"_rebuild_tensorx")}, "else than"),
        (lambda m: {**m, PICKLE: m[PICKLE].replace(b"ctorch\nFloat", b"ctorch\nDouble")}, "else than"),
        (lambda m: {**m, PICKLE: b"\x80\x02cos\nsystem\n(X\x04\0\0\0trueR."}, "damaged|something else than"),
        (lambda m: {**m, PICKLE: b"cos\nsystem\n(S'exit 1'\ntR."}, "something else than"),
        (lambda m: {**m, PICKLE: m[PICKLE][:40]}, "damaged"),
        (lambda m: {**m, PICKLE: b"N" * 5000}, "data.pkl has 5000 bytes"),
        (lambda m: {**m, "silence_latent/byteorder": b"big"}, "byte order is not little"),
    ],
)  # fmt: skip
def test_an_archive_of_something_else_is_refused(
    original: Path, tmp_path: Path, change: Change, message: str
) -> None:
    path = written(tmp_path / SILENCE, change(members(original / VARIANT / SILENCE)))
    with pytest.raises(CheckpointError, match=f"{message}.*; download the checkpoint's own {SILENCE} again"):
        read_silence(path)


def test_a_file_that_is_no_such_archive(original: Path, tmp_path: Path) -> None:
    whole = (original / VARIANT / SILENCE).read_bytes()
    path = tmp_path / SILENCE
    for data in (b"", b"\x80\x02K\x01.", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="not a whole zip archive"):
            read_silence(path)
    written(path, members(original / VARIANT / SILENCE), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="its members are compressed"):
        read_silence(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{SILENCE}: "):
        read_silence(path)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("kind", ["plain", "transposed", "half", "bfloat16"])
def test_as_pytorch_writes_and_reads_it(kind: str, original: Path, copy: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.load(original / VARIANT / SILENCE)
    assert expected.shape == (1, CHANNELS, 15000) and expected.dtype == torch.float32
    path = copy / VARIANT / SILENCE
    types = {"half": torch.float16, "bfloat16": torch.bfloat16}
    expected = expected.to(types.get(kind, torch.float32))
    if kind == "transposed":
        expected = expected.transpose(1, 2).contiguous().transpose(1, 2)
    torch.save(expected, path)
    (name, info), *_ = read_silence(path).items()
    found = np.array(read_tensor(info).astype(mx.float32))
    found = found if name == "silence_latent" else found.swapaxes(1, 2)
    assert np.array_equal(found, expected.float().numpy().swapaxes(1, 2))
    convert(copy, tmp_path / "model", dtype="float32")
    ours = ModelFolder.open(tmp_path / "model").load("condition_encoder").silence_latent
    assert np.array_equal(ours, expected.float().numpy().swapaxes(1, 2))


@pytest.mark.slow
@pytest.mark.parity
def test_what_else_pytorch_may_write_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.zeros(1, 8, 40)
    views = base[..., :20], base[0], base.double(), base[..., ::2]
    for value in (torch.nn.Parameter(base), {"x": base}, [base, base], (base,), *views):
        torch.save(value, tmp_path / SILENCE)
        with pytest.raises(CheckpointError, match="download the checkpoint's own"):
            read_silence(tmp_path / SILENCE)
    torch.save(base, tmp_path / SILENCE, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="not a whole zip archive"):
        read_silence(tmp_path / SILENCE)


# ── the tokenizer ─────────────────────────────────────────────────────────────────────────────────────
TEXTS = [
    "slow jazz",
    "",
    "x" * 999,
    "[verse]\nla 歌词 ночь\r\n",
    "a<|endoftext|>\nb <|im_start|> c",
    "é\n\n  ½ ",
]


@pytest.mark.slow
@pytest.mark.parity
def test_ids_are_those_of_the_pipeline(diffusers: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from diffusers.pipelines.ace_step import AceStepPipeline

    from acestep_mlx.families.v15.prompt import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, format_prompt

    convert(diffusers, tmp_path / "model")
    ours = ModelFolder.open(tmp_path / "model").prompt_tokenizer()
    pipeline = AceStepPipeline.__new__(AceStepPipeline)
    theirs = transformers.AutoTokenizer.from_pretrained(diffusers / "tokenizer")
    end = theirs.pad_token_id
    for kind, most in ((0, MAX_TEXT_TOKENS), (1, MAX_LYRIC_TOKENS)):
        texts = [format_prompt(text, text * 3)[kind] for text in TEXTS]
        assert texts == [pipeline._format_prompt(text, text * 3)[kind] for text in TEXTS]
        expected = theirs(texts, padding="longest", truncation=True, max_length=most, return_tensors="np")
        ids, mask = ours(texts, most)
        assert np.array_equal(ids, expected.input_ids) and np.array_equal(mask, expected.attention_mask)
        lengths = mask.sum(axis=1).tolist()
        assert max(lengths) == most and min(lengths) < most, "some are cut, and some padded"
        assert all(ids[i, n - 1].item() == end for i, n in enumerate(lengths)), "the end token stays"


def test_another_tokenizer_is_refused(copy: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not Qwen3's tokenizer: an empty text is"):
        convert(copy, tmp_path / "model", tokenizer=tiny_checkpoint / "umt5-base")
    path = copy / TEXT_ENCODER / "tokenizer.json"
    with pytest.raises(
        CheckpointError, match=r"has ids up to .*, and the text encoder knows 300: it is another"
    ):
        TextTokenizer(path, 300)
    path.rename(tmp_path / "kept.json")
    assert "tokenizer" in ACEStep15().texts.lacking(copy, Source(copy, "x", None).layout)
    with pytest.raises(
        CheckpointError, match=r"tokenizer.json is missing; download .* or give it with --tok"
    ):
        convert(copy, tmp_path / "model")
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer file"):
        convert(copy, tmp_path / "model")
    convert(copy, tmp_path / "model", tokenizer=tmp_path / "kept.json")
    assert ModelFolder.open(tmp_path / "model").lyric_vocab().name == "tokenizer.json"


def test_a_tokenizer_that_appends_nothing_is_taken_as_it_is(copy: Path) -> None:
    """As Qwen3's own: the reference adds nothing either."""
    path = copy / TEXT_ENCODER / "tokenizer.json"
    content = json.loads(path.read_text())
    with_end = TextTokenizer(path, 640)(["la"])[0]
    path.write_text(json.dumps({**content, "post_processor": None}))
    ids, mask = TextTokenizer(path, 640)(["la", ""])
    assert ids.tolist() == [with_end[0, :-1].tolist(), [with_end[0, -1].item()] * (ids.shape[1])]
    assert mask[1].sum().item() == 0


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning")  # weight_norm
def test_the_miniature_is_what_diffusers_loads(diffusers: Path) -> None:
    import diffusers as theirs
    from diffusers.pipelines import ace_step
    from transformers import Qwen3Model

    for name, cls in {
        "transformer": theirs.AceStepTransformer1DModel,
        "condition_encoder": ace_step.AceStepConditionEncoder,
        "audio_tokenizer": ace_step.AceStepAudioTokenizer,
        "audio_token_detokenizer": ace_step.AceStepAudioTokenDetokenizer,
        "vae": theirs.AutoencoderOobleck,
        "text_encoder": Qwen3Model,
    }.items():
        _, report = cls.from_pretrained(diffusers / name, output_loading_info=True)
        assert not any(report.values()), (name, report)
