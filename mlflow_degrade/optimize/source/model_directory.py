"""A finished model on disk: ONNX graph, weights, config, tokenizer, and how it came about.

``degrade.json`` is written last, so a directory that has one is complete. Its digest covers every
other file: whoever evaluates, registers or loads the model can prove that it is the one that was
judged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...core.cache import MANIFEST_FILE, digest_model
from ...core.errors import ModelError
from ..onnx_graph.files import GRAPH_FILE, WEIGHTS_FILE
from ..onnx_graph.float_share import weights_sentence
from ..passes.sensitivity_report import SENSITIVITY_FILE, SensitivityReport

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""Any one of these makes a tokenizer."""

_FORMAT = 1
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".gguf", ".h5", ".msgpack", ".pt", ".pth", ".onnx"}


@dataclass(frozen=True)
class ModelDirectory:
    """A complete model directory and its manifest.

    Attributes
    ----------
    path : Path
        Where it lies.
    manifest : mapping
        The parsed ``degrade.json``.

    Examples
    --------
    ``ModelDirectory.load(path).scheme`` is, for instance, ``"int8-weight-only"``.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> ModelDirectory:
        """Open a directory after checking that nothing is missing from it.

        Raises
        ------
        ModelError
            When a file is missing, or the manifest is not one.
        """
        directory = Path(path)
        missing = missing_files(directory)
        if missing:
            raise ModelError(
                f"{directory} is not a complete model directory: {', '.join(missing)} missing. "
                "Make it again with mlflow_degrade.optimize.export_onnx or apply_scheme."
            )
        try:
            manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
            found = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{directory / MANIFEST_FILE} is not a manifest of this package: {error!r}."
            ) from error
        if found != _FORMAT:
            raise ModelError(
                f"{directory / MANIFEST_FILE} has format {found}, this version reads {_FORMAT}: "
                "install the version of mlflow-degrade that wrote it, or make the model again."
            )
        return cls(directory, manifest)

    @property
    def scheme(self) -> str:
        """Scheme applied to it; ``"fp32"`` is an export, ``"given"`` an ONNX model brought in.

        One that was brought in with integers in it is ``"quantized elsewhere"``.
        """
        return str(self.manifest["scheme"])

    @property
    def is_float(self) -> bool:
        """Whether no scheme was applied to it yet."""
        return self.scheme in ("fp32", "given")

    @property
    def digest(self) -> str:
        """``"sha256:…"`` of all files but the manifest, as it was when the model was finished."""
        return str(self.manifest["digest"])

    @property
    def source(self) -> Mapping[str, Any]:
        """Name, kind, revision and digest of what the model was exported from."""
        source: Mapping[str, Any] = self.manifest["source"]
        return source

    @property
    def recipe(self) -> tuple[Mapping[str, Any], ...]:
        """Every pass that was applied, in order, with its options and findings."""
        return tuple(self.manifest["recipe"])

    @property
    def size_bytes(self) -> int:
        """Bytes of the graph and its weights: what has to be shipped and loaded."""
        return size_bytes(self.path)

    @property
    def simulated_bytes(self) -> int | None:
        """Bytes in the number format its weights were rounded to; None where nothing is simulated.

        The file itself is no smaller and no faster: see `mlflow_degrade.optimize.passes.simulate`.
        """
        found = self.recipe[-1].get("simulated_bytes") if self.recipe else None
        return None if found is None else int(found)

    @property
    def weights(self) -> Mapping[str, Any] | None:
        """What its weights are stored in, as whoever wrote them counted; None for an export.

        See `mlflow_degrade.optimize.onnx_graph.float_share.FloatShare`.
        """
        return next((s["stored"] for s in reversed(self.recipe) if "stored" in s), None)

    @property
    def weights_note(self) -> str | None:
        """`weights` in words."""
        return None if self.weights is None else weights_sentence(self.weights)

    @property
    def length_notes(self) -> tuple[str, ...]:
        """What holds for its long texts: which the export refuses, which were never compared."""
        exported = self.recipe[0] if self.recipe else {}
        notes = []
        if (limit := exported.get("exact_length")) is not None:
            notes.append(
                f"the export is the model for texts of up to {limit:,} tokens; longer ones are "
                "refused, because the model's rotary embeddings change there"
            )
        if exported.get("window_compared", 0) is None:
            notes.append(
                f"the attention window of {exported['attention_window']:,} tokens is too long to "
                "be tried: texts beyond it were not compared with PyTorch"
            )
        return tuple(notes)

    @property
    def sensitivity(self) -> SensitivityReport | None:
        """The table that its scheme chose layers by; None where it chose none."""
        file = self.path / SENSITIVITY_FILE
        if not file.is_file():
            return None
        return SensitivityReport.from_dict(json.loads(file.read_text(encoding="utf-8")))

    def verify(self) -> None:
        """Raise `ModelError` when any file differs from what was finished."""
        found = digest_model(self.path)
        if found != self.digest:
            raise ModelError(
                f"the files in {self.path} have digest {found}, the manifest says {self.digest}: "
                "they were changed after the model was made. Do not use it; make it again."
            )


def missing_files(directory: Path) -> list[str]:
    """Names of the parts a model directory lacks, empty when it is complete."""
    needed = (GRAPH_FILE, WEIGHTS_FILE, "config.json", MANIFEST_FILE)
    missing = [name for name in needed if not (directory / name).is_file()]
    return missing if has_tokenizer(directory) else [*missing, "tokenizer"]


def has_tokenizer(directory: Path) -> bool:
    """Whether any of the files that make a tokenizer is there."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def size_bytes(directory: Path) -> int:
    """Bytes of a directory's graph and weights."""
    return sum((directory / name).stat().st_size for name in (GRAPH_FILE, WEIGHTS_FILE))


