"""``mlflow-degrade plan`` and the numbers behind it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade.core.errors import DegradeError, InputError
from mlflow_degrade.decision.planning import detectable_drop, needed_samples, suite_power
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import read_samples
from mlflow_degrade.stats import guard_mde

Call = Callable[..., Any]


class TestNumbers:
    @pytest.mark.parametrize(
        ("drop", "flip_rate", "n"),
        [(0.003, 0.02, 13_700), (0.005, 0.02, 4_900), (0.01, 0.02, 1_200),
         (0.003, 0.1, 68_700), (0.005, 0.1, 24_700), (0.01, 0.1, 6_200)],
    )  # fmt: skip
    def test_samples_to_find_a_drop_match_the_published_table(
        self, drop: float, flip_rate: float, n: int
    ) -> None:
        found = needed_samples(drop, flip_rate, aggregation="pooled").detect
        assert found == pytest.approx(n, rel=0.03)

    @pytest.mark.parametrize("aggregation", ["combined", "pooled"])
    def test_the_guard_accepts_the_planned_samples_and_not_far_fewer(
        self, aggregation: str
    ) -> None:
        plan = needed_samples(0.01, 0.05, aggregation=aggregation)
        alpha = 0.025 if aggregation == "combined" else 0.05
        n = plan.pass_no_degradation
        assert guard_mde(int(np.ceil(n * 0.025)), 0, n, alpha=alpha) <= 0.01
        fewer = int(0.95 * n)
        assert guard_mde(round(fewer * 0.025), 0, fewer, alpha=alpha) > 0.01
        assert plan.detect < n

    def test_combined_costs_more(self) -> None:
        plans = [needed_samples(0.01, 0.05, aggregation=a) for a in ("combined", "pooled")]
        assert plans[0].detect > plans[1].detect
        drops = [detectable_drop(2000, 0.05, aggregation=a) for a in ("combined", "pooled")]
        assert drops[0] > drops[1]

    def test_impossible_wishes(self) -> None:
        with pytest.raises(DegradeError, match=r"drop = 0\.2"):
            needed_samples(0.2, 0.1)
        with pytest.raises(DegradeError, match="state a larger drop"):
            needed_samples(1e-6, 0.1)

    def test_a_rerun(self, there: Path) -> None:
        sides = [read_samples(there / f"{name}.csv") for name in ("fp32", "fp32_again")]
        *tasks, total = suite_power(pair(*sides))
        assert [task.name for task in tasks] == ["arc", "gsm8k", "numbers"]
        assert (total.n, total.changed) == (3291, 50)
        assert total.flip_rate == pytest.approx(50 / 3291)
        assert total.flip_rate < total.flip_rate_upper < 0.02
        assert total.detectable == guard_mde(25, 25, 3291, alpha=0.025)
        assert all(task.detectable > total.detectable for task in tasks)

    def test_graded_scores_have_no_flip_rate(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            frame = pd.DataFrame({"prompt_id": range(4), "score": [0.1, 0.5, 1, 0]})
            frame.to_csv(tmp_path / f"{name}.csv", index=False)
        sides = [read_samples(tmp_path / f"{name}.csv") for name in ("a", "b")]
        with pytest.raises(InputError, match="no flip rate"):
            suite_power(pair(*sides))


class TestCommand:
    def test_how_many_samples_for_half_a_point(self, call: Call) -> None:
        result = call("plan", "--flip-rate", "0.02", "--drop-pp", "0.5", "--aggregation", "pooled")
        assert result.code == 0
        assert re.search(r"2\.0% +0\.50 pp +4,944 +5,348 +4,947", result.out)

    def test_what_a_suite_can_detect(self, call: Call) -> None:
        result = call("plan", "--flip-rate", "0.05", "--samples", "1319", "--samples", "12")
        assert result.code == 0
        drop = 100 * detectable_drop(1319, 0.05)
        assert re.search(rf"1,319 +{drop:.2f} pp", result.out)
        assert re.search(r"12 +none", result.out)

    def test_from_a_rerun_with_a_plot(self, there: Path, call: Call) -> None:
        (there / "deep").mkdir()
        result = call("plan", "fp32.csv", "fp32_again.csv", "--plot", "deep/plan.svg")
        assert result.code == 0
        assert re.search(r"all tasks +3,291 +50 +1\.5%", result.out)
        assert (there / "deep" / "plan.svg").read_text().lstrip().startswith("<?xml")
        assert [p.name for p in (there / "deep").iterdir()] == ["plan.svg"]

    def test_without_anything_it_shows_typical_flip_rates(self, call: Call) -> None:
        result = call("plan")
        assert result.code == 0
        for rate in ("2.0%", "5.0%", "10.0%"):
            assert rate in result.out

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["fp32.csv"], "give two runs"),
            (["fp32.csv", "fp32.csv"], "same log"),
            (["--plot", "x.txt"], "must end in .png"),
            (["--flip-rate", "0.01", "--drop-pp", "2"], "drop = 0.02"),
            (["--flip-rate", "1.5"], "flip_rate = 1.5"),
            (["--flip-rate", "0.1", "--samples", "0"], "n = 0"),
            (["--alpha", "0.9"], "alpha"),
            (["--power", "1"], "power"),
            (["fp32.csv", "int8.csv", "--metric", "bleu"], "bleu"),
        ],
    )
    def test_what_is_refused(self, args: list[str], message: str, call: Call) -> None:
        result = call("plan", *args)
        assert result.code == 3, result.out
        assert message in result.err
        assert "Traceback" not in result.err
