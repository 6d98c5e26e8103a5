"""What a registered ONNX directory answers in MLflow: texts, scores of choices, or embeddings."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from ..core.cache import digest_model
from ..core.errors import DegradeError, InputError
from .completions import complete, read_body
from .conversation import conversation_prompt
from .decoder import OnnxDecoder
from .encoder import OnnxEncoder
from .family import model_family
from .generation import Sampling


class OnnxLanguageModel(PythonModel):
    """Text generation, choice scoring and embeddings over ONNX Runtime."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the model directory, on CUDA where it works and on the CPU otherwise."""
        folder = context.artifacts["model_dir"]
        kind = OnnxDecoder if model_family(folder) == "decoder" else OnnxEncoder
        self._model = kind(folder, device="auto")
        # Whether scores depend on the batch was measured before the model was registered.
        config = context.model_config or {}
        self._model.unpadded = bool(config.get("one_by_one", False))
        self._folder = Path(folder)
        self._prompting = dict(config.get("prompting") or {})
        self._name = str(config.get("name") or "model")
        # MLflow's server answers in several threads, and a session on a GPU has fixed buffers.
        self._lock = threading.Lock()

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - part of MLflow's interface
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame | dict[str, Any]:
        """Answer each row, or a body of OpenAI's completions."""
        with self._lock:
            body = _completion(model_input, params or {})
            if body is None:
                return self._answer_rows(model_input, params)
            try:
                return self._complete(body)
            except DegradeError as error:
                # Of other errors MLflow's server shows but the stack.
                code = INVALID_PARAMETER_VALUE if isinstance(error, InputError) else INTERNAL_ERROR
                raise MlflowException(str(error), code) from error

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(self._model, OnnxDecoder):
            raise InputError(
                "an encoder or classifier completes no text: leave out echo and logprobs."
            )
        asked = read_body(self._model, self._served, body)
        return complete(self._model, asked, self._served)

    @cached_property
    def _served(self) -> str:
        """What answers: a name for people, and the digest of the files."""
        return f"{self._name}@{digest_model(self._folder)}"

    def _answer_rows(
        self, model_input: pd.DataFrame, params: dict[str, Any] | None
    ) -> pd.DataFrame:
        model_input = _rows(model_input)
        prompts = self._prompts(model_input)
        # After a template nothing is put before a choice, as in the evaluation.
        spaced = [messages is None for messages in _column(model_input, "messages")]
        listed = _column(model_input, "choices")
        choices = [None if options is None else list(options) for options in listed]
        embeddings = None
        if isinstance(self._model, OnnxEncoder):
            if self._model.labels:
                labels = list(self._model.labels)
                choices = [labels if options is None else options for options in choices]
            elif self._model.answer == "embedding":
                embeddings = self._model.embed(prompts)
        scored = [i for i, options in enumerate(choices) if options is not None]
        asked = [i for i, options in enumerate(choices) if options is None]
        texts = [""] * len(prompts)
        likelihoods: list[list[float] | None] = [None] * len(prompts)
        for i, (best, values) in zip(
            scored, self._score([(prompts[i], choices[i], spaced[i]) for i in scored]), strict=True
        ):
            texts[i], likelihoods[i] = best, values
        if embeddings is not None:
            vectors = [vector.tolist() for vector in embeddings]
            return pd.DataFrame(
                {"text": texts, "log_likelihoods": likelihoods, "embedding": vectors}
            )
        if isinstance(self._model, OnnxEncoder):  # a number
            if asked:
                ratings = self._model.ratings([prompts[i] for i in asked]).tolist()
                for i, rating in zip(asked, ratings, strict=True):
                    likelihoods[i] = [rating]
            return pd.DataFrame({"text": texts, "log_likelihoods": likelihoods})
        length = int((params or {}).get("max_new_tokens", 64))
        for i, text in zip(asked, self._generate([prompts[i] for i in asked], length), strict=True):
            texts[i] = text
        return pd.DataFrame({"text": texts, "log_likelihoods": likelihoods})

    def _prompts(self, given: pd.DataFrame) -> list[str]:
        """The text of each row's prompt."""
        prompts = []
        pairs = zip(_column(given, "prompt"), _column(given, "messages"), strict=True)
        for row, (text, messages) in enumerate(pairs):
            if (text is None) == (messages is None):
                has = "neither a prompt nor" if text is None else "both a prompt and"
                raise InputError(f"row {row} has {has} messages: give one of the two.")
            prompts.append(str(text) if messages is None else self._conversation(messages))
        return prompts

    def _conversation(self, given: Any) -> str:
        """A prompt in the chat template, as in the evaluation."""
        if not isinstance(self._model, OnnxDecoder):
            raise InputError("an encoder or classifier holds no conversation: give prompts.")
        tokenizer = self._model.encoder.tokenizer
        return conversation_prompt(tokenizer, given, self._folder, self._prompting)

    def _score(self, rows: list[tuple[str, Any, bool]]) -> list[tuple[str, list[float]]]:
        pairs = []
        for prompt, options, spaced in rows:
            if not options:
                raise InputError(f"no choices for the prompt {prompt[:80]!r}: give at least one.")
            for option in options:
                bare = not spaced or prompt[-1:].isspace() or option[:1].isspace()
                pairs.append((prompt, option if bare else f" {option}"))
        if not pairs:
            return []
        if isinstance(self._model, OnnxDecoder):
            found = self._model.score(self._model.encoder.encode_pairs(pairs))
        else:
            found = self._model.score(pairs)
        scores = iter(found)
        answers = []
        for _, options, _ in rows:
            values = [next(scores).logprob for _ in options]
            answers.append((options[values.index(max(values))], values))
        return answers

    def _generate(self, prompts: list[str], max_new_tokens: int) -> list[str]:
        if not prompts or not isinstance(self._model, OnnxDecoder):
            return []
        tokens = self._model.encoder.encode(prompts)
        return self._model.generate(tokens, Sampling(max_new_tokens=max_new_tokens))


