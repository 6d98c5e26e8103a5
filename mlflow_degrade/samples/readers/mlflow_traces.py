"""Traces of ``mlflow.genai.evaluate``: a trace a sample, every scorer a metric."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import EmptySamplesError, UnknownNameError, redact
from ..schema import text_hash
from ._reader import (
    as_text,
    direction_option,
    load_json,
    note,
    numbered,
    record_reader,
    split_names,
)
from ._score_values import number_or_word

_TASK = "mlflow"
# What people said, and what a scorer did, where both judged under one name.
_HUMAN, _JUDGE = ".human", ".judge"
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
    where = {"run_id": run_id, "experiment_id": experiment_id, "server": _server()}
    path.write_text(json.dumps({"traces": traces, **where}), encoding="utf-8")
    return path


def _server() -> str | None:
    """The tracking server's address, where it has pages."""
    import mlflow

    uri = redact(mlflow.get_tracking_uri())
    return uri.rstrip("/") if uri.startswith(("http://", "https://")) else None


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


class _Place(NamedTuple):
    """The run that traces are of, and where its pages are."""

    run_id: str | None = None
    experiment_id: str | None = None
    server: str | None = None

    def trace(self, trace_id: str) -> str:
        """Where a trace is looked at: the address of its page, or its id."""
        if self.server is None or self.experiment_id is None:
            return trace_id
        page = f"{self.server}/#/experiments/{self.experiment_id}/traces"
        return f"{page}?selectedEvaluationId={trace_id}"


def _traces(path: Path) -> tuple[list[dict[str, Any]], _Place] | None:
    """The traces in a file and the run they are of; None for another file."""
    if not path.is_file() or not path.name.endswith((".json", ".json.gz")):
        return None
    content = load_json(path)
    stated = content if isinstance(content, dict) else {}
    place = _Place(*(stated.get(name) for name in _Place._fields))
    traces = content.get("traces") if isinstance(content, dict) else content
    if not isinstance(traces, list) or not traces:
        return None
    infos = [trace.get("info") if isinstance(trace, dict) else None for trace in traces]
    if not all(isinstance(info, dict) and "trace_id" in info for info in infos):
        return None
    return sorted(traces, key=lambda t: (_time(t["info"]), t["info"]["trace_id"])), place


def _records(
    path: Path,
    found: tuple[list[dict[str, Any]], _Place],
    *,
    scorers: str | Iterable[str] | None = None,
    higher_is_better: bool | str | None = None,
) -> Iterator[dict[str, Any]]:
    traces, place = found
    run_id = place.run_id
    both = _judged_by_both(traces, run_id)
    feedback = [_feedback(trace, run_id, both) for trace in traces]
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
    wanted = None if scorers is None else dict(map(_scorer_and_labels, split_names(scorers)))
    for name in {} if wanted is None else [*wanted, *filter(None, wanted.values())]:
        if name not in scored:
            raise UnknownNameError("scorer", name, scored)
    known = [name for name in scored if not name.endswith((_HUMAN, _JUDGE))]
    if wanted is None and len(known) > 1:
        note(
            f"there are the scorers {', '.join(known)}: one is compared, say which with its name "
            "as the metric; with the option scorers=a,b each is a task of its own."
        )
    columns = (
        [(_TASK, name) for name in scored]
        if wanted is None
        else [(task, name) for task in wanted for name in _columns_of(task, wanted[task], scored)]
    )
    direction = direction_option(higher_is_better)
    for common, given in zip(_samples(traces, place), feedback, strict=True):
        for task, name in columns:
            # A scorer that failed, or was not asked, left the sample unscored.
            for repeat, score in enumerate(map(_score, given.get(name) or [None])):
                yield {
                    **common, "task": task, "metric": name, "repeat": repeat, "score": score,
                    "higher_is_better": direction,
                }  # fmt: skip


def _scorer_and_labels(text: str) -> tuple[str, str | None]:
    """``scorer`` or ``scorer:labels``."""
    scorer, _, labels = text.partition(":")
    return scorer.strip(), labels.strip() or None


def _columns_of(scorer: str, labels: str | None, scored: Iterable[str]) -> list[str]:
    """What is read into the task of a scorer: it, and what people said beside it."""
    beside = [labels, f"{scorer}{_HUMAN}", f"{scorer}{_JUDGE}"]
    return [scorer, *(name for name in scored if name in beside)]


def _samples(traces: Iterable[Mapping[str, Any]], place: _Place) -> Iterator[dict[str, Any]]:
    """What the rows of each trace have in common; its inputs say which sample it is."""
    run_id = place.run_id
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
            "trace": place.trace(trace["info"]["trace_id"]),
        }


def _assessments(trace: Mapping[str, Any], run_id: str | None) -> Iterator[dict[str, Any]]:
    """Those that count: not replaced by a later one, and not of another evaluation."""
    for stated in _of_run(trace, run_id):
        if stated.get("valid", True):
            yield stated


def _of_run(trace: Mapping[str, Any], run_id: str | None) -> Iterator[dict[str, Any]]:
    for stated in trace["info"].get("assessments") or ():
        source = (stated.get("metadata") or {}).get(_RUN)
        if run_id is None or source in (None, run_id):
            yield stated


def _feedback(
    trace: Mapping[str, Any], run_id: str | None, both: Collection[str] = ()
) -> dict[str, list[Any]]:
    """What each scorer said, in the order of time; None where it failed."""
    # Where people judged beside a scorer, under its name, ``<name>.judge`` is what the scorer said
    # and ``<name>.human`` what they did; ``<name>`` is the scorer's, or what replaced it.
    given = _judgements(trace, run_id)
    replaced = _replaced_by_people(given)
    found: dict[str, list[Any]] = defaultdict(list)
    for one in given:
        name, valid = one["assessment_name"], one.get("valid", True)
        said = None if one["feedback"].get("error") else one["feedback"].get("value")
        if valid and (name not in both or not _is_human(one) or one.get("overrides")):
            found[name].append(said)
        if name in both and _is_human(one) and valid:
            found[f"{name}{_HUMAN}"].append(said)
        if name in both and not _is_human(one) and (valid or one.get("assessment_id") in replaced):
            found[f"{name}{_JUDGE}"].append(said)
    return dict(found)


def _judged_by_both(traces: Iterable[Mapping[str, Any]], run_id: str | None) -> set[str]:
    """Names under which a scorer and people judged traces, if not the same ones."""
    people, scorers = set(), set()
    for trace in traces:
        given = _judgements(trace, run_id)
        replaced = _replaced_by_people(given)
        for one in given:
            if one.get("valid", True) and _is_human(one):
                people.add(one["assessment_name"])
            elif one.get("valid", True) or one.get("assessment_id") in replaced:
                scorers.add(one["assessment_name"])
    return people & scorers


def _judgements(trace: Mapping[str, Any], run_id: str | None) -> list[dict[str, Any]]:
    given = [one for one in _of_run(trace, run_id) if "feedback" in one]
    return sorted(given, key=lambda one: str(one.get("create_time", "")))


def _replaced_by_people(given: Iterable[Mapping[str, Any]]) -> set[str]:
    return {
        one["overrides"]
        for one in given
        if one.get("valid", True) and _is_human(one) and one.get("overrides")
    }


def _is_human(stated: Mapping[str, Any]) -> bool:
    return (stated.get("source") or {}).get("source_type") == "HUMAN"


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
        "scorers": "Names of scorers, separated by commas; each becomes a task of its own, and "
        "scorer:labels takes what people said along.",
        "higher_is_better": "Direction of the scores, where the scorers' names do not tell.",
    },
)
