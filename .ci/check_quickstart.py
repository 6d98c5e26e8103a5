"""Check what `mlflow run recipes/quantize` left in the default store of the current directory."""

from __future__ import annotations

import mlflow
from mlflow.tracking import MlflowClient

mlflow.set_tracking_uri("sqlite:///mlflow.db")
client = MlflowClient()
runs = client.search_runs(["0"])
statuses = {run.info.run_name: run.info.status for run in runs}
assert set(statuses.values()) == {"FINISHED"}, statuses
(parent,) = [run for run in runs if "degrade.verdict" in run.data.tags]
assert parent.data.tags["degrade.verdict"] == "PASS", parent.data.tags["degrade.reasons"]
(model,) = client.search_registered_models()
(version,) = client.search_model_versions(f"name = '{model.name}'")
assert version.tags["degrade.verdict"] == "PASS", version.tags
assert version.run_id == parent.info.run_id
answer = mlflow.pyfunc.load_model(f"models:/{model.name}/{version.version}").predict(
    [{"prompt": "The capital of France is", "choices": ["Paris", "a banana"]}]
)
assert answer["text"][0] == "Paris", answer
print(f"quickstart: {model.name} version {version.version} is registered and answers")
