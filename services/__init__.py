"""The services: classification and evaluation behind gRPC. They never fit, and never import torch."""
