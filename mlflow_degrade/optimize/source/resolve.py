"""From what a user calls a model to a directory with its files.

Accepted names: ``starter`` and ``starter-encoder``, a local directory or the file in it that is the
model, a Hugging Face id, and a model in MLflow (``models:/name@alias``, ``models:/name/version``,
``runs:/…``).
"""

from __future__ import annotations

import difflib
import functools
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...core.cache import cache_root, cached_directory, digest_file, digest_json
from ...core.errors import MissingExtraError, ModelError, UnknownNameError, say_note
from .directory_look import ADAPTER, Found, Layout, look
from .gguf_files import GGUF
from .model_directory import ModelDirectory, has_tokenizer, missing_files, module_files
from .onnx_choice import SUBFOLDER, find_graphs
from .weight_files import find_weights, listed

STARTERS = ("starter", "starter-encoder")
"""Models that need nothing but a package index: a language model and a sentence encoder."""

Kind = Literal["starter", "local", "hub", "mlflow"]

_MLFLOW_SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/")
# What Hugging Face accepts as a repository id, and an optional revision after an "@".
_HUB_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]{1,96}(?:@[\w./-]+)?")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# Everything an export reads; a repository's other formats (GGUF, ONNX, flax) may be tens of GB.
_WANTED = (*_WEIGHTS, "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md")


