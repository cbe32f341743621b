"""Processor time of every method with every choice of scales and boundary on the published keys.

Run `python benchmarks/fit.py`; set OMP_NUM_THREADS=1 to measure one core.
"""

from __future__ import annotations

import itertools
import time
from typing import get_args

from mkf.fitting import Method, ScaleChoice, fit_keys
from mkf.idealized import Boundary
from mkf.keys import load_keys

METHODS = get_args(Method)
SCALES = get_args(ScaleChoice)
BOUNDARIES = get_args(Boundary)


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
