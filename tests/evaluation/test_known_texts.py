"""Texts that another model wrote: kept where this one would write them, written where not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import ModelDir
from evaluations import evaluate_model
from local_tasks import write_task
from tiny_models import SENTENCES

from mlflow_degrade.engine.decoder import OnnxDecoder
from mlflow_degrade.engine.generation import Sampling, written_logits
from mlflow_degrade.evaluation.known_texts import KnownTexts
from mlflow_degrade.evaluation.run import Evaluation, EvaluationSettings

pytestmark = pytest.mark.usefixtures("own_cache")

SETTINGS = EvaluationSettings(device="cpu", progress=False)
GREEDY = Sampling(max_new_tokens=12, stop=("e",))
PROMPTS = [f"{SENTENCES[i % len(SENTENCES)][: 9 + i // 4]} {i % 7}" for i in range(96)]


def _written(decoder: OnnxDecoder, known: KnownTexts, sampling: Sampling = GREEDY) -> list[Any]:
    """What a decoder writes to all prompts, kept for others."""
    prompts = decoder.encoder.encode(PROMPTS)
    made: dict[int, Any] = {}

    for finished in decoder.generated(prompts, sampling):
        for one in finished:
            made[one.prompt] = one
            known.add(prompts[one.prompt], sampling, one.tokens)
    known.save()
    return [made[i] for i in range(len(prompts))]


def _read(decoder: OnnxDecoder, known: KnownTexts, sampling: Sampling = GREEDY) -> dict[int, Any]:
    prompts = decoder.encoder.encode(PROMPTS)
    batches = known.confirmed(decoder, prompts, sampling)
    return {made.prompt: made for finished in batches for made in finished}


@pytest.fixture
def decoder(model_dir: ModelDir) -> OnnxDecoder:
    return OnnxDecoder(model_dir("fp32"), device="cpu")


def test_a_model_keeps_what_it_would_write(decoder: OnnxDecoder, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "texts.json"
    written = _written(decoder, KnownTexts(path))
    assert {len(made.tokens) for made in written} >= {12, 3}, "some end at the stop, some do not"
    known = KnownTexts(path)
    kept = _read(decoder, known)
    assert len(kept) > 0.9 * len(written)
    assert all(kept[i] == written[i] for i in kept)
    assert known.difference is not None
    assert known.difference < 1e-3
    counted = known.counted()
    assert (counted["read"], counted["kept"]) == (96, len(kept))
    assert known.counted()["read"] == 0


def test_what_it_would_not_write_is_not_kept(decoder: OnnxDecoder, tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    written = _written(decoder, KnownTexts(path))
    texts = json.loads(path.read_text())
    keys = list(texts)
    order = [next(k for k in keys if texts[k] == list(made.tokens)) for made in written[:6]]
    wrong = {
        order[0]: [*texts[order[0]][:-1], (texts[order[0]][-1] + 1) % 400],  # another last token
        order[1]: texts[order[1]][:2],  # goes on here
        order[2]: [*texts[order[2]], 5],  # ends before
        order[3]: [10**6],  # of a larger vocabulary
        order[4]: [],
    }
    path.write_text(json.dumps({**texts, **wrong}))
    kept = _read(decoder, KnownTexts(path))
    assert all(kept[i] == written[i] for i in kept)
    assert not {0, 1, 2, 3, 4} & set(kept)
    assert len(kept) > 80


def test_a_cache_that_goes_wrong_where_it_gets_long_is_seen(
    decoder: OnnxDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading needs no cache: texts that were kept would hide the damage."""
    path, long = tmp_path / "texts.json", replace(GREEDY, max_new_tokens=24, stop=())
    _written(decoder, KnownTexts(path), long)

    def late(*given: Any) -> Any:
        seen: dict[int, int] = {}
        for indices, logits in written_logits(*given):
            changed = logits.copy()
            for index, row in zip(indices, changed, strict=True):
                seen[index] = seen.get(index, 0) + 1
                row[::2] += 0.5 * (seen[index] > 20)
            yield indices, changed

    monkeypatch.setattr("mlflow_degrade.evaluation.known_texts.written_logits", late)
    assert _read(decoder, KnownTexts(path), long) == {}


