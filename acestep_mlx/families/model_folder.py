"""The MLX folder: what it must hold, and its components as strictly checked, frozen, quantised modules."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from ..errors import CheckpointError, ConfigError, cause, nearest
from ..formatting import count, listed
from ..io import schema
from ..io.filenames import at_home
from ..io.holds import hold
from ..io.progress import Advance, Progress, silent
from ..io.safetensors import FLOATS, Header, read_header, sample
from ..io.schema import show
from ..io.tensors import contents_digest, load_lazily
from ..nn.config import check_repeats
from ..registry import REGISTRY
from . import family, layouts
from .protocol import Apart, Component, Family

FORMAT, FORMAT_VERSION = "acestep-mlx", 1
FIRST_FAMILY = "v1"  # of folders that name none
DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
CONFIG_KEYS = {
    "format", "format_version", "family", "converter_version", "source", "dtype", "quantization",
    "components", "fingerprints", "files", "fused",
}  # fmt: skip

MODES = {  # mode → (bits allowed, group sizes allowed); the first of each is the default
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "nvfp4": ((4,), (16,)),
    "mxfp8": ((8,), (32,)),
}


@dataclass(frozen=True)
class Quantization:
    """How linear layers are quantised. `of` fills in a mode's defaults and checks what is given."""

    bits: int
    group_size: int
    mode: str = "affine"

    @classmethod
    def of(cls, bits: int | None = None, group_size: int | None = None, mode: str = "affine") -> Quantization:
        """Raises ConfigError for a combination that MLX does not have."""
        if mode not in MODES:
            raise ConfigError(f"q_mode must be one of {', '.join(MODES)}, got {mode!r}{nearest(mode, MODES)}")
        all_bits, groups = MODES[mode]
        bits, group_size = bits or all_bits[0], group_size or groups[0]
        for name, value, allowed in (("q_bits", bits, all_bits), ("q_group_size", group_size, groups)):
            if value not in allowed:
                known = ", ".join(str(n) for n in sorted(allowed))
                raise ConfigError(f"{name} must be {known} with q_mode {mode}, got {value}")
        return cls(bits, group_size, mode)

    def as_dict(self) -> dict[str, Any]:
        """As config.json has it, and as MLX's quantisation functions take it."""
        return {"bits": self.bits, "group_size": self.group_size, "mode": self.mode}


def parameters_of(module: nn.Module) -> dict[str, mx.array]:
    """Every parameter by its path."""
    return dict(tree_flatten(module.parameters()))


def quantizable(component: Component, path: str, layer: nn.Module, group_size: int = 64) -> bool:
    """Whether the layer at `path` of the component is one that may be quantised.

    Those are the linear layers (1×1 convolutions among them) whose input is a multiple of the group size, but
    for what the component keeps in full precision. Norms, tables and embeddings are not.
    """
    return (
        component.quantized
        and isinstance(layer, nn.Linear)
        and not any(f"{path}.".startswith(f"{kept}.") for kept in component.full_precision)
        and layer.weight.ndim == 2
        and layer.weight.shape[-1] % group_size == 0
    )


