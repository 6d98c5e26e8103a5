"""What a GPU machine is given: an extra that brings CUDA, a payload where there is no index."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

_FOLDER = Path(__file__).parents[1] / "scripts" / "gpu_payload"


def test_the_extra_brings_cuda() -> None:
    """With the driver alone; `onnxruntime-gpu`'s own extras name the libraries it is built for."""
    extras = {name: _extra(name) for name in ("cpu", "gpu")}
    assert extras["gpu"]["onnxruntime-gpu"].extras == {"cuda", "cudnn"}
    # Two builds of one module: never both, and of one version.
    versions = [extras["gpu"]["onnxruntime-gpu"].specifier, extras["cpu"]["onnxruntime"].specifier]
    assert versions[0] == versions[1]
    assert "onnxruntime" not in extras["gpu"]
    assert "onnxruntime-gpu" not in extras["cpu"]


def _extra(name: str) -> dict[str, Requirement]:
    text = (_FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^{name} = \[(.*)\]$", text, re.MULTILINE)
    return {r.name: r for r in map(Requirement, re.findall(r'"([^"]+)"', line))}


@pytest.mark.parametrize("script", sorted(_FOLDER.glob("*.sh")), ids=lambda p: p.name)
def test_scripts_can_be_parsed(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def _entry(kind: int, arch: int, payload: bytes) -> bytes:
    """An entry of a fat binary: kind 1 is PTX, 2 is machine code."""
    header = bytearray(64)
    struct.pack_into("<HHIQ", header, 0, kind, 0x101, len(header), len(payload))
    struct.pack_into("<I", header, 28, arch)
    return bytes(header) + payload


def _binary(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_other_architectures_are_blanked(tmp_path: Path) -> None:
    code, others = b"sm90" * 8, b"sm80" * 8
    both = _binary(_entry(2, 80, others), _entry(2, 90, code), _entry(1, 80, b"ptx8" * 8))
    # Without machine code for it, the card's driver compiles PTX that is no newer.
    old = _binary(_entry(2, 80, others), _entry(1, 80, b"ptxo" * 8), _entry(1, 100, b"ptxn" * 8))
    stray = b"text " + struct.pack("<I", 0xBA55ED50) + b"no binary at all, of some length or other"
    given = tmp_path / "library.so"
    given.write_bytes(b"ELF" + both + stray + old + b"end")
    command = [sys.executable, str(_FOLDER / "prune_fatbin.py"), str(given), str(tmp_path / "out")]
    subprocess.run([*command, "--arch", "90"], check=True)
    found = (tmp_path / "out").read_bytes()
    assert len(found) == given.stat().st_size
    assert code in found
    assert b"ptxo" in found
    assert stray in found
    for gone in (others, b"ptx8", b"ptxn"):
        assert gone not in found
