"""Keys that sign evidence, and the signers that are believed.

All cryptography is that of libraries: securesystemslib signs and opens the envelopes (DSSE),
cryptography reads keys, model-signing writes signatures of models, sigstore signs without a key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from .signing_keys import (
    AllowedSigner,
    SignatureError,
    fingerprint,
    library,
    pem,
    private_key,
    public_key_of,
    sign_model,
)

KEY_VARIABLE = "MLFLOW_DEGRADE_SIGNING_KEY"
KEYLESS = "sigstore"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class SigningKey:
    """What evidence is signed with."""

    path: Path | None  # A private key; None signs with an identity of sigstore.
    _private: Any = field(default=None, repr=False)

    @classmethod
    def load(cls, given: str | os.PathLike[str] | None = None) -> SigningKey | None:
        """Read a private key; the one the environment names where none is given."""
        named = os.fspath(given or os.environ.get(KEY_VARIABLE) or "")
        if not named:
            return None
        library("securesystemslib.dsse")
        if named == KEYLESS:
            library("sigstore.sign")
            return cls(None)
        if "PRIVATE KEY-----" in named:
            raise InputError("the signing key is given as text: give the path of its file.")
        return cls(Path(named).expanduser(), private_key(named))

    @property
    def public_key(self) -> bytes:
        """The public key in PEM; empty for an identity of sigstore."""
        return b"" if self._private is None else pem(self._private.public_key())

    @property
    def signer(self) -> AllowedSigner | None:
        """Who signs; None where sigstore tells only once it is done."""
        if self._private is None:
            return None
        return AllowedSigner.model_validate({"public_key": self.public_key.decode()})

    def sign(self, payload: bytes) -> str:
        """An in-toto statement in an envelope, as JSON."""
        if self._private is None:
            return _sign_keyless(payload)
        public, signer = self._private.public_key(), library("securesystemslib.signer")
        key = signer.SSlibKey.from_crypto(public, keyid=fingerprint(public))
        envelope = library("securesystemslib.dsse").Envelope(payload, PAYLOAD_TYPE, {})
        envelope.sign(signer.CryptoSigner(self._private, key))
        return json.dumps(envelope.to_dict(), indent=2) + "\n"

    def sign_model(self, files: Mapping[str, str], to: Path) -> bool:
        """Sign a model's files, see `mlflow_degrade.registry.signing_keys.sign_model`."""
        return sign_model(self._private, self.path, files, to)


def open_envelope(
    text: bytes, signers: Collection[AllowedSigner], carried: bytes | None
) -> tuple[bytes, str]:
    """What was signed, and by whom."""
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"the signature cannot be read: {error}") from error
    if not isinstance(envelope, dict):
        raise SignatureError("the signature cannot be read: it is no mapping")
    kind, payload, by = (_open_keyless if "mediaType" in envelope else _open_keyed)(
        envelope, signers, carried
    )
    if kind != PAYLOAD_TYPE:
        raise SignatureError(f"what was signed is {kind!r}, no statement ({PAYLOAD_TYPE})")
    return payload, by


def _open_keyed(
    envelope: dict[str, Any], signers: Collection[AllowedSigner], carried: bytes | None
) -> tuple[str, bytes, str]:
    dsse, signer = library("securesystemslib.dsse"), library("securesystemslib.signer")
    unsound = library("securesystemslib.exceptions").Error
    if not isinstance(envelope.get("payloadType"), str):
        raise SignatureError("the signature cannot be read: it has no payloadType")
    try:
        found = dsse.Envelope.from_dict(envelope)
    except (KeyError, TypeError, ValueError, AttributeError, unsound) as error:
        raise SignatureError(f"the signature cannot be read: {error!r}") from error
    public = [public_key_of(s.public_key.encode()) for s in signers if s.public_key is not None]
    extra = public_key_of(carried or b"")
    if not signers or fingerprint(extra) in {s.fingerprint for s in signers}:
        public.append(extra)
    # Each key comes with its one algorithm; what the envelope says of itself plays no part.
    keys = {fingerprint(key): key for key in public}
    named = [name for name in keys if name in found.signatures]
    if not named:
        raise SignatureError(
            f"it is signed by {_listed(found.signatures) or 'nobody'}, and signatures count only "
            f"from {_listed(signers or keys)}"
        )
    try:
        accepted = found.verify(
            [signer.SSlibKey.from_crypto(keys[name], keyid=name) for name in named], 1
        )
    except (ValueError, unsound) as error:
        raise SignatureError(
            f"the signature by {_listed(named)} does not fit what it is said to sign"
        ) from error
    by = str(next(iter(accepted)))
    if by != fingerprint(extra):
        raise SignatureError(f"it is signed by {by}, and the key that came with it is another")
    return str(found.payload_type), found.payload, by


def _open_keyless(
    envelope: dict[str, Any],
    signers: Collection[AllowedSigner],
    carried: bytes | None,  # noqa: ARG001  certificates come inside
) -> tuple[str, bytes, str]:
    named = [s for s in signers if s.identity is not None]
    if not named:
        raise SignatureError(
            "it is signed by an identity of sigstore, and signatures count only from "
            f"{_listed(signers) or 'identities that somebody names'}"
        )
    errors = library("sigstore.errors")
    models, verify = library("sigstore.models"), library("sigstore.verify")
    problems = []
    try:
        bundle = models.Bundle.from_json(json.dumps(envelope))
        verifier = verify.Verifier.production(offline=True)
    except (errors.Error, ValueError) as error:
        raise SignatureError(f"the signature cannot be read: {error}") from error
    for signer in named:
        policy = verify.policy.Identity(identity=signer.identity, issuer=signer.issuer)
        try:
            kind, payload = verifier.verify_dsse(bundle, policy)
        except (errors.Error, ValueError) as error:
            problems.append(f"{signer}: {error}")
        else:
            return str(kind), payload, str(signer)
    raise SignatureError(f"the signature does not hold for {'; '.join(problems)}")


def _sign_keyless(payload: bytes) -> str:
    dsse, oidc = library("sigstore.dsse"), library("sigstore.oidc")
    models, sign = library("sigstore.models"), library("sigstore.sign")
    token = oidc.detect_credential()
    if token is None:
        raise InputError(
            f"signing key {KEYLESS!r}: this environment gives no identity token, as GitHub's and "
            "GitLab's jobs do. Name a key file."
        )
    context = sign.SigningContext.from_trust_config(models.ClientTrustConfig.production())
    with context.signer(oidc.IdentityToken(token)) as signer:
        return str(signer.sign_dsse(dsse.Statement(payload)).to_json())


def _listed(names: Collection[Any]) -> str:
    return ", ".join(sorted(map(str, names)))
