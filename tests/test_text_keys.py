"""The 64-bit keys that joining and ordering work on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_degrade.samples.row_index import order_keys, text_keys

TEXTS = st.lists(st.none() | st.text(max_size=20), max_size=20)


@given(texts=TEXTS, cut=st.integers(0, 20), large=st.booleans())
def test_equal_texts_have_equal_keys_wherever_they_are(
    texts: list[str | None], cut: int, large: bool
) -> None:
    kind = pa.large_string() if large else pa.string()
    whole = pa.chunked_array([pa.array(["surplus", *texts], kind).slice(1)], kind)
    split = pa.chunked_array([pa.array(texts[:cut], kind), pa.array(texts[cut:], kind)], kind)
    for keys in (text_keys, order_keys):
        assert keys(whole).tolist() == keys(split).tolist()
        seen: dict[str, int] = {}
        for text, key in zip(texts, keys(whole).tolist(), strict=True):
            assert seen.setdefault(text or "", key) == key


@pytest.mark.parametrize("name", ["{}", "task_name_{}", "{:064x}", "{:012d}_suffix_of_some_length"])
def test_different_texts_have_different_keys(name: str) -> None:
    column = pa.chunked_array([[name.format(i) for i in range(200_000)]])
    for keys in (text_keys(column), order_keys(column)):
        assert len(np.unique(keys)) == 200_000


def test_short_texts_are_ordered_by_length_and_bytes() -> None:
    texts = ["", "1", "2", "10", "99", "100", "1234567", "a much longer one"]
    keys = order_keys(pa.chunked_array([texts])).tolist()
    assert keys == sorted(keys)
