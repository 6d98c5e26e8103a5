"""Endpoints over a real server whose network, answers and model go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import TinyServer
from lm_eval.api.instance import Instance
from tiny_models import SENTENCES, make_tiny_llama

from mlflow_degrade.core.cache import cache_root
from mlflow_degrade.core.errors import EngineError, InputError, ModelError, UnknownNameError
from mlflow_degrade.evaluation.endpoint_backend import EndpointLM, files_digest
from mlflow_degrade.evaluation.endpoint_probes import DisagreementError, NoLikelihoodsError

pytestmark = pytest.mark.usefixtures("own_cache")

PAIRS = [
    (" ".join(words[: 2 + i % 4]), " " + " ".join(words[2 + i % 4 : 4 + i % 5]))
    for i, sentence in enumerate(SENTENCES * 2)
    if (words := sentence.split())
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of one tokenizer."""
    return [
        make_tiny_llama(tmp_path_factory.mktemp("served") / str(seed), seed=seed) for seed in (0, 1)
    ]


@pytest.fixture
def server(folders: list[Path]) -> TinyServer:
    return TinyServer(folders[0])


@pytest.fixture
def address(server: TinyServer) -> Iterator[str]:
    with server.running() as where:
        yield where


def _asked(pairs: list[tuple[str, str]] = PAIRS) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


def _opened(address: str, folder: Path, **how: Any) -> EndpointLM:
    how = {"patience": 5, "progress": False, "concurrency": 4, **how}
    return EndpointLM(base_url=address, tokenizer=str(folder), **how)


def _in_process(folder: Path, pairs: list[tuple[str, str]] = PAIRS) -> list[tuple[float, bool]]:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)
    return list(model.loglikelihood(_asked(pairs), disable_tqdm=True))


def _same(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx(
        [value for value, _ in expected], abs=1e-4
    )


@pytest.fixture(scope="module")
def expected(folders: list[Path]) -> list[tuple[float, bool]]:
    return _in_process(folders[0])


@pytest.mark.parametrize("how", [{}, {"batch_size": 5}, {"concurrency": 1}])
def test_scores_are_those_in_process(server, address, folders, expected, how):
    model = _opened(address, folders[0], **how)
    _same(model.loglikelihood(_asked()), expected)
    found = model.findings()
    assert found["prompts"] == "tokens"
    assert found["probes"]["scoring"]["invariant"]
    assert found["fidelity"]["step_difference"] < 1e-4
    assert server.most_at_once > 1 or how.get("concurrency") == 1 or how.get("batch_size")


def test_a_server_that_takes_texts_only_is_sent_texts(server, address, folders, expected):
    server.takes_ids = False
    model = _opened(address, folders[0])
    _same(model.loglikelihood(_asked()), expected)
    assert model.findings()["prompts"] == "text"


def test_greedy_continuations_are_known_as_such(server, address, folders):
    context = SENTENCES[0][:20]
    ids = server.tokenizer(context)["input_ids"]
    greedy = server.complete({"prompt": ids, "max_tokens": 1})[1]["choices"][0]["text"]
    pairs = [(context, greedy), (context, " boat"), *PAIRS]
    found = _opened(address, folders[0]).loglikelihood(_asked(pairs))
    assert [answer[1] for answer in found[:2]] == [True, False]
    _same(found, _in_process(folders[0], pairs))


def test_rolling_likelihoods_and_texts_are_those_in_process(address, folders):
    from lm_eval.models.huggingface import HFLM

    local = HFLM(pretrained=str(folders[0]), dtype="float32", device="cpu", batch_size=1)
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in SENTENCES[:3]]
    written = [
        Instance("generate_until", {}, (text[:15], {"until": ["."], "max_gen_toks": 8}), 0)
        for text in SENTENCES
    ]
    model = _opened(address, folders[0])
    assert model.loglikelihood_rolling(rolling) == pytest.approx(
        local.loglikelihood_rolling(rolling, disable_tqdm=True), abs=1e-4
    )
    assert model.generate_until(written) == local.generate_until(written, disable_tqdm=True)


