"""The MLflow evaluator ``degrade``: `mlflow.models.evaluate` ends in a paired verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models.evaluation.base import EvaluationResult, ModelEvaluator
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ..core.display import in_notebook
from ..core.errors import InputError, UnknownNameError
from ..decision.policy import GatePolicy, explain
from ..decision.results import Decision, SideName
from ..samples.pairing import PairedScores
from ..samples.table import SampleScores
from .evidence import EvaluationSource, decision_metrics
from .references import content_digest

# From a frame with both models' answers, as MLflow's evaluation hands it over, to samples.

_IDS = ("doc_id", "prompt_id", "id")
_TEXT_COLUMNS = ("prompt", "question", "inputs", "input")
_LABELS = ("task", "repeat", "cluster")

Scorer = Callable[[Any, Any], float]


def exact_match(answer: Any, target: Any) -> float:
    """1.0 where an answer is the target, white space around it aside."""
    return float(str(answer).strip() == str(target).strip())


def frame_to_samples(
    features: pd.DataFrame,
    answers: Mapping[str, Any],
    *,
    targets: Any = None,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    scorer: Scorer | None = None,
    names: Mapping[str, str] | None = None,
    digests: Mapping[str, str | None] | None = None,
) -> dict[str, SampleScores]:
    """Make two sample tables of one frame."""
    if not len(features):
        raise InputError("the frame has no rows: there is nothing to compare.")
    common = _common_columns(features)
    found = {}
    for side, given in answers.items():
        values = np.asarray(given, dtype=object)
        frame = common.copy()
        if targets is None:
            frame["score"] = _scores(side, values)
        else:
            wanted = np.asarray(targets, dtype=object)
            score = scorer or exact_match
            frame["score"] = [
                None if _absent(a) else float(score(a, t))
                for a, t in zip(values, wanted, strict=True)
            ]
            frame["response"] = [None if _absent(a) else str(a) for a in values]
            frame["target"] = [str(t) for t in wanted]
        frame["metric"] = metric or ("score" if targets is None else "exact_match")
        if higher_is_better is not None:
            frame["higher_is_better"] = higher_is_better
        found[side] = SampleScores.from_pandas(
            frame,
            model=(names or {}).get(side, side),
            model_digest=(digests or {}).get(side),
            # Columns that somebody named, or a model that was just asked, are no log read twice.
            answer_digests=dict.fromkeys(frame["task"].unique(), f"column:{side}"),
        )
    return found


def column(features: pd.DataFrame, name: str) -> pd.Series[Any]:
    """A column by name, or an error that lists the present ones."""
    if name not in features:
        raise UnknownNameError("column", name, map(str, features.columns))
    return features[name]


def _common_columns(features: pd.DataFrame) -> pd.DataFrame:
    """What both sides share: keys, prompt, features."""
    used: set[str] = set()

    def first(names: tuple[str, ...]) -> Any:
        name = next((n for n in names if n in features), None)
        if name is None:
            return None
        used.add(name)
        return features[name].astype(str).to_numpy()

    prompt = first(_TEXT_COLUMNS)
    ids = first(_IDS)
    frame = pd.DataFrame({"doc_id": np.arange(len(features)).astype(str) if ids is None else ids})
    if prompt is not None:
        frame["prompt"] = prompt
    frame["task"] = "all"
    for name in _LABELS:
        if name in features:
            used.add(name)
            frame[name] = features[name].to_numpy()
    for name in features.columns:
        kind = features[name].dtype
        plain = pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_string_dtype(kind)
        if name not in used and plain and not pd.api.types.is_bool_dtype(kind):
            frame[f"feature.{name}"] = features[name].to_numpy()
    return frame


def _scores(side: str, values: Any) -> Any:
    try:
        return np.array([np.nan if _absent(v) else float(v) for v in values])
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{side}: {error}. Without targets both sides must be scores (numbers); to compare "
            "answers, name the column of expected answers with targets=."
        ) from error


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA


MODEL_TYPE = "degrade"


class EvaluatorConfig(BaseModel):
    """What ``evaluator_config`` may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    policy: Any = None  # The default policy by default.
    # Column with the baseline's scores, or with its answers where targets are given.
    baseline: str = "baseline"
    baseline_run_id: str | None = None
    candidate_run_id: str | None = None  # Evaluation runs to compare instead of columns.
    # Of runs of mlflow.genai.evaluate: the scorers to decide on, each a task of its own.
    scorers: str | tuple[str, ...] | None = None
    baseline_name: str = "baseline"
    candidate_name: str = "candidate"  # What reports call the models.
    metric: str | None = None  # Name of the metric in a frame.
    # Direction of the scores; that of the metric's name by default.
    higher_is_better: bool | None = None
    # ``scorer(answer, target) -> float``, exact match by default.
    scorer: Callable[[Any, Any], float] | None = None
    register_as: str | None = None
    alias: str | None = None  # Registered model, and its alias, for a candidate that passes.
    # The candidate's logged model; by default the model that is evaluated.
    model_uri: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> EvaluatorConfig:
        if (self.baseline_run_id is None) != (self.candidate_run_id is None):
            raise ValueError("baseline_run_id and candidate_run_id are needed together")
        if self.alias is not None and self.register_as is None:
            raise ValueError("an alias needs register_as, the registered model it belongs to")
        return self

    def gate_policy(self) -> GatePolicy:
        """The policy, however it was given."""
        if self.policy is None:
            return GatePolicy()
        if isinstance(self.policy, GatePolicy):
            return self.policy
        if isinstance(self.policy, (str, Path)):
            return GatePolicy.from_yaml(self.policy)
        return GatePolicy.from_mapping(self.policy, "evaluator_config: policy")


