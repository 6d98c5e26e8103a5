"""Small logged models and evaluations for the tests of gates: real MLflow, no language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from mlflow_degrade import SampleScores
from mlflow_degrade.registry.references import content_digest
from mlflow_degrade.tracking.evaluations import log_evaluation

_CODE = """\
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Constant(PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:
        return ["{answer}" for _ in model_input]

set_model(Constant())
"""


def log_constant(folder: Path, answer: str) -> str:
    """Log a model that always gives one answer to the active run; returns its URI."""
    code = folder / f"{answer}.py"
    code.write_text(_CODE.format(answer=answer))
    info = mlflow.pyfunc.log_model(name="model", python_model=str(code), pip_requirements=[])
    return f"models:/{info.model_id}"


def make_samples(
    wrong: int, n: int = 1500, *, model: str = "m", digest: str | None = None, **columns: Any
) -> SampleScores:
    """Scores of `n` questions, the first `wrong` of them wrong."""
    score = np.ones(n)
    score[:wrong] = 0
    frame = pd.DataFrame({"task": "qa", "doc_id": np.arange(n), "metric": "acc", "score": score})
    frame["prompt"] = [f"question {i}" for i in range(n)]
    return SampleScores.from_pandas(frame.assign(**columns), model=model, model_digest=digest)


def log_evaluated(
    folder: Path,
    answer: str,
    wrong: int,
    *,
    n: int = 1500,
    asked: str = "suite",
    nested: bool = False,
    **columns: Any,
) -> tuple[str, str]:
    """Log a model with its evaluation in a run of its own; returns run id and model URI."""
    with mlflow.start_run(run_name=answer, nested=nested) as run:
        uri = log_constant(folder, answer)
        digest = content_digest(uri)
        samples = make_samples(wrong, n, model=answer, digest=digest, **columns)
        log_evaluation(samples, {"model": digest, "suite": asked})
    return run.info.run_id, uri


def register_champion(folder: Path, name: str = "chat", wrong: int = 10) -> str:
    """A first version, whose alias is set by hand; returns the evaluation's run id."""
    run_id, uri = log_evaluated(folder, "champion", wrong)
    version = mlflow.register_model(uri, name)
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", version.version)
    return run_id


def registry_state(client: mlflow.MlflowClient) -> dict[str, Any]:
    """Everything in the registry, to compare before and after."""
    return {
        model.name: (
            dict(model.aliases),
            sorted(
                (v.version, v.source, tuple(sorted(v.tags.items())))
                for v in client.search_model_versions(f"name='{model.name}'")
            ),
        )
        for model in client.search_registered_models()
    }