@dataclass(frozen=True)
class ModelFolder:
    """An MLX folder. Opening one reads its config.json and headers; `load` reads one component."""

    path: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> ModelFolder:
        """Check that `path` is a whole MLX folder; CheckpointError says what it is or lacks otherwise."""
        path = at_home(path)
        if not path.is_dir():
            raise CheckpointError(
                f"{path}: {'not a folder' if path.exists() else 'no such folder'}; "
                "give the MLX folder that `acestep-mlx convert` wrote"
            )
        if any((path / folder).is_dir() for folder in _transformers()):
            raise CheckpointError(
                f"{path} is the PyTorch checkpoint; "
                f"run `acestep-mlx convert --hf-path {shlex.quote(str(path))} --mlx-path OUT` first"
            )
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} is not an MLX folder: it has no config.json")
        config = _read_config(path / "config.json")
        folder = cls(path, config)
        components = folder.family.components
        wanted = [*(f"{name}.safetensors" for name in components), *folder.family.texts.files.values()]
        missing = [name for name in wanted if not (path / name).is_file()]
        if missing:
            raise CheckpointError(f"{path} is incomplete: {', '.join(missing)} missing; convert again")
        headers = {name: read_header(folder.file(name)) for name, one in components.items() if one.quantized}
        for name, header in headers.items():
            _check_quantization(folder.file(name), header, folder.quantization)
        if folder.quantization and not any(
            n.endswith(".scales") for h in headers.values() for n in h.tensors
        ):
            raise CheckpointError(
                f"{path / 'config.json'}: it says that the model is quantised, and none of its layers is; "
                "copy the folder again, or convert again"
            )
        for name in components:
            folder.check_file(name)
        return folder

    @property
    def fingerprints(self) -> dict[str, str]:
        """Component → SHA-256 of its contents."""
        return dict(self.config["fingerprints"])

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the folder is quantised ("bits", "group_size", "mode"), or None."""
        found = self.config["quantization"]
        return Quantization.of(**found).as_dict() if found else None

    @property
    def family(self) -> Family:
        """The model's family."""
        return family(self.config["family"])

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of whatever is not quantised."""
        return DTYPES[self.config["dtype"]]

    def check_bits(self, bits: int | None) -> None:
        """CheckpointError when a quantised folder is asked for another precision than it has."""
        stored = self.quantization
        if stored is not None and bits not in (None, stored["bits"]):
            raise CheckpointError(
                f"{self.path} is quantised to {stored['bits']} bits, which cannot become "
                f"{bits} bits; use base_model_precision=no_change, or convert again without -q"
            )

    def file_apart(self, apart: Apart) -> Path:
        """The file of what is kept apart. CheckpointError, with the command that adds it, where it is not
        there: earlier versions of `convert` left it out.
        """
        file = self.path / f"{apart.name}.safetensors"
        if not file.is_file():
            source = self.config["source"]
            known = any(source["path_or_repo"] == v.repository for v in self.family.variants.values())
            revision = None if known else source.get("revision")
            command = ["convert", "--add-missing", "--hf-path", source["path_or_repo"]]
            command += ["--revision", revision] if revision else []
            raise CheckpointError(
                f"{self.path} has no {file.name}, {apart.title}; add it with `acestep-mlx "
                f"{shlex.join([*command, '--mlx-path', str(self.path)])}`"
            )
        return file

    def check_file(self, component: str) -> None:
        """CheckpointError when the file of a component is not the one that config.json was written for, as
        its size, header and some blocks tell. Folders of 0.1 say nothing of their files.
        """
        recorded, path = self.config.get("files", {}).get(component), self.file(component)
        found = sample(path)
        if recorded is None or found == recorded:
            return
        why = "its contents have changed"
        if found["bytes"] != recorded["bytes"]:
            why = f"it has {found['bytes']} bytes, and {recorded['bytes']} are recorded"
        raise self._another(path, why)

    def check_contents(self, progress: Progress = silent) -> None:
        """Read all weights; CheckpointError when those of a component are not what its fingerprint says, or
        a tokenizer is another than was converted.
        """
        headers = {name: read_header(self.file(name)) for name in self.family.components}
        total = sum(info.nbytes for header in headers.values() for info in header.tensors.values())
        done = 0

        def read(size: int) -> None:
            nonlocal done
            done += size
            progress(Advance("comparing the weights with their fingerprints", done, total, "bytes"))

        for name, header in headers.items():
            try:
                found = contents_digest(header, read)
            except OSError as error:
                raise CheckpointError(f"{self.file(name)}: {cause(error)}") from None
            if found != self.fingerprints[name]:
                wanted = self.fingerprints[name]
                why = f"its fingerprint is {found[:16]}, and {wanted[:16]} is recorded"
                raise self._another(self.file(name), why)
        self.prompt_tokenizer()
        self.lyric_vocab()

    def _another(self, path: Path, why: str) -> CheckpointError:
        return CheckpointError(
            f"{path} is not the file that config.json describes: {why}; "
            "copy the folder again, or convert again"
        )

    def component_config(self, component: str) -> Any:
        """The component's config dataclass; CheckpointError names a key that is not understood, or a size
        that the weights cannot have.
        """
        return self._build(component, read_header(self.file(component)))[0]

    def _build(self, component: str, header: Header) -> tuple[Any, nn.Module]:
        made, values = self.family.components[component], self.config["components"][component]
        try:
            return component_module(component, made, values, len(header.tensors))
        except CheckpointError as error:
            raise CheckpointError(f"{self.path / 'config.json'}: {error}") from None

    def skeleton(self, component: str) -> nn.Module:
        """The component's module, quantised where its file is; its arrays stay lazy."""
        header = read_header(self.file(component))
        module = self._build(component, header)[1]
        if self.quantization is not None:
            stored = self.quantization
            nn.quantize(module, **stored, class_predicate=lambda name, _: f"{name}.scales" in header.tensors)
        return module

    def file(self, component: str) -> Path:
        """Where a component's weights are."""
        return self.path / f"{component}.safetensors"

    def load(
        self,
        component: str,
        dtype: mx.Dtype | None = None,
        quantize: Quantization | Mapping[str, Any] | None = None,
        *,
        used: tuple[str, ...] = ("",),
    ) -> nn.Module:
        """One component, frozen and in evaluation mode, its weights evaluated.

        component: one of the family's. dtype: of everything that is not quantised (default: the folder's).
        quantize: quantise the large linear layers while loading, one at a time; a folder that is quantised
        already is taken as it is when the bits agree, and refused when they do not. used: beginnings of the
        paths of the weights that are needed; no memory is taken for the rest, which is read when it is used
        all the same. Raises CheckpointError that names every tensor which is missing, unknown or of the wrong
        shape.
        """
        if component not in self.family.components:
            raise ValueError(f"unknown component {component!r}")
        if isinstance(quantize, Mapping):
            quantize = Quantization.of(**quantize)
        hold(self.path, new=False)
        file, module = self.file(component), self.skeleton(component)
        self.check_bits(quantize.bits if quantize else None)
        if self.quantization is not None:
            quantize = None
        _check_tensors(file, read_header(file), module)
        self.check_file(component)
        module.load_weights(list(load_lazily(file).items()), strict=True)
        if dtype is not None:
            module.update(tree_map(lambda x: _cast(x, dtype), module.parameters()))
        if quantize is not None:
            quantize_layers(self.family.components[component], module, quantize)
        for path, value in parameters_of(module).items():
            if path.startswith(used):
                mx.eval(value)  # one at a time, so that a cast never holds two whole models
        module.freeze()
        module.eval()
        module._folder = self
        return module

    def prompt_tokenizer(self) -> Any:
        """The tokenizer of prompts. CheckpointError when it is another model's."""
        return self.family.texts.prompt_tokenizer(self)

    def lyric_tokenizer(self) -> Any:
        """The tokenizer of lyrics. CheckpointError when its vocabulary is another model's."""
        return self.family.texts.lyric_tokenizer(self)

    def lyric_vocab(self) -> Path:
        """What `lyric_tokenizer` reads. CheckpointError when it is not the file that was converted."""
        return self.family.texts.lyric_vocab(self)


