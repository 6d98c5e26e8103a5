"""The passes that a recipe can list, each a model of its keys that knows how to apply itself.

A pass is added by a class here and its place in `PASSES`. Every key is checked when the recipe is
read, long before the work starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ..core.errors import UnknownNameError
from ..engine.providers import CPU
from .export import export_onnx, require_dtype
from .fusion.optimize_graph import LEVELS, optimize_graph
from .onnx_graph.files import load_graph
from .onnx_graph.float_share import MIN_QUANTIZED_SHARE
from .parity.agreement import Agreement, agreement
from .scheme import Scheme
from .schemes import apply_scheme, find_scheme
from .source.model_directory import ModelDirectory
from .source.resolve import resolve_model

# What a pass made of a model: how large it is, and how far from where it all began.


@dataclass(frozen=True)
class PassResult:
    """A model directory after a pass.

    Attributes
    ----------
    name : str
        The pass, as tables call it.
    folder : Path
        Where the model lies.
    nodes : int
        Of its graph.
    size_bytes : int
        Graph and weights.
    simulated_bytes : int or None
        What they would take in the number format they are rounded to, where one is simulated.
    in_float : float or None
        Share of the weights that the last scheme left in float; None before one.
    parity : Parity, EncoderParity or OutputParity
        Against the model before any pass, as its own library runs it.
    """

    name: str
    folder: Path
    nodes: int
    size_bytes: int
    simulated_bytes: int | None
    in_float: float | None
    parity: Agreement

    @classmethod
    def of(cls, name: str, source: Path, folder: Path) -> PassResult:
        """Look at a finished directory and compare it with the source on the parity texts.

        Parameters
        ----------
        name : str
        source : Path
            A Hugging Face directory, which runs in PyTorch, or an ONNX model.
        folder : Path
            A model directory.
        """
        made = ModelDirectory.load(folder)
        return cls(
            name,
            folder,
            len(load_graph(folder, weights=False).graph.node),
            made.size_bytes,
            made.simulated_bytes,
            None if made.weights is None else made.weights["in_float"],
            agreement(source, folder),
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything but the folder, which differs between machines; ready for JSON."""
        return {
            "pass": self.name,
            "nodes": self.nodes,
            "size_bytes": self.size_bytes,
            "simulated_bytes": self.simulated_bytes,
            "in_float": self.in_float,
            "parity": self.parity.as_dict(),
        }


class _Pass(BaseModel):
    """What all passes have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def name(self) -> str:
        """What tables call the pass."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What is done, in a line."""
        raise NotImplementedError

    def note(self, providers: tuple[str, ...]) -> str | None:  # noqa: ARG002
        """A remark worth showing on the first of `providers`."""
        return None

    def check(self, providers: tuple[str, ...], *, force: bool) -> None:
        """Raise where the pass makes no sense on the first of `providers`."""

    def apply(
        self,
        model: str | Path,
        *,
        providers: tuple[str, ...] = (CPU,),
        force: bool = False,
        progress: bool = True,
    ) -> Path:
        """Make a model directory of what the pass before left, or return the one made before."""
        raise NotImplementedError


class ExportPass(_Pass):
    """From a model's name to ONNX: see `mlflow_degrade.optimize.export.export_onnx`."""

    kind: Literal["export"] = Field(default="export", alias="pass")
    # Number format of weights and activations. Further passes need fp32; the scheme ``fp16`` or
    # ``bf16`` can be the last of them.
    dtype: str = "fp32"
    # Optimum's name of what the model is for; by default what its config says.
    task: str | None = None

    @field_validator("dtype")
    @classmethod
    def _possible(cls, dtype: str) -> str:
        require_dtype(dtype)
        return dtype

    @property
    def name(self) -> str:
        """``"export"``, with the data type where it is another than fp32."""
        return self.kind if self.dtype == "fp32" else f"{self.kind} {self.dtype}"

    @property
    def title(self) -> str:
        """What is done, in a line."""
        return f"Export to ONNX in {self.dtype}" + (f" for {self.task}" if self.task else "")

    def apply(self, model: str | Path, *, progress: bool = True, **_: object) -> Path:
        """Export a model, given as `mlflow_degrade.optimize.source.resolve.resolve_model` takes
        it."""
        source = resolve_model(str(model), progress=progress)
        return export_onnx(source, task=self.task, dtype=self.dtype, progress=progress)


