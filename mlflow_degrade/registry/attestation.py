"""Signed evidence: an in-toto test result about a model's files and the evidence files on them.

Digests prove that files belong together; whoever may write all of them can make them belong. A
signature proves who put them together.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.cache import digest_file, digest_json
from ..core.errors import InputError, RegistryError
from ..decision.results import Decision, Verdict
from ..tracking.artifact_access import delete_artifact, fetch
from .evidence import COST, EVIDENCE
from .evidence_review import FILES, review_evidence
from .model_content import BINDING_FILE, ModelContent
from .signing import KEY_VARIABLE, SigningKey, open_envelope
from .signing_keys import AllowedSigner, SignatureError, library, model_root

ATTESTATION, PUBLIC_KEY, MODEL_SIGNATURE = "attestation.json", "signer.pem", "model.sig"
SIGNED = (*FILES, BINDING_FILE)
"""What a signature is always about; the cost, and that of the model for other tools, on top."""
KNOWN = (*SIGNED, COST, MODEL_SIGNATURE, ATTESTATION, PUBLIC_KEY)
"""All that evidence may consist of."""

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"

_RESULTS = {Verdict.PASS: "PASSED", Verdict.FAIL: "FAILED", Verdict.INCONCLUSIVE: "WARNED"}
_LARGEST = 1 << 24


@dataclass
class AttestationReview:
    """What a signature on evidence is worth."""

    problems: list[str] = field(default_factory=list)  # Each is a reason not to believe it.
    signer: str | None = None  # Whose signature fits the statement.
    trusted: bool = False  # Whether that is one of the allowed signers.

    @property
    def note(self) -> str | None:
        """What to know where nobody was named whose signature counts."""
        if self.problems or self.trusted:
            return None
        if self.signer is None:
            return "the evidence is not signed: whoever may log runs can have made it"
        return (
            f"the evidence is signed by {self.signer}, a key that came with it: nobody said whose "
            "signature counts"
        )


def review_attestation(
    folder: Path,
    signers: Collection[AllowedSigner],
    content: ModelContent | None = None,
) -> AttestationReview:
    """Check the signature on a folder of evidence, and that it is about exactly these files."""
    # Nothing but JSON is parsed here: samples that nobody signed need not be opened at all.
    review = AttestationReview()
    linked = sorted(p.name for p in folder.iterdir() if p.is_symlink())
    if linked:
        review.problems.append(f"{linked[0]} of the evidence is a link")
        return review
    attestation, carried = folder / ATTESTATION, folder / PUBLIC_KEY
    if not attestation.is_file():
        if signers:
            review.problems.append(
                "the evidence is not signed: it counts only with the signature of "
                + " or ".join(sorted(map(str, signers)))
            )
        return review
    try:
        payload, review.signer = open_envelope(
            _read(attestation), signers, _read(carried) if carried.is_file() else None
        )
        statement = json.loads(payload)
    except SignatureError as error:
        review.problems.append(f"{ATTESTATION}: {error}")
        return review
    except (ValueError, RecursionError) as error:
        review.problems.append(f"{ATTESTATION}: what was signed is not JSON: {error}")
        return review
    review.trusted = bool(signers)
    review.problems += _differences(statement, _subjects(folder, content), _digests(folder))
    return review


def sign_evidence(run_id: str, decision: Decision, content: ModelContent, key: SigningKey) -> None:
    """Sign the evidence of a run, after computing it again from what is logged."""
    from mlflow import MlflowClient

    client = MlflowClient()
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        run = client.get_run(run_id)
        folder = fetch_evidence(run, Path(scratch))
        review = review_evidence(folder)
        problems = review.problems + _not_as_decided(folder, decision, content)
        if problems:
            raise RegistryError(
                f"the evidence in run {run_id} is not signed, it is not what was decided here: "
                f"{'; '.join(problems)}"
            )
        own = () if key.signer is None else (key.signer,)
        if own and not review_attestation(folder, own, content).problems:
            return  # by this very key already
        for name in (MODEL_SIGNATURE, ATTESTATION, PUBLIC_KEY):
            (folder / name).unlink(missing_ok=True)
        if not key.sign_model(content.files, folder / MODEL_SIGNATURE):
            delete_artifact(
                str(run.info.artifact_uri), f"{EVIDENCE}/{MODEL_SIGNATURE}"
            )  # by an earlier key
        signed = _statement(_subjects(folder, content), _digests(folder), decision)
        (folder / ATTESTATION).write_text(key.sign(signed), encoding="utf-8")
        (folder / PUBLIC_KEY).write_bytes(key.public_key)
        for name in (MODEL_SIGNATURE, PUBLIC_KEY, ATTESTATION):
            if (folder / name).is_file():
                client.log_artifact(run_id, str(folder / name), EVIDENCE)


def fetch_evidence(run: Any, scratch: Path) -> Path:
    """A copy of a run's evidence."""
    folder = fetch(str(run.info.artifact_uri), EVIDENCE, scratch, copy=True)
    if folder is None:
        raise RegistryError(f"run {run.info.run_id} has no {EVIDENCE}/manifest.json.")
    return folder


