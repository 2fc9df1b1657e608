"""Smooth random fields: the raw material of outlines, regions, fibers and chromatin."""

from __future__ import annotations

import numpy as np

from stinfer.contract import F32, F64


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
    frequency_y = np.fft.fftfreq(shape[0])[:, None]
    frequency_x = np.fft.rfftfreq(shape[1])[None, :]
    # The Fourier transform of a Gaussian of width sigma.
    gain = np.exp(-2.0 * np.pi**2 * ((sigma[0] * frequency_y) ** 2 + (sigma[1] * frequency_x) ** 2))
    field: F64 = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * gain, s=shape)
    field -= field.mean()
    return np.asarray(field / field.std(), np.float32)


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
