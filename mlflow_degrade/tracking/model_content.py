"""What a logged model consists of: digests of the very bytes that would be served.

Of a model that this package logged, the ONNX directory is what was tested; the code around it
decides what is run, and is checked as well. Of any other model all files count.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache import digest_file, digest_json
from ..errors import RegistryError

ARTIFACT_TAG = "degrade.artifact_digest"
BINDING_FILE = "artifact.json"
"""In the evidence folder: the digest of all files of the logged model."""

# MLflow writes this one into its own copy whenever it resolves a registered model.
_NOT_CONTENT = ("registered_model_meta",)
_MANIFEST = "degrade.json"
_BYTECODE = "__pycache__"
_OURS = "model_dir"
_LOADER = "mlflow.pyfunc.loaders.code_model"
_CODE = "pyfunc_model.py"
_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ModelContent:
    """Digests of a logged model.

    Attributes
    ----------
    artifact_digest : str
        Of all its files, byte code and MLflow's notes on the registration left out.
    onnx_digest : str or None
        Of the ONNX directory inside, without its manifest; None for a model of another kind.
    declared : str or None
        What the model itself says its digest is: not to be trusted, only to be compared.
    wrapper_differences : tuple of str
        Files around the ONNX directory that are not those of the installed package.
    problems : tuple of str
        What makes the digests say nothing, such as links to places outside.
    bytecode : tuple of str
        Compiled Python files, which could run instead of their source.
    files : mapping
        Digest of each file that `artifact_digest` is about, by its name in the model.
    """

    artifact_digest: str
    onnx_digest: str | None
    declared: str | None
    wrapper_differences: tuple[str, ...]
    problems: tuple[str, ...]
    bytecode: tuple[str, ...]
    files: Mapping[str, str] = field(repr=False, default_factory=dict)

    @property
    def digest(self) -> str:
        """The digest evidence is about: of the ONNX directory where there is one, else of all."""
        return self.onnx_digest or self.artifact_digest


def read_content(directory: Path) -> ModelContent:
    """Hash a logged model.

    Parameters
    ----------
    directory : Path
        The folder with the file ``MLmodel``.

    Raises
    ------
    RegistryError
        There is no ``MLmodel``, or it cannot be read.
    """
    flavor = _python_flavor(directory)
    problems = [
        f"{p.relative_to(directory)} is a link: what it points to can change unseen"
        for p in sorted(directory.rglob("*"))
        if p.is_symlink()
    ]
    onnx = _onnx_directory(directory, flavor, problems)
    digests = _file_digests(directory)
    return ModelContent(
        artifact_digest=_listing_digest(digests, directory),
        onnx_digest=None if onnx is None else _onnx_digest(digests, onnx),
        declared=None if onnx is None else _declared(onnx),
        wrapper_differences=() if onnx is None else tuple(_differences(directory, flavor)),
        problems=tuple(problems),
        bytecode=tuple(str(p.relative_to(directory)) for p in sorted(_bytecode(directory))),
        files={p.relative_to(directory).as_posix(): d for p, d in digests.items()},
    )


def bind_artifact(model_uri: str) -> str:
    """Bind a logged model to the active run's evidence; see `bind_content`.

    Parameters
    ----------
    model_uri : str
        ``models:/m-…`` or ``runs:/…`` of the candidate, as ``log_model`` returned it.

    Returns
    -------
    str
        The digest of all its files.
    """
    import mlflow

    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        where = mlflow.artifacts.download_artifacts(artifact_uri=model_uri, dst_path=scratch)
        content = read_content(Path(where))
    run: Any = mlflow.active_run()
    bind_content(content, run.info.run_id)
    return content.artifact_digest


def bind_content(content: ModelContent, run_id: str) -> None:
    """Log the digest of all files of a logged model to a run's evidence.

    Parameters
    ----------
    content : ModelContent
    run_id : str
        Run with the evidence.

    Notes
    -----
    The evidence names the ONNX directory that was tested. The code, the signature and the
    requirements around it exist only once the model is logged: this binds them. What is bound
    already is left as it is.
    """
    from mlflow import MlflowClient

    if bound_artifact(run_id) is None:
        digest = {"artifact_digest": content.artifact_digest}
        MlflowClient().log_dict(run_id, digest, f"evidence/{BINDING_FILE}")


def may_bind(content: ModelContent, run_id: str) -> bool:
    """Whether a run's evidence is bound to these very files, or to none yet."""
    return bound_artifact(run_id) in (None, content.artifact_digest)


