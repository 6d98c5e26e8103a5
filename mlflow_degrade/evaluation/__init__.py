"""Evaluating models: the lm-eval backend, task suites, resumable runs, the starter suite."""
