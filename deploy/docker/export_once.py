#!/usr/bin/env python3
"""Export a source into a model repository unless both models there came of it, by this version.

export-once SOURCE REPOSITORY [OPTION ...]: the options are `mkf export`'s. A second start of the
stack then neither waits nor asks a hub again, and another SOURCE replaces the models. Standard
library only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

MODELS = ("convnext_baseline", "convnext_idealized")


def main() -> None:
    """Export, or say that there is nothing to do."""
    if len(sys.argv) < 3:
        sys.exit("usage: export-once SOURCE REPOSITORY [OPTION ...]")
    source, repository, *options = sys.argv[1:]
    record = Path(repository) / ".exported.json"
    wanted = {"source": source, "options": options, "version": version("mkf")}
    if is_complete(Path(repository)) and read(record) == wanted:
        print(f"{repository} already holds the models of {source}")
        return
    command = ["mkf", "export", "--source", source, "--repository", repository, *options]
    record.unlink(missing_ok=True)
    if status := subprocess.run(command, check=False).returncode:  # noqa: S603 - ours
        sys.exit(status)
    record.write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def is_complete(repository: Path) -> bool:
    """Whether both models are there; `mkf export` moves only whole ones in."""
    return all((repository / name / "1" / "model.onnx").is_file() for name in MODELS)


def read(record: Path) -> object:
    """What the last export was of, or None."""
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    main()
