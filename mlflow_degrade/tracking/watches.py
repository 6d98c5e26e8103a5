"""Watches in MLflow: a run each, whose state the next call goes on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.cache import digest_json
from ..core.errors import TrackingError
from ..decision.watch import Watch
from .artifact_access import delete_artifact, read_json
from .evaluations import KIND_TAG

KIND = "watch"
WATCH_TAG = "degrade.watch"
"""What is watched, whichever models are compared: one alpha a year for each."""
IDENTITY_TAG = "degrade.watch_identity"
STATE_TAG = "degrade.watch_state"
"""The artifact with the state and the digest of it: what this names is valid, all else is not."""
VERDICT_TAG = "degrade.watch_verdict"
_NAME, _DIGEST = "file", "sha256"


@dataclass(frozen=True)
class KeptWatch:
    """A run that holds a watch, and where it stands."""

    run_id: str
    watch: Watch
    identity: Mapping[str, Any]
    state: str  # The tag that the next state takes the place of.


def watch_key(experiment_id: str, condition: str | None) -> str:
    """What is watched: the traces of an experiment that fit a condition."""
    return digest_json([experiment_id, condition])


def newest_watch(
    experiment_id: str, key: str, identity: Mapping[str, Any]
) -> tuple[KeptWatch | None, str | None]:
    """The newest watch of the same traces, in the experiment that they are in."""
    # And, newer than that, the run of one with this identity that ended before it kept anything.
    from mlflow import MlflowClient

    condition, begun = f"tags.`{WATCH_TAG}` = '{key}'", None
    found = MlflowClient().search_runs(
        [experiment_id], condition, order_by=["attributes.start_time DESC"]
    )
    for run in found:
        tags, run_id = run.data.tags, str(run.info.run_id)
        own = json.loads(tags.get(IDENTITY_TAG, "{}"))
        if STATE_TAG in tags:
            watch = _read(run, json.loads(tags[STATE_TAG]))
            return KeptWatch(run_id, watch, own, tags[STATE_TAG]), begun
        if begun is None and own == identity:
            begun = run_id
    return None, begun


def _read(run: Any, stated: Mapping[str, str]) -> Watch:
    content = read_json(run.info.artifact_uri, stated[_NAME])
    if _digest(content) != stated[_DIGEST]:
        raise TrackingError(
            f"{stated[_NAME]} of run {run.info.run_id} is not what the watch wrote: it was changed "
            "since. Begin another with --anew."
        )
    return Watch.from_dict(content)


def identity_tags(key: str, identity: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a watch's run, from its first moment."""
    return {KIND_TAG: KIND, WATCH_TAG: key, IDENTITY_TAG: json.dumps(identity, sort_keys=True)}


def keep(run_id: str, watch: Watch, before: str | None) -> None:
    """Make a state the one that the next call goes on from; all of it or nothing."""
    # The file is new, and counts once the tag names it: a process that is killed in between leaves
    # the state of before.
    import mlflow
    from mlflow import MlflowClient

    client, content = MlflowClient(), watch.as_dict()
    number = 0 if before is None else int(json.loads(before)["number"]) + 1
    name = f"watch/state-{number:06d}.json"
    now = client.get_run(run_id).data.tags.get(STATE_TAG)
    if now != before:
        raise TrackingError(
            f"another process went on with the watch in run {run_id} meanwhile: nothing of this "
            "one is kept. Call it once at a time; what it did not keep is scored again."
        )
    mlflow.log_dict(content, name)
    stated = {_NAME: name, _DIGEST: _digest(content), "number": number}
    client.set_tag(run_id, STATE_TAG, json.dumps(stated))
    client.set_tag(run_id, VERDICT_TAG, watch.verdict.value)
    for week in watch.weeks[-2:]:  # the latest, and the one that it may have ended
        if not week.traces:
            continue
        figures = {
            "log_e": week.log_e,
            "traces": week.traces,
            "differing": week.differing / week.tokens,
            "champion_loglik": week.champion_loglik / week.traces,
        }
        if watch.challenged:
            figures |= {
                "against": week.against,
                "for": week.agreeing,
                "challenger_loglik": week.challenger_loglik / week.traces,
            }
        mlflow.log_metrics({f"watch/{k}": float(v) for k, v in figures.items()}, step=week.week + 1)
    if before is not None:
        delete_artifact(mlflow.get_artifact_uri(), json.loads(before)[_NAME])


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
