"""Traces of a served model: what it was asked, and what it wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import InputError, TrackingError, UnknownNameError

_PAGE = 500
# Where MLflow says which logged model a trace is of.
_MODEL_ID = "mlflow.modelId"


@dataclass(frozen=True)
class ServedText:
    """One trace of which both sides are known."""

    trace_id: str
    time_ms: int
    prompt: str | None
    messages: list[dict[str, Any]] | None  # One of the two.
    text: str
    model_id: str | None = None


@dataclass
class Traffic:
    """What was found among the traces of an experiment, in the order of time."""

    served: list[ServedText] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # Reason to how many.
    found: int = 0


def find_experiment(name: str) -> str:
    """Id of the experiment with a name, or with the id that is given as one."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    found = client.get_experiment_by_name(name)
    if found is None and name.isdigit():
        try:
            found = client.get_experiment(name)
        except MlflowException:
            found = None
    if found is None:
        known = [each.name for each in client.search_experiments(max_results=1_000)]
        raise UnknownNameError("experiment", name, known)
    return str(found.experiment_id)


def read_traffic(
    experiment_id: str,
    wanted: Callable[[str, int], bool],
    *,
    since_ms: int = 0,
    condition: str | None = None,
    most: int | None = None,
) -> Traffic:
    """Traces that are wanted by their id and time, and what they say.

    Parameters
    ----------
    experiment_id : str
    wanted : callable
        Asked with a trace's id and time before anything else of it is looked at.
    since_ms : int
        Traces from before are not looked for.
    condition : str, optional
        A filter of MLflow's ``search_traces``.
    most : int, optional
        Wanted traces to read, the earliest.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, traffic = MlflowClient(), Traffic()
    for info in _infos(client, experiment_id, since_ms, condition):
        traffic.found += 1
        trace_id, time_ms = str(info.trace_id), int(info.request_time)
        if not wanted(trace_id, time_ms):
            continue
        state = str(getattr(info.state, "value", info.state))
        if state == "IN_PROGRESS":
            continue  # the next call finds it finished
        if state == "ERROR":
            traffic.left_out["failed"] += 1
            continue
        try:
            trace = client.get_trace(trace_id)
        except MlflowException as error:
            raise TrackingError(f"the trace {trace_id} cannot be read: {error}") from error
        asked = prompt_of(_once(trace.data.request))
        text = text_of(_once(trace.data.response))
        if asked is None:
            traffic.left_out["without a prompt or messages"] += 1
        elif text is None or not text.strip():
            traffic.left_out["without a text"] += 1
        else:
            model = (info.trace_metadata or {}).get(_MODEL_ID)
            prompt, messages = (asked, None) if isinstance(asked, str) else (None, asked)
            traffic.served.append(ServedText(trace_id, time_ms, prompt, messages, text, model))
        if most is not None and len(traffic.served) >= most:
            break
    return traffic


def _infos(client: Any, experiment_id: str, since_ms: int, condition: str | None) -> Iterator[Any]:
    """What is known of each trace besides its texts, the earliest first."""
    from mlflow.exceptions import MlflowException

    conditions = [f"attributes.timestamp_ms >= {since_ms}"] if since_ms > 0 else []
    conditions += [condition] if condition else []
    token = None
    while True:
        try:
            page = client.search_traces(
                locations=[experiment_id],
                filter_string=" AND ".join(conditions) or None,
                max_results=_PAGE,
                order_by=["attributes.timestamp_ms ASC"],
                page_token=token,
                include_spans=False,
            )
        except MlflowException as error:
            if condition and error.error_code == "INVALID_PARAMETER_VALUE":
                raise InputError(
                    f"--filter {condition!r}: {error}. Write it as for mlflow.search_traces, e.g. "
                    "\"trace.name = 'chat'\"."
                ) from error
            raise TrackingError(f"the traces cannot be searched: {error}") from error
        yield from (trace.info for trace in page)
        token = page.token
        if not token:
            return


def _once(text: Any) -> Any:
    """What the JSON text of a span's inputs or outputs holds; a text in it stays one."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def prompt_of(value: Any) -> str | list[dict[str, Any]] | None:
    """What a trace's inputs ask: a prompt, messages, or neither.

    Examples
    --------
    >>> prompt_of({"prompt": "2 + 2 =", "temperature": 0})
    '2 + 2 ='
    >>> prompt_of({"request": {"messages": [{"role": "user", "content": "hi"}]}})
    [{'role': 'user', 'content': 'hi'}]
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        if value and all(isinstance(m, Mapping) and "role" in m for m in value):
            return [dict(message) for message in value]
        return prompt_of(value[0]) if len(value) == 1 else None
    if not isinstance(value, Mapping):
        return None
    for key in ("messages", "prompt"):
        if value.get(key) is not None:
            return prompt_of(value[key])
    if len(value) == 1:
        return prompt_of(next(iter(value.values())))
    found = [p for v in value.values() if isinstance(v, (Mapping, list)) if (p := prompt_of(v))]
    return found[0] if len(found) == 1 else None


def text_of(value: Any) -> str | None:
    """The text that a trace's outputs hold.

    Examples
    --------
    >>> text_of({"choices": [{"message": {"role": "assistant", "content": "hello"}}]})
    'hello'
    >>> text_of([{"text": "four", "log_likelihoods": None}])
    'four'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return text_of(value[0]) if len(value) == 1 else None
    if not isinstance(value, Mapping):
        return None
    for key in ("choices", "message", "content", "text", "output_text"):
        if value.get(key) is not None:
            return text_of(value[key])
    return text_of(next(iter(value.values()))) if len(value) == 1 else None
