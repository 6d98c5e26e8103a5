"""What a pass made of a model: how large it is, and how far from where it all began."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .agreement import Agreement, agreement
from .model_directory import ModelDirectory
from .onnx_files import load_graph


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
