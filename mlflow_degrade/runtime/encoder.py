"""Sentence encoders and text classifiers in ONNX Runtime: embeddings, labels, and choices by them.

An encoder has no likelihood of a continuation. What it can say about a choice is how similar it is
to the question: the cosine of the two embeddings, the usual zero-shot use of sentence encoders. A
classifier says how likely each of its labels is. Both answer a multiple-choice question by their
highest number, so that accuracy means what it means for a decoder; the numbers themselves do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    InputError,
    NonFiniteLogitsError,
    UnsupportedModelError,
)
from .decoder import Score, positive
from .encoder_session import EncoderSession
from .encoder_text import EncoderText
from .family import model_family
from .halving import run_in_halves
from .plan import UNPADDED, Batch, Limits, Plan, Row, Tokens, pack
from .pooling import Pooling, read_pooling
from .providers import on_gpu, resolve_device
from .session import read_json

Vectors = NDArray[np.float32]
OnRows = Callable[[list[int]], None]

_CPU_TOKENS, _CPU_OVERHEAD = 512, 24
_GPU_TOKENS, _GPU_OVERHEAD = 16_384, 1_024


class OnnxEncoder:
    """A sentence encoder or a text classifier in ONNX Runtime.

    Parameters
    ----------
    folder : path
        A model directory: ``model.onnx``, ``config.json`` and tokenizer files.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where to run; nothing silently runs elsewhere.
    batch_size : int or "auto"
        Most texts per batch; ``"auto"`` goes by a token budget.
    threads : int, optional
        Threads per operator; all available cores by default.

    Attributes
    ----------
    family : {"encoder", "classifier"}
        What the model is.
    text : EncoderText
        The tokenizer, which cuts texts to the model's length.
    pooling : Pooling
        How an encoder's token vectors become an embedding.
    labels : tuple of str
        Of a classifier, in the order of its logits; empty for an encoder.
    unpadded : bool
        Whether texts run one at a time and unpadded. Off by default; set it for models whose
        numbers depend on their batch (see `mlflow_degrade.runtime.encoder_probe`).
    last_plan : Plan or None
        What the latest call ran.
    halved : int
        How many batches of that call were halved because memory did not suffice.

    Raises
    ------
    ModelError
        Files are missing or unreadable.
    UnsupportedModelError
        Neither an encoder nor a classifier that gives each text one label, or a pooling that is
        not known.
    ProviderUnavailableError
        The device is not there.

    Notes
    -----
    Texts run longest first in batches of similar length, each distinct one once, by
    `mlflow_degrade.runtime.plan.pack`. A text's vector is taken from its own tokens alone.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "auto",
        batch_size: int | str = "auto",
        threads: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.providers = resolve_device(device)
        config = read_json(self.folder, "config.json", needed=True)
        self.family = model_family(self.folder)
        if self.family == "decoder":
            raise UnsupportedModelError(
                f"the model in {folder} is neither an encoder nor a classifier (architectures "
                f"{config.get('architectures')}): open it with OnnxDecoder."
            )
        self.labels = _labels(config, self.folder) if self.family == "classifier" else ()
        self.pooling = Pooling() if self.labels else read_pooling(self.folder)
        self.text = EncoderText(self.folder, config)
        self.unpadded = False
        self.last_plan: Plan | None = None
        self.halved = 0
        self.batch_size = None if batch_size == "auto" else positive(batch_size)
        self._threads = threads

    # -- session --------------------------------------------------------------------------

    @cached_property
    def session(self) -> EncoderSession:
        """The session, opened when it is first needed."""
        return EncoderSession(
            self.folder, self.providers, classifier=bool(self.labels), threads=self._threads
        )

    def close(self) -> None:
        """Free the session's memory; the next call opens it again."""
        self.__dict__.pop("session", None)

    @property
    def limits(self) -> Limits:
        """Limits of a batch on this device."""
        if self.unpadded:
            return UNPADDED
        tokens, overhead = _CPU_TOKENS, _CPU_OVERHEAD
        if on_gpu(self.providers):
            tokens, overhead = _GPU_TOKENS, _GPU_OVERHEAD
        if self.batch_size is not None:
            tokens = self.batch_size * self.text.max_length
        return Limits(tokens=tokens, rows=self.batch_size, overhead=overhead)

    # -- answers --------------------------------------------------------------------------

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Sentence embeddings, of shape (texts, width).

        Raises
        ------
        InputError
            The model is a classifier, or a text has no token.
        """
        if self.labels:
            raise InputError(f"the model in {self.folder} is a classifier: it has no embeddings.")
        return self.vectors(texts)

    def log_probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Natural log-probability of each label, of shape (texts, labels).

        Raises
        ------
        InputError
            The model is an encoder, or a text has no token.
        """
        if not self.labels:
            raise InputError(f"the model in {self.folder} is an encoder: it has no labels.")
        return log_softmax(self.vectors(texts))

    def vectors(self, texts: Sequence[str], on_rows: OnRows | None = None) -> Vectors:
        """Embeddings of an encoder, logits of a classifier.

        Parameters
        ----------
        texts : sequence of str
            Each is cut on the right to the model's length; `last_plan` counts those that were.
        on_rows : callable, optional
            Called after each batch with the indices of the texts it finished.

        Returns
        -------
        ndarray of float32, shape (texts, width)

        Raises
        ------
        InputError
            A text without any token.
        NonFiniteLogitsError
            The model produced NaN or infinity.
        EngineError
            Onnxruntime failed, or memory ran out for a single text.
        """
        sequences, truncated = self.text.encode(texts)
        return self.run(sequences, on_rows, truncated=truncated)

    def run(
        self, sequences: Sequence[Tokens], on_rows: OnRows | None = None, *, truncated: int = 0
    ) -> Vectors:
        """The same for token ids."""
        distinct = sorted({tuple(tokens) for tokens in sequences})
        place = {tokens: row for row, tokens in enumerate(distinct)}
        rows = tuple(Row(tokens) for tokens in distinct)
        places = tuple((place[tuple(tokens)], 0) for tokens in sequences)
        batches = pack(rows, self.limits)
        self.halved = 0
        self.last_plan = Plan(rows, batches, places, truncated, self.limits)
        asking: list[list[int]] = [[] for _ in rows]
        for index, (row, _) in enumerate(places):
            asking[row].append(index)
        found: list[Vectors | None] = [None] * len(sequences)
        for batch in batches:
            finished = []
            for row, vector in self.run_batch(rows, batch):
                if not np.isfinite(vector).all():
                    raise self._not_finite(rows[row])
                for index in asking[row]:
                    found[index] = vector
                finished += asking[row]
            if on_rows is not None:
                on_rows(finished)
        return np.array([vector for vector in found if vector is not None], np.float32)

    def score(
        self, pairs: Sequence[tuple[str, str]], on_scores: Callable[[int], None] | None = None
    ) -> list[Score]:
        """How well each choice fits its context.

        Parameters
        ----------
        pairs : sequence of (str, str)
            Context and choice; white space around a choice does not count.
        on_scores : callable, optional
            Told after each batch how many pairs it finished.

        Returns
        -------
        list of Score
            For an encoder the cosine of the embeddings of context and choice in place of a
            log-likelihood, and False: nothing is decoded. For a classifier the label's
            log-probability given the context, and whether it is the most likely label.

        Raises
        ------
        InputError
            A choice that is none of a classifier's labels, upper and lower case aside.
        """
        if not pairs:
            return []
        indices = [self._label(choice) for _, choice in pairs] if self.labels else []
        texts = [context for context, _ in pairs]
        if not self.labels:
            texts += [choice.strip() for _, choice in pairs]
        missing = [len(texts) // len(pairs)] * len(pairs)

        def count(finished: list[int]) -> None:
            done = 0
            for index in finished:
                missing[index % len(pairs)] -= 1
                done += missing[index % len(pairs)] == 0
            if on_scores is not None:
                on_scores(done)

        vectors = self.vectors(texts, count)
        if self.labels:
            likely = log_softmax(vectors)
            best = likely.argmax(axis=1)
            return [
                Score(float(values[i]), bool(i == top))
                for values, i, top in zip(likely, indices, best, strict=True)
            ]
        halves = vectors[: len(pairs)], vectors[len(pairs) :]
        return [Score(value, False) for value in cosines(*halves).tolist()]

    def _label(self, choice: str) -> int:
        known = [label.casefold() for label in self.labels]
        wanted = choice.strip().casefold()
        if known.count(wanted) != 1:
            raise InputError(
                f"the choice {choice.strip()!r} is not one of the labels of the classifier in "
                f"{self.folder}, {', '.join(self.labels)}: use a task whose choices are its "
                "labels (doc_to_choice), or name the labels so in id2label of its config.json."
            )
        return known.index(wanted)

    # -- one batch ------------------------------------------------------------------------

    def run_batch(self, rows: Sequence[Row], batch: Batch) -> Iterator[tuple[int, Vectors]]:
        """Vectors of one batch by row; it is halved as long as memory does not suffice."""

        def run(part: Batch) -> list[Vectors]:
            return self._forward([rows[i].tokens for i in part.rows], part.length)

        yield from run_in_halves(self, batch, run)

    def _forward(self, rows: Sequence[Tokens], length: int) -> list[Vectors]:
        values = self.session.run(rows, length, pad_id=self.text.pad_id)
        if self.labels:
            return [row.astype(np.float32) for row in values]
        return [
            self.pooling(hidden[: len(tokens)]).astype(np.float32)
            for hidden, tokens in zip(values, rows, strict=True)
        ]

    def _not_finite(self, row: Row) -> NonFiniteLogitsError:
        return NonFiniteLogitsError(
            f"the model in {self.folder} gives NaN or infinity for the text "
            f"{self.text.decode(row.tokens)[:80]!r}: its weights or activations overflow; nothing "
            "of this model is scored."
        )


def cosines(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of each row of `left` with the same row of `right`; 0 where one has no length."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    products: NDArray[np.float64] = (a * b).sum(axis=-1)
    result: NDArray[np.float64] = np.divide(
        products, lengths, out=np.zeros_like(products), where=lengths > 0
    )
    return result


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Row-wise log-softmax in float64."""
    shifted: NDArray[np.float64] = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    totals: NDArray[np.float64] = np.exp(shifted).sum(axis=-1, keepdims=True)
    return shifted - np.log(totals)


def _labels(config: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """A classifier's labels in the order of its logits."""
    stated = config.get("id2label") or {}
    labels = tuple(str(stated[key]) for key in sorted(stated, key=int))
    kind = config.get("problem_type")
    if len(labels) < 2 or kind in ("regression", "multi_label_classification"):
        raise UnsupportedModelError(
            f"the classifier in {folder} has the labels {list(labels)} and the problem type "
            f"{kind}: only classifiers that give each text one of at least two labels are handled."
        )
    return labels
