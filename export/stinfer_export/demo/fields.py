"""Smooth random fields: the raw material of outlines, regions, fibers and chromatin."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stinfer.contract import F32, F64

# A share of the largest gain that no float32 shows.
_GONE = 1e-12


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float]) -> F32:
    """Draw a periodic Gaussian random field: white noise blurred by a Gaussian.

    Parameters
    ----------
    rng : source of the noise
    shape : (height, width)
    sigma : blur along y and x, in cells

    Returns
    -------
    (height, width), mean 0, standard deviation 1
    """
    gain_y, gain_x = _gain(np.fft.fftfreq(shape[0]), sigma[0]), _gain(np.fft.rfftfreq(shape[1]), sigma[1])
    # A wide blur takes most frequencies away; they need no transform.
    n_kept = int(np.count_nonzero(gain_x > _GONE))
    spectrum = np.fft.rfft(rng.standard_normal(shape))[:, :n_kept]
    spectrum = np.fft.ifft(np.fft.fft(spectrum, axis=0) * (gain_y[:, None] * gain_x[:n_kept]), axis=0)
    field: F64 = np.fft.irfft(spectrum, n=shape[1])
    field -= field.mean()
    return np.asarray(field / field.std(), np.float32)


def _gain(frequency: npt.NDArray[np.floating], sigma: float) -> F64:
    """Give the Fourier transform of a Gaussian of width sigma, which falls as frequencies rise."""
    return np.asarray(np.exp(-2.0 * np.pi**2 * (sigma * frequency) ** 2), np.float64)


def signed_distance_um(field: F32, threshold: float, cell_um: float) -> F32:
    """Turn a smooth field into about the distance to its level set.

    One slope, the field's typical one, is used everywhere: that keeps the result as smooth as the field,
    where a true distance has ridges.

    Parameters
    ----------
    field : (height, width)
    threshold : level that becomes 0
    cell_um : side of a cell, µm

    Returns
    -------
    (height, width), µm, positive where the field is above the threshold
    """
    slope_y, slope_x = np.gradient(field, cell_um)
    slope = float(np.sqrt(np.mean(slope_y**2 + slope_x**2)))
    return np.asarray((field - threshold) / slope, np.float32)
