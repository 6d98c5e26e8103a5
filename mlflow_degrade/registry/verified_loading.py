"""Load a registered model only when its verdict holds, and exactly the bytes that were checked."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..core.errors import InputError, RegistryError
from ..decision.policy import GatePolicy
from ..tracking.artifact_access import fetch
from .signing_keys import AllowedSigner
from .verification import ProcessorWarning, verify_version

_URI = re.compile(r"models:/+(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))/*")


def load_verified_model(
    uri: str,
    *,
    policy: GatePolicy | None = None,
    signers: Collection[AllowedSigner] | None = None,
) -> Any:
    """Download a registered model, verify that copy, and load that copy.

    Parameters
    ----------
    uri : str
        ``models:/name/version`` or ``models:/name@alias``.
    policy : GatePolicy, optional
        Required policy, whatever policy the verdict was made with; by default that of the gate
        file, whose experiments and baselines count as well.
    signers : collection of AllowedSigner, optional
        One of them must have signed the evidence; those of the gate file by default.

    Returns
    -------
    mlflow.pyfunc.PyFuncModel

    Raises
    ------
    VerificationError
        The files, the evidence and the tags do not belong together, or the verdict is not PASS.
    RegistryError
        There is no such version, or its files cannot be read.

    Warns
    -----
    ProcessorWarning
        This machine may give other answers than those that were judged. Python's own
        ``warnings.simplefilter("error", ProcessorWarning)`` makes it an error.

    Notes
    -----
    Files that are replaced after a version was promoted are found out here, and only here: a
    registry guards names, not bytes. The copy lies in a temporary directory that is removed with
    the model.

    Examples
    --------
    >>> model = load_verified_model("models:/chat@champion")  # doctest: +SKIP
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    name, version = resolve(uri)
    client = MlflowClient()
    scratch = Path(tempfile.mkdtemp(prefix="mlflow-degrade-"))
    try:
        location = client.get_model_version_download_uri(name, version)
        folder = fetch(location, "", scratch, copy=True)
        if folder is None:
            raise RegistryError(f"version {version} of {name!r} has no files at {location}.")
        # Compiled code could run in place of the source that is checked.
        for compiled in list(folder.rglob("__pycache__")):
            shutil.rmtree(compiled, ignore_errors=True)
        found = verify_version(name, version, policy=policy, signers=signers, model_dir=folder)
        found.require()
        if found.warning is not None:
            warnings.warn(f"{uri}: {found.warning}.", ProcessorWarning, stacklevel=2)
        model = mlflow.pyfunc.load_model(str(folder))
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, scratch, ignore_errors=True)
    return model


def resolve(uri: str) -> tuple[str, str]:
    """Name and version that a ``models:/`` URI stands for now."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    match = _URI.fullmatch(uri)
    if match is None:
        raise InputError(
            f"{uri!r} names no registered version: write models:/name/3 or models:/name@alias."
        )
    if match["version"]:
        return match["name"], match["version"]
    try:
        found = MlflowClient().get_model_version_by_alias(match["name"], match["alias"])
    except MlflowException as error:
        raise RegistryError(f"{uri} cannot be resolved: {error}") from error
    return match["name"], str(found.version)
