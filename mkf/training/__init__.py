"""Training with the depthwise filters learned, or fixed to the idealized keys (extra `train`)."""