@pytest.mark.parametrize(
    "trouble", ["drop", "cut", "500", "503", "429", "duplicate", "misnumbered", "lost"]
)
def test_what_a_network_does_loses_and_doubles_nothing(server, address, folders, expected, trouble):
    model = _opened(address, folders[0])
    model.loglikelihood(_asked(PAIRS[:2]))  # probes are through
    before = model.endpoint.requests
    server.troubles.extend([trouble, "", trouble, trouble, "", ""])
    _same(model.loglikelihood(_asked()), expected)
    assert model.endpoint.retries == 3
    # Two were answered before; the look at the end of a group is one more.
    assert model.endpoint.requests - before == len(PAIRS) - 2 + 1


def test_a_slow_answer_is_asked_for_again(server, address, folders, expected):
    model = _opened(address, folders[0], timeout=1)
    model.loglikelihood(_asked(PAIRS[:2]))
    server.troubles.extend(["slow", "slow"])
    _same(model.loglikelihood(_asked()), expected)
    assert model.endpoint.retries == 2


def test_what_a_server_refuses_is_said_and_not_asked_again(server, address, folders):
    model = _opened(address, folders[0])
    model.loglikelihood(_asked(PAIRS[:2]))
    server.troubles.append("400")
    with pytest.raises(EngineError, match=r"answers 400: .*told to say 400.*not asked again"):
        model.loglikelihood(_asked())
    assert model.endpoint.retries == 0


def test_a_server_that_stays_away_is_waited_for_as_long_as_said(server, folders):
    with server.running() as address:
        model = _opened(address, folders[0], patience=0.5)
        model.loglikelihood(_asked(PAIRS[:2]))
    with pytest.raises(EngineError, match=r"did not answer in .* tries .*goes on where it stopped"):
        model.loglikelihood(_asked())
    with pytest.raises(EngineError, match=r"did not answer"):
        _opened(address, folders[0], patience=0.2)


def test_an_evaluation_that_was_broken_off_goes_on(server, address, folders, expected):
    broken = _opened(address, folders[0], concurrency=1)
    broken.endpoint._group = 4
    broken.loglikelihood(_asked(PAIRS[:1]))
    server.answered.clear()
    server.troubles.extend([*[""] * 9, "400"])
    with pytest.raises(EngineError, match=r"400"):
        broken.loglikelihood(_asked())
    done = {prompt for prompt, times in server.answered.items() if times}
    again = _opened(address, folders[0])
    again._settle("scoring", [again.encode([a + b])[0] for a, b in PAIRS])
    server.answered.clear()
    _same(again.loglikelihood(_asked()), expected)
    assert again.resumed >= 5
    assert len(done & set(server.answered)) <= 5  # of the group that was not confirmed, the canary
    kept = list((cache_root() / "endpoint").glob("*.jsonl"))
    assert len(kept) == 1
    again.discard()
    assert not kept[0].exists()


def test_answers_of_other_weights_are_left_out(server, address, folders, capsys):
    first = _opened(address, folders[0])
    first.loglikelihood(_asked())
    server.load(folders[1])  # of the same name
    _same(_opened(address, folders[0]).loglikelihood(_asked()), _in_process(folders[1]))
    assert "of other weights, and left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["other", "tiny"])
def test_another_model_in_the_middle_stops_it(server, address, folders, name):
    """Of another name the server says so; of the same name its answers do."""
    model = _opened(address, folders[0], concurrency=2)
    model.loglikelihood(_asked(PAIRS[:2]))
    server.swap_after = (5, folders[1], name)
    said = "another one than before.*'other'.*'tiny'" if name == "other" else "other log-prob"
    with pytest.raises(EngineError, match=rf"{said}.*Nothing was logged"):
        model.loglikelihood(_asked())
    assert len(model._journal) <= 3  # the canary and what was confirmed before


def test_a_server_without_likelihoods_is_refused_before_the_first_sample(server, address, folders):
    server.gives_likelihoods = False
    model = _opened(address, folders[0])
    with pytest.raises(NoLikelihoodsError, match=r"logits_all true.*tasks that generate"):
        model.loglikelihood(_asked())
    assert model.endpoint.requests == 1
    texts = [Instance("generate_until", {}, (SENTENCES[0], {"until": ["."], "max_gen_toks": 4}), 0)]
    assert len(model.generate_until(texts)) == 1


def test_a_shifted_server_is_refused(server, address, folders):
    server.shifted = True
    with pytest.raises(EngineError, match=r"of the one before it.*kv_overrides"):
        _opened(address, folders[0]).loglikelihood(_asked())


