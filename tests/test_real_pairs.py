"""Pairing: real results of models and quantized versions, against their published summaries."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from pairing_cases import only

from mlflow_degrade.core.errors import DuplicateSampleError
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.table import SampleScores

PAIRS = Path(__file__).parents[2] / "shared" / "data" / "pairs"
needs_real_pairs = pytest.mark.skipif(
    not PAIRS.is_dir(), reason="the real result pairs are not beside this checkout"
)


def read_lines(name: str) -> pd.DataFrame:
    lines = (PAIRS / name).read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


def from_arm(frame: pd.DataFrame, arm: str) -> SampleScores:
    columns = {"example_id": "doc_id", "gold": "target", "output": "response"}
    renamed = frame.rename(columns=columns)[["task", "doc_id", "score", "response"]]
    return SampleScores.from_pandas(renamed.assign(metric="acc"), model_digest=arm)


@needs_real_pairs
class TestRealPairs:
    @pytest.mark.parametrize("task", ["mmlu", "extraction"])
    @pytest.mark.parametrize("arm", ["q8_0", "q4_K_M"])
    def test_llama_quantized(self, task: str, arm: str) -> None:
        frames = [read_lines(f"kristenmartino/{task}_{a}.jsonl") for a in ("fp16", arm)]
        left, right = (from_arm(f, a) for f, a in zip(frames, ("fp16", arm), strict=True))
        repeated = int(frames[0]["example_id"].duplicated().sum())
        if repeated:
            with pytest.raises(DuplicateSampleError, match=f"{repeated} samples"):
                pair(left, right)
        for frame in frames:
            frame["copy"] = frame.groupby("example_id").cumcount()
        joined = frames[0].merge(frames[1], on=["example_id", "copy"], validate="one_to_one")
        found = only(left, right, allow=["duplicates"])
        assert found.n == len(joined)
        assert found.duplicates == repeated
        assert found.regressions == (joined["score_x"] > joined["score_y"]).sum() > 0
        assert found.improvements == (joined["score_x"] < joined["score_y"]).sum()
        # Two answers to one document are no two independent outcomes.
        assert found.binary == (task == "mmlu" and not repeated)
        change = (joined["score_y"] - joined["score_x"]).sum()
        assert found.difference.sum() == pytest.approx(change, abs=1e-9)

    def test_mmlu_matches_the_published_summary(self) -> None:
        # Their summary drops the duplicated id: 499 pairs.
        published = json.loads((PAIRS / "kristenmartino/summary.json").read_text())
        diffs = next(s for s in published if s["task"] == "mmlu")["pairwise_diffs"]
        expected = next(d for d in diffs if (d["arm_a"], d["arm_b"]) == ("fp16", "q4_K_M"))
        frames = [
            read_lines(f"kristenmartino/mmlu_{a}.jsonl").drop_duplicates("example_id")
            for a in ("fp16", "q4_K_M")
        ]
        task = only(from_arm(frames[0], "fp16"), from_arm(frames[1], "q4_K_M"))
        assert task.n == expected["n_pairs"]
        assert -task.difference.mean() == pytest.approx(expected["diff"], abs=1e-12)

    @pytest.mark.parametrize("candidate", ["6b_verification", "175b_finetuning"])
    def test_gsm8k_models(self, candidate: str) -> None:
        frame = read_lines("gsm8k_openai_models/example_model_solutions.jsonl")

        def side(model: str) -> SampleScores:
            columns = {
                "task": "gsm8k",
                "doc_id": range(len(frame)),
                "doc_hash": [hashlib.sha256(q.encode()).hexdigest() for q in frame["question"]],
                "metric": "exact_match",
                "score": [answer["is_correct"] for answer in frame[model]],
            }
            return SampleScores.from_pandas(pd.DataFrame(columns), model_digest=model)

        task = only(side("6b_finetuning"), side(candidate))
        before = frame["6b_finetuning"].map(lambda answer: answer["is_correct"])
        after = frame[candidate].map(lambda answer: answer["is_correct"])
        assert task.n == len(frame) == 1319
        assert task.regressions == (before & ~after).sum()
        assert task.improvements == (~before & after).sum()
        assert task.binary
