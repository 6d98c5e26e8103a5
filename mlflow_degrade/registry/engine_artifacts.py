"""Files of another engine as a logged model: a directory for vLLM, a GGUF file for llama.cpp.

The gate does not care who runs a model. What was tested are these bytes; MLflow keeps them as they
are, beside a script that says what to start.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..core.cache import digest_model
from ..core.errors import InputError, MissingExtraError, ModelError, RegistryError
from ..samples.table import SampleScores
from .model_content import ENGINE_FILES, ENGINE_SCRIPT, ModelContent, bound_artifact
from .references import ModelFiles
from .registration import logged_name
from .served_code import without_bytecode

_GGUF = ".gguf"


@dataclass(frozen=True)
class EngineFiles:
    """A directory or a GGUF file on this machine, found to be whole."""

    path: Path
    # As evaluations carry it: of all files of a directory, or of the one file.
    digest: str

    @classmethod
    def read(cls, given: str | PathLike[str]) -> EngineFiles:
        """Check and hash files."""
        # Links are followed: a snapshot of the Hub is full of them.
        path = Path(given).expanduser().resolve()
        if path.is_file():
            if path.suffix != _GGUF:
                raise InputError(
                    f"{given} is a {path.suffix or 'nameless'} file: give the directory that vLLM "
                    "serves, or a .gguf file."
                )
            _require_whole(path)
            return cls(path, digest_model(path))
        if not path.is_dir():
            raise InputError(f"there is no {given}: give the directory or .gguf file to register.")
        _require_model(path, str(given))
        return cls(path, digest_model(path))

    def require_tested(self, samples: SampleScores) -> None:
        """Refuse files that are not those that were evaluated."""
        tested = samples.model_digest
        if tested is None:
            raise RegistryError(
                f"nothing binds the evaluation of {samples.model or 'the candidate'} to "
                f"{self.path}: no files were hashed in it, and what a server says of itself is its "
                "word only. Evaluate with files=… in --model-args, or only decide (register_as "
                "none)."
            )
        if tested != self.digest:
            raise RegistryError(
                f"{self.path} is not the model that was evaluated: its bytes have digest "
                f"{self.digest}, the samples are of {tested}. Evaluate these files, or name those "
                "that were evaluated."
            )


def log_engine_files(given: EngineFiles, run_id: str, name: str) -> tuple[str, ModelContent]:
    """Log files to the run of a decision, or find them there; their URI and content."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    earlier = _logged_before(client, given, run_id)
    if earlier is not None:
        return earlier
    try:
        # Outside of the run of the decision, which stays finished where an upload fails.
        with without_bytecode():
            info = mlflow.pyfunc.log_model(
                name=logged_name(name),
                python_model=str(ENGINE_SCRIPT),
                artifacts={ENGINE_FILES: str(given.path)},
                pip_requirements=["mlflow"],
                signature=_signature(),
            )
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"{given.path} could not be logged ({error}): nothing was registered. The decision is "
            "in its run; the same gate once more goes on from there."
        ) from error
    uri = f"models:/{info.model_id}"
    with ModelFiles() as files:
        content = files.content(uri)
    if content.digest != given.digest:
        client.delete_logged_model(info.model_id)
        raise RegistryError(
            f"{given.path} was changed while it was logged: evaluated were {given.digest}, logged "
            f"{content.digest}. Nothing was registered; evaluate the files as they are now."
        )
    client.log_outputs(run_id, [LoggedModelOutput(info.model_id, 0)])
    return uri, content


def _logged_before(client: Any, given: EngineFiles, run_id: str) -> tuple[str, ModelContent] | None:
    """The same files, logged to this run by an earlier gate."""
    run = client.get_run(run_id)
    bound = bound_artifact(run.info.artifact_uri)
    for output in getattr(run.outputs, "model_outputs", None) or []:
        uri = f"models:/{output.model_id}"
        try:
            with ModelFiles() as files:
                content = files.content(uri)
        except RegistryError:
            continue  # An upload that was interrupted.
        if content.digest == given.digest and bound in (None, content.artifact_digest):
            return uri, content
    if bound is not None:
        raise RegistryError(
            f"the evidence in run {run_id} is bound to another logged model of these files "
            f"({bound}), which is no longer there: name that model with model_uri, or evaluate "
            "again."
        )
    return None


def _require_model(folder: Path, name: str) -> None:
    """Refuse a directory that no engine could serve."""
    from ..optimize.source.directory_look import require_readable
    from ..optimize.source.model_directory import has_tokenizer
    from ..optimize.source.weight_files import find_weights

    require_readable(folder, name)
    parts = sorted(folder.glob(f"*{_GGUF}"))
    for part in parts:
        _require_whole(part)
    if parts:
        return
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not find_weights(folder):
        missing.append("weights (*.safetensors)")
    if not has_tokenizer(folder):
        missing.append("a tokenizer")
    if missing:
        raise ModelError(
            f"{name} lacks {', '.join(missing)}: give the directory that vLLM serves, with "
            "weights, config and tokenizer, or a .gguf file."
        )


def _require_whole(file: Path) -> None:
    """Refuse a GGUF file whose end is missing."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise MissingExtraError("gguf", "cpu") from error
    try:
        reader = GGUFReader(file)
    except Exception as error:  # its reader indexes into whatever the file holds
        raise ModelError(
            f"{file.name} is no GGUF file, or cut off ({type(error).__name__}: {error}): copy or "
            "download it again."
        ) from error
    if not reader.tensors:
        raise ModelError(f"{file.name} has no weights: give the file with the model's tensors.")


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    return ModelSignature(
        Schema([ColSpec(DataType.string, "prompt")]), Schema([ColSpec(DataType.string, "text")])
    )
