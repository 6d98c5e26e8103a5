"""Questions put to models by lm-evaluation-harness, on the engine."""
