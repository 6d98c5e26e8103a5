"""lm-eval output as lm-eval itself writes it, against the means that lm-eval itself computes."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlflow_degrade.core.errors import NonFiniteScoreError, SampleSchemaError, UnknownNameError
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import ReaderNote, read_samples
from mlflow_degrade.samples.table import SampleScores

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dates(lm_eval_output: Path) -> list[str]:
    files = lm_eval_output.rglob("results_*.json")
    return sorted(f.stem.removeprefix("results_") for f in files)


@pytest.fixture(scope="module")
def latest(lm_eval_output: Path, dates: list[str]) -> SampleScores:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReaderNote)
        return read_samples(lm_eval_output, date=dates[-1])


@pytest.fixture(scope="module")
def results(lm_eval_output: Path, dates: list[str]) -> dict[str, Any]:
    (file,) = lm_eval_output.rglob(f"results_{dates[-1]}.json")
    return dict(json.loads(file.read_text()))


def rows(scores: SampleScores, task: str, metric: str) -> pd.DataFrame:
    frame = scores.to_pandas()
    return frame[(frame["task"] == task) & (frame["metric"] == metric)].reset_index(drop=True)


def test_tasks_versions_and_model(latest: SampleScores) -> None:
    names = ("toy_choice", "toy_generate", "toy_lastword", "toy_rolling", "toy_yesno")
    assert latest.tasks == names
    assert latest.task_versions["toy_choice"] == "1.5"
    assert latest.task_versions["toy_generate"] == "3"
    assert latest.model == "models/dummy"
    # A local path does not say what is in it, so nothing is claimed about the content.
    assert latest.model_digest is None


def test_means_are_those_of_lm_eval(latest: SampleScores, results: dict[str, Any]) -> None:
    compared = 0
    for (task, metric, flt), mean in latest.means().items():
        theirs = results["results"][task][f"{metric},{flt}"]
        if metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
            continue
        expected = math.log(theirs) if metric == "perplexity" else theirs
        assert mean == pytest.approx(expected, abs=1e-6), (task, metric)
        compared += 1
    assert compared == 8


def test_perplexities_are_log_likelihoods_per_unit(
    latest: SampleScores, results: dict[str, Any]
) -> None:
    for metric, unit in (("word_perplexity", str.split), ("byte_perplexity", str.encode)):
        frame = rows(latest, "toy_rolling", metric)
        assert not frame["higher_is_better"].any()
        # Weighted by their lengths they give the figure that lm-eval reports.
        weights = frame["target"].map(lambda text, unit=unit: len(unit(text)))
        if metric == "word_perplexity":
            # lm-eval counts words by splitting at each blank, so a trailing one adds a word.
            weights = frame["target"].map(lambda text: len(text.split(" ")))
        mean = (frame["score"] * weights).sum() / weights.sum()
        reported = results["results"]["toy_rolling"][f"{metric},none"]
        assert math.exp(mean) == pytest.approx(reported, rel=1e-9)
    bits = rows(latest, "toy_rolling", "bits_per_byte")["score"]
    nats = rows(latest, "toy_rolling", "byte_perplexity")["score"]
    assert (bits * math.log(2)).tolist() == pytest.approx(nats.tolist())


def test_directions(latest: SampleScores) -> None:
    frame = latest.to_pandas()
    found = frame.groupby("metric")["higher_is_better"].agg(["min", "max"])
    assert (found["min"] == found["max"]).all()
    assert set(found.index[found["min"]]) == {"acc", "acc_norm", "exact_match"}


def test_last_word_perplexity_points_the_right_way(latest: SampleScores) -> None:
    # lm-eval logs the log-likelihood, of which more is better, and calls it perplexity.
    frame = rows(latest, "toy_lastword", "perplexity")
    assert (frame["score"] > 0).all()
    assert not frame["higher_is_better"].any()


def test_filters_of_one_document_are_rows_of_their_own(latest: SampleScores) -> None:
    frame = rows(latest, "toy_generate", "exact_match")
    assert frame.groupby("filter").size().to_dict() == {"flexible-extract": 10, "strict-match": 10}
    by_filter = frame.groupby(["filter", "response"])["score"].sum().to_dict()
    assert by_filter == {("flexible-extract", "LOL"): 5.0, ("strict-match", "lol"): 5.0}


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_the_answer_is_right_where_the_metric_says_so(latest: SampleScores, metric: str) -> None:
    frame = rows(latest, "toy_choice", metric)
    first_choice = frame["prompt"].str.extract(r"(\d+)\?")[0].astype(int).add(1).astype(str)
    assert ((frame["response"] == first_choice) == (frame["score"] == 1)).all()


def test_answers_people_can_read(latest: SampleScores) -> None:
    frame = rows(latest, "toy_choice", "acc")
    assert frame["prompt"][3].startswith("What comes after number 3?")
    # The target is what the task's doc_to_target gives: here the index of the choice.
    assert set(frame["target"]) == {"0"}
    right = frame["response"] == frame["prompt"].str.extract(r"(\d+)\?")[0].astype(int).add(
        1
    ).astype(str)
    assert (right == (frame["score"] == 1)).all()


def test_metrics_without_a_score_per_sample_are_left_out_and_named(
    lm_eval_output: Path, dates: list[str]
) -> None:
    with pytest.warns(ReaderNote, match="toy_yesno/f1") as caught:
        scores = read_samples(lm_eval_output, date=dates[-1])
    assert len(caught) == 1
    assert scores.metrics("toy_yesno") == ("acc",)


def test_groups_and_prompt_length_are_features(latest: SampleScores) -> None:
    frame = latest.to_pandas()
    groups = frame.groupby("task")["feature.group"].first()
    assert groups.dropna().to_dict() == dict.fromkeys(
        ["toy_choice", "toy_generate", "toy_yesno"], "everything"
    )
    prompts = frame[frame["task"] == "toy_choice"]
    assert (prompts["feature.prompt_chars"] == prompts["prompt"].str.len()).all()


def test_features_from_the_documents(lm_eval_output: Path, dates: list[str]) -> None:
    with pytest.warns(ReaderNote):
        scores = read_samples(lm_eval_output, date=dates[0], features="topic,digits")
    frame = scores.to_pandas()
    assert set(frame["feature.topic"]) == {"odd", "even"}
    assert frame["feature.digits"].tolist() == [1.0] * len(frame)
    with pytest.raises(SampleSchemaError, match=r"has no 'subject'; it has \['answer', 'choices'"):
        read_samples(lm_eval_output, date=dates[0], features=["subject"])


class TestSeveralRuns:
    def test_the_latest_is_taken_and_said(
        self, lm_eval_output: Path, latest: SampleScores, dates: list[str]
    ) -> None:
        assert len(dates) == 2
        with pytest.warns(ReaderNote) as caught:
            scores = read_samples(lm_eval_output)
        notes = [str(warning.message) for warning in caught]
        assert len(notes) == 2
        assert "several runs of toy_choice (1)" in notes[0]
        assert "date=" in notes[0]
        assert scores.digest() == latest.digest()

    def test_or_one_by_its_date(
        self, lm_eval_output: Path, latest: SampleScores, dates: list[str]
    ) -> None:
        with pytest.warns(ReaderNote):
            first = read_samples(lm_eval_output, date=dates[0])
        assert first.digest() != latest.digest()
        with pytest.raises(SampleSchemaError, match=dates[0]):
            read_samples(lm_eval_output, date="1999")

    def test_or_all_as_repeats(self, lm_eval_output: Path) -> None:
        with pytest.warns(ReaderNote, match="f1"):
            scores = read_samples(lm_eval_output, repeats="true")
        assert scores.to_pandas().groupby("repeat").size().tolist() == [110, 110]
        filters = {"toy_generate": "strict-match"}
        paired = pair(scores, scores, filter=filters, allow=["same-model"])
        assert {(t.n, t.repeats) for t in paired.tasks} == {(10, 2)}

    def test_but_not_of_different_models(self, lm_eval_output: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(lm_eval_output, tmp_path / "out")
        newest = max(copy.rglob("results_*.json"))
        about = json.loads(newest.read_text())
        about["config"]["model_args"] = "pretrained=models/dummy,dtype=float16"
        newest.write_text(json.dumps(about))
        with pytest.raises(SampleSchemaError, match=r"different models or settings.*float16"):
            read_samples(copy, repeats=True)

    def test_one_of_several_models_by_its_name(self, lm_eval_output: Path, tmp_path: Path) -> None:
        (model,) = (d for d in lm_eval_output.iterdir() if d.is_dir())
        for name in ("one", "two"):
            copy = shutil.copytree(model, tmp_path / name)
            for file in copy.glob("results_*.json"):
                about = json.loads(file.read_text())
                file.write_text(json.dumps({**about, "model_name": f"org/{name}"}))
        with pytest.raises(SampleSchemaError, match=r"models \['org/one', 'org/two'\]"):
            read_samples(tmp_path)
        with pytest.warns(ReaderNote):
            assert read_samples(tmp_path, model="org/two").model == "org/two"
        with pytest.raises(UnknownNameError, match="did you mean 'org/two'"):
            read_samples(tmp_path, model="org/tow")

    def test_nor_of_several_directories(self, lm_eval_output: Path, tmp_path: Path) -> None:
        (model,) = (d for d in lm_eval_output.iterdir() if d.is_dir())
        for name in ("one", "two"):
            shutil.copytree(model, tmp_path / name)
        with pytest.raises(SampleSchemaError, match=r"samples of 2 models.*one.*two"):
            read_samples(tmp_path)


class TestUnusualOutput:
    @pytest.fixture
    def copy(self, lm_eval_output: Path, dates: list[str], tmp_path: Path) -> Path:
        """The latest run alone."""
        for file in lm_eval_output.rglob(f"*{dates[-1]}*"):
            shutil.copy(file, tmp_path)
        return tmp_path

    def samples(self, folder: Path, task: str) -> Path:
        (file,) = folder.glob(f"samples_{task}_*.jsonl")
        return file

    def edit(self, file: Path, **changes: Any) -> None:
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            for key, value in changes.items():
                record.pop(key) if value is ... else record.update({key: value})
        file.write_text("\n".join(map(json.dumps, records)) + "\n")

    def test_one_task_alone(self, copy: Path, latest: SampleScores) -> None:
        scores = read_samples(self.samples(copy, "toy_choice"))
        assert scores.digest() == latest.select(tasks=["toy_choice"]).digest()

    def test_without_results_the_names_decide(self, copy: Path, latest: SampleScores) -> None:
        for file in copy.glob("results_*.json"):
            file.unlink()
        with pytest.warns(ReaderNote) as caught:
            scores = read_samples(copy)
        assert "higher is better is taken from the metrics' names" in str(caught[0].message)
        assert scores.digest() == latest.digest()
        assert scores.task_versions == {}

    def test_older_records_without_lists_and_hashes(self, copy: Path) -> None:
        file = self.samples(copy, "toy_choice")
        arguments = [["Q", " 1"], ["Q", " 2"], ["Q", " x"]]
        self.edit(file, metrics=..., doc_hash=..., prompt_hash=..., filter=..., arguments=arguments)
        frame = read_samples(file).to_pandas()
        assert set(frame["metric"]) == {"acc", "acc_norm", "brier_score"}
        assert set(frame["filter"]) == {"none"}
        assert frame["doc_hash"].nunique() == 10
        assert frame["prompt_hash"].nunique() == 1
        assert frame["prompt"].eq("Q").all()

    def test_a_line_cut_short_is_an_error_with_its_number(self, copy: Path) -> None:
        file = self.samples(copy, "toy_yesno")
        file.write_text(file.read_text()[:-40])
        with pytest.raises(SampleSchemaError, match=r"toy_yesno.*line 10: not JSON.*cut short"):
            read_samples(copy)

    def test_a_score_that_is_not_a_number(self, copy: Path) -> None:
        self.edit(self.samples(copy, "toy_yesno"), acc=math.nan, metrics=["acc"])
        with pytest.raises(NonFiniteScoreError, match="toy_yesno"):
            read_samples(self.samples(copy, "toy_yesno"))

    def test_a_document_without_words_is_unscored(self, copy: Path) -> None:
        file = self.samples(copy, "toy_rolling")
        self.edit(file, word_perplexity=[-3.0, 0])
        frame = read_samples(file).to_pandas()
        unscored = frame["score"].isna()
        assert set(frame["metric"][unscored]) == {"word_perplexity"}

    def test_other_records_are_refused(self, copy: Path) -> None:
        self.edit(self.samples(copy, "toy_yesno"), doc_id=...)
        with pytest.raises(SampleSchemaError, match="without doc_id"):
            read_samples(copy)

    def test_unknown_options(self, copy: Path) -> None:
        known = "Known: date, features, higher_is_better, missing, model, repeats"
        with pytest.raises(UnknownNameError, match=known):
            read_samples(copy, id_column="x")

    def test_the_revision_of_a_hub_model_identifies_it(self, copy: Path) -> None:
        (file,) = copy.glob("results_*.json")
        about = json.loads(file.read_text())
        about["config"]["model_sha"] = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
        file.write_text(json.dumps(about))
        digest = read_samples(self.samples(copy, "toy_choice")).model_digest
        assert digest is not None
        assert digest.startswith("sha256:")
