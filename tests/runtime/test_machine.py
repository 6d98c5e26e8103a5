"""The processor is told apart by what programs see of it, not by what its system lists."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import onnxruntime
import pytest

from mlflow_degrade.bench.machine import (
    _KERNELS,
    _instruction_sets,
    _numpy_found,
    current_processor,
    processor_name,
)
from mlflow_degrade.engine.providers import CPU
from mlflow_degrade.samples.origin import Processor

_XEON = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "avx_vnni"}


def _found(*names: str) -> dict[str, bool]:
    """What numpy would say of a processor."""
    return {its: name in names for name, its in _KERNELS.items() if its is not None}


def test_the_processor_of_this_machine() -> None:
    here = current_processor((CPU,))
    assert here.architecture == platform.machine()
    assert here.onnxruntime == onnxruntime.__version__
    assert here.threads == len(os.sched_getaffinity(0))
    assert here.compute_capability is None
    assert set(here.instruction_sets) <= set(_KERNELS)
    assert here == current_processor((CPU,))
    assert processor_name(CPU) == here.name
    assert here.name.startswith(platform.machine())


def test_numpy_tells_its_instruction_sets() -> None:
    """The names are private to numpy: this fails when a version of it hides or renames them."""
    found = _numpy_found()
    assert {its for its in _KERNELS.values() if its is not None} <= set(found)


@pytest.mark.parametrize(
    ("listed", "seen", "expected"),
    [
        # Both agree: what numpy has no name for is believed.
        (_XEON, _XEON, _XEON),
        ({"avx2", "avx_vnni"}, {"avx2"}, {"avx2", "avx_vnni"}),
        ({"asimddp", "i8mm", "sve"}, {"asimddp", "sve"}, {"asimddp", "i8mm", "sve"}),
        # An emulator or a mask in front of the processor: the list is the host's.
        (_XEON, {"avx2"}, {"avx2"}),
        # No list, as on other systems than Linux.
        (set(), {"avx2", "avx512_vnni"}, {"avx2", "avx512_vnni"}),
    ],
)
def test_what_programs_see_counts(listed: set[str], seen: set[str], expected: set[str]) -> None:
    assert _instruction_sets(listed, _found(*seen)) == tuple(sorted(expected))


def test_without_numpys_answer_the_list_counts() -> None:
    assert _instruction_sets({"avx2", "avx_vnni", "sse4_2"}, {}) == ("avx2", "avx_vnni")


_HERE = Processor(
    architecture="x86_64",
    model="A",
    instruction_sets=("avx2", "avx512_vnni"),
    onnxruntime="1.31.1",
    threads=2,
)


def test_kinds_of_processors_and_what_tells_them_apart() -> None:
    def other(**changes: object) -> Processor:
        return _HERE.model_copy(update=changes)

    assert _HERE.same_kind(other(model="B", threads=64)), "kernels are not chosen by these"
    assert _HERE.differences(other(model="B", threads=64)) == [
        "model B instead of A",
        "threads 64 instead of 2",
    ]
    plain = other(instruction_sets=("avx2", "avx_vnni"))
    assert not _HERE.same_hardware(plain)
    assert _HERE.differences(plain) == ["no avx512_vnni", "avx_vnni besides"]
    newer = other(onnxruntime="1.32.0")
    assert _HERE.same_hardware(newer)
    assert not _HERE.same_kind(newer)
    arm = other(architecture="aarch64", instruction_sets=("asimddp",))
    assert _HERE.differences(arm) == ["aarch64 instead of x86_64"]
    gpus = [
        other(architecture="cuda", instruction_sets=(), compute_capability="9.0", model=name)
        for name in ("H100", "H200")
    ]
    assert not gpus[0].same_hardware(gpus[1])
    assert str(gpus[1]).startswith("H200 (compute capability 9.0)")


def test_the_model_name_does_not_matter_to_other_processes() -> None:
    """Another process on this machine sees the same processor."""
    code = (
        "from mlflow_degrade.bench.machine import current_processor as p;"
        f"print(p(({CPU!r},)).model_dump_json())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Processor.model_validate_json(done.stdout) == current_processor((CPU,))
