"""Sentence encoders and classifiers as an lm-eval model: ``--model mlflow-degrade-encoder``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ..errors import InputError
from ..runtime.encoder import OnnxEncoder
from ..runtime.encoder_probe import probe_encoder
from ..runtime.plan import Tokens
from ..runtime.probes import BatchInvariance, ScoringPath, choose_path, spread

NAME = "mlflow-degrade-encoder"
"""Name of this backend in lm-eval's registry."""

METRICS = frozenset({"acc", "f1", "mcc"})
"""Metrics that look only at which choice is best.

Others divide the score of a choice by its length, or take it for the logarithm of a probability of
the choice's text, and would mean nothing.
"""


@register_model(NAME)
class OnnxEncoderLM(LM):  # type: ignore[misc]
    """Encoder or classifier in ONNX Runtime behind lm-eval's interface, for multiple choice.

    Parameters
    ----------
    pretrained : str or OnnxEncoder
        A model directory, or an encoder that is already open.
    device : {"auto", "cpu", "cuda", "tensorrt"}
        Where to run.
    batch_size : int or "auto"
        Most texts per batch; ``"auto"`` goes by a token budget.
    path : {"auto", "batched", "one-by-one"}
        How texts are run; by default the model is probed on the first requests it gets.
    max_batch_size : int, optional
        Accepted because lm-eval's command line passes it; batches are planned, not searched.
    advance : callable, optional
        Told how many requests each batch finished, for a progress bar.

    Attributes
    ----------
    encoder : OnnxEncoder
        The model.
    plans : list of dict
        What was run; see `mlflow_degrade.runtime.plan.Plan.summary`.
    metrics : frozenset of str
        `METRICS`: which of a task's metrics say something about this model.

    Notes
    -----
    What stands in for the log-likelihood of a choice is the cosine of the embeddings of prompt and
    choice, or the log-probability of the label the choice names; see
    `mlflow_degrade.runtime.encoder.OnnxEncoder.score`. A task is answered as a whole: one that was
    killed is asked again from its start.
    """

    metrics: frozenset[str] | None = METRICS

    def __init__(
        self,
        pretrained: str | OnnxEncoder,
        device: str = "auto",
        batch_size: int | str = "auto",
        path: ScoringPath | Literal["auto"] = "auto",
        max_batch_size: int | None = None,  # noqa: ARG002 - part of lm-eval's interface
        advance: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = (
            pretrained
            if isinstance(pretrained, OnnxEncoder)
            else OnnxEncoder(pretrained, device=device, batch_size=batch_size)
        )
        self.plans: list[dict[str, Any]] = []
        self.batch_probe: BatchInvariance | None = None
        self._advance = advance
        self._probing = path == "auto"
        if path != "auto":
            self.take(path)

    def take(self, path: ScoringPath) -> None:
        """Score by this path from now on; an encoder has no prefixes to share."""
        self.encoder.unpadded = path == "one-by-one"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return self.encoder.text.encode(texts)[0]

    def probe(self, prompts: Sequence[Tokens], *, generation: bool = False) -> BatchInvariance:  # noqa: ARG002 - as for decoders
        """Whether this model's numbers depend on the batch."""
        return probe_encoder(self.encoder, prompts)

    def close(self) -> None:
        """Free the session's memory."""
        self.encoder.close()

    def loglikelihood(
        self,
        requests: list[Instance],
        disable_tqdm: bool = False,  # noqa: ARG002 - part of lm-eval's interface
    ) -> list[tuple[float, bool]]:
        """A number for each (context, choice), the higher the better the choice fits.

        Raises
        ------
        InputError
            No request has a choice to compare with, or a choice is none of a classifier's labels.
        """
        asked = Counter((r.task_name, r.doc_id) for r in requests)
        if requests and max(asked.values()) < 2:
            raise _unanswerable(f"task {requests[0].task_name!r} asks about single texts")
        pairs = [request.args for request in requests]
        self._settle([context for context, _ in pairs])
        scores = self.encoder.score(pairs, self._advance)
        if self.encoder.last_plan is not None:
            self.plans.append(self.encoder.last_plan.summary(halved=self.encoder.halved))
        for pair, score in zip(pairs, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, tuple(score))
        return [(score.logprob, score.is_greedy) for score in scores]

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

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of built prompts."""
        return str(self.encoder.text.tokenizer.name_or_path).replace("/", "__")


def require_multiple_choice(output_types: Mapping[str, str]) -> None:
    """Raise unless an encoder or classifier can answer all tasks.

    Parameters
    ----------
    output_types : mapping of str to str
        lm-eval's output type by task.

    Raises
    ------
    InputError
        A task is not multiple choice.
    """
    for task, kind in output_types.items():
        if kind != "multiple_choice":
            raise _unanswerable(f"task {task!r} is of the kind {kind!r}")


def _unanswerable(what: str) -> InputError:
    return InputError(
        f"{what}, and encoders and classifiers answer multiple-choice tasks only: leave it out, or "
        "evaluate a decoder."
    )