def test_it_stops_where_reading_does_not_pay(decoder: OnnxDecoder, tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    _written(decoder, KnownTexts(path))
    texts = json.loads(path.read_text())
    other = {key: [token ^ 1 for token in text] for key, text in texts.items()}
    path.write_text(json.dumps(other))
    known = KnownTexts(path)
    assert _read(decoder, known) == {}
    assert known.read == 32
    path.write_text(json.dumps(dict(list(texts.items())[:40])))
    known = KnownTexts(path)
    assert _read(decoder, known) == {}, "too few to try"
    key = next(iter(texts))
    for damaged in ([], {**texts, key: "text"}, {**texts, key: [-1]}, {**texts, key: ["5"]}):
        path.write_text(json.dumps(damaged))
        assert _read(decoder, KnownTexts(path)) == {}
    path.write_text(json.dumps(texts)[:-9])
    assert _read(decoder, KnownTexts(path)) == {}, "cut off"
    path.write_text(json.dumps(texts))
    assert _read(decoder, KnownTexts(path), replace(GREEDY, max_new_tokens=11)) == {}


def test_a_model_that_reads_otherwise_than_it_writes_writes(
    decoder: OnnxDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.json"
    _written(decoder, KnownTexts(path))
    _shift(monkeypatch)
    known = KnownTexts(path)
    assert _read(decoder, known) == {}
    assert (known.read, known.difference and known.difference > 0.04) == (0, True)


def test_a_token_that_hardly_leads_is_not_taken_for_the_likeliest(
    decoder: OnnxDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.json"
    _written(decoder, KnownTexts(path))
    kept = {len(_read(decoder, KnownTexts(path)))}
    for least in (0.02, 100.0):
        monkeypatch.setattr("mlflow_degrade.evaluation.known_texts._LEAST", least)
        kept.add(len(_read(decoder, KnownTexts(path))))
    assert len(kept) == 3
    assert 0 in kept


def _shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write otherwise than is read, as 8-bit activations do: a last digit becomes a step."""

    def shifted(*given: Any) -> Any:
        for indices, logits in written_logits(*given):
            noise = np.random.default_rng(0).normal(0, 0.2, logits.shape)
            yield indices, logits + noise.astype(np.float32)

    monkeypatch.setattr("mlflow_degrade.evaluation.known_texts.written_logits", shifted)


def test_texts_are_compared_as_far_as_they_go(decoder: OnnxDecoder) -> None:
    """Not as far as the shortest: its first token is read and written by the same pass."""
    prompts = decoder.encoder.encode(PROMPTS[:20])
    texts = [[5, 6, 7, 8, 9][: 1 + i % 5] for i in range(20)]
    found: dict[int, list[Any]] = {}
    for indices, logits in written_logits(decoder, prompts, GREEDY, texts):
        for index, row in zip(indices, logits, strict=True):
            found.setdefault(index, []).append(row.copy())
    assert {i: len(rows) for i, rows in found.items()} == {i: len(texts[i]) for i in range(20)}
    whole = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
    read = decoder.token_scores(whole, top=1, since=list(map(len, prompts)))
    for index, rows in found.items():
        for row, score in zip(rows, read[index], strict=True):
            shifted = row.astype(np.float64) - row.max()
            best = score.top[0][0]
            assert shifted[best] == pytest.approx(0, abs=1e-4)
            assert score.top[0][1] == pytest.approx(-np.log(np.exp(shifted).sum()), abs=1e-4)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    for name, sampled in (("writes", False), ("draws", True)):
        settings = {"until": ["\n"], "max_gen_toks": 10, "do_sample": sampled}
        write_task(
            folder,
            name,
            [{"text": text, "answer": "the"} for text in PROMPTS],
            output_type="generate_until",
            doc_to_text="{{text}} of",
            doc_to_target="answer",
            generation_kwargs={**settings, **({"temperature": 1.0} if sampled else {})},
            metric_list=[{"metric": "exact_match"}],
        )
    return folder


def _evaluate(folder: Path, tasks: Path, task: str = "writes", **changes: Any) -> Evaluation:
    settings = replace(SETTINGS, **changes)
    return evaluate_model(folder, [task], include_path=tasks, settings=settings)


def test_a_later_model_is_scored_without_writing(
    model_dir: ModelDir, tasks: Path, own_cache: Path
) -> None:
    first = _evaluate(model_dir("fp32"), tasks)
    assert "texts" not in first.tasks["writes"], "nothing was known"
    second = _evaluate(model_dir("fp16"), tasks)
    found = second.tasks["writes"]["texts"]
    assert found["kept"] > 0.6 * found["read"] > 0
    assert first.texts_read is None
    assert second.texts_read == (
        f"read {found['read']} texts of an earlier model; kept {found['kept']} that it would write "
        "as well"
    )
    assert second.timing["documents"] == 96 - found["kept"]
    anew = _evaluate(model_dir("fp16"), tasks, resume=False)
    assert "texts" not in anew.tasks["writes"]
    assert anew.samples.table.equals(second.samples.table)
    assert len(list(own_cache.glob("texts/*/texts.json"))) == 1


def test_where_it_cannot_be_done_is_said(
    model_dir: ModelDir, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _shift(monkeypatch)
    _evaluate(model_dir("fp32"), tasks)
    found = _evaluate(model_dir("fp16"), tasks)
    assert "all texts were written: what the model reads is up to" in str(found.texts_read)
    assert found.timing["documents"] == 96


def test_drawn_texts_are_never_read(model_dir: ModelDir, tasks: Path) -> None:
    for scheme in ("fp32", "fp16"):
        assert "texts" not in _evaluate(model_dir(scheme), tasks, "draws").tasks["draws"]


def test_a_rerun_writes_everything(model_dir: ModelDir, tasks: Path) -> None:
    _evaluate(model_dir("fp32"), tasks)
    again = _evaluate(model_dir("fp16"), tasks, rerun="one more")
    assert "texts" not in again.tasks["writes"]
