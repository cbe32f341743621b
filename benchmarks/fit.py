"""Processor time of every method with every choice of scales and boundary on the published keys.

Run `python benchmarks/fit.py`; set OMP_NUM_THREADS=1 to measure one core.
"""

from __future__ import annotations

import itertools
import time

from mkf.fitting import fit_keys
from mkf.keys import load_keys

METHODS = ("A", "B", "C", "D")
SCALES = ("separate", "isotropic", "shared")
BOUNDARIES = ("symmetric", "exact")


def main() -> None:
    keys = load_keys()
    total_ms = dict.fromkeys(BOUNDARIES, 0.0)
    for boundary, method, scales in itertools.product(BOUNDARIES, METHODS, SCALES):
        start = time.process_time()
        fit_keys(keys, method=method, scales=scales, boundary=boundary)
        elapsed_ms = 1000 * (time.process_time() - start)
        total_ms[boundary] += elapsed_ms
        print(f"{boundary:<10} {method} {scales:<10} {elapsed_ms:8.1f} ms")
    for boundary, elapsed_ms in total_ms.items():
        print(f"{boundary:<10} all          {elapsed_ms:8.1f} ms")
    print(f"all                     {sum(total_ms.values()):8.1f} ms")


if __name__ == "__main__":
    main()
