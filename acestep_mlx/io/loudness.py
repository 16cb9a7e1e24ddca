"""How loud a sound is heard: ITU-R BS.1770-5, K-weighted and gated."""

from __future__ import annotations

import numpy as np

BLOCK, HOP = 0.4, 0.1  # seconds
SILENT, BELOW = -70.0, -10.0  # LUFS, and LU under the mean: blocks below are not counted


def _weights(hertz: np.ndarray) -> np.ndarray:
    """The K filter's response: the analogue shelf and high pass that the standard's biquads come from."""
    s = 1j * hertz / 1681.9744509555319
    shelf = (1.5848647011308556 * s**2 + 1.2587209302325579 / 0.7071752369554196 * s + 1) / (
        s**2 + s / 0.7071752369554196 + 1
    )
    s = 1j * hertz / 38.13547087602444
    return np.asarray(shelf * s**2 / (s**2 + s / 0.5003270373238773 + 1))


def loudness(samples: np.ndarray, rate: int) -> float:
    """LUFS of (samples,) or (samples, channels) of sound in ±1; -inf where all of it is silent."""
    sound = samples[:, None] if samples.ndim == 1 else samples
    n = 1 << (len(sound) + rate // 10).bit_length()  # room for the filter's end; fast for any length
    weights, squares = _weights(np.fft.rfftfreq(n, 1 / rate)), np.zeros(len(sound))
    for channel in sound.T:  # one by one: a song's spectrum takes hundreds of megabytes
        squares += np.square(np.fft.irfft(np.fft.rfft(channel, n) * weights, n)[: len(sound)])
    total = np.concatenate([[0.0], np.cumsum(squares)])
    length = min(round(BLOCK * rate), len(sound))
    starts = np.arange(0, len(sound) - length + 1, max(1, round(HOP * rate)))
    power = np.maximum((total[starts + length] - total[starts]) / length, 1e-30)
    power = power[_level(power) > SILENT]
    if not len(power):
        return -np.inf
    power = power[_level(power) > _level(power.mean()) + BELOW]
    return float(_level(power.mean()))


def _level(power: np.ndarray) -> np.ndarray:
    return np.asarray(-0.691 + 10 * np.log10(power))
