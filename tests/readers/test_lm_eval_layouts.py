"""Layouts of lm-eval's versions and calls: read, or named as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from log_files import DATE, lm_folder, lm_record, lm_results, write

from mlflow_degrade.core.errors import EmptySamplesError, SampleSchemaError, UnpairedSamplesError
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import ReaderNote, read_samples

LATER = DATE.replace("2025-03-01", "2025-03-02")


def records(*scores: int, **changes: Any) -> list[dict[str, Any]]:
    return [lm_record(i, {"acc": score}, **changes) for i, score in enumerate(scores)]


class TestFiles:
    def test_compressed(self, tmp_path: Path) -> None:
        plain = read_samples(lm_folder(tmp_path / "a", records(1, 0)))
        folder = lm_folder(tmp_path / "b", records(1, 0), compressed=True)
        assert read_samples(folder).digest() == plain.digest()
        (file,) = folder.glob("*.gz")
        assert read_samples(file).digest() == plain.digest()

    def test_arrays_of_version_0_4_0(self, tmp_path: Path) -> None:
        old = dict.fromkeys(("doc_hash", "prompt_hash", "target_hash", "metrics", "filter"), ...)
        array = json.dumps(records(1, 0, **old), indent=2)
        write(tmp_path / "pretrained=org__m_toy_easy.jsonl", array)
        about = {"results": {"toy_easy": {}, "easy": {}}, "versions": {"toy_easy": 1.0}}
        config = {"model_args": "pretrained=org/m,dtype=float16"}
        write(tmp_path / "results.json", {**about, "config": config})
        scores = read_samples(tmp_path)
        assert (scores.tasks, scores.model) == (("toy_easy",), "org/m")
        assert scores.task_versions == {"toy_easy": "1.0"}
        now = read_samples(lm_folder(tmp_path / "now", records(1, 0), task="toy_easy"))
        assert pair(scores, now, allow=["same-model"]).tasks[0].n == 2

    def test_write_outs_of_version_0_3(self, tmp_path: Path) -> None:
        lines = [
            {"doc_id": i, "prompt_0": f"Q {i}", "logit_0": -1.5, "prompt_1": f"Q {i}",
             "logit_1": -2, "truth": "1", "acc": acc, "acc_norm": "0.0"}
            for i, acc in enumerate(("1.0", "0.0"))
        ]  # fmt: skip
        write(tmp_path / "hellaswag_write_out_info.json", lines)
        scores = read_samples(tmp_path)
        assert scores.metrics("hellaswag") == ("acc", "acc_norm")
        assert scores.means()["hellaswag", "acc", "none"] == 0.5
        assert scores.table["prompt"].to_pylist()[::2] == ["Q 0", "Q 1"]


class TestNoScores:
    def test_predictions_only(self, tmp_path: Path) -> None:
        lines = [lm_record(i, {"bypass": 999}) for i in range(2)]
        with pytest.raises(EmptySamplesError, match="predictions only, no scores"):
            read_samples(lm_folder(tmp_path, lines))

    @pytest.mark.parametrize(
        ("facts", "message"),
        [
            (
                {"n-samples": {"toy": {"original": 9, "effective": 1319}}},
                "1319 samples of toy .* pp",
            ),
            (
                {"results": {"toy": {"acc,none": 0.5, "acc_stderr,none": 0.05}}},
                "101 samples of toy",
            ),
            ({"n-samples": {}}, "^there are no samples here"),
        ],
    )
    def test_totals_only(self, tmp_path: Path, facts: dict[str, Any], message: str) -> None:
        for name in (f"results_{DATE}.json", f"fp16_{DATE}.json"):
            path = write(tmp_path / name, lm_results("toy", **facts))
            for reference in (path, tmp_path):
                with pytest.raises(EmptySamplesError, match=message) as error:
                    read_samples(reference)
                assert "--log_samples" in str(error.value)
                assert "mlflow-degrade plan" in str(error.value)

    def test_a_metric_that_is_listed_and_absent(self, tmp_path: Path) -> None:
        lines = records(1, 0, 1)
        del lines[2]["acc"]
        folder = lm_folder(tmp_path, lines)
        with pytest.raises(SampleSchemaError, match=r"1 records list the metric 'acc'.*\['2'\]"):
            read_samples(folder)
        assert read_samples(folder, missing="unscored").table["score"].to_pylist() == [1, 0, None]
        lines[2]["acc"] = None
        scores = read_samples(lm_folder(tmp_path / "null", lines))
        assert scores.table["score"].to_pylist() == [1, 0, None]


class TestRunsInFolders:
    def seeds(self, folder: Path, *runs: tuple[str, int, str], model: str = "org/m") -> Path:
        for name, score, date in runs:
            about = lm_results("toy", model)
            lm_folder(folder / name / "org__m", records(score, 1), date=date, results=about)
        return folder

    def test_seeds_are_repeats(self, tmp_path: Path) -> None:
        folder = self.seeds(tmp_path, ("seed1", 1, DATE), ("seed2", 0, LATER))
        with pytest.warns(ReaderNote, match=r"one model in several folders: toy \(2\)"):
            scores = read_samples(folder)
        task = pair(scores, scores, allow=["same-model"]).tasks[0]
        assert (task.n, task.repeats, task.baseline.tolist()) == (2, 2, [0.5, 1.0])

    def test_seeds_by_what_lm_eval_states(self, tmp_path: Path) -> None:
        for name, seed, date in (("x", 1, DATE), ("y", 2, LATER)):
            about = lm_results("toy", "org/m")
            about["config"]["random_seed"] = seed
            lm_folder(tmp_path / name, records(1, 0), date=date, results=about)
        with pytest.warns(ReaderNote, match="several folders"):
            assert len(read_samples(tmp_path)) == 4

    def test_other_folders_are_not(self, tmp_path: Path) -> None:
        folder = self.seeds(tmp_path, ("fp16", 1, DATE), ("int8", 0, LATER))
        with pytest.raises(SampleSchemaError, match=r"2 models, or of one.*repeats=true"):
            read_samples(folder)
        with pytest.warns(ReaderNote, match="several folders"):
            assert len(read_samples(folder, repeats="true")) == 4

    def test_nor_are_copies(self, tmp_path: Path) -> None:
        folder = self.seeds(tmp_path, ("run1", 1, DATE), ("run2", 1, DATE))
        with pytest.raises(SampleSchemaError, match="one model several times"):
            read_samples(folder, repeats="true")

    def test_another_number_of_runs(self, tmp_path: Path) -> None:
        two = self.seeds(tmp_path / "a", ("seed1", 1, DATE), ("seed2", 0, LATER))
        one = self.seeds(tmp_path / "b", ("seed1", 0, DATE))
        with pytest.warns(ReaderNote):
            sides = read_samples(two), read_samples(one)
        with pytest.raises(UnpairedSamplesError, match=r"up to 2 runs .* baseline, 1 in the cand"):
            pair(*sides)
        assert pair(*sides, allow=["unpaired"]).tasks[0].n == 2


def test_a_part_of_a_group_is_said(tmp_path: Path) -> None:
    groups = {"all": ["sub"], "sub": ["toy", "toy2", "toy3"], "toy": []}
    about = lm_results("toy", group_subtasks=groups)
    for task in ("toy", "toy2"):
        lm_folder(tmp_path, records(1), task=task, results=about)
    with pytest.warns(ReaderNote, match=r"2 of the 3 tasks of group 'sub'; without: toy3"):
        read_samples(tmp_path)


@pytest.mark.parametrize(
    ("metrics", "first"),
    [
        (["bits_per_byte", "byte_perplexity", "word_perplexity"], "word_perplexity"),
        (["prompt_level_loose_acc", "prompt_level_strict_acc"], "prompt_level_strict_acc"),
    ],
)
def test_the_metric_that_lm_eval_shows_first(
    tmp_path: Path, metrics: list[str], first: str
) -> None:
    values = {m: [-3.0, 2] if "level" not in m else 1 for m in metrics}
    about = lm_results("toy", metrics=metrics)
    scores = read_samples(lm_folder(tmp_path, [lm_record(0, values)], results=about))
    assert pair(scores, scores, allow=["same-model"]).tasks[0].metric == first
