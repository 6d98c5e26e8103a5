"""Texts that logs carry: other prompts or targets are another test, whatever the ids say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from log_files import lm_folder, lm_record, sha, write

from mlflow_degrade.core.errors import PromptMismatchError
from mlflow_degrade.samples.pairing import pair
from mlflow_degrade.samples.readers import read_samples
from mlflow_degrade.samples.table import SampleScores


class TestTables:
    def records(self, **texts: str) -> list[dict[str, Any]]:
        return [
            {"id": i, "task": "t", "score": i % 2, **{k: f"{v} {i}" for k, v in texts.items()}}
            for i in range(4)
        ]

    def both(self, folder: Path, kind: str, *sides: dict[str, str]) -> list[SampleScores]:
        read = []
        for name, texts in zip("ab", sides, strict=True):
            frame = pd.DataFrame(self.records(**texts))
            path = folder / f"{name}.{kind}"
            if kind == "csv":
                frame.to_csv(path, index=False)
            elif kind == "parquet":
                frame.to_parquet(path)
            else:
                write(path, self.records(**texts))
            read.append(read_samples(path))
        return read

    @pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
    @pytest.mark.parametrize(
        ("column", "allowance"), [("prompt", "prompts"), ("target", "targets")]
    )
    def test_other_texts_under_the_same_ids(
        self, tmp_path: Path, kind: str, column: str, allowance: str
    ) -> None:
        sides = self.both(tmp_path, kind, {column: "Q"}, {column: "Think first. Q"})
        with pytest.raises(PromptMismatchError, match=rf"4 of 4 .*\['0', '1', '2'\].*{allowance}"):
            pair(*sides)
        assert pair(*sides, allow=[allowance]).notes == (
            f"t: 4 samples have different {allowance}",
        )

    @pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
    def test_conversations_are_compared_up_to_the_answer(self, tmp_path: Path, kind: str) -> None:
        def log(name: str, question: str, answer: str) -> SampleScores:
            turns = [
                [{"role": "user", "content": f"{question} {i}"},
                 {"role": "assistant", "content": answer}]
                for i in range(4)
            ]  # fmt: skip
            if kind == "csv":
                turns = [json.dumps(turn) for turn in turns]
            frame = pd.DataFrame({"id": range(4), "score": [0, 1, 0, 1], "messages": turns})
            path = tmp_path / f"{name}.{kind}"
            if kind == "jsonl":
                write(path, frame.to_dict("records"))
            else:
                frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
            return read_samples(path)

        baseline = log("a", "Q", "yes")
        assert pair(baseline, log("b", "Q", "no")).n == 4
        with pytest.raises(PromptMismatchError, match="4 of 4"):
            pair(baseline, log("c", "Other", "yes"))

    def test_beside_an_answer_the_end_of_a_conversation_is_a_part_of_the_question(
        self, tmp_path: Path
    ) -> None:
        sides = []
        for start in ("Let me think.", "Sure:"):
            turns = [
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": start},
            ]
            rows = [{"id": i, "score": i % 2, "messages": turns, "response": "A"} for i in range(4)]
            path = tmp_path / f"{len(sides)}.jsonl"
            write(path, rows)
            sides.append(read_samples(path))
        with pytest.raises(PromptMismatchError, match="4 of 4"):
            pair(*sides)

    def test_the_same_texts(self, tmp_path: Path) -> None:
        texts = {"prompt": "Q", "target": "A"}
        assert not pair(*self.both(tmp_path, "csv", texts, texts)).notes

    def test_a_side_without_texts(self, tmp_path: Path) -> None:
        assert pair(*self.both(tmp_path, "csv", {"prompt": "Q"}, {})).n == 4

    def test_a_hash_that_is_stated_counts(self) -> None:
        rows = {"task": "t", "doc_id": ["1", "2", "3"], "metric": "acc", "score": [1, 0, 1]}
        texts = {"prompt": ["p", "q", None], "prompt_hash": ["stated", None, None]}
        scores = SampleScores.from_pandas(pd.DataFrame({**rows, **texts}))
        assert scores.table["prompt_hash"].to_pylist() == ["stated", sha("q"), None]

    def test_tables_that_were_written_keep_their_digest(self, tmp_path: Path) -> None:
        rows = {"task": "t", "doc_id": ["1"], "metric": "acc", "score": [1], "prompt": ["p"]}
        scores = SampleScores.from_pandas(pd.DataFrame(rows))
        bare = scores.table.set_column(3, "prompt_hash", [[None]]).cast(scores.table.schema)
        earlier = SampleScores(bare)
        earlier.write_parquet(tmp_path / "x.parquet")
        assert SampleScores.read_parquet(tmp_path / "x.parquet").digest() == earlier.digest()


# What lm-eval did not write before 0.4.3.
OLD: dict[str, Any] = dict.fromkeys(
    ("doc_hash", "prompt_hash", "target_hash", "metrics", "filter"), ...
)


class TestLmEval:
    def test_logs_without_hashes_pair_with_newer_ones(self, tmp_path: Path) -> None:
        new = [lm_record(i, {"acc": i % 2}) for i in range(4)]
        old = [lm_record(i, {"acc": 0}, arguments=[[f"Q: {i}", " yes"]], **OLD) for i in range(4)]
        sides = [
            read_samples(lm_folder(tmp_path / name, records))
            for name, records in (("old", old), ("new", new))
        ]
        for column in ("doc_hash", "prompt_hash", "target_hash"):
            assert sides[0].table[column].to_pylist() == sides[1].table[column].to_pylist()
        paired = pair(*sides)
        assert (paired.n, paired.notes) == (4, ())

    @pytest.mark.parametrize(
        ("changes", "allowance"),
        [({"arguments": [["Other", " yes"]]}, "prompts"), ({"target": "no"}, "targets")],
    )
    def test_other_prompts_in_logs_without_hashes(
        self, tmp_path: Path, changes: dict[str, Any], allowance: str
    ) -> None:
        arguments = [["Q", " yes"]]
        sides = []
        for name, given in (("a", {}), ("b", changes)):
            records = [
                lm_record(i, {"acc": i % 2}, **{"arguments": arguments, **OLD, **given})
                for i in range(4)
            ]
            sides.append(read_samples(lm_folder(tmp_path / name, records)))
        with pytest.raises(PromptMismatchError, match=f"4 of 4 samples.*allow '{allowance}'"):
            pair(*sides)

    def test_the_rule_is_that_of_lm_eval(self, tmp_path: Path) -> None:
        # The expression is that of lm_eval/evaluator.py, version 0.4.13.
        utils = pytest.importorskip("lm_eval.utils")
        doc = {"question": "Wie heißt „π“?", "n": 1, "list": [1, 2.5, None], "yes": True}
        for target in ("7", 7, ["a", "b"]):
            record = lm_record(0, {"acc": 1}, doc=doc, target=target, **OLD)
            folder = lm_folder(tmp_path / str(target), [record])
            (row,) = read_samples(folder).table.to_pylist()
            dumped = json.dumps(
                doc, indent=2, default=utils.handle_non_serializable, ensure_ascii=False
            )
            assert row["doc_hash"] == utils.hash_string(dumped)
            assert row["prompt_hash"] == utils.hash_string("Q: 0")
            assert row["target_hash"] == utils.hash_string(str(target))

    def test_records_without_their_document(self, tmp_path: Path) -> None:
        records = [lm_record(i, {"acc": 1}, doc=..., doc_hash=...) for i in range(2)]
        scores = read_samples(lm_folder(tmp_path, records))
        assert scores.table["doc_hash"].to_pylist() == ["toy/0", "toy/1"]

    def test_raw_answers_tell_models_with_the_same_scores_apart(self, tmp_path: Path) -> None:
        def folder(name: str, **changes: Any) -> SampleScores:
            records = [lm_record(i, {"acc": 1}, **changes) for i in (0, 1)]
            return read_samples(lm_folder(tmp_path / name, records))

        first, again = folder("a"), folder("b")
        other = folder("c", resps=[[["-1.5", "False"]]])
        assert first.answer_digests == again.answer_digests != other.answer_digests
        reordered = lm_folder(tmp_path / "d", [lm_record(i, {"acc": 1}) for i in (1, 0)])
        assert read_samples(reordered).answer_digests == first.answer_digests
