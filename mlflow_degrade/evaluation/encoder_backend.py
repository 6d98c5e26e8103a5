"""Sentence encoders and classifiers as an lm-eval model: ``--model mlflow-degrade-encoder``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model

from ..core.errors import InputError
from ..engine.encoder import OnnxEncoder, retrieval_prompts
from ..engine.schedule import Tokens
from .backend import EngineLM
from .collection import Collection
from .encoder_tasks import ranking_of, texts_of
from .probes import BatchInvariance, ScoringPath, choose_path, probe_encoder, spread

Answer = TypeVar("Answer")

NAME = "mlflow-degrade-encoder"
"""Name of this backend in lm-eval's registry."""

METRICS = frozenset(
    (
        "acc", "f1", "mcc", "order_agreement", "spearman",
        "ndcg_at_10", "recall_at_10", "recall_at_100", "mrr_at_10",
    )
)  # fmt: skip
"""Metrics that look only at which choice is best, or at the order of ratings.

Others divide the score of a choice by its length, or take it for the logarithm of a probability of
the choice's text, and would mean nothing.
"""


@register_model(NAME)
class OnnxEncoderLM(EngineLM):
    """Encoder or classifier in ONNX Runtime behind lm-eval's interface, for multiple choice."""

    # What stands in for the log-likelihood of a choice is the cosine of the embeddings of prompt
    # and choice, or the log-probability of the label the choice names; see
    # `mlflow_degrade.engine.encoder.OnnxEncoder.score`. A task is answered as a whole: one that
    # was killed is asked again from its start. Beside lm-eval's requests it answers those of
    # `encoder_tasks`.

    metrics = METRICS

    def __init__(
        self,
        pretrained: str | OnnxEncoder,
        device: str = "auto",
        batch_size: int | str = "auto",
        path: ScoringPath | Literal["auto"] = "auto",
        max_batch_size: int | None = None,  # noqa: ARG002 - part of lm-eval's interface
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self.encoder = (
            pretrained
            if isinstance(pretrained, OnnxEncoder)
            else OnnxEncoder(pretrained, device=device, batch_size=batch_size)
        )
        super().__init__(self.encoder, path, advance)
        self.tokenizer = self.encoder.text.tokenizer
        self.batch_probe: BatchInvariance | None = None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return self.encoder.text.encode(texts)[0]

    def probe(self, prompts: Sequence[Tokens], *, generation: bool = False) -> BatchInvariance:  # noqa: ARG002 - as for decoders
        """Whether this model's numbers depend on the batch."""
        return probe_encoder(self.encoder, prompts)

    def loglikelihood(
        self,
        requests: list[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - part of lm-eval's interface
    ) -> list[tuple[float, bool]]:
        """A number for each (context, choice), the higher the better the choice fits."""
        asked = Counter((r.task_name, r.doc_id) for r in requests)
        if requests and max(asked.values()) < 2:
            raise _unanswerable(f"task {requests[0].task_name!r} asks about single texts")
        pairs = [request.args for request in requests]
        self._settle([context for context, _ in pairs])
        scores = self.encoder.score(pairs, self._advance)
        self._keep_plan()
        for pair, score in zip(pairs, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, tuple(score))
        return [(score.logprob, score.is_greedy) for score in scores]

    def label_text(self, requests: list[Instance], **_: Any) -> list[str]:
        """The most likely of the model's labels for each text or pair."""
        texts = [args[0] if len(args) == 1 else tuple(args) for args in (r.args for r in requests)]
        self._settle([request.args[0] for request in requests])
        logits = self.encoder.vectors(texts, self._by_share(len(requests), len(texts)))
        found = [self.encoder.labels[best] for best in logits.argmax(axis=1)]
        return self._keep("label_text", requests, found)

    def order_texts(self, requests: list[Instance], **_: Any) -> list[list[float]]:
        """A number for each text or pair of every group, the higher the better."""
        groups = [texts_of(request) for request in requests]
        texts = [text for group in groups for text in group]
        self._settle([request.args[0] for request in requests])
        rest = iter(self.encoder.ratings(texts, self._by_share(len(requests), len(texts))).tolist())
        found = [[float(next(rest)) for _ in group] for group in groups]
        return self._keep("order_texts", requests, found)

    def rank_passages(self, requests: list[Instance], **_: Any) -> list[list[str]]:
        """Ids of each query's passages, best first, as many as enter any metric."""
        self._settle([request.args[0] for request in requests])
        found: dict[int, list[str]] = {}
        for collection in dict.fromkeys(request.args[1] for request in requests):
            asked = [i for i, request in enumerate(requests) if request.args[1] == collection]
            ratings = self._rated(collection, [requests[i] for i in asked])
            for index, rated in zip(asked, ratings, strict=True):
                found[index] = ranking_of(rated, requests[index].args[0])
        return self._keep("rank_passages", requests, [found[i] for i in range(len(requests))])

    def _rated(
        self, collection: Collection, requests: Sequence[Instance]
    ) -> Iterator[dict[str, float]]:
        """Rating of each passage that is ranked for a query, query by query."""
        queries = [request.args[0] for request in requests]
        if self.encoder.answer == "number":
            listed = [
                collection.shortlist(query, judged) if whole else list(judged)
                for query, _, judged, whole in (request.args for request in requests)
            ]
            pairs = [
                (query, collection.passages[name])
                for query, names in zip(queries, listed, strict=True)
                for name in names
            ]
            advance = self._by_share(len(requests), len(pairs))
            ratings = iter(self.encoder.ratings(pairs, advance).tolist())
            for names in listed:
                yield {name: next(ratings) for name in names}
            return
        whole = any(request.args[3] for request in requests)
        judged = {name for request in requests for name in request.args[2]}
        names = [name for name in collection.passages if whole or name in judged]
        before_query, before_passage = retrieval_prompts(self.encoder.folder)
        texts = [before_query + query for query in queries]
        texts += [before_passage + collection.passages[name] for name in names]
        advance = self._by_share(len(requests), len(texts))
        vectors = self.encoder.similarity_vectors(texts, advance)
        left, right = vectors[: len(queries)], vectors[len(queries) :]
        place = {name: i for i, name in enumerate(names)}
        for vector, request in zip(left, requests, strict=True):
            wanted = names if request.args[3] else request.args[2]
            near = (right @ vector).tolist()
            yield {name: near[place[name]] for name in wanted}

    def _by_share(self, requests: int, texts: int) -> Callable[[list[int]], None]:
        """From texts that are finished to the progress of requests."""
        finished = told = 0

        def count(indices: list[int]) -> None:
            nonlocal finished, told
            finished += len(indices)
            now = requests * min(finished, texts) // texts
            self._advance(now - told)
            told = now

        return count

    def _keep(self, kind: str, requests: Sequence[Instance], answers: list[Answer]) -> list[Answer]:
        """Record the plan, and hand the answers to lm-eval's cache."""
        self._keep_plan()
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return answers

    def _settle(self, contexts: Sequence[str]) -> None:
        """Leave batches for good when this model's answers depend on them."""
        if self._probing and self.batch_probe is None and contexts:
            some = spread(list(dict.fromkeys(contexts)))
            self.batch_probe = self.probe(self.encode(some))
            self.take(choose_path(self.batch_probe))

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> NoReturn:
        """Refused: an encoder gives texts no likelihood."""
        raise _unanswerable(
            f"task {requests[0].task_name!r} asks for the likelihood of whole texts"
        )

    def generate_until(self, requests: list[Instance], **_: Any) -> NoReturn:
        """Refused: an encoder generates nothing."""
        raise _unanswerable(f"task {requests[0].task_name!r} asks for generated text")

    def chat_template(self, chat_template: bool | str = False) -> None:
        """Refused unless none is asked for."""
        if chat_template:
            self.apply_chat_template([])

    def apply_chat_template(self, chat_history: list[dict[str, str]], *_: Any, **__: Any) -> str:  # noqa: ARG002
        """Refused: an encoder holds no conversation."""
        raise InputError("an encoder or classifier has no chat template: evaluate without one.")


def _unanswerable(what: str) -> InputError:
    return InputError(
        f"{what}, and encoders and classifiers answer multiple-choice tasks only, and files of "
        "their own: leave it out, or evaluate a decoder."
    )