@dataclass(frozen=True)
class SourceModel:
    """A model that was found, with its files on this machine.

    Attributes
    ----------
    name : str
        As the user gave it.
    kind : {"starter", "local", "hub", "mlflow"}
        Where it came from.
    layout : {"transformers", "onnx"}
        PyTorch weights to export, or an ONNX model directory that is ready.
    path : Path
        Directory with the files. Never write into it.
    digest : str
        ``"sha256:…"`` of config, weights and tokenizer.
    revision : str or None
        Commit of the hub, version in the registry.
    notes : tuple of str
        What else lay in its directory, and why it was not taken.
    """

    name: str
    kind: Kind
    layout: Layout
    path: Path
    digest: str
    revision: str | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What is recorded in ``degrade.json``; the path differs between machines and is not."""
        return {
            "name": self.name,
            "kind": self.kind,
            "digest": self.digest,
            "revision": self.revision,
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def resolve_model(model: str, *, progress: bool = True, files: Path | None = None) -> SourceModel:
    """Find a model and bring its files to this machine.

    Parameters
    ----------
    model : str
        One of `STARTERS`, a directory, a Hugging Face id (``org/name`` or ``org/name@revision``),
        or an MLflow URI. A file in a directory (``model.onnx``, ``onnx/model_fp16.onnx``,
        ``model.safetensors``, a GGUF file) stands for the directory and says which of its files is
        the model.
    progress : bool
        Show progress on standard error, and once what was chosen where a directory holds more than
        one model.
    files : Path, optional
        Of a model in MLflow, where they have been downloaded.

    Returns
    -------
    SourceModel
        Its name, its files and what they are.

    Raises
    ------
    UnknownNameError
        When the name is close to one that exists.
    ModelError
        When the model is missing, gated, incomplete, damaged, ambiguous or unreachable.
    UnsupportedModelError
        When it is an encoder-decoder, reads something else than texts, or is in a format that is
        not read.
    """
    found = _resolve(model.strip(), progress, files)
    if progress:
        for note in found.notes:
            say_note(f"{found.name}: {note}")
    return found


def _resolve(name: str, progress: bool, files: Path | None) -> SourceModel:
    if name in STARTERS:
        from .starter_encoder import fetch_starter_encoder
        from .starter_model import fetch_starter_model

        fetch = fetch_starter_model if name == "starter" else fetch_starter_encoder
        return _source(name, "starter", fetch(progress=progress))
    if name.startswith(_MLFLOW_SCHEMES):
        return _from_mlflow(name, files)
    directory = Path(name).expanduser()
    if name and directory.is_dir():
        return _source(name, "local", directory.resolve())
    if name and directory.is_file():
        return _from_file(name, directory.absolute())
    looks_like_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if looks_like_path or not _HUB_ID.fullmatch(name):
        raise ModelError(f"no model at {name!r}: {_neighbours(directory)}")
    if "/" not in name and difflib.get_close_matches(name, STARTERS, cutoff=0.7):
        raise UnknownNameError("model", name, STARTERS, "Or give a directory or a hub id.")
    return _from_hub(name)


def _from_file(name: str, file: Path) -> SourceModel:
    """The directory that a file stands for, with the file chosen in it."""
    if not file.name.endswith((".onnx", ".safetensors", ".bin", ".index.json", GGUF)):
        raise ModelError(
            f"{name} is a file: give the directory that holds config.json, weights and tokenizer, "
            "or the file with the weights in it (.safetensors, .bin, .onnx, .gguf)."
        )
    folder = file.parent
    inside = folder.name == SUBFOLDER and not (folder / "config.json").is_file()
    return _source(name, "local", folder.parent if inside else folder, chosen=file)


def _neighbours(directory: Path) -> str:
    """A sentence about what lies where a directory was expected."""
    parent = directory.parent
    if not parent.is_dir():
        return f"the directory {parent} does not exist either."
    names = [path.name for path in parent.iterdir() if path.is_dir()]
    near = difflib.get_close_matches(directory.name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(str(parent / n) for n in near)}?"
    return "give 'starter', a directory, a Hugging Face id (org/name), or models:/name@alias."


def _from_hub(name: str) -> SourceModel:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "cpu") from error
    import requests

    repo, _, revision = name.partition("@")
    try:
        path = Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=list(_WANTED))
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"the model {repo!r} is gated: accept its conditions on its page, then log in with "
            "'hf auth login' or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"no model {repo!r}: it is neither a local directory nor, for you, on the Hugging Face "
            "hub. Check the spelling; a private model needs HF_TOKEN. 'starter' needs no hub."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"the model {repo!r} has no revision {revision!r}.") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        # requests' errors are OSErrors; so is a full disk, which must not look like the network.
        if isinstance(error, OSError) and not isinstance(
            error, (requests.RequestException, ConnectionError, FileNotFoundError)
        ):
            raise
        raise ModelError(
            f"the model {repo!r} is neither a local directory nor cached, and the Hugging Face hub "
            f"cannot be reached ({type(error).__name__}). Connect and try again, give a local "
            "directory, or use 'starter'."
        ) from error
    except (errors.HFValidationError, ValueError) as error:
        raise ModelError(f"{name!r} is not a model id: {error}") from error
    try:
        return _source(name, "hub", path, revision=path.name)
    except ModelError as error:
        if _holds_model(path):
            raise
        raise ModelError(f"{error}{_others_on_hub(repo, path.name)}") from error


def _others_on_hub(repo: str, revision: str) -> str:
    """A sentence about models in formats that are not downloaded unasked."""
    from huggingface_hub import HfApi, errors

    try:
        files = [f.rfilename for f in HfApi().repo_info(repo, revision=revision).siblings or ()]
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError):
        return ""
    found = [file for file in files if file.endswith((GGUF, ".onnx"))]
    if not found:
        return ""
    return (
        f" The repository holds {listed(found)}: download what is meant (hf download {repo} "
        f"--local-dir DIR) and name the file as the model, e.g. DIR/{found[0]}."
    )


def _from_mlflow(uri: str, files: Path | None) -> SourceModel:
    """Download a logged or registered model and find the directory inside it."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        identity, revision = _mlflow_identity(uri)

        def download(scratch: Path) -> None:
            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch))

        root = files or cached_directory("mlflow-model", identity, download)
    except (MlflowException, OSError) as error:
        raise ModelError(f"MLflow has no model at {uri}: {error}") from error
    inner = sorted(p.parent for p in root.rglob("config.json") if _holds_model(p.parent))
    for adapter in () if inner else sorted(root.rglob(ADAPTER)):
        look(adapter.parent, uri)  # which says what to do with one
    if len(inner) != 1:
        raise ModelError(
            f"{uri} holds {len(inner)} directories with a model's config and weights, expected "
            "one: log the model's directory as an artifact of a pyfunc model, as mlflow-degrade's "
            "recipes do, or with mlflow.transformers."
        )
    # MLflow's transformers flavour keeps the tokenizer apart from the weights.
    tokenizer = inner[0].parent / "components" / "tokenizer"
    if tokenizer.is_dir() and not has_tokenizer(inner[0]):
        parts = (inner[0], tokenizer)

        def join(scratch: Path) -> None:
            for path in (p for part in parts for p in part.iterdir() if p.is_file()):
                if not (scratch / path.name).exists():
                    shutil.copyfile(path, scratch / path.name)

        inner = [cached_directory("mlflow-model", [identity, "joined"], join)]
    return _source(uri, "mlflow", inner[0], revision=revision)


