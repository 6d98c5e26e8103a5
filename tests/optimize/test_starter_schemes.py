"""The starter model through every step: distances, sizes, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import SENTENCES

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.fusion.optimize_graph import optimize_graph
from mlflow_degrade.optimize.parity.decoder import parity
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

pytestmark = [pytest.mark.slow, pytest.mark.starter]


# Minutes in all: whatever is asked below about a step is asked of what these made.
_ALL_STEPS = """\
import json, os, resource, sys, time
from mlflow_degrade.optimize.source import resolve_model
source = resolve_model("starter")
os.environ["MLFLOW_DEGRADE_CACHE"] = sys.argv[1]
from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.graph import optimize_graph
from mlflow_degrade.optimize.schemes import SCHEMES, apply_scheme
start = time.monotonic()
exported = export_onnx(source)
base = optimize_graph(exported)
apply_scheme(base, "int8-weight-only")
default = time.monotonic() - start
for name, scheme in SCHEMES.items():
    if not (scheme.calibrated or scheme.exclusion or name.endswith("hqq")):  # those take minutes
        apply_scheme(base, name)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
found = {"exported": str(exported), "base": str(base), "peak": peak, "seconds": default}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All steps in a process and a cache of their own: the folders, peak memory and time."""
    cache = str(tmp_path_factory.mktemp("steps"))
    done = subprocess.run(
        [sys.executable, "-c", _ALL_STEPS, cache], stdout=subprocess.PIPE, text=True, check=True
    )
    return {**json.loads(done.stdout), "cache": cache}


@pytest.fixture
def base(steps: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> ModelDirectory:
    """What the schemes start from; the cache where they lie is in force."""
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", steps["cache"])
    return ModelDirectory.load(Path(steps["base"]))


def test_the_export_reproduces_pytorch(steps: dict[str, Any], base: ModelDirectory) -> None:
    exported = ModelDirectory.load(Path(steps["exported"]))
    assert exported.manifest["parity"]["reference"] == "pytorch"
    assert exported.manifest["parity"]["max_abs_logit_difference"] < 1e-3
    assert exported.recipe[0]["tied_embeddings"] is True
    assert 535e6 < exported.size_bytes < 545e6  # 134.5 million weights once, not 162.8 million
    assert base.manifest["parity"]["max_abs_logit_difference"] < 1e-3
    assert base.recipe[-1]["nodes_after"] < 4000


# KL bands around what was measured (3.5e-6, .0015, .0057, .50, .056): int4's is no verdict on int4,
# the model's own weights lie on another 4-bit grid.
@pytest.mark.parametrize(
    ("scheme", "kl", "megabytes"),
    [
        ("fp16", (0, 1e-4), 270),
        ("bf16", (1e-4, 5e-3), 270),
        ("int8-weight-only", (1e-4, 0.02), 209),
        ("int4-weight-only", (0.1, 1.5), 142),
        pytest.param("int8-dynamic", (1e-3, 0.1), 193, marks=pytest.mark.exhaustive),
    ],
)
def test_each_scheme_is_as_close_and_as_small_as_it_says(
    scheme: str, kl: tuple[float, float], megabytes: int, base: ModelDirectory
) -> None:
    made = ModelDirectory.load(apply_scheme(base.path, scheme))
    made.verify()
    assert kl[0] <= made.manifest["parity"]["mean_kl"] <= kl[1]
    assert made.size_bytes / 1e6 == pytest.approx(megabytes, rel=0.02)


# Texts no scheme was calibrated on. Measured: .99970, .98992; rounding to nearest has .9698 with
# symmetric blocks and .9752 with asymmetric ones.
@pytest.mark.parametrize(
    ("scheme", "cosine"), [("int8-weight-only", 0.9995), ("int4-weight-only-gptq", 0.985)]
)
def test_weights_in_integers_keep_the_vectors_of_a_clean_encoder(
    scheme: str, cosine: float
) -> None:
    base = optimize_graph(export_onnx(resolve_model("starter-encoder")))
    made = ModelDirectory.load(apply_scheme(base, scheme))
    assert made.manifest["parity"]["mean_cosine"] >= cosine


@pytest.mark.exhaustive
def test_dynamic_int8_keeps_few_layers_and_holds_on_other_texts(base: ModelDirectory) -> None:
    made = ModelDirectory.load(apply_scheme(base.path, "int8-dynamic"))
    smoothing, step = made.recipe[-2:]
    assert smoothing["joints"] == 3 * 30
    assert smoothing["strengths"].get("0.0", 0) < 10
    assert len(step["kept_in_float"]) <= 10  # of 211; none on a CPU with VNNI, 17 unsmoothed
    assert made.sensitivity is not None
    assert made.sensitivity.whole < 0.1  # .63 unsmoothed
    # Texts that nothing was chosen on.
    assert parity(base.path, made.path, SENTENCES).mean_kl <= 0.1


def test_all_steps_together_stay_below_six_gigabytes(steps: dict[str, Any]) -> None:
    print(f"peak {steps['peak'] / 1e9:.2f} GB, export to int8 in {steps['seconds']:.0f} s")
    assert steps["peak"] < 6 * 2**30
