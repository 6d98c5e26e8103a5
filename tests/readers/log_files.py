"""Small files in the layouts of lm-eval and of tables, with made-up rows."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATE = "2025-03-01T10-00-00.000001"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def lm_record(i: int, scores: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A record as lm-eval writes it since 0.4.3; ``...`` removes a key."""
    doc = {"question": f"Was ist {i}?", "n": i}
    record = {
        "doc_id": i,
        "doc": doc,
        "target": "yes",
        "arguments": {"gen_args_0": {"arg_0": f"Q: {i}", "arg_1": {"until": ["\n"]}}},
        "resps": [[f"It is {i}"]],
        "filtered_resps": [str(i)],
        "filter": "none",
        "metrics": list(scores),
        "doc_hash": sha(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": sha(f"Q: {i}"),
        "target_hash": sha("yes"),
        **scores,
        **changes,
    }
    return {key: value for key, value in record.items() if value is not ...}


def lm_results(task: str, model: str = "org/fp16", **changes: Any) -> dict[str, Any]:
    metrics = changes.pop("metrics", ["acc"])
    return {
        "results": {task: {f"{metric},none": 0.5 for metric in metrics}},
        "group_subtasks": {task: []},
        "configs": {task: {"task": task}},
        "versions": {task: 1.0},
        "higher_is_better": {task: dict.fromkeys(metrics, True)},
        "config": {"model": "hf", "model_args": f"pretrained={model}", "limit": None},
        "model_source": "hf",
        "model_name": model,
        **changes,
    }


def lm_folder(
    folder: Path,
    records: Sequence[dict[str, Any]],
    *,
    task: str = "toy",
    date: str = DATE,
    results: dict[str, Any] | None = None,
    compressed: bool = False,
) -> Path:
    """An output directory of lm-eval with one task."""
    folder.mkdir(parents=True, exist_ok=True)
    about = lm_results(task) if results is None else results
    (folder / f"results_{date}.json").write_text(json.dumps(about))
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    name = f"samples_{task}_{date}.jsonl"
    if compressed:
        (folder / f"{name}.gz").write_bytes(gzip.compress(text))
    else:
        (folder / name).write_bytes(text)
    return folder


def write(path: Path, content: Any) -> Path:
    """A text as it is, anything else as JSON; a list for ``.jsonl`` as one object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        text = content
    elif path.name.endswith(".jsonl") and isinstance(content, list):
        text = "".join(json.dumps(record) + "\n" for record in content)
    else:
        text = json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path
