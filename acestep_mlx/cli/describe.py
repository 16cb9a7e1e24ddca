"""What a model, a LoRA, a data set or a song is, as lines of text."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, DataError
from ..formatting import count, size

if TYPE_CHECKING:
    from ..data.summary import SongRow
    from ..families.model_folder import ModelFolder
    from ..families.protocol import Family
    from ..io.safetensors import TensorInfo
    from ..lora.weights import LoRAWeights

NAMES = 20  # names per list
SECONDS = 60  # of music, for the memory estimate
# What LoRA files have in their keys, and what may stand before a module's path.
SPELLINGS = {
    ".lokr_w": "LyCORIS's",
    ".lora_A.": "peft's",
    ".lora_down.": "kohya's",
    ".lora.down.": "diffusers' old",
    ".lora_a": "mlx-lm's",
}
PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.")


def number(n: int) -> str:
    """A count of parameters for people."""
    return f"{n / 1e6:.2f} M" if n >= 1e4 else str(n)


def _parameters(n: int) -> str:
    return f"{number(n)} {'parameter' if n == 1 else 'parameters'}"


def _dtypes(tensors: Iterable[TensorInfo]) -> str:
    sizes: Counter[str] = Counter()
    for info in tensors:
        sizes[info.dtype] += info.nbytes
    return ", ".join(name for name, _ in sizes.most_common())


def pytorch_checkpoint(path: Path) -> list[str]:
    """An upstream checkpoint: its components, and whether it would convert."""
    from ..convert.source import resolve
    from ..convert.stream import plan_component

    source = resolve(path)
    lines, problems, bytes_total = [f"{path}: {source.layout.title}"], [], 0
    model: Any = None
    folders = source.family.layouts[0].places
    for name in source.layout.places:
        try:
            part = source.component(name)
            tensors = part.tensors.values()
            stored = sum(info.nbytes for info in tensors)
            bytes_total += stored
            lines.append(
                f"  {folders[name].folder:22} {number(sum(info.size for info in tensors)):>10} parameters, "
                f"{_dtypes(tensors)}, {size(stored)}"
            )
            planned = plan_component(source, name)
            if name == "transformer":
                model = planned.config
            unused = sum(part.tensors[tensor].size for tensor in planned.plan.dropped)
            if unused:
                lines.append(f"  {'':22} {number(unused):>10} of them are left out by the conversion")
        except CheckpointError as error:
            problems.append(str(error))
    lines.append(f"  {size(bytes_total)} in all")
    if model is not None and len(source.family.variants) > 1:
        lines.append(f"  variant: {' or '.join(source.family.flavours(model))}")
    if problems or model is None:
        return [*lines, "it does not convert:", *(f"  {problem}" for problem in problems)]
    lines += training_memory(source.family, model, None)
    lacking = source.family.texts.lacking(source.path, source.layout)
    lines += [f"  {line}" for line in lacking.values()]
    flags = "".join(f" --{name.replace('_', '-')} PATH" for name in lacking)
    return [
        *lines,
        f"to use it: acestep-mlx convert --hf-path {shlex.quote(str(path))} --mlx-path OUT{flags}",
    ]


def mlx_folder(path: Path) -> list[str]:
    """An MLX folder: precision, components, source, and what fits this machine; all its weights are read."""
    from ..families.model_folder import ModelFolder
    from .progress import Display

    folder = ModelFolder.open(path)
    config = folder.config
    source = config["source"]
    lines = [
        f"{path}: MLX model of acestep-mlx, converter {config['converter_version']}",
        f"  family: {folder.family.title}",
        f"  source: {source['path_or_repo']}{' at ' + source['revision'] if source.get('revision') else ''}",
        f"  precision: {precision(folder)}",
    ]
    for name in folder.family.components:
        parameters, stored, quantized = component_size(folder, name)
        layers = f", {count(quantized, 'layer')} quantised" if quantized else ""
        lines.append(
            f"  {name:13} {number(parameters):>10} parameters, {size(stored):>10}{layers}, "
            f"fingerprint {folder.fingerprints[name][:16]}"
        )
        folder.component_config(name)  # refuses what it does not understand
    lines += [f"  {line}" for line in folder.family.texts.describe(config)]
    for one in config.get("fused", ()):
        digest = f", SHA-256 {one['sha256'][:16]}" if "sha256" in one else ""
        lines.append(f"  fused LoRA: {_quoted(one['lora'])} at {one['scale']:g}{digest}")
    with Display() as display:
        folder.check_contents(display)
    bits = (folder.quantization or {}).get("bits")
    return lines + training_memory(folder.family, folder.component_config("transformer"), bits)


def precision(folder: ModelFolder) -> str:
    """Dtype and quantisation in words."""
    q = folder.quantization
    if q is None:
        return str(folder.config["dtype"])
    kind = f"{q['bits']} bits ({q['mode']}, groups of {q['group_size']})"
    return f"{kind}, the rest {folder.config['dtype']}"


def component_size(folder: ModelFolder, name: str) -> tuple[int, int, int]:
    """(parameters as before quantisation, bytes, quantised layers) of a component; reads its header only."""
    from ..io.safetensors import read_header

    tensors = read_header(folder.file(name)).tensors
    stored = sum(info.nbytes for info in tensors.values())
    bits = (folder.quantization or {}).get("bits", 0)
    parameters = quantized = 0
    for key, info in tensors.items():
        layer, _, leaf = key.rpartition(".")
        packed = f"{layer}.scales" in tensors
        if leaf in ("scales", "biases") and packed:
            continue
        quantized += packed and leaf == "weight"
        parameters += info.size * 32 // bits if packed and leaf == "weight" else info.size
    return parameters, stored, quantized


def training_memory(family: Family, model: Any, stored_bits: int | None) -> list[str]:
    """What training takes at each precision of the base, and whether this machine has it."""
    from ..config.read_run import load_config
    from ..training.memory import budget, estimate, machine_memory

    flavour, memory, room = family.flavours(model)[0], machine_memory(), budget()
    lines = [
        f"training (rank 16, batch 1, {SECONDS} s of music) on this machine, {size(memory)} "
        f"of which {size(room)} are usable:"
    ]
    for precision in ("no_change",) if stored_bits else ("no_change", "int8-quanto", "int4-quanto"):
        config = load_config({"base_model_precision": precision, "model_flavour": flavour})
        need = estimate(config, family.memory.load(SECONDS), model=model, stored_bits=stored_bits).total
        verdict = "fits" if need <= room else "does not fit"
        lines.append(f"  base_model_precision={precision}: about {size(need)}, {verdict}")
    return lines


def lora(path: Path, against: ModelFolder | None) -> list[str]:
    """A LoRA of any format: rank, alpha, targets, scale, and whether it is for this model.

    Other adapters, and LoRAs of other models, are named for what they are.
    """
    from ..io.safetensors import read_header
    from ..lora.formats.read import find_file, read_lora
    from ..lora.formats.recognise import recognise

    file = find_file(path)
    header = read_header(file)
    stored = f"{_dtypes(header.tensors.values())}, {size(file.stat().st_size)}"
    adapter = recognise(header.tensors)
    if adapter is not None and adapter.problem:
        whose = f" for {adapter.model}" if adapter.model else ""
        return [
            f"{file}: {adapter.kind}{whose}, {count(len(adapter.modules), 'module')}, {stored}",
            f"  cannot be used here: it {adapter.problem}",
        ]
    weights = read_lora(path)
    lines = [
        f"{file}: {weights.kind} for {weights.family.title}, {_spelling(weights, set(header.tensors))}",
        f"  {count(len(weights.modules), 'module')}, {_parameters(weights.parameter_count)}, {stored}",
    ]
    lines += _lora_facts(weights)
    fits, verdict = _fits(weights, against) if against is not None else _sizes_fit(weights)
    if fits and weights.unscaled < len(weights.modules):
        lines.append(f"  {_strength(weights)}")
    lines += [f"  {line}" for line in (*verdict, *(weights.notes if fits else ()))]
    if not weights.is_trained:
        lines.append("  it is untrained: it changes nothing")
    return lines


def _spelling(weights: LoRAWeights, names: set[str]) -> str:
    if weights.metadata.get("file_format"):
        made = weights.metadata.get("tool_version") or "of unknown version"
        return f"format {weights.metadata['file_format']!r} of acestep-mlx {made}"
    found = next((what for part, what in SPELLINGS.items() if any(part in n for n in names)), "other")
    prefix = next((p for p in PREFIXES if any(n.startswith(p) for n in names)), "")
    return f"{found} keys{f' under {prefix!r}' if prefix else ''}"


def _lora_facts(weights: LoRAWeights) -> list[str]:
    facts = {name: fact for name, fact in weights.metadata.items() if fact is not None}
    factored = [module for module in weights.modules.values() if not module.is_whole]
    ranks = Counter(module.rank for module in factored)
    targets = Counter(_target(name) for name in weights.modules)
    alphas = Counter(round(module.scale * module.rank, 6) for module in factored)
    lines = [f"  rank: {_counted(ranks) if factored else 'none, as its factors are whole matrices'}"]
    if factored and not facts and not weights.unscaled:
        lines.append(f"  scale: as alpha {_counted(alphas)} at this rank gives it")
    if "alpha" in facts:
        kind = ", rsLoRA" if facts.get("use_rslora") else ""
        rank = f"rank {facts['rank']}, " if "rank" in facts else ""
        scale = f" (scale {facts['scale']:g})" if "scale" in facts else ""
        lines.append(f"  trained with {rank}alpha {facts['alpha']:g}{kind}{scale}")
    if "lycoris_config" in facts:
        lines.append(f"  trained with {facts['lycoris_config']}")
    lines.append(f"  targets: {', '.join(f'{name} × {n}' for name, n in targets.most_common())}")
    if facts.get("targets"):
        lines.append(f"  chosen as: {', '.join(facts['targets'])}")
    if "step" in facts:
        lines.append(f"  step: {facts['step']}")
    if "base" in facts:
        lines.append(
            f"  base: {facts['base']}, fingerprint {str(facts.get('base_fingerprint', 'unknown'))[:16]}"
        )
    lines += [f"  {licence}" for licence in facts.get("licences", ())]
    title = weights.family.lora.full.title
    if weights.full:
        parameters = sum(value.size for value in weights.full.values())
        tensors = count(len(weights.full), "tensor")
        lines.append(f"  {title}: {tensors}, {number(parameters)} parameters")
    if weights.diffs:
        lines.append(f"  {title}: changes of {count(len(weights.diffs), 'tensor')}")
    return lines


def _strength(weights: LoRAWeights) -> str:
    """How strong to use it. A scale other than 1 is in the file's alpha, which not every loader reads."""
    scales = Counter(round(module.scale, 6) for module in weights.modules.values())
    only = " (the only one at which a DoRA is the same in every program)" if weights.is_dora else ""
    if list(scales) == [1.0]:
        return f"use at strength 1.0{only}"
    return (
        f"scale {_counted(scales)}, applied by acestep-mlx itself (use at strength 1.0 here); for other "
        f"loaders `acestep-mlx export` multiplies it in{only}"
    )


