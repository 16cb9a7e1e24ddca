"""What `doctor` finds on machines that nobody here has."""

from __future__ import annotations

from acestep_mlx.doctor.diagnosis import Diagnosis
from acestep_mlx.doctor.expectation import PRECISIONS, Expected
from acestep_mlx.doctor.machine import Machine, Surroundings
from acestep_mlx.doctor.selfcheck import AS_TRAINED, STEP, Check
from acestep_mlx.doctor.speed import Speed
from acestep_mlx.families.work import SECONDS

GB = 10**9
VERSIONS = {"acestep-mlx": "0.2.0", "python": "3.12.9", "mlx": "0.32.4", "mlx-metal": "0.32.4"}
MAC = Machine("Apple M2 Max", "Metal", "macOS 15.5 arm64", 64 * GB, 48 * GB, 0, VERSIONS)
NO_GPU = Machine("Some Processor", "", "Linux x86_64", 32 * GB, 21 * GB, None, VERSIONS)
AROUND = Surroundings("8.1.2", (), 300 * GB, True)


def speed() -> Speed:
    rates = {"float32": 9e12, "bfloat16": 11.5e12, "4 bits": 9.4e12, "8 bits": 9.6e12}
    modes = {"affine 4": True, "affine 8": True, "mxfp4 4": True, "nvfp4 4": False}
    return Speed(rates, 340e9, 4e-6, modes, [])


def checks(*devices: str) -> list[Check]:
    """All right, of both families and MLX."""
    found = [
        Check(family, what, device, 3e-6 if what != AS_TRAINED else 0.02, 1e-4 if what != AS_TRAINED else 0.2)
        for family in ("v1", "v15")
        for what in ("transformer", "text_encoder", STEP, AS_TRAINED)
        for device in devices
    ]
    return [*found, Check("MLX", "product in float32", devices[-1], 4e-7, 2e-5)]


def diagnosis(
    machine: Machine = MAC,
    *,
    fits: int = 240,
    found: list[Check] | None = None,
    around: Surroundings = AROUND,
) -> Diagnosis:
    """fits: songs of so many seconds and shorter ones can be trained on."""
    devices = ("CPU", "GPU") if machine.gpu else ("CPU",)
    rows = [
        Expected(
            family,
            bits,
            seconds,
            seconds / 50,
            seconds * GB // 20 + bits * GB // 3,
            seconds <= fits,
            0.5,
            0.25,
        )
        for family in ("v1", "v15")
        for bits in PRECISIONS
        for seconds in SECONDS
    ]
    return Diagnosis(machine, around, found or checks(*devices), speed(), rows)
