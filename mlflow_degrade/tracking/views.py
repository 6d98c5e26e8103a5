"""Saved views in an experiment: MLflow's list of runs and its charts, set up for verdicts.

MLflow 3.16 and newer keep a view as a tag of the experiment; older ones ignore the tag.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import redact

VIEW_TAG = "mlflow.sharedViewState."
INSTALLED_TAG = "degrade.views"
"""Which views were put into an experiment: one that is gone since was deleted, and stays away."""

_DECIDED = "tags.`degrade.verdict` LIKE '%'"
_DATASET = "attributes.`Dataset`"
_NAME = "attributes.`Run Name`"
_NAME_WIDTH = 290
_COMPRESSED = "deflate;"


@dataclass(frozen=True)
class View:
    """One saved view: columns of the list of runs, and charts where it opens on them."""

    id: str
    name: str
    columns: Mapping[str, int]  # Column to its width in pixels, in their order.
    charts: Sequence[Mapping[str, Any]] = ()

    def state(self) -> dict[str, Any]:
        """What MLflow's page reads; every field that is left out has its default there."""
        section = f"{self.id}-charts"
        charts = [
            {
                "uuid": f"{self.id}-{number}",
                "metricSectionId": section,
                "deleted": False,
                "isGenerated": False,
                "runsCountToCompare": 100,
                **chart,
            }
            for number, chart in enumerate(self.charts)
        ]
        sections = [
            {
                "uuid": section,
                "name": self.name,
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
                "columns": 2,
            }
        ]
        return {
            "searchFilter": _DECIDED,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": list(self.columns),
            "columnOrder": [_NAME, *self.columns],
            "columnWidths": {_NAME: _NAME_WIDTH, **self.columns},
            "runsHiddenMode": "SHOW_ALL",
            # Sections that MLflow adds for other metrics then come after these.
            "isAccordionReordered": True,
            **({"compareRunCharts": charts, "compareRunSections": sections} if charts else {}),
        }

    def envelope(self, now: int) -> str:
        """The value of its tag."""
        state = json.dumps(self.state()).encode()
        return json.dumps(
            {"name": self.name, "createdAt": now, "updatedAt": now, "state": _packed(state)}
        )


def _packed(state: bytes) -> str:
    return _COMPRESSED + base64.b64encode(zlib.compress(state)).decode()


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _tag(name: str) -> str:
    return f"tags.`degrade.{name}`"


def _scatter(title: str, x: str) -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "displayName": title,
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": "degrade/delta_pp", "type": "METRIC"},
    }


_VERDICT_COLUMNS = {
    _tag("verdict"): 130,
    _tag("change"): 210,
    _tag("guilty"): 240,
    _tag("size"): 170,
    _tag("decode"): 190,
    _DATASET: 190,
}

VIEWS = (
    View("degrade-verdicts", "Verdicts", _VERDICT_COLUMNS),
    View(
        "degrade-speed",
        "Speed against quality",
        _VERDICT_COLUMNS,
        charts=(
            _scatter("Change (pp) against decode speed (× baseline)", "relative/throughput/decode"),
            _scatter("Change (pp) against size (× baseline)", "relative/size"),
            {
                "type": "PARALLEL",
                "displayName": "Size and speed (× baseline), change (pp), verdict (−1, 0, 1)",
                "selectedParams": [],
                "selectedMetrics": [
                    "relative/size",
                    "relative/throughput/decode",
                    "degrade/delta_pp",
                    "degrade/verdict",
                ],
                "showAllRuns": True,
            },
        ),
    ),
    View(
        "degrade-costs",
        "Costs",
        {
            _tag("verdict"): 130,
            _tag("size"): 170,
            _tag("prefill"): 200,
            _tag("decode"): 190,
            _tag("encode"): 190,
            _tag("memory"): 180,
            _metric("latency/next_token_ms_p50"): 200,
            _metric("latency/next_token_ms_p99"): 200,
        },
    ),
)


def install_views(experiment_id: str) -> str | None:
    """Put the views into an experiment, once; the id of the first one where it is there."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    tags = dict(client.get_experiment(experiment_id).tags)
    known = json.loads(tags.get(INSTALLED_TAG) or "{}")
    missing = {view.id: view for view in VIEWS if view.id not in known}
    names = _names(tags)
    try:
        for view in missing.values():
            # A view of somebody's own keeps its name; two of one name cannot be told apart.
            if VIEW_TAG + view.id not in tags and view.name.lower() not in names:
                tags[VIEW_TAG + view.id] = view.envelope(int(time.time() * 1_000))
                client.set_experiment_tag(
                    experiment_id, VIEW_TAG + view.id, tags[VIEW_TAG + view.id]
                )
        if missing:
            told = {**known, **dict.fromkeys(missing, 1)}
            client.set_experiment_tag(experiment_id, INSTALLED_TAG, json.dumps(told))
    except MlflowException:
        pass  # who may log runs may still not be one who edits the experiment
    return VIEWS[0].id if VIEW_TAG + VIEWS[0].id in tags else None


def report_address(run_id: str) -> str:
    """Where MLflow's pages show the report of a run."""
    return f"#/experiments/{_experiment(run_id)}/runs/{run_id}/artifacts/report.html"


def where_to_look(run_id: str | None = None) -> list[str]:
    """How to see a run among the others in MLflow, in lines to print; installs the views."""
    import mlflow

    if run_id is None:
        active: Any = mlflow.active_run()
        run_id = str(active.info.run_id)
    experiment = _experiment(run_id)
    view = install_views(experiment)
    pages = [f"#/experiments/{experiment}/runs" + (f"?viewStateShareKey={view}" if view else "")]
    pages.append(f"#/experiments/{experiment}/runs/{run_id}")
    address, lines = mlflow.get_tracking_uri(), []
    if urlsplit(address).scheme not in ("http", "https"):
        lines.append(f"mlflow server --backend-store-uri {redact(address)} --port 5000")
        address = "http://127.0.0.1:5000"
    said = [f"{redact(address).rstrip('/')}/{page}" for page in pages]
    return [
        *(f"To look at it, start: {line}" for line in lines),
        f"All verdicts: {said[0]}",
        f"This run: {said[1]}",
    ]


def _experiment(run_id: str) -> str:
    """The experiment of the active run, or of another."""
    import mlflow

    active: Any = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        return str(active.info.experiment_id)
    return _looked_up(mlflow.get_tracking_uri(), run_id)


@lru_cache
def _looked_up(server: str, run_id: str) -> str:
    """A run stays in its experiment: one request for each."""
    from mlflow import MlflowClient

    return str(MlflowClient(server).get_run(run_id).info.experiment_id)


def _names(tags: Mapping[str, str]) -> set[str]:
    """Names of the views there are, as MLflow compares them."""
    found = set()
    for key, value in tags.items():
        if key.startswith(VIEW_TAG):
            try:
                found.add(str(json.loads(value)["name"]).strip().lower())
            except (ValueError, KeyError, TypeError):
                continue
    return found
