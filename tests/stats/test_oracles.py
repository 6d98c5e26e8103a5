"""Reference values computed by independent routes (exact fractions, mpmath, R), method by method.

A file says for each vector its tolerance and where the value comes from. A method that is not in
`METHODS` fails: a reference that nobody checks is worse than none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_degrade import stats
from mlflow_degrade.stats import _intervals, _sequential, _stepdown

Inputs = dict[str, Any]
OWN_FILE = Path(__file__).parent / "oracles" / "paired_tests.json"

NOT_OFFERED = {
    "cauchy_combine": "discrete p-values have an atom at 1, which destroys its power",
}


def floats(values: list[str]) -> list[float]:
    return [float(value) for value in values]


def labels(clusters: list[list[Any]]) -> np.ndarray:
    return np.repeat(np.arange(len(clusters)), [len(one) for one in clusters])


def rows(clusters: list[list[Any]]) -> list[float]:
    return [float(value) for one in clusters for value in one]


def mcnemar_exact(given: Inputs) -> Inputs:
    result = stats.mcnemar(given["b"], given["c"])
    names = ("p_worse", "p_better", "p_two_sided", "p_mid_worse", "log10_p_worse")
    return {name: getattr(result, name) for name in names}


def clopper_pearson(given: Inputs) -> Inputs:
    found = stats.clopper_pearson(given["k"], given["n"], float(given["conf"]))
    odds = [p / (1 - p) if p < 1 else math.inf for p in (found.low, found.high)]
    return {
        "theta_lo": found.low,
        "theta_hi": found.high,
        "odds_lo": odds[0],
        "odds_hi": odds[1],
    }


def tango_ci(given: Inputs) -> Inputs:
    b, c, n = given["b"], given["c"], given["n"]
    found = stats.tango(b, c, n, float(given["conf"]))
    return {"estimate": stats.mcnemar(b, c, n).delta, "lo": found.low, "hi": found.high}


def tango_noninferiority(given: Inputs) -> Inputs:
    found = stats.noninferiority(
        given["b"], given["c"], given["n"], float(given["margin"]), method="tango"
    )
    return {"z": found.z, "p_noninferior": found.p_value, "log10_p_noninferior": found.log10_p}


def unconditional_noninferiority(given: Inputs) -> Inputs:
    found = stats.noninferiority(
        given["b"], given["c"], given["n"], float(given["margin"]), method="unconditional"
    )
    # The place of the maximum is a by-product of the search, not a result.
    return {"p_sup": found.p_value, "argmax_p_b": ANYTHING}


def newcombe(given: Inputs) -> Inputs:
    a, b, c, d = (given[name] for name in "abcd")
    found = _intervals.newcombe(b, c, a + b + c + d, a, float(given["conf"]))
    return {"lo": found.low, "hi": found.high}


def melded(given: Inputs) -> Inputs:
    found = stats.melded(given["b"], given["c"], given["n"], float(given["conf"]))
    return {"lo": found.low, "hi": found.high}


def fisher_combine(given: Inputs) -> Inputs:
    found = _stepdown.combine_fisher(floats(given["p"]))
    return {"stat": found.statistic, "p": found.p_value, "log10_p": found.log10_p}


def stouffer_combine(given: Inputs) -> Inputs:
    weights = given.get("weights", given.get("w"))
    found = _stepdown.combine_stouffer(
        floats(given["p"]), None if weights is None else floats(weights)
    )
    return {"stat": found.statistic, "p": found.p_value, "log10_p": found.log10_p}


def signflip(given: Inputs) -> Inputs:
    if "clusters" in given:
        clusters = given["clusters"]
        result = stats.signflip(rows(clusters), clusters=labels(clusters))
    elif "value_counts" in given:
        counts = given["value_counts"]
        result = stats.signflip(np.repeat(floats(list(counts)), list(counts.values())))
    else:
        result = stats.signflip(floats(given["diff_candidate_minus_baseline"]))
    assert result.method.startswith("exact")
    return {
        "p_worse": result.p_worse,
        "p_better": result.p_better,
        "p_two_sided": result.p_two_sided,
        "log10_p_worse": result.log10_p_worse,
        "sum": result.sum,
        "n_informative": result.n_informative,
        "cluster_sums": result.units.values.tolist(),
    }


def aggregate_exact(given: Inputs) -> Inputs:
    suite = [stats.Benchmark(str(i), **one) for i, one in enumerate(given["benchmarks"])]
    p_each = stats.aggregate(suite).p_each
    return {
        "p_each": p_each.tolist(),
        "p_fisher_chi2": _stepdown.combine_fisher(p_each).p_value,
        "p_minp_stepdown_adjusted": stats.step_down(suite).p_adjusted.tolist(),
        "p_holm": stats.holm(p_each).tolist(),
        "p_pooled": stats.aggregate(suite, "pooled").p_value,
        "p_macro_exact": stats.aggregate(suite, "macro").p_value,
        "p_fisher_exact_discrete": stats.aggregate(suite, "fisher").p_value,
        "p_minp_exact_discrete": stats.aggregate(suite, "min_p").p_value,
        "p_max_drop_exact": stats.aggregate(suite, "max_drop").p_value,
        "p_stouffer_exact_discrete": stats.aggregate(suite, "stouffer").p_value,
        "p_combined": stats.aggregate(suite, "combined").p_value,
    }


def power_mcnemar(given: Inputs) -> Inputs:
    n, alpha = given["n"], float(given["alpha"])
    return {"power": stats.power_mcnemar(float(given["p_b"]), float(given["p_c"]), n, alpha)}


def sample_size(given: Inputs) -> Inputs:
    p_b, p_c = float(given["p_b"]), float(given["p_c"])
    return {
        f"n_{method}": stats.sample_size(
            abs(p_b - p_c),
            p_b + p_c,
            alpha=float(given["alpha"]),
            power=float(given["power"]),
            sides=given["sides"],
            method=method,
        ).n_unrounded
        for method in ("connor", "miettinen")
    }


def beta_mixture(given: Inputs) -> Inputs:
    b, c, a = given["b"], given["c"], float(given["prior_a"])
    return {
        "log_e_one_sided": float(_sequential.beta_mixture_log_e(b, c, a)),
        "log_e_two_sided": float(_sequential.beta_mixture_log_e(b, c, a, one_sided=False)),
    }


def betting(given: Inputs) -> Inputs:
    payoffs = 2.0 * np.asarray(given["x_regression"], dtype=float) - 1.0
    return {"path": np.exp(_sequential.betting_log_e(payoffs, float(given["lam"]))).tolist()}


def clustered_se(given: Inputs) -> Inputs:
    clusters = given["clusters"]
    found = stats.clustered_difference(rows(clusters), labels(clusters))
    return {"mean": found.mean, "se_cr0": found.se_cr0, "se_cr1": found.se_cr1}


def kcm(given: Inputs) -> Inputs:
    ell = float(given["ell"])
    assert given["kernel"].startswith("gaussian exp(-(x-y)^2/(2 ell^2))")
    result = stats.kcm_test(floats(given["d"]), {"x": floats(given["x"])}, bandwidths={"x": [ell]})
    found = result.feature("x")
    return {
        "U": found.u,
        "V": found.v,
        "p_signflip_exact": found.p_value,
        "witness_at_0_05_1": found.witness([0.0, 0.5, 1.0]).tolist(),
    }


def ppi(given: Inputs) -> Inputs:
    found = stats.prediction_powered_difference(
        floats(given["gold_d"]),
        floats(given["judge_d_on_gold"]),
        floats(given["judge_d_unlabeled"]),
        lam=float(given["lam"]) if "lam" in given else None,
    )
    interval = found.interval(0.95)
    return {
        "estimate": found.estimate,
        "se_ddof0": found.se,
        "z_lo95": interval.low,
        "z_hi95": interval.high,
        "lam": found.lam,
    }


ANYTHING = object()

METHODS: dict[str, Callable[[Inputs], Inputs]] = {
    "aggregate_exact": aggregate_exact,
    "beta_mixture_e_value": beta_mixture,
    "betting_e_process_fixed_lambda": betting,
    "bh_adjust": lambda given: {"adj": stats.benjamini_hochberg(floats(given["p"])).tolist()},
    "clopper_pearson": clopper_pearson,
    "clustered_se_mean_diff": clustered_se,
    "exact_unconditional_noninferiority_tango_order": unconditional_noninferiority,
    "fisher_combine": fisher_combine,
    "holm_adjust": lambda given: {"adj": stats.holm(floats(given["p"])).tolist()},
    "kcm_signflip_exact": kcm,
    "mcnemar_exact": mcnemar_exact,
    "melded_exact_ci": melded,
    "newcombe_paired_ci": newcombe,
    "power_mcnemar_exact_one_sided": power_mcnemar,
    "ppi_mean_paired": ppi,
    "samplesize_connor_miettinen": sample_size,
    "signflip_clustered": signflip,
    "signflip_exact": signflip,
    "signflip_integer_dp": signflip,
    "simes": lambda given: {"p": _stepdown.simes(floats(given["p"]))},
    "stouffer_combine": stouffer_combine,
    "tango_ci": tango_ci,
    "tango_noninferiority": tango_noninferiority,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "vector" in metafunc.fixturenames:
        files = [OWN_FILE, *map(Path, metafunc.config.getoption("--oracles"))]
        vectors = [
            pytest.param(vector, id=f"{file.stem}-{vector['id']}")
            for file in files
            for vector in json.loads(file.read_text(encoding="utf-8"))["vectors"]
        ]
        metafunc.parametrize("vector", vectors)


def test_oracle(vector: dict[str, Any]) -> None:
    method = vector["method"]
    if method in NOT_OFFERED:
        pytest.skip(f"{method} is not offered: {NOT_OFFERED[method]}")
    assert method in METHODS, f"no procedure is registered for the oracle method {method!r}"
    inputs = Read(vector["inputs"])
    got = METHODS[method](inputs)
    assert inputs.ignored == set(), f"the adapter of {method} did not look at {inputs.ignored}"
    for name, expected in vector["expected"].items():
        assert name in got, f"{method} does not report {name!r}"
        if got[name] is not ANYTHING:
            compare(name, got[name], expected, vector)


class Read(dict[str, Any]):
    """Inputs that remember which of them were looked at."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        self.ignored = set(inputs)

    def __getitem__(self, name: str) -> Any:
        self.ignored.discard(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.ignored.discard(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.ignored.discard(str(name))
        return super().__contains__(name)


def test_an_input_that_an_adapter_ignores_is_seen() -> None:
    inputs = Read({"p": ["0.5", "0.25"], "scale": "2"})
    stouffer_combine(inputs)
    assert inputs.ignored == {"scale"}


def test_an_expected_infinity_admits_nothing_else() -> None:
    vector = {"rel_tol": 1e-9, "abs_tol": 0.0, "inputs": {}}
    compare("stat", math.inf, "inf", vector)
    for got in (1e300, -math.inf):
        with pytest.raises(AssertionError):
            compare("stat", got, "inf", vector)


def compare(name: str, got: Any, expected: Any, vector: dict[str, Any]) -> None:
    if isinstance(expected, list):
        assert len(got) == len(expected), name
        for index, (one, other) in enumerate(zip(got, expected, strict=True)):
            compare(f"{name}[{index}]", one, other, vector)
        return
    value = float(expected)
    if name == "p_mid_worse" and vector["inputs"] == {"b": 0, "c": 0}:
        # Without a discordant pair the mid-p is a convention, 1/2 or 1.
        assert got in (0.5, 1.0)
        return
    limit = max(float(vector["abs_tol"]), float(vector["rel_tol"]) * abs(value))
    if math.isinf(value):
        # A relative tolerance of infinity would admit any number, and inf − inf none.
        assert got == value, f"{name}: got {got!r}, expected {expected}"
        return
    error = abs(got - value)
    assert error <= limit, f"{name}: got {got!r}, expected {expected}, |error| {error} > {limit}"
