"""One log, or one model, on both sides: refused where the answers show it, never a PASS."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlflow_degrade.cli import run
from mlflow_degrade.core.errors import SameModelError
from mlflow_degrade.decision.policy import GatePolicy
from mlflow_degrade.decision.verdict import decide
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.table import SampleScores

N = 400
TEXTS = [f"because of {i}" for i in range(N)]


def log(
    scores: Sequence[float], answers: Sequence[str] | None = None, task: str = "qa", **facts: Any
) -> SampleScores:
    frame = pd.DataFrame({"task": task, "doc_id": range(len(scores)), "metric": "acc"})
    frame["score"] = scores
    if answers is not None:
        frame["response"] = answers
    return SampleScores.from_pandas(frame, **facts)


def verdict(a: SampleScores, b: SampleScores, **options: Any) -> tuple[str, str]:
    decision = decide(pair(a, b, **options), GatePolicy())
    return decision.verdict.value, decision.reasons[0]


class TestPairing:
    def test_the_same_scores_and_answers_are_refused(self) -> None:
        side = log([1] * N, TEXTS)
        with pytest.raises(SameModelError, match=r"all 400 .* \(qa\).*allow 'same-model'"):
            pair(side, log([1] * N, TEXTS, model="other"))
        assert verdict(side, side, allow=["same-model"])[0] == "PASS"

    def test_other_answers_with_the_same_scores_are_two_models(self) -> None:
        other = [*TEXTS[:-1], "for another reason"]
        assert verdict(log([1] * N, TEXTS), log([1] * N, other))[0] == "PASS"

    def test_other_scores_with_the_same_answers_are_two_scorers(self) -> None:
        assert pair(log([1] * N, TEXTS), log([1] * (N - 1) + [0], TEXTS)).doubt == ""

    def test_scores_alone_cannot_tell(self) -> None:
        side = log([1] * N)
        found, reason = verdict(side, log([1] * N))
        assert found == "INCONCLUSIVE"
        assert "all 400 scores are the same on both sides" in reason
        assert "'same-model'" in reason
        assert verdict(side, side, allow=["same-model"])[0] == "PASS"

    def test_few_labels_cannot_tell_either(self) -> None:
        labels = ["ABCD"[i % 4] for i in range(N)]
        assert verdict(log([1] * N, labels), log([1] * N, labels))[0] == "INCONCLUSIVE"

    def test_nor_can_a_few_words(self) -> None:
        words = [f"w{i}" for i in range(200)]
        assert verdict(log([1] * 200, words), log([1] * 200, words))[0] == "INCONCLUSIVE"

    def test_too_little_data_is_said_first(self) -> None:
        found, reason = verdict(log([1] * 12), log([1] * 12))
        assert (found, reason[:15]) == ("INCONCLUSIVE", "too little data")

    def test_digests_of_the_models_tell_them_apart(self) -> None:
        sides = [log([1] * N, TEXTS, model_digest=f"sha256:{name}") for name in "ab"]
        assert verdict(*sides)[0] == "PASS"

    def test_digests_of_the_answers_do_too(self) -> None:
        sides = [log([1] * N, TEXTS, answer_digests={"qa": name}) for name in "aab"]
        with pytest.raises(SameModelError):
            pair(*sides[:2])
        assert verdict(*sides[1:])[0] == "PASS"

    def test_one_task_of_several_is_a_note(self) -> None:
        sides = [
            SampleScores.concat([log([1] * N, TEXTS), log(scores, TEXTS, task="zz")])
            for scores in ([1] * N, [0] * N)
        ]
        paired = pair(*sides)
        assert paired.notes == ("qa: all scores and answers are the same on both sides",)
        assert not paired.doubt

    def test_answer_digests_survive_files_and_stacking(self, tmp_path: Path) -> None:
        parts = [log([1], task=t, answer_digests={t: f"sha256:{t}"}) for t in ("a", "b")]
        both = SampleScores.concat(parts)
        assert both.answer_digests == {"a": "sha256:a", "b": "sha256:b"}
        assert SampleScores.read_parquet(both.write_parquet(tmp_path / "x")).answer_digests == (
            both.answer_digests
        )


class TestCommand:
    """The same files under two names, whatever these files hold."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "in").mkdir()
        frame = pd.DataFrame({"task": "qa", "prompt_id": range(N), "score": 1})
        frame.to_csv("in/scores.csv", index=False)
        frame.to_csv("copy.csv", index=False)
        os.symlink("in/scores.csv", "link.csv")
        return tmp_path

    @pytest.mark.parametrize("other", ["in", "./in/../in/scores.csv", "link.csv"])
    @pytest.mark.usefixtures("folder")
    def test_two_names(self, other: str, capfd: pytest.CaptureFixture[str]) -> None:
        assert run(["compare", "in/scores.csv", other]) == 3
        assert "the same log" in capfd.readouterr().err
        assert run(["compare", "in/scores.csv", other, "--allow", "same-model"]) == 0

    @pytest.mark.usefixtures("folder")
    def test_a_copy_without_answers_is_never_a_pass(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["compare", "in/scores.csv", "copy.csv"]) == 2
        assert "nothing in the logs" in " ".join(capfd.readouterr().out.split())
