"""What the report is about: the 8 keys with their models, and a network's filters with theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mkf.assignment import assign
from mkf.errors import FitError
from mkf.fitting import KeyFit, Method, ScaleChoice, Scales, fit_keys, idealized_kernels
from mkf.idealized import Boundary
from mkf.keys import MASTER_KEYS, MasterKey, Operator, normalize_keys

Floats = NDArray[np.float64]

_OPERATOR_NAMES = {
    Operator.SMOOTH: "Gaussian smoothing",
    Operator.FORWARD: "forward difference",
    Operator.BACKWARD: "backward difference",
    Operator.CENTRAL: "central difference",
    Operator.SHARPEN: "impulse minus \N{GREEK SMALL LETTER GAMMA} Laplacian",
}


def operator_name(key: MasterKey) -> str:
    """The operator of a key in words: "forward difference in y"."""
    name = _OPERATOR_NAMES[key.operator]
    return name if key.axis is None else f"{name} in {key.axis}"


@dataclass(frozen=True, eq=False)
class KeyPair:
    """A learned key and its model, both of unit l2 norm, (k, k), row 0 on top.

    The learned key is normalized as the fits do it, which takes the offset from keys 7 and 8. Its
    factor is left out of the comparison, as it is when a filter becomes a f^ + b.
    """

    fit: Scales
    learned: Floats
    idealized: Floats

    @property
    def operator(self) -> str:
        """In words."""
        return operator_name(MASTER_KEYS[self.fit.key])

    @property
    def difference(self) -> Floats:
        """Learned minus idealized, (k, k)."""
        return self.learned - self.idealized

    @property
    def missed(self) -> float:
        """The l2 norm of the difference, of a key of norm 1."""
        return float(np.linalg.norm(self.difference))

    @property
    def cosine(self) -> float:
        """Of the angle between the two; 1 where they are the same up to a positive factor."""
        return float(np.sum(self.learned * self.idealized))


@dataclass(frozen=True, eq=False)
class LayerFilters:
    """A depthwise layer's filters before and after, (n, k, k), and the key of each.

    Attributes
    ----------
    name : str
        Of the layer's weights.
    keys : (n,) int
        The key that keeps most of each filter, counted from 1.
    counts : mapping
        How many filters each key got, by key.
    """

    name: str
    learned: Floats
    idealized: Floats
    keys: NDArray[np.int64]
    counts: Mapping[int, int]

    @cached_property
    def variance(self) -> Floats:
        """||y - mean y||^2 of each filter, (n,)."""
        centered = self.learned - self.learned.mean(axis=(1, 2), keepdims=True)
        return np.asarray(np.sum(centered**2, axis=(1, 2)))

    @cached_property
    def lost(self) -> Floats:
        """||y - y'||^2 of each filter y and what stands for it, (n,)."""
        return np.asarray(np.sum((self.learned - self.idealized) ** 2, axis=(1, 2)))

    @property
    def kept(self) -> float:
        """Share of the variance of all filters together that is kept, 0..1."""
        return _share_kept(float(self.lost.sum()), float(self.variance.sum()))


@dataclass(frozen=True)
class WorstFilter:
    """A filter that costs much: where it is, and what of it is kept."""

    layer: LayerFilters
    channel: int  # from 0
    share_of_loss: float  # of all variance that is lost in the network, 0..1

    @property
    def key(self) -> int:
        """That it got."""
        return int(self.layer.keys[self.channel])

    @property
    def kept(self) -> float:
        """Share of its own variance, 0..1."""
        return _share_kept(
            float(self.layer.lost[self.channel]), float(self.layer.variance[self.channel])
        )


@dataclass(frozen=True, eq=False)
class Study:
    """The keys, the chosen fit and a network's layers."""

    method: Method
    scales: ScaleChoice
    boundary: Boundary
    learned_keys: Floats  # (8, k, k), as published
    fits: Sequence[Scales]  # of the chosen method
    layers: Sequence[LayerFilters]
    skipped: Sequence[str] = ()  # layers that cannot be idealized

    @cached_property
    def pairs(self) -> list[KeyPair]:
        """The 8 keys beside their models."""
        learned = normalize_keys(self.learned_keys)
        learned /= np.linalg.norm(learned, axis=(1, 2), keepdims=True)
        size = learned.shape[-1]
        models = idealized_kernels(self.fits, boundary=self.boundary, size=size)
        return [
            KeyPair(fit, h, model) for fit, h, model in zip(self.fits, learned, models, strict=True)
        ]

    @cached_property
    def fits_by_method(self) -> dict[Method, list[KeyFit]]:
        """Every method's fit with this choice of scales; a method without an answer is left out."""
        found = {}
        for method in get_args(Method):
            try:
                found[method] = fit_keys(
                    self.learned_keys, method=method, scales=self.scales, boundary=self.boundary
                )
            except FitError:
                continue
        return found

    @property
    def filters(self) -> int:
        """How many filters the network has."""
        return sum(len(layer.learned) for layer in self.layers)

    @property
    def kept(self) -> float:
        """Share of the variance of all filters together that is kept, 0..1."""
        lost = sum(float(layer.lost.sum()) for layer in self.layers)
        return _share_kept(lost, sum(float(layer.variance.sum()) for layer in self.layers))

    def counts(self) -> dict[int, int]:
        """How many filters of the network each key got."""
        return {key: sum(layer.counts.get(key, 0) for layer in self.layers) for key in MASTER_KEYS}

    def worst(self, count: int) -> list[WorstFilter]:
        """The filters that lose most variance, those that lose nothing left out."""
        places = [(layer, n) for layer in self.layers for n in range(len(layer.learned))]
        lost = np.concatenate([layer.lost for layer in self.layers])
        whole = float(lost.sum())
        if not whole > 0:
            return []
        ranked = np.argsort(-lost, kind="stable")[:count]
        return [
            WorstFilter(layer, channel, float(lost[i]) / whole)
            for i in ranked
            if lost[i] > 0
            for layer, channel in [places[i]]
        ]


def layer_filters(
    name: str,
    learned: ArrayLike,
    idealized: ArrayLike,
    *,
    kernels: Floats,
    counts: Mapping[int, int] | None = None,
) -> LayerFilters:
    """A layer of a study.

    Parameters
    ----------
    name : str
        Of the layer.
    learned, idealized : (n, k, k) array
        The filters, and what stands for them.
    kernels : (8, k, k) array
        The idealized kernels, of which each filter gets the one that keeps most of it.
    counts : mapping, optional
        Filters by key, where they were counted in another way.
    """
    assignment = assign(learned, kernels)
    return LayerFilters(
        name=name,
        learned=np.asarray(learned, dtype=np.float64),
        idealized=np.asarray(idealized, dtype=np.float64),
        keys=assignment.keys,
        counts=assignment.counts() if counts is None else counts,
    )


def _share_kept(lost: float, whole: float) -> float:
    return min(max(1 - lost / whole, 0.0), 1.0) if whole > 0 else 1.0
