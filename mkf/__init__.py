"""Master key filters: fit them, put them into a network, export both for serving.

The package is the offline room of the project: it never serves. Import what you need from its
modules (`mkf.fitting`, `mkf.assignment`, ...); nothing heavy is imported here, because the services
load the generated API `mkf.v1` through this package.
"""

import os
from importlib.metadata import version

# ONNX Runtime's wheels report to their maker unless told not to, before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = version("mkf")
