"""Documents are in one part only, whatever the task, and those that are in both are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from recipe_cases import make_items, write_task

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.evaluation.splits import (
    Part,
    document_hash,
    document_hashes,
    require_disjoint,
)
from mlflow_degrade.evaluation.suite import load_suite


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks that share half of their documents, and one that shares none."""
    folder = tmp_path_factory.mktemp("tasks")
    items = make_items(300, seed=0)
    write_task(folder, "first", items[:200])
    write_task(folder, "second", items[100:])
    write_task(folder, "third", make_items(100, seed=5))
    return folder


def _parts(tasks: Path, *names: str, seed: int = 0, limit: int | None = None) -> list[set[str]]:
    return [
        set(
            document_hashes(
                load_suite(
                    names, include_path=tasks, limit=limit, seed=seed, part=Part(name, 0.4, seed)
                )
            )
        )
        for name in ("selection", "confirmation")
    ]


def test_a_document_is_in_one_part_whatever_the_task(tasks: Path) -> None:
    selection, confirmation = _parts(tasks, "first", "second", "third")
    assert not selection & confirmation
    whole = set(document_hashes(load_suite(("first", "second", "third"), include_path=tasks)))
    assert selection | confirmation == whole
    assert 0.3 < len(selection) / len(whole) < 0.5
    # By itself, and with another limit, a document stays where it was.
    assert _parts(tasks, "first")[0] <= selection
    assert _parts(tasks, "first", limit=50)[1] <= confirmation
    assert _parts(tasks, "first", seed=1)[0] != _parts(tasks, "first")[0]


def test_parts_are_asked_again_as_they_were(tasks: Path) -> None:
    part = Part("confirmation", 0.4, 3)
    suite = load_suite(("first",), include_path=tasks, seed=3, part=part)
    stated = json.loads(json.dumps(suite.asked))
    again = load_suite(
        stated["tasks"], include_path=stated["include_path"], seed=stated["seed"],
        part=Part.read(stated["part"]),
    )  # fmt: skip
    assert again.digest == suite.digest
    assert "part" not in load_suite(("first",), include_path=tasks).asked


def test_shared_documents_are_refused_by_name(tasks: Path) -> None:
    first, second = (load_suite((name,), include_path=tasks) for name in ("first", "second"))
    with pytest.raises(InputError) as caught:
        require_disjoint(first, second)
    assert "share 100 of 200 documents (first/100 = second/0," in str(caught.value)
    assert "confirms nothing" in str(caught.value)
    require_disjoint(first, load_suite(("third",), include_path=tasks))


def test_a_part_without_documents_is_refused(tasks: Path) -> None:
    with pytest.raises(InputError, match="task 'third': none of its documents is for the selec"):
        load_suite(("third",), include_path=tasks, part=Part("selection", 1e-9, 0))


def test_hashes_are_those_of_lm_eval() -> None:
    from lm_eval.utils import hash_string

    document = {"question": "Grüße?", "answer": 1}
    text = json.dumps(document, indent=2, ensure_ascii=False)
    assert document_hash(document) == hash_string(text)
