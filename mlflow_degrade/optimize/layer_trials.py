"""How far a model is from itself when some of its layers are quantized, for any choice of layers.

Answers are kept in the cache, one line each, as they are found: a question is asked once, and a
measurement that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cache import cache_root, digest_json, require_space, storing
from ..errors import InputError, NonFiniteLogitsError
from ..runtime.encoder_text import EncoderText
from ..runtime.family import model_family
from ..runtime.heads import head_answer, head_labels
from ..runtime.one_text import one_text
from ..runtime.pooling import read_pooling
from ..runtime.providers import open_session
from ..runtime.session import read_json
from .calibration import Calibration
from .embeddings import untie_head
from .forward import Logits, Tokens
from .layers import Layer
from .model_directory import ModelDirectory, library_versions
from .onnx_files import GRAPH_FILE, load_graph, save_graph
from .parity import prompt_tokens
from .prompts import PARITY_PROMPTS
from .quiet_work import quiet_work
from .switches import add_switches, switch_name
from .weight_only import replace_gemm

Rewrite = Callable[..., dict[str, Any]]
"""A scheme's function: changes a graph in place, by keyword options; returns findings."""

_VERSION = 1
_OF_NUMBERS = "1 - correlation"


class LayerTrials:
    """Distances of partly quantized models from the float model; use it as a context manager.

    Parameters
    ----------
    base : ModelDirectory
        The float model.
    rewrite : callable
        What quantizes it whole.
    options : mapping
        Keyword arguments of `rewrite`.
    prompts : collection of str
        Texts to compare on.
    calibration : sequence of str, optional
        Texts on which `rewrite` observes activations, where it takes a
        `mlflow_degrade.optimize.calibration.Calibration`.
    progress : bool
        Show the preparation, on standard error.

    Attributes
    ----------
    measure : str
        What a distance is: the mean KL divergence in nats from the float model's distributions;
        for encoders 1 minus the mean cosine with its embeddings, for models that give one number
        the mean squared difference in units of twice the variance over the texts, which is 1 minus
        the correlation where only the order of texts changes.
    """

    def __init__(
        self,
        base: ModelDirectory,
        rewrite: Rewrite,
        options: Mapping[str, Any],
        prompts: Collection[str] = PARITY_PROMPTS,
        *,
        calibration: Sequence[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.base = base
        self._rewrite, self._options = rewrite, dict(options)
        self._calibration = calibration
        self._progress = progress
        self._family = model_family(base.path)
        self._distance, self.measure = _DISTANCES[_answer(base.path, self._family)]
        self._tokens = _tokens(base.path, self._family, list(prompts))
        name = f"{rewrite.__module__}.{rewrite.__qualname__}"
        key = [_VERSION, base.digest, name, self._options, list(prompts), library_versions()]
        if calibration is not None:
            key.append(list(calibration))
        file = digest_json(key).removeprefix("sha256:")[:24]
        self._journal = cache_root() / "sensitivity" / f"{file}.jsonl"
        self._layers: tuple[Layer, ...] = ()
        self._answers: dict[str, float] = {}
        self._switched: _Switched | None = None
        self._expected: list[Logits] = []
        self._read()

    def __enter__(self) -> LayerTrials:
        return self

    def __exit__(self, *_: object) -> None:
        if self._switched is not None:
            self._switched.close()
            self._switched = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that the scheme quantizes when nothing stops it."""
        if not self._layers:
            self._open()
        return self._layers

    @property
    def texts(self) -> int:
        """Number of texts there are to compare on."""
        return len(self._tokens)

    def distance(self, quantized: Collection[str], texts: int | None = None) -> float:
        """Distance from the float model when the named layers are quantized, and no others.

        Parameters
        ----------
        quantized : collection of str
            Names of `layers`.
        texts : int, optional
            Compare on the first so many texts only.

        Raises
        ------
        NonFiniteLogitsError
            When the model gives NaN or infinity.
        """
        count = min(texts or self.texts, self.texts)
        key = digest_json([sorted(quantized), count])
        if key not in self._answers:
            self._answers[key] = self._measure(set(quantized), count)
            self._write([key, self._answers[key]])
        return self._answers[key]

    def _measure(self, quantized: set[str], count: int) -> float:
        switched = self._open()
        for tokens in self._tokens[len(self._expected) : count]:
            self._expected.append(switched.outputs(tokens, set()))
        total, terms = 0.0, 0
        for tokens, want in zip(self._tokens[:count], self._expected, strict=False):
            got = switched.outputs(tokens, quantized)
            if not np.isfinite(got).all():
                raise NonFiniteLogitsError(
                    f"{self.base.path} with {len(quantized)} layers quantized gives NaN or "
                    "infinity on a plain text: its numbers leave the range of the format."
                )
            found = self._distance(want, got)
            total, terms = total + float(found.sum()), terms + len(found)
        scale = 2 * np.var(self._expected[:count]) if self.measure == _OF_NUMBERS else 1.0
        return float(total / terms / scale)

    def _open(self) -> _Switched:
        """Quantize the model and open it with its switches, unless that was done."""
        if self._switched is None:
            with quiet_work("Preparing to switch layers", self._progress):
                options = dict(self._options)
                if self._calibration is not None:
                    options["calibration"] = Calibration(self.base.path, self._calibration)
                self._switched = _Switched(self.base, self._rewrite, options, self._family)
            if not self._layers:
                self._layers = self._switched.layers
                self._write([[x.name, x.output, x.kind, x.weights] for x in self._layers])
        return self._switched

    def _read(self) -> None:
        if not self._journal.is_file():
            return
        content = self._journal.read_bytes()
        if not content.endswith(b"\n"):
            # A process died while it wrote its last line: what is written next must not join it.
            with self._journal.open("ab") as stream:
                stream.write(b"\n")
        for line in content.splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found[0], list):
                self._layers = tuple(Layer(*values) for values in found)
            else:
                self._answers[found[0]] = float(found[1])

    def _write(self, line: Any) -> None:
        with storing(self._journal):
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")


class _Switched:
    """A session of a float model with a switch for every layer."""

    def __init__(
        self, base: ModelDirectory, rewrite: Rewrite, options: Mapping[str, Any], family: str
    ) -> None:
        require_space(cache_root(), int(2.2 * base.size_bytes), "switching layers")
        cache_root().mkdir(parents=True, exist_ok=True)
        quantized = load_graph(base.path)
        rewrite(quantized, **options)
        model = load_graph(base.path)
        for graph in (model, quantized):  # alike in what the scheme may have done to one of them
            untie_head(graph)
            replace_gemm(graph)
        self.layers = add_switches(model, quantized)
        del quantized
        self._folder = tempfile.TemporaryDirectory(dir=cache_root(), prefix=".switches-")
        save_graph(model, Path(self._folder.name))
        self._session: Any = open_session(Path(self._folder.name) / GRAPH_FILE)
        self._base = base.path
        self._output = self._session.get_outputs()[0].name
        self._pooling = read_pooling(base.path) if family == "encoder" else None

    def outputs(self, tokens: Tokens, quantized: set[str]) -> Logits:
        """Logits of each position, a classifier's of the text, or an encoder's embedding."""
        switches = {switch_name(layer): np.array(layer.name in quantized) for layer in self.layers}
        feeds = one_text(self._session, self._base, tokens, others=switches) | switches
        found = self._session.run([self._output], feeds)[0][0].astype(np.float32)
        if self._pooling is not None:
            found = np.asarray(self._pooling(found), np.float32)
        return np.atleast_2d(found)

    def close(self) -> None:
        self._session = None
        self._folder.cleanup()


def _tokens(folder: Path, family: str, prompts: list[str]) -> list[Tokens]:
    """Token ids of each text, as the model reads them."""
    if family == "decoder":
        return prompt_tokens(folder, prompts)
    config = read_json(folder, "config.json", needed=True)
    found = [np.asarray(ids, np.int64) for ids in EncoderText(folder, config).encode(prompts)[0]]
    if not found:
        raise InputError("no text to compare on: give at least one.")
    return found


def _kl(want: Logits, got: Logits) -> Logits:
    """KL(want || got) of each row in nats: with d = got - want, log E[exp d] - E[d] under want."""
    shifted = np.exp(want - want.max(axis=1, keepdims=True))
    weights = shifted / shifted.sum(axis=1, keepdims=True)
    difference = got - want
    largest = difference.max(axis=1, keepdims=True)
    grown = (weights * np.exp(difference - largest)).sum(axis=1)
    # Float32 may leave a tiny negative number where both agree.
    kl: Logits = np.log(grown) + largest[:, 0] - (weights * difference).sum(axis=1)
    return np.maximum(kl, 0)


def _cosine_distance(want: Logits, got: Logits) -> Logits:
    found: Logits = 1 - (want * got).sum(axis=1) / (
        np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1)
    )
    return np.maximum(found, 0)


def _squared_difference(want: Logits, got: Logits) -> Logits:
    found: Logits = ((want.astype(np.float64) - got) ** 2).sum(axis=1)
    return found


def _answer(folder: Path, family: str) -> str:
    """What is read from the model: see `mlflow_degrade.runtime.heads`."""
    if family == "decoder":
        return "label"  # the next token
    config = read_json(folder, "config.json", needed=True)
    labels = head_labels(config, folder) if family == "classifier" else ()
    return head_answer(family, labels)


_DISTANCES: Mapping[str, tuple[Callable[[Logits, Logits], Logits], str]] = {
    "embedding": (_cosine_distance, "1 - cosine"),
    "label": (_kl, "mean KL, nats"),
    "number": (_squared_difference, _OF_NUMBERS),
}