class GraphPass(_Pass):
    """Fewer nodes, same numbers."""

    # See `mlflow_degrade.optimize.fusion.optimize_graph.optimize_graph`.

    kind: Literal["graph"] = Field(default="graph", alias="pass")
    level: str = "fused"  # One of `mlflow_degrade.optimize.fusion.optimize_graph.LEVELS`.

    @field_validator("level")
    @classmethod
    def _known_level(cls, level: str) -> str:
        if level not in LEVELS:
            raise UnknownNameError("graph optimization level", level, LEVELS)
        return level

    @property
    def name(self) -> str:
        """For instance ``"graph fused"``."""
        return f"{self.kind} {self.level}"

    @property
    def title(self) -> str:
        """What is done, in a line."""
        return f"Optimize the graph, level {self.level}: {LEVELS[self.level]}"

    def apply(self, model: str | Path, *, progress: bool = True, **_: object) -> Path:
        """Optimize the graph of a model directory."""
        return optimize_graph(model, self.level, progress=progress)


class QuantizePass(_Pass):
    """Smaller numbers: see `mlflow_degrade.optimize.schemes.apply_scheme`."""

    # Further keys are the scheme's options, `mlflow_degrade.optimize.scheme.Scheme.choices`; they
    # stand for words after its name.

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["quantize"] = Field(default="quantize", alias="pass")
    scheme: str  # As `mlflow_degrade.optimize.schemes.find_scheme` takes it.
    # Texts on which activations are observed, one a line, for schemes that look at them.
    calibration: Path | None = None
    # Least share of the weights in products that the scheme must have quantized.
    min_quantized_share: float = Field(default=MIN_QUANTIZED_SHARE, ge=0, le=1)

    @field_validator("calibration")
    @classmethod
    def _readable(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        """The file as the recipe means it: relative to the recipe's own folder."""
        if file is None:
            return None
        found = Path((info.context or {}).get("folder", ".")) / file.expanduser()
        if not _texts(found):
            raise ValueError(f"{found} is empty: give texts, one a line")
        return found

    @model_validator(mode="after")
    def _has_such_options(self) -> QuantizePass:
        plain = find_scheme(self.scheme, force=True)
        keys = ["pass", "scheme", *["calibration"] * plain.calibrated, *plain.choices]
        keys += ["min_quantized_share"] * bool(plain.proof)  # others quantize nothing
        given = [*self.options, *["calibration"] * (self.calibration is not None)]
        for key in given:
            if key not in keys:
                raise UnknownNameError(f"key of a pass with scheme {self.scheme!r}:", key, keys)
        find_scheme(self.scheme, options=self.options, force=True)
        return self

    @property
    def options(self) -> Mapping[str, Any]:
        """The scheme's options that the recipe names."""
        return self.__pydantic_extra__ or {}

    @property
    def name(self) -> str:
        """The scheme with words for all its options, e.g. ``"int4-weight-only-block64"``."""
        return self.chosen(force=True).name

    @property
    def title(self) -> str:
        """What is done, in a line."""
        return f"Apply {self.name}: {self.chosen(force=True).summary}"

    def note(self, providers: tuple[str, ...]) -> str | None:
        """The scheme's remark on the first of `providers`."""
        return self.chosen(force=True).notes.get(providers[0])

    def chosen(self, providers: tuple[str, ...] = (CPU,), *, force: bool = False) -> Scheme:
        """The scheme with its options; errors are those of `find_scheme`."""
        return find_scheme(self.scheme, providers, options=self.options, force=force)

    def check(self, providers: tuple[str, ...], *, force: bool) -> None:
        """Raise where the scheme is refused on the first of `providers`."""
        self.chosen(providers, force=force)

    def apply(
        self,
        model: str | Path,
        *,
        providers: tuple[str, ...] = (CPU,),
        force: bool = False,
        progress: bool = True,
    ) -> Path:
        """Apply the scheme to a float model directory."""
        texts = None if self.calibration is None else _texts(self.calibration)
        return apply_scheme(
            model,
            self.name,
            providers=providers,
            force=force,
            calibration=texts,
            min_quantized_share=self.min_quantized_share,
            progress=progress,
        )


Pass = Annotated[ExportPass | GraphPass | QuantizePass, Field(discriminator="kind")]
"""Any pass; the key ``pass`` says which."""

PASSES: Mapping[str, type[_Pass]] = {
    "export": ExportPass,
    "graph": GraphPass,
    "quantize": QuantizePass,
}
"""Every pass by its name, in the only order in which they make sense, each at most once."""


def _texts(file: Path) -> list[str]:
    """Lines of a text file that are not empty."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise ValueError(f"{file} cannot be read: {reason}") from error
    return [line for line in lines if line.strip()]
