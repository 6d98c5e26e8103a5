"""From what a user calls a model to its evaluation in MLflow.

A gate compares evaluations, a user names models: the candidate of a recipe run, a logged model, a
version or an alias in the registry. What counts is the content: an evaluation belongs to a model
when it was made of the same bytes.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.prompt.constants import IS_PROMPT_TAG_KEY

from ..core.errors import RegistryError, TrackingError, UnknownNameError
from ..samples.readers.mlflow_runs import whole_reference
from ..samples.readers.mlflow_traces import has_traces
from ..samples.table import SampleScores
from ..tracking.artifact_access import fetch
from ..tracking.evaluations import (
    ASKED_TAG,
    KEY_TAG,
    KIND_TAG,
    MODEL_DIGEST_TAG,
    MODEL_URI_TAG,
    asked_digests,
    is_genai,
    load_facts,
    load_samples,
)
from .model_content import ModelContent, read_content

# The registry, asked no more than needed, and the versions of a name of whatever characters.

_PAGE = 1_000


def plain_registry() -> Any:
    """The registry of MLflow's client for names that are known to be models'."""
    # The client itself asks before each call whether the name is a prompt's.
    from mlflow import MlflowClient

    return MlflowClient()._get_registry_client()  # type: ignore[no-untyped-call]


def versions_of(registry: Any, name: str, *, hidden: bool = False) -> list[Any]:
    """All versions of exactly this name."""
    # MLflow's filters have no escapes: a name with a quote in it ends the string early, and the
    # rest of it is read as a condition. Such a name is put between the other quotes, and one with
    # both kinds is looked for among all versions.
    quote = next((mark for mark in ("'", '"') if mark not in name), None)
    conditions = [] if quote is None else [f"name = {quote}{name}{quote}"]
    searches = [conditions]
    if hidden:
        searches.append([*conditions, f"tag.`{IS_PROMPT_TAG_KEY}` = 'true'"])
    found = (v for search in searches for v in _pages(registry, " AND ".join(search)))
    # Databases fold case, and some of them accents.
    return [version for version in found if version.name == name]


def _pages(registry: Any, condition: str) -> Iterator[Any]:
    token = None
    while True:
        page = registry.search_model_versions(
            condition or None, max_results=_PAGE, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


_RUN = re.compile(r"runs:/+(?P<run>[^/]+)(?:/(?P<path>.+?))?/*")
_MODEL = re.compile(r"models:/+(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))?")
SIDE_TAG = "degrade.side"
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Subject:
    """One side of a gate."""

    reference: str  # As the user gave it.
    run: Any  # Of its evaluation, where the reference names one.
    model_uri: str | None  # Logged model or version, where there is one.
    # Name and version in the registry, where the reference names them.
    registered: tuple[str, str] | None = None

    @property
    def run_id(self) -> str | None:
        """Id of the evaluation's run."""
        return None if self.run is None else str(self.run.info.run_id)


def find_subject(reference: str) -> Subject:
    """Look up what a reference names."""
    from mlflow.exceptions import MlflowException

    reference = whole_reference(reference)
    if (match := _RUN.fullmatch(reference)) is not None:
        try:
            return _of_run(reference, match["run"], match["path"])
        except MlflowException as error:
            raise TrackingError(f"{reference} cannot be read: {error}") from error
    if (match := _MODEL.fullmatch(reference)) is not None:
        if match["alias"] is None and match["version"] is None:
            return Subject(reference, None, f"models:/{match['name']}")
        try:
            return _of_version(reference, match["name"], match["alias"], match["version"])
        except MlflowException as error:
            raise RegistryError(f"{reference} cannot be read: {error}") from error
    raise TrackingError(
        f"{reference!r} names no run and no model: write runs:/<run id>, models:/<name>@<alias> or "
        "models:/<name>/<version>."
    )


