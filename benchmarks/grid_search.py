"""What `benchmarks/fit.py` compares with: the plain grid search over 200 x 200 scales.

Written as one does in a notebook, from the formulas alone, with numpy and scipy: for each pair of
scales the model is made and measured, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import correlate1d
from scipy.special import ive

SIGMAS = np.linspace(0.01, 2, 200)  # pixels; the published scales are from 0 to 1.39
GAMMAS = np.linspace(0.01, 2, 200)  # square pixels; the published ones are 0.52 and 0.53

# Rows are stored from the top, y points up: (f(y + 1) - f(y)) weighs the row above and this one.
MASKS = {
    1: ([1, -1, 0], 0),
    2: ([-1, 1, 0], 1),
    3: ([0, 1, -1], 0),
    4: ([0, -1, 1], 1),
    5: ([-0.5, 0, 0.5], 1),
    6: ([0.5, 0, -0.5], 0),
}


def model(key, x, y):
    """The model of a key at (sigma_x, sigma_y), or of key 7 at (sigma, gamma), on 7 x 7 pixels."""
    n = np.arange(-3, 4)
    if key == 7:
        smooth = ive(n, x**2)
        T = np.outer(smooth, smooth)
        laplacian = correlate1d(T, [1, -2, 1], axis=0, mode="nearest") + correlate1d(
            T, [1, -2, 1], axis=1, mode="nearest"
        )
        impulse = np.zeros((7, 7))
        impulse[3, 3] = 1
        return impulse - y * laplacian
    T = np.outer(ive(n, y**2), ive(n, x**2))
    if key == 8:
        return T
    mask, axis = MASKS[key]
    return correlate1d(T, mask, axis=axis, mode="nearest")


def l1(f, h):
    return np.abs(f - h).sum()


def l2(f, h):
    return np.sqrt(((f - h) ** 2).sum())


def variances(f, window):
    """Variances of |f| window along x and y."""
    w = np.abs(f) * window
    w = w / w.sum()
    y, x = np.mgrid[3:-4:-1, -3:4]
    mx, my = (w * x).sum(), (w * y).sum()
    return (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()


def search_distance(key, h, distance, rows: Sequence[int] = range(200)):
    """(distance, x, y) of the best pair in these rows of the grid."""
    best = (np.inf, 0.0, 0.0)
    for x in SIGMAS[rows]:
        for y in GAMMAS if key == 7 else SIGMAS:
            d = distance(model(key, x, y), h)
            if d < best[0]:
                best = (d, x, y)
    return best


def search_spread(key, h, rows: Sequence[int] = range(200)):
    """(mismatch of both variances, x, y) of the best pair in these rows of the grid."""
    window = np.abs(model(key, 1, 1))
    vx, vy = variances(h, window)
    best = (np.inf, 0.0, 0.0)
    for x in SIGMAS[rows]:
        for y in SIGMAS:
            ux, uy = variances(model(key, x, y), window)
            d = np.hypot(ux - vx, uy - vy)
            if d < best[0]:
                best = (d, x, y)
    return best


def assign(filters, kernels):
    """Key, a and b of each filter, y ~ a f + b, one after the other."""
    found = []
    for y in filters:
        best = None
        for key, f in enumerate(kernels, start=1):
            f = f - f.mean()
            f = f / np.linalg.norm(f)
            b = y.mean()
            a = (f * y).sum()
            left = np.linalg.norm(y - (a * f + b))
            if best is None or left < best[0]:
                best = (left, key, a, b)
        found.append(best)
    return found


def search_filter(y, rows: Sequence[int] = range(200)):
    """(squared residual, key, x, y) of the best a f + b for one filter: any key, any scales."""
    best = (np.inf, 0, 0.0, 0.0)
    centered = y - y.mean()
    for key in range(1, 9):
        for first in SIGMAS[rows]:
            for second in GAMMAS if key == 7 else SIGMAS:
                f = model(key, first, second)
                f = f - f.mean()
                f = f / np.linalg.norm(f)
                a = (f * centered).sum()
                left = ((centered - a * f) ** 2).sum()
                if left < best[0]:
                    best = (left, key, first, second)
    return best
