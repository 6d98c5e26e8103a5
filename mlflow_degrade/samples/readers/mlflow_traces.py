"""Traces of ``mlflow.genai.evaluate``: a trace a sample, every scorer a metric."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.errors import EmptySamplesError, UnknownNameError
from ..schema import text_hash
from ._reader import as_text, load_json, note, numbered, record_reader, split_names
from ._score_values import number_or_word

_TASK = "mlflow"
_RUN = "mlflow.assessment.sourceRunId"
_SPAN_TEXTS = {"request": "mlflow.spanInputs", "response": "mlflow.spanOutputs"}


def save_traces(run_id: str, experiment_id: str, folder: Path) -> Path | None:
    """Write the traces of a run to a file; None where no scorer has judged any."""
    import mlflow

    found = mlflow.search_traces(
        run_id=run_id, locations=[experiment_id], return_type="list", include_spans=True
    )
    traces = [
        {
            "info": trace.info.to_dict(),
            # Whole, while what the info tells of them is cut.
            "request": trace.data.request,
            "response": trace.data.response,
        }
        for trace in found
        if not isinstance(trace, str)
    ]
    if not any(_feedback(trace, run_id) for trace in traces):
        return None
    path = folder / "traces.json"
    path.write_text(json.dumps({"traces": traces, "run_id": run_id}), encoding="utf-8")
    return path


def has_traces(run_id: str, experiment_id: str) -> bool:
    """Whether a run has traces at all."""
    import mlflow

    found = mlflow.search_traces(
        run_id=run_id,
        locations=[experiment_id],
        return_type="list",
        include_spans=False,
        max_results=1,
    )
    return len(found) > 0


def _traces(path: Path) -> tuple[list[dict[str, Any]], str | None] | None:
    """The traces in a file in their order and the run they are of; None for another file."""
    if not path.is_file() or not path.name.endswith((".json", ".json.gz")):
        return None
    content = load_json(path)
    run_id = content.get("run_id") if isinstance(content, dict) else None
    traces = content.get("traces") if isinstance(content, dict) else content
    if not isinstance(traces, list) or not traces:
        return None
    infos = [trace.get("info") if isinstance(trace, dict) else None for trace in traces]
    if not all(isinstance(info, dict) and "trace_id" in info for info in infos):
        return None
    return sorted(traces, key=lambda t: (_time(t["info"]), t["info"]["trace_id"])), run_id


def _records(
    path: Path,
    found: tuple[list[dict[str, Any]], str | None],
    *,
    scorers: str | Iterable[str] | None = None,
) -> Iterator[dict[str, Any]]:
    traces, run_id = found
    feedback = [_feedback(trace, run_id) for trace in traces]
    names = sorted({name for given in feedback for name in given})
    scored = [name for name in names if any(_is_score(g.get(name, ())) for g in feedback)]
    if not scored:
        raise EmptySamplesError(
            f"{path.name}: the scorers {names} gave no numbers, yes or no to these traces."
            if names
            else f"{path.name} holds traces that no scorer has judged: run mlflow.genai.evaluate."
        )
    if left_out := sorted(set(names) - set(scored)):
        note(f"left out, as they give neither numbers nor yes or no: {', '.join(left_out)}.")
    wanted = None if scorers is None else split_names(scorers)
    for name in wanted or ():
        if name not in scored:
            raise UnknownNameError("scorer", name, scored)
    if wanted is None and len(scored) > 1:
        note(
            f"there are the scorers {', '.join(scored)}: one is compared, say which with its name "
            "as the metric; with the option scorers=a,b each is a task of its own."
        )
    for common, given in zip(_samples(traces, run_id), feedback, strict=True):
        for name in wanted or scored:
            task = _TASK if wanted is None else name
            # A scorer that failed, or was not asked, left the sample unscored.
            for repeat, score in enumerate(map(_score, given.get(name) or [None])):
                yield {**common, "task": task, "metric": name, "repeat": repeat, "score": score}


def _samples(traces: Iterable[Mapping[str, Any]], run_id: str | None) -> Iterator[dict[str, Any]]:
    """What the rows of each trace have in common; its inputs say which sample it is."""
    seen: Counter[str] = Counter()
    for trace in traces:
        inputs = _plain(_text(trace, "request"))
        doc = text_hash(f"{as_text(inputs)}")[:16]
        values = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
        expected = {
            stated["assessment_name"]: _plain(stated["expectation"])
            for stated in _assessments(trace, run_id)
            if "expectation" in stated
        }
        wanted = list(expected.values()) if len(expected) == 1 else [expected or None]
        yield {
            "doc_id": numbered(doc, seen),
            "doc_hash": doc,
            "prompt": as_text(values[0] if len(values) == 1 else inputs),
            "target": as_text(wanted[0]),
            "response": as_text(_plain(_text(trace, "response"))),
        }


def _assessments(trace: Mapping[str, Any], run_id: str | None) -> Iterator[dict[str, Any]]:
    """Those that count: not replaced by a later one, and not of another evaluation."""
    for stated in trace["info"].get("assessments") or ():
        source = (stated.get("metadata") or {}).get(_RUN)
        if stated.get("valid", True) and (run_id is None or source in (None, run_id)):
            yield stated


def _feedback(trace: Mapping[str, Any], run_id: str | None) -> dict[str, list[Any]]:
    """What each scorer said, in the order of time; None where it failed."""
    found: dict[str, list[Any]] = defaultdict(list)
    stated = [one for one in _assessments(trace, run_id) if "feedback" in one]
    for one in sorted(stated, key=lambda one: str(one.get("create_time", ""))):
        given = one["feedback"]
        found[one["assessment_name"]].append(None if given.get("error") else given.get("value"))
    return dict(found)


def _is_score(values: Iterable[Any]) -> bool:
    return any(_score(value) is not None for value in values)


def _score(value: Any) -> float | None:
    """A judgement as a number; None for what is no score, such as ``unknown``."""
    if isinstance(value, str):
        value = number_or_word(value)
    return float(value) if isinstance(value, (bool, int, float)) else None


def _text(trace: Mapping[str, Any], side: str) -> Any:
    """Inputs or outputs of a trace, as the whole of its first span has them."""
    if side in trace:
        return trace[side]
    spans = (trace.get("data") or {}).get("spans") or ()
    root = next((span for span in spans if not span.get("parent_span_id")), None)
    stated = None if root is None else (root.get("attributes") or {}).get(_SPAN_TEXTS[side])
    return trace["info"].get(f"{side}_preview") if stated is None else stated


def _plain(value: Any) -> Any:
    """What a JSON text or MLflow's wrapping of a value stands for."""
    if isinstance(value, dict) and set(value) <= {"value", "serialized_value"} and value:
        inner = value.get("value", value.get("serialized_value"))
        value = inner.get("value", inner) if isinstance(inner, dict) else inner
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _time(info: Mapping[str, Any]) -> str:
    return str(info.get("request_time", ""))


READER = record_reader(
    "mlflow-traces",
    "traces with the assessments of mlflow.genai.evaluate, of a run or exported as JSON",
    _traces,
    _records,
    options={
        "scorers": "Names of scorers, separated by commas; each becomes a task of its own.",
    },
)
