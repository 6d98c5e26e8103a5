"""Fixtures of the engine's tests."""

from __future__ import annotations

from engine_models import model_dir, tiny_source

__all__ = ["model_dir", "tiny_source"]
