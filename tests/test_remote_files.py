"""Logs, policies and measurements that lie elsewhere: in memory, on a web server, in a bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlflow_degrade import GatePolicy
from mlflow_degrade.cli.compare import compare
from mlflow_degrade.core.errors import InputError, MissingExtraError
from mlflow_degrade.core.remote_files import is_remote, local_copy, shown_address
from mlflow_degrade.samples.readers import read_samples

fsspec = pytest.importorskip("fsspec", reason='pip install "mlflow-degrade[remote]"')

BASELINE = "prompt_id,score\n" + "".join(f"{i},1\n" for i in range(40))
CANDIDATE = "prompt_id,score\n" + "".join(f"{i},{int(i > 9)}\n" for i in range(40))


@pytest.fixture
def bucket() -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for side, text in (("fp32", BASELINE), ("int8", CANDIDATE)):
        memory.pipe(f"/evals/{side}/qa.csv", text.encode())
    memory.pipe("/evals/policy.yaml", b"alpha: 0.01\n")
    yield "memory://evals"
    memory.rm("/evals", recursive=True)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    for side, text in (("fp32", BASELINE), ("int8", CANDIDATE)):
        (tmp_path / f"{side}.csv").write_text(text, encoding="utf-8")
    handler = partial(_Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("reference", "remote"),
    [
        ("s3://b/k", True),
        ("hf://datasets/a/b", True),
        ("runs:/abc", False),
        ("runs://abc", False),
        ("models:/m/1", False),
        ("results/fp32", False),
        ("C:/results", False),
        ("https://u:p@host/a.csv?sig=x", True),
    ],
)
def test_addresses_and_paths(reference: str, remote: bool) -> None:
    assert is_remote(reference) is remote


def test_credentials_are_not_shown() -> None:
    assert shown_address("https://u:p@host/a.csv?X-Amz-Signature=x") == "https://***@host/a.csv"


def test_a_folder_keeps_the_names_of_its_files(bucket: str) -> None:
    assert read_samples(f"{bucket}/fp32").tasks == ("qa",)
    assert read_samples(f"{bucket}/fp32/qa.csv").means() == {("samples", "score", "none"): 1.0}


def test_the_copy_lives_as_long_as_it_is_used(bucket: str) -> None:
    with local_copy(f"{bucket}/policy.yaml") as path:
        assert path.name == "policy.yaml"
        assert path.exists()
    assert not path.parent.exists()


def test_policies(bucket: str) -> None:
    assert GatePolicy.from_yaml(f"{bucket}/policy.yaml").alpha == 0.01


def test_compare_is_told_addresses(bucket: str, tmp_path: Path) -> None:
    local = []
    for side, text in (("fp32", BASELINE), ("int8", CANDIDATE)):
        (tmp_path / side).mkdir()
        (tmp_path / side / "qa.csv").write_text(text, encoding="utf-8")
        local.append(str(tmp_path / side))
    decisions = []
    for sides in (local, [f"{bucket}/fp32", f"{bucket}/int8"]):
        found = str(tmp_path / "decision.json")
        done = CliRunner().invoke(compare, [*sides, "--json", found])
        assert done.exit_code == 1, done.output
        decisions.append(json.loads(Path(found).read_text(encoding="utf-8")))
    assert decisions[1]["baseline"]["model"] == f"{bucket}/fp32"
    for decision in decisions:
        for side in ("baseline", "candidate"):
            del decision[side]["model"]
    assert decisions[0] == decisions[1]
    same = CliRunner().invoke(compare, [f"{bucket}/fp32", f"{bucket}/fp32"])
    assert "are the same log (memory://evals/fp32)" in str(same.exception)


def test_a_web_server(server: str, tmp_path: Path) -> None:
    found = tmp_path / "decision.json"
    sides = [f"{server}/{side}.csv?signature=4711" for side in ("fp32", "int8")]
    done = CliRunner().invoke(compare, [*sides, "--json", str(found)])
    assert done.exit_code == 1, done.output
    assert "4711" not in done.output + found.read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"none\.csv does not exist") as refused:
        read_samples(f"{server}/none.csv?signature=4711")
    assert "4711" not in str(refused.value)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"http://\*\*\*@127\.0\.0\.1:9/a\.csv") as refused:
        read_samples("http://me:4711@127.0.0.1:9/a.csv")
    assert "4711" not in str(refused.value)


def test_no_such_protocol() -> None:
    with pytest.raises(InputError, match="no protocol is called 'nowhere'"):
        read_samples("nowhere://a/b.csv")


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_the_package_to_install(monkeypatch: pytest.MonkeyPatch, scheme: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    # What was looked up before is remembered.
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    with pytest.raises(MissingExtraError, match=rf"'{package}' .*mlflow-degrade\[remote\]"):
        read_samples(f"{scheme}://bucket/a.csv")


def test_without_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match="'fsspec'"):
        read_samples("s3://bucket/a.csv")


_BUCKET = """
import os, sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
os.environ.update(AWS_ACCESS_KEY_ID="AKIA4711", AWS_SECRET_ACCESS_KEY="secret4711")
import s3fs
files = s3fs.S3FileSystem()
files.mkdir("evals")
for side, wrong in (("fp32", 0), ("int8", 10)):
    rows = "".join(f"{i},{int(i >= wrong)}\\n" for i in range(40))
    files.pipe(f"evals/{side}/qa.csv", f"prompt_id,score\\n{rows}".encode())
from mlflow_degrade.cli import main
sys.argv = ["mlflow-degrade", "compare", *sys.argv[1:]]
try:
    main()
finally:
    server.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "code", "said"), [("int8", 1, "FAIL"), ("none", 3, "s3://evals/none does not exist")]
)
def test_a_bucket(side: str, code: int, said: str) -> None:
    python = os.environ.get("MLFLOW_DEGRADE_S3_PYTHON")
    if python is None:
        pytest.skip(
            "MLFLOW_DEGRADE_S3_PYTHON names no interpreter: make an environment with "
            'pip install "mlflow-degrade[remote]" "moto[server]", and give its python.'
        )
    done = subprocess.run(
        [python, "-c", _BUCKET, "s3://evals/fp32", f"s3://evals/{side}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert "4711" not in done.stdout + done.stderr
