"""Fixtures of the engine's tests."""

from __future__ import annotations

from encoder_models import tiny_classifier, tiny_encoder
from engine_models import model_dir, tiny_source

__all__ = ["model_dir", "tiny_classifier", "tiny_encoder", "tiny_source"]