def copy_companions(source: Path, target: Path, leave: tuple[str, ...] = ()) -> None:
    """Copy config, tokenizer, licence and the like, byte for byte; no weights, no manifest."""
    for path in source.iterdir():
        if path.is_file() and _is_companion(path) and path.name not in leave:
            shutil.copyfile(path, target / path.name)
    for name in module_files(source):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)


def module_files(directory: Path) -> list[str]:
    """Configs of the steps behind an encoder, which sentence-transformers keeps in folders."""
    found = directory.glob("[0-9]*_*/config.json")
    return sorted(path.relative_to(directory).as_posix() for path in found)


def _is_companion(path: Path) -> bool:
    """Whether a file belongs to any form of the model: neither weights, nor an index of them."""
    name = path.name
    own = {GRAPH_FILE, WEIGHTS_FILE, MANIFEST_FILE}
    weights = path.suffix in _WEIGHT_SUFFIXES or name.endswith(("_data", ".index.json"))
    return not (name.startswith(".") or name in own or weights)


def write_manifest(
    directory: Path,
    *,
    scheme: str,
    source: Mapping[str, Any],
    recipe: list[Mapping[str, Any]],
    parity: Mapping[str, Any] | None = None,
) -> ModelDirectory:
    """Finish a model directory."""
    manifest = {
        "format": _FORMAT,
        "scheme": scheme,
        "source": dict(source),
        "recipe": [dict(step) for step in recipe],
        "parity": dict(parity) if parity is not None else None,
        "size_bytes": size_bytes(directory),
        "versions": library_versions(),
        "digest": digest_model(directory),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")
    return ModelDirectory.load(directory)


def write_derived(
    directory: Path,
    base: ModelDirectory,
    step: Mapping[str, Any],
    parity: Mapping[str, Any],
    *,
    scheme: str | None = None,
) -> ModelDirectory:
    """Finish a directory that one more pass made of another."""
    return write_manifest(
        directory,
        scheme=scheme or base.scheme,
        source=base.source,
        recipe=[*base.recipe, step],
        parity={"reference": "before the pass", **parity},
    )


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose change may change an exported or quantized file."""
    found = {}
    for name in ("optimum", "optimum-onnx", "transformers", "torch", "onnx", "mlflow-degrade"):
        found[name] = _version(name)
    # The two wheels carry the same module; the one that is installed counts.
    found["onnxruntime"] = _version("onnxruntime", "onnxruntime-gpu")
    return found


def _version(*names: str) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "none"
