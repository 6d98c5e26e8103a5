"""The verdict from a notebook: `mlflow.models.evaluate` with the evaluator ``degrade``.

Needs the light base only. python examples/evaluate_in_a_notebook.py && mlflow ui
"""

# %% Scores of both models on the same questions; in earnest they come from your evaluation.
import mlflow
import numpy as np
import pandas as pd

rng = np.random.default_rng(0)
n = 3_000
frame = pd.DataFrame({"task": rng.choice(["facts", "sums"], n), "prompt_id": np.arange(n)})
frame["baseline"] = (rng.random(n) < 0.8).astype(float)
again = rng.random(n) < 0.05  # on these the candidate answers anew, no better and no worse
frame["candidate"] = np.where(again, rng.random(n) < 0.8, frame["baseline"])

# %% The verdict: MLflow gets metrics, report, flipped samples and evidence.
with mlflow.start_run(run_name="int8 against fp32"):
    result = mlflow.models.evaluate(
        data=frame,
        predictions="candidate",
        model_type="degrade",
        evaluators="degrade",
        evaluator_config={"baseline": "baseline", "policy": {"margin_pp": 2.0}},
    )

# %% The same with answers instead of scores: name the column of expected answers, too.
frame["target"], frame["baseline"], frame["candidate"] = "yes", "yes", "yes"
with mlflow.start_run(run_name="answers"):
    answers = mlflow.models.evaluate(
        data=frame,
        predictions="candidate",
        targets="target",
        model_type="degrade",
        evaluators="degrade",
    )

# %% To register what passes, evaluate a logged model: evaluator_config={"register_as": "chat",
# "alias": "champion"}, model="models:/m-…", and the baseline's answers in a column.
for name in ("degrade/passed", "degrade/delta_pp", "degrade/ci_low_pp", "degrade/mde_pp"):
    print(f"{name:20} {result.metrics[name]:8.3f} {answers.metrics[name]:8.3f}")
