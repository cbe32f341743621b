"""Time of assigning and idealizing 50,000 filters of 7x7: `python benchmarks/assignment.py`."""

from __future__ import annotations

import time

import numpy as np

from mkf.assignment import assign

FILTERS = 50_000
REPEATS = 5


def main() -> None:
    """Print the best and the worst of some repeats; the goal is under 1 second."""
    random = np.random.default_rng(0)
    filters = random.normal(size=(FILTERS, 7, 7)).astype(np.float32)
    kernels = random.normal(size=(8, 7, 7))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        assign(filters, kernels).idealized().astype(np.float32)
        seconds.append(time.perf_counter() - start)
    print(f"{FILTERS} filters of 7x7: {min(seconds):.3f} s (slowest {max(seconds):.3f} s)")


if __name__ == "__main__":
    main()
