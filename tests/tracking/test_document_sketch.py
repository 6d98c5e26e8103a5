"""How many documents two evaluations share, told from what fits into a tag."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_degrade import SampleScores, pair
from mlflow_degrade.registry.retry_ledger import DocumentSketch


def _sketch(documents: range, **columns: object) -> DocumentSketch:
    frame = pd.DataFrame({"task": "qa", "doc_id": list(documents), "metric": "acc", "score": 1.0})
    frame = frame.assign(**columns)
    sides = [SampleScores.from_pandas(frame, model=name) for name in ("a", "b")]
    return DocumentSketch.of(pair(*sides))


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        (range(100), range(100), 1.0),
        (range(100), range(50, 150), 0.5),
        (range(100), range(20), 1.0),
        (range(100), range(100, 200), 0.0),
        (range(20_000), range(1, 20_000), 1.0),
        (range(20_000), range(10_000, 30_000), 0.5),
        (range(20_000), range(2_000), 1.0),
        (range(20_000), range(20_000, 40_000), 0.0),
    ],
)
def test_the_share_is_that_of_the_sets(one: range, other: range, share: float) -> None:
    """Exact for small sets; the standard error of a half is at most .5/√150 above them."""
    sketches = [_sketch(documents) for documents in (one, other)]
    tolerance = 0.0 if max(len(one), len(other)) < 300 else 4 * 0.5 / np.sqrt(150)
    assert sketches[0].share(sketches[1]) == pytest.approx(share, abs=tolerance)
    assert sketches[1].share(sketches[0]) == sketches[0].share(sketches[1])
    again = DocumentSketch.from_text(sketches[0].text())
    assert again is not None
    assert again.share(sketches[0]) == 1.0
    assert len(sketches[0].text()) < 4_000


def test_a_document_is_what_it_says_rather_than_what_it_is_called() -> None:
    plain, documents = _sketch(range(50)), range(50)
    assert plain.share(_sketch(documents, task="renamed")) == 1.0
    texts = [f"text {i}" for i in documents]
    by_text = _sketch(documents, prompt=texts)
    assert by_text.share(_sketch(range(50, 100), prompt=texts, task="renamed")) == 1.0
    assert by_text.share(_sketch(documents, prompt=[f"other {i}" for i in documents])) == 0.0
    by_hash = _sketch(documents, doc_hash=texts)
    assert by_hash.share(_sketch(documents, doc_hash=texts, prompt=texts, task="t")) == 1.0


@pytest.mark.parametrize("text", ["", "no base64!", "QUJD"])
def test_what_somebody_else_wrote_into_the_tag_is_no_sketch(text: str) -> None:
    assert DocumentSketch.from_text(text) is None
