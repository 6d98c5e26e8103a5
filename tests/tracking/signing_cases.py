"""Keys, and registered versions whose evidence is signed with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import enforcement_cases as cases
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from mlflow.tracking import MlflowClient

from mlflow_degrade import Decision
from mlflow_degrade.tracking.attestation import sign_evidence
from mlflow_degrade.tracking.model_content import read_content
from mlflow_degrade.tracking.signing import SigningKey


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
