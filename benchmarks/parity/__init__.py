"""Parity: the same images through torch, ONNX Runtime, Triton and the classification service."""
