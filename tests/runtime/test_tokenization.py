"""Contexts and continuations are cut where lm-eval's Hugging Face backend cuts them."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_models import ModelDir
from tiny_models import SENTENCES

from mlflow_degrade.core.errors import InputError, ModelError
from mlflow_degrade.engine.tokenization import TextEncoder

PAIRS = [
    ("Question: which city is the capital of Norway? Answer:", " Oslo"),
    ("The harbour is quiet ", "before"),  # the space belongs to the continuation
    ("The harbour is quiet  \n", " before"),
    ("", "The train"),  # nothing to go on but BOS
    ("", "<|endoftext|>The train"),
    ("<|endoftext|>Two children", " were counting"),
    ("héllo wörld 漢", "字 ✓"),
    (SENTENCES[0], " " + SENTENCES[1]),
    ("  leading", " space"),
]


@pytest.fixture(scope="module")
def encoder(tiny_source: Path) -> TextEncoder:
    return TextEncoder(tiny_source)


def test_pairs_are_split_as_lm_eval_splits_them(encoder: TextEncoder, tiny_source: Path) -> None:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32)
    reference = HFLM(pretrained=model, tokenizer=encoder.tokenizer, batch_size=1)
    asked: list[tuple[list[int], list[int]]] = []

    class Asked(Exception):
        pass

    def remember(requests: list[tuple[object, list[int], list[int]]], **_: object) -> None:
        asked.extend((context, rest) for _, context, rest in requests)
        raise Asked

    reference._loglikelihood_tokens = remember
    from lm_eval.api.instance import Instance

    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)]
    with pytest.raises(Asked):
        reference.loglikelihood(instances, disable_tqdm=True)
    assert encoder.encode_pairs(PAIRS) == asked


def test_white_space_alone_is_an_empty_context(encoder: TextEncoder) -> None:
    """Lm-eval dies of an assertion here."""
    ((context, rest),) = encoder.encode_pairs([(" ", "The train")])
    assert context == [encoder.prefix_id]
    assert encoder.decode(rest) == " The train"


def test_a_continuation_without_tokens_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match="no token of its own"):
        encoder.encode_pairs([("Iron rusts", "")])


def test_repeated_texts_are_encoded_alike(encoder: TextEncoder) -> None:
    first, other, again = encoder.encode(["Iron", "rust", "Iron"])
    assert first == again != other


def test_a_directory_without_tokenizer_is_named(tmp_path: Path, model_dir: ModelDir) -> None:
    (tmp_path / "config.json").write_bytes((model_dir("fp32") / "config.json").read_bytes())
    with pytest.raises(ModelError, match="no tokenizer"):
        TextEncoder(tmp_path)
