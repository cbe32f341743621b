"""Where depthwise filters live: ONNX graphs, torch modules, timm's zoo."""
