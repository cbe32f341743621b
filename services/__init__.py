"""The services: classification and evaluation behind gRPC; they never fit or import torch."""

import os

# ONNX Runtime's wheels report to their maker unless told not to, before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