class DegradeEvaluator(ModelEvaluator):
    """Compares a candidate with a baseline on the same samples."""

    # It runs when it is asked for: ``model_type="degrade"``, or ``evaluators="degrade"`` with a
    # configuration of its own. Three inputs work: a frame with the scores (or answers) of both
    # models; a model with the baseline's answers in a column; two run ids in the configuration.
    # Metrics, tables, report and evidence are logged to the run; with ``register_as`` a model that
    # passes is registered.

    name = "degrade"

    @classmethod
    def can_evaluate(cls, *, model_type: str, evaluator_config: Any, **_: Any) -> bool:
        """Only when asked for: MLflow asks every evaluator it knows."""
        own = set(evaluator_config or ()) & {"baseline_run_id", "baseline", "policy"}
        return model_type == MODEL_TYPE or bool(own)

    def evaluate(
        self,
        *,
        model_type: str,  # noqa: ARG002 - part of MLflow's interface
        dataset: Any,
        run_id: str,
        evaluator_config: dict[str, Any] | None,
        model: Any = None,
        predictions: str | None = None,
        model_id: str | None = None,
        **_: Any,
    ) -> EvaluationResult:
        """Decide, log, and register when told to; see the class."""
        import click

        from ..decision.results import Verdict
        from ..tracking.views import where_to_look
        from .attestation import load_allowed_key
        from .gate_config import GateConfig
        from .register_on_pass import log_conclusion, place, tested_content

        config = _config(evaluator_config)
        policy = config.gate_policy()
        uri = config.model_uri or _uri(model, model_id)
        key = load_allowed_key(None, GateConfig.load().signers)
        paired = _paired(config, policy, dataset, model, predictions, uri)
        content = None
        if config.register_as is not None:
            if uri is None:
                raise InputError(
                    f"register_as = {config.register_as!r}: no logged model is known to register. "
                    "Evaluate a logged model, or name it with model_uri."
                )
            content = tested_content(uri, paired.candidate)
        decision, evidence = log_conclusion(
            paired,
            policy,
            provenance={"evaluator": self.name},
            sources=_sources(config),
            content=content,
        )
        metrics = {k: v for k, v in decision_metrics(decision).items() if v is not None}
        if content is not None and decision.verdict is Verdict.PASS:
            name, alias = str(config.register_as), config.alias
            place(
                decision, evidence, run_id, name, str(uri), content,
                alias=alias, key=key, bound=True,
            )  # fmt: skip
        _show(decision, paired)
        for line in where_to_look(run_id):
            click.echo(line, err=True)
        return EvaluationResult(  # type: ignore[no-untyped-call]
            metrics=metrics, artifacts=_artifacts(run_id), run_id=run_id
        )


def _show(decision: Decision, paired: PairedScores) -> None:
    """Print the verdict; a notebook shows it as a page."""
    from ..report.terminal import console, decision_view

    if in_notebook():
        from IPython.display import display

        display(decision)
    else:
        console().print(decision_view(decision, paired, samples=0))


