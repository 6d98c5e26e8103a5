"""Running ONNX models: providers, the scoring engine, generation, probes and cost."""