def _transformers() -> list[str]:
    """The folders in which other programs keep the transformer."""
    return [folder for _, layout in layouts() if (folder := layout.places["transformer"].folder)]


def quantize_layers(component: Component, module: nn.Module, quantization: Quantization) -> list[str]:
    """Quantise every quantisable layer in place, evaluating one after the other; returns their paths.

    A layer's full-precision weight is released before the next one is read.
    """
    size = quantization.group_size
    names = [path for path, layer in module.named_modules() if quantizable(component, path, layer, size)]
    for name in names:
        parent: Any = module
        *path, leaf = name.split(".")
        for part in path:
            parent = parent[int(part)] if isinstance(parent, list) else parent[part]
        key = int(leaf) if isinstance(parent, list) else leaf
        parent[key] = parent[key].to_quantized(**quantization.as_dict())
        mx.eval(parent[key].parameters())
    return names


def _cast(value: mx.array, dtype: mx.Dtype) -> mx.array:
    return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value


_names = schema.table(schema.text)
CONFIG_SCHEMA = schema.record(
    {
        "format": schema.text,
        "format_version": schema.whole(),
        "converter_version": schema.text,
        "source": schema.record({"path_or_repo": schema.text}, {"revision": schema.optional(schema.text)}),
        "dtype": schema.text,
        "components": schema.table(schema.record({})),
        "fingerprints": _names,
    },
    {
        "family": schema.text,
        "quantization": schema.optional(
            schema.record({}, {"bits": schema.whole(), "group_size": schema.whole(), "mode": schema.text})
        ),
        "files": schema.table(schema.record({"bytes": schema.whole(), "sampled": schema.text})),
        "fused": schema.items(
            schema.record({"lora": schema.text, "scale": schema.number()}, {"sha256": schema.text})
        ),
    },
)