# MLflow's `result.tables` loads those that are tables.
_ARTIFACTS = {"flips": "flips.json", "report.html": "report.html", "report.md": "report.md"}


def _artifacts(run_id: str) -> dict[str, Any]:
    """What was logged, as MLflow's results hold it; read when it is asked for."""
    from mlflow import MlflowClient
    from mlflow.models.evaluation.artifacts import JsonEvaluationArtifact, TextEvaluationArtifact

    client = MlflowClient()
    location = client.get_run(run_id).info.artifact_uri
    there = {item.path for item in client.list_artifacts(run_id)}
    kinds = {".json": JsonEvaluationArtifact}
    return {
        name: kinds.get(Path(file).suffix, TextEvaluationArtifact)(uri=f"{location}/{file}")
        for name, file in _ARTIFACTS.items()
        if file in there
    }


def _sources(config: EvaluatorConfig) -> dict[SideName, EvaluationSource]:
    """The evaluations that are compared, where it is not a frame."""
    from mlflow import MlflowClient

    if config.baseline_run_id is None or config.candidate_run_id is None:
        return {}
    get = MlflowClient().get_run
    return {
        "baseline": EvaluationSource.of(get(config.baseline_run_id), now=False),
        "candidate": EvaluationSource.of(get(config.candidate_run_id), now=False),
    }


def _config(given: dict[str, Any] | None) -> EvaluatorConfig:
    try:
        return EvaluatorConfig.model_validate(given or {})
    except ValidationError as error:
        raise InputError("\n".join(explain(error, "evaluator_config", EvaluatorConfig))) from error


def _paired(
    config: EvaluatorConfig,
    policy: GatePolicy,
    dataset: Any,
    model: Any,
    predictions: str | None,
    uri: str | None,
) -> PairedScores:
    if config.baseline_run_id is not None and config.candidate_run_id is not None:
        from .references import find_subject, samples_of

        baseline, candidate = (
            find_subject(f"runs:/{run}")
            for run in (config.baseline_run_id, config.candidate_run_id)
        )
        left = samples_of(baseline.run, baseline.model_uri, scorers=config.scorers)
        own = config.model_uri or candidate.model_uri
        right = samples_of(candidate.run, own, scorers=config.scorers)
    else:
        # The verdict is about the bytes of the candidate, where it is a logged model.
        digest = None if uri is None else content_digest(uri)
        left, right = _sides(config, dataset, model, predictions, digest)
    return policy.pair(left, right)


def _sides(
    config: EvaluatorConfig,
    dataset: Any,
    model: Any,
    predictions: str | None,
    digest: str | None,
) -> tuple[SampleScores, SampleScores]:
    """Samples of both sides from the frame, and from the model where there is one."""
    features = dataset.features_data
    baseline = column(features, config.baseline)
    features = features.drop(columns=[config.baseline])
    if model is not None:
        answers = _answers(model.predict(features), predictions)
    elif dataset.predictions_data is not None:
        answers = dataset.predictions_data
    else:
        raise InputError(
            "there is no candidate: give a model, or name the column with the candidate's scores "
            "or answers with predictions=."
        )
    sides = frame_to_samples(
        features,
        {"baseline": baseline, "candidate": answers},
        targets=dataset.labels_data if dataset.has_targets else None,
        metric=config.metric,
        higher_is_better=config.higher_is_better,
        scorer=config.scorer,
        names={"baseline": config.baseline_name, "candidate": config.candidate_name},
        digests={"candidate": digest},
    )
    return sides["baseline"], sides["candidate"]


def _answers(predicted: Any, name: str | None) -> Any:
    """One answer per row of what a model returned."""
    if not isinstance(predicted, pd.DataFrame):
        return predicted
    if name is not None:
        return column(predicted, name)
    if "text" in predicted:  # what this package's own models answer
        return predicted["text"]
    if predicted.shape[1] == 1:
        return predicted.iloc[:, 0]
    raise InputError(
        f"the model returned the columns {list(predicted.columns)}: say with predictions= which "
        "one is the answer."
    )


def _uri(model: Any, model_id: str | None) -> str | None:
    """Where the evaluated model is logged, as far as MLflow tells."""
    found = model_id or getattr(model, "model_id", None)
    return None if found is None else f"models:/{found}"
