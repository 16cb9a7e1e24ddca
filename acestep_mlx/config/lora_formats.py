"""The key formats that LoRAs are written in, each a row of FORMATS; `lora/formats/write.py` writes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """How one kind of loader calls the parts of a module; what stands in front of its path, the family says.

    programs: who loads such a file. a, b, magnitude: endings of keys. baked: the trained scale is inside b.
    """

    programs: str
    a: str
    b: str
    magnitude: str
    baked: bool = True


FORMATS: dict[str, Format] = {
    "peft": Format(
        "the original pipeline, diffusers, and (unless it is a DoRA) ComfyUI",
        "lora_A.weight", "lora_B.weight", "lora_magnitude_vector",
    ),
    "comfyui": Format("ComfyUI", "lora_A.weight", "lora_B.weight", "dora_scale"),
    "diffusers": Format(
        "diffusers", "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
    ),
    "simpletuner": Format(
        "SimpleTuner's --init_lora", "lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"
    ),
    "mlx": Format("acestep-mlx, with the trained A, B and scale apart", "lora_a", "lora_b", "m", baked=False),
}  # fmt: skip

LYCORIS = "lycoris"
#: the formats that a LoKr is written in → who loads it; its keys end as LyCORIS's do
LOKR_FORMATS = {"comfyui": "ComfyUI", LYCORIS: "LyCORIS and the programs that load with it"}
ALL_FORMATS = tuple(dict.fromkeys([*FORMATS, *LOKR_FORMATS]))
#: what a run's `lora_format` may be; `diffusers` is SimpleTuner's word there for what peft is here
RUN_FORMATS = tuple(name for name in ALL_FORMATS if name != "diffusers")
