"""What a job asks both models: the parameters that its recipes and commands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from ..core.prompting import Prompting
from ..core.question_names import DEFAULT_TOKENS, split_tasks
from ..evaluation.suite import DEFAULT_LIMIT


def _listed(value: Any) -> Any:
    return split_tasks(value) if isinstance(value, str) else value


def _all_for_zero(value: Any) -> Any:
    return None if value in (0, "0") else value


def _nothing_for_none(value: Any) -> Any:
    return None if value in ("", "none") else value


Tasks = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Limit = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_all_for_zero)]
RegisteredName = Annotated[str | None, BeforeValidator(_nothing_for_none)]
"""A registered model; ``none``, or the empty text, registers nothing."""


class Questions(Prompting):
    """What is asked, of how many samples, and how.

    Attributes
    ----------
    tasks : tuple of str
        lm-eval tasks or groups, or files and data sets of questions such as mine.csv,
        comma-separated.
    include_path : Path, optional
        Directory with lm-eval task files of your own.
    columns : str
        Which column of a file of questions is what, e.g. question=Frage,answer=Antwort; of one of
        several files mine.answer=Gold.
    max_gen_toks : int
        Most tokens of a generated answer to a file of questions.
    limit : int, optional
        Samples per task, drawn at random with the seed; 0 (in Python None) takes all.
    num_fewshot : int, optional
        Few-shot examples per prompt; each task's own setting by default.
    seed : int
        Of the random samples and few-shot examples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: Tasks = ()
    include_path: Path | None = None
    columns: str = ""
    max_gen_toks: int = Field(default=DEFAULT_TOKENS, ge=1)
    limit: Limit = DEFAULT_LIMIT
    num_fewshot: int | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)

    @property
    def questions(self) -> dict[str, Any]:
        """What is asked alone, as `mlflow_degrade.promote` takes it."""
        asked = {name: getattr(self, name) for name in Questions.__annotations__}
        return {**asked, "tasks": list(self.tasks), **self.stated()}