def _counted(counts: Counter[Any]) -> str:
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    return ", ".join(f"{value:g} ({count(n, 'module')})" for value, n in counts.most_common())


def _target(name: str) -> str:
    """`transformer_blocks.3.attn.to_out.0` → `attn.to_out.0`: a module without its block's number."""
    parts = name.split(".")
    last = max((i for i, part in enumerate(parts[:-1]) if part.isdigit()), default=-1)
    return ".".join(parts[last + 1 :])


def _fits(weights: LoRAWeights, folder: ModelFolder) -> tuple[bool, list[str]]:
    try:
        weights.check_against(folder.skeleton("transformer"))
    except CheckpointError as error:
        return False, [f"does not fit {folder.path}: {error}"]
    recorded = weights.metadata.get("base_fingerprint")
    same = recorded == folder.fingerprints["transformer"]
    note = ", the one it was trained on" if same else ", another than it was trained on"
    return True, [f"fits {folder.path}{'' if recorded is None else note}"]


def _sizes_fit(weights: LoRAWeights) -> tuple[bool, list[str]]:
    """Without a model at hand: whether the sizes are the released model's."""
    from ..lora.formats.recognise import check_model, fitting, other_size

    try:
        check_model(weights.shapes, weights.family, "it")
    except CheckpointError as error:
        return False, [str(error)]
    if wrong := other_size(weights.shapes, weights.family):
        return True, [f"for a miniature model, not the released one: {wrong}"]
    flavours = fitting(weights.shapes, weights.family)
    return True, [] if len(flavours) == len(weights.family.variants) else [f"for {', '.join(flavours)}"]


