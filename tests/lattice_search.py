"""Search for the scales of least distance, on finer and finer lattices: what fits are held against.

Distances between models and learned keys have kinks and several local minima, and a best scale can
be 0, so a descent from a start finds what its start decides. Here the whole range of scales is laid
out at once: the best nodes of a lattice over it are kept, many at first, and each is refined to the
nodes around it at half the spacing, until they are less than 1e-7 apart: no start, nothing random.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mkf.scale_space import SIGMA_MAX

# By dimensions: lattice steps per axis at the start; nodes kept at the start and at the end.
_NODES = {1: 512, 2: 128}
_KEPT = {1: (128, 16), 2: (1024, 64)}
_HALVINGS = 17
_BLOCK = 2048  # nodes a call of the objective: all their kernels stay in the processor's cache


def least(
    objective: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, dimensions: int
) -> NDArray[np.float64]:
    """The scales at which `objective` is least, over 0 <= sigma <= `SIGMA_MAX`.

    The lattice is even in u = sigma / (1 + sigma). Over 7 taps the models fall off as a power of
    sigma, so in u they change about equally fast everywhere, and one lattice serves both the small
    scales of learned keys and those at which the model vanishes.

    Parameters
    ----------
    objective : callable
        From scales (n, dimensions) in pixels to values (n,).
    dimensions : int
        1 or 2.

    Returns
    -------
    ndarray of float64, shape (dimensions,)
        The scales; of equally good ones the least.
    """
    steps, (first, last) = _NODES[dimensions], _KEPT[dimensions]
    nodes = np.indices((steps + 1,) * dimensions).reshape(dimensions, -1).T
    around = np.indices((3,) * dimensions).reshape(dimensions, -1).T - 1  # (3^d, d)
    for halving in range(_HALVINGS + 1):
        blocks = np.array_split(_sigma(nodes / steps), -(-len(nodes) // _BLOCK))
        values = np.concatenate([objective(block) for block in blocks])
        kept = max(first >> halving, last)
        best = nodes[np.argsort(values, kind="stable")[:kept]]
        if halving < _HALVINGS:
            steps *= 2
            nodes = _unique((2 * best[:, None] + around).reshape(-1, dimensions), steps)
    return np.asarray(_sigma(best[0] / steps))


def _sigma(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales of positions 0..1 on the lattice."""
    u = position * (SIGMA_MAX / (1 + SIGMA_MAX))
    return np.asarray(np.minimum(u / (1 - u), SIGMA_MAX))


def _unique(nodes: NDArray[np.int_], steps: int) -> NDArray[np.int_]:
    """The different nodes (n, d) within 0..steps, in lexicographic order."""
    inside = nodes[((nodes >= 0) & (nodes <= steps)).all(axis=1)]
    # One integer a node: numpy sorts those far faster than rows.
    codes = np.unique(inside @ (steps + 1) ** np.arange(nodes.shape[1])[::-1])
    return np.stack(np.unravel_index(codes, (steps + 1,) * nodes.shape[1]), axis=1)
