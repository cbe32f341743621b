"""The services: classification and evaluation behind gRPC; they never fit or import torch."""
