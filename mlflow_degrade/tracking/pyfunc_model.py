"""The model that MLflow loads: an ONNX directory that generates text, scores choices or embeds.

MLflow runs this file itself ("models from code") instead of unpickling an object, and the ONNX
directory travels next to it byte for byte: what is served is what was tested.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from mlflow_degrade.errors import InputError
from mlflow_degrade.runtime.decoder import OnnxDecoder
from mlflow_degrade.runtime.encoder import OnnxEncoder
from mlflow_degrade.runtime.family import model_family
from mlflow_degrade.runtime.generation import Sampling


class OnnxLanguageModel(PythonModel):
    """Text generation, choice scoring and embeddings over ONNX Runtime."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the model directory, on CUDA where it works and on the CPU otherwise."""
        folder = context.artifacts["model_dir"]
        kind = OnnxDecoder if model_family(folder) == "decoder" else OnnxEncoder
        self._model = kind(folder, device="auto")
        # Whether scores depend on the batch was measured before the model was registered.
        self._model.unpadded = bool((context.model_config or {}).get("one_by_one", False))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002 - part of MLflow's interface
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Answer each row.

        Parameters
        ----------
        context : PythonModelContext
            Unused; the model is open already.
        model_input : DataFrame
            Column ``prompt``. Where a column ``choices`` (a list of strings) is given, its strings
            are scored as continuations of the prompt; a space is put between the two unless one of
            them brings it. Without choices text is generated, greedily; a classifier chooses among
            all its labels, an encoder gives the prompt's embedding, and a model with one number
            that of the prompt alone.
        params : dict, optional
            ``max_new_tokens`` of generation, 64 by default.

        Returns
        -------
        DataFrame
            Column ``text``, the generation or the most likely choice, and column
            ``log_likelihoods``, the natural logarithm of each choice's probability, or None. For
            an encoder these are the cosines of prompt and choices, and a column ``embedding``
            holds the prompt's; of a model with one number they are its numbers for prompt and
            choice, or for the prompt alone.
        """
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        choices: list[list[str] | None] = [None] * len(prompts)
        if "choices" in model_input:
            choices = [None if value is None else list(value) for value in model_input["choices"]]
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
            scored, self._score([(prompts[i], choices[i]) for i in scored]), strict=True
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

    def _score(self, rows: list[tuple[str, Any]]) -> list[tuple[str, list[float]]]:
        pairs = []
        for prompt, options in rows:
            if not options:
                raise InputError(f"no choices for the prompt {prompt[:80]!r}: give at least one.")
            for option in options:
                spaced = prompt[-1:].isspace() or option[:1].isspace()
                pairs.append((prompt, option if spaced else f" {option}"))
        if not pairs:
            return []
        if isinstance(self._model, OnnxDecoder):
            found = self._model.score(self._model.encoder.encode_pairs(pairs))
        else:
            found = self._model.score(pairs)
        scores = iter(found)
        answers = []
        for _, options in rows:
            values = [next(scores).logprob for _ in options]
            answers.append((options[values.index(max(values))], values))
        return answers

    def _generate(self, prompts: list[str], max_new_tokens: int) -> list[str]:
        if not prompts or not isinstance(self._model, OnnxDecoder):
            return []
        tokens = self._model.encoder.encode(prompts)
        return self._model.generate(tokens, Sampling(max_new_tokens=max_new_tokens))


set_model(OnnxLanguageModel())
