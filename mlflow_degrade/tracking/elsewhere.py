"""What a verdict that was reached on one processor says where this process runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DegradeError
from ..origin import Origin, Processor


class ProcessorWarning(UserWarning):
    """A model was loaded on another kind of processor than the one its verdict was reached on."""


@dataclass(frozen=True)
class Elsewhere:
    """That this machine is not the one a verdict was reached on.

    Attributes
    ----------
    sentence : str
        What differs, and what follows from it.
    open : bool
        Whether answers may differ from those that were judged, as far as anybody has shown.
    """

    sentence: str
    open: bool


def look_elsewhere(origin: Origin | None) -> Elsewhere | None:
    """Compare where scores were computed with where this process runs.

    Parameters
    ----------
    origin : Origin or None
        Of the candidate's scores.

    Returns
    -------
    Elsewhere or None
        None on a processor of the same kind, where the evidence names none, and where no model
        could run, for lack of onnxruntime.
    """
    here = None if origin is None else _here()
    if origin is None or here is None or origin.processor.same_kind(here):
        return None
    there = origin.processor
    said = f"the verdict was reached on {there}; here: {'; '.join(there.differences(here))}"
    if not origin.dependent_operations and origin.dependent_operations is not None:
        return Elsewhere(f"{said}. The model is all float32: only last digits differ", False)
    for found in origin.agreements:
        if found.verdict == "PASS" and found.processor.same_kind(here):
            changed = found.worse + found.better
            return Elsewhere(
                f"{said}. An evaluation on a processor of this kind agreed with it: {changed} of "
                f"{found.n} samples changed, with no systematic change",
                False,
            )
    what = ", ".join(origin.dependent_operations or ("its operations",))
    return Elsewhere(
        f"{said}. {what} may give other answers here: evaluate the model on this machine and "
        "compare the two runs with mlflow-degrade noise",
        True,
    )


def _here() -> Processor | None:
    from ..runtime.machine import current_processor

    try:
        return current_processor()
    except DegradeError:
        return None
