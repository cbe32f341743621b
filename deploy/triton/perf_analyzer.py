#!/usr/bin/env python3
"""Set up perf_analyzer, Triton's own load generator, beside the server that install.py has set up.

Standard library only. It lies in the client's wheel of the server's release; nothing else of that
wheel is used, so PREFIX/perf holds that program alone. A second run does nothing. The program needs
two of the server's libraries:

    LD_LIBRARY_PATH=PREFIX/lib PREFIX/perf/perf_analyzer ...
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

WHEEL = "tritonclient==2.51.0"  # of the server's release; newer ones need a newer glibc


def main() -> None:
    """Read the command line and install."""
    parser = argparse.ArgumentParser(description="Set up perf_analyzer beside a Triton server.")
    parser.add_argument(
        "--prefix",
        type=Path,
        default=Path(".triton"),
        help="where install.py has put the server (default: %(default)s)",
    )
    prefix = parser.parse_args().prefix.resolve()
    if not (prefix / "lib" / "libcudart.so.12").exists():
        installer = Path(__file__).with_name("install.py")
        sys.exit(f"perf_analyzer.py: no Triton in {prefix}; first: {sys.executable} {installer}")
    try:
        install(prefix)
    except subprocess.CalledProcessError as error:
        sys.exit(f"perf_analyzer.py: pip failed with exit status {error.returncode}; see above")
    except OSError as error:
        sys.exit(f"perf_analyzer.py: {error}")
    print(f"perf_analyzer is ready: {prefix / 'perf' / 'perf_analyzer'}")


def install(prefix: Path) -> None:
    """Bring PREFIX/perf up to date; also after install.py has replaced the server."""
    ready = prefix / "perf" / ".ready"
    if ready.is_file() and ready.read_text() == WHEEL:
        return
    unpacked = prefix / "perf.partial"
    for folder in (unpacked, ready.parent):
        shutil.rmtree(folder, ignore_errors=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    command = (*pip, "--no-deps", "--target", str(unpacked), WHEEL)
    subprocess.run(command, check=True)  # noqa: S603
    ready.parent.mkdir()
    shutil.move(unpacked / "bin" / "perf_analyzer", ready.parent)
    shutil.move(unpacked / "LICENSE.txt", ready.parent)
    shutil.rmtree(unpacked)
    ready.write_text(WHEEL)


if __name__ == "__main__":
    main()