def require_signature(
    run_id: str, content: ModelContent, signers: Collection[AllowedSigner]
) -> None:
    """Refuse to go on with evidence that the gate would not take."""
    from mlflow import MlflowClient

    if not signers:
        return
    with tempfile.TemporaryDirectory(prefix="mlflow-degrade-") as scratch:
        folder = fetch_evidence(MlflowClient().get_run(run_id), Path(scratch))
        problems = review_attestation(folder, signers, content).problems
    if problems:
        raise RegistryError(
            f"{'; '.join(problems)}. Nothing was registered: give a key of a signer that the gate "
            f"file lists with --signing-key or {KEY_VARIABLE}."
        )


def load_allowed_key(
    given: str | os.PathLike[str] | None, signers: Collection[AllowedSigner]
) -> SigningKey | None:
    """The key to sign with, if there is one; refused where its signature would not count."""
    key = SigningKey.load(given)
    own = None if key is None else key.signer
    if own is not None and signers and own.fingerprint not in {s.fingerprint for s in signers}:
        raise InputError(
            f"signing key {own.fingerprint} is none of the signers that the gate file lists: "
            f"{', '.join(map(str, signers))}."
        )
    return key


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _LARGEST:
        raise SignatureError(f"{path.name} has {size} bytes, at most {_LARGEST} are read")
    return path.read_bytes()


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the evidence, the signature itself left out."""
    files = sorted(p for p in folder.rglob("*") if not p.is_dir())
    own = {folder / ATTESTATION, folder / PUBLIC_KEY}
    return {
        p.relative_to(folder).as_posix(): digest_file(p).removeprefix("sha256:")
        for p in files
        if p not in own
    }


def _not_as_decided(folder: Path, decision: Decision, content: ModelContent) -> list[str]:
    """How logged evidence differs from what is to be signed."""
    found = [f"{name} is no part of evidence" for name in _digests(folder) if name not in KNOWN]
    try:
        recorded = Decision.from_json((folder / "decision.json").read_text(encoding="utf-8"))
        bound = json.loads((folder / BINDING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [*found, str(error)]
    if recorded != decision:
        found.append("decision.json is another decision")
    if bound != {"artifact_digest": content.artifact_digest}:
        found.append(f"{BINDING_FILE} names other files")
    return found


def _subjects(folder: Path, content: ModelContent | None) -> dict[str, str]:
    """Digests of what a statement is about, as far as they can be had."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        found = {"evidence": digest_json(manifest).removeprefix("sha256:")}
    except (OSError, ValueError, RecursionError):
        found = {"evidence": ""}
    return found if content is None else {"model": model_root(content.files), **found}


def _statement(subjects: Mapping[str, str], files: Mapping[str, str], decision: Decision) -> bytes:
    attestation = "in_toto_attestation"
    results = library(f"{attestation}.predicates.test_result.v0.test_result_pb2")
    json_format = library("google.protobuf.json_format")
    descriptor = library(f"{attestation}.v1.resource_descriptor").ResourceDescriptor
    gating = [t for t in decision.tasks if t.tier == "gating"]
    result = results.TestResult(
        result=_RESULTS[decision.verdict],
        configuration=[descriptor(name=n, digest={"sha256": d}).pb for n, d in files.items()],
        passed_tests=[t.task for t in gating if not t.guilty],
        failed_tests=[t.task for t in gating if t.guilty],
    )
    statement = library(f"{attestation}.v1.statement").Statement(
        [descriptor(name=n, digest={"sha256": d}).pb for n, d in subjects.items()],
        PREDICATE,
        json_format.MessageToDict(result),
    )
    statement.validate()
    return str(json_format.MessageToJson(statement.pb)).encode()


def _differences(
    statement: Any, subjects: Mapping[str, str], files: Mapping[str, str]
) -> list[str]:
    """How a signed statement differs from what is there."""
    try:
        kind = (statement["_type"], statement["predicateType"])
        if kind != (STATEMENT, PREDICATE):
            return [f"what was signed is {kind[1]!r}, no test result ({PREDICATE})"]
        predicate = statement["predicate"]
        result = predicate["result"]
        about = _named_digests(statement["subject"])
        signed = _named_digests(predicate["configuration"])
    except (KeyError, TypeError, ValueError) as error:
        return [f"the signed statement is incomplete: {error!r}"]
    found = []
    if result != _RESULTS[Verdict.PASS]:
        found.append(f"what was signed is a test result {result!r}, not a PASS")
    if about.get("evidence") != subjects["evidence"]:
        found.append("the signature is about other evidence")
    if about.get("model") != subjects.get("model", about.get("model")) or "model" not in about:
        found.append("the signature is about other files of the model")
    found += [f"the signature is not about {n}" for n in SIGNED if n not in signed]
    for name in sorted(signed.keys() | files.keys()):
        if name not in files:
            found.append(f"{name} was signed and is missing")
        elif name not in signed:
            found.append(f"{name} was added to the signed evidence")
        elif signed[name] != files[name]:
            found.append(f"{name} is not the file that was signed")
    return found


def _named_digests(descriptors: Any) -> dict[str, str]:
    found = {str(item["name"]): str(item["digest"]["sha256"]) for item in descriptors}
    if len(found) != len(descriptors):
        raise ValueError("a name is given twice")
    return found
