"""What a logged model consists of: digests of the very bytes that would be served.

Of a model that this package logged, the ONNX directory or another engine's files are what was
tested; the code around it decides what is run, and is checked as well. Of any other model all files
count.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.cache import MANIFEST_FILE, digest_file, digest_json
from ..core.errors import RegistryError
from ..core.progress import progress_bar
from ..tracking.artifact_access import list_names, read_json, upload
from .compiled_code import unlike_their_source
from .served_code import SCRIPT, served_files

ARTIFACT_TAG = "degrade.artifact_digest"
BINDING_FILE = "artifact.json"
"""In the evidence folder: the digest of all files of the logged model."""

# MLflow writes this one into its own copy whenever it resolves a registered model.
_NOT_CONTENT = ("registered_model_meta",)
_EVIDENCE = "evidence"
ENGINE_FILES = "engine_files"
"""What MLflow calls the artifact with another engine's files."""
ENGINE_SCRIPT = Path(__file__).with_name("engine_files_model.py")
_BYTECODE = "__pycache__"
_OURS = "model_dir"
_LOADER = "mlflow.pyfunc.loaders.code_model"

_MEGABYTE = 1 << 20
# From here on reading takes so long that a bar shows it.
_LONG = 1_024 * _MEGABYTE


@dataclass(frozen=True)
class ModelContent:
    """Digests of a logged model."""

    # Of all its files, byte code and MLflow's notes on the registration left out.
    artifact_digest: str
    # Of the ONNX directory or the engine's files inside, without a manifest; None for a model of
    # another kind.
    tested_digest: str | None
    # What the model itself says its digest is: not to be trusted, only to be compared.
    declared: str | None
    # Files around what was tested that are not those of the installed package.
    wrapper_differences: tuple[str, ...]
    # What makes the digests say nothing, such as links to places outside.
    problems: tuple[str, ...]
    # Compiled Python files that are not what their source compiles to, and could run instead of it.
    bytecode: tuple[str, ...]
    # Digest of each file that `artifact_digest` is about, by its name in the model.
    files: Mapping[str, str] = field(repr=False, default_factory=dict)
    size: int = 0  # Bytes of all its files: whoever checks them needs the time to read them.
    engine_files: str | None = None  # Where another engine's files are in it, if they are.

    @property
    def digest(self) -> str:
        """The digest evidence is about: of what was tested in it, else of all."""
        return self.tested_digest or self.artifact_digest


def read_content(directory: Path) -> ModelContent:
    """Hash a logged model."""
    flavor = _python_flavor(directory)
    problems = [
        f"{p.relative_to(directory)} is a link: what it points to can change unseen"
        for p in sorted(directory.rglob("*"))
        if p.is_symlink()
    ]
    onnx = _inside(directory, flavor, _OURS, problems)
    engine = None if onnx is not None else _inside(directory, flavor, ENGINE_FILES, problems)
    tested = onnx or engine
    digests = _file_digests(directory)
    around: list[str] = []
    if tested is not None:
        around = _differences(directory, flavor, _OURS if onnx else ENGINE_FILES)
    return ModelContent(
        artifact_digest=_listing_digest(digests, directory),
        tested_digest=None if tested is None else _tested_digest(digests, tested),
        declared=None if onnx is None else _declared(onnx),
        wrapper_differences=tuple(around),
        problems=tuple(problems),
        bytecode=tuple(
            str(p.relative_to(directory)) for p in unlike_their_source(sorted(_bytecode(directory)))
        ),
        files={p.relative_to(directory).as_posix(): d for p, d in digests.items()},
        size=sum(path.stat().st_size for path in digests),
        engine_files=None if engine is None else engine.relative_to(directory).as_posix(),
    )


def bind_content(content: ModelContent, run_id: str) -> None:
    """Log the digest of all files of a logged model to a run's evidence."""
    # The evidence names the ONNX directory that was tested. The code, the signature and the
    # requirements around it exist only once the model is logged: this binds them. What is bound
    # already is left as it is.
    from mlflow import MlflowClient

    location = MlflowClient().get_run(run_id).info.artifact_uri
    if bound_artifact(location) is None:
        with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
            (Path(scratch) / _EVIDENCE).mkdir()
            write_binding(content, Path(scratch))
            upload(Path(scratch), location)


def write_binding(content: ModelContent, folder: Path) -> None:
    """Write what binds evidence to a logged model among artifacts that are about to be logged."""
    text = json.dumps({"artifact_digest": content.artifact_digest})
    (folder / _EVIDENCE / BINDING_FILE).write_text(text, encoding="utf-8")


def bound_artifact(location: str) -> str | None:
    """The digest that evidence is bound to, if it is, from where its run keeps artifacts."""
    if BINDING_FILE not in list_names(location, _EVIDENCE):
        return None
    return str(read_json(location, f"{_EVIDENCE}/{BINDING_FILE}").get("artifact_digest"))


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


def _inside(
    directory: Path, flavor: Mapping[str, Any], name: str, problems: list[str]
) -> Path | None:
    """What our pyfunc model hands to ONNX Runtime, or tells people to start an engine with."""
    artifacts = flavor.get("artifacts")
    entry = artifacts.get(name) if isinstance(artifacts, Mapping) else None
    if not isinstance(entry, Mapping):
        return None
    path = directory / str(entry.get("path"))
    if not (path.is_dir() or (name == ENGINE_FILES and path.is_file())):
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
    total = sum(path.stat().st_size for path in files)
    digests = {}
    shown = total > _LONG and sys.stderr.isatty()
    with progress_bar("Hash the model's files, MB", shown) as advance:
        advance(total // _MEGABYTE, 0)
        for path in files:
            digests[path] = digest_file(path)
            advance(0, path.stat().st_size // _MEGABYTE)
    return digests


def _listing_digest(digests: Mapping[Path, str], base: Path) -> str:
    # The same as mlflow_degrade.core.cache.digest_directory, without reading the files again.
    return digest_json([[p.relative_to(base).as_posix(), d] for p, d in digests.items()])


def _tested_digest(digests: Mapping[Path, str], tested: Path) -> str:
    if tested in digests:  # the one file of an engine
        return digests[tested]
    files = ((p, d) for p, d in digests.items() if p.name != MANIFEST_FILE)
    inside = {p: d for p, d in files if tested in p.parents}
    return _listing_digest(inside, tested)


def _declared(onnx: Path) -> str | None:
    try:
        return str(json.loads((onnx / MANIFEST_FILE).read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _differences(directory: Path, flavor: Mapping[str, Any], kind: str) -> list[str]:
    """How the code around what was tested differs from the one installed here."""
    script, files = (SCRIPT, served_files()) if kind == _OURS else (ENGINE_SCRIPT, {})
    code = os.path.basename(str(flavor.get("model_code_path")))
    found = []
    if (
        flavor.get("loader_module") != _LOADER
        or flavor.get("code") != ("code" if files else None)
        or code != script.name
    ):
        found.append("MLmodel: another loader")
    if set(flavor.get("artifacts", ())) != {kind}:
        found.append("MLmodel: further artifacts")
    installed = {f"code/{name}": path for name, path in files.items()}
    carried = {p.relative_to(directory).as_posix() for p in _source_files(directory / "code")}
    found += [f"{name} is not part of the package" for name in sorted(carried - set(installed))]
    for name, own in {script.name: script, **installed}.items():
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
