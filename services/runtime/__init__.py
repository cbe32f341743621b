"""What both services run on: settings, logging, metrics, the gRPC server and `mkf-serve`."""
