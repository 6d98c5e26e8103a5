"""Samples in MLflow runs, in a temporary store of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_state import mlflow_state_kept

from mlflow_degrade.core.errors import SampleSchemaError, TrackingError, UnknownNameError
from mlflow_degrade.samples.readers import read_samples
from mlflow_degrade.samples.table import SampleScores

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_state_kept():
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        experiment = mlflow.create_experiment("e", str(folder / "artifacts"))
        mlflow.set_experiment(experiment_id=experiment)
        yield


def samples(task: str) -> SampleScores:
    rows = [{"task": task, "doc_id": str(i), "metric": "acc", "score": i % 2} for i in range(4)]
    return SampleScores.from_records(rows, model="m", model_digest="sha256:0")


@pytest.fixture(scope="module")
def parent(store: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:  # noqa: ARG001
    """A recipe run and its child with the baseline's samples."""
    import mlflow

    folder = tmp_path_factory.mktemp("run")
    for task in ("arc", "gsm8k"):
        samples(task).write_parquet(folder / "samples" / f"{task}.parquet")
    (folder / "scores.csv").write_text("prompt_id,right\n1,1\n")
    with mlflow.start_run() as outer:
        mlflow.log_text("a report", "report.md")
        with mlflow.start_run(run_name="baseline", nested=True) as inner:
            mlflow.log_artifacts(str(folder))
    return outer.info.run_id, inner.info.run_id


def test_the_samples_of_a_run(parent: tuple[str, str]) -> None:
    scores = read_samples(f"runs:/{parent[1]}")
    assert (scores.tasks, scores.model, len(scores)) == (("arc", "gsm8k"), "m", 8)
    expected = SampleScores.concat([samples("arc"), samples("gsm8k")])
    assert scores.digest() == expected.digest()
    assert read_samples(f"runs:/{parent[1]}/").digest() == expected.digest()


def test_any_artifact_that_a_reader_knows(parent: tuple[str, str]) -> None:
    one = read_samples(f"runs:/{parent[1]}/samples/arc.parquet")
    assert one.digest() == samples("arc").digest()
    assert len(read_samples(f"runs:/{parent[1]}/scores.csv", score_column="right")) == 1
    with pytest.raises(UnknownNameError):
        read_samples(f"runs:/{parent[1]}", score_column="right")


def test_a_parent_is_ambiguous_and_its_children_are_named(parent: tuple[str, str]) -> None:
    with pytest.raises(TrackingError) as error:
        read_samples(f"runs:/{parent[0]}")
    assert f"baseline runs:/{parent[1]}" in str(error.value)
    assert "parent of 1 runs" in str(error.value)


def test_a_run_without_samples_says_what_it_has() -> None:
    import mlflow

    with mlflow.start_run() as run:
        mlflow.log_text("a report", "report.md")
    with pytest.raises(TrackingError, match=r"no samples/<task>\.parquet.*only \['report.md'\]"):
        read_samples(f"runs:/{run.info.run_id}")
    with pytest.raises(SampleSchemaError, match="none of the formats"):
        read_samples(f"runs:/{run.info.run_id}/report.md")


@pytest.mark.parametrize("reference", ["runs:/nothere", "runs:/", "runs:/nothere/samples"])
def test_runs_that_do_not_exist(reference: str) -> None:
    with pytest.raises(TrackingError):
        read_samples(reference)


def test_an_artifact_that_does_not_exist(parent: tuple[str, str]) -> None:
    with pytest.raises((TrackingError, SampleSchemaError)):
        read_samples(f"runs:/{parent[1]}/other")
