"""The starter model through every step: distances, sizes, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import SENTENCES

from mlflow_degrade.optimize.export import export_onnx
from mlflow_degrade.optimize.graph import optimize_graph
from mlflow_degrade.optimize.model_directory import ModelDirectory
from mlflow_degrade.optimize.parity import parity
from mlflow_degrade.optimize.schemes import apply_scheme
from mlflow_degrade.optimize.source import resolve_model

pytestmark = [pytest.mark.slow, pytest.mark.starter]


@pytest.fixture(scope="module")
def base() -> ModelDirectory:
    exported = export_onnx(resolve_model("starter"))
    return ModelDirectory.load(optimize_graph(exported))


def test_the_export_reproduces_pytorch(base: ModelDirectory) -> None:
    exported = ModelDirectory.load(export_onnx(resolve_model("starter")))
    assert exported.manifest["parity"]["reference"] == "pytorch"
    assert exported.manifest["parity"]["max_abs_logit_difference"] < 1e-3
    assert exported.recipe[0]["tied_embeddings"] is True
    assert 535e6 < exported.size_bytes < 545e6  # 134.5 million weights once, not 162.8 million
    assert base.manifest["parity"]["max_abs_logit_difference"] < 1e-3
    assert base.recipe[-1]["nodes_after"] < 4000


# KL bands around what was measured (3.5e-6, .0057, .50, .059): int4's is no verdict on int4, the
# model's own weights lie on another 4-bit grid.
@pytest.mark.parametrize(
    ("scheme", "kl", "megabytes"),
    [
        ("fp16", (0, 1e-4), 270),
        ("int8-weight-only", (1e-4, 0.02), 209),
        ("int4-weight-only", (0.1, 1.5), 142),
        pytest.param("int8-dynamic", (1e-3, 0.1), 218, marks=pytest.mark.exhaustive),
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
    kept = made.recipe[-1]["kept_in_float"]
    assert 4 <= len(kept) <= 40  # of 211; 18 on a CPU with VNNI
    assert "down_proj" in kept[0]
    assert made.sensitivity is not None
    assert made.sensitivity.whole > 0.3
    # Layers were chosen on other texts than these.
    assert parity(base.path, made.path, SENTENCES).mean_kl <= 0.1


def test_all_steps_together_stay_below_six_gigabytes(tmp_path: Path) -> None:
    script = (
        "import json, os, resource, sys, time\n"
        "from mlflow_degrade.optimize.source import resolve_model\n"
        "source = resolve_model('starter')\n"
        "os.environ['MLFLOW_DEGRADE_CACHE'] = sys.argv[1]\n"
        "from mlflow_degrade.optimize.export import export_onnx\n"
        "from mlflow_degrade.optimize.graph import optimize_graph\n"
        "from mlflow_degrade.optimize.schemes import SCHEMES, apply_scheme\n"
        "start = time.monotonic()\n"
        "base = optimize_graph(export_onnx(source))\n"
        "apply_scheme(base, 'int8-weight-only')\n"
        "default = time.monotonic() - start\n"
        "for name, scheme in SCHEMES.items():\n"
        "    if not (scheme.calibrated or scheme.exclusion or name.endswith('hqq')):\n"  # minutes
        "        apply_scheme(base, name)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps({'peak': peak, 'seconds': default}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout)
    print(f"peak {found['peak'] / 1e9:.2f} GB, export to int8 in {found['seconds']:.0f} s")
    assert found["peak"] < 6 * 2**30
