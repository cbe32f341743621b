"""Triton's own load generator, perf_analyzer, on one server."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import tempfile
from pathlib import Path

from benchmarks.serving.measure import Rate
from services.errors import UnavailableError, one_line
from services.inference.repository import INPUT_NAME, ServedModel

WINDOWS = 3  # it reports the mean of the last three
LONGER = (1, 2, 4)  # times the seconds, where a window saw no answer
TOO_SHORT = "larger time window"  # its words for that
MARGIN_SECONDS = 60.0  # to start, and for answers that take long


def run(
    prefix: Path,
    address: str,
    model: ServedModel,
    pixels: bytes,
    *,
    batch: int,
    concurrency: int,
    seconds: float,
) -> Rate:
    """Load a server over gRPC, and read what perf_analyzer reports.

    Parameters
    ----------
    prefix
        Where deploy/triton/perf_analyzer.py has put it.
    address
        HOST:PORT of the server's gRPC.
    pixels
        One image as the model takes it; a request holds `batch` times the same.
    concurrency
        Requests in flight.
    seconds
        Of measurement.

    Raises
    ------
    UnavailableError
        perf_analyzer failed; the message has its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder) / "data", Path(folder) / "report.csv"
        data.mkdir()
        (data / INPUT_NAME).write_bytes(pixels)
        shape = ",".join(str(n) for n in (*model.preprocessing.input_size, 3))
        command = [
            str(prefix / "perf" / "perf_analyzer"),
            *("-m", model.name, "-u", address, "-i", "grpc", "--async"),
            *("-b", str(batch), "--concurrency-range", str(concurrency)),
            *("--input-data", str(data), "--shape", f"{INPUT_NAME}:{shape}"),
            # The spread is ours to judge, over the rounds: what has answers counts as stable.
            *("--stability-percentage", "1000000", "--percentile", "50", "-f", str(report)),
        ]
        for longer in LONGER:
            said = _run(prefix, command, longer * seconds)
            if said is None:
                return parse_report(report.read_text(encoding="utf-8"))
            if TOO_SHORT not in said:
                break
        raise UnavailableError(f"perf_analyzer failed on {model.name}: {said}")


def _run(prefix: Path, command: list[str], seconds: float) -> str | None:
    """None where it succeeded, else its last words."""
    libraries = f"{prefix / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    try:
        result = subprocess.run(
            [*command, "--measurement-interval", str(round(1000 * seconds / WINDOWS))],
            env=os.environ | {"LD_LIBRARY_PATH": libraries},
            capture_output=True,
            text=True,
            timeout=10 * seconds + MARGIN_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"perf_analyzer cannot run: {one_line(error)}") from error
    if not result.returncode:
        return None
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")


def parse_report(text: str) -> Rate:
    """Its CSV of one concurrency; it counts an inference for each image of a batch.

    Raises
    ------
    UnavailableError
        It holds no measurement.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    try:
        row = rows[0]
        return Rate(
            images_per_second=float(row["Inferences/Second"]),
            p50_ms=float(row["p50 latency"]) / 1000,
            p99_ms=float(row["p99 latency"]) / 1000,
            server_queue_ms=float(row["Server Queue"]) / 1000,
        )
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise UnavailableError(f"perf_analyzer's report cannot be read: {text!r}") from error