class ModelFiles:
    """Files of logged models on this machine, brought here once each for as long as it is open."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="mlflow-degrade-")
        self._folders: dict[str, Path] = {}
        self._contents: dict[str, ModelContent] = {}

    def __enter__(self) -> ModelFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def folder(self, model_uri: str) -> Path:
        """Where a model's files are; never write there, as it may be where they are kept."""
        from mlflow.exceptions import MlflowException

        if model_uri not in self._folders:
            target = Path(self._scratch.name) / str(len(self._folders))
            try:
                found = fetch(_location(model_uri), "", target)
            except (MlflowException, RegistryError, OSError) as error:
                raise RegistryError(f"{model_uri} cannot be read: {error}") from error
            if found is None:
                raise RegistryError(
                    f"{model_uri}: there are no files. Was the upload of the model interrupted?"
                )
            self._folders[model_uri] = found
        return self._folders[model_uri]

    def content(self, model_uri: str) -> ModelContent:
        """Digests of a model's files."""
        if model_uri not in self._contents:
            folder = self.folder(model_uri)
            try:
                self._contents[model_uri] = read_content(folder)
            except RegistryError as error:
                raise RegistryError(f"{model_uri}: {error}") from error
        return self._contents[model_uri]


def _location(model_uri: str) -> str:
    """Where a model's files are kept, asked for once."""
    from mlflow import MlflowClient

    match = _MODEL.fullmatch(model_uri)
    if match is None:
        return model_uri
    client = MlflowClient()
    if match["alias"] is None and match["version"] is None:
        return str(client.get_logged_model(match["name"]).artifact_location)
    version = match["version"]
    if version is None:
        version = client.get_model_version_by_alias(match["name"], match["alias"]).version
    return str(plain_registry().get_model_version_download_uri(match["name"], str(version)))


def logged_content(model_uri: str) -> ModelContent:
    """Digests of a logged model's files; see `ModelFiles.content`."""
    with ModelFiles() as files:
        return files.content(model_uri)


def content_digest(model_uri: str) -> str:
    """Digest of a logged model's bytes, as evaluations of it carry it; see `logged_content`."""
    return logged_content(model_uri).digest


def evaluations_of(digest: str, experiments: Collection[str]) -> list[Any]:
    """Finished evaluation runs of a model's bytes in some experiments, newest first."""
    from .retry_ledger import search_runs

    return search_runs(
        f"tags.`{MODEL_DIGEST_TAG}` = '{digest}' and tags.`{KIND_TAG}` = 'evaluation' "
        "and attributes.status = 'FINISHED'",
        experiments=experiments,
    )


