"""A served model answers OpenAI's completions, with the numbers that it was evaluated by."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import pytest
from engine_models import ModelDir, model_dir, tiny_source

from mlflow_degrade.core.cache import digest_directory
from mlflow_degrade.engine import OnnxDecoder
from mlflow_degrade.registry.references import logged_content
from mlflow_degrade.registry.registration import log_model

__all__ = ["model_dir", "tiny_source"]

TEXT = "The harbour is quiet, and the boats are out."
Post = Callable[..., Any]


@cache
def _server(folder: Path) -> Post:
    """The scoring server's own application around a logged model."""
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    with mlflow.start_run():
        info = log_model(folder, name="tiny")
    client = TestClient(init(mlflow.pyfunc.load_model(info.model_uri)))

    def post(**body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        return client.post("/invocations", content=json.dumps(body), headers=headers)

    return post


@pytest.fixture
def post(store: str, model_dir: ModelDir) -> Post:
    assert store
    return _server(model_dir("fp32"))


def _choice(post: Post, **body: Any) -> Any:
    reply = post(**body)
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    return choice


def test_the_numbers_are_those_of_the_evaluation(post: Post, model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    (ids,) = decoder.encoder.encode([TEXT])
    choice = _choice(post, prompt=TEXT, max_tokens=0, echo=True, logprobs=1, temperature=0)
    assert choice["text"] == TEXT
    assert choice["finish_reason"] == "length"
    listed = choice["logprobs"]
    assert listed["token_logprobs"][0] is listed["top_logprobs"][0] is None
    for cut in (1, 5, len(ids) - 1):
        (score,) = decoder.score([(ids[:cut], ids[cut:])])
        assert math.fsum(listed["token_logprobs"][cut:]) == score.logprob  # to the bit
        tops = [max(top.values()) for top in listed["top_logprobs"][cut:]]
        assert (tops == listed["token_logprobs"][cut:]) == score.is_greedy
    # The text of each token begins where its offset says.
    places = zip(listed["tokens"], listed["text_offset"], strict=True)
    for token, offset in places:
        assert token.startswith("token_id:") or TEXT.startswith(token, offset)
    # The same as token ids, as lm-eval sends them.
    same = _choice(post, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    assert same["logprobs"]["token_logprobs"] == listed["token_logprobs"]
    assert same["text"].endswith(TEXT)


def test_the_last_tokens_alone_have_the_same_numbers(post: Post, model_dir: ModelDir) -> None:
    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    (ids,) = decoder.encoder.encode([TEXT])
    prompts = [ids, [*ids[:-1], ids[0]], ids[:5], [*ids, *ids[3:9]]]
    since = [len(ids) - 2, len(ids) - 1, 1, 4]
    body = {"prompt": prompts, "max_tokens": 0, "echo": True, "logprobs": 2}
    whole = [choice["logprobs"] for choice in post(**body).json()["choices"]]
    part = [c["logprobs"] for c in post(**body, logprobs_from=since).json()["choices"]]
    for first, all_of_them, found in zip(since, whole, part, strict=True):
        assert found["tokens"] == all_of_them["tokens"]
        assert found["token_logprobs"][:first] == [None] * first
        values = found["token_logprobs"][first:]
        assert values == pytest.approx(all_of_them["token_logprobs"][first:], abs=1e-5)
        assert [list(top) for top in found["top_logprobs"][first:]] == [
            list(top) for top in all_of_them["top_logprobs"][first:]
        ]
    for wrong in ([1], [0, 1, 1, 1], [len(ids) + 1, 1, 1, 1]):
        reply = post(**body, logprobs_from=wrong)
        assert reply.status_code == 400
        assert "a number for each of the 4 prompts" in reply.text


def test_what_is_most_likely_is_a_softmax(post: Post, model_dir: ModelDir) -> None:
    import numpy as np

    decoder = OnnxDecoder(model_dir("fp32"), device="cpu")
    (ids,) = decoder.encoder.encode([TEXT])
    size = int(decoder.config["vocab_size"])
    # Each token of the vocabulary, scored as a continuation of its own.
    every = [s.logprob for s in decoder.score([(ids[:4], [token]) for token in range(size)])]
    wanted = np.sort(every)[::-1][:5]
    listed = _choice(post, prompt=ids, max_tokens=0, echo=True, logprobs=5)["logprobs"]
    found = listed["top_logprobs"][4]
    assert len(found) in (5, 6)  # with its own token
    assert sorted(found.values(), reverse=True)[:5] == pytest.approx(wanted, abs=1e-6)
    none = _choice(post, prompt=ids, max_tokens=0, echo=True, logprobs=0)["logprobs"]
    assert [list(top.values()) for top in none["top_logprobs"][1:]] == [
        [value] for value in none["token_logprobs"][1:]
    ]


def test_texts_are_generated_as_they_are_by_rows(post: Post) -> None:
    rows = post(dataframe_records=[{"prompt": TEXT}], params={"max_new_tokens": 6})
    text = rows.json()["predictions"][0]["text"]
    choice = _choice(post, prompt=TEXT, max_tokens=6, echo=False)
    assert (choice["text"], choice["logprobs"]) == (text, None)
    # With log-probabilities: of the new tokens alone, or after those of the prompt.
    new = _choice(post, prompt=TEXT, max_tokens=6, echo=False, logprobs=1)["logprobs"]
    both = _choice(post, prompt=TEXT, max_tokens=6, echo=True, logprobs=1)
    assert both["text"] == TEXT + text
    count = len(new["tokens"])
    assert 0 < count <= 6
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert both["logprobs"][name][-count:] == new[name]
    assert both["logprobs"]["text_offset"][-count] == len(TEXT)
    # What was chosen greedily is what is most likely.
    assert new["token_logprobs"] == [max(top.values()) for top in new["top_logprobs"]]
    drawn = [
        _choice(post, prompt=TEXT, max_tokens=6, echo=False, temperature=1.5, seed=seed)["text"]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_stop_ends_a_text(post: Post) -> None:
    text = _choice(post, prompt=TEXT, max_tokens=12, echo=False)["text"]
    stop = next(letter for letter in text[1:] if letter.isascii())
    for given in (stop, [stop, "never"]):
        choice = _choice(post, prompt=TEXT, max_tokens=12, echo=False, stop=given, logprobs=0)
        assert choice["text"] == text.split(stop)[0]
        assert choice["finish_reason"] == "stop"


def test_prompts_are_answered_in_their_order(post: Post, model_dir: ModelDir) -> None:
    texts = [TEXT, "A boat", "é", ""]
    reply = post(prompt=texts, max_tokens=0, echo=True, logprobs=1).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in reply["choices"]] == texts
    for text, choice in zip(texts, reply["choices"], strict=True):
        alone = _choice(post, prompt=text, max_tokens=0, echo=True, logprobs=1)
        assert alone["logprobs"] == choice["logprobs"]
    read = sum(len(choice["logprobs"]["tokens"]) for choice in reply["choices"])
    assert reply["usage"] == {
        "prompt_tokens": read,
        "completion_tokens": 0,
        "total_tokens": read,
    }
    assert reply["object"] == "text_completion"
    # What answers, by its bytes.
    digest = digest_directory(model_dir("fp32"), ignore=("degrade.json",))
    assert reply["model"] == f"tiny@{digest}"
    assert post(prompt="A", echo=True, max_tokens=0, model=reply["model"]).status_code == 200
    # Rows say the same in MLflow's own form.
    records = [{"prompt": text} for text in texts[:2]]
    rows = post(dataframe_records=records, params={"echo": True, "max_tokens": 0}).json()
    assert [c["text"] for c in rows["predictions"]["choices"]] == texts[:2]


def test_bodies_without_echo_and_logprobs_are_answered_as_before(post: Post) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}]}
    assert "no chat template" in post(**chat, logprobs=True, stop="x").text
    row = post(prompt=TEXT, max_tokens=3, stop="a", temperature=0.5).json()
    assert list(row[0]) == ["text", "log_likelihoods"]
    assert post(prompt=TEXT, max_tokens=3, echo=None, logprobs=None).json() == row


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"logprobs": 21}, "logprobs is 21: it is a whole number from 0 to 20"),
        ({"logprobs": True}, "logprobs is True"),
        ({"logprobs": 1.5}, "logprobs is 1.5"),
        ({"logprobs": "1"}, "logprobs is '1'"),
        ({"max_tokens": -1}, "max_tokens is -1, and is at least 0"),
        ({"max_tokens": 100_000}, "exceed the context of"),
        ({"max_tokens": 1, "temperature": -1}, "temperature -1.0"),
        ({"n": 2}, "n is 2, and only 1 is answered"),
        ({"stream": True}, "stream is True"),
        ({"max_tokens": 1, "stop": [""]}, "an empty stop sequence"),
        ({"max_tokens": 1, "stop": 3}, "stop is 3: it is a text or a list of texts"),
        ({"prompt": []}, "prompt is []"),
        ({"prompt": [[]]}, "a prompt is []"),
        ({"prompt": [1, 1_000_000]}, "a list of token ids from 0 to"),
        ({"prompt": [1.5]}, "a prompt is 1.5"),
        ({"prompt": {"a": 1}}, "prompt is {'a': 1}"),
        ({"model": "tiny@sha256:0"}, "model 'tiny@sha256:0' is asked, and 'tiny@sha256:"),
        ({"echo": "yes"}, "Invalid parameters found"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(post: Post, body: dict[str, Any], message: str) -> None:
    reply = post(**{"prompt": TEXT, "max_tokens": 0, "echo": True, **body})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error_code"] == "INVALID_PARAMETER_VALUE"
    assert message in reply.json()["message"]


def test_no_compiled_code_is_logged(
    store: str, model_dir: ModelDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow loads what it is about to upload, and Python keeps what it compiles beside it."""
    assert store
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with mlflow.start_run():
        info = log_model(model_dir("fp32"), name="tiny")
    assert not sys.dont_write_bytecode
    assert logged_content(info.model_uri).bytecode == ()
