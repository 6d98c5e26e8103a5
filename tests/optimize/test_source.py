"""Names of models: what is found, what is suggested, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from mlflow_stores import use_empty_store
from tiny_models import make_tiny_llama

from mlflow_degrade.core.errors import ModelError, UnknownNameError
from mlflow_degrade.optimize.source.model_directory import ModelDirectory
from mlflow_degrade.optimize.source.resolve import resolve_model

COMMIT = "1" * 40


def test_a_directory_is_found_and_digested(tiny_llama_dir: Path, tmp_path: Path) -> None:
    found = resolve_model(str(tiny_llama_dir))
    assert (found.kind, found.layout, found.revision) == ("local", "transformers", None)
    assert found.path == tiny_llama_dir
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama_dir, copy)
    (copy / "training.log").write_text("notes beside the model do not change it")
    assert resolve_model(f"{copy}/").digest == found.digest
    make_tiny_llama(copy, seed=1)
    assert resolve_model(str(copy)).digest != found.digest


def test_a_home_directory_is_expanded(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_llama_dir.parent))
    assert resolve_model(f"~/{tiny_llama_dir.name}").path == tiny_llama_dir


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        ("config.json", "config.json"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "a tokenizer"),
    ],
)
def test_missing_parts_are_named(
    removed: str, said: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama_dir, copy)
    (copy / removed).unlink()
    with pytest.raises(ModelError, match=f"lacks {said}"):
        resolve_model(str(copy))


def test_a_file_without_weights_is_not_a_model(tiny_llama_dir: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        resolve_model(str(tiny_llama_dir / "tokenizer.json"))


def test_a_wrong_path_suggests_its_neighbour(tiny_llama_dir: Path) -> None:
    wrong = tiny_llama_dir.with_name("tiny-lama")
    with pytest.raises(ModelError, match=f"did you mean {tiny_llama_dir}"):
        resolve_model(str(wrong))
    with pytest.raises(ModelError, match="does not exist either"):
        resolve_model("/nowhere/at/all")


@pytest.mark.parametrize("name", ["", "  ", "a b", "https://example.org/model"])
def test_nonsense_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no model at"):
        resolve_model(name)


def test_a_typo_suggests_the_starter_model() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'starter'"):
        resolve_model("startr")


def test_changed_files_of_a_finished_model_are_noticed(tiny_export: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_export, copy)
    assert resolve_model(str(copy)).digest == ModelDirectory.load(tiny_export).digest
    (copy / "generation_config.json").write_text("{}")
    with pytest.raises(ModelError, match="changed after the model was made"):
        resolve_model(str(copy))


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_a_broken_manifest_is_named(text: str, tiny_export: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_export, copy)
    (copy / "degrade.json").write_text(text)
    with pytest.raises(ModelError, match=r"degrade\.json"):
        ModelDirectory.load(copy)
    (copy / "degrade.json").unlink()
    with pytest.raises(ModelError, match=r"degrade\.json missing"):
        ModelDirectory.load(copy)


# --- the Hugging Face hub, spoken by a local server --------------------------------------------


@pytest.fixture
def hub(tiny_llama_dir: Path) -> Iterator[str]:
    """Address of a server with one model, ``org/tiny``, a gated and a private one."""
    files = {p.name: p.read_bytes() for p in tiny_llama_dir.iterdir()}
    files["weights.gguf"] = b"must not be fetched"

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                repo, rest = "/".join(parts[2:4]), parts[4:]
                if repo == "org/tiny" and rest in ([], ["revision", "main"]):
                    siblings = [{"rfilename": name} for name in files]
                    body = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []}
                    self.answer(200, json.dumps(body).encode())
                elif repo == "org/tiny":
                    self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                elif repo == "org/gated":
                    self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
                elif repo == "org/gguf":
                    names = ("config.json", "tiny-Q4_0.gguf", "onnx/model.onnx")
                    siblings = [{"rfilename": name} for name in names]
                    body = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []}
                    self.answer(200, json.dumps(body).encode())
                else:
                    self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            elif parts[0] == "org" and "resolve" in parts and parts[-1] in files:
                body = files[parts[-1]]
                tag = hashlib.sha256(body).hexdigest()
                self.answer(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
            else:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def _resolve_at(endpoint: str, name: str, home: Path) -> str:
    """What resolving `name` says in a process that takes `endpoint` for the hub."""
    script = (
        "import sys\n"
        "from mlflow_degrade.core.errors import DegradeError\n"
        "from mlflow_degrade.optimize.source.resolve import resolve_model\n"
        "try:\n"
        "    m = resolve_model(sys.argv[1])\n"
        "    print(m.kind, m.revision, *sorted(p.name for p in m.path.iterdir()))\n"
        "except DegradeError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, name],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


def test_hub_models_are_fetched_at_their_commit(hub: str, tmp_path: Path) -> None:
    said = _resolve_at(hub, "org/tiny", tmp_path)
    assert said.startswith(f"hub {COMMIT} config.json")
    assert "model.safetensors" in said
    assert "gguf" not in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/gated", "'org/gated' is gated"),
        ("org/none", "no model 'org/none'"),
        ("org/tiny@v9", "no revision 'v9'"),
        ("org/gguf", "The repository holds onnx/model.onnx, tiny-Q4_0.gguf: download"),
    ],
)
def test_hub_refusals_are_one_clear_sentence(
    name: str, said: str, hub: str, tmp_path: Path
) -> None:
    answer = _resolve_at(hub, name, tmp_path)
    assert answer.startswith("ModelError")
    assert said in answer
    assert "\n" not in answer


def test_an_unreachable_hub_is_told_apart(tmp_path: Path) -> None:
    answer = _resolve_at("http://127.0.0.1:9", "org/tiny", tmp_path)
    assert answer.startswith("ModelError")
    assert "cannot be reached" in answer
    assert "'starter'" in answer


# --- MLflow ------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> None:
    use_empty_store(tmp_path)  # the registry's as well


@pytest.mark.usefixtures("registry")
def test_registered_models_are_found_by_version_and_alias(
    tiny_export: Path, tmp_path: Path
) -> None:
    code = tmp_path / "model.py"
    code.write_text(
        "from mlflow.models import set_model\n"
        "from mlflow.pyfunc import PythonModel\n"
        "class Echo(PythonModel):\n"
        "    def predict(self, context, model_input: list[str]):\n"
        "        return model_input\n"
        "set_model(Echo())\n"
    )
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            artifacts={"model_dir": str(tiny_export)},
            registered_model_name="tiny",
            pip_requirements=[],
        )
    mlflow.MlflowClient().set_registered_model_alias("tiny", "champion", "1")
    digest = ModelDirectory.load(tiny_export).digest
    for uri in ("models:/tiny/1", "models:/tiny@champion", "models:/tiny/latest", info.model_uri):
        found = resolve_model(uri)
        assert (found.kind, found.layout, found.digest) == ("mlflow", "onnx", digest)
        assert found.revision == (None if uri == info.model_uri else "1")
        ModelDirectory.load(found.path).verify()


@pytest.mark.usefixtures("registry")
def test_unknown_registered_models_suggest_the_nearest() -> None:
    mlflow.MlflowClient().create_registered_model("summarizer")
    with pytest.raises(UnknownNameError, match="did you mean 'summarizer'"):
        resolve_model("models:/sumarizer@champion")
    with pytest.raises(ModelError, match="MLflow has no model at models:/summarizer/7"):
        resolve_model("models:/summarizer/7")
    with pytest.raises(ModelError, match="MLflow has no model at models:/summarizer@champion"):
        resolve_model("models:/summarizer@champion")


@pytest.mark.usefixtures("registry")
def test_artifacts_without_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with mlflow.start_run() as run:
        mlflow.log_artifact(str(tmp_path / "notes.txt"), "notes")
    with pytest.raises(ModelError, match="holds 0 directories"):
        resolve_model(f"runs:/{run.info.run_id}/notes")


@pytest.mark.usefixtures("registry")
def test_logged_directories_are_looked_at(tiny_llama_dir: Path, tmp_path: Path) -> None:
    pointer = tmp_path / "pointer"
    shutil.copytree(tiny_llama_dir, pointer)
    (pointer / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(pointer), "pointer")
        mlflow.log_artifacts(str(adapter), "adapter")
    with pytest.raises(ModelError, match="Git LFS pointer"):
        resolve_model(f"runs:/{run.info.run_id}/pointer")
    with pytest.raises(ModelError, match="is a LoRA adapter, not a model: its base is 'org/base'"):
        resolve_model(f"runs:/{run.info.run_id}/adapter")


@pytest.mark.usefixtures("registry")
def test_models_of_the_transformers_flavour_are_joined(tiny_llama_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parts = {
        "model": AutoModelForCausalLM.from_pretrained(tiny_llama_dir),
        "tokenizer": AutoTokenizer.from_pretrained(tiny_llama_dir),
    }
    with mlflow.start_run():
        info = mlflow.transformers.log_model(
            parts, name="model", task="text-generation", pip_requirements=[]
        )
    found = resolve_model(info.model_uri)
    assert (found.kind, found.layout) == ("mlflow", "transformers")
    assert (found.path / "tokenizer.json").is_file()
    assert (found.path / "model.safetensors").is_file()


def test_the_progress_of_a_download_survives_what_pip_removes(tmp_path: Path) -> None:
    import shutil
    import threading

    from mlflow_degrade.optimize.source.starter_model import _largest

    stop = threading.Event()

    def pip() -> None:
        while not stop.is_set():
            folders = [tmp_path / f"pip-unpack-{n}" / "deeper" for n in range(20)]
            for folder in folders:
                folder.mkdir(parents=True)
                (folder / "part").write_bytes(b"12345")
            for folder in folders:
                shutil.rmtree(folder.parent)

    thread = threading.Thread(target=pip)
    thread.start()
    try:
        seen = {_largest(tmp_path) for _ in range(500)}
    finally:
        stop.set()
        thread.join()
    assert seen <= {0, 5}
    (tmp_path / "wheel").write_bytes(b"1234567")
    assert _largest(tmp_path) == 7
