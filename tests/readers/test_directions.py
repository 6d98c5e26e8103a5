"""Which way a metric points: as the log says, else by its name, else it is asked for."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from log_files import lm_folder, lm_record, lm_results, write

from mlflow_degrade.core.errors import SampleSchemaError
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import ReaderNote, read_samples
from mlflow_degrade.samples.schema import higher_is_better
from mlflow_degrade.samples.table import SampleScores


def directions(scores: SampleScores) -> dict[str, bool]:
    rows = scores.table.select(["metric", "higher_is_better"]).to_pylist()
    return {row["metric"]: row["higher_is_better"] for row in rows}


class TestNames:
    @pytest.mark.parametrize(
        ("name", "higher"),
        [
            ("acc", True), ("exact_match", True), ("bleu", True), ("reward", True),
            ("certainty", True), ("answer_correctness/v1/score", True), ("score", True),
            ("loglikelihood", True), ("glossary_f1", True), ("neg_log_loss", True),
            ("perplexity", False), ("Word Perplexity", False), ("WER", False), ("eval/loss", False),
            ("bits_per_byte", False), ("edit-distance", False), ("toxicity/v1/score", False),
            ("my_loss", None), ("token_error_rate", None), ("cer_norm", None), ("ppl_64k", None),
            ("incorrect", None), ("is_wrong", None), ("failed", None), ("unsafe", None),
            ("harmfulness", None), ("total_seconds", None), ("response_time", None),
            ("missionary", True), ("timeliness", True), ("cosine_distance", None),
            ("bits_per_token", None), ("span_nll", None),
        ],
    )  # fmt: skip
    def test_known_unknown_and_unclear(self, name: str, higher: bool | None) -> None:
        assert higher_is_better(name) is higher

    def test_as_lm_eval_has_them(self) -> None:
        pytest.importorskip("lm_eval")
        import lm_eval.api.metrics  # noqa: F401  fills the registry
        from lm_eval.api import registry

        theirs = registry.HIGHER_IS_BETTER_REGISTRY
        assert len(theirs) > 15
        wrong = {
            name: higher
            for name, higher in theirs.items()
            if name != "bypass" and higher_is_better(name) is not bool(higher)
        }
        assert not wrong


class TestTables:
    def test_a_worse_perplexity_is_worse(self, tmp_path: Path) -> None:
        sides = []
        for name, value in (("a", 14.0), ("b", 15.0)):
            frame = pd.DataFrame({"id": range(3), "metric": "perplexity", "score": value})
            frame.to_csv(tmp_path / f"{name}.csv", index=False)
            sides.append(read_samples(tmp_path / f"{name}.csv"))
        assert pair(*sides).tasks[0].regressions == 3

    def test_the_name_of_the_score_column_counts(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "id,wer\n1,0.25\n2,0.5\n")
        write(tmp_path / "a.jsonl", [{"id": 1, "eval": {"wer": 0.25}}])
        for path, column in (("a.csv", "wer"), ("a.jsonl", "eval.wer")):
            assert directions(read_samples(tmp_path / path, score_column=column)) == {"wer": False}

    @pytest.mark.parametrize("name", ["perplexity", "Word Perplexity", "bits_per_byte", "wer"])
    def test_a_known_metric_alone_is_the_score(self, tmp_path: Path, name: str) -> None:
        table = write(tmp_path / "a.csv", f"id,{name},tokens\n1,12.5,3\n2,9.25,4\n")
        lines = write(tmp_path / "a.jsonl", [{"id": 1, name: 12.5}, {"id": 2, name: 9.25}])
        for path in (table, lines):
            found = read_samples(path)
            assert directions(found) == {name: False}
            assert found.table["score"].to_pylist() == [12.5, 9.25]

    def test_what_else_a_row_tells_is_no_score(self, tmp_path: Path) -> None:
        scored = write(tmp_path / "a.csv", "id,loss,correct\n1,0.5,1\n2,0.1,0\n")
        assert read_samples(scored).table["score"].to_pylist() == [1, 0]
        answered = write(tmp_path / "b.csv", "id,loss,prediction,label\n1,0.5,a,a\n2,0.1,a,b\n")
        with pytest.warns(ReaderNote, match="'prediction' is compared with 'label'"):
            assert read_samples(answered).table["score"].to_pylist() == [1, 0]
        for columns in ("latency", "my_loss", "wer,cer"):
            ones = ",1" * len(columns.split(","))
            path = write(tmp_path / "c.csv", f"id,{columns}\n1{ones}\n")
            with pytest.raises(SampleSchemaError, match="score_column="):
                read_samples(path)

    def test_what_sounds_like_a_loss_is_asked_for(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "id,metric,score\n1,my_loss,0.25\n1,acc,1\n")
        with pytest.raises(SampleSchemaError, match=r"\['my_loss'\].*higher_is_better=true or"):
            read_samples(path)
        found = directions(read_samples(path, higher_is_better="false"))
        assert found == {"my_loss": False, "acc": False}

    def test_a_column_with_gaps(self) -> None:
        rows = pd.DataFrame(
            {
                "task": "t", "doc_id": ["1", "2", "3"], "metric": ["wer", "acc", "my_loss"],
                "score": [0.5, 1, 2], "higher_is_better": [None, None, True],
            }
        )  # fmt: skip
        found = directions(SampleScores.from_pandas(rows))
        assert found == {"wer": False, "acc": True, "my_loss": True}


class TestLmEval:
    def test_results_say_it(self, tmp_path: Path) -> None:
        about = lm_results("toy", higher_is_better={"toy": {"my_loss": True, "wer": True}})
        records = [lm_record(0, {"my_loss": 1.0, "wer": 0.5, "ter": 0.5})]
        found = directions(read_samples(lm_folder(tmp_path, records, results=about)))
        assert found == {"my_loss": True, "wer": True, "ter": False}

    def test_without_results_unclear_names_are_asked_for(self, tmp_path: Path) -> None:
        about = lm_results("toy", higher_is_better={})
        folder = lm_folder(tmp_path, [lm_record(0, {"my_loss": 1.0})], results=about)
        with pytest.raises(SampleSchemaError, match=r"\['my_loss'\].*higher_is_better"):
            read_samples(folder)
        assert directions(read_samples(folder, higher_is_better=False)) == {"my_loss": False}
