"""What growing costs, measured: `python -m benchmarks.growth`."""
