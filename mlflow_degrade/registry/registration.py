"""Log a model directory as a pyfunc model, and register it: a whole version or none."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..core.errors import RegistryError
from ..decision.results import Decision
from ..engine.conversation import has_template
from ..engine.providers import CUDA
from ..report.markdown import VERSION
from ..tracking.evaluations import MODEL_DIGEST_TAG
from .evidence import EVIDENCE_TAG, POLICY_TAG, RUN_TAG, VERDICT_TAG, proof_tag
from .model_content import ARTIFACT_TAG, ModelContent
from .served_code import SCRIPT, served_package, without_bytecode

# MLflow refuses names of logged models with these.
_NOT_IN_NAMES = re.compile(r"""[/:.%"'\s]+""")
_SERVING = (
    "mlflow",
    "numpy",
    "pandas",
    "onnx",
    "onnxruntime",
    "transformers",
    "jinja2",
    "pydantic",
)

# What MLflow's server hands on of a body of OpenAI's completions, by its types.
_COMPLETION = {
    "max_tokens": "integer",
    "echo": "boolean",
    "temperature": "double",
    "top_p": "double",
    "seed": "long",
    "n": "integer",
    "stream": "boolean",
    "model": "string",
}


def log_model(
    model_dir: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    one_by_one: bool = False,
    prompting: Mapping[str, Any] | None = None,
    name: str = "model",
) -> Any:
    """Log a model directory to the active run as a pyfunc model that carries its own code.

    Parameters
    ----------
    model_dir : Path
        ONNX graph, weights, configuration and tokenizer; logged byte for byte.
    metadata : mapping, optional
        Stored in the ``MLmodel`` file.
    one_by_one : bool
        Run prompts one at a time when serving, for a model whose scores depend on the batch.
    prompting : mapping, optional
        How it was asked when it was evaluated; conversations are served with the same template and
        system instruction. See `mlflow_degrade.core.prompting.Prompting.facts`.
    name : str
        What MLflow's pages call it.

    Returns
    -------
    mlflow.models.model.ModelInfo

    Notes
    -----
    ``predict`` generates text for the rows of a column ``prompt`` or ``messages``, or scores the
    strings of a column ``choices`` as its continuations, and gives an encoder's embeddings; see
    `mlflow_degrade.engine.language_model`. With ``echo`` or ``logprobs`` it answers as OpenAI's
    completions do; see `mlflow_degrade.engine.completions`.
    """
    import mlflow

    called = logged_name(name)
    with served_package() as code, without_bytecode():
        return mlflow.pyfunc.log_model(
            name=called,
            # Models from code: MLflow runs this file where the model is loaded, nothing is pickled.
            python_model=str(SCRIPT),
            artifacts={"model_dir": str(model_dir)},
            code_paths=[str(code)],
            pip_requirements=[f"{name}=={version(name)}" for name in _serving_packages()],
            model_config={
                "one_by_one": one_by_one,
                "prompting": dict(prompting or {}),
                "name": called,
            },
            signature=_signature(),
            # MLflow loads what was logged and answers this, and warns where that fails.
            input_example=(_example(model_dir), {"max_new_tokens": 1}),
            metadata=dict(metadata or {}),
        )


def logged_name(name: str) -> str:
    """A name as MLflow takes it for a logged model."""
    return _NOT_IN_NAMES.sub("-", name).strip("-") or "model"


def log_files(model_dir: Path) -> str:
    """Log a model directory to the active run as files, and give their URI."""
    import mlflow

    mlflow.log_artifacts(str(model_dir), "model")
    return mlflow.get_artifact_uri("model")