def weights_file(path: Path) -> list[str]:
    """A safetensors file that is no LoRA."""
    from ..io.safetensors import read_header

    header = read_header(path)
    tensors = header.tensors.values()
    stored = sum(info.nbytes for info in tensors)
    lines = [
        f"{path}: safetensors, {count(len(header.tensors), 'tensor')}, "
        f"{_parameters(sum(info.size for info in tensors))}, {_dtypes(tensors)}, {size(stored)}",
    ]
    lines += [
        f"  {name} {list(info.shape)} {info.dtype}" for name, info in list(header.tensors.items())[:NAMES]
    ]
    if len(header.tensors) > NAMES:
        lines.append(f"  and {len(header.tensors) - NAMES} more")
    return lines


def data_set(path: Path, kind: str, model: ModelFolder | None = None) -> list[str]:
    """A folder of songs (`local`) or a Hugging Face data set (`huggingface`), as training would see it.

    model: that would be trained; the first family's without one.
    """
    from ..config.read_run import load_config
    from ..data.manifest import build_manifest
    from ..data.song_table import song_table
    from .progress import Display

    entry: dict[str, Any] = {"id": path.resolve().name or "songs", "type": kind, "dataset_type": "audio"}
    if kind == "local":
        entry |= {"instance_data_dir": str(path.resolve()), "caption_strategy": "textfile"}
    else:
        entry |= {"dataset_name": str(path.resolve()), "caption_strategy": "huggingface"}
    options: dict[str, Any] = {"data_backend_config": [entry], "vae_cache_disable": True}
    if model is not None:
        options["model_flavour"] = model.family.flavours(model.component_config("transformer"))[0]
    config = load_config(options)
    with Display() as progress:
        manifest = build_manifest(config, progress)
    rows = [_spoken(row, one.lyrics) for one in manifest.report.sets for row in one.rows]
    return [f"{path}: data set", *song_table(rows), "", *manifest.report.lines(NAMES)]


