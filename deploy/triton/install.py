#!/usr/bin/env python3
"""Set up a Triton Inference Server that serves ONNX models on the CPU, from wheels, without Docker.

Standard library only; for Python 3.11 and 3.12 on Linux x86-64. What comes of it:

    PREFIX/bin/tritonserver       starts the server with its libraries, backends and Python
    PREFIX/libexec/tritonserver   the server itself
    PREFIX/lib/                   its shared libraries, and libpython
    PREFIX/backends/python/       Triton's Python backend
    PREFIX/backends/onnxruntime/  model.py beside this file: ONNX models, on ONNX Runtime
    PREFIX/venv/                  Python with NumPy and ONNX Runtime, which the backends run in

A second run does nothing but copy model.py, unless requirements.txt, this file or the Python
differ from those of the first. PREFIX may be moved or copied as long as that Python stays in place.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
BACKEND = HERE / "backends" / "onnxruntime" / "model.py"
PYTHONS = ("3.11", "3.12")  # the server's wheel knows 3.13, NumPy 1 does not

WRAPPER = """\
#!/bin/sh
# Made by install.py. The backends' processes take their Python from PATH.
prefix=$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "$0")")/.." && pwd)
export PATH="$prefix/venv/bin:$PATH"
export LD_LIBRARY_PATH="$prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export ORT_DISABLE_TELEMETRY="${ORT_DISABLE_TELEMETRY:-1}"  # ONNX Runtime's wheels call home
exec "$prefix/libexec/tritonserver" --backend-directory "$prefix/backends" "$@"
"""


def main() -> None:
    """Read the command line and install."""
    parser = argparse.ArgumentParser(
        description="Set up Triton with an ONNX Runtime backend from wheels, for the CPU."
    )
    parser.add_argument(
        "--prefix", type=Path, default=Path(".triton"), help="where to (default: %(default)s)"
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the Python that the backends run in, 3.11 or 3.12 (default: the one that runs this)",
    )
    arguments = parser.parse_args()
    python = shutil.which(arguments.python)
    if python is None:
        sys.exit(f"install.py: no Python {arguments.python!r}; name one with --python")
    if not Path(python).samefile(sys.executable):
        os.execv(python, [python, __file__, "--prefix", str(arguments.prefix)])  # noqa: S606
    check_machine()
    prefix = arguments.prefix.resolve()
    try:
        install(prefix)
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        sys.exit(f"install.py: {command} failed with exit status {error.returncode}; see above")
    except OSError as error:
        sys.exit(f"install.py: {error}")
    print(f"Triton is ready: {prefix / 'bin' / 'tritonserver'}")


def check_machine() -> None:
    """End here where the wheel cannot work."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version not in PYTHONS:
        sys.exit(
            f"install.py: the server's Python backend works with Python {' and '.join(PYTHONS)}, "
            f"not {version}; name such a Python with --python"
        )
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit(
            f"install.py: the server's wheel is for Linux on x86-64, not {platform.system()} on "
            f"{platform.machine()}; take an x86-64 machine, or NVIDIA's own image"
        )


def install(prefix: Path) -> None:
    """Bring PREFIX up to date; safe to run twice at once."""
    prefix.mkdir(parents=True, exist_ok=True)
    with (prefix / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = prefix / ".ready"
        if not ready.is_file() or ready.read_text() != fingerprint():
            ready.unlink(missing_ok=True)
            install_server(prefix)
            ready.write_text(fingerprint())
        copy_backend(prefix)


def fingerprint() -> str:
    """Of all that the installation depends on, but for model.py."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + Path(__file__).read_bytes())
    return f"{digest.hexdigest()}\n{Path(base_python()).resolve()}\n{sys.version}\n"


def install_server(prefix: Path) -> None:
    """The server, Triton's Python backend and its environment, in the place of older ones."""
    libpython = find_libpython()
    for folder in ("bin", "libexec", "lib", "backends", "licenses", "venv"):
        shutil.rmtree(prefix / folder, ignore_errors=True)
    venv = prefix / "venv"
    print(f"Installing Triton into {prefix} ...", flush=True)
    run(base_python(), "-m", "venv", venv)
    pip = (venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--requirement", REQUIREMENTS)
    run(*pip, "uninstall", "-qq", "--yes", "pip", "setuptools")
    unpack_wheel(next(venv.glob("lib/python3*/site-packages")), prefix)
    if libpython is not None:
        (prefix / "lib" / libpython.name).symlink_to(libpython)
    wrapper = prefix / "bin" / "tritonserver"
    wrapper.parent.mkdir()
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)


def unpack_wheel(packages: Path, prefix: Path) -> None:
    """Move what the server needs out of its wheel, and drop the wheel's Python package."""
    wheel = packages / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    libexec, lib, backend = prefix / "libexec", prefix / "lib", prefix / "backends" / "python"
    libexec.mkdir()
    backend.mkdir(parents=True)
    shutil.move(wheel / "bin" / "tritonserver", libexec)
    shutil.move(packages / "nvidia_pytriton.libs", lib)
    shutil.move(wheel / "backends" / "python" / "libtriton_python.so", backend)
    shutil.move(wheel / "backends" / "python" / "triton_python_backend_utils.py", backend)
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.move(stub, backend)
    for program in (libexec / "tritonserver", backend / stub.name):
        program.chmod(0o755)
    # perf_analyzer, of Triton's client wheel, asks for these two by their plain names.
    for name, pattern in (("libb64.so.0d", "libb64-*"), ("libcudart.so.12", "libcudart-*")):
        (lib / name).symlink_to(next(lib.glob(pattern)).name)
    if version != "3.13":
        for unused in lib.glob("libpython3-*"):
            unused.unlink()
    information = next(packages.glob("nvidia_pytriton-*.dist-info"))
    shutil.copytree(information / "licenses", prefix / "licenses")
    shutil.rmtree(packages / "pytriton")
    shutil.rmtree(information)


def copy_backend(prefix: Path) -> None:
    """Our ONNX Runtime backend, whole at every moment."""
    target = prefix / "backends" / "onnxruntime" / "model.py"
    if target.is_file() and target.read_bytes() == BACKEND.read_bytes():
        return
    target.parent.mkdir(exist_ok=True)
    partial = target.with_suffix(".partial")
    shutil.copyfile(BACKEND, partial)
    partial.replace(target)


def find_libpython() -> Path | None:
    """The shared libpython that the stub is linked against; None where the wheel carries it."""
    major, minor = sys.version_info[:2]
    if (major, minor) == (3, 13):
        return None
    name = f"libpython{major}.{minor}.so.1.0"
    folders = [
        sysconfig.get_config_var("LIBDIR") or "",
        f"{sys.base_prefix}/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/lib",
    ]
    for folder in folders:
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    sys.exit(
        f"install.py: {name}, the shared library of Python {major}.{minor}, is missing; install "
        f"it (on Debian: apt-get install libpython{major}.{minor}), or name another with --python"
    )


def base_python() -> str:
    """Path of this Python outside of any virtual environment, which may be removed."""
    return getattr(sys, "_base_executable", sys.executable)


def run(*command: str | Path) -> None:
    """Run a program; its own words explain a failure."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([str(part) for part in command], check=True, env=environment)  # noqa: S603


if __name__ == "__main__":
    main()
