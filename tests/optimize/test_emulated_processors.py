"""Integer schemes give the same numbers on processors that this machine is not.

QEMU runs onnxruntime as on a processor with AVX2 (Haswell) and on one without AVX (Nehalem). With
AVX2 and without VNNI, its kernel for uint8 by int8 adds pairs of products in 16 bits, which is too
few for the full range; where a machine has VNNI, nothing else in these tests can show that. QEMU
does not emulate AVX-512: what it calls ``Cascadelake-Server`` is one more processor with AVX2.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_products import model_logits
from scipy.special import log_softmax
from tiny_models import SENTENCES

from mlflow_degrade.optimize.schemes import apply_scheme

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
CHILD = Path(__file__).parents[1] / "emulated_products.py"
INTEGER_SCHEMES = ("int8-dynamic", "int8-static", "int8-static-symmetric")
SCHEMES = (*INTEGER_SCHEMES, "int8-weight-only")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64",
        reason="the emulator runs programs of Linux on x86-64",
    ),
    pytest.mark.skipif(QEMU is None, reason="no qemu-x86_64: apt-get install qemu-user"),
]


def run_on(processor: str, *arguments: str) -> dict[str, Any]:
    """What the child found on an emulated processor."""
    done = subprocess.run(
        [str(QEMU), "-cpu", processor, sys.executable, str(CHILD), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        # OpenBLAS must choose its kernels by the emulated processor, not by the machine's.
        env={key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_emulated_processor_has_the_kernel_that_saturates() -> None:
    found = run_on("Haswell")["kernels"]
    assert found["u8s8"] > 0.9
    assert found["u8s7"] == found["u8u8"] == 0


@pytest.fixture
def tokens(tiny_base: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    found: list[list[int]] = AutoTokenizer.from_pretrained(tiny_base)(list(SENTENCES)).input_ids
    return found


def mean_kl(one: Any, other: Any) -> float:
    """KL of the second from the first, in nats per token."""
    p, q = (log_softmax(np.asarray(logits, np.float64), axis=-1) for logits in (one, other))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("processor", ["Haswell", "Nehalem"])
def test_schemes_compute_there_what_they_compute_here(
    processor: str, tiny_base: Path, tokens: list[list[int]], tmp_path: Path
) -> None:
    texts = tmp_path / "tokens.json"
    texts.write_text(json.dumps(tokens), encoding="utf-8")
    folders = {name: apply_scheme(tiny_base, name, progress=False) for name in SCHEMES}
    found = run_on(processor, str(texts), *map(str, folders.values()))
    base = model_logits(tiny_base, tokens)
    for name, folder in folders.items():
        wrong, there = (found[folder.name][key] for key in ("wrong", "logits"))
        here = model_logits(folder, tokens)
        assert len(wrong) == (15 if name in INTEGER_SCHEMES else 0), name
        assert not any(wrong.values()), (name, wrong)
        assert mean_kl(base, there) < 1.1 * mean_kl(base, here), name
        if (name, processor) != ("int8-weight-only", "Nehalem"):  # which multiplies in float32
            # A sum of floats in another order may round an activation to the neighbouring integer.
            assert mean_kl(here, there) < 1e-3, name