def _completion(given: pd.DataFrame, params: dict[str, Any]) -> dict[str, Any] | None:
    """The body of a completion, which `echo` or `logprobs` make it; None for rows."""
    body = {
        name: [None if isinstance(value, float) and np.isnan(value) else value for value in column]
        for name, column in given.items()
        if name in ("prompt", "logprobs", "stop")
    }
    asked = params.get("echo") is not None or any(
        each is not None for each in body.get("logprobs", ())
    )
    others = [*_column(given, "messages"), *_column(given, "choices")]
    if not asked or "prompt" not in given or any(each is not None for each in others):
        return None
    prompts = body["prompt"]
    settings = {name: _shared(name, body.get(name, [None])) for name in ("logprobs", "stop")}
    count = params.get("max_tokens")
    count = params.get("max_new_tokens", 64) if count is None else count
    prompt = prompts[0] if len(prompts) == 1 else prompts
    return {**params, **settings, "prompt": prompt, "max_tokens": count}


def _shared(name: str, values: list[Any]) -> Any:
    """What all rows of a body say."""
    if any(str(value) != str(values[0]) for value in values):
        raise MlflowException(
            f"{name} differs between rows: send those in a body of their own.",
            INVALID_PARAMETER_VALUE,
        )
    return values[0]


_BODY = '{"dataframe_records": [{"prompt": "…"}]}'


def _rows(given: pd.DataFrame) -> pd.DataFrame:
    """What is asked, a row each; MLflow's server makes other things of other bodies."""
    if not len(given.columns):
        # MLflow drops columns that it does not know, and then there is nothing left to answer.
        raise InputError(f"there is neither a prompt nor messages: send {_BODY}.")
    first = given["prompt"].iloc[0] if len(given) and "prompt" in given else None
    if isinstance(first, np.ndarray | list | tuple):
        # {"inputs": {"prompt": […]}} and {"instances": […]} come as one row that holds them all.
        texts = list(first)
        if len(given) > 1 or not all(isinstance(text, str) for text in texts):
            raise InputError(f"a prompt is a list, and has to be a text: send {_BODY}.")
        if any(value is not None for value in _column(given, "choices")):
            raise InputError(f"choices go with one prompt each: send {_BODY}.")
        return pd.DataFrame({"prompt": texts})
    return given


def _column(given: pd.DataFrame, name: str) -> list[Any]:
    """The values of a column that may be absent, or have none in some rows."""
    if name not in given:
        return [None] * len(given)
    return [None if isinstance(value, float) else value for value in given[name]]
