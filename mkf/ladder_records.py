"""What is measured of each rung of a ladder, kept so that an interrupted call can go on."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mkf.errors import InputError


@dataclass(frozen=True)
class Record:
    """Which images a rung got right, and what else was measured of it."""

    flags: NDArray[np.bool_]
    facts: dict[str, Any]


class Records:
    """A file of one line of JSON a rung; lines of another setting are passed by.

    Parameters
    ----------
    path
        The file, made with the first record.
    identity
        What tells this setting from others: network, images, calibration.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self._identity = identity
        self._known: dict[str, Record] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path} cannot be read ({error}): remove it to start afresh"
            ) from error
        for line in lines:
            try:
                record = json.loads(line)
                if record["identity"] == identity:
                    self._known[record["rung"]] = Record(_unpacked(record), record["facts"])
            except (ValueError, KeyError, TypeError):
                continue  # a line cut short by an interruption: that rung is measured again

    def get(self, rung: str) -> Record | None:
        """What is known of a rung."""
        return self._known.get(rung)

    def put(self, rung: str, flags: NDArray[np.bool_], facts: dict[str, Any]) -> Record:
        """Keep a rung's outcome."""
        packed = base64.b64encode(np.packbits(flags).tobytes()).decode()
        record = {
            "identity": self._identity,
            "rung": rung,
            "images": len(flags),
            "right": packed,
            "facts": facts,
        }
        try:
            with self._path.open("a", encoding="utf-8") as file:
                # On a line of its own, even behind one that an interruption cut short.
                file.write("\n" + json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error}") from error
        self._known[rung] = Record(flags, facts)
        return self._known[rung]


def _unpacked(record: dict[str, Any]) -> NDArray[np.bool_]:
    bits = np.frombuffer(base64.b64decode(record["right"]), np.uint8)
    return np.unpackbits(bits, count=record["images"]).astype(bool)
