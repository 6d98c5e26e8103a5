"""Endpoints of real engines, each in an environment of its own: see scripts/make_engines.sh."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from tiny_gguf import write_gguf
from tiny_models import SENTENCES, make_tiny_llama

from mlflow_degrade.core.errors import EngineError
from mlflow_degrade.evaluation.endpoint_backend import EndpointLM, files_digest
from mlflow_degrade.evaluation.endpoint_probes import DisagreementError, NoLikelihoodsError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

_PATIENCE = 240.0
PAIRS = [
    (" ".join(words[: 2 + i % 4]), " " + " ".join(words[2 + i % 4 : 4 + i % 5]))
    for i, sentence in enumerate(SENTENCES)
    if (words := sentence.split())
]


def _python(variable: str) -> str:
    python = os.environ.get(variable, "")
    if not Path(python).is_file():
        pytest.skip(f"{variable} names no Python: scripts/make_engines.sh DIR makes one.")
    return python


@contextmanager
def _serving(*command: object, **environment: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    server = subprocess.Popen(
        [*map(str, command), "--port", str(port), "--host", "127.0.0.1"],
        env={**kept, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/v1"
    try:
        end = time.monotonic() + _PATIENCE
        while True:
            assert server.poll() is None, f"{command[0]} has ended"
            try:
                urllib.request.urlopen(f"{address}/models", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < end, f"{address} does not answer"
                time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with heads of 64, which vLLM's kernels for the CPU want."""
    return make_tiny_llama(tmp_path_factory.mktemp("engines") / "wide", hidden=256)


def _asked(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def _opened(address: str, folder: Path, **how: Any) -> EndpointLM:
    return EndpointLM(base_url=address, tokenizer=str(folder), progress=False, **how)


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Iterator[str]:
    python = _python("MLFLOW_DEGRADE_VLLM")
    with _serving(
        Path(python).with_name("vllm"), "serve", folder, "--dtype", "float32",
        "--max-num-seqs", "16", "--enforce-eager", "--gpu-memory-utilization", "0.1",
        VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1",
    ) as address:  # fmt: skip
        yield address


def test_vllm_answers_as_transformers_do(vllm: str, folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    local = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)
    expected = local.loglikelihood(_asked(PAIRS), disable_tqdm=True)
    texts = [
        Instance("generate_until", {}, (text[:20], {"until": ["."], "max_gen_toks": 8}), 0)
        for text in SENTENCES
    ]
    model = _opened(vllm, folder, files=str(folder), concurrency=8)
    for concurrency in (1, 4, 16):
        model = _opened(vllm, folder, files=str(folder), concurrency=concurrency)
        found = model.loglikelihood(_asked(PAIRS))
        assert [v for v, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
        assert [g for _, g in found] == [g for _, g in expected]
        model.discard()
    # A text that ends within a character ends before it with vLLM.
    ended = [[t.rstrip("\ufffd") for t in m.generate_until(texts)] for m in (model, local)]
    assert ended[0] == ended[1]
    facts = model.facts()
    assert (facts["engine"], facts["root"], facts["context"]) == ("vllm", str(folder), 256)
    assert facts["version"].startswith("0.")
    assert facts["weights"] == {"digest": files_digest(folder), "by": "files"}
    assert model.findings()["prompts"] == "tokens"


def test_vllm_with_another_tokenizer_is_refused(vllm: str, tmp_path: Path) -> None:
    other = make_tiny_llama(tmp_path / "other", vocab=300)
    with pytest.raises(DisagreementError, match="disagree"):
        _opened(vllm, other).loglikelihood(_asked(PAIRS))


@contextmanager
def _llama(model: Path, *flags: object) -> Iterator[str]:
    python = _python("MLFLOW_DEGRADE_LLAMA_CPP")
    with _serving(
        python, "-m", "llama_cpp.server", "--model", model, "--n_ctx", "256", *flags
    ) as address:
        yield address


_IN_PROCESS = """
import json, sys
import numpy as np
from llama_cpp import Llama

asked = json.load(sys.stdin)
model = Llama(sys.argv[1], logits_all=True, n_ctx=256, verbose=False)
found = []
for tokens, count in asked:
    model.reset()
    model.eval(tokens)
    logits = np.array(model.scores[: len(tokens)], dtype=np.float64)
    table = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    table -= logits.max(1, keepdims=True)
    places = range(len(tokens) - count, len(tokens))
    found.append(float(sum(table[i - 1, tokens[i]] for i in places)))
print(json.dumps(found))
"""


def test_llama_cpp_python_answers_as_it_does_in_process(folder: Path, tmp_path: Path) -> None:
    python = _python("MLFLOW_DEGRADE_LLAMA_CPP")
    file = write_gguf(folder, tmp_path / "wide.gguf", begins=True)
    with _llama(file, "--logits_all", "true") as address:
        model = _opened(address, folder, bos=True, files=str(file))
        found = model.loglikelihood(_asked(PAIRS))
        with pytest.raises(DisagreementError, match="bos=true"):
            _opened(address, folder).loglikelihood(_asked(PAIRS))
    pairs = model.encoder.encode_pairs(PAIRS)
    begin = model.encoder.prefix_id
    asked = [([begin, *context, *rest], len(rest)) for context, rest in pairs]
    done = subprocess.run(
        [python, "-c", _IN_PROCESS, str(file)],
        input=json.dumps(asked), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [v for v, _ in found] == pytest.approx(json.loads(done.stdout), abs=1e-4)
    assert model.facts()["engine"] == "llama-cpp-python"
    assert model.facts()["weights"] == {"digest": files_digest(file), "by": "files"}
    assert model.findings()["prompts"] == "text"


def test_what_llama_cpp_python_gets_wrong_is_refused(folder: Path, tmp_path: Path) -> None:
    """Without a token for the beginning its log-probabilities are shifted, and none by default."""
    file = write_gguf(folder, tmp_path / "bare.gguf", begins=False)
    with (
        _llama(file, "--logits_all", "true") as address,
        pytest.raises(EngineError, match="of the one before it"),
    ):
        _opened(address, folder).loglikelihood(_asked(PAIRS))
    override = "tokenizer.ggml.add_bos_token=bool:true"
    with _llama(file, "--logits_all", "true", "--kv_overrides", override) as address:
        assert len(_opened(address, folder, bos=True).loglikelihood(_asked(PAIRS))) == len(PAIRS)
    with (
        _llama(file, "--logits_all", "false") as address,
        pytest.raises(NoLikelihoodsError, match="logits_all true"),
    ):
        _opened(address, folder, patience=1.0).loglikelihood(_asked(PAIRS))
