"""Generators of the starter suite's items, one module per task."""
