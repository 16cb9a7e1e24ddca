"""The reference of every configuration key as Markdown, from the tables that the program itself reads.

python docs/reference.py > docs/configuration.md
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from acestep_mlx.config.datasets import TABLES
from acestep_mlx.config.foreign import IGNORED_PREFIXES
from acestep_mlx.config.lycoris import OVERRIDE, PRESET, TOP
from acestep_mlx.config.option import Option
from acestep_mlx.config.run import GROUPS, OPTIONS
from acestep_mlx.registry import REGISTRY, answers

_BLOCKS = {
    "entry": "A data set, or the `text_embeds` entry",
    "audio": "Its `audio` block",
    "columns": "Its `config` or `huggingface` block",
    "shuffle": "Its `caption_shuffle` block",
}


def markdown() -> str:
    """The whole page."""
    out = [
        "# Configuration",
        "",
        "Made by `python docs/reference.py`; a test keeps it true. Keys may be written with or",
        "without leading `--`, with dashes or underscores; `null` drops a key; `--key=value` on the command",
        "line wins.",
        "",
        "## config.json",
        "",
    ]
    for group, options in GROUPS.items():
        if group != "other trainers":
            out += [f"### {group[0].upper()}{group[1:]}", "", *_table(options), ""]
    out += ["### Keys of other trainers", "", *_table(GROUPS["other trainers"]), ""]
    named = {option.name for options in GROUPS.values() for option in options}
    out += _by_reason(o for o in OPTIONS.values() if o.name not in named)
    out += [f"- *ignored*, {why}: {_beginnings(names)}" for why, names in IGNORED_PREFIXES.items()]
    out += ["", *_lycoris()]
    out += ["", "## multidatabackend.json", ""]
    for name, title in _BLOCKS.items():
        table = TABLES[name].values()
        out += [f"### {title}", "", *_table(o for o in table if o.status == "supported"), ""]
        rest = [o for o in table if o.status != "supported"]
        out += [*_by_reason(rest), ""] if rest else []
    return "\n".join(out).rstrip() + "\n"


_LYCORIS = """\
The file that `lycoris_config` names with `lora_type: lycoris`: LyCORIS's own, as SimpleTuner takes it.

```json
{"algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, "factor": 16,
 "apply_preset": {"target_module": ["Attention"], "module_algo_map": {"Attention": {"factor": 8}}}}
```

The update of a layer is w1 ⊗ w2: w1 about `factor` × `factor`, w2 the rest, whole, or a product of rank
`linear_dim` where that makes it smaller. Without `apply_preset` the layers are those of `acestep_lora_target`
or `peft_lora_target_modules`; `lora_rank`, `lora_alpha`, `lora_dropout`, `use_dora`, `use_rslora` and
`lora_init_type` have no effect. Classes that `target_module` knows: """


def _lycoris() -> list[str]:
    """The file of `lycoris_config`."""
    classes = [
        f"{one.title}: {', '.join(f'`{name}`' for _, names in one.lora.classes for name in names)}"
        for one in map(answers, REGISTRY)
    ]
    out = ["## lycoris_config", "", f"{_LYCORIS}{'; '.join(classes)}; and `Linear`.", ""]
    entry = "An entry of `module_algo_map` or `name_algo_map`"
    tables = {"The file": TOP, "Its `apply_preset`": PRESET, entry: OVERRIDE}
    for title, table in tables.items():
        supported = [option for option in table.values() if option.status == "supported"]
        rest = [option for option in table.values() if option.status != "supported"]
        out += [f"### {title}", "", *_table(supported), "", *_by_reason(rest), ""]
    return out[:-1]


def _table(options: Iterable[Option]) -> list[str]:
    out = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for option in options:
        also = f" (also {', '.join(f'`{a}`' for a in option.aliases)})" if option.aliases else ""
        default = "" if option.default is None else f"`{json.dumps(option.default).strip(chr(34))}`"
        meaning = option.help.replace("|", "\\|")
        if option.status != "supported":
            meaning += f" *{option.status}*: {option.reason}"
        out.append(f"| `{option.name}`{also} | {default} | {_values(option)} | {meaning} |")
    return out


def _values(option: Option) -> str:
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    kind = {"bool": "true, false", "int": "whole number", "float": "number", "str": "text", "path": "path",
            "list": "list of names", "mapping": "settings"}.get(option.kind, "")  # fmt: skip
    kind = "seconds, or m:ss" if option.unit == "s" else kind
    low = f"≥ {option.low:g}" if option.low is not None else ""
    low = f"> {option.above:g}" if option.above is not None else low
    high = f"≤ {option.high:.10g}" if option.high is not None and option.high < 1e6 else ""
    limits = ", ".join(part for part in (low, high) if part)
    return f"{kind}, {limits}" if limits else kind


def _by_reason(options: Iterable[Option]) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for option in options:
        reasons.setdefault((option.status, option.reason), []).append(f"`{option.name}`")
    return [f"- *{status}*, {reason}: {', '.join(names)}" for (status, reason), names in reasons.items()]


def _beginnings(names: str) -> str:
    return ", ".join(f"`{name}…`" for name in names.split())


if __name__ == "__main__":
    print(markdown(), end="")