def test_numbers_that_are_no_log_probabilities_are_refused(server, address, folders):
    server.constant = 4.0
    with pytest.raises(EngineError, match="these are no log-probabilities"):
        _opened(address, folders[0]).loglikelihood(_asked())


def test_rounded_likelihoods_are_refused_or_said(server, address, folders, capsys):
    server.decimals = 2
    with pytest.raises(EngineError, match=r"rounds log-probabilities to 2 decimals.*at least 3"):
        _opened(address, folders[0]).loglikelihood(_asked())
    server.decimals = 4
    model = _opened(address, folders[0])
    model.loglikelihood(_asked())
    assert model.fidelity.decimals == 4
    assert "rounded to 4 decimals" in capsys.readouterr().err


@pytest.mark.parametrize("as_text", [False, True])
def test_another_tokenizer_is_refused_with_the_first_difference(server, address, tmp_path, as_text):
    server.takes_ids = not as_text
    other = make_tiny_llama(tmp_path / "other", vocab=300)
    with pytest.raises(DisagreementError, match=r"disagree: .*tokenizer=DIR"):
        _opened(address, other).loglikelihood(_asked())


def test_a_server_that_puts_a_token_before_a_text_is_refused_or_followed(server, address, folders):
    server.takes_ids, server.puts_begin = False, True
    with pytest.raises(DisagreementError, match=r"puts a token before each text.*bos=true"):
        _opened(address, folders[0]).loglikelihood(_asked())
    found = _opened(address, folders[0], bos=True).loglikelihood(_asked())
    begin = server.tokenizer.bos_token
    _same(found, _in_process(folders[0], [(begin + a, b) for a, b in PAIRS]))


def test_scores_that_depend_on_neighbours_are_asked_for_alone(server, address, folders, capsys):
    server.neighbours = 0.5
    model = _opened(address, folders[0])
    model.loglikelihood(_asked())
    assert not model.probes["scoring"].invariant
    assert model.endpoint.concurrency == 1
    assert "asked one sample at a time" in capsys.readouterr().err
    kept = _opened(address, folders[0], dependent="kept")
    kept.loglikelihood(_asked())
    assert kept.endpoint.concurrency == 4


def test_the_key_is_sent_and_never_said(server, address, folders, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-private-123")
    model = _opened(address, folders[0])
    model.loglikelihood(_asked(PAIRS[:2]))
    assert server.seen_keys == {"Bearer sk-very-private-123"}
    assert "private" not in f"{model.facts()} {model.findings()}"


def test_what_is_wrong_in_a_word_is_said(address, folders, tmp_path):
    with pytest.raises(InputError, match=r"needs an address"):
        EndpointLM()
    with pytest.raises(InputError, match=r"needs the tokenizer"):
        EndpointLM(base_url=address)
    with pytest.raises(InputError, match=r"no address of a server"):
        _opened("localhost:8000", folders[0])
    with pytest.raises(InputError, match=r"concurrency is 0, the least is 1"):
        _opened(address, folders[0], concurrency=0)
    with pytest.raises(UnknownNameError, match=r"protocol"):
        _opened(address, folders[0], protocol="grpc")
    with pytest.raises(UnknownNameError, match=r"model of .*: .*tiny"):
        _opened(address, folders[0], model="tinny")
    with pytest.raises(EngineError, match=r"404.*base_url ends in /v1"):
        _opened(address + "/nothing", folders[0])
    with pytest.raises(ModelError, match=r"does not exist"):
        _opened(address, folders[0], files=str(tmp_path / "away"))


def test_the_weights_are_named_by_files_or_not_at_all(address, folders, tmp_path):
    known = _opened(address, folders[0], files=str(folders[0]), flags="--dtype float32").facts()
    assert known["weights"] == {"digest": files_digest(folders[0]), "by": "files"}
    assert (known["engine"], known["version"], known["flags"]) == (
        "vllm", "0.0.test", "--dtype float32"
    )  # fmt: skip
    assert _opened(address, folders[0]).facts()["weights"] == {"digest": None, "by": "unknown"}
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert files_digest(file).startswith("sha256:")


def test_the_digest_of_files_is_theirs_whatever_a_manifest_says(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    own = files_digest(folder)
    (folder / "degrade.json").write_text('{"digest": "sha256:of-another-model"}')
    assert files_digest(folder) == own
