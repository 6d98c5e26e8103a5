"""Behind lm-eval's interface the engine answers what lm-eval's own backend answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_models import ModelDir
from local_tasks import ALL

from mlflow_degrade.core.errors import InputError
from mlflow_degrade.evaluation.backend import NAME, OnnxLM


def _evaluate(model: Any, folder: Path, **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model=model,
        tasks=list(ALL),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        **options,
    )
    assert found is not None
    return dict(found)


@pytest.fixture(scope="module")
def reference(tiny_source: Path, task_folder: Path) -> dict[str, Any]:
    """All tasks with lm-eval's Hugging Face backend in PyTorch fp32."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_source)
    return _evaluate(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1), task_folder)


@pytest.mark.parametrize("path", ["shared-prefix", "batched", "one-by-one"])
def test_every_kind_of_request_is_answered_as_by_pytorch(
    model_dir: ModelDir, task_folder: Path, reference: dict[str, Any], path: str
) -> None:
    found = _evaluate(
        NAME,
        task_folder,
        model_args={"pretrained": str(model_dir("fp32")), "device": "cpu", "path": path},
    )
    for task in ALL:
        pairs = zip(found["samples"][task], reference["samples"][task], strict=True)
        for ours, theirs in pairs:
            assert ours["doc_id"] == theirs["doc_id"]
            assert ours["prompt_hash"] == theirs["prompt_hash"]
            if task == "tiny_answer":
                assert ours["resps"] == theirs["resps"]
                continue
            for (mine,), (yours,) in zip(ours["resps"], theirs["resps"], strict=True):
                if task == "tiny_text":
                    assert mine == pytest.approx(yours, abs=1e-3)
                else:
                    assert mine[0] == pytest.approx(yours[0], abs=1e-3)
                    assert mine[1] == yours[1]
    assert found["results"]["tiny_choice"]["acc,none"] == pytest.approx(
        reference["results"]["tiny_choice"]["acc,none"]
    )


@pytest.mark.parametrize(("scheme", "alone"), [("fp32", False), ("int8-dynamic", True)])
def test_a_model_that_depends_on_its_batch_is_found_out(
    model_dir: ModelDir, task_folder: Path, scheme: str, alone: bool
) -> None:
    model = OnnxLM(str(model_dir(scheme)), device="cpu")
    _evaluate(model, task_folder)
    assert model.decoder.unpadded is alone
    assert model.probes["scoring"].invariant is not alone
    assert all((plan["limits"]["rows"] == 1) is alone for plan in model.plans)


def test_lm_eval_cache_spares_the_model(
    model_dir: ModelDir, task_folder: Path, tmp_path: Path
) -> None:
    cache = str(tmp_path / "lm-eval-cache")
    first = OnnxLM(str(model_dir("fp32")), device="cpu")
    expected = _evaluate(first, task_folder, use_cache=cache)
    asked: list[int] = []
    second = OnnxLM(str(model_dir("fp32")), device="cpu", advance=asked.append)
    found = _evaluate(second, task_folder, use_cache=cache)
    assert asked == []
    assert found["results"] == expected["results"]


def test_the_chat_template_is_the_tokenizers(model_dir: ModelDir) -> None:
    model = OnnxLM(str(model_dir("fp32")), device="cpu")
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    with pytest.raises(InputError, match="no chat template"):
        model.apply_chat_template(history)
    model.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert model.apply_chat_template(history) == "<system>Be brief.<user>Hello<assistant>"
    model.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    assert model.apply_chat_template(history) == "Hello"
    assert model.tokenizer_name


def test_ways_of_decoding_that_are_not_implemented_are_refused(model_dir: ModelDir) -> None:
    from lm_eval.api.instance import Instance

    model = OnnxLM(str(model_dir("fp32")), device="cpu")
    request = Instance("generate_until", {}, ("Two", {"until": ["."], "num_beams": 4}), 0)
    with pytest.raises(InputError, match="num_beams"):
        model.generate_until([request])


def test_requests_with_other_settings_are_decoded_apart(model_dir: ModelDir) -> None:
    from lm_eval.api.instance import Instance

    model = OnnxLM(str(model_dir("fp32")), device="cpu")
    settings: list[dict[str, Any]] = [
        {"until": [], "max_gen_toks": 3},
        {"until": ["e"], "max_gen_toks": 9, "do_sample": True, "temperature": 0.7},
        {"until": [], "max_gen_toks": 3},
    ]
    requests = [Instance("generate_until", {}, ("Two", s), i) for i, s in enumerate(settings)]
    first, sampled, last = model.generate_until(requests)
    assert first == last != sampled
    assert "e" not in sampled


def test_an_empty_text_has_nothing_to_predict(model_dir: ModelDir) -> None:
    from lm_eval.api.instance import Instance

    model = OnnxLM(str(model_dir("fp32")), device="cpu")
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(["", "Iron"])
    ]
    empty, some = model.loglikelihood_rolling(requests)
    assert empty == 0
    assert some < 0