def bound_artifact(run_id: str) -> str | None:
    """The digest a run's evidence is bound to, if it is."""
    import mlflow
    from mlflow import MlflowClient

    names = {item.path for item in MlflowClient().list_artifacts(run_id, "evidence")}
    if f"evidence/{BINDING_FILE}" not in names:
        return None
    found = mlflow.artifacts.load_dict(f"runs:/{run_id}/evidence/{BINDING_FILE}")
    return str(found.get("artifact_digest"))


def _python_flavor(directory: Path) -> Mapping[str, Any]:
    import yaml

    try:
        model = yaml.safe_load((directory / "MLmodel").read_text(encoding="utf-8"))
        flavor = model["flavors"].get("python_function")
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"the artifacts are no logged model: the file MLmodel is missing or unreadable "
            f"({type(error).__name__}). Was the upload of the model interrupted?"
        ) from error
    return flavor if isinstance(flavor, Mapping) else {}


def _onnx_directory(directory: Path, flavor: Mapping[str, Any], problems: list[str]) -> Path | None:
    """The directory that our pyfunc model hands to ONNX Runtime."""
    artifacts = flavor.get("artifacts")
    entry = artifacts.get(_OURS) if isinstance(artifacts, Mapping) else None
    if not isinstance(entry, Mapping) or not (directory / str(entry.get("path"))).is_dir():
        return None
    relative = Path(os.path.normpath(str(entry["path"])))
    if relative.is_absolute() or ".." in relative.parts:
        problems.append(f"MLmodel points to {entry['path']}, which is outside the model")
        return None
    return directory / relative


def _file_digests(directory: Path) -> dict[Path, str]:
    """Digest of each file, but for what merely loading the model may leave there."""
    leftover = {*_bytecode(directory), *(directory / name for name in _NOT_CONTENT)}
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p not in leftover)
    return {path: digest_file(path) for path in files}


def _listing_digest(digests: Mapping[Path, str], base: Path) -> str:
    # The same as mlflow_degrade.cache.digest_directory, without reading the files again.
    return digest_json([[p.relative_to(base).as_posix(), d] for p, d in digests.items()])


def _onnx_digest(digests: Mapping[Path, str], onnx: Path) -> str:
    inside = {p: d for p, d in digests.items() if onnx in p.parents and p.name != _MANIFEST}
    return _listing_digest(inside, onnx)


def _declared(onnx: Path) -> str | None:
    try:
        return str(json.loads((onnx / _MANIFEST).read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _differences(directory: Path, flavor: Mapping[str, Any]) -> list[str]:
    """How the code around the ONNX directory differs from the one installed here."""
    code = os.path.basename(str(flavor.get("model_code_path")))
    found = []
    if flavor.get("loader_module") != _LOADER or flavor.get("code") != "code" or code != _CODE:
        found.append("MLmodel: another loader")
    if set(flavor.get("artifacts", ())) != {_OURS}:
        found.append("MLmodel: further artifacts")
    pairs = {_CODE: _PACKAGE / "tracking" / _CODE}
    carried = {p.relative_to(directory).as_posix() for p in _source_files(directory / "code")}
    installed = {
        f"code/{_PACKAGE.name}/{p.relative_to(_PACKAGE).as_posix()}": p
        for p in _source_files(_PACKAGE)
    }
    pairs |= installed
    found += [f"{name} is not part of the package" for name in sorted(carried - set(installed))]
    for name, own in pairs.items():
        path = directory / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif digest_file(path) != digest_file(own):
            found.append(name)
    return found


def _source_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and _BYTECODE not in p.parts]


def _bytecode(directory: Path) -> list[Path]:
    return [p for p in directory.rglob("*") if p.is_file() and p.parent.name == _BYTECODE]
