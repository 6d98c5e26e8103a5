"""Endpoints from the command line: evaluated, logged, compared, gated, and run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pytest
from endpoint_server import TinyServer
from engine_models import ModelDir, model_dir, tiny_source
from local_tasks import choice_items, write_choice_task
from mlflow import MlflowClient
from tiny_models import make_tiny_llama

from mlflow_degrade.evaluation.endpoint_backend import files_digest
from mlflow_degrade.tracking.evaluations import load_facts, load_samples, logged_noise

__all__ = ["model_dir", "tiny_source"]

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    where = tmp_path_factory.mktemp("served")
    return [make_tiny_llama(where / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture
def servers(folders: list[Path]) -> Iterator[list[tuple[TinyServer, str]]]:
    with ExitStack() as stack:
        made = [TinyServer(folder, f"tiny-{n}") for n, folder in enumerate(folders)]
        yield [(server, stack.enter_context(server.running())) for server in made]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    write_choice_task(tmp_path / "tasks", items=choice_items(40))
    return tmp_path / "tasks"


class Done(NamedTuple):
    exit_code: int
    output: str


@pytest.fixture
def run(call: Callable[..., tuple[int, str, str]]) -> Callable[..., Done]:
    """The command line, with all that it says in one text."""

    def runs(*arguments: object) -> Done:
        code, out, err = call(*map(str, arguments))
        return Done(code, out + err)

    return runs


def _evaluate(run, address: str, folder: Path, tasks: Path, *more: object) -> Any:
    made = run(
        "evaluate", "--model", "endpoint", "--tasks", "tiny_choice", "--include-path", tasks,
        "--model-args", f"base_url={address},tokenizer={folder},patience=2,flags=--dtype float32"
        f",files={folder}",
        "--json", tasks / "out.json", *more,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    return json.loads((tasks / "out.json").read_text())


def test_two_endpoints_are_evaluated_compared_and_gated(run, servers, folders, tasks):
    runs = [
        _evaluate(run, address, folder, tasks)
        for (_, address), folder in zip(servers, folders, strict=True)
    ]
    for made, folder in zip(runs, folders, strict=True):
        logged = MlflowClient().get_run(made["run_id"])
        assert made["model_digest"] == files_digest(folder)
        assert logged.data.tags["degrade.model_digest"] == files_digest(folder)
        assert logged.data.params["endpoint.engine"] == "vllm"
        assert logged.data.params["endpoint.version"] == "0.0.test"
        assert logged.data.params["endpoint.flags"] == "--dtype float32"
        assert logged.data.params["endpoint.digest_by"] == "files"
        facts = load_facts(logged)
        assert facts["key"]["model"]["endpoint"]["weights"]["by"] == "files"
        assert facts["endpoint_findings"]["probes"]["scoring"]["invariant"]
        assert facts["endpoint_findings"]["retries"] == 0
    names = [f"runs:/{made['run_id']}" for made in runs]
    decided = run("compare", *names, "--margin-pp", 20, "--json", tasks / "decision.json")
    decision = json.loads((tasks / "decision.json").read_text())
    assert decided.exit_code in (0, 1, 2), decided.output
    policy = tasks / "policy.yaml"
    policy.write_text("margin_pp: 20\n")
    gated = run("gate", "--candidate", names[1], "--baseline", names[0], "--policy", policy,
                "--register-as", "none")  # fmt: skip
    assert gated.exit_code == decided.exit_code, gated.output
    assert decision["aggregate"]["n"] == 40
    # In process the same answers come.
    local = run(
        "evaluate", "--model", "hf", "--tasks", "tiny_choice", "--include-path", tasks,
        "--model-args", f"pretrained={folders[0]},dtype=float32", "--json", tasks / "local.json",
    )  # fmt: skip
    assert local.exit_code == 0, local.output
    ids = runs[0]["run_id"], json.loads((tasks / "local.json").read_text())["run_id"]
    served, alone = (load_samples(MlflowClient().get_run(each)) for each in ids)
    assert served.table["score"].to_pylist() == alone.table["score"].to_pylist()


def test_a_model_that_changes_leaves_nothing_that_looks_finished(run, servers, folders, tasks):
    server, address = servers[0]
    server.swap_after = (90, folders[1], "tiny-0")
    made = run(
        "evaluate", "--model", "endpoint", "--tasks", "tiny_choice", "--include-path", tasks,
        "--model-args", f"base_url={address},tokenizer={folders[0]}",
    )  # fmt: skip
    assert made.exit_code == 3
    assert "Nothing was logged" in made.output
    assert server.swap_after is None
    assert mlflow.search_runs(search_all_experiments=True, output_format="list") == []


def test_noise_of_an_endpoint_over_levels_of_concurrency(run, servers, folders, tasks):
    _, address = servers[0]
    asked = ["noise", "--model", "endpoint", "--tasks", "tiny_choice", "--include-path", tasks,
             "--model-args", f"base_url={address},tokenizer={folders[0]},files={folders[0]}",
             "--limit", 8]  # fmt: skip
    made = run(*asked, "--concurrency", "4", "--log", "--margin-pp", 45, "--json",
                tasks / "noise.json")  # fmt: skip
    found = json.loads((tasks / "noise.json").read_text())
    assert made.exit_code in (0, 2), made.output
    assert set(found["reruns"]) == {"concurrency 4"}
    assert all(rerun["largest_difference"] == 0 for rerun in found["reruns"].values())
    [logged] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert logged_noise(logged) is not None
    refused = run(*asked, "--threads", "1")
    assert refused.exit_code == 3
    assert "--threads cannot be given with --model endpoint" in refused.output
    assert "the least is 1" in run(*asked, "--concurrency", "0").output
    alone = run("noise", "--model", "starter", "--concurrency", "4")
    assert "--concurrency cannot be given with starter" in alone.output


@pytest.mark.slow
def test_noise_is_seen_where_scores_depend_on_neighbours(run, servers, folders, tasks):
    server, address = servers[0]
    server.neighbours = 3.0
    made = run("noise", "--model", "endpoint", "--tasks", "tiny_choice", "--include-path", tasks,
                "--model-args", f"base_url={address},tokenizer={folders[0]},concurrency=1",
                "--limit", 12, "--concurrency", "8", "--json", tasks / "noise.json")  # fmt: skip
    assert made.exit_code in (0, 1, 2), made.output
    # The dependence is not kept from what is to be measured.
    assert "changes log-probabilities by up to" in made.output
    assert "one sample at a time" not in made.output


def test_the_version_that_is_served_is_the_one_that_is_named(
    run, servers, folders, tasks, tmp_path
):
    """A registered directory of another engine: its bytes are looked for in the version."""
    with mlflow.start_run():
        made = [
            mlflow.pyfunc.log_model(
                name=f"served-{n}",
                python_model=_script(tmp_path),
                artifacts={"weights": str(folder)},
                pip_requirements=[],
            )
            for n, folder in enumerate(folders)
        ]
    _, address = servers[0]
    done = _evaluate(run, address, folders[0], tasks, "--model-uri", made[0].model_uri)
    assert done["model_digest"] not in (None, files_digest(folders[0]))  # that of the whole version
    other = run(
        "evaluate", "--model", "endpoint", "--tasks", "tiny_choice", "--include-path", tasks,
        "--model-args", f"base_url={address},tokenizer={folders[0]},files={folders[0]}",
        "--model-uri", made[1].model_uri,
    )  # fmt: skip
    assert other.exit_code == 3
    assert "is not what the endpoint served" in other.output


def _script(folder: Path) -> str:
    path = folder / "served.py"
    path.write_text(
        "from mlflow.models import set_model\n"
        "from mlflow.pyfunc import PythonModel\n\n\n"
        "class Served(PythonModel):\n"
        "    def predict(self, context, model_input, params=None):\n"
        "        return model_input\n\n\n"
        "set_model(Served())\n"
    )
    return str(path)


def test_our_own_served_model_is_asked_as_other_engines_are(model_dir: ModelDir) -> None:
    """A logged model behind MLflow's scoring server, by protocol=mlflow."""
    from endpoint_server import scoring_server
    from lm_eval.api.instance import Instance

    from mlflow_degrade.core.errors import EngineError, ModelError
    from mlflow_degrade.evaluation.backend import OnnxLM
    from mlflow_degrade.evaluation.endpoint_backend import EndpointLM
    from mlflow_degrade.registry.registration import log_model

    folder = model_dir("fp32")
    with mlflow.start_run():
        info = log_model(folder, name="tiny")
    pairs = [
        (item["question"], f" {choice}") for item in choice_items(12) for choice in item["choices"]
    ]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    with scoring_server(info.model_uri) as address:
        how = {"base_url": address, "tokenizer": str(folder), "protocol": "mlflow"}
        model = EndpointLM(**how, progress=False, files=str(folder))
        found = model.loglikelihood(asked)
        facts = model.facts()
        texts = [Instance("generate_until", {}, (p[0], {"until": ["."], "max_gen_toks": 4}), 0)
                 for p in pairs[:4]]  # fmt: skip
        written = model.generate_until(texts)
        with pytest.raises(ModelError, match=r"the server says that it serves sha256"):
            EndpointLM(**how, files=str(model_dir("int8-weight-only")))
        with mlflow.start_run():
            other = log_model(model_dir("int8-weight-only"), name="tiny")
        with scoring_server(other.model_uri) as elsewhere:
            moved = EndpointLM(**how, progress=False)
            moved.endpoint.base = elsewhere  # as if the server had started with another version
            with pytest.raises(EngineError, match="the answer is of"):
                moved.loglikelihood(asked[:4])
    local = OnnxLM(str(folder), device="cpu")
    alone = local.loglikelihood(asked)
    assert [g for _, g in found] == [g for _, g in alone]
    assert [v for v, _ in found] == pytest.approx([v for v, _ in alone], abs=1e-4)
    assert written == local.generate_until(texts)
    assert facts["engine"] == "mlflow"
    assert facts["version"] == mlflow.__version__
    assert facts["digest"] == facts["weights"]["digest"] == files_digest(folder)
