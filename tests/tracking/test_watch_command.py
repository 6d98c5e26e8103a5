"""Watches on a real store: traces of a registered model's pyfunc, and another one swapped in."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine_models import ModelDir, model_dir, tiny_source  # noqa: F401 - fixtures
from mlflow_stores import use_empty_store
from tiny_models import SENTENCES, make_tiny_llama

from mlflow_degrade.cli import run
from mlflow_degrade.registry import log_model
from mlflow_degrade.tracking.watches import STATE_TAG, WATCH_TAG

Call = Callable[..., tuple[int, str, str]]
WORDS = " ".join(SENTENCES).split()


@pytest.fixture
def store(tmp_path: Path, model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(model_cache))
    # SQLite takes one writer at a time, and a trace that was not written would not be there.
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    use_empty_store(tmp_path)
    mlflow.set_experiment("production")
    return MlflowClient()


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    def invoke(*args: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["watch", *map(str, args)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return invoke


def _prompts(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    while True:
        yield " ".join(rng.sample(WORDS, 8))


def _serve(model: Any, prompts: Iterator[str], count: int, *, at_once: int = 20) -> None:
    """Answer prompts as a traced application does."""
    for start in range(0, count, at_once):
        asked = [next(prompts) for _ in range(min(at_once, count - start))]
        rows = [{"prompt": prompt} for prompt in asked]
        texts = list(model.predict(rows, params={"max_new_tokens": 12})["text"])
        for prompt, text in zip(asked, texts, strict=True):
            _log({"prompt": prompt}, text)


def _log(inputs: Any, output: Any) -> None:
    with mlflow.start_span("chat") as span:
        span.set_inputs(inputs)
        span.set_outputs(output)


def _runs(client: MlflowClient) -> list[Any]:
    experiment = client.get_experiment_by_name("production")
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], f"tags.`{WATCH_TAG}` != ''")


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_a_swap_is_seen_within_500_traces(
    model_dir: ModelDir,  # noqa: F811
    store: MlflowClient,
    call: Call,
) -> None:
    loaded = {}
    for number, scheme in enumerate(("fp32", "int4-weight-only"), start=1):
        with mlflow.start_run():
            info = log_model(model_dir(scheme), name=scheme)
        version = mlflow.register_model(info.model_uri, "chat").version
        assert int(version) == number
        loaded[scheme] = mlflow.pyfunc.load_model(info.model_uri)
    store.set_registered_model_alias("chat", "champion", "2")
    prompts = _prompts(0)
    common = ("--champion", "models:/chat/1", "--challenger", "models:/chat/2", "--traces",
              "production", "--tokens", "12")  # fmt: skip

    _serve(loaded["fp32"], prompts, 60)
    code, out, err = call(*common, "--json")
    assert code == 0, out + err
    quiet = json.loads(out)
    assert (quiet["verdict"], quiet["traces"], quiet["alarm"]) == ("PASS", 60, None)
    assert sum(w["agreeing"] for w in quiet["weeks"]) > 10 * sum(
        w["against"] for w in quiet["weeks"]
    )

    again = json.loads(call(*common, "--json")[1])
    assert (again["traces"], again["added"], again["order"]) == (60, 0, quiet["order"])

    _serve(loaded["int4-weight-only"], prompts, 100)
    code, out, err = call(*common, "--roll-back", "champion", "--json")
    assert code == 1, out + err
    found = json.loads(out)
    assert found["alarm"]["claim"] == "swap"
    assert found["alarm"]["trace_number"] - 60 <= 500
    assert "ROLL BACK" in err
    assert "moved from version 2 to version 1" in found["rolled_back"]
    assert str(store.get_model_version_by_alias("chat", "champion").version) == "1"

    (kept,) = _runs(store)
    assert kept.info.status == "FINISHED"
    state = json.loads(kept.data.tags[STATE_TAG])["file"]
    assert [f.path for f in store.list_artifacts(kept.info.run_id, "watch")] == [state]
    text = Path(mlflow.artifacts.download_artifacts(run_id=kept.info.run_id, artifact_path=state))
    assert not any(word in text.read_text() for word in ("harbour", "drawer", "tr-"))

    assert call(*common)[0] == 1, "an alarm stands until another watch begins"
    _serve(loaded["fp32"], prompts, 3)
    code, out, err = call(*common, "--anew", "--since", "2100-01-01")
    assert "another watch begins" in err
    assert code == 2


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_no_name_is_needed_with_a_tolerance(
    model_dir: ModelDir,  # noqa: F811
    call: Call,
) -> None:
    from mlflow_degrade.engine import OnnxDecoder, Sampling

    prompts = _prompts(1)

    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    asked = [next(prompts) for _ in range(40)]
    texts = decoder.generate(decoder.encoder.encode(asked), Sampling(max_new_tokens=12))
    for prompt, text in zip(asked, texts, strict=True):
        _log({"prompt": prompt}, {"content": text})

    given = ("--champion", model_dir("fp32"), "--traces", "production", "--tolerance", "0.85",
             "--tokens", "12")  # fmt: skip
    # Of a random model's letters three of four are other tokens when they are read again.
    code, out, err = call(*given)
    assert code == 2, out + err
    assert "no alarm could have been raised yet" in out + err
    for count in range(200):
        _log({"prompt": next(prompts)}, {"content": f"drawer {count} of the harbour opens at noon"})
    code, out, _ = call(*given)
    assert code == 1
    assert "more than the tolerance" in out


class TestBadInput:
    @pytest.fixture
    def given(self, model_dir: ModelDir) -> tuple[str, ...]:  # noqa: F811
        return ("--champion", str(model_dir("fp32")), "--challenger",
                str(model_dir("int4-weight-only")), "--traces", "production")  # fmt: skip

    def test_no_traces(self, given: tuple[str, ...], store: MlflowClient, call: Call) -> None:
        code, _, err = call(*given)
        assert code == 3
        assert "there are no traces in experiment 'production'" in err
        code, _, err = call(*given[:-1], "productoin")
        assert code == 3
        assert "did you mean 'production'" in err
        assert _runs(store) == []

    def test_traces_without_texts(
        self, given: tuple[str, ...], store: MlflowClient, call: Call
    ) -> None:
        _log({"prompt": "a prompt"}, None)
        _log({"prompt": "a prompt"}, "")
        _log({"a": 1, "b": 2}, "a text")
        code, _, err = call(*given)
        assert code == 3
        assert "none of 3 traces" in err
        assert "2 without a text" in err
        assert _runs(store) == []

    @pytest.mark.usefixtures("store")
    def test_the_same_model_twice(self, given: tuple[str, ...], call: Call) -> None:
        code, _, err = call(*given[:3], given[1], *given[4:])
        assert code == 3
        assert "are the same model" in err

    @pytest.mark.usefixtures("store")
    def test_another_tokenizer(self, given: tuple[str, ...], call: Call, tmp_path: Path) -> None:
        other = make_tiny_llama(tmp_path / "other", vocab=300)
        _log({"prompt": "a prompt"}, "a text")
        code, _, err = call(*given[:3], str(other), *given[4:])
        assert code == 3
        assert "different tokenizers" in err

    @pytest.mark.usefixtures("store")
    def test_a_model_that_is_not_there(self, given: tuple[str, ...], call: Call) -> None:
        code, _, err = call("--champion", "models:/chat/1", *given[2:])
        assert code == 3
        assert "chat" in err
        code, _, err = call("--champion", "nowhere/at/all", *given[2:])
        assert code == 3
        assert "no model at" in err

    @pytest.mark.usefixtures("store")
    def test_options(self, given: tuple[str, ...], call: Call) -> None:
        code, _, err = call(*given[:2], *given[4:])
        assert code == 3
        assert "neither a challenger nor a tolerance" in err
        for extra, said in (
            (("--since", "yesterday"), "is no time"),
            (("--rate", "2"), "rate = 2.0"),
            (("--filter", "bogus"), "search_traces"),
            (("--roll-back", "champion"), "needs a champion in the registry"),
        ):
            code, _, err = call(*given, *extra)
            assert code == 3
            assert said in err

    def test_a_failed_call_is_gone_on_from(
        self, given: tuple[str, ...], store: MlflowClient, call: Call,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        _log({"prompt": "Seven plus five"}, " is twelve")
        import mlflow_degrade.evaluation.teacher_forcing as reading

        with monkeypatch.context() as patch:
            patch.setattr(reading, "token_scores", lambda *_: 1 / 0)
            assert call(*given)[0] == 4
        (broken,) = _runs(store)
        assert broken.info.status == "FAILED"
        assert STATE_TAG not in broken.data.tags
        code, out, _ = call(*given)
        assert code == 2, "one trace is too little"
        assert "too little to tell: 1 traces (1 new)" in out
        (run_again,) = _runs(store)
        assert (run_again.info.run_id, run_again.info.status) == (broken.info.run_id, "FINISHED")
        code, out, err = call(*given, "--alpha", "0.01")
        assert "the policy changed: another watch begins" in err
