"""What an lm-eval run says about itself, in MLflow's terms: key, metrics, params and note."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import pyarrow.compute as pc

from .._row_index import RowIndex
from .._table_digest import table_digest
from ..cache import digest_json
from ..readers.lm_eval import LmEvalOutput

# MLflow cuts longer ones without a word.
_PARAM_LIMIT = 6_000
# MLflow keeps 8,000; a longer table is read better among the metrics anyway.
_NOTE_LIMIT = 5_000
# Where a task's data come from differs between machines, and metadata repeats the model's
# arguments; the documents themselves are hashed.
_ORIGIN = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
_ASKED = ("system_instruction_sha", "chat_template_sha", "lm_eval_version")
_HOW = ("batch_size", "device", "model_dtype", "model_revision", "model_sha")
_STATED = (
    "model_name", "system_instruction", "chat_template_sha", "fewshot_as_multiturn", "git_hash",
    "lm_eval_version", "transformers_version", "max_length",
)  # fmt: skip


def evaluation_key(output: LmEvalOutput) -> dict[str, Any]:
    """Everything the scores depend on.

    Parameters
    ----------
    output : LmEvalOutput

    Returns
    -------
    dict
        Under ``"model"`` who answered and how it was run, under ``"processor"`` where, if that is
        known; all else is what was asked, and is equal for two models exactly when they were asked
        the same documents in the same words.
    """
    newest = output.newest
    config = newest.get("config") or {}
    template = bool(newest.get("chat_template_sha"))
    model = {
        "name": newest.get("model_name"),
        "source": newest.get("model_source"),
        "args": config.get("model_args"),
        "digest": output.samples.model_digest,
        "transformers": newest.get("transformers_version"),
        **{name: config.get(name) for name in _HOW},
    }
    origin = output.samples.origin
    return {
        "model": model,
        "harness": "lm-eval",
        **({} if origin is None else {"processor": origin.processor.model_dump(mode="json")}),
        "tasks": {task: _question(output, task) for task in output.samples.tasks},
        "limit": config.get("limit"),
        "gen_kwargs": config.get("gen_kwargs") or None,
        "seeds": {name: config.get(name) for name in _SEEDS},
        "apply_chat_template": template,
        # Without a template it changes nothing, and lm-eval's ways in have different defaults.
        "fewshot_as_multiturn": template and bool(newest.get("fewshot_as_multiturn")),
        **{name: newest.get(name) for name in _ASKED},
    }


def _question(output: LmEvalOutput, task: str) -> dict[str, Any]:
    about = output.results[output.dates[task][-1]]
    config = (about.get("configs") or {}).get(task) or {}
    definition = json.dumps({k: v for k, v in config.items() if k not in _ORIGIN}, sort_keys=True)
    columns = ["doc_id", "doc_hash", "prompt_hash", "target_hash", "filter", "repeat"]
    table = output.samples.table
    asked = table.filter(pc.equal(table["task"], task)).select(columns)
    for name in ("prompt_hash", "target_hash"):
        # Older logs have none; rows are sorted by all columns.
        filled = pc.fill_null(asked[name], "")
        asked = asked.set_column(columns.index(name), name, filled)
    distinct = RowIndex(asked.group_by(columns).aggregate([]), columns, ["filter"])
    return {
        "version": str((about.get("versions") or {}).get(task)),
        "num_fewshot": (about.get("n-shot") or {}).get(task),
        # Functions that have no source are printed with the address they happened to be at.
        "definition": digest_json(_ADDRESS.sub("", definition)),
        "documents": table_digest(distinct, {"what": "lm-eval documents"}),
    }


def aggregate_metrics(output: LmEvalOutput) -> dict[str, float]:
    """lm-eval's own results as metrics.

    Returns
    -------
    dict of str to float
        ``<task>/<metric>``, with ``.<filter>`` where a task has several; ``…_stderr`` beside it;
        groups likewise. Values that are not finite are among them, as numbers.

    Notes
    -----
    A group is left out when its tasks were evaluated at several dates: its figure is about others
    than the logged samples.
    """
    found: dict[str, float] = {}
    for date, about in output.results.items():
        subtasks = about.get("group_subtasks") or {}
        for name, values in (about.get("results") or {}).items():
            leaves = set(_leaves(name, subtasks))
            if any(output.dates.get(task) != (date,) for task in leaves):
                continue
            for key, value in values.items():
                metric, comma, flt = key.rpartition(",")
                if comma and isinstance(value, (int, float)) and not isinstance(value, bool):
                    found[f"{name}/{metric}" + ("" if flt == "none" else f".{flt}")] = float(value)
    return found


def _leaves(name: str, subtasks: Mapping[str, list[str]]) -> Iterator[str]:
    """The tasks of a group and of the groups in it; a task itself."""
    waiting, seen = [name], set()
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        if here in subtasks:
            waiting += subtasks[here]
        else:
            yield here


def run_params(output: LmEvalOutput) -> dict[str, str]:
    """Params of the run: how lm-eval was called, as its results file states it.

    Returns
    -------
    dict of str to str
        What is longer than MLflow keeps is represented by its digest; the whole text is in the
        results file.
    """
    newest = output.newest
    shots = {task: (newest.get("n-shot") or {}).get(task) for task in output.samples.tasks}
    distinct = set(shots.values())
    values: dict[str, Any] = {
        **(newest.get("config") or {}),
        **{name: newest.get(name) for name in _STATED},
        "tasks": ",".join(output.samples.tasks),
        "num_fewshot": next(iter(distinct)) if len(distinct) == 1 else shots,
        "apply_chat_template": bool(newest.get("chat_template_sha")),
    }
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in values.items()
        if value not in (None, "", [], {})
    }
    return {name: _param(text) for name, text in texts.items()}


def _param(text: str) -> str:
    if len(text) <= _PARAM_LIMIT:
        return text
    return f"{digest_json(text)} ({len(text)} characters; the text is in the results file)"


def run_note(output: LmEvalOutput) -> str:
    """The run's note in Markdown: model, settings, and a table of the results."""
    newest = output.newest
    config = newest.get("config") or {}
    params = run_params(output)
    samples = output.samples
    said = [
        f"`{_inline(params.get('model_args', ''))}`" if params.get("model_args") else "",
        f"{params.get('num_fewshot', 0)}-shot" if "{" not in params.get("num_fewshot", "") else "",
        f"limit {config['limit']}" if config.get("limit") else "",
        "chat template" if newest.get("chat_template_sha") else "",
        f"lm-eval {newest['lm_eval_version']}" if newest.get("lm_eval_version") else "",
    ]
    lines = [
        f"**{_inline(samples.model or 'lm-eval')}** on {len(samples.tasks)} "
        f"task{'s' * (len(samples.tasks) != 1)}",
        "",
        " · ".join(part for part in said if part),
        "",
        "| task | metric | value | ± stderr |",
        "|---|---|---:|---:|",
    ]
    stated = aggregate_metrics(output)
    rows = [
        f"| {_inline(name.rpartition('/')[0])} | {_inline(name.rpartition('/')[2])} | {value:.5g} "
        f"| {_stderr(name, stated)} |"
        for name, value in stated.items()
        if "_stderr" not in name.rpartition("/")[2]
    ]
    room = _NOTE_LIMIT - len("\n".join(lines))
    ends = accumulate(len(row) + 1 for row in rows)
    shown = sum(end <= room for end in ends)
    lines += rows[:shown]
    if shown < len(rows):
        lines += ["", f"and {len(rows) - shown} more, see the run's metrics."]
    return "\n".join(lines)


def _stderr(name: str, stated: Mapping[str, float]) -> str:
    task, _, metric = name.rpartition("/")
    base, dot, flt = metric.partition(".")
    value = stated.get(f"{task}/{base}_stderr{dot}{flt}")
    return "" if value is None else f"{value:.2g}"


def _inline(text: str) -> str:
    """Text for one cell of a table: short, and without what Markdown would take for its own."""
    text = re.sub(r"[|`\n]", " ", text)
    return text if len(text) <= 120 else text[:119] + "…"