def genai_runs_of(model_uri: str, experiments: Collection[str]) -> list[Any]:
    """Runs of ``mlflow.genai.evaluate`` on a logged model, newest first."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, match = MlflowClient(), _MODEL.fullmatch(model_uri)
    if match is None:
        return []
    model_id = match["name"]
    if match["version"] is not None:
        # The version knows its logged model by where its files are from.
        source = str(client.get_model_version(match["name"], match["version"]).source)
        model_id = source.removeprefix("models:/").strip("/")
    try:
        metrics = client.get_logged_model(model_id).metrics or []
    except MlflowException:
        return []
    runs = [client.get_run(run_id) for run_id in {str(m.run_id) for m in metrics if m.run_id}]
    mine = [r for r in runs if is_genai(r) and r.info.experiment_id in experiments]
    return sorted(mine, key=lambda run: int(run.info.start_time), reverse=True)


def samples_of(
    run: Any,
    model_uri: str | None,
    *,
    scorers: str | Iterable[str] | None = None,
    files: ModelFiles | None = None,
) -> SampleScores:
    """Scores of an evaluation run; those of traces are said to be of the logged model."""
    samples = load_samples(run, scorers)
    if not is_genai(run):
        return samples
    samples = samples.with_model(run.info.run_name)
    if model_uri is None:
        return samples
    found = logged_content(model_uri) if files is None else files.content(model_uri)
    return samples.with_digest(found.digest)


def asked_of(run: Any) -> dict[str, Any]:
    """How to put the questions of an evaluation to another model; see `evaluate_missing`."""
    facts = load_facts(run)
    key = facts.get("key", {})
    known = {name: key[name] for name in ("suite", "apply_chat_template") if key.get(name)}
    return {**facts.get("asked", {}), **known}


def match_evaluations(baseline: list[Any], candidate: list[Any]) -> tuple[Any, Any] | None:
    """The newest evaluations of two models that asked the same in the same way, in one place."""
    known: dict[str, Mapping[str, str | None]] = {}

    def asked(run: Any) -> Mapping[str, str | None]:
        run_id = run.info.run_id
        if run_id not in known and is_genai(run):
            # Its traces say what was asked; pairing refuses other inputs.
            known[run_id] = {"questions": "mlflow.genai.evaluate", "processor": None}
        elif run_id not in known:
            stated = run.data.tags.get(ASKED_TAG)
            # Runs of earlier versions say it in a file only.
            known[run_id] = (
                asked_digests(load_facts(run).get("key", {})) if stated is None
                else json.loads(stated)
            )  # fmt: skip
        return known[run_id]

    for right in candidate:
        for left in baseline:
            where = [asked(run)["processor"] for run in (left, right)]
            # Of other tools' logs it is not known where they were computed.
            one_place = where[0] == where[1] or None in where
            if one_place and asked(left)["questions"] == asked(right)["questions"]:
                return left, right
    return None


def _of_run(reference: str, run_id: str, path: str | None) -> Subject:
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(run_id)
    if path is not None:
        return Subject(reference, _evaluation(client, run, needed=False), reference)
    return Subject(reference, _evaluation(client, run), _model_of(client, run))


def _evaluation(client: Any, run: Any, needed: bool = True) -> Any:
    """The run itself when it is an evaluation, else its child that evaluated the candidate."""
    run_id = str(run.info.run_id)
    if KEY_TAG in run.data.tags or client.list_artifacts(run_id, "samples"):
        return run
    if has_traces(run_id, run.info.experiment_id):
        return run
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`{_PARENT}` = '{run_id}'", max_results=100
    )
    for child in children:
        if child.data.tags.get(SIDE_TAG) == "candidate":
            return child
    if not needed:
        return None
    raise TrackingError(
        f"run {run_id} has no samples/<task>.parquet and no child run that evaluated a candidate: "
        "name an evaluation run, or log one with mlflow-degrade log-lm-eval."
    )


def _model_of(client: Any, run: Any) -> str | None:
    """The model a run logged; of a recipe's candidate evaluation, the model its parent logged."""
    parent = run.data.tags.get(_PARENT)
    runs = [run]
    if parent is not None and run.data.tags.get(SIDE_TAG) == "candidate":
        runs.append(client.get_run(parent))
    for logged in runs:
        outputs = getattr(getattr(logged, "outputs", None), "model_outputs", None) or []
        if not outputs and is_genai(logged):  # the model that was evaluated
            outputs = getattr(getattr(logged, "inputs", None), "model_inputs", None) or []
        if outputs:
            return f"models:/{outputs[-1].model_id}"
    # Logs of other tools name the model they are of, where whoever logged them said so.
    stated = run.data.tags.get(MODEL_URI_TAG)
    return None if stated is None else str(stated)


def _of_version(reference: str, name: str, alias: str | None, version: str | None) -> Subject:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    try:
        if alias is not None:
            # A default store folds no case; a gated one does. Ask it rather than the list.
            found = client.get_model_version_by_alias(name, alias)
        else:
            found = client.get_model_version(name, str(version))
    except MlflowException as error:
        _require_name(client, name, alias, error)
        raise
    return Subject(reference, None, f"models:/{name}/{found.version}", (name, str(found.version)))


def _require_name(client: Any, name: str, alias: str | None, cause: Exception) -> None:
    """Say which registered models, or which aliases of it, there are instead."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = [found.name for found in client.search_registered_models(max_results=1_000)]
        raise UnknownNameError("registered model", name, known) from error
    if alias is not None:
        raise UnknownNameError(
            f"alias of {name}", alias, model.aliases, "Set it once, by hand, for a first model."
        ) from cause
