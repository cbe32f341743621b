"""Keys by k-means instead of by an autoencoder, for comparison (extra `train`: scikit-learn)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mkf.discovery import principal_direction
from mkf.errors import MissingExtraError

_FEATURES = 200


class LineClusters:
    """k-means of filters that is blind to their signs.

    k-means compares vectors, and a filter and its negative are far apart. So the filters are mapped
    to features whose inner product is the squared cosine, the kernel (u . v)^2, by Nystroem's
    method; where the filters span no more dimensions than there are features, the map is exact.

    Parameters
    ----------
    lines : (n, d) float64
        The filters, of zero mean and unit norm.
    seed : int
        Of the map and of the starts.

    Attributes
    ----------
    distinct : int
        How many of the filters differ, and so how many clusters there can be.

    Raises
    ------
    MissingExtraError
        scikit-learn is not installed.
    """

    def __init__(self, lines: NDArray[np.float64], *, seed: int) -> None:
        try:
            from sklearn.kernel_approximation import Nystroem
        except ImportError as error:
            raise MissingExtraError(
                f"clustering needs scikit-learn ({error}); "
                "install it with: pip install 'mkf[train]'"
            ) from error
        feature_map = Nystroem(
            kernel="polynomial",
            degree=2,
            gamma=1.0,
            coef0=0.0,
            n_components=min(_FEATURES, len(lines)),
            random_state=seed,
        )
        self.lines = lines
        self.seed = seed
        self.features = feature_map.fit_transform(lines)
        # Equal filters' features differ by rounding, which the map blows up to 1e-10.
        self.distinct = len(np.unique(self.features.round(6), axis=0))

    def keys(self, count: int, *, starts: int = 1) -> NDArray[np.float64]:
        """The first principal direction of each of `count` clusters, (count, d).

        Of several starts the one of least inertia is taken. An empty cluster has no key: with
        `count` up to `distinct` there is none, but for filters that differ by next to nothing.
        """
        from sklearn.cluster import KMeans

        clusters = KMeans(count, n_init=starts, random_state=self.seed).fit(self.features)
        members = [
            self.lines[clusters.labels_ == cluster] for cluster in np.unique(clusters.labels_)
        ]
        return np.stack([principal_direction(lines) for lines in members])
