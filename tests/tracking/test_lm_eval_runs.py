"""lm-eval in MLflow: its real output, real stores, a real server, and all that goes wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import enforcement_cases as cases
import mlflow
import numpy as np
import psutil
import pytest
from gate_cases import log_constant
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_degrade import GatePolicy, SampleScores, Verdict, promote
from mlflow_degrade.cli import run
from mlflow_degrade.tracking import evaluations, lm_eval_runs
from mlflow_degrade.tracking.evaluations import KEY_TAG, MODEL_DIGEST_TAG, load_samples
from mlflow_degrade.tracking.lm_eval_facts import evaluation_key, run_note, run_params
from mlflow_degrade.tracking.lm_eval_runs import read_directory
from mlflow_degrade.tracking.references import content_digest, match_evaluations, question_key

pytest.importorskip("lm_eval")

TASKS = ("tiny_choice", "tiny_cloze", "tiny_answer", "pair")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two tiny models, local tasks with a group, and lm-eval's own files on both in ``out``."""
    from local_tasks import write_all_tasks
    from tiny_models import make_tiny_llama

    from mlflow_degrade.evaluation.harness import HarnessSettings, run_lm_eval

    root = tmp_path_factory.mktemp("lm_eval")
    tasks = write_all_tasks(root / "tasks")
    group = {
        "group": "pair",
        "task": ["tiny_choice", "tiny_answer"],
        "aggregate_metric_list": [{"metric": "acc", "filter_list": "none"}],
    }
    (tasks / "pair.yaml").write_text(json.dumps(group))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        for seed in (0, 1):
            model = make_tiny_llama(root / f"model{seed}", seed=seed)
            settings = HarnessSettings(
                "hf", f"pretrained={model},dtype=float32", ("pair", "tiny_cloze"),
                include_path=str(tasks), device="cpu", batch_size="8",
            )  # fmt: skip
            done = run_lm_eval(settings)
            assert done is not None
            done.save(root / "out")
        yield root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the first model's output, free to be damaged."""
    (source,) = (made / "out").glob("*model0")
    return Path(shutil.copytree(source, tmp_path / "results"))


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line as its entry point runs it."""

    def invoke(*args: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(arg) for arg in args])
        return code, *capfd.readouterr()

    return invoke


def results_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("results_*.json")
    return dict(json.loads(file.read_text()))


def change_results(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    (file,) = folder.glob("results_*.json")
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))


def samples_file(folder: Path, task: str) -> Path:
    (file,) = folder.glob(f"samples_{task}_*.jsonl")
    return file


def all_runs() -> list[Any]:
    client = MlflowClient()
    ids = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(ids))


def logged(call: Callable[..., Any], *args: object) -> dict[str, Any]:
    code, out, err = call("log-lm-eval", *args, "--json", "-")
    assert code == 0, err
    return dict(json.loads(out))


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
        assert match_evaluations(*found) == tuple(runs)
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


def _limit(about: dict[str, Any]) -> None:
    about["config"]["limit"] = 10.0


def _template(about: dict[str, Any]) -> None:
    about["chat_template_sha"] = "abc"


def _version(about: dict[str, Any]) -> None:
    about["versions"]["tiny_choice"] = 2


def _shots(about: dict[str, Any]) -> None:
    about["n-shot"]["tiny_choice"] = 5


def _choices(about: dict[str, Any]) -> None:
    about["configs"]["tiny_choice"]["doc_to_choice"] = "answers"


def _harness(about: dict[str, Any]) -> None:
    about["lm_eval_version"] = "0.4.12"


@pytest.mark.parametrize("change", [_limit, _template, _version, _shots, _choices, _harness])
def test_other_questions_have_another_key(folder: Path, change: Any) -> None:
    before = evaluation_key(read_directory(folder))
    change_results(folder, change)
    after = evaluation_key(read_directory(folder))
    assert {k for k in before if before[k] != after[k]} - {"model"}


@pytest.mark.parametrize("hashed", ["doc_hash", "prompt_hash", "target_hash"])
def test_other_documents_have_another_key(folder: Path, hashed: str) -> None:
    before = evaluation_key(read_directory(folder))
    file = samples_file(folder, "tiny_choice")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records[3][hashed] = "0" * 64
    file.write_text("\n".join(map(json.dumps, records)))
    after = evaluation_key(read_directory(folder))
    assert {k for k in before if before[k] != after[k]} == {"tasks"}


def test_another_model_or_place_has_the_same_questions(folder: Path) -> None:
    def elsewhere(about: dict[str, Any]) -> None:
        about["config"].update(model_args={"pretrained": "other"}, batch_size="1", device="cuda")
        about["model_name"] = "other"
        for config in about["configs"].values():
            config["dataset_kwargs"] = {"data_files": {"test": "/elsewhere.jsonl"}}
            config["metadata"]["pretrained"] = "other"
            config["process_docs"] = f"<function process at {hex(id(config))}>"

    change_results(folder, elsewhere)
    first = evaluation_key(read_directory(folder))
    change_results(folder, elsewhere)
    assert evaluation_key(read_directory(folder)) == first
    assert first["model"]["name"] == "other"


def test_a_note_and_params_of_very_many_tasks(folder: Path) -> None:
    output = read_directory(folder)
    about = output.newest
    for i in range(500):
        name = f"task_with_a_rather_long_name_{i}"
        about["results"][name] = {"acc,none": 0.5, "acc_stderr,none": 0.01}
        output.dates[name] = output.dates["tiny_choice"]  # type: ignore[index]
    note = run_note(output)
    assert len(note) < 6_000
    assert note.splitlines()[-1].endswith("more, see the run's metrics.")
    assert all(len(value) <= 6_000 for value in run_params(output).values())


def _no_samples(folder: Path) -> None:
    for file in folder.glob("samples_*"):
        file.unlink()


def _nothing(folder: Path) -> None:
    _no_samples(folder)
    _no_results(folder)


def _no_results(folder: Path) -> None:
    for file in folder.glob("results_*"):
        file.unlink()


def _cut_in_a_line(folder: Path) -> None:
    file = samples_file(folder, "tiny_cloze")
    file.write_text(file.read_text()[:-50])


def _cut_between_lines(folder: Path) -> None:
    file = samples_file(folder, "tiny_cloze")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-3]))


def _task_missing(folder: Path) -> None:
    samples_file(folder, "tiny_cloze").unlink()


def _results_cut(folder: Path) -> None:
    (file,) = folder.glob("results_*.json")
    file.write_text(file.read_text()[:500])


def _nan_score(folder: Path) -> None:
    file = samples_file(folder, "tiny_choice")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records[0]["acc"] = math.nan
    file.write_text("\n".join(map(json.dumps, records)))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_nothing, r"has no results and no samples_\*.jsonl: run lm-eval with --output_path"),
        (_no_samples, r"has 1 results file\(s\) but no samples_\*.jsonl"),
        (_no_results, "but no results_*.json of that date"),
        (_cut_in_a_line, "not JSON"),
        (_cut_between_lines, "evaluated on 8 samples, of which 5 are in its file"),
        (_task_missing, "no samples of tiny_cloze: lm-eval was stopped"),
        (_results_cut, "cannot be read as JSON"),
        (_nan_score, "1 of 72 scores are NaN or infinite"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_output_is_refused(folder: Path, damage: Any, message: str, call: Any) -> None:
    damage(folder)
    code, out, err = call("log-lm-eval", folder)
    assert (code, out) == (3, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message.replace("\\", "") in errors[0]
    assert "Traceback" not in err
    assert all_runs() == []


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "model7"], "unknown model 'model7'"),
        ([], "with the option model"),
        (["--tag", "a"], "not of the form KEY=VALUE"),
        (["--tag", "a=" + "x" * 9_000], "MLflow keeps 8000"),
        (["-o", "datum=1"], "did you mean 'date'"),
        (["-o", "date=1999"], "no samples of date '1999'"),
        (["--model-uri", "models:/nowhere/1"], "models:/nowhere/1 cannot be read"),
    ],
)
def test_options_that_lead_nowhere(made: Path, args: list[str], message: str, call: Any) -> None:
    one = ["--model", str(made / "model0")] if args and "--model" not in args else []
    code, _, err = call("log-lm-eval", made / "out", *one, *args)
    assert code == 3, err
    assert message in err
    assert all_runs() == []


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


def test_a_server_that_is_not_there(folder: Path, call: Any, store: str) -> None:
    address = f"http://127.0.0.1:{cases.free_port()}"
    mlflow.set_tracking_uri(address)
    try:
        # Found before the directory is read, or a model is loaded.
        never = folder / "never"
        for command in (
            ("log-lm-eval", never),
            ("evaluate", "--model", "hf", "--model-args", f"pretrained={never}", "--tasks", "x"),
        ):
            code, _, err = call(*command)
            assert code == 3
            assert err.startswith(f"error: no MLflow server answers at {address}")
    finally:
        mlflow.set_tracking_uri(store)


def test_a_server_that_dies_in_the_middle(
    folder: Path, tmp_path: Path, call: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a whole run over HTTP; then the server dies while the second is logged."""
    home = tmp_path / "server"
    home.mkdir()
    database = f"sqlite:///{home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    with cases.running_server(home, database, database) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        mlflow.set_tracking_uri(url)
        first = logged(call, folder)
        assert load_samples(first["run_id"]).tasks == tuple(sorted(set(TASKS) - {"pair"}))
        assert not logged(call, folder)["created"]

        def die(*arguments: Any, **options: Any) -> None:
            _kill_listener(int(url.rpartition(":")[2]))
            evaluations.log_evaluation(*arguments, **options)

        monkeypatch.setattr(lm_eval_runs, "log_evaluation", die)
        code, _, err = call("log-lm-eval", folder, "--fresh")
        assert code == 3
        assert "error: MLflow did not take the evaluation" in err
        assert "Traceback" not in err
        mlflow.end_run()
    mlflow.set_tracking_uri(database)
    runs = {r.info.run_id: r for r in all_runs()}
    whole = runs.pop(first["run_id"])
    assert whole.info.status == "FINISHED"
    (half,) = runs.values()
    assert half.info.status == "FAILED"
    assert KEY_TAG not in half.data.tags
    mlflow.set_tracking_uri(store)


