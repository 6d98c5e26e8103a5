"""What is not paired: every refusal with its message and its remedy."""

from __future__ import annotations

from typing import Any

import pytest
from pairing_cases import only, table

from mlflow_degrade.core.errors import (
    DuplicateSampleError,
    MetricMismatchError,
    PairingError,
    PromptMismatchError,
    SameModelError,
    TaskVersionError,
    UnknownNameError,
    UnpairedSamplesError,
)
from mlflow_degrade.samples.pairing import ALLOWABLE, pair
from mlflow_degrade.samples.table import SampleScores


class TestDuplicates:
    def test_ids_tell_copies_of_a_document_apart(self) -> None:
        same = {"doc_hash": ["x", "x", "y"]}
        task = only(table([1, 0, 1], **same), table([0, 0, 1], "b", **same))
        assert (task.n, task.duplicates) == (3, 1)
        assert task.difference.tolist() == [-1, 0, 0]

    def test_a_repeated_key_is_refused(self) -> None:
        ids = {"doc_id": ["7", "8", "7"]}
        with pytest.raises(DuplicateSampleError, match=r"1 samples of the baseline .*\['7'\]") as e:
            pair(table([1, 0, 1], **ids), table([1, 1, 1], "b", **ids))
        assert "allow 'duplicates'" in str(e.value)

    def test_on_one_side_only(self) -> None:
        with pytest.raises(DuplicateSampleError, match="1 samples of the candidate"):
            pair(table([1, 0]), table([1, 0, 1], "b", doc_id=["0", "1", "1"]))

    def test_allowed_they_are_matched_in_order(self) -> None:
        ids = {"doc_id": ["7", "8", "7"]}
        paired = pair(table([1, 0, 0], **ids), table([0, 0, 0], "b", **ids), allow=["duplicates"])
        (task,) = paired.tasks
        assert (task.n, task.duplicates, task.repeats) == (3, 1, 1)
        assert task.difference.tolist() == [-1, 0, 0]
        assert paired.notes == ("qa: 1 samples with a repeated id are matched in file order",)

    def test_in_file_order_also_among_many_interleaved_tasks(self) -> None:
        # Three tasks in turn; each id of a task occurs twice, first right and then wrong.
        ids = {"task": ["c", "a", "b"] * 200, "doc_id": [i // 3 % 100 for i in range(600)]}
        left = table([1] * 300 + [0] * 300, **ids)
        right = table([1] * 300 + [1] * 300, "b", **ids)
        for task in pair(left, right, allow=["duplicates"]).tasks:
            assert task.difference.tolist() == [0] * 100 + [1] * 100

    def test_allowed_with_another_count_on_the_other_side(self) -> None:
        left = table([1, 0, 1], doc_id=["7", "8", "7"])
        right = table([1, 0], "b", doc_id=["7", "8"])
        with pytest.raises(UnpairedSamplesError, match="1 samples only in the baseline"):
            pair(left, right, allow=["duplicates"])
        assert pair(left, right, allow=["duplicates", "unpaired"]).n == 2


class TestUnpaired:
    def test_samples_on_one_side(self) -> None:
        right = table([1, 0, 1], "b", doc_id=["1", "2", "9"])
        with pytest.raises(UnpairedSamplesError) as error:
            pair(table([1, 0, 1]), right)
        text = str(error.value)
        assert "1 samples only in the baseline (doc_ids ['0'])" in text
        assert "1 only in the candidate (doc_ids ['9']), 2 in both" in text
        assert "allow 'unpaired'" in text
        task = only(table([1, 0, 1]), right, allow=["unpaired"])
        assert task.n == 2

    @pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
    def test_a_sample_too_many(self, order: list[int]) -> None:
        more = SampleScores(table([1, 0, 1], "b").table.take(order))
        with pytest.raises(UnpairedSamplesError, match=r"0 samples only.*1 only in the candidate"):
            pair(table([1, 0]), more)
        with pytest.raises(UnpairedSamplesError, match=r"1 samples only.*0 only in the candidate"):
            pair(more, table([1, 0]))

    def test_the_same_documents_in_other_tasks(self) -> None:
        hashes = ["x", "y", "z"]
        left = table([1, 0, 1], task=["a", "a", "b"], doc_hash=hashes)
        right = table([1, 0, 1], "b", task=["a", "b", "b"], doc_hash=hashes)
        with pytest.raises(UnpairedSamplesError, match="1 samples only in the baseline"):
            pair(left, right)

    def test_the_same_documents_with_other_metrics(self) -> None:
        ids = {"doc_id": ["1", "2", "3"], "doc_hash": ["x", "y", "z"]}
        left = table([1, 0, 1], metric=["acc", "acc", "f1"], **ids)
        right = table([1, 0, 1], "b", metric=["acc", "f1", "f1"], **ids)
        with pytest.raises(UnpairedSamplesError, match="1 samples only in the baseline"):
            pair(left, right)

    def test_nothing_in_common_cannot_be_allowed(self) -> None:
        right = table([1, 0], "b", doc_id=["8", "9"])
        with pytest.raises(UnpairedSamplesError, match="0 in both") as error:
            pair(table([1, 0]), right, allow=["unpaired"])
        assert "allow" not in str(error.value)

    def test_tasks_on_one_side(self) -> None:
        more = SampleScores.concat([table([1, 0]), table([1, 0], task="arc")])
        with pytest.raises(UnpairedSamplesError, match=r"baseline only: \['arc'\]"):
            pair(more, table([1, 1], "b"))
        paired = pair(more, table([1, 1], "b"), allow=["unpaired"])
        assert [t.name for t in paired.tasks] == ["qa"]
        assert "arc" in paired.notes[0]
        with pytest.raises(UnpairedSamplesError, match="the tasks differ"):
            pair(table([1], task="x"), table([1], "b", task="y"), allow=["unpaired"])


class TestDifferentTests:
    @pytest.mark.parametrize(
        ("column", "allowance"), [("prompt_hash", "prompts"), ("target_hash", "targets")]
    )
    def test_prompts_and_targets(self, column: str, allowance: str) -> None:
        left, right = table([1, 0, 1], **{column: list("pqr")}), table([1, 0, 1], "b")
        # Not recorded on one side: nothing to compare.
        assert pair(left, right).n == 3
        right = table([1, 0, 1], "b", **{column: ["p", "Q", None]})
        with pytest.raises(PromptMismatchError, match=rf"1 of 3 .*{allowance}.*\['1'\]") as error:
            pair(left, right)
        assert f"allow '{allowance}'" in str(error.value)
        paired = pair(left, right, allow=[allowance])
        assert paired.notes == (f"qa: 1 samples have different {allowance}",)
        assert paired.allowed == (allowance,)

    def test_prompts_of_samples_that_need_a_join(self) -> None:
        # Copies, repeated runs, and documents in another order than their ids.
        shapes: list[dict[str, Any]] = [
            {"doc_hash": ["x", "x", "y"]},
            {"doc_id": ["1", "1", "2"], "repeat": [0, 1, 0]},
        ]
        for columns in shapes:
            left = table([1, 0, 1], prompt_hash=list("pqr"), **columns)
            right = table([1, 0, 1], "b", prompt_hash=list("pQr"), **columns)
            with pytest.raises(PromptMismatchError, match="1 of 3 samples"):
                pair(left, right)
        left = table([1, 0], doc_hash=["x", "y"], prompt_hash=["p", "q"])
        right = table([1, 0], "b", doc_hash=["y", "x"], prompt_hash=["p", "q"])
        with pytest.raises(PromptMismatchError, match="2 of 2 samples"):
            pair(left, right)

    def test_versions(self) -> None:
        def version(model: str, number: str) -> SampleScores:
            rows = table([1, 0], model).table
            return SampleScores.from_table(rows, model_digest=model, task_versions={"qa": number})

        with pytest.raises(TaskVersionError, match=r"\{'qa': \('1.0', '2.0'\)\}.*'task-versions'"):
            pair(version("a", "1.0"), version("b", "2.0"))
        assert pair(version("a", "1.0"), version("b", "2.0"), allow=["task-versions"]).notes
        assert not pair(version("a", "1.0"), table([1, 0], "b")).notes

    def test_the_same_model(self) -> None:
        with pytest.raises(SameModelError, match=r"sha256:a.*allow 'same-model'"):
            pair(table([1, 0]), table([1, 1]))
        assert pair(table([1, 0]), table([1, 1]), allow=["same-model"]).n == 2

    def test_directions(self) -> None:
        with pytest.raises(MetricMismatchError, match=r"higher_is_better is .True. for the base"):
            pair(table([1, 0]), table([1, 0], "b", higher_is_better=False))
        both = table([1, 0], higher_is_better=[True, False])
        with pytest.raises(MetricMismatchError, match="one value on both"):
            pair(both, table([1, 0], "b", higher_is_better=[True, False]))

    def test_unknown_allowances(self) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'prompts'"):
            pair(table([1]), table([1], "b"), allow=["prompt"])
        assert set(ALLOWABLE) == {
            "duplicates", "prompts", "same-model", "targets", "task-versions", "unpaired"
        }  # fmt: skip

    def test_all_refusals_are_one_family(self) -> None:
        for kind in (SameModelError, TaskVersionError, MetricMismatchError, PromptMismatchError):
            assert issubclass(kind, PairingError)
