"""A model beside a copy of itself, measured again and again, is not called faster."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from engine_models import ModelDir

from mlflow_degrade.bench.cost import TimedModel, open_workload
from mlflow_degrade.bench.memory import EnergyMeter, MemoryUse
from mlflow_degrade.bench.results import Shape
from mlflow_degrade.stats._paired_rounds import PairedRounds, least_rounds

_RUNS, _GOAL, _ALPHA = 200, 1.05, 0.05


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_copy_is_hardly_ever_five_per_cent_faster(model_dir: ModelDir, tmp_path: Path) -> None:
    # Two sessions and two files each time: where either lies in memory must not decide.
    copies = [tmp_path / name for name in "ab"]
    for copy in copies:
        shutil.copytree(model_dir("fp32"), copy)
    shape, meter, random = Shape(1, 32, 6), EnergyMeter((), ()), np.random.default_rng(0)
    passed = {"prefill": 0, "decode": 0}
    for _ in range(_RUNS):
        both = [
            TimedModel(open_workload(copy, device="cpu", threads=1), [shape], meter)
            for copy in copies
        ]
        for one in both:
            one.run(shape)
            one.forget()
        rounds = least_rounds(_ALPHA)
        for done in range(rounds):
            if done == rounds // 2:  # as measure_cost does
                for one in reversed(both):
                    one.reopen("cpu", 1, [shape])
            for index in random.permutation(2):
                both[index].run(shape)
        for name in passed:
            costs = [one.cost("", [MemoryUse(None, None)]) for one in both]
            seconds = [next(t.rounds for t in cost.times if t.phase == name) for cost in costs]
            low = PairedRounds.of(*seconds).lower(_ALPHA)
            passed[name] += low is not None and low >= _GOAL
    assert max(passed.values()) <= _ALPHA * _RUNS, passed