def _mlflow_identity(uri: str) -> tuple[list[str], str | None]:
    """What names the artifacts for good, and the registered version if there is one."""
    # An alias moves, and a model that was deleted and registered anew counts its versions from 1
    # again: where the artifacts lie and when they were registered tell those apart.
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    stores = [mlflow.get_tracking_uri(), mlflow.get_registry_uri()]
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/]+)|/([^/]+))", uri)
    if match is None:  # a run's artifact, or a logged model by its id: neither is ever reused
        return [*stores, uri], None
    name, alias, number = match.groups()
    client = MlflowClient()
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = [model.name for model in client.search_registered_models(max_results=1000)]
        raise UnknownNameError("registered model", name, known) from error
    if alias is not None:
        found = client.get_model_version_by_alias(name, alias)
    elif number == "latest":
        found = client.get_model_version_by_alias(name, "latest")
    else:
        found = client.get_model_version(name, number)
    made = f"{found.source} {found.creation_timestamp}"
    return [*stores, name, str(found.version), made], str(found.version)


def _holds_model(directory: Path) -> bool:
    """Whether a directory with a config holds something to look at."""
    return bool(find_weights(directory) or find_graphs(directory))


def _source(
    name: str, kind: Kind, folder: Path, revision: str | None = None, chosen: Path | None = None
) -> SourceModel:
    """Look at a directory, and digest what is the model."""
    found = _looked_at(folder, name, chosen, cache_root(), _stamps(folder))
    path, layout = found.path, found.layout
    if layout == "onnx" and not missing_files(path):
        ready = ModelDirectory.load(path)
        ready.verify()
        return SourceModel(name, kind, layout, path, ready.digest, revision, found.notes)
    files = sorted(p for p in path.iterdir() if p.is_file() and _matters(p, layout))
    parts = [[p.name, digest_file(p)] for p in files]
    digest = digest_json(parts + [[name, digest_file(path / name)] for name in module_files(path)])
    return SourceModel(name, kind, layout, path, digest, revision, found.notes)


@functools.lru_cache(maxsize=256)
def _looked_at(
    folder: Path, name: str, chosen: Path | None, _cache: Path, _stamps: tuple[object, ...]
) -> Found:
    """A look at a directory, once per job: weights in two formats are compared number by number."""
    return look(folder, name, chosen)


def _stamps(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """What changes when a file of a directory does."""
    files = [p for p in (*folder.glob("*"), *folder.glob("*/*")) if p.is_file()]
    found = ((str(p), p.stat()) for p in sorted(files))
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in found)


def _matters(path: Path, layout: str) -> bool:
    """Whether a file is part of the model, not a note beside it."""
    if layout == "onnx":
        return not path.name.startswith(".")
    return any(path.match(p) for p in _WANTED if not p.startswith(("LICENSE", "README")))
