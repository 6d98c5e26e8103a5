"""Small lm-eval tasks with local data, of every kind the engine serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from tiny_models import SENTENCES

ALL = ("tiny_choice", "tiny_cloze", "tiny_text", "tiny_answer")


def choice_items(count: int = 24) -> list[dict[str, Any]]:
    """Questions with two to four choices of one or several tokens."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    return [
        {
            "question": f"{SENTENCES[i % len(SENTENCES)][: 12 + i]} {i}",
            "choices": [words[(i * 7 + 3 * k) % len(words)] for k in range(2 + i % 3)],
            "answer": i % 2,
            "category": "even" if i % 2 == 0 else "odd",
        }
        for i in range(count)
    ]


def write_task(folder: Path, name: str, items: list[dict[str, Any]], **config: Any) -> Path:
    """Write ``<name>.yaml`` with its data beside it; `config` adds to what all tasks share."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    full = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **config,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(full, sort_keys=False), encoding="utf-8")
    return path


def _metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name} for name in names]


def write_choice_task(folder: Path, name: str = "tiny_choice", **config: Any) -> Path:
    """A multiple-choice task over `choice_items`."""
    items = config.pop("items", None)
    return write_task(
        folder,
        name,
        choice_items() if items is None else items,
        **{
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": _metrics("acc", "acc_norm"),
            **config,
        },
    )


def write_all_tasks(folder: Path) -> Path:
    """One task of each kind, and the group ``tiny`` of all; returns `folder`."""
    write_choice_task(folder)
    halves = [(s[: len(s) // 2].rsplit(" ", 1)[0], s) for s in SENTENCES]
    cloze = [{"text": head, "rest": full[len(head) :]} for head, full in halves]
    write_task(
        folder,
        "tiny_cloze",
        cloze,
        output_type="loglikelihood",
        doc_to_text="text",
        doc_to_target="{{rest}}",
        target_delimiter="",
        metric_list=_metrics("perplexity", "acc"),
    )
    long = [{"text": s} for s in SENTENCES[:3]] + [{"text": " ".join(SENTENCES * 4)}]
    write_task(
        folder,
        "tiny_text",
        long,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=_metrics("word_perplexity", "bits_per_byte"),
    )
    write_task(
        folder,
        "tiny_answer",
        [{"text": head, "answer": "the"} for head, _ in halves],
        output_type="generate_until",
        doc_to_text="{{text}} of",
        doc_to_target="answer",
        generation_kwargs={"until": ["\n", "e"], "max_gen_toks": 10, "do_sample": False},
        metric_list=[{"metric": "exact_match", "ignore_case": True}],
    )
    group = {"group": "tiny", "task": list(ALL), "metadata": {"version": 1.0}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return folder