def _spoken(row: SongRow, lyrics: Mapping[str, str]) -> SongRow:
    """The song with the language that most lines of its lyrics are in, where nobody said it."""
    from ..text.lines import line_languages

    found = None if row.language is not None else line_languages(lyrics.get(row.name, ""))
    return replace(row, language=max(found, key=lambda one: found[one])) if found else row


def audio_file(path: Path, model: ModelFolder | None = None) -> list[str]:
    """A sound file, and how long it is for the model; for the first family's without one."""
    from ..data.facts import SILENT, FileAudio, examine
    from ..families import default
    from ..io.audio import WRITABLE, look, probe

    found = look(path)
    facts = examine(FileAudio(path))  # as training looks at it
    silent = facts.problem is not None and facts.problem.startswith(SILENT)
    if facts.problem is not None and not silent:
        raise DataError(f"{path}: {facts.problem}")
    seconds = probe(path).duration if silent else facts.duration
    latents = (model.family if model is not None else default()).latents
    frames = latents.covering(round(seconds * latents.sample_rate))
    line = (
        f"{path}: {found.format} audio, {seconds:.2f} s, {found.sample_rate} Hz, "
        f"{count(found.channels, 'channel')}, {frames} latent frames"
        + (f"; length counted by decoding: {facts.counted}" if facts.counted else "")
        + (f"; {facts.lost}" if facts.lost else "")
        + (f"; training leaves it out: {facts.problem}" if silent else "")
    )
    if path.suffix.lower() not in WRITABLE:
        return [line]
    try:
        return [line, "made by acestep-mlx:", *song_record(path)]
    except DataError:
        return [line]  # somebody else's song


def lyrics(path: Path, folder: ModelFolder | None, given: Path | None, language: str | None) -> list[str]:
    """Lyrics line by line, as training and `generate` read them. folder, given: the model, or the vocabulary
    of lyrics, to read them with.
    """
    from ..families import default
    from ..families.protocol import LyricsQuestion
    from ..io.kept import cache_folder
    from ..io.text_files import read_text
    from .progress import Display

    family = folder.family if folder is not None else default()
    read = family.read_lyrics(read_text(path)[0], None)
    asked = LyricsQuestion(read.text or "", language, folder, given, cache_folder(), Display())
    lines = family.lyrics_report(asked)
    return [f"{path}: lyrics", *read.notes, *lines]


def song_record(path: Path) -> list[str]:
    """How a generated song was made, from the JSON beside it or its own tags. DataError when not there."""
    from ..config.request import Request
    from ..sampling.record import read_record

    record = read_record(path)
    model, loras = record.get("model") or {}, record.get("loras") or []
    lines = [f"  version: {_quoted(record.get('version'))}", f"  model: {_quoted(model.get('path'))}"]
    lines += [f"  LoRA: {_quoted(one['path'])} at {one['scale']:g}" for one in loras]
    usual = {k: v for k, v in Request().to_dict().items() if k not in ("task", "prompt", "seeds")}
    chosen = {k: v for k, v in record["request"].items() if k not in usual or usual[k] != v}
    lines += [f"  {_quoted(name)[1:-1]}: {_quoted(value)}" for name, value in chosen.items()]
    return [*lines, f"repeat it with: acestep-mlx generate --from-json {shlex.quote(str(path))}"]


def _quoted(value: object) -> str:
    """What a file says, on one line and without anything that a terminal would obey."""
    return json.dumps(value, ensure_ascii=False)
