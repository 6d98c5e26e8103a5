"""RAPL counters, read from a folder laid out as Linux does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlflow_degrade.bench.memory import open_energy_meter


def zone(root: Path, path: str, name: str, microjoules: int, top: int = 1_000_000_000) -> Path:
    folder = root / path
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{top}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two sockets with memory; parts of packages, the platform and a mirror of the first."""
    zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    zone(tmp_path, "intel-rapl:1:0", "dram", 2_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 90_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def test_packages_and_their_memory_are_counted_once(powercap: Path) -> None:
    meter = open_energy_meter(gpu=False, powercap=powercap)
    before = meter.read()
    (powercap / "intel-rapl:0" / "energy_uj").write_text("8500000\n")
    (powercap / "intel-rapl:0:1" / "energy_uj").write_text("1250000\n")
    assert meter.used(before, meter.read()) == {
        "rapl package-0": pytest.approx(3.5),
        "rapl dram 0": pytest.approx(0.25),
        "rapl package-1": 0,
        "rapl dram 1": 0,
    }
    assert meter.obstacles == ("NVML: no CUDA device is used",)


def test_a_counter_that_starts_again(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 262_143_000_000, 262_143_328_850)
    meter = open_energy_meter(gpu=False, powercap=tmp_path)
    before = meter.read()
    file.write_text("671150\n")
    # 0.328850 J up to the end of the range, and 0.671150 J after it.
    assert meter.used(before, meter.read())["rapl package-0"] == pytest.approx(1.0, abs=1e-4)


def test_without_counters_it_says_why(tmp_path: Path) -> None:
    for folder, reason in (
        (tmp_path / "absent", "does not exist"),
        (tmp_path, "no intel-rapl zone"),
    ):
        meter = open_energy_meter(gpu=False, powercap=folder)
        assert (meter.counters, meter.read()) == ((), ())
        assert reason in meter.obstacles[0]


def test_a_counter_that_cannot_be_read(powercap: Path) -> None:
    file = powercap / "intel-rapl:0" / "energy_uj"
    file.write_text("not a number\n")
    assert "cannot be read" in open_energy_meter(gpu=False, powercap=powercap).obstacles[0]
    if os.geteuid() != 0:  # nothing is forbidden to root
        file.chmod(0)
        assert "root only" in open_energy_meter(gpu=False, powercap=powercap).obstacles[0]


def test_a_gpu_is_asked_for_its_energy_or_says_why_not(powercap: Path) -> None:
    meter = open_energy_meter(gpu=True, powercap=powercap)
    asked = [counter.name for counter in meter.counters if counter.name.startswith("nvml")]
    assert bool(asked) != any("NVML" in obstacle for obstacle in meter.obstacles)
