"""The embedded default: a small ConvNeXt V2 on Fashion-MNIST, its idealized sibling, its data."""