def _read_config(path: Path) -> dict[str, Any]:
    """The config.json of an MLX folder, checked; CheckpointError in one line."""
    config: dict[str, Any] = schema.read_artifact(
        path,
        CONFIG_SCHEMA,
        what="the model",
        version=FORMAT_VERSION,
        kind=FORMAT,
        writer="acestep-mlx convert",
    )
    name = config.setdefault("family", FIRST_FAMILY)
    if name not in REGISTRY:
        raise CheckpointError(
            f"{path}: a model of the family {show(name)}, and this acestep-mlx knows {', '.join(REGISTRY)}; "
            "a newer version may have written it: update acestep-mlx"
        )
    own = family(name)
    try:
        config = schema.record({}, own.texts.config_keys)(config, "")
    except schema.Mismatch as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    known = CONFIG_KEYS | own.texts.config_keys.keys()
    for key in config:
        if key not in known:
            raise CheckpointError(f"{path}: unknown key {key!r}{nearest(key, known)}")
    for key in ("components", "fingerprints", "files"):
        if key in config and set(config[key]) != set(own.components):
            names = ", ".join(own.components)
            raise CheckpointError(f"{path}: {key!r} must have exactly {names}; convert again")
    if config["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: dtype must be one of {', '.join(DTYPES)}, got {config['dtype']!r}")
    quantization = config.setdefault("quantization", None)
    if quantization is not None:
        try:
            Quantization.of(**quantization)
        except (TypeError, ConfigError) as error:
            raise CheckpointError(f"{path}: quantization: {error}") from None
    return config


def component_module(
    name: str, component: Component, values: Mapping[str, Any], tensors: int
) -> tuple[Any, nn.Module]:
    """The config of a component and its module, whose arrays stay lazy.

    values: of its config.json. tensors: how many the weights have. CheckpointError for values that are not
    understood or that no such weights can have.
    """
    config = component.config.from_dict(values)
    check_repeats(name, config, config.REPEATED, tensors)
    try:
        return config, component.module(config)
    except (ValueError, ArithmeticError) as error:  # MLX refuses shapes beyond its range
        raise CheckpointError(f"{name} config: its sizes make no model: {error}") from None


def _check_quantization(path: Path, header: Header, stored: Mapping[str, Any] | None) -> None:
    """CheckpointError when the packed layers of a file cannot be what config.json says of them."""
    tensors = header.tensors
    for name in tensors:
        layer, _, leaf = name.rpartition(".")
        weight = tensors.get(f"{layer}.weight")
        if leaf != "scales" or weight is None:
            continue
        packed, scales = weight.shape[-1:], tensors[name].shape[-1:]
        if not packed or not scales:
            continue  # no layer at all: `load` refuses it
        if stored is None:
            why = "and config.json says that nothing is"
        elif packed[0] * 32 != scales[0] * stored["group_size"] * stored["bits"]:
            why = f"not to {stored['bits']} bits in groups of {stored['group_size']}, as config.json says"
        elif (f"{layer}.biases" in tensors) != (stored["mode"] == "affine"):
            why = f"not in the mode {stored['mode']}, as config.json says"
        else:
            continue
        raise CheckpointError(
            f"{path}: {layer!r} is quantised, {why}; copy the folder again, or convert again"
        )


def _check_tensors(path: Path, header: Header, module: nn.Module) -> None:
    parameters = parameters_of(module)
    wanted = {name: tuple(value.shape) for name, value in parameters.items()}
    floating = {name: mx.issubdtype(value.dtype, mx.floating) for name, value in parameters.items()}
    problems = [
        f"unknown tensor {name!r}{nearest(name, wanted)}" for name in header.tensors if name not in wanted
    ]
    for name, shape in wanted.items():
        if name not in header.tensors:
            problems.append(f"missing tensor {name!r}")
        elif header.tensors[name].shape != shape:
            problems.append(f"{name!r} has shape {header.tensors[name].shape}, expected {shape}")
        elif (header.tensors[name].dtype in FLOATS) != floating[name]:
            problems.append(f"{name!r} is stored as {header.tensors[name].dtype}")
    if problems:
        raise CheckpointError(f"{path}: {count(len(problems), 'problem')}: {listed(problems)}")
