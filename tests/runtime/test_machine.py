"""The processor has a name."""

from __future__ import annotations

import platform

from mlflow_degrade.runtime.machine import processor_name
from mlflow_degrade.runtime.providers import CPU


def test_the_processor_is_named_and_stays_the_same() -> None:
    name = processor_name(CPU)
    assert name.startswith(platform.machine())
    assert len(name.split()) > 1
    assert name == processor_name(CPU)
