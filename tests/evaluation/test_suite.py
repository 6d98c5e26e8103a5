"""Tasks are found fast, refused clearly, and drawn from the same way everywhere."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_tasks import ALL, choice_items, write_choice_task, write_task

from mlflow_degrade.core.errors import InputError, UnknownNameError
from mlflow_degrade.evaluation import task_fit
from mlflow_degrade.evaluation.suite import draw, load_suite


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 5))
def test_a_smaller_limit_draws_a_subset(available: int, limit: int, seed: int) -> None:
    few, more = (draw("task", available, n, seed) for n in (limit, limit + 7))
    assert len(few) == min(limit, available)
    assert set(few) <= set(more) <= set(range(available))
    assert list(few) == sorted(few)


def test_the_draw_depends_on_seed_and_task_alone() -> None:
    # Stored numbers: they may not change between versions, or old evaluations would not be found.
    assert draw("qa", 1000, 5, 0) == (28, 259, 524, 675, 708)
    assert draw("qa", 1000, 5, 1) != draw("qa", 1000, 5, 0) != draw("other", 1000, 5, 0)


def test_groups_and_tasks_of_ones_own(task_folder: Path) -> None:
    suite = load_suite(["tiny"], include_path=task_folder, limit=5)
    assert tuple(task.name for task in suite.tasks) == ALL
    assert [len(task.indices) for task in suite.tasks] == [5, 5, 4, 5]
    assert suite.documents == 19
    assert suite.generates
    assert suite.versions["tiny_choice"] == "1.0"
    alone = load_suite(["tiny_choice"], include_path=task_folder, limit=5)
    assert alone.tasks[0].digest == suite.tasks[0].digest
    assert not alone.generates


def test_unknown_tasks_are_refused_within_seconds(task_folder: Path) -> None:
    start = time.process_time()
    with pytest.raises(UnknownNameError, match="did you mean 'tiny_choice'"):
        load_suite(["tiny_chioce"], include_path=task_folder)
    with pytest.raises(UnknownNameError, match="'arc_easy'"):
        load_suite(["arc_esy"])
    # Lm-eval's own index alone takes more than this.
    assert time.process_time() - start < 8


def test_a_data_set_that_cannot_be_reached_is_a_clear_error(tmp_path: Path) -> None:
    path = write_choice_task(tmp_path, "elsewhere")
    text = path.read_text().replace("elsewhere.jsonl", "nowhere.jsonl")
    path.write_text(text)
    with pytest.raises(InputError, match=r"task 'elsewhere' cannot be loaded .*nowhere\.jsonl"):
        load_suite(["elsewhere"], include_path=tmp_path)


def test_tasks_without_samples_are_refused(tmp_path: Path) -> None:
    write_choice_task(tmp_path, "all_filtered", process_docs="!function none.none")
    (tmp_path / "none.py").write_text("def none(docs):\n    return docs.select([])\n")
    path = tmp_path / "all_filtered.yaml"
    path.write_text(path.read_text().replace("'!function none.none'", "!function none.none"))
    with pytest.raises(InputError, match="no samples"):
        load_suite(["all_filtered"], include_path=tmp_path)


def test_a_task_without_test_split_is_refused(tmp_path: Path) -> None:
    write_choice_task(tmp_path, "no_split", test_split=None)
    with pytest.raises(InputError, match="no_split"):
        load_suite(["no_split"], include_path=tmp_path)


@pytest.mark.parametrize("limit", [0, -3])
def test_a_bad_limit_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match="limit"):
        load_suite(["starter"], limit=limit)


def test_nothing_to_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no task"):
        load_suite([])
    with pytest.raises(InputError, match="not a directory"):
        load_suite(["starter"], include_path=tmp_path / "absent")


def test_the_digest_follows_content_not_place(tmp_path: Path) -> None:
    def digest(place: str, **changes: object) -> str:
        items = choice_items()
        items[0].update(changes)
        write_choice_task(tmp_path / place, "task", items=items)
        return load_suite(["task"], include_path=tmp_path / place).digest

    first = digest("here")
    assert digest("there") == first
    assert digest("changed", question="What else?") != first
    write_choice_task(tmp_path / "worded", "task", doc_to_text="Q: {{question}}")
    assert load_suite(["task"], include_path=tmp_path / "worded").digest != first


def test_few_shot_examples_change_the_digest_and_are_hashed(tmp_path: Path) -> None:
    def digest(place: str, shots: int, extra: str) -> str:
        folder = tmp_path / place
        path = write_choice_task(folder, "task", fewshot_split="train")
        write_task(folder, "data", [{**item, "question": extra} for item in choice_items(6)])
        (folder / "data.yaml").unlink()
        text = path.read_text().replace("test: ", f"train: {folder / 'data.jsonl'}\n    test: ")
        path.write_text(text)
        return load_suite(["task"], include_path=folder, num_fewshot=shots).digest

    assert digest("a", 2, "x") == digest("b", 2, "x")
    assert digest("c", 2, "y") != digest("a", 2, "x")
    assert digest("a", 0, "x") != digest("a", 2, "x")
    assert digest("a", 0, "x") == digest("c", 0, "y")


class TestMetricsThatDoNotFit:
    """They are refused when the task is read, before a model is asked anything."""

    def write(self, folder: Path, kind: str, *metrics: str, **config: object) -> Path:
        items = [{"q": "1 + 1 =", "a": "2", "c": ["2", "3"], "i": 0}]
        fields = {"doc_to_text": "q", "doc_to_target": "a"}
        if kind == "multiple_choice":
            fields |= {"doc_to_choice": "c", "doc_to_target": "i"}
        named = [{"metric": metric} for metric in metrics]
        write_task(folder, "mine", items, output_type=kind, metric_list=named, **fields, **config)
        return folder

    @pytest.mark.parametrize(
        ("kind", "metrics", "message"),
        [
            ("generate_until", ("exact_match", "f1"), r"\['f1'\] do not fit .* generate_until"),
            ("generate_until", ("acc",), r"\['acc'\] do not fit"),
            ("generate_until", ("bleu",), "over a whole task .* exact_match"),
            ("multiple_choice", ("acc", "bleu"), r"\['bleu'\] do not fit .*what fits: acc, "),
            ("multiple_choice", ("f1", "mcc"), "over a whole task"),
            ("loglikelihood", ("acc_norm", "acc"), r"\['acc_norm'\] do not fit"),
        ],
    )
    def test_refused(
        self, tmp_path: Path, kind: str, metrics: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(InputError, match="task 'mine': the metrics.*" + message):
            load_suite(["mine"], include_path=self.write(tmp_path, kind, *metrics))

    @pytest.mark.parametrize(
        ("kind", "metrics"),
        [
            ("generate_until", ("exact_match", "bleu")),
            ("multiple_choice", ("acc", "f1", "exact_match")),
            ("loglikelihood", ("perplexity", "acc")),
        ],
    )
    def test_accepted(self, tmp_path: Path, kind: str, metrics: tuple[str, ...]) -> None:
        assert load_suite(["mine"], include_path=self.write(tmp_path, kind, *metrics)).documents

    def test_directions_that_nobody_states(self) -> None:
        class Odd:
            def higher_is_better(self) -> dict[str, bool | None]:
                return {"acc": True, "my_score": None, "my_loss": None}

        with pytest.raises(InputError, match=r"\['my_loss'\].*higher_is_better"):
            task_fit.refuse_unfit_metrics("mine", Odd())

    def test_the_lists_are_those_of_lm_eval(self) -> None:
        # Whatever lm-eval has registered for texts is not refused there, and the reverse.
        import lm_eval.api.metrics  # noqa: F401  fills the registry
        from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

        for kind, names in DEFAULT_METRIC_REGISTRY.items():
            if kind != "generate_until":
                assert set(names) <= task_fit._PER_SAMPLE[kind]
            else:
                assert not set(names) & task_fit._NOT_OF_TEXTS