def _kill_listener(port: int) -> None:
    listening = (c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
    pid = next(c.pid for c in listening if c.laddr.port == port)
    os.killpg(os.getpgid(pid), signal.SIGKILL)


@pytest.mark.usefixtures("store")
class TestEvaluate:
    def args(self, made: Path, **changes: str) -> list[str]:
        options = {
            "model": "hf",
            "model-args": f"pretrained={made}/model1,dtype=float32",
            "tasks": "pair,tiny_cloze",
            "include-path": str(made / "tasks"),
            "device": "cpu",
            "batch-size": "8",
            **changes,
        }
        return [text for name, value in options.items() for text in (f"--{name}", value)]

    def test_the_same_as_from_files(self, made: Path, call: Any, tmp_path: Path) -> None:
        code, out, err = call(
            "evaluate", *self.args(made), "--json", "-", "--output-path", tmp_path / "kept"
        )
        assert code == 0, err
        done = json.loads(out)
        assert done["created"]
        assert done["metrics"]["pair/acc"] == done["metrics"]["tiny_choice/acc"]
        logged_again = logged(call, tmp_path / "kept")
        # What lm-eval wrote is this very evaluation.
        assert (logged_again["created"], logged_again["run_id"]) == (False, done["run_id"])
        other = logged(call, made / "out", "--model", made / "model0")
        assert question_key(other["run_id"]) == question_key(done["run_id"])
        code, _, err = call("compare", f"runs:/{other['run_id']}", f"runs:/{done['run_id']}")
        assert code in (0, 1, 2), err

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": "hff"}, "unknown lm-eval model 'hff': did you mean 'hf'"),
            ({"model-args": "pretrained"}, "'pretrained' is not of the form key=value"),
            ({"model-args": "pretrained=/nowhere"}, "cannot load its model 'hf'"),
            ({"tasks": "tiny_chioce", "include-path": "."}, "unknown task 'tiny_chioce'"),
            ({"tasks": " , "}, "names no task"),
            ({"limit": "-1"}, "limit is -1"),
            ({"num-fewshot": "-1"}, "num_fewshot is -1"),
            ({"include-path": "/nowhere"}, "is not a directory"),
            ({"model-uri": "models:/nowhere/1"}, "models:/nowhere/1 cannot be read"),
            ({"experiment": ""}, "experiment '' cannot be used"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_what_cannot_be_run(
        self, made: Path, changes: dict[str, str], message: str, call: Any
    ) -> None:
        code, _, err = call("evaluate", *self.args(made, **changes))
        assert code == 3, err
        assert message in err
        assert "Traceback" not in err
        assert all_runs() == []

    def test_without_lm_eval(self, made: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [n for n in sys.modules if n.split(".")[0] == "lm_eval"]:
            monkeypatch.setitem(sys.modules, name, None)
        code, _, err = call("evaluate", *self.args(made))
        assert code == 3
        assert 'pip install "mlflow-degrade[cpu]"' in err

    def test_an_evaluation_that_cannot_be_logged_is_kept(
        self, made: Path, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))

        def refuse(*_: Any, **__: Any) -> None:
            raise MlflowException("the disk of the server is full")

        with monkeypatch.context() as patch:
            patch.setattr(lm_eval_runs, "log_evaluation", refuse)
            code, _, err = call("evaluate", *self.args(made, tasks="tiny_cloze"))
        assert code == 3
        assert "the disk of the server is full" in err
        assert [r.info.status for r in all_runs()] == ["FAILED"]
        (hint,) = (line for line in err.splitlines() if "log-lm-eval" in line)
        kept = hint.split("log-lm-eval ")[1]
        done = logged(call, kept)
        assert done["tasks"] == ["tiny_cloze"]
        assert done["model_digest"].startswith("sha256:")

    @pytest.mark.slow
    def test_sigterm_leaves_no_run(self, made: Path, tmp_path: Path) -> None:
        code = "from mlflow_degrade.cli import main; main()"
        command = [sys.executable, "-c", code, "evaluate", *self.args(made)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert process.stderr is not None
        seen = ""
        # A character at a time: progress bars end no line.
        while "Running loglikelihood" not in seen and (text := process.stderr.read(1)):
            seen += text
        process.terminate()
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 143, seen + rest
        assert "Traceback" not in rest
        assert all(r.info.status != "RUNNING" for r in all_runs())

    @pytest.mark.slow
    def test_our_own_engine(self, made: Path, tmp_path: Path, call: Any) -> None:
        from mlflow_degrade.optimize.export import export_onnx
        from mlflow_degrade.optimize.source import resolve_model

        exported = export_onnx(resolve_model(str(made / "model1")))
        arguments = {"model": "onnx", "model-args": f"pretrained={exported}"}
        code, out, err = call("evaluate", *self.args(made, **arguments), "--json", "-")
        assert code == 0, err
        ours = json.loads(out)
        theirs = logged(call, made / "out", "--model", made / "model1")
        assert ours["metrics"]["tiny_choice/acc"] == theirs["metrics"]["tiny_choice/acc"]
        assert question_key(ours["run_id"]) == question_key(theirs["run_id"])
        with mlflow.start_run():
            another = log_constant(tmp_path, "another")
        code, _, err = call("evaluate", *self.args(made, **arguments), "--model-uri", another)
        assert code == 3
        assert "is not the model that was evaluated" in err
