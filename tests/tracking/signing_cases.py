"""Keys, and registered versions whose evidence is signed with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import enforcement_cases as cases
import mlflow
import numpy as np
import pandas as pd
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from mlflow.tracking import MlflowClient

from mlflow_degrade import Decision, GatePolicy, PairedScores, SampleScores, decide, pair
from mlflow_degrade.registry.attestation import sign_evidence
from mlflow_degrade.registry.evidence import log_decision
from mlflow_degrade.registry.model_content import bind_content, read_content
from mlflow_degrade.registry.references import logged_content
from mlflow_degrade.registry.register_on_pass import seal
from mlflow_degrade.registry.registration import verdict_tags
from mlflow_degrade.registry.signing import SigningKey


def make_key(path: Path, kind: str = "P-256", password: str | None = None) -> Path:
    """Write a private key and, next to it, its public key; returns the private one's path."""
    private: Any = {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    locked = NoEncryption() if password is None else BestAvailableEncryption(password.encode())
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    public = private.public_key()
    path.with_suffix(".pub").write_bytes(
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return path


def load_key(path: Path) -> SigningKey:
    key = SigningKey.load(path)
    assert key is not None
    return key


def evidence_folder(case: cases.Case) -> Path:
    """Where the evidence of a version is kept."""
    uri = MlflowClient().get_run(case.run_id).info.artifact_uri
    return Path(uri.removeprefix("file://")) / "evidence"


def model_folder(case: cases.Case) -> Path:
    """Where the files of a version are kept."""
    return Path(MlflowClient().get_model_version_download_uri(*case.at).removeprefix("file://"))


def sign(case: cases.Case, key: SigningKey) -> cases.Case:
    """Sign a version's evidence as a gate does."""
    text = (evidence_folder(case) / "decision.json").read_text(encoding="utf-8")
    content = read_content(model_folder(case))
    sign_evidence(case.run_id, Decision.from_json(text), content, key)
    return case


Judge = Callable[[str], tuple[Decision, PairedScores]]
"""Judges the model with a digest, however it likes."""


def judge(
    wrong: int = 0,
    n: int = 600,
    policy: GatePolicy = cases.STRICT,
    tasks: tuple[str, ...] = ("qa",),
    model: str = "int8",
) -> Judge:
    """Right answers but for some, in each task."""

    def decided(digest: str) -> tuple[Decision, PairedScores]:
        sides = []
        for name, known, mistakes in (("fp32", "sha256:baseline", 0), (model, digest, wrong)):
            score = np.ones(n)
            score[:mistakes] = 0
            frames = [
                pd.DataFrame({"task": t, "doc_id": range(n), "metric": "acc", "score": score})
                for t in tasks
            ]
            table = pd.concat(frames, ignore_index=True)
            sides.append(SampleScores.from_pandas(table, model=name, model_digest=known))
        paired = pair(*sides)
        return decide(paired, policy, attempt=1), paired

    return decided


def register_judged(
    folder: Path, name: str, judged: Judge, *, word: str = "echo", key: SigningKey | None = None
) -> cases.Case:
    """Log a model of a few files with its evidence, sign it, and register it."""
    code = folder / "echo.py"
    code.write_text(cases.ECHO.format(word=word))
    with mlflow.start_run() as run:
        info = mlflow.pyfunc.log_model(
            name="model", python_model=str(code), pip_requirements=["mlflow"]
        )
        content = logged_content(info.model_uri)
        decision, paired = judged(content.digest)
        digest = log_decision(decision, paired)
        if key is None:
            bind_content(content, run.info.run_id)
        else:
            seal(decision, run.info.run_id, content, key)
    tags = verdict_tags(decision, digest, run.info.run_id, content)
    return cases.register_again(name, info.model_uri, run.info.run_id, content.digest, tags)
