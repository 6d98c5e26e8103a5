"""Prefill and decode of a random model of 1.1B parameters: speed only, its answers mean nothing."""

from __future__ import annotations

from . import Found
from .generation import tables
from .setting import Setting

SCHEMES = ("fp16", "int4-weight-only", "bf16", "int8-weight-only")


def run(setting: Setting) -> Found:
    """As for the starter model."""
    schemes = setting.pick(SCHEMES, SCHEMES[:1])
    title = setting.pick("1.1B parameters", "tiny, again")
    yield from tables(setting, title, schemes, large=True)
