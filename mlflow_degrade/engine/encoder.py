"""Sentence encoders and text classifiers in ONNX Runtime: embeddings, labels, and choices by them.

An encoder has no likelihood of a continuation. What it can say about a choice is how similar it is
to the question: the cosine of the two embeddings, the usual zero-shot use of sentence encoders. A
classifier says how likely each of its labels is, and one with a single number, a cross-encoder, how
well two texts fit. All answer a multiple-choice question by their highest number, so that accuracy
means what it means for a decoder; the numbers themselves do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError, ModelError, NonFiniteLogitsError, UnsupportedModelError
from .decoder import EngineModel, Score
from .family import model_family
from .pooling import Answer, Pooling, head_answer, head_labels, read_pooling
from .providers import open_session
from .schedule import Batch, Limits, Plan, Row, pack, right_padded
from .session import read_json
from .tokenization import EncoderText, Text

# How embeddings are meant to be searched, as sentence-transformers' file of a model says.

PROMPTS_FILE = "config_sentence_transformers.json"
"""Where sentence-transformers keeps prompts and the way to compare embeddings."""

# Of its `encode_document`, in its order.
_PASSAGE_PROMPTS = ("document", "passage", "corpus")


def stated_similarity(folder: Path) -> str:
    """``"cosine"``, also where nothing is stated, or ``"dot"``."""
    stated = read_json(folder, PROMPTS_FILE, needed=False).get("similarity_fn_name") or "cosine"
    if stated not in ("cosine", "dot"):
        raise UnsupportedModelError(
            f"{folder / PROMPTS_FILE} compares embeddings by {stated!r}; known are 'cosine' and "
            "'dot'."
        )
    return str(stated)


def retrieval_prompts(folder: Path) -> tuple[str, str]:
    """What is put before queries and before passages."""
    prompts = read_json(folder, PROMPTS_FILE, needed=False).get("prompts") or {}
    passage = next((prompts[n] for n in _PASSAGE_PROMPTS if prompts.get(n)), "")
    return str(prompts.get("query") or ""), str(passage)


# The graph of an encoder or a classifier as a session: what it is fed, and what answers.

_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
_HIDDEN = ("last_hidden_state", "token_embeddings")


class EncoderSession:
    """A session on an encoder or a classifier."""

    def __init__(
        self,
        folder: Path,
        providers: tuple[str, ...],
        *,
        classifier: bool,
        threads: int | None = None,
    ) -> None:
        self._session: Any = open_session(folder / "model.onnx", providers, threads=threads)
        self._inputs = {node.name for node in self._session.get_inputs()}
        unknown = self._inputs - _INPUTS
        if unknown:
            raise UnsupportedModelError(
                f"the model in {folder} takes {sorted(unknown)}, which the engine does not "
                "know how to fill: export it with Optimum's task 'feature-extraction' or "
                "'text-classification'."
            )
        names = [node.name for node in self._session.get_outputs()]
        known = ("logits",) if classifier else _HIDDEN
        found = next((name for name in known if name in names), None)
        if found is None:
            raise UnsupportedModelError(
                f"the model in {folder} gives {', '.join(names)}, and no {' or '.join(known)}."
            )
        self._output = found

    def run(self, rows: Sequence[Row], length: int, *, pad_id: int) -> NDArray[Any]:
        """Hidden states of shape (rows, length, width), or logits of shape (rows, labels)."""
        ids, mask = right_padded([row.tokens for row in rows], length, fill=pad_id)
        positions = np.arange(length, dtype=np.int64)[None]
        # One text has no second part, which then begins behind its end.
        second = np.array([[row.second or length] for row in rows])
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": mask * (positions >= second),
            "position_ids": np.repeat(positions, len(rows), axis=0),
        }
        values: NDArray[Any]
        (values,) = self._session.run(
            [self._output], {name: feeds[name] for name in feeds if name in self._inputs}
        )
        return values


Vectors = NDArray[np.float32]
OnRows = Callable[[list[int]], None]

_ON_CPU, _ON_GPU = (512, 24), (16_384, 1_024)


class OnnxEncoder(EngineModel):
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
    answer : {"embedding", "label", "number"}
        What it gives: see `mlflow_degrade.engine.pooling`.
    labels : tuple of str
        Of a classifier, in the order of its logits; empty for an encoder, and for a model that
        gives one number.
    unpadded : bool
        Whether texts run one at a time and unpadded. Off by default; set it for models whose
        numbers depend on their batch (see `mlflow_degrade.evaluation.probes`).
    last_plan : Plan or None
        What the latest call ran.

    Raises
    ------
    ModelError
        Files are missing or unreadable.
    UnsupportedModelError
        Neither an encoder nor a classifier that gives each text one label or one number, or a
        pooling that is not known.
    ProviderUnavailableError
        The device is not there.

    Notes
    -----
    Texts run longest first in batches of similar length, each distinct one once, by
    `mlflow_degrade.engine.schedule.pack`. A text's vector is taken from its own tokens alone.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "auto",
        batch_size: int | str = "auto",
        threads: int | None = None,
    ) -> None:
        super().__init__(folder, device, batch_size, threads)
        config = self.config
        self.family = model_family(self.folder)
        if self.family == "decoder":
            raise UnsupportedModelError(
                f"the model in {folder} is neither an encoder nor a classifier (architectures "
                f"{config.get('architectures')}): open it with OnnxDecoder."
            )
        self.labels = head_labels(config, self.folder) if self.family == "classifier" else ()
        self.answer: Answer = head_answer(self.family, self.labels)
        self.pooling = read_pooling(self.folder) if self.answer == "embedding" else Pooling()
        self.text = EncoderText(self.folder, config)

    # -- session --------------------------------------------------------------------------

    @cached_property
    def session(self) -> EncoderSession:
        """The session, opened when it is first needed."""
        return EncoderSession(
            self.folder,
            self.providers,
            classifier=self.answer != "embedding",
            threads=self._threads,
        )

    def close(self) -> None:
        """Free the session's memory; the next call opens it again."""
        self.__dict__.pop("session", None)

    @property
    def limits(self) -> Limits:
        """Limits of a batch on this device."""
        return self._limits(_ON_CPU, _ON_GPU, self.text.max_length)

    # -- answers --------------------------------------------------------------------------

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Sentence embeddings, of shape (texts, width).

        Raises
        ------
        InputError
            The model is a classifier, or a text has no token.
        """
        if self.answer != "embedding":
            raise InputError(f"the model in {self.folder} is a classifier: it has no embeddings.")
        return self.vectors(texts)

    def log_probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Natural log-probability of each label, of shape (texts, labels).

        Raises
        ------
        InputError
            The model has no labels, or a text has no token.
        """
        if not self.labels:
            raise InputError(f"the model in {self.folder} has no labels.")
        return log_softmax(self.vectors(texts))

    def ratings(self, texts: Sequence[Text], on_rows: OnRows | None = None) -> NDArray[np.float64]:
        """How well the two texts of each pair fit, or what a text alone is rated.

        By a model's one number; of pairs also by their embeddings (see `similarity_vectors`).

        Raises
        ------
        InputError
            The model has labels, or embeddings and no pair; or a text has no token.
        """
        if self.answer == "number":
            return self.vectors(texts, on_rows)[:, 0].astype(np.float64)
        pairs = [text for text in texts if isinstance(text, tuple)]
        if self.answer == "label" or len(pairs) < len(texts):
            raise InputError(
                f"the model in {self.folder} gives "
                f"{'labels' if self.labels else 'embeddings'}: pairs of texts are rated by models "
                "that give embeddings or one number, single texts by those that give one number."
            )
        left, right = (list(side) for side in zip(*pairs, strict=True))
        vectors = self.similarity_vectors([*left, *right], on_rows)
        products: NDArray[np.float64] = (vectors[: len(pairs)] * vectors[len(pairs) :]).sum(axis=1)
        return products

    def similarity_vectors(
        self, texts: Sequence[str], on_rows: OnRows | None = None
    ) -> NDArray[np.float64]:
        """Vectors whose products say how alike two texts are, as the model's files state it.

        Embeddings of length 1, whose products are cosines, unless sentence-transformers' file
        names the dot product.

        Raises
        ------
        InputError
            The model is a classifier, or a text has no token.
        UnsupportedModelError
            It compares embeddings in another way.
        """
        by = stated_similarity(self.folder)
        if self.answer != "embedding":
            raise InputError(f"the model in {self.folder} is a classifier: it has no embeddings.")
        found = self.vectors(texts, on_rows).astype(np.float64)
        if by == "dot":
            return found
        return unit(found)

    def vectors(self, texts: Sequence[Text], on_rows: OnRows | None = None) -> Vectors:
        """Embeddings of an encoder, logits of a classifier.

        Parameters
        ----------
        texts : sequence of str or (str, str)
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
        ModelError
            A classifier gives another number of logits than its config has labels.
        NonFiniteLogitsError
            The model produced NaN or infinity.
        EngineError
            Onnxruntime failed, or memory ran out for a single text.
        """
        asked, truncated = self.text.rows(texts)
        distinct = sorted({(row.tokens, row.second) for row in asked})
        place = {key: index for index, key in enumerate(distinct)}
        rows = tuple(Row(tokens, second=second) for tokens, second in distinct)
        places = tuple((place[row.tokens, row.second], 0) for row in asked)
        batches = pack(rows, self.limits)
        self._halving.count = 0
        self.last_plan = Plan(rows, batches, places, truncated, self.limits)
        asking: list[list[int]] = [[] for _ in rows]
        for index, (row, _) in enumerate(places):
            asking[row].append(index)
        found: list[Vectors | None] = [None] * len(texts)
        for answered in self.run(rows, batches):
            finished = []
            for row, vector in answered:
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
            log-likelihood, for a model that gives one number the number of the two, and False:
            nothing is decoded. For a classifier the label's log-probability given the context,
            and whether it is the most likely label.

        Raises
        ------
        InputError
            A choice that is none of a classifier's labels, upper and lower case aside.
        """
        if not pairs:
            return []
        per_pair = 2 if self.answer == "embedding" else 1
        missing = [per_pair] * len(pairs)

        def count(finished: list[int]) -> None:
            done = 0
            for index in finished:
                missing[index % len(pairs)] -= 1
                done += missing[index % len(pairs)] == 0
            if on_scores is not None:
                on_scores(done)

        stripped = [(context, choice.strip()) for context, choice in pairs]
        if self.answer == "number":
            return [Score(value, False) for value in self.ratings(stripped, count).tolist()]
        if self.answer == "embedding":
            texts = [text for side in zip(*stripped, strict=True) for text in side]
            vectors = self.vectors(texts, count)
            halves = vectors[: len(pairs)], vectors[len(pairs) :]
            return [Score(value, False) for value in cosines(*halves).tolist()]
        indices = [self.label_index(choice) for _, choice in pairs]
        likely = log_softmax(self.vectors([context for context, _ in pairs], count))
        best = likely.argmax(axis=1)
        return [
            Score(float(values[i]), bool(i == top))
            for values, i, top in zip(likely, indices, best, strict=True)
        ]

    def label_index(self, name: str) -> int:
        """Which of a classifier's labels is meant: by its name, or by its index.

        Raises
        ------
        InputError
            None of them, or several.
        """
        known = [label.casefold() for label in self.labels]
        wanted = name.strip().casefold()
        if known.count(wanted) == 1:
            return known.index(wanted)
        by_index = wanted.isdecimal() and not any(label.isdecimal() for label in known)
        if by_index and int(wanted) < len(known):
            return int(wanted)
        raise InputError(
            f"the choice {name.strip()!r} is not one of the labels of the classifier in "
            f"{self.folder}, {', '.join(self.labels)}: use labels of the model, or their indices "
            f"0 to {len(known) - 1}, in the file or the task (doc_to_choice), or name the labels "
            "so in id2label of its config.json."
        )

    # -- one batch ------------------------------------------------------------------------

    def run(
        self, rows: Sequence[Row], batches: Sequence[Batch]
    ) -> Iterator[Iterable[tuple[int, Vectors]]]:
        """Vectors by row, batch by batch."""
        return (self.run_batch(rows, batch) for batch in batches)

    def run_batch(self, rows: Sequence[Row], batch: Batch) -> Iterator[tuple[int, Vectors]]:
        """Vectors of one batch by row; it is halved as long as memory does not suffice."""
        return self._halving.run(
            batch, lambda part: self._forward([rows[i] for i in part.rows], part.length)
        )

    def _forward(self, rows: Sequence[Row], length: int) -> list[Vectors]:
        values = self.session.run(rows, length, pad_id=self.text.pad_id)
        if self.answer == "embedding":
            return [
                self.pooling(hidden[: len(row.tokens)]).astype(np.float32)
                for hidden, row in zip(values, rows, strict=True)
            ]
        if values.shape[1:] != (wanted := (len(self.labels) or 1),):
            raise ModelError(
                f"the model in {self.folder} gives each text {values[0].size} numbers, and its "
                f"config.json has {wanted} labels: correct id2label, or use the weights that "
                "belong to it."
            )
        return [row.astype(np.float32) for row in values]

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


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; those of no length stay as they are."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float64] = np.divide(
        vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0
    )
    return found


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Row-wise log-softmax in float64."""
    shifted: NDArray[np.float64] = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    totals: NDArray[np.float64] = np.exp(shifted).sum(axis=-1, keepdims=True)
    return shifted - np.log(totals)
