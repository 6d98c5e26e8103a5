"""lm-eval in MLflow: what is logged, once, and interrupted."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from gate_cases import log_constant
from lm_eval_cases import all_runs, change_results, logged, question_key, results_of, samples_file
from mlflow import MlflowClient

from mlflow_degrade import GatePolicy, SampleScores, Verdict, promote
from mlflow_degrade.registry import lm_eval_runs
from mlflow_degrade.registry.lm_eval_runs import read_directory
from mlflow_degrade.registry.references import content_digest, match_evaluations
from mlflow_degrade.tracking import evaluations
from mlflow_degrade.tracking.evaluations import KEY_TAG, MODEL_DIGEST_TAG, load_samples

pytest.importorskip("lm_eval")


@pytest.mark.usefixtures("store")
class TestLogging:
    def test_everything_lm_eval_found_is_there(self, folder: Path, call: Any) -> None:
        done = logged(call, folder, "--experiment", "q", "--tag", "a=b=c", "--run-name", "tiny")
        (found,) = all_runs()
        assert (found.info.status, found.info.run_name) == ("FINISHED", "tiny")
        about, data = results_of(folder), found.data
        for task, values in about["results"].items():
            for key, value in values.items():
                metric, comma, _ = key.partition(",")
                if comma and isinstance(value, float):
                    assert data.metrics[f"{task}/{metric}"] == pytest.approx(value)
        # lm-eval's perplexity, not the mean of the samples' logarithms; and the group's figure.
        assert data.metrics["tiny_cloze/perplexity"] > 1e6
        assert data.metrics["pair/acc"] == data.metrics["tiny_choice/acc"]
        assert data.metrics == pytest.approx({**data.metrics, **done["metrics"]})
        wanted = {"model": "hf", "num_fewshot": "0", "batch_size": "8", "numpy_seed": "1234"}
        assert wanted.items() <= data.params.items()
        assert data.params["lm_eval_version"] == about["lm_eval_version"]
        assert data.tags["a"] == "b=c"
        assert "| tiny_choice | acc |" in data.tags["mlflow.note.content"]
        run_id = found.info.run_id
        (kept,) = MlflowClient().list_artifacts(run_id, "lm-eval")
        assert json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{kept.path}")) == about
        samples = load_samples(run_id)
        assert samples.digest() == read_directory(folder).samples.digest()
        assert samples.model_digest == done["model_digest"]

    def test_secrets_stay_where_they_are(self, folder: Path, call: Any) -> None:
        secret = "s3cr3t-Value"
        args = f"pretrained=m,token={secret},base_url=https://me:{secret}@host/v1"
        change_results(folder, lambda about: about["config"].update(model_args=args))
        done = logged(call, folder, "--tag", f"api_key={secret}")
        run = MlflowClient().get_run(done["run_id"])
        assert (
            run.data.params["model_args"] == "pretrained=m,token=***,base_url=https://***@host/v1"
        )
        folder = Path(mlflow.artifacts.download_artifacts(run_id=done["run_id"]))
        written = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
        assert len(written) > 2
        assert not any(secret.encode() in content for content in written)
        assert secret not in str(run.to_dictionary())

    def test_twice_is_once(self, folder: Path, call: Any) -> None:
        first = logged(call, folder)
        state = [r.to_dictionary() for r in all_runs()]
        again = logged(call, folder)
        assert (first["created"], again["created"]) == (True, False)
        assert again["run_id"] == first["run_id"]
        assert [r.to_dictionary() for r in all_runs()] == state
        assert logged(call, folder, "--fresh")["run_id"] != first["run_id"]
        # Other answers of the same model to the same questions are another evaluation.
        file = samples_file(folder, "tiny_choice")
        records = [json.loads(line) for line in file.read_text().splitlines()]
        records[0]["acc"] = 1.0 - records[0]["acc"]
        file.write_text("\n".join(map(json.dumps, records)))
        rerun = logged(call, folder)
        assert rerun["created"]
        assert question_key(rerun["run_id"]) == question_key(first["run_id"])

    def test_two_models_are_compared_and_gated(self, made: Path, call: Any) -> None:
        runs = [
            logged(call, made / "out", "--model", made / f"model{seed}")["run_id"]
            for seed in (0, 1)
        ]
        assert question_key(runs[0]) == question_key(runs[1])
        found = [[MlflowClient().get_run(run_id)] for run_id in runs]
        matched = match_evaluations(*found)
        assert matched is not None
        assert [run.info.run_id for run in matched] == runs
        code, out, err = call("compare", *(f"runs:/{run_id}" for run_id in runs))
        assert code in (0, 1, 2), err
        assert "tiny_choice" in out
        sides = "--baseline", f"runs:/{runs[0]}", "--candidate", f"runs:/{runs[1]}"
        gated, _, err = call("gate", *sides, "--register-as", "none")
        assert gated == code, err
        assert {r.info.status for r in all_runs()} == {"FINISHED"}

    def test_with_its_model_a_run_can_be_registered(
        self, made: Path, tmp_path: Path, call: Any
    ) -> None:
        with mlflow.start_run():
            uri = log_constant(tmp_path, "fast")
        options = ("--model-uri", uri, "--model", made / "model1")
        candidate = logged(call, made / "out", *options)
        assert candidate["model_digest"] == content_digest(uri)
        tags = MlflowClient().get_run(candidate["run_id"]).data.tags
        assert tags[MODEL_DIGEST_TAG] == candidate["model_digest"]
        baseline = logged(call, made / "out", "--model", made / "model0")
        done = promote(
            f"runs:/{candidate['run_id']}",
            f"runs:/{baseline['run_id']}",
            GatePolicy(alpha=1e-9, margin_pp=99),
            register_as="chat",
            alias="champion",
            model_uri=uri,
        )
        assert done.decision.verdict is Verdict.PASS
        assert done.placement is not None
        assert done.placement.version == "models:/chat/1"

    def test_long_values_are_not_cut(self, folder: Path, call: Any) -> None:
        text = "be brief. " * 1_000
        change_results(folder, lambda about: about.update(system_instruction=text))
        run_id = logged(call, folder)["run_id"]
        param = MlflowClient().get_run(run_id).data.params["system_instruction"]
        assert param.startswith("sha256:")
        assert "(10000 characters" in param

    def test_what_is_not_finite_is_named(self, folder: Path, call: Any) -> None:
        def spoil(about: dict[str, Any]) -> None:
            about["results"]["tiny_choice"]["acc,none"] = math.nan
            about["results"]["pair"]["acc,none"] = math.inf

        change_results(folder, spoil)
        code, out, _ = call("log-lm-eval", folder)
        assert code == 0
        assert "no finite numbers: pair/acc, tiny_choice/acc" in out
        (found,) = all_runs()
        # The mean of the samples is a number, whatever lm-eval made of it.
        assert found.data.metrics["tiny_choice/acc"] <= 1
        assert "pair/acc" not in found.data.metrics


@pytest.mark.usefixtures("store")
def test_a_newer_run_without_samples_is_said(folder: Path, call: Any) -> None:
    (file,) = folder.glob("results_*.json")
    shutil.copy(file, folder / "results_2999-01-01T00-00-00.000000.json")
    code, _, err = call("log-lm-eval", folder)
    assert code == 0
    assert "results_2999-01-01T00-00-00.000000.json is newer and has no samples" in err


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_running_run(
    folder: Path, sent: signal.Signals, code: int, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process started in the background of a shell ignores SIGINT until it is told otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    # It arrives when most of the run is there.
    monkeypatch.setattr(lm_eval_runs, "log_evaluation", lambda *_, **__: os.kill(os.getpid(), sent))
    try:
        assert call("log-lm-eval", folder)[0] == code
    finally:
        signal.signal(signal.SIGINT, before)
    (found,) = all_runs()
    assert found.info.status == "KILLED"
    assert KEY_TAG not in found.data.tags


def test_rows_in_any_order_are_the_same_files(made: Path) -> None:
    samples = read_directory(made / "out", model=str(made / "model0")).samples
    shuffled = SampleScores(samples.table.take(np.random.default_rng(0).permutation(len(samples))))
    parts = dict(evaluations._by_task(shuffled))
    assert sorted(parts) == sorted(samples.tasks)
    for task, part in parts.items():
        assert part.digest() == samples.select(tasks=[task]).digest()
