#!/usr/bin/env python3
"""Print what pyproject.toml asks for, so that an image's packages are a layer of their own.

requirements.py [EXTRA ...] [--without NAME ...]: a requirement a line, of the package itself and of
the extras, those that an extra names of the same package included. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(description="Print the requirements of some extras.")
    parser.add_argument("extras", nargs="*", metavar="EXTRA")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME")
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in requirements(project, arguments.extras):
        if re.split(r"[^\w.-]", requirement)[0] not in arguments.without:
            print(requirement)


def requirements(project: dict, extras: list[str]) -> Iterator[str]:
    """Those of the package, then those of each extra."""
    yield from project["dependencies"]
    for extra in extras:
        yield from extra_requirements(project, extra)


def extra_requirements(project: dict, extra: str) -> Iterator[str]:
    """Those of one extra; `name[other]` stands for those of the extra `other`."""
    own = re.compile(rf"{re.escape(project['name'])}\[(\w+)\]")
    for requirement in project["optional-dependencies"][extra]:
        if inner := own.fullmatch(requirement):
            yield from extra_requirements(project, inner[1])
        else:
            yield requirement


if __name__ == "__main__":
    main()
