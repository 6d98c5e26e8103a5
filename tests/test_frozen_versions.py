"""Versions that an earlier state of the package registered: they hold and are served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from frozen_store import unpack

from mlflow_degrade import load_verified_model, verify_version

_COMMAND = Path(sys.executable).with_name("mlflow-degrade")


def _verify(uri: str, model: str, *options: str) -> tuple[int, dict[str, Any], str]:
    """The command itself: exit code, findings, and what it said."""
    done = subprocess.run(
        [str(_COMMAND), "verify", f"models:/{model}", "--json", *options],
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def _change_byte(folder: Path, pattern: str) -> None:
    """Change one byte in the middle of the only file of this name."""
    (path,) = folder.glob(f"mlruns/**/{pattern}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_signed_version_holds(tmp_path: Path) -> None:
    pytest.importorskip("securesystemslib", reason='pip install "mlflow-degrade[signing]"')
    uri = unpack("signed", tmp_path)
    code, found, said = _verify(uri, "chat/1", "--key", str(tmp_path / "release.pub"))
    assert (code, found["verdict"], found["problems"]) == (0, "PASS", []), said
    assert found["signer"]
    assert found["decision"]["aggregate"]["n"] == 600


def test_one_byte_of_its_samples_is_told(tmp_path: Path) -> None:
    uri = unpack("signed", tmp_path)
    _change_byte(tmp_path, "candidate.parquet")
    code, found, said = _verify(uri, "chat/1")
    assert code == 1, said
    assert any("candidate.parquet" in problem for problem in found["problems"])


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("baseline.parquet", "baseline.parquet"),
        ("policy.json", "policy.json"),
        ("echo.py", "about other files of the model"),
    ],
)
def test_one_byte_of_any_file_is_told(tmp_path: Path, file: str, told: str) -> None:
    uri = unpack("signed", tmp_path)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    _change_byte(tmp_path, file)
    assert any(told in problem for problem in verify_version("chat", "1").problems)


@pytest.mark.slow
def test_a_recipes_version_holds(tmp_path: Path) -> None:
    uri = unpack("recipe", tmp_path)
    code, found, said = _verify(uri, "tiny/1")
    assert (code, found["verdict"], found["problems"]) == (0, "PASS", []), said
    weights = next(tmp_path.glob("mlruns/**/model.onnx.data"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, found, said = _verify(uri, "tiny/1")
    assert code == 1
    assert any("changed after the verdict" in problem for problem in found["problems"]), found


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, True])
def test_a_recipes_version_is_served(tmp_path: Path, installed: bool) -> None:
    """With the code that travels with it, and where a package is installed with that one's.

    MLflow looks through the plugins of installed packages before it loads a model, so that an
    installed package is imported before the path to the model's own code is set.
    """
    uri = unpack("recipe", tmp_path)
    served = subprocess.run(
        [sys.executable, "-c", _SERVE if installed else _UNINSTALL + _SERVE],
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    answer = json.loads(served.stdout.splitlines()[-1])
    assert answer["choice"] == answer["likeliest"]
    assert answer["likelihoods"] == pytest.approx(_FROZEN_LIKELIHOODS, abs=0.05)
    assert answer["text"] == _FROZEN_TEXT
    assert (str(tmp_path) in answer["code"]) is not installed


# As it was served when it was registered; its 8-bit activations round a little differently on
# other processors.
_FROZEN_LIKELIHOODS = [-24.919, -19.334]
_FROZEN_TEXT = "\ufffd\ufffd\x7fer"

# No way to the installed package is left in this process.
_UNINSTALL = """
import sys
from pathlib import Path
sys.meta_path = [f for f in sys.meta_path if "editable" not in f"{f!r} {type(f).__module__}"]
sys.path = [p for p in sys.path if not (Path(p or ".") / "mlflow_degrade").is_dir()]
"""
_SERVE = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model("models:/tiny/1")
options = ["boat", "train"]
scored = model.predict([{"prompt": "The harbour", "choices": options}])
written = model.predict([{"prompt": "The harbour"}], params={"max_new_tokens": 4})
values = list(scored["log_likelihoods"][0])
print(json.dumps({
    "choice": scored["text"][0], "likeliest": options[values.index(max(values))],
    "likelihoods": values, "text": written["text"][0],
    "code": sys.modules["mlflow_degrade"].__file__,
}))
"""


@pytest.mark.slow
def test_a_recipes_version_is_loaded_when_it_holds(tmp_path: Path) -> None:
    uri = unpack("recipe", tmp_path)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    assert load_verified_model("models:/tiny/1").metadata is not None
