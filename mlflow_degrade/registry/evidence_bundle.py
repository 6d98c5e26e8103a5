"""Evidence as one file that can be checked anywhere: no server, no registry, no model needed."""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import InputError, RegistryError, StorageError
from ..decision.policy import GatePolicy
from ..decision.results import Decision, SideName
from ..samples.readers.mlflow_runs import whole_run_id
from .attestation import KNOWN, fetch_evidence, review_attestation
from .evidence import RUN_TAG, EvaluationSource, stated_tags
from .evidence_review import FILES, review_evidence
from .model_content import read_content
from .signing_keys import AllowedSigner
from .verification import bound_digest, wrong_model

_RUN = re.compile(r"(?:runs:/+)?(?P<run>[^/:@\s]+)/*")
_ENCRYPTED = 0x1
# A fixed time: the same evidence gives the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class BundleReview:
    """What a bundle of evidence is worth.

    Attributes
    ----------
    verdict : str or None
        Computed now, under the required policy where there is one.
    problems, notes : tuple of str
        Why it must not be believed; what to know besides.
    decision : Decision or None
        As computed now.
    digests : mapping
        ``evidence``, ``policy``, ``candidate_model``, ``baseline_model``, and ``model`` and
        ``artifact`` where the model was at hand.
    signer : str or None
        Whose signature fits.
    trusted : bool
        Whether that is a signer whom the caller named.
    sources : mapping
        Where the scores of each side are from.
    """

    verdict: str | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    decision: Decision | None
    digests: Mapping[str, str]
    signer: str | None
    trusted: bool
    sources: Mapping[SideName, EvaluationSource] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything holds; `trusted` says whether it matters who made it."""
        return not self.problems


def export_evidence(reference: str, target: Path) -> str:
    """Write the evidence of a run or of a registered version as a bundle.

    Parameters
    ----------
    reference : str
        ``runs:/id``, a run's id, ``models:/name/version`` or ``models:/name@alias``.
    target : Path
        A zip file.

    Returns
    -------
    str
        The run that holds the evidence.

    Raises
    ------
    RegistryError
        There is no such run or version, or its evidence is incomplete.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    try:
        run = client.get_run(_run_id(reference, client))
    except MlflowException as error:
        raise RegistryError(f"{reference} cannot be read: {error}") from error
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        folder = fetch_evidence(run, Path(scratch))
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise RegistryError(f"the evidence of {reference} lacks {', '.join(missing)}.")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name in KNOWN:
                if (folder / name).is_file():
                    archive.writestr(zipfile.ZipInfo(name, _TIME), (folder / name).read_bytes())
    return str(run.info.run_id)


def verify_bundle(
    path: Path,
    signers: Collection[AllowedSigner],
    *,
    policy: GatePolicy | None = None,
    model_dir: Path | None = None,
) -> BundleReview:
    """Check a bundle with nothing but itself: signature, digests, and the verdict once more.

    Parameters
    ----------
    path : Path
        As `export_evidence` writes it.
    signers : collection of AllowedSigner
        One of them must have signed.
    policy : GatePolicy, optional
        Required policy, whatever policy the evidence was made with.
    model_dir : Path, optional
        The model's files, to be compared with those that were judged.

    Returns
    -------
    BundleReview

    Raises
    ------
    InputError
        There is no such file, or it is no zip file.
    RegistryError
        The model's folder is none.
    """
    content = None if model_dir is None else read_content(model_dir)
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        folder = Path(scratch)
        problems = _unpack(path, folder)
        if problems:
            return BundleReview(None, tuple(problems), (), None, {}, None, trusted=False)
        attested = review_attestation(folder, signers, content)
        if attested.problems:
            by = attested.signer
            return BundleReview(None, tuple(attested.problems), (), None, {}, by, trusted=False)
        review = review_evidence(folder, policy)
        problems = list(review.problems)
        if content is not None:
            problems += content.problems
            problems += wrong_model(content, review.digests, {}, bound_digest(folder))
            review.digests |= {"model": content.digest, "artifact": content.artifact_digest}
    decision = review.decision
    return BundleReview(
        verdict=None if decision is None else decision.verdict.value,
        problems=tuple(dict.fromkeys(problems)),
        notes=(*review.notes, *([] if attested.note is None else [attested.note])),
        decision=decision,
        digests=review.digests,
        signer=attested.signer,
        trusted=attested.trusted,
        sources=review.sources,
    )


def _run_id(reference: str, client: Any) -> str:
    from .verification import resolve

    if reference.startswith("models:"):
        version = client.get_model_version(*resolve(reference))
        found = stated_tags(version.tags)[0].get(RUN_TAG) or version.run_id
        if not found:
            raise RegistryError(f"{reference} names no run with its evidence.")
        return str(found)
    match = _RUN.fullmatch(reference)
    if match is None:
        raise InputError(
            f"{reference!r} is neither a run nor a version: write runs:/<id>, models:/name/3 or "
            "models:/name@alias."
        )
    return whole_run_id(match["run"])


def _unpack(path: Path, folder: Path) -> list[str]:
    """Copy what evidence consists of, under its own names; what else is in there is a problem."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            problems = list(_unwanted(entries))
            if problems:
                return problems
            for entry in entries:
                with archive.open(entry) as source, (folder / entry.filename).open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(f"{path} is no bundle of evidence: {error}.") from error
    except OSError as error:
        if error.filename is not None and Path(error.filename) != path:
            raise StorageError(f"{error.filename} cannot be written: {error.strerror}.") from error
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    return []


def _unwanted(entries: list[zipfile.ZipInfo]) -> Iterator[str]:
    names = [entry.filename for entry in entries]
    for entry in entries:
        # Only known names are ever written, so none leads anywhere else.
        if entry.filename not in KNOWN or entry.orig_filename != entry.filename:
            yield f"the bundle holds {entry.filename!r}, which is no part of evidence"
        elif names.count(entry.filename) > 1:
            yield f"the bundle holds {entry.filename} more than once"
        elif stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            yield f"{entry.filename} of the bundle is no plain file"
        elif entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            # Nothing then takes more room than the bundle itself.
            yield f"{entry.filename} of the bundle is compressed or encrypted"
