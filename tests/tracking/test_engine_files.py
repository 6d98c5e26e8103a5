"""A version may be another engine's files: hashed, bound and verified as any other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from gate_cases import make_samples, register_champion, registry_state
from mlflow import MlflowClient
from tiny_models import make_tiny_llama

from mlflow_degrade import promote
from mlflow_degrade.cli.gate import outcome_lines
from mlflow_degrade.core.cache import digest_directory, digest_file
from mlflow_degrade.core.errors import InputError, ModelError, RegistryError
from mlflow_degrade.registry.verification import verify_version
from mlflow_degrade.tracking.evaluations import log_evaluation

gguf = pytest.importorskip("gguf")

CHAMPION = "models:/chat@champion"


def _directory(tmp_path: Path) -> Path:
    return make_tiny_llama(tmp_path / "tiny-chat")


def _gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    for name in ("token_embd.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones((8, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KINDS: tuple[Callable[[Path], Path], ...] = (_directory, _gguf)


def _digest(path: Path) -> str:
    return digest_file(path) if path.is_file() else digest_directory(path)


def _evaluated(files: Path, wrong: int = 10, *, hashed: bool = True) -> str:
    """An evaluation of files that an engine has served."""
    digest = _digest(files) if hashed else None
    with mlflow.start_run() as run:
        samples = make_samples(wrong, model=files.name, digest=digest)
        log_evaluation(samples, {"model": digest, "suite": "suite"})
    return f"runs:/{run.info.run_id}"


def _models() -> int:
    experiments = [e.experiment_id for e in MlflowClient().search_experiments()]
    return len(mlflow.search_logged_models(experiment_ids=experiments, output_format="list"))


@pytest.fixture
def champion(store: str, tmp_path: Path) -> None:
    assert store
    register_champion(tmp_path)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.usefixtures("champion")
def test_what_passes_becomes_a_version_that_verifies(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    files = make(tmp_path)
    candidate = _evaluated(files)
    done = promote(candidate, CHAMPION, alias="champion", files=files)
    assert done.placement is not None
    assert done.placement.version == "models:/chat/2"
    found = verify_version("chat", 2)
    assert found.ok, found.problems
    assert found.digests["model"] == _digest(files)
    # Whoever loads it is told what to start; the page of the version says it with the download.
    model = mlflow.pyfunc.load_model(CHAMPION)
    start = "llama-server -m" if files.is_file() else "vllm serve"
    with pytest.raises(mlflow.MlflowException, match=rf"{start} \S+{files.name}"):
        model.predict({"prompt": ["a"]})
    page = MlflowClient().get_model_version("chat", "2").description
    (download,) = [line for line in page.splitlines() if "artifacts download" in line]
    assert f"{start} model/artifacts/{files.name}" in page
    # So do the lines at the end of the gate, and its report.
    report = mlflow.artifacts.load_text(f"runs:/{done.run_id}/report.md")
    for said in ("\n".join(outcome_lines(done)), report):
        assert f"{start} model/artifacts/{files.name}" in said
        assert "mlflow models serve" not in said
    command = download.partition("#")[0].split()
    subprocess.run([sys.executable, "-m", *command], check=True, cwd=tmp_path)
    assert _digest(tmp_path / "model" / "artifacts" / files.name) == _digest(files)
    # The same gate once more changes nothing.
    before, models = registry_state(MlflowClient()), _models()
    again = promote(candidate, CHAMPION.replace("@champion", "/1"), alias="champion", files=files)
    assert again.reused
    assert (registry_state(MlflowClient()), _models()) == (before, models)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.usefixtures("champion")
def test_a_changed_byte_is_found_out(make: Callable[[Path], Path], tmp_path: Path) -> None:
    files = make(tmp_path)
    promote(_evaluated(files), CHAMPION, alias="champion", files=files)
    location = MlflowClient().get_model_version_download_uri("chat", "2")
    kept = Path(mlflow.artifacts.download_artifacts(location)) / "artifacts" / files.name
    target = kept if kept.is_file() else kept / "model.safetensors"
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(bytes(data))
    assert any("changed after the verdict" in said for said in verify_version("chat", 2).problems)
    data[-1] ^= 1
    target.write_bytes(bytes(data))
    assert verify_version("chat", 2).ok
    # The script beside them is bound as well.
    script = kept.parents[1] / "engine_files_model.py"
    script.write_text(script.read_text() + "\n")
    assert any("were changed after the" in said for said in verify_version("chat", 2).problems)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.usefixtures("champion")
def test_files_that_were_not_evaluated_are_refused(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    files = make(tmp_path)
    candidate, word = _evaluated(files), _evaluated(files, 11, hashed=False)
    before, models = registry_state(MlflowClient()), _models()
    runs = len(mlflow.search_runs(output_format="list"))
    # Nothing but the server's own word says what was evaluated.
    with pytest.raises(RegistryError, match="no files were hashed in it"):
        promote(word, CHAMPION, files=files)
    target = files if files.is_file() else files / "model.safetensors"
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(bytes(data))
    with pytest.raises(RegistryError, match="is not the model that was evaluated: its bytes"):
        promote(candidate, CHAMPION, files=files)
    assert (registry_state(MlflowClient()), _models()) == (before, models)
    assert len(mlflow.search_runs(output_format="list")) == runs


@pytest.mark.usefixtures("champion")
def test_nothing_is_logged_where_it_fails(tmp_path: Path) -> None:
    files = _gguf(tmp_path)
    before, models = registry_state(MlflowClient()), _models()
    done = promote(_evaluated(files, 300), CHAMPION, alias="champion", files=files)
    assert done.decision.verdict.value == "FAIL"
    assert (registry_state(MlflowClient()), _models()) == (before, models)


@pytest.mark.usefixtures("champion")
def test_files_swapped_while_they_are_logged_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _gguf(tmp_path)
    candidate, real = _evaluated(files), mlflow.pyfunc.log_model

    def log(**options: Any) -> Any:
        data = bytearray(files.read_bytes())
        data[-1] ^= 1
        files.write_bytes(bytes(data))
        return real(**options)

    before, models = registry_state(MlflowClient()), _models()
    monkeypatch.setattr(mlflow.pyfunc, "log_model", log)
    with pytest.raises(RegistryError, match="was changed while it was logged"):
        promote(candidate, CHAMPION, alias="champion", files=files)
    assert (registry_state(MlflowClient()), _models()) == (before, models)
    monkeypatch.undo()
    # With the bytes that were evaluated the same decision is gone on from.
    log_bytes = bytearray(files.read_bytes())
    log_bytes[-1] ^= 1
    files.write_bytes(bytes(log_bytes))
    done = promote(candidate, CHAMPION, alias="champion", files=files)
    assert done.reused
    assert done.placement is not None
    assert verify_version("chat", 2).ok


@pytest.mark.usefixtures("champion")
def test_an_upload_that_fails_leaves_a_gate_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _directory(tmp_path)
    candidate, before = _evaluated(files), registry_state(MlflowClient())

    def log(**_: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(mlflow.pyfunc, "log_model", log)
    with pytest.raises(RegistryError, match=r"could not be logged \(no space left"):
        promote(candidate, CHAMPION, alias="champion", files=files)
    assert registry_state(MlflowClient()) == before
    monkeypatch.undo()
    done = promote(candidate, CHAMPION, alias="champion", files=files)
    assert done.reused
    assert done.decision.attempt == 1
    assert verify_version("chat", 2).ok


def test_what_no_engine_could_serve_is_refused(
    champion: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert champion is None
    monkeypatch.chdir(tmp_path)
    whole, cut = _gguf(tmp_path), tmp_path / "cut.gguf"
    candidate = _evaluated(whole)
    cut.write_bytes(whole.read_bytes()[:-100])
    folder = _directory(tmp_path)
    bare, alone = tmp_path / "bare", tmp_path / "alone"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("tokenizer*", "config.json"))
    (tmp_path / "empty").mkdir()
    for given, kind, message in (
        (cut, ModelError, "cut.gguf is no GGUF file, or cut off"),
        (bare, ModelError, r"lacks weights \(\*.safetensors\): give the directory"),
        (alone, ModelError, "lacks config.json, a tokenizer"),
        (tmp_path / "empty", ModelError, "empty"),
        (tmp_path / "nowhere", InputError, "there is no"),
        (folder / "config.json", InputError, "is a .json file: give the directory"),
    ):
        with pytest.raises(kind, match=message):
            promote(candidate, CHAMPION, files=given)
    with pytest.raises(InputError, match="no registered model is known"):
        promote(candidate, CHAMPION, files=whole, register_as=None)
    with pytest.raises(InputError, match="is the logged model models:/chat/1 already"):
        promote("models:/chat/1", candidate, files=whole, register_as="chat")


@pytest.mark.usefixtures("champion")
def test_a_version_of_them_is_a_side_as_any_other(tmp_path: Path) -> None:
    files = _gguf(tmp_path)
    promote(_evaluated(files), CHAMPION, alias="champion", files=files)
    # Its evaluations are found by its bytes: as a baseline, say.
    better = _directory(tmp_path)
    done = promote(_evaluated(better, 9), CHAMPION, alias="champion", files=better)
    assert done.sources["baseline"].run_id != done.sources["candidate"].run_id
    assert done.placement is not None
    assert done.placement.version == "models:/chat/3"
    assert verify_version("chat", 3).digests["baseline_model"] == _digest(files)
    # It is not asked by this package.
    with pytest.raises(ModelError, match="models:/chat/2 is files of another engine"):
        promote("models:/chat/3", "models:/chat/2", fresh=True, questions={"tasks": ["starter"]})


@pytest.mark.usefixtures("champion")
def test_a_logged_model_of_an_engines_files_was_registered_all_along(tmp_path: Path) -> None:
    """By whoever logs it first: all files of the logged model count then."""
    from mlflow_degrade.registry.references import content_digest

    files, code = _directory(tmp_path), tmp_path / "code.py"
    code.write_text(
        "from mlflow.models import set_model\nfrom mlflow.pyfunc import PythonModel\n"
        "class M(PythonModel):\n    def predict(self, context, model_input, params=None): ...\n"
        "set_model(M())\n"
    )
    with mlflow.start_run() as run:
        info = mlflow.pyfunc.log_model(
            name="m", python_model=str(code), artifacts={"files": str(files)}, pip_requirements=[]
        )
        uri = f"models:/{info.model_id}"
        samples = make_samples(10, model="m", digest=content_digest(uri))
        log_evaluation(samples, {"model": "m", "suite": "suite"})
    promote(f"runs:/{run.info.run_id}", CHAMPION, alias="champion")
    assert verify_version("chat", 2).ok
