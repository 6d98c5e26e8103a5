"""Files, layers and weights of ONNX graphs."""