def register(
    model_uri: str,
    name: str,
    *,
    run_id: str,
    tags: Mapping[str, str],
    description: str = "",
    model_id: str | None = None,
) -> Any:
    """Create a model version; on any failure nothing of it is left.

    Parameters
    ----------
    model_uri : str
        Of a logged model.
    name : str
        Registered model, created when it does not exist.
    run_id : str
        Run that holds the evidence.
    tags : mapping
        Set together with the version, so that no version is ever seen without them.
    description : str
        Shown on the version's page; ``<version>`` in it becomes the version's number.
    model_id : str, optional
        Id of the logged model, whose page then names the version; by default that of `model_uri`.

    Returns
    -------
    mlflow.entities.model_registry.ModelVersion

    Raises
    ------
    RegistryError
        The registry refused; the message is its own.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    created = False
    model_id = model_id or _logged_model(model_uri)
    make = partial(
        client.create_model_version,
        name,
        source=model_uri,
        run_id=run_id,
        tags=dict(tags),
        description=description,
        model_id=model_id,
    )
    try:
        try:
            made = make()
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            created = _create_registered_model(client, name)
            made = make()
    except BaseException as error:
        # Ctrl-C too: an empty registered model would look like a model that once passed.
        if created:
            client.delete_registered_model(name)
        if isinstance(error, MlflowException):
            raise RegistryError(f"{name!r} could not be registered: {error}") from error
        raise
    if VERSION in description:
        text = description.replace(VERSION, str(made.version))
        made = client.update_model_version(name, made.version, text)
    if model_id is not None:
        _link(client, model_id, name, made.version)
    return made


def unregister(name: str, version: str, model_uri: str) -> None:
    """Delete a version, and the link to it from its logged model."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    client.delete_model_version(name, version)
    if (model_id := _logged_model(model_uri)) is not None:
        _link(client, model_id, name, version, there=False)


def verdict_tags(
    decision: Decision, evidence_digest: str, run_id: str, content: ModelContent
) -> dict[str, str]:
    """Tags by which a version points to its verdict; proof is the evidence in the run."""
    tags = {
        VERDICT_TAG: decision.verdict.value,
        EVIDENCE_TAG: evidence_digest,
        POLICY_TAG: decision.policy.digest(),
        RUN_TAG: run_id,
        ARTIFACT_TAG: content.artifact_digest,
    }
    digest = decision.candidate.get("model_digest")
    return proof_tag(tags if digest is None else {**tags, MODEL_DIGEST_TAG: digest})


def _logged_model(model_uri: str) -> str | None:
    """The id in ``models:/m-…``; other addresses have none."""
    return model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else None


def _link(client: Any, model_id: str, name: str, version: Any, *, there: bool = True) -> None:
    """Have the page of a logged model name a version, or name it no longer."""
    # MLflow's own registration sets this tag from its client, and its server for whoever asks it
    # to make a version; a client on a database has to do it itself. Without it the page says "Not
    # registered".
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    entry = {"name": name, "version": str(version)}
    try:
        stated = client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS)
        listed = json.loads(stated or "[]")
        known = [each for each in listed if _same_version(each, entry)]
        if there and not known:
            listed.append({"name": name, "version": version})
        elif not there and known:
            listed = [each for each in listed if each not in known]
        else:
            return
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(listed)})
    except (MlflowException, ValueError, TypeError) as error:
        # The version is made, and holds without it.
        warnings.warn(
            f"the page of logged model {model_id} does not name version {version} of {name!r}: "
            f"{error}",
            stacklevel=3,
        )


def _same_version(each: Any, entry: Mapping[str, str]) -> bool:
    return {key: str(value) for key, value in dict(each).items()} == dict(entry)


def _create_registered_model(client: Any, name: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


def _serving_packages() -> list[str]:
    """What the logged model needs at serving time, under the names installed here."""
    import onnxruntime

    gpu = CUDA in onnxruntime.get_available_providers()
    return ["onnxruntime-gpu" if gpu and name == "onnxruntime" else name for name in _SERVING]


def _example(model_dir: Path) -> Any:
    """A row that the model answers: a conversation where it has a template for one."""
    import pandas as pd

    question = "What is the capital of France?"
    if has_template(model_dir):
        return pd.DataFrame([{"messages": [{"role": "user", "content": question}]}])
    return pd.DataFrame([{"prompt": question}])


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, DataType, Object, Property

    anything: Any = AnyType  # MLflow does not annotate it
    message = Object([Property(name, DataType.string) for name in ("role", "content")])
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "prompt", required=False),
                ColSpec(Array(message), "messages", required=False),
                ColSpec(Array(DataType.string), "choices", required=False),
                # Of completions. As parameters they would be of one type, and chats that are
                # answered without them, with `"logprobs": true` say, would be refused.
                ColSpec(anything(), "logprobs", required=False),
                ColSpec(anything(), "stop", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "text"),
                ColSpec(Array(DataType.double), "log_likelihoods", required=False),
                ColSpec(Array(DataType.double), "embedding", required=False),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("max_new_tokens", DataType.integer, 64),
                *(ParamSpec(name, kind, None) for name, kind in _COMPLETION.items()),
                # No other engine has it: whoever scores needs the last tokens only.
                ParamSpec("logprobs_from", DataType.long, [], shape=(-1,)),
            ]
        ),
    )
