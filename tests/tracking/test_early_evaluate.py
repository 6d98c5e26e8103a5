"""``mlflow-degrade evaluate --against``: lm-eval's models asked in a planned order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import safetensors.torch
from lm_eval_cases import all_runs
from local_tasks import write_choice_task
from recipe_cases import make_items
from tiny_models import make_tiny_llama

from mlflow_degrade import SampleScores
from mlflow_degrade.evaluation import harness
from mlflow_degrade.registry import comparison
from mlflow_degrade.tracking.evaluations import load_samples

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of 300 samples, a model, and a copy of it with weights that differ a little."""
    root = tmp_path_factory.mktemp("early")
    for number, name in enumerate(("boats", "trains")):
        write_choice_task(root / "tasks", name, items=make_items(300, seed=number))
    model = make_tiny_llama(root / "fp32", seed=0)
    shutil.copytree(model, root / "close")
    weights = root / "close" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    changed = {name: tensor * 1.00001 for name, tensor in tensors.items()}
    safetensors.torch.save_file(changed, weights, metadata={"format": "pt"})
    (root / "policy.yaml").write_text(
        "rule: non_inferiority\nmargin_pp: 5\nsequential: {claim: suite, seed: 3}\n"
    )
    return root


def _args(place: Path, model: str, *more: str) -> list[str]:
    return [
        "evaluate", "--model", "hf", "--model-args", f"pretrained={place / model},dtype=float32",
        "--tasks", "boats,trains", "--include-path", str(place / "tasks"), "--device", "cpu",
        "--batch-size", "32", *more,
    ]  # fmt: skip


@pytest.mark.usefixtures("store")
class TestEarlyEvaluate:
    @pytest.fixture
    def baseline(self, place: Path, call: Any) -> str:
        code, out, err = call(*_args(place, "fp32", "--num-fewshot", "2", "--json", "-"))
        assert code == 0, err
        return f"runs:/{json.loads(out)['run_id']}"

    def early(self, place: Path, baseline: str, *more: str) -> list[str]:
        policy = str(place / "policy.yaml")
        return _args(place, "close", "--num-fewshot", "2", "--against", baseline,
                     "--policy", policy, "--json", "-", *more)  # fmt: skip

    def test_it_stops_and_goes_on_where_it_was_stopped(
        self, place: Path, baseline: str, call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
        enough, seen = comparison.Ordered.enough, []

        def broken(self: comparison.Ordered, candidate: Any) -> bool:
            seen.append(len(candidate))
            if len(seen) == 2:
                raise KeyboardInterrupt
            return enough(self, candidate)

        with monkeypatch.context() as patch:
            patch.setattr(comparison.Ordered, "enough", broken)
            code, _, err = call(*self.early(place, baseline))
        assert code == 130, err
        client = mlflow.MlflowClient()
        (begun,) = client.search_runs(["0"], "status = 'KILLED'")
        kept = list((tmp_path / "cache" / "lm-eval").iterdir())
        assert kept

        code, out, err = call(*self.early(place, baseline, "--output-path", str(tmp_path / "out")))
        assert code == 0, err
        assert "attempt 1 on these samples" in err
        run = client.get_run(json.loads(out)["run_id"])
        assert run.info.status == "FINISHED"
        assert "close" in run.info.run_name
        assert run.data.tags["degrade.order"] == begun.data.tags["degrade.order"]
        assert not list((tmp_path / "cache" / "lm-eval").iterdir())
        samples, whole = load_samples(run), load_samples(client.get_run(baseline[6:]))
        assert 64 < len(samples.table["doc_id"]) < len(whole.table["doc_id"])

        command = next(line for line in err.splitlines() if line.startswith("decide: "))
        code, out, err = call(*command.removeprefix("decide: mlflow-degrade ").split(), "--json",
                              "-")  # fmt: skip
        assert code == 0, err
        decision = json.loads(out)
        assert decision["sequential"]["order_digest"] == run.data.tags["degrade.order"]
        assert decision["sequential"]["samples"] < 600
        # What was written as lm-eval would reads as the same samples.
        code, _, err = call("compare", baseline, str(tmp_path / "out"), "--policy",
                            str(place / "policy.yaml"))  # fmt: skip
        assert code == 0, err

    @pytest.mark.slow
    def test_what_is_refused(self, place: Path, baseline: str, call: Any) -> None:
        Path("plain.yaml").write_text("rule: non_inferiority\n")
        Path("narrow.yaml").write_text("rule: non_inferiority\nmargin_pp: 0.1\nsequential: suite\n")
        for more, message in (
            (["--limit", "10"], "--limit 10 cannot be given with --against"),
            (["--tasks", "boats"], "the baseline was asked boats, trains, and --tasks are boats"),
            (["--policy", "plain.yaml"], "plain.yaml has no key sequential"),
            (["--policy", "narrow.yaml"], "a suite of 600 samples is too small"),
            (["--against", "runs:/nowhere"], "nowhere"),
            (["--num-fewshot", "0"], "have different prompts on the two sides"),
            (["--model-args", "pretrained=org/chat"], "the content of this one is not known"),
        ):
            code, _, err = call(*self.early(place, baseline, *more))
            assert code == 3, err
            assert message in err
            assert "Traceback" not in err
        finished = [run for run in all_runs() if run.info.status == "FINISHED"]
        assert [f"runs:/{run.info.run_id}" for run in finished] == [baseline]
        assert not [run for run in all_runs() if run.info.status == "RUNNING"]

    def test_answers_of_another_version_are_not_taken_up(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path))
        frame = pd.DataFrame({"task": "a", "doc_id": ["0"], "metric": "acc", "score": [1.0]})
        asked = harness.HarnessSettings("hf", "pretrained=x", ("a",))
        given = (asked, {"pretrained": "x"}, "sha256:1", SampleScores.from_pandas(frame))
        first = harness._answers_of(*given)
        assert harness._answers_of(*given) == first
        monkeypatch.setattr(harness, "version", lambda name: f"99 {name}")
        assert harness._answers_of(*given) != first

    def test_a_policy_goes_with_a_baseline(self, place: Path, call: Any) -> None:
        code, _, err = call(*_args(place, "close", "--policy", str(place / "policy.yaml")))
        assert code == 3
        assert "goes with --against RUN" in err
        code, _, err = call(*_args(place, "close", "--against", "runs:/1"))
        assert code == 3
        assert "--against needs --policy FILE" in err
